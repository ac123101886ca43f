"""Preprocessing as published: nonzero crop, resampling to 1 mm, normalisation, the exact way back, a store of cases.

What lies where, in the order of use:

- ``nonzero``: what belongs to the body (any channel nonzero, holes filled) and the crop to it.
- ``resampling``: to another grid over the same extent; images, label maps, probabilities.
- ``normalization``: intensities, after resampling.
- ``foreground``: voxel locations per class, from which training patches are drawn.
- ``case``: the four steps above in one call on arrays; ``geometry``: the grids before and after, and the way back.
- ``files``: reading images and labels, writing a segmentation on the grid of the original file.
- ``case_store``: every case of a data set prepared once, in parallel, as memory-mapped arrays.
- ``transforms``: the same steps as MONAI transforms.

Arrays are channel first with the axis order of the file, ``(C, X, Y, Z)``, as MONAI's readers give them; no axis is
flipped or permuted. All but ``transforms`` need neither torch nor MONAI, so that worker processes start fast; hence
this package imports nothing by itself.
"""
