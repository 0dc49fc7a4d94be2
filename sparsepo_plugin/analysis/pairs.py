"""The pairs that runs are asked about, and what the runs answer."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from ..errors import SparsePOError, fault
from ..run import Run, TokenTable, load_run
from ..texts import Text
from .lines import Line, is_messages, is_text, read_lines

_COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A row of a file of pairs: texts or lists of messages, where they stand, for messages, and what else it has."""

    prompt: Text
    chosen: Text
    rejected: Text
    place: str
    other: dict[str, Any] = field(default_factory=dict)  # its other columns


def read_pairs(path: Path, count: int | None = None) -> list[Pair]:
    """The first pairs of a file of JSON lines with prompt, chosen and rejected.

    Args:
        path: The file.
        count: How many; all without it.

    Raises:
        SparsePOError: the file cannot be read or has no pair, or a line is none; names the line.
    """
    if count is not None and count < 1:
        raise SparsePOError(f"-n is {count}, 1 or more is needed")
    return [_pair(line) for line in read_lines(path, "--pairs", "pair", ", ".join(_COLUMNS), count)]


def check_count(count: int | None, pairs: Path | None) -> None:
    """Refuse a number of pairs where there are none.

    Raises:
        SparsePOError: names the option that is missing.
    """
    if count is not None and pairs is None:
        raise SparsePOError("-n has no effect without --pairs")


def ask(folder: Path, pairs: list[Pair], allow_code: bool = False) -> Iterator[TokenTable]:
    """Load a run, and give what it makes of each pair, as it is asked for.

    Args:
        folder: The run's.
        pairs: The questions.
        allow_code: Import what the run's description names, and run code that its models bring.

    Raises:
        SparsePOError: there is no such run; later, a pair cannot be asked about.
    """
    run = load_run(folder, allow_code=allow_code)
    return _answers(run, pairs, str(folder))


def _answers(run: Run, pairs: list[Pair], label: str) -> Iterator[TokenTable]:
    column = run.description.loss.column
    with typer.progressbar(pairs, label=label, file=sys.stderr) as shown:
        for pair in shown:
            try:
                weights = {} if column is None else _weights(pair, column.suffix)
                yield run.tokens(pair.prompt, pair.chosen, pair.rejected, **weights)
            except Exception as error:  # whatever tokenizer, template, model or mask raise
                line = error if isinstance(error, SparsePOError) else fault(error)
                raise SparsePOError(f"{pair.place}: {line}") from error


def _pair(line: Line) -> Pair:
    values, place = line
    for column in _COLUMNS:
        if not (is_text(values.get(column)) or is_messages(values.get(column))):
            raise SparsePOError(f"{place}: {column} must be text, or a list of messages with role and content")
    other = {column: value for column, value in values.items() if column not in _COLUMNS}
    return Pair(*(values[column] for column in _COLUMNS), place, other)


def _weights(pair: Pair, suffix: str) -> dict[str, Any]:
    """The spans that a run's masks read, as its columns have them."""
    return {f"{name}_weights": pair.other.get(name + suffix) for name in ("chosen", "rejected")}
