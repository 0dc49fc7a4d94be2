"""One file per objective; importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Objective, ObjectiveOutput, preference_loss

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Objective", "ObjectiveOutput", "preference_loss"]
