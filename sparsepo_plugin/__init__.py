"""Token-level preference optimisation with sparse masks (SparsePO), for the frameworks people already use."""

from .checkpoint import RunDescription, load_masks, save_masks
from .config import LossConfig
from .divergence import TokenStatistics, token_statistics
from .errors import SparsePOError
from .masks import Masks, TokenMask
from .objectives import Objective, ObjectiveOutput, preference_loss
from .policy import MaskedPolicy, PolicyOutput
from .reference import ReferenceFeatures, Runner
from .registry import MASKS, OBJECTIVES, Registry
from .run import Run, TokenTable, load_run
from .step import PreferenceStep, StepOutput
from .tokens import MaskPair, ResponseTokens

__all__ = [
    "MASKS",
    "OBJECTIVES",
    "LossConfig",
    "MaskPair",
    "MaskedPolicy",
    "Masks",
    "Objective",
    "ObjectiveOutput",
    "PolicyOutput",
    "PreferenceStep",
    "ReferenceFeatures",
    "Registry",
    "ResponseTokens",
    "Run",
    "RunDescription",
    "Runner",
    "SparsePOError",
    "StepOutput",
    "TokenMask",
    "TokenStatistics",
    "TokenTable",
    "load_masks",
    "load_run",
    "preference_loss",
    "save_masks",
    "token_statistics",
]
