"""Which flags of OpenRLHF the core's words stand for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from ...errors import SparsePOError

Error = TypeVar("Error", bound=SparsePOError)

_FLAGS = {
    "policy": "model.model_name_or_path",
    "reference": "ref.model_name_or_path",
    "dtype": "ds.param_dtype",
    "shared reference": "ref.share and ds.lora.rank",
    "sharded sequences": "ds.ring_attn_size",
    "learning rate": "adam.lr, max_norm",
    "remote code": "model.trust_remote_code: true",
}


@contextmanager
def naming_flags() -> Iterator[None]:
    """Within the context an error of the core also says which flags decide what it is about."""
    try:
        yield
    except SparsePOError as error:
        named(error)
        raise


def named(error: Error) -> Error:
    """The same error, which now says it."""
    if error.about is not None:
        error.args, error.about = (f"{error} ({_FLAGS[error.about]})",), None
    return error
