"""The parts of ``mednext demo``; nothing here is needed to train on real data.

- ``synthetic``: a small synthetic 3D data set in Decathlon layout.
- ``pretrained``: the run with released weights, which trains nothing.
- ``steps``: runs one of the commands.
- ``run``: the run, which starts the same ``python -m monai.bundle`` commands that a user would type.
"""
