"""What nnU-Net v2 finds if ``nnUNet_extTrainer`` is this folder. The trainers are in ``mednext_monai.nnunet.trainer``.

nnU-Net imports this file under its bare name and forgets it afterwards, so nothing may be defined here.
"""

from mednext_monai.nnunet.trainer import *  # noqa: F403
