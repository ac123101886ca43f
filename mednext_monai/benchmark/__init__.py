"""Time, memory and accuracy of MedNeXt: ours, our plain modules, MONAI's MedNeXt and the authors' code, in one run.

``python -m mednext_monai.benchmark`` prints a table and writes ``benchmark.json`` and ``benchmark.png``; ``README.md``
in this folder has measurements. All contestants have the same weights and input and run in turn, A B C A B C, so that
load from other processes affects them alike. Beside every time stands the error relative to the plain modules.
"""
