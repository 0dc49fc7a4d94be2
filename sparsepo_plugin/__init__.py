"""Token-level preference optimisation with sparse masks (SparsePO), for the frameworks people already use."""

from .checkpoint import load_mask, save_mask
from .config import SparsePOConfig
from .divergence import TokenStatistics, token_statistics
from .errors import SparsePOError
from .masks import MaskHead, TokenMask
from .objectives import ObjectiveOutput
from .policy import MaskedPolicy
from .reference import ReferenceFeatures
from .registry import MASKS, OBJECTIVES, Registry
from .step import PreferenceStep, StepOutput
from .tokens import MaskPair, ResponseTokens

__all__ = [
    "MASKS",
    "OBJECTIVES",
    "MaskHead",
    "MaskPair",
    "MaskedPolicy",
    "ObjectiveOutput",
    "PreferenceStep",
    "ReferenceFeatures",
    "Registry",
    "ResponseTokens",
    "SparsePOConfig",
    "SparsePOError",
    "StepOutput",
    "TokenMask",
    "TokenStatistics",
    "load_mask",
    "save_mask",
    "token_statistics",
]
