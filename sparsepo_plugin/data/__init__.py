"""`sparsepo data NAME`: the raw form of each dataset of the paper, turned into preference pairs."""

from collections.abc import Callable, Iterator

from .base import Pair
from .chat import chat
from .hh import hh
from .imdb import imdb
from .mbpp import mbpp
from .tldr import tldr

CONVERTERS: dict[str, Callable[..., Iterator[Pair]]] = {
    converter.__name__: converter for converter in (hh, tldr, imdb, mbpp, chat)
}
