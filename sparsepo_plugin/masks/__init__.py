"""One file per mask; importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from .base import TokenMask
from .pair import Masks, build_masks, learns, refuse_idle_keys

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Masks", "TokenMask", "build_masks", "learns", "refuse_idle_keys"]
