"""Text files of rows, looked at before they are read: readers name no row, and pyarrow dies of a row that is null."""

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

_NEEDED = "one JSON object a line, or a list of objects, is needed"

# What is wrong with each row, or None.
Faults = Iterator[str | None]
FaultOf = Callable[[dict[str, Any]], str | None]


def faults(path: Path, fault_of: FaultOf) -> Faults:
    """What is wrong with each row of a file; lines that are empty and the head of a CSV file are no rows.

    Args:
        path: A file; those that are neither JSON nor CSV are taken as they are, and yield nothing.
        fault_of: What else is wrong with a JSON object.

    Raises:
        OSError: it cannot be opened.
        ValueError: its head names a column twice.
    """
    if path.suffix in (".json", ".jsonl"):
        return _json_faults(path, fault_of)
    return _csv_faults(path) if path.suffix == ".csv" else iter(())


def _json_faults(path: Path, fault_of: FaultOf) -> Faults:
    with path.open("rb") as file:
        lines = (line for line in file if line.strip())
        first = next(lines, b"").removeprefix(codecs.BOM_UTF8)
        if first.startswith(b"["):
            yield from _list_faults(first + file.read(), fault_of)
        else:
            yield from (_line_fault(line, fault_of) for line in chain([first], lines) if line.strip())


def _list_faults(content: bytes, fault_of: FaultOf) -> Faults:
    try:
        items = _parse(content)
    except ValueError as error:
        yield f"a list begins here that is not JSON: {error}; {_NEEDED}"
    else:
        yield from (_item_fault(item, fault_of) for item in items)


def _line_fault(line: bytes, fault_of: FaultOf) -> str | None:
    try:
        return _item_fault(_parse(line), fault_of)
    except ValueError as error:
        return f"not JSON: {error}; {_NEEDED}"


def _item_fault(item: Any, fault_of: FaultOf) -> str | None:
    return fault_of(item) if isinstance(item, dict) else f"{json.dumps(item):.40} is no object; {_NEEDED}"


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
