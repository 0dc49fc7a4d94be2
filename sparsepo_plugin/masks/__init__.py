"""One file per mask; importing this package registers them."""

from .activation import ActivationMask
from .base import MaskHead, TokenMask, build_masks
from .decay import DecayMask
from .learned import LearnedMask
from .random import RandomMask
from .selected import SelectedMask
from .uniform import UniformMask

__all__ = [
    "ActivationMask",
    "DecayMask",
    "LearnedMask",
    "MaskHead",
    "RandomMask",
    "SelectedMask",
    "TokenMask",
    "UniformMask",
    "build_masks",
]
