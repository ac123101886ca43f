"""Short names for bundle configs: ``_target_: MedNeXtV1S`` instead of ``_target_: mednext_monai.networks...``.

MONAI (1.5 to 1.6) has no way to register a component. Its ``ComponentLocator`` looks a bare ``_target_`` up in the
modules of ``sys.modules`` whose name begins with ``monai``, among the classes and functions whose ``__module__`` is
that module's name; nothing can be added to the list. The one way to be found is to be such a module, so ``register``
puts one, ``monai_mednext_v1``, into ``sys.modules``. That is not clean, but it changes nothing of MONAI itself, and the
names are none of MONAI's: bare ``MedNeXt``, ``MedNeXtS``, ... remain MONAI's own networks, which are other ones.

The module holds functions and not the classes, so that neither torch nor monai is imported before one is called.
Full paths such as ``mednext_monai.networks.create_mednext`` need none of this, and the package's bundles use those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MODULE", "register"]

MODULE = "monai_mednext_v1"
VARIANT_NAMES = {"MedNeXtV1S": "S", "MedNeXtV1B": "B", "MedNeXtV1M": "M", "MedNeXtV1L": "L"}


def register() -> None:
    """
    Make ``MedNeXtV1``, ``MedNeXtV1S``, ``MedNeXtV1B``, ``MedNeXtV1M`` and ``MedNeXtV1L`` usable as a bare ``_target_``.

    ``import mednext_monai`` does this; done again it changes nothing. In a config, ``"imports": ["$import
    mednext_monai"]`` is enough, since MONAI runs imports before it looks names up. ``MedNeXtV1`` takes the arguments
    of :py:class:`mednext_monai.networks.MedNeXt`, the others those of :py:func:`mednext_monai.networks.create_mednext`
    after the variant.
    """
    if MODULE in sys.modules:
        return
    module = ModuleType(MODULE, "Short names of the networks of mednext_monai; see mednext_monai.registry.")
    module.__spec__ = ModuleSpec(MODULE, loader=None)  # importlib.util.find_spec refuses a module without one
    for function in (_network_factory(), *map(_variant_factory, VARIANT_NAMES)):
        setattr(module, function.__name__, function)
    sys.modules[MODULE] = module


def _network_factory() -> Callable[..., Any]:
    def MedNeXtV1(*args: Any, **kwargs: Any) -> Any:
        """Build :py:class:`mednext_monai.networks.MedNeXt` with the same arguments."""
        from .networks import MedNeXt

        return MedNeXt(*args, **kwargs)

    return _renamed(MedNeXtV1, "MedNeXtV1")


def _variant_factory(name: str) -> Callable[..., Any]:
    def factory(*args: Any, **kwargs: Any) -> Any:
        from .networks import create_mednext

        return create_mednext(VARIANT_NAMES[name], *args, **kwargs)

    factory.__doc__ = f"Build MedNeXt-{VARIANT_NAMES[name]}: ``mednext_monai.networks.create_mednext`` of that variant."
    return _renamed(factory, name)


def _renamed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = name
    function.__module__ = MODULE
    return function
