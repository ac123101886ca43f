"""A handler that another item of a config defines, in a list of handlers."""

from __future__ import annotations

from typing import Any

__all__ = ["use"]


def use(handler: Any) -> Any:
    """
    Return the handler.

    A reference as an item of a list would be shorter, but MONAI's workflows and MONAI Label read the ``_target_`` of
    each handler of a training.

    Args:
        handler: an object with ``attach``.
    """
    return handler
