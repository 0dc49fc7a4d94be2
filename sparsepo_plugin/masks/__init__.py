"""One file per mask; importing this package registers them."""

from .activation import ActivationMask
from .base import MaskHead, TokenMask, build_masks
from .learned import LearnedMask
from .random import RandomMask
from .uniform import UniformMask

__all__ = ["ActivationMask", "LearnedMask", "MaskHead", "RandomMask", "TokenMask", "UniformMask", "build_masks"]
