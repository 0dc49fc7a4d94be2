"""`sparsepo data NAME`: the raw form of a dataset of the paper, or of another method, turned into preference pairs."""

from collections.abc import Callable, Iterator

from .base import Pair, WeightedPair
from .chat import chat
from .hh import hh
from .imdb import imdb
from .mask_dpo import mask_dpo
from .mbpp import mbpp
from .tis_dpo import tis_dpo
from .tldr import tldr

CONVERTERS: dict[str, Callable[..., Iterator[Pair | WeightedPair]]] = {
    converter.__name__: converter for converter in (hh, tldr, imdb, mbpp, chat, tis_dpo, mask_dpo)
}
