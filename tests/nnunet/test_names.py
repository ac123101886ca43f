"""The trainers are the published ones: eight variants, eleven more with smaller learning rates."""

from __future__ import annotations

import re
from collections import Counter

from helpers.documents import PACKAGE

from mednext_monai.networks import VARIANTS
from mednext_monai.nnunet.names import TRAINERS, TrainerSettings


def test_every_published_trainer_has_a_name():
    assert len(TRAINERS) == 19
    base = {f"nnUNetTrainerMedNeXt_{variant}_kernel{size}" for variant in VARIANTS for size in (3, 5)}
    assert {name for name, settings in TRAINERS.items() if settings.learning_rate == 1e-3} == base
    assert TRAINERS["nnUNetTrainerMedNeXt_L_kernel5_lr_25e_5"] == TrainerSettings("L", 5, 0.00025)
    assert "nnUNetTrainerMedNeXt_S_kernel5_lr_5e_4" not in TRAINERS  # the authors have none
    rates = Counter(settings.learning_rate for settings in TRAINERS.values())
    assert rates == {1e-3: 8, 5e-4: 3, 2.5e-4: 4, 1e-4: 4}


def test_the_page_names_trainers_that_exist():
    page = (PACKAGE / "nnunet" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"-tr (\w+)", page))
    assert named and named <= set(TRAINERS)
