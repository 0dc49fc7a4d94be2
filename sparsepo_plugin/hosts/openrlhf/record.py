"""What a run tells of itself, with OpenRLHF's numbers under the names that they have in every host."""

from collections import deque
from contextlib import AbstractContextManager
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.checkpoints import writing

from ...card import write_card
from ...checkpoint import RunDescription
from ...record import MetricsFile, Split, progress, summary

_NAMES = {
    "acc": "accuracy",
    "acc_mean": "accuracy",
    "eval_loss": "loss",
    "loss_mean": "loss",
    "reject_reward": "rejected_reward",
}
_OF_UPDATE = ("lr", "grad_norm", "skipped_steps")  # all others are of a micro-batch


class RunRecord:
    """The metrics file of a run, its progress line and, at the end, its summary and model card; the first rank's.

    Args:
        args: OpenRLHF's arguments.
        strategy: OpenRLHF's strategy.
        step: The optimizer step that the run goes on from.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, args: SimpleNamespace, strategy: Any, step: int) -> None:
        self.folder, self.data = args.ckpt.output_dir, args.data.dataset
        self.writes = strategy.is_rank_0()
        self._micro_batches: deque[dict[str, float]] = deque(maxlen=strategy.accumulated_gradient)
        if self.writes:
            with self._writing():
                self._file = MetricsFile(self.folder, resumed_at=step)

    def progress(self, logs: dict[str, float]) -> dict[str, str]:
        """The columns of the bar for a micro-batch or an evaluation."""
        numbers = _renamed(logs)
        self._micro_batches.append(numbers)
        return progress(numbers)

    def log(self, step: int, logs: dict[str, float], split: Split) -> None:
        """Write the numbers of an optimizer step, each the mean over its micro-batches, or of an evaluation."""
        numbers = _renamed(logs)
        if split == "train":
            of_batches = numbers.keys() - set(_OF_UPDATE)
            numbers |= {name: fmean(batch[name] for batch in self._micro_batches) for name in of_batches}
        if self.writes:
            with self._writing():
                self._file.write(step, numbers, split)

    def finish(self, description: RunDescription) -> None:
        """Put the model card beside the model, and print what came of the run."""
        if self.writes:
            with self._writing():
                write_card(self.folder, description, [name.strip() for name in self.data.split(",")])
            print(f"\n{summary(self.folder)}", flush=True)

    def _writing(self) -> AbstractContextManager[None]:
        return writing("ckpt.output_dir", self.folder)


def _renamed(logs: dict[str, float]) -> dict[str, float]:
    """OpenRLHF's numbers under the names of every host, with the margin of the rewards."""
    numbers = {_NAMES.get(name, name): value for name, value in logs.items()}
    return {**numbers, "margin": numbers["chosen_reward"] - numbers["rejected_reward"]}
