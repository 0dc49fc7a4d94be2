"""Samples on their way to a file: what a killed run has finished is not drawn again."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import SparsePOError, shown

_LOOKED_AT = 64  # numbers of each parameter tell two models apart


class SamplesFile:
    """JSON lines: what the samples are drawn with and, batch by batch, a line for each; begun, or gone on with.

    Args:
        path: The file, made with its folder when the first batch is there.
        options: All that the samples depend on, by the name of the option.
        total: Samples in the end.
        batch: Samples of a batch; what a kill left of one is dropped.

    Attributes:
        done: Samples that an earlier start has left.

    Raises:
        SparsePOError: the file is there and of other options, or cannot be read.
    """

    def __init__(self, path: Path, options: dict[str, Any], total: int, batch: int) -> None:
        self.path, self._total, header = path, total, _line(options)
        with _using(path):
            lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if lines and not header.startswith(lines[0]):
            raise SparsePOError(f"{path} {_difference(lines[0], options)}; choose another -o, or remove what is there")
        whole = min(sum(line.endswith(b"\n") for line in lines[1:]), total)
        self.done = whole if whole == total else whole // batch * batch
        self._kept = sum(map(len, lines[1 : 1 + self.done])) + len(header) * bool(self.done)
        self._header = header

    def add(self, samples: Iterable[dict[str, Any]]) -> None:
        """Write a batch, after those that are whole.

        Raises:
            SparsePOError: it cannot be written.
        """
        content = (b"" if self._kept else self._header) + b"".join(map(_line, samples))
        with _using(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.truncate(self._kept)
                file.write(content)
        self._kept += len(content)

    def read(self) -> Iterator[dict[str, Any]]:
        """The samples, in order."""
        with self.path.open(encoding="utf-8") as file:
            yield from map(json.loads, islice(file, 1, 1 + self._total))


def fingerprint_of(model: nn.Module) -> str:
    """A few numbers of each parameter, hashed: another for a model that was trained further under the same name."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().flatten()[:_LOOKED_AT].to("cpu", torch.float32)
        digest.update(name.encode() + numbers.numpy().tobytes())
    return digest.hexdigest()[:16]


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _difference(header: bytes, options: dict[str, Any]) -> str:
    """How a file that begins with a header differs."""
    try:
        found = json.loads(header)
        name = next(name for name in options if found[name] != options[name])
    except (ValueError, TypeError, KeyError, StopIteration):
        return "is there, and is no file of this command"
    return f"is of an earlier run, {name} was {shown(found[name])} and is now {shown(options[name])}"


@contextmanager
def _using(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SparsePOError(f"{path} cannot be read and written: {error.strerror}") from error
