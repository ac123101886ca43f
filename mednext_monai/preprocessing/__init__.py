"""Preprocessing as published, on NumPy arrays: nonzero crop, resampling to 1 mm, normalization, and the way back.

In order of use:

- ``nonzero``: the nonzero region of the image (any channel nonzero, holes filled) and the crop to it.
- ``resampling``: images, label maps and probabilities on another grid of the same extent.
- ``normalization``: intensities, after resampling.
- ``foreground``: voxel locations per class, from which training patches are drawn.
- ``geometry``: the grids before and after preprocessing, and the mapping back to the first.
- ``case``: all steps for one case in one call.

Arrays are channel-first with the axis order of the file, ``(C, X, Y, Z)``, as MONAI's readers return them; axes are
only flipped or permuted if an orientation is set. Nothing here needs torch or MONAI, so worker processes start quickly;
hence this package imports nothing by itself.
"""
