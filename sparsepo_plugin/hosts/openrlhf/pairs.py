"""The pairs that a run will train on, read as OpenRLHF reads them: what it cannot train on is refused or left out."""

import contextlib
import io
import sys
from collections.abc import Iterable
from itertools import chain, islice
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch.distributed as dist

from ...config import LossConfig
from ...errors import SparsePOError
from .rows import RowJudge, Texts, Verdict, load_tokenizer
from .sources import Part, Source, parts, refuse_keys

LISTED = 20  # bad rows are told one by one, the rest are counted
_BATCH = 512  # rows go through the tokenizer together

# Indices of rows that are not trained on, by what OpenRLHF calls a data set: its name and its split.
BadRows = dict[tuple[str, str], set[int]]


class Found(NamedTuple):
    """What there is to say of the rows of one data set, by their index."""

    rows: int
    bad: list[int]
    reasons: list[tuple[int, str]]  # of the first LISTED
    left_out: list[int]  # by OpenRLHF, for the length of their prompt
    same: int  # pairs whose responses are the same
    unweighed: int  # that have none of the weights that a mask reads


def check_pairs(args: SimpleNamespace, strategy: Any, model_config: Any, config: LossConfig | None = None) -> BadRows:
    """Read the training and evaluation pairs as OpenRLHF will, and look at every row.

    Each rank looks at its share of the rows, and all come to the same end. The first lists bad rows on stderr.

    Args:
        args: OpenRLHF's arguments.
        strategy: OpenRLHF's strategy.
        model_config: Hugging Face config of the policy.
        config: The loss; None is OpenRLHF's own DPO.

    Returns:
        The rows to leave out; there are some only where `data.on_bad_row` is `drop`.

    Raises:
        SparsePOError: a key of the data or the tokenizer is wrong; a file or column is missing; there are fewer pairs
            than a batch; a row cannot be read or trained on; or no row has weights and a mask reads them. The line
            names the key, or file and row from 1.
    """
    refuse_keys(args)
    judge = RowJudge(args, load_tokenizer(args, strategy, model_config), model_config, config and config.column)
    sources = {source.identity: source for part in parts(args) for source in part.sources}
    _refuse_unreadable(chain.from_iterable(source.faults() for source in sources.values()))
    found = {identity: _look_at(_read(source, judge, strategy), source, judge) for identity, source in sources.items()}
    _tell_bad(sources, found, drop=args.data.on_bad_row == "drop")
    _tell_idle(sources, found, args.data.max_len)
    for part in parts(args):
        _refuse_few(part, found, args, strategy)
    if judge.weight_keys:
        _tell_unweighed(sources, found, " or ".join(judge.weight_keys), config.section)
    return {identity: set(each.bad) for identity, each in found.items()}


def first_pair(args: SimpleNamespace, strategy: Any, model_config: Any) -> tuple[Any, Texts]:
    """The tokenizer, and the first training row that is one, after `check_pairs`."""
    tokenizer = load_tokenizer(args, strategy, model_config)
    judge = RowJudge(args, tokenizer, model_config)
    rows = chain.from_iterable(_read(source, judge, strategy) for source in parts(args)[0].sources)
    return tokenizer, next(texts for row in rows if isinstance(texts := judge.texts(row), Texts))


def _read(source: Source, judge: RowJudge, strategy: Any) -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # OpenRLHF tells of a data set when it reads it to train on
            return source.read(strategy)
    except SparsePOError:
        # A reader that fails names no row; most often a column has texts and something else.
        _refuse_unreadable(source.faults(judge.wrong_kind))
        raise


def _refuse_unreadable(faults: Iterable[tuple[str, str | None]]) -> None:
    rows, bad, lines = 0, 0, []
    for place, fault in faults:
        rows += 1
        if fault is not None:
            bad += 1
            lines += [f"{place}: {fault}"] if bad <= LISTED else []
    if bad:
        _list(lines, bad)
        raise SparsePOError(f"{lines[0]} ({bad} of {rows} rows cannot be read)")


