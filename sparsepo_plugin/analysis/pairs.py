"""The pairs that runs are asked about, and what the runs answer."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import typer

from ..checkpoint import DESCRIPTION
from ..errors import SparsePOError, fault
from ..run import Run, TokenTable, compare, load_run
from ..texts import Joining, Text
from .lines import Line, is_messages, is_text, read_lines

Answer = TypeVar("Answer")

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
    return [pair_of(line) for line in read_pair_lines(path, count)]


def read_pair_lines(path: Path, count: int | None = None) -> list[Line]:
    """The first lines of a file of pairs, with all that they have; see `read_pairs`."""
    if count is not None and count < 1:
        raise SparsePOError(f"-n is {count}, 1 or more is needed")
    return read_lines(path, "--pairs", "pair", ", ".join(_COLUMNS), count)


def check_count(count: int | None, pairs: Path | None) -> None:
    """Refuse a number of pairs where there are none.

    Raises:
        SparsePOError: names the option that is missing.
    """
    if count is not None and pairs is None:
        raise SparsePOError("-n has no effect without --pairs")


def ask(
    folder: Path, pairs: list[Pair], allow_code: bool = False, reference: str | None = None
) -> Iterator[TokenTable]:
    """Load a run, and give what it makes of each pair, as it is asked for; see `open_run`.

    Raises:
        SparsePOError: there is no such run; later, a pair cannot be asked about.
    """
    run = open_run(folder, pairs, reference, allow_code)
    return answer_each(pairs, str(folder), partial(tokens_of, run))


def open_run(folder: Path, pairs: list[Pair], reference: str | None = None, allow_code: bool = False) -> Run:
    """A run to ask about pairs.

    Args:
        folder: The run's; or, where there is a reference, the folder or hub name of any model, whose texts are joined
            as they would be for a model without a run.
        pairs: That it will be asked about.
        reference: Another reference than the run's, folder or hub name.
        allow_code: Import what the run's description names, and run code that its models bring.

    Raises:
        SparsePOError: there is no such run, or a model cannot be loaded.
    """
    if reference is None or (folder / DESCRIPTION).is_file():
        return load_run(folder, reference=reference, allow_code=allow_code)
    messages = any(not isinstance(pair.prompt, str) for pair in pairs)
    return compare(str(folder), reference, Joining(chat_template=messages, end="appended"), allow_code=allow_code)


def tokens_of(run: Run, pair: Pair) -> TokenTable:
    """What a run makes of a pair, with the weights of its columns where the run's masks read them."""
    column = run.description.loss.column
    sides = () if column is None else ("chosen", "rejected")
    weights = {f"{side}_weights": pair.other.get(side + column.suffix) for side in sides}
    return run.tokens(pair.prompt, pair.chosen, pair.rejected, **weights)


def answer_each(pairs: list[Pair], label: str, answer: Callable[[Pair], Answer]) -> Iterator[Answer]:
    """Answers in order, with a progress bar.

    Raises:
        SparsePOError: there is none for a pair; names its line.
    """
    with typer.progressbar(pairs, label=label, file=sys.stderr) as shown:
        for pair in shown:
            try:
                yield answer(pair)
            except Exception as error:  # whatever tokenizer, template, model or mask raise
                line = error if isinstance(error, SparsePOError) else fault(error)
                raise SparsePOError(f"{pair.place}: {line}") from error


def pair_of(line: Line) -> Pair:
    """The pair that a line is.

    Raises:
        SparsePOError: it is none; names the line.
    """
    values, place = line
    for column in _COLUMNS:
        if not (is_text(values.get(column)) or is_messages(values.get(column))):
            raise SparsePOError(f"{place}: {column} must be text, or a list of messages with role and content")
    other = {column: value for column, value in values.items() if column not in _COLUMNS}
    return Pair(*(values[column] for column in _COLUMNS), place, other)
