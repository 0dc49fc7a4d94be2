"""Text files of rows, looked at before they are read: readers name no row, and pyarrow dies of a row that is null."""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_NEEDED = "one JSON object a line, or a list of objects, is needed"

# What is wrong with a row, or None, in the order of the rows.
Faults = Iterator[str | None]


def faults(path: Path) -> Faults:
    """Why each row of a file can or cannot be read; lines that are empty and the head of a CSV file are no rows.

    Args:
        path: A file; those that are neither JSON nor CSV are taken as they are, and yield nothing.

    Raises:
        OSError: it cannot be opened.
        ValueError: its head names a column twice.
    """
    if path.suffix in (".json", ".jsonl"):
        return _json_faults(path)
    return _csv_faults(path) if path.suffix == ".csv" else iter(())


def _json_faults(path: Path) -> Faults:
    with path.open("rb") as file:
        lines = (line for line in file if line.strip())
        first = next(lines, b"").removeprefix(codecs.BOM_UTF8)
        if first.startswith(b"["):
            yield from _list_faults(first + file.read())
        elif first.strip():
            yield _line_fault(first)
            yield from map(_line_fault, lines)


def _list_faults(content: bytes) -> Faults:
    try:
        items = _parse(content)
    except ValueError as error:
        yield f"a list begins here that is not JSON: {error}; {_NEEDED}"
    else:
        yield from map(_item_fault, items)


def _line_fault(line: bytes) -> str | None:
    try:
        return _item_fault(_parse(line))
    except ValueError as error:
        return f"not JSON: {error}; {_NEEDED}"


def _item_fault(item: Any) -> str | None:
    return None if isinstance(item, dict) else f"{json.dumps(item):.40} is no object; {_NEEDED}"


def _parse(content: bytes) -> Any:
    try:
        text = content.decode()
        value = json.loads(text, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("its text has half of a surrogate pair") from None
    return value


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(mapping := dict(items)) < len(items):
        raise ValueError(f"{_twice(key for key, _ in items)!r} is given twice")
    return mapping


def _csv_faults(path: Path) -> Faults:
    csv.field_size_limit(1 << 31)  # that of pandas; by default texts end at 128 kB
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = filter(None, csv.reader(file))
        head = next(rows, [])
        if twice := _twice(head):
            raise ValueError(f"column {twice!r} is given twice")
        for row in rows:
            if len(row) != len(head):
                yield f"{len(row)} fields, the head of the file has {len(head)}"
            else:
                yield None if _is_unicode("".join(row)) else "its text is not UTF-8"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)
