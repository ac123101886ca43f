"""Time, memory and accuracy of MedNeXt: ours, our plain modules, MONAI's MedNeXt and the authors' code, in one run.

``python -m mednext_monai.benchmark`` prints a table and writes ``benchmark.json`` (the machine and every value) and
``benchmark.png``. All contestants have the same weights and input and run in turn, A B C A B C, so that load from other
processes affects them alike; a ratio is the median of the ratios within the rounds. Beside every time stands the error
of outputs and gradients relative to the plain modules. Measurements: ``README.md`` in this folder.

- ``options``: the command line; ``run``: the sections, one after the other, and the allocator's settings.
- ``contestants``: the networks that are compared; ``timing``: comparing any steps.
- ``network``: the sections forward, training and window; ``memory``, ``augmentation``, ``preprocessing``: the others.
- ``report``, ``plot``: tables, JSON and chart.
"""
