"""One file per objective; importing this package registers them."""

from .base import Objective, ObjectiveOutput, preference_loss
from .d2po import D2PO
from .dpo import DPO
from .dpop import DPOPositive
from .sepo import SePO
from .simpo import SimPO
from .sparsepo import SparsePO
from .tdpo import TDPO

__all__ = [
    "D2PO",
    "DPO",
    "TDPO",
    "DPOPositive",
    "Objective",
    "ObjectiveOutput",
    "SePO",
    "SimPO",
    "SparsePO",
    "preference_loss",
]
