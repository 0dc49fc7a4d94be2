"""What TRL logs, under the names that every host has, and as a line that can be read."""

from typing import Any

from transformers import PrinterCallback, ProgressCallback

from ...record import progress

_NAMES = {
    "learning_rate": "lr",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
}


def numbers_of(logs: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The split that logs are of, and their numbers by the names of the metrics file.

    Args:
        logs: As TRL hands them on. Those of an evaluation have a prefix.
    """
    split = "eval" if any(name.startswith("eval_") for name in logs) else "train"
    bare = {name.removeprefix("eval_"): value for name, value in logs.items()}
    return split, {_NAMES.get(name, name): value for name, value in bare.items() if isinstance(value, int | float)}


class _Short:
    """Shows a few columns of the logs of a step in place of all."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        _, numbers = numbers_of(logs or {})
        if "loss" in numbers:
            logs = progress(numbers)
        super().on_log(args, state, control, logs=logs, **kwargs)


class ShortProgress(_Short, ProgressCallback):
    """Below a progress bar."""


class ShortLines(_Short, PrinterCallback):
    """Without one."""


SHORT = {ProgressCallback: ShortProgress, PrinterCallback: ShortLines}
