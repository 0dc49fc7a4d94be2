"""Which flags of a host the core's words stand for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from ..errors import SparsePOError

Error = TypeVar("Error", bound=SparsePOError)


class FlagNames:
    """Adds to errors of the core which flags of a host decide what they are about.

    Args:
        flags: By the core's word, such as `reference`.
    """

    def __init__(self, flags: Mapping[str, str]) -> None:
        self._flags = flags

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within the context an error of the core also says it."""
        try:
            yield
        except SparsePOError as error:
            self.named(error)
            raise

    def named(self, error: Error) -> Error:
        """The same error, which now says it."""
        if error.about is not None:
            error.args, error.about = (f"{error} ({self._flags[error.about]})",), None
        return error
