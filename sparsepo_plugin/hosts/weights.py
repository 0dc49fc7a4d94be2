"""The files that a model's weights lie in, looked at without loading them."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import SparsePOError, first_line


def check_weights(key: str, folder: Path, trust_remote_code: bool) -> None:
    """Look at the headers of the files that transformers would load.

    Pickled weights are let through unread: transformers loads them with `weights_only`, so that they run no code.

    Args:
        key: What names the model.
        folder: Where it lies.
        trust_remote_code: Whether the model may bring code of its own.

    Raises:
        SparsePOError: a file is missing, broken or cut off, or a weight has another shape or is not there; names the
            key and the file.
    """
    for file in _weight_files(key, folder):
        if file.suffix != ".safetensors":
            _check_pickle(key, file)
            return
        _check_header(key, file)
    _compare(key, folder, trust_remote_code)


def _compare(key: str, folder: Path, trust_remote_code: bool) -> None:
    """Have transformers match names and shapes in the files with the model: what is missing, it draws at random."""
    from transformers import AutoModelForCausalLM

    options = {"ignore_mismatched_sizes": True, "trust_remote_code": trust_remote_code}
    try:
        with _silence():  # on the meta device nothing is read but the headers
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, device_map="meta", output_loading_info=True, **options
            )
    except Exception as error:  # whatever the files make of it
        raise SparsePOError(f"{key}: {folder} cannot be loaded: {first_line(error)}") from error
    for name, saved, own in sorted(found["mismatched_keys"]):
        raise SparsePOError(f"{key}: {folder}: {name} has shape {list(saved)}, {list(own)} by config.json")
    own = dict(model.named_parameters())  # a weight that two modules share is there by one name
    for name in sorted(own.keys() & found["missing_keys"]):
        raise SparsePOError(f"{key}: {folder} has no weight {name}, {list(own[name].shape)} by config.json")


@contextmanager
def _silence() -> Iterator[None]:
    """Within the context transformers writes no report and draws no bar."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _weight_files(key: str, folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, LookupError, AttributeError, TypeError) as error:
                raise SparsePOError(f"{key}: {index} is broken: {first_line(error)}") from error
            for shard in shards:
                if not (folder / shard).is_file():
                    raise SparsePOError(f"{key}: {folder / shard} is missing, {index.name} names it")
            return [folder / shard for shard in shards]
    raise SparsePOError(f"{key}: {folder} has no weights: model.safetensors or pytorch_model.bin is needed")


def _check_header(key: str, file: Path) -> None:
    """Open a safetensors file, whose length is then compared with what its header says."""
    try:
        with safe_open(file, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise SparsePOError(f"{key}: {file} is broken: {first_line(error)}") from error


def _check_pickle(key: str, file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(file)):
        raise SparsePOError(f"{key}: {file} is broken: it ends too early")
