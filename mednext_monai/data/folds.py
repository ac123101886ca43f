"""The five-fold split of nnU-Net v1, which MedNeXt's published training uses."""

from __future__ import annotations

import numpy as np

__all__ = ["SEED", "kfold_indices"]

SEED = 12345


def kfold_indices(count: int, folds: int = 5, seed: int = SEED) -> list[list[int]]:
    """
    Return the validation indices of each fold, sorted, for ``count`` cases sorted by name.

    The same split as scikit-learn's ``KFold(folds, shuffle=True, random_state=seed)``, which nnU-Net v1 uses, without
    that dependency; checked against recorded figures. (MONAI's ``partition_dataset`` shuffles otherwise.)

    Raises:
        ValueError: when there are fewer cases than folds.
    """
    if count < folds:
        raise ValueError(
            f"{folds} folds need at least {folds} cases, got {count}; use fold 'all' to train on all of them."
        )
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    return [sorted(part.tolist()) for part in np.array_split(order, folds)]
