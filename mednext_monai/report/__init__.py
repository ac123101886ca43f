"""The page about a run of a bundle, ``mednext report``.

- ``figures``: curves and box plots as SVG elements.
- ``run``: what the folders of a bundle hold about each fold.
- ``page``: the page.
"""

from .page import write_report

__all__ = ["write_report"]
