"""How fast, how large and how exact: ours against MONAI's MedNeXt, the authors' code and the plain path, in one run.

``python -m mednext_monai.benchmark`` prints a table and writes ``benchmark.json`` (the machine and every single time)
and ``benchmark.png``. All contestants have the same weights and input and take turns, A B C A B C, so that whatever
else the machine does hits them alike; a ratio is the median of the ratios within the rounds. How far outputs and
gradients are from those of the plain path stands beside every time.

What lies where:

- ``options``: the command line, checked, before torch is imported.
- ``contestants``: the networks that are compared, and running and checking them.
- ``timing``: turns, clock, medians and ratios.
- ``network``: the sections forward and training; ``memory``: their peak memory, each in a process of its own.
- ``window``: a whole volume by sliding window; ``augmentation`` and ``preprocessing``: the data's side.
- ``allocator``: running again under other settings of the C library's memory.
- ``machine``, ``report``, ``plot``: what it ran on, the tables, the picture.
"""
