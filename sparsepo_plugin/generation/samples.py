"""Samples on their way to a file: what a killed run has finished is not drawn again."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import SparsePOError, shown

_LOOKED_AT = 64  # numbers of each parameter tell two models apart


class SamplesFile:
    """JSON lines: what the samples are drawn with and, batch by batch, a line for each; begun, or gone on with.

    Args:
        path: The file, made with its folder if need be.
        options: All that the samples depend on, by the name of the option.
        total: Samples in the end.
        batch: Samples of a batch; what a kill left of one is dropped.

    Attributes:
        done: Samples that are there.

    Raises:
        SparsePOError: the file is there and of other options, or cannot be written.
    """

    def __init__(self, path: Path, options: dict[str, Any], total: int, batch: int) -> None:
        self.path, header = path, _line(options)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.is_file() else b""
        lines = content.splitlines(keepends=True)
        if lines and not header.startswith(lines[0]):
            raise SparsePOError(f"{path} is of an earlier run, {_difference(lines[0], options)}; choose another -o")
        whole = sum(line.endswith(b"\n") for line in lines[1:])
        self.done = whole if whole == total else whole // batch * batch
        with _writing(path):
            if content.startswith(header):
                os.truncate(path, sum(map(len, lines[: 1 + self.done])))
            else:
                path.write_bytes(header)

    def add(self, samples: Iterable[dict[str, Any]]) -> None:
        """Write a batch, at the end.

        Raises:
            SparsePOError: it cannot be written.
        """
        with _writing(self.path), self.path.open("ab") as file:
            file.write(b"".join(map(_line, samples)))

    def read(self) -> Iterator[dict[str, Any]]:
        """The samples, in order."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            yield from map(json.loads, file)


def fingerprint_of(model: nn.Module) -> str:
    """A few numbers of each parameter, hashed: another for a model that was trained further under the same name."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().flatten()[:_LOOKED_AT].to("cpu", torch.float32)
        digest.update(name.encode() + numbers.numpy().tobytes())
    return digest.hexdigest()[:16]


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def _difference(header: bytes, options: dict[str, Any]) -> str:
    """The first option that is not that of a header."""
    try:
        found = json.loads(header)
        name = next(name for name in options if found[name] != options[name])
    except (ValueError, TypeError, KeyError, StopIteration):
        return "and not of this command"
    return f"in which {name} was {shown(found[name])} and not {shown(options[name])}"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SparsePOError(f"{path} cannot be written: {error.strerror}") from error
