"""`sparsepo heatmap`: the tokens of pairs, coloured by what a run makes of them, as a page in one file."""

from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..run import TokenTable
from ..texts import Text
from .files import check_output, names_of, write_lines
from .page import embedded, fill, page
from .pairs import Pair, ask, read_pairs

QUANTITIES = {
    "log_ratio": "log-ratio",
    "kl": "token KL",
    "mask_reward": "m_u",
    "mask_kl": "m_d",
    "masked_reward": "masked reward",
    "masked_kl": "masked KL",
    "advantage": "advantage",
}
_SIGNED = ("log_ratio", "masked_reward", "advantage")
_ROUNDING = 1e-4  # a KL may be this far below zero


def heatmap(runs: list[Path], pairs: Path, output: Path, count: int, allow_code: bool = False) -> None:
    """Write a page that shows the first `count` pairs as the runs see them, those of a pair under one another.

    Raises:
        SparsePOError: a run or the pairs cannot be read, or the output not be written.
    """
    check_output(output)
    names, asked = names_of(runs), read_pairs(pairs, count)
    tables = [list(ask(run, asked, allow_code)) for run in runs]
    noun = "pair" if len(asked) == 1 else "pairs"
    subtitle = f"{len(asked)} {noun} of {pairs.name}, every token of their responses"
    write_lines(output, [page(" and ".join(names), subtitle, section(names, asked, tables))])


def section(names: list[str], pairs: list[Pair], tables: list[list[TokenTable]]) -> str:
    """The heatmap as HTML.

    Args:
        names: Of the runs.
        pairs: What they were asked about.
        tables: Of each run, its answers.
    """
    setup = {"runs": names, "quantities": _quantities([table for answers in tables for table in answers])}
    articles = map(_article, range(1, len(pairs) + 1), pairs, zip(*tables, strict=True))
    return fill("heatmap.html", count=len(pairs), setup=embedded(setup), pairs="\n".join(articles))


def _article(number: int, pair: Pair, tables: tuple[TokenTable, ...]) -> str:
    """A pair as data, which the page draws when it is looked at."""
    data = {
        "prompt": _prompt(pair.prompt),
        "runs": [{side: _columns(table.of(side)) for side in ("chosen", "rejected")} for table in tables],
    }
    place = escape(pair.place)
    return (
        f'<article class="pair" aria-label="pair {number}"><h3 title="{place}">Pair {number}</h3>'
        f'<script type="application/json">{embedded(data)}</script></article>'
    )


def _prompt(prompt: Text) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _columns(table: TokenTable) -> dict[str, Any]:
    columns = {name: getattr(table, name) for name in QUANTITIES}
    numbers = {name: _numbers(column) for name, column in columns.items() if column is not None}
    return {"text": table.text, **numbers}


def _numbers(column: Tensor) -> list[float]:
    """Five digits, as they are shown."""
    return [float(f"{value:.5g}") for value in column.tolist()]


def _quantities(tables: list[TokenTable]) -> list[dict[str, Any]]:
    """Those that the runs have, and how they are coloured."""
    described = []
    for name, label in QUANTITIES.items():
        columns = [column for table in tables if (column := getattr(table, name)) is not None]
        if columns:
            described.append({"name": name, "label": label, **_range(torch.cat(columns).float(), name in _SIGNED)})
    return described


def _range(values: Tensor, signed: bool) -> dict[str, Any]:
    """Where colours end: at the 99th percentile of what is not zero, or a few tokens would leave the others pale."""
    size = values.abs()
    size = size[size > 0].sort().values
    end = size[int(0.99 * (len(size) - 1))].item() if len(size) else 1.0
    return {
        "signed": signed or values.min().item() < -_ROUNDING,
        "end": float(f"{end:.3g}"),
        "clipped": bool(len(size)) and size[-1].item() > float(f"{end:.3g}"),
    }
