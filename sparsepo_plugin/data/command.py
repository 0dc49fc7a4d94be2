"""The command line of the converters."""

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SparsePOError, one_line_errors
from . import CONVERTERS
from .base import Row
from .files import read_rows, write_pairs

Name = StrEnum("Name", {name: name for name in CONVERTERS})
Split = StrEnum("Split", ["train", "test"])


def data(
    name: Annotated[Name, typer.Argument(help="Whose raw form the input has.")],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input", help="A file (.jsonl, .json, .gz, .parquet), a folder, or a hub NAME, NAME:SPLIT, NAME@FOLDER."
        ),
    ],
    output: Annotated[Path, typer.Option(help="JSON lines with prompt, chosen and rejected, and weights.")],
    seed: Annotated[int, typer.Option(help="Of the draws of tldr and mbpp; the others draw nothing.")] = 42,
    per_subset: Annotated[int | None, typer.Option(min=1, help="tldr: pairs from each subset.")] = None,
    split: Annotated[Split | None, typer.Option(help="tldr: rows of the paper's training or test set alone.")] = None,
    single_turn: Annotated[
        bool, typer.Option("--single-turn", help="hh: dialogues with one human turn alone.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="mbpp: epochs of pairs, each drawn anew.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="chat, hh: whose template to use; tis_dpo: whose tokens the weights are of.")
    ] = None,
    chat_template: Annotated[Path | None, typer.Option(help="chat, hh: a Jinja file, if it has none.")] = None,
    transform: Annotated[
        str | None,
        typer.Option(help="tis_dpo: what makes weights of scores: rank_based, threshold_and_scale or origin."),
    ] = None,
) -> None:
    """Turn a dataset's raw form into pairs; --input may be given more than once."""
    options = {
        "per_subset": per_subset,
        "split": split,
        "single_turn": single_turn or None,
        "epochs": epochs,
        "tokenizer": tokenizer,
        "chat_template": chat_template,
        "transform": transform,
    }
    with one_line_errors():
        convert(name, inputs, output, seed, {key: value for key, value in options.items() if value is not None})


def convert(name: str, inputs: list[str], output: Path, seed: int, options: dict[str, Any]) -> None:
    """Convert and report on stderr what was dropped and why.

    Args:
        name: A key of CONVERTERS.
        inputs: Sources of raw rows, read one after another.
        output: The file to write.
        seed: Given to converters that draw.
        options: Further keyword arguments of the converter.

    Raises:
        SparsePOError: an option is missing or has no effect, an input cannot be read, or a row is malformed.
    """
    parameters = inspect.signature(CONVERTERS[name]).parameters
    _check_options(name, options, parameters)
    seeded = {"seed": seed} if "seed" in parameters else {}
    dropped: Counter[str] = Counter()
    read: Counter[str] = Counter()
    rows = _counted(chain.from_iterable(map(read_rows, inputs)), read)
    written = write_pairs(CONVERTERS[name](rows, dropped, **seeded, **options), output)
    for reason, number in (+dropped).items():
        typer.echo(f"{name}: dropped {number}: {reason}", err=True)
    typer.echo(f"{name}: dropped {dropped.total()} in all", err=True)
    if not written:
        raise SparsePOError(f"{name}: no pair is left of {read['rows']} rows, {output} is not written")
    typer.echo(f"{name}: {read['rows']} rows read, {written} pairs written to {output}", err=True)


def _check_options(name: str, options: dict[str, Any], parameters: Any) -> None:
    for key in options:
        if key not in parameters:
            owners = [other for other, run in CONVERTERS.items() if key in inspect.signature(run).parameters]
            raise SparsePOError(f"--{key.replace('_', '-')} has no effect for {name}; it is for {', '.join(owners)}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in ("rows", "dropped", "seed", *options):
            raise SparsePOError(f"{name} needs --{key.replace('_', '-')}, a folder or a hub name")


def _counted(rows: Iterable[Row], read: Counter[str]) -> Iterator[Row]:
    for row in rows:
        read["rows"] += 1
        yield row
