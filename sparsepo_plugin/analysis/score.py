"""`sparsepo score`: every number of every response token, for scripts."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ..run import TokenTable
from .files import check_output, write_lines
from .pairs import ask, read_pairs

COLUMNS = (
    *("logps", "reference_logps", "log_ratio", "kl", "mask_reward", "mask_kl"),
    *("masked_reward", "masked_kl", "advantage"),
)


def score(
    run: Path,
    pairs: Path,
    output: Path,
    reference: str | None = None,
    count: int | None = None,
    allow_code: bool = False,
) -> None:
    """Write a line of JSON for each response token of the first `count` pairs; see `open_run`.

    Raises:
        SparsePOError: the run or the pairs cannot be read, or the output not be written.
    """
    check_output(output)
    tables = ask(run, read_pairs(pairs, count), allow_code, reference)
    write_lines(output, (json.dumps(row) for number, table in enumerate(tables) for row in rows(number, table)))


def rows(number: int, table: TokenTable) -> Iterator[dict[str, str | float | None]]:
    """The tokens of a pair, each with its pair's number, its response, its position there, and all numbers."""
    columns = [numbers(getattr(table, name)) or [None] * len(table) for name in COLUMNS]
    positions: Counter[str] = Counter()
    for text, response, *values in zip(table.text, table.response, *columns, strict=True):
        place = {"pair": number, "response": response, "position": positions[response], "text": text}
        positions[response] += 1
        yield place | dict(zip(COLUMNS, values, strict=True))


def numbers(column: Tensor | None) -> list[float] | None:
    """A column as the shortest decimals that are its float32 values."""
    return None if column is None else [float(str(value)) for value in column.float().numpy()]
