"""MedNeXt in nnU-Net v2 (nnunetv2 2.8 or newer), ``pip install "mednext-monai[nnunet]"``; see README.md here.

Here belongs what is used in or for an installed nnU-Net: trainers, plans, model folders. What reads its checkpoints
without it is in ``mednext_monai.weights``. Nothing outside imports this package except the commands ``mednext nnunet``.

- ``names``: the names of the trainers, and what each trains.
- ``trainer``: the trainers; needs nnunetv2.
- ``trainers/``: the folder for ``nnUNet_extTrainer``. nnU-Net imports every file in it, so it has one, which holds
  nothing.
- ``planner``: a plans file with the published spacing, patch and batch size; needs nnunetv2.
- ``model_folder``: from weights of a bundle to the folder that ``nnUNetv2_predict_from_modelfolder`` takes.

Importing this package imports neither torch nor nnunetv2.
"""

from pathlib import Path

__all__ = ["TRAINER_FOLDER"]

TRAINER_FOLDER = str(Path(__file__).resolve().parent / "trainers")  # the value of nnUNet_extTrainer
