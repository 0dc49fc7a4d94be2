"""Token-level preference optimisation with sparse masks (SparsePO), for the frameworks people already use.

Public names are imported when they are asked for: this package itself is light, and needs no host.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "checkpoint": ("RunDescription", "load_masks", "save_masks"),
    "config": ("LossConfig",),
    "divergence": ("TokenStatistics", "token_statistics"),
    "errors": ("SparsePOError",),
    "layout": ("Batch",),
    "masks": ("Masks", "TokenMask"),
    "objectives": ("Objective", "ObjectiveOutput", "preference_loss"),
    "policy": ("MaskedPolicy", "PolicyOutput"),
    "reference": ("ReferenceFeatures", "Runner"),
    "registry": ("MASKS", "OBJECTIVES", "Registry"),
    "run": ("Run", "TokenTable", "load_run"),
    "step": ("PreferenceStep", "StepOutput"),
    "tokens": ("MaskPair", "ResponseTokens"),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = list(_MODULES)

# What a host imports by this name, and nobody can who has not installed it.
_MODULES["SparsePOPlugin"] = "hosts.axolotl.plugin"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
