"""What ``mednext demo`` is made of; nothing here is needed to train on real data.

- ``synthetic``: a small 3D data set in Decathlon layout, drawn from a seed.
- ``run``: the run itself, which starts the same ``python -m monai.bundle`` commands that a user would type.
"""
