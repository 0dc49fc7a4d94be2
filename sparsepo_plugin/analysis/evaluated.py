"""What `sparsepo evaluate` found of the points of sweeps: every policy with its completions' rewards and KL."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import typer

from ..errors import SparsePOError
from ..hosts import HOSTS
from .evaluate import EVALUATION
from .files import names_of
from .lines import read_lines
from .points import FoundPoint, read_points

_BETAS = frozenset().union(*(host.betas for host in HOSTS.values()))
_ALONE = ("variant", "loss")  # settings whose values say what they are
_NUMBERS = ("reward", "kl", "temperature", "checkpoint", "step")

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """A policy of a sweep: that of a finished run, or one of its checkpoints.

    Attributes:
        method: All that is set but β and the seed, as text.
        beta: What is set of β; empty if a sweep sets none.
        seed: The run's.
        run: Its folder.
        checkpoint: Its name; empty for the finished run.
        step: Of the optimizer.
        rewards: Of each completion.
        kls: Σ_t KL(π‖π_ref) of each completion, in nats.
    """

    method: str
    beta: str
    seed: int
    run: Path
    checkpoint: str
    step: int | None
    rewards: list[float]
    kls: list[float]

    @property
    def reward(self) -> float:
        """The mean."""
        return fmean(self.rewards)

    @property
    def kl(self) -> float:
        """The mean."""
        return fmean(self.kls)


def read_evaluated(sweeps: list[Path], temperature: float | None = None) -> list[Evaluated]:
    """Every policy of the finished points of sweeps; others are named and left out.

    Args:
        sweeps: Their folders; with several, the names of methods begin with theirs.
        temperature: Of the completions; needed where there are several.

    Raises:
        SparsePOError: a point has no evaluation, or not one like the others', or it cannot be read.
    """
    prefixes = [f"{name}: " if len(sweeps) > 1 else "" for name in names_of(sweeps)]
    points = [(prefix, point) for prefix, sweep in zip(prefixes, sweeps, strict=True) for point in read_points(sweep)]
    finished = [(prefix, point) for prefix, point in points if point.finished]
    for _, point in points:
        if not point.finished:
            typer.echo(f"{point.folder} is left out: its run is not finished", err=True)
    _check_there([point for _, point in finished], sweeps)
    read = [(prefix, point, *_read(point.run / EVALUATION)) for prefix, point in finished]
    _check_alike([(point.run, options) for _, point, options, _ in read])
    _check_temperatures({row["temperature"] for *_, rows in read for row in rows}, temperature)
    return [found for prefix, point, _, rows in read for found in _policies(prefix, point, rows, temperature)]


def read_rewards(path: Path) -> list[float]:
    """Rewards of samples of the reference, as `sparsepo generate` keeps them, or `sparsepo evaluate`.

    Raises:
        SparsePOError: the file cannot be read, or has none.
    """
    lines = read_lines(path, "--reference", "sample", "reward")
    rewards = [line.values["reward"] for line in lines if "completion" in line.values and "reward" in line.values]
    if not rewards or not all(isinstance(reward, int | float) for reward in rewards):
        raise SparsePOError(f"--reference {path}: lines with completion and reward are needed, a number")
    return rewards


def _check_there(points: list[FoundPoint], sweeps: list[Path]) -> None:
    if not points:
        raise SparsePOError(f"{', '.join(map(str, sweeps))}: no point is finished")
    missing = [point.run for point in points if not (point.run / EVALUATION).is_file()]
    if missing:
        runs = " ".join(f"{sweep}/*/run" for sweep in sweeps)
        raise SparsePOError(
            f"{missing[0]} has no {EVALUATION}, nor have {len(missing) - 1} others: "
            f"sparsepo evaluate {runs} --prompts FILE --reward NAME"
        )


def _check_alike(found: list[tuple[Path, Row]]) -> None:
    """Refuse evaluations that cannot be compared; KL may be to a reference that each has named for itself."""
    first, options = found[0]
    for run, others in found:
        for key in {**options, **others}:
            if key != "reference" and options.get(key) != others.get(key):
                raise SparsePOError(
                    f"{run / EVALUATION} was made with {key}: {others.get(key)}, that of {first} with "
                    f"{options.get(key)}: evaluate both alike"
                )


def _check_temperatures(found: set[float], wanted: float | None) -> None:
    said = ", ".join(f"{each:g}" for each in sorted(found))
    if wanted is None and len(found) > 1:
        raise SparsePOError(f"completions were drawn at several temperatures: choose with --temperature, of {said}")
    if wanted is not None and wanted not in found:
        raise SparsePOError(f"--temperature {wanted:g}: completions were drawn at {said}")


def _read(path: Path) -> tuple[Row, list[Row]]:
    """Options and rows of an evaluation."""
    try:
        options, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        rows = [{name: row[name] for name in _NUMBERS} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SparsePOError(f"{path} is not what `sparsepo evaluate` writes: evaluate the run again") from error
    if not rows:
        raise SparsePOError(f"{path} has no completion: evaluate the run again")
    if any(row["kl"] is None for row in rows):
        raise SparsePOError(f"{path} has no KL, the run has no reference: evaluate it with --reference MODEL")
    return options, rows


def _policies(prefix: str, point: FoundPoint, rows: list[Row], temperature: float | None) -> Iterator[Evaluated]:
    kept = [row for row in rows if temperature in (None, row["temperature"])]
    for (checkpoint, step), group in groupby(kept, key=itemgetter("checkpoint", "step")):
        rewards, kls = zip(*((row["reward"], row["kl"]) for row in group), strict=True)
        where = {"run": point.run, "checkpoint": checkpoint, "step": step}
        method, beta = prefix + _method(point), _beta(point)
        yield Evaluated(method, beta, point.seed, **where, rewards=list(rewards), kls=list(kls))


def _method(point: FoundPoint) -> str:
    parts = [
        _text(value) if key in _ALONE else f"{key}={_text(value)}"
        for key, value in point.settings.items()
        if not _is_beta(key)
    ]
    return ", ".join(parts) or "all"


def _beta(point: FoundPoint) -> str:
    return ", ".join(_text(value) for key, value in point.settings.items() if _is_beta(key))


def _is_beta(key: str) -> bool:
    """Whether a key is a host's β, or that of a loss whose scale is in its own section, such as `simpo.beta`."""
    return key in _BETAS or key.endswith(".beta")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
