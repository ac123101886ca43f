"""Short names for bundle configs: ``_target_: MedNeXtV1S`` instead of ``_target_: mednext_monai.networks...``.

MONAI (1.5 to 1.6) has no way to register a component. Its ``ComponentLocator`` looks a bare ``_target_`` up in the
modules of ``sys.modules`` whose name begins with ``monai``, among the classes and functions whose ``__module__`` is
that module's name; nothing can be added to the list. The one way to be found is to be such a module, so ``register``
puts one, ``monai_mednext_v1``, into ``sys.modules``. That is not clean, but it changes nothing of MONAI itself, and the
names are none of MONAI's: bare ``MedNeXt``, ``MedNeXtS``, ... remain MONAI's own networks, which are other ones.

The module makes its functions when they are looked up, one for each variant of ``networks.VARIANTS``, so that
registering imports neither torch nor monai. Full paths such as ``mednext_monai.networks.create_mednext`` need none of
this, and the package's bundles use those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MODULE", "register"]

MODULE = "monai_mednext_v1"
PREFIX = "MedNeXtV1"  # the name of the network; followed by a variant, that of the variant


def register() -> None:
    """
    Make ``MedNeXtV1``, ``MedNeXtV1S``, ``MedNeXtV1B``, ``MedNeXtV1M`` and ``MedNeXtV1L`` usable as a bare ``_target_``.

    ``import mednext_monai`` does this; done again it changes nothing. In a config, ``"imports": ["$import
    mednext_monai"]`` is enough, since MONAI runs imports before it looks names up. ``MedNeXtV1`` takes the arguments
    of :py:class:`mednext_monai.networks.MedNeXt`, the others those of :py:func:`mednext_monai.networks.create_mednext`
    after the variant.
    """
    if MODULE not in sys.modules:
        sys.modules[MODULE] = _ShortNames(MODULE, "Short names of the networks; see mednext_monai.registry.")


class _ShortNames(ModuleType):
    """The module that MONAI's ``ComponentLocator`` searches with ``inspect.getmembers``."""

    def __init__(self, name: str, doc: str) -> None:
        super().__init__(name, doc)
        self.__spec__ = ModuleSpec(name, loader=None)  # importlib.util.find_spec refuses a module without one

    def __dir__(self) -> list[str]:
        from .networks import VARIANTS

        return [PREFIX, *(PREFIX + variant for variant in VARIANTS)]

    def __getattr__(self, name: str) -> Callable[..., Any]:  # for names that are not found otherwise
        if name.startswith(PREFIX) and name in dir(self):
            setattr(self, name, _factory(name))
            return vars(self)[name]
        raise AttributeError(f"module {MODULE!r} has no attribute {name!r}")


def _factory(name: str) -> Callable[..., Any]:
    from .networks import MedNeXt, create_mednext

    variant = name.removeprefix(PREFIX)
    build = partial(create_mednext, variant) if variant else MedNeXt

    def factory(*args: Any, **kwargs: Any) -> Any:
        return build(*args, **kwargs)

    target = f"create_mednext({variant!r}, ...)" if variant else "MedNeXt(...)"
    factory.__doc__ = f"Build ``mednext_monai.networks.{target}``."
    factory.__name__ = factory.__qualname__ = name
    factory.__module__ = MODULE  # MONAI looks at it
    return factory
