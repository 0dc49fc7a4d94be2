"""Which flags of OpenRLHF the core's words stand for."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import SparsePOError

_FLAGS = {
    "reference": "ref.model_name_or_path",
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
        if error.about is None:
            raise
        raise SparsePOError(f"{error} ({_FLAGS[error.about]})") from error
