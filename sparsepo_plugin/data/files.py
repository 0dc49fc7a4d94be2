"""Reading raw rows, from wherever they are, and writing pairs."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import SparsePOError, fault
from .base import Pair, Row, WeightedPair

_LINES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_SPLITS = ("train", "test", "valid", "dev")


def read_rows(source: str) -> Iterator[Row]:
    """Stream the rows of one source.

    Args:
        source: A file of JSON lines (.gz too) or a parquet file; a folder of such files, or one that the datasets
            library saved; or a dataset's hub name. A folder of its data may follow a hub name, a split anything but a
            file: `NAME[@FOLDER][:SPLIT]`. The split is `train` by default.

    Raises:
        SparsePOError: the source does not exist or cannot be read, or a line is not a JSON object; names the line.
    """
    if not source:
        raise SparsePOError("--input is empty; a file, a folder or a hub name is needed")
    if Path(source).exists():
        name, split = source, "train"
    else:
        name, _, split = source.partition(":")
    path = Path(name)
    if path.is_file():
        yield from _file_rows(path)
    elif path.is_dir() and (files := _files(path, split or "train")):
        for file in files:
            yield from _file_rows(file)
    elif path.is_dir() or not (path.suffix in (".gz", ".parquet", *_LINES) or name.startswith(("/", "."))):
        yield from _dataset_rows(name, split or "train")
    else:
        raise SparsePOError(f"--input {source} does not exist; a file, a folder or a hub name is needed")


def write_pairs(pairs: Iterable[Pair | WeightedPair], output: Path) -> int:
    """Write pairs as JSON lines, all of them or none: the file, and folders that it lacks, appear when it is complete.

    Returns:
        How many were written; without a pair there is no file.

    Raises:
        SparsePOError: the file cannot be written there.
    """
    if output.suffix != ".jsonl":
        raise SparsePOError(f"--output {output} must end in .jsonl, the trainer goes by it")
    there = next(parent for parent in output.absolute().parents if parent.exists())
    if not there.is_dir():
        raise SparsePOError(f"--output {output}: {there} is a file, a folder is needed there")
    if output.is_dir():
        raise SparsePOError(f"--output {output} is a folder, a file is needed")
    partial = there / f".{output.name}.{os.getpid()}.partial"
    written = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for pair in pairs:
                file.write(json.dumps(pair._asdict(), ensure_ascii=False) + "\n")
                written += 1
        if written:
            output.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(output)
    except OSError as error:
        raise SparsePOError(f"--output {output}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return written


def _files(folder: Path, split: str) -> list[Path]:
    """Files of JSON lines below a folder, without those named after another split."""
    others = tuple(name for name in _SPLITS if not split.startswith(name))
    files = sorted(file for file in folder.rglob("*") if file.name.endswith(_LINES))
    if any(file.name in ("dataset_info.json", "dataset_dict.json") for file in files):
        return []
    return [file for file in files if not file.name.startswith(others)]


def _file_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from _numbered(str(path), _load("parquet", data_files=str(path), split="train", streaming=True))
        return
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse(line, f"{path}, line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise SparsePOError(f"{path}: cannot be read: {error}") from error


def _parse(line: bytes, place: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SparsePOError(f"{place}: not JSON: {error}; one object a line is needed") from error
    if not isinstance(values, dict):
        raise SparsePOError(f"{place}: {values!r:.60} is not a mapping; one object a line is needed")
    return Row(values, place)


def _dataset_rows(name: str, split: str) -> Iterator[Row]:
    import datasets

    name, _, folder = name.partition("@")
    if not any((Path(name) / saved).exists() for saved in ("state.json", "dataset_dict.json")):
        yield from _numbered(name, _load(name, data_dir=folder or None, split=split, streaming=True))
        return
    try:
        data = datasets.load_from_disk(name)
    except Exception as error:  # whatever its files make the library raise
        raise SparsePOError(f"--input {name} cannot be read: {fault(error)}") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise SparsePOError(f"{name} has the splits {', '.join(data)}; none is called {split!r}")
        data = data[split]
    yield from _numbered(name, data)


def _load(*args: Any, **kwargs: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(*args, **kwargs)
    except Exception as error:  # whatever the files make the library raise
        name = kwargs.get("data_files", args[0])
        raise SparsePOError(f"--input {name} cannot be read: {fault(error)}") from error


def _numbered(name: str, rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for number, values in enumerate(rows, start=1):
        yield Row(values, f"{name}, row {number}")
