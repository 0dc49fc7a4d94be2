"""What a run tells of itself, the same in every host: `sparsepo_metrics.jsonl`, the progress line, and the summary."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from .checkpoint import write_whole

METRICS = "sparsepo_metrics.jsonl"

Split = Literal["train", "eval"]
Numbers = Mapping[str, float]


class MetricsFile:
    """Every number that a run logs, a line of JSON for each step: `{"step": 10, "split": "train", "loss": 0.69, …}`.

    The names are those of `StepOutput.metrics`, and `loss`, `accuracy`, `margin`, `chosen_reward`, `rejected_reward`
    and `lr`, in every host. A number that is not finite is null. One process of a run writes it.

    Args:
        folder: Where the run leaves its model, made if need be.
        resumed_at: The step that the run goes on from. What an earlier start has logged of later steps is dropped;
            with 0 all of it.
    """

    def __init__(self, folder: str | Path, resumed_at: int = 0) -> None:
        self.path = Path(folder) / METRICS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(folder) if row["step"] <= resumed_at]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_whole(self.path, lambda path: path.write_text(text))

    def write(self, step: int, numbers: Numbers, split: Split = "train") -> None:
        """Add the numbers of a step: of a training batch, or of an evaluation after it."""
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics in the order in which they were logged; a line that a kill cut off is left out."""
    path = Path(folder) / METRICS
    return list(_rows(path.read_text().splitlines())) if path.is_file() else []


def last_metrics(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The last row of each split that there is, by its name."""
    return {row["split"]: row for row in read_metrics(folder)}


def progress(numbers: Numbers) -> dict[str, str]:
    """The columns of a progress line: loss, accuracy, margin of the rewards, sparsity of the masks, token KL.

    Args:
        numbers: As in the metrics file; what a loss does not have is left out.
    """
    shown = {name: f"{numbers[name]:.3g}" for name in ("loss", "accuracy", "margin") if name in numbers}
    sparsity = [_mean(numbers, f"sparsity_{role}") for role in ("reward", "kl")]
    if any(value is not None for value in sparsity):
        shown["sparsity"] = "/".join(f"{value:.0f}" for value in sparsity if value is not None) + "%"
    if (kl := _mean(numbers, "token_kl")) is not None:
        shown["kl"] = f"{kl:.3g}"
    return shown


def summary(folder: str | Path) -> str:
    """What is printed at the end of a run: its last numbers, and where everything is."""
    lines, rows = [f"The run is in {folder}"], read_metrics(folder)
    for split, row in last_metrics(folder).items():
        columns = "  ".join(f"{name} {text}" for name, text in progress(_finite(row)).items())
        of_split = [(_mean(_finite(other), "token_kl"), other["step"]) for other in rows if other["split"] == split]
        known = [(kl, step) for kl, step in of_split if kl is not None]
        if known and known[-1][1] != row["step"]:  # not computed at every step
            columns += "  kl {:.3g} (step {})".format(*known[-1])
        lines.append(f"  {split:<5} step {row['step']}: {columns}")
    return "\n".join([*lines, f"  every number: {Path(folder) / METRICS}"])


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _mean(numbers: Numbers, name: str) -> float | None:
    """Of chosen and rejected responses; None where a step has not computed it."""
    halves = [numbers.get(f"{name}_{half}") for half in ("chosen", "rejected")]
    return None if None in halves else sum(halves) / 2


def _rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