def _look_at(data: Any, source: Source, judge: RowJudge) -> Found:
    """Judge this rank's share of the rows and gather what all have found."""
    judge.refuse_columns(data.column_names, source.name)
    data = data.select_columns([*judge.columns, *(key for key in judge.weight_keys if key in data.column_names)])
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    verdicts: dict[int, Verdict] = {}
    for start in range(rank * _BATCH, len(data), ranks * _BATCH):
        rows = list(data.select(range(start, min(start + _BATCH, len(data)))))
        told = enumerate(judge(rows), start=start)
        verdicts.update((index, verdict) for index, verdict in told if verdict != Verdict())
    bad = {index: verdict.fault for index, verdict in verdicts.items() if verdict.fault is not None}
    mine = Found(
        rows=len(data),
        bad=list(bad),
        reasons=list(islice(bad.items(), LISTED)),
        left_out=[index for index, verdict in verdicts.items() if verdict.left_out],
        same=sum(verdict.same for verdict in verdicts.values()),
        unweighed=sum(verdict.unweighed for verdict in verdicts.values()),
    )
    all_of_them = [mine] * ranks
    if dist.is_initialized():
        dist.all_gather_object(all_of_them, mine)
    return Found(
        rows=len(data),
        bad=sorted(chain.from_iterable(found.bad for found in all_of_them)),
        reasons=sorted(chain.from_iterable(found.reasons for found in all_of_them))[:LISTED],
        left_out=sorted(chain.from_iterable(found.left_out for found in all_of_them)),
        same=sum(found.same for found in all_of_them),
        unweighed=sum(found.unweighed for found in all_of_them),
    )


def _tell_bad(sources: dict[tuple[str, str], Source], found: dict[tuple[str, str], Found], drop: bool) -> None:
    bad, rows = sum(len(each.bad) for each in found.values()), sum(each.rows for each in found.values())
    reasons = ((source, *reason) for identity, source in sources.items() for reason in found[identity].reasons)
    lines = [f"{source.place(index)}: {reason}" for source, index, reason in islice(reasons, LISTED)]
    if bad:
        _list(lines, bad)
    if bad and not drop:
        raise SparsePOError(
            f"{lines[0]} ({bad} of {rows} rows cannot be trained on; data.on_bad_row: drop leaves them out)"
        )
    if bad:
        _tell(f"data.on_bad_row: drop leaves out {bad} of {rows} rows")


def _tell_idle(sources: dict[tuple[str, str], Source], found: dict[tuple[str, str], Found], max_len: int) -> None:
    for identity, source in sources.items():
        each, where = found[identity], f"{source.part.key}: {source.name}"
        if each.left_out:
            prompts = f"{len(each.left_out)} of {each.rows} prompts have {max_len - 2} tokens or more"
            _tell(f"{where}: {prompts} (data.max_len - 2), OpenRLHF leaves those pairs out")
        if each.same:
            _tell(f"{where}: {each.same} of {each.rows} pairs have twice the same response and teach nothing")


def _tell_unweighed(
    sources: dict[tuple[str, str], Source], found: dict[tuple[str, str], Found], columns: str, section: str
) -> None:
    """Say how many rows lack the weights that a mask reads, and refuse training data that have none at all.

    Raises:
        SparsePOError: no row has some.
    """
    training = [identity for identity, source in sources.items() if source.part.key == "data.dataset"]
    if all(found[identity].unweighed == found[identity].rows - len(found[identity].bad) for identity in training):
        names = sources[training[0]].part.names
        raise SparsePOError(f"{section}: mask 'column' has no effect, no row of {names} has {columns}")
    for identity, source in sources.items():
        if missing := found[identity].unweighed:
            where = f"{source.part.key}: {source.name}"
            _tell(
                f"{where}: {missing} of {found[identity].rows} rows have no {columns}, their tokens weigh the default"
            )


def _refuse_few(part: Part, found: dict[tuple[str, str], Found], args: SimpleNamespace, strategy: Any) -> None:
    """Refuse data of which too little is left, counted over rows of ones and zeros that OpenRLHF blends."""
    from datasets import Dataset

    def stand_in(name: str, split: str, rows: Any) -> Dataset:
        bad, left_out = set(found[name, split].bad), set(found[name, split].left_out)
        if len(bad) >= len(rows):
            raise SparsePOError(f"{part.key}: no row of {name} can be trained on")
        return Dataset.from_dict({"kept": [index not in left_out for index in range(len(rows)) if index not in bad]})

    with contextlib.redirect_stdout(io.StringIO()):
        pairs = sum(part.blend(strategy, args.train.seed, stand_in)["kept"])
    needed, why = (args.train.batch_size, "train.batch_size is") if part.key == "data.dataset" else (1, "needed is")
    if pairs < needed:
        raise SparsePOError(f"{part.key}: {part.names} has {pairs} pairs that can be trained on, {why} {needed}")


def _list(lines: list[str], bad: int) -> None:
    for line in lines:
        _tell(f"  {line}")
    if bad > len(lines):
        _tell(f"  and {bad - len(lines)} more")


def _tell(line: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(line, file=sys.stderr)
