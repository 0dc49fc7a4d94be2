"""TRL's DPO trainer with token-level losses: a subclass, without a patch."""

from .config import SparsePOArguments, SparsePOTrainerConfig
from .trainer import SparsePOTrainer

__all__ = ["SparsePOArguments", "SparsePOTrainer", "SparsePOTrainerConfig"]
