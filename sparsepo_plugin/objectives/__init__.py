"""One file per objective; importing this package registers them."""

from .base import ObjectiveOutput, preference_loss
from .sparsepo import SparsePO

__all__ = ["ObjectiveOutput", "SparsePO", "preference_loss"]
