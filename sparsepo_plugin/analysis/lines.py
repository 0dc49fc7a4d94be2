"""Files of JSON lines that people hand over: objects, each with its place for messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SparsePOError


class Line(NamedTuple):
    """An object of a file, and where it stands."""

    values: dict[str, Any]
    place: str


def read_lines(path: Path, option: str, what: str, columns: str, count: int | None = None) -> list[Line]:
    """The first objects of a file of JSON lines.

    Args:
        path: The file.
        option: That named it, for messages.
        what: What a line is, for messages.
        columns: What it needs, for messages.
        count: How many; all without it.

    Raises:
        SparsePOError: the file cannot be read or is empty, or a line is no object; names the line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(_first(file, path, columns, count))
    except OSError as error:
        raise SparsePOError(f"{option} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SparsePOError(f"{option} {path} is not UTF-8 text") from error
    if not lines:
        raise SparsePOError(f"{option} {path} has no {what}")
    return lines


def is_messages(value: Any) -> bool:
    """Whether it is a list of messages, each with role and content."""
    return isinstance(value, list) and all(
        isinstance(message, dict) and is_text(message.get("role")) and is_text(message.get("content"))
        for message in value
    )


def is_text(value: Any) -> bool:
    """Half of a surrogate pair is no text that a tokenizer takes."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value


def _first(lines: Iterator[str], path: Path, columns: str, count: int | None) -> Iterator[Line]:
    found = 0
    for number, line in enumerate(lines, start=1):
        if found == count:
            return
        if line.strip():
            found += 1
            yield _parse(line, f"{path}, line {number}", columns)


def _parse(line: str, place: str, columns: str) -> Line:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SparsePOError(f"{place}: not JSON: {error}; one object a line is needed") from error
    if not isinstance(values, dict):
        raise SparsePOError(f"{place}: an object with {columns} is needed")
    return Line(values, place)
