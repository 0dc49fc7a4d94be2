"""The files that a model's weights lie in, looked at without loading them."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import SparsePOError, first_line


def check_weights(key: str, folder: Path, model: nn.Module) -> None:
    """Look at the headers of the files that transformers would load.

    Pickled weights are let through unread: transformers loads them with `weights_only`, so that they run no code.

    Args:
        key: What names the model.
        folder: Where it lies.
        model: The same on the meta device, as its config describes it.

    Raises:
        SparsePOError: a file is missing, broken or cut off, or a weight has another shape or is not there; names the
            key and the file.
    """
    saved: dict[str, list[int]] = {}
    for file in _weight_files(key, folder):
        if file.suffix != ".safetensors":
            _check_pickle(key, file)
            return
        saved.update(_read_header(key, file))
    for name, own in model.state_dict().items():
        if name in saved and saved[name] != list(own.shape):
            raise SparsePOError(f"{key}: {folder}: {name} has shape {saved[name]}, {list(own.shape)} by config.json")
    # By shape: names in files are not always those of modules, a Pythia's head is embed_out there.
    tables = {id(part.weight): part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    head = list(model.get_output_embeddings().weight.shape)
    if list(saved.values()).count(head) < sum(list(table.shape) == head for table in tables.values()):
        raise SparsePOError(f"{key}: {folder} has no weights of a vocabulary head, {head}")


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


def _read_header(key: str, file: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a safetensors file, whose length is compared with what its header says."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise SparsePOError(f"{key}: {file} is broken: {first_line(error)}") from error


def _check_pickle(key: str, file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(file)):
        raise SparsePOError(f"{key}: {file} is broken: it ends too early")
