"""Runs of the patched OpenRLHF, and what they leave behind."""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsepo_plugin.hosts.openrlhf.patched import TESTED

VOCABULARY, WIDTH = 512, 256  # vocabulary × width is above the 1e5 elements that ZeRO-3 keeps gathered anyway

# The released packages of OpenRLHF by version, as `make env` unpacks them.
RELEASES = Path(sys.prefix, "openrlhf")

# Runs of the test are those of the oldest release, and of the installed one, which is the newest.
ON_OLDEST_AND_NEWEST = pytest.mark.parametrize(
    "release", [TESTED[0], None], ids=[TESTED[0], "installed"], indirect=True, scope="session"
)

# What turns the section of the `config` fixture into m_u = m_d = 1, and into DPO: m_u = 1, m_d = 0.
ONES = {**dict.fromkeys(("shared", "l1_reward", "l1_kl", "mask_lr")), "mask": "uniform"}
DPO = {**ONES, "shared": False, "kl": {"value": 0.0}}


def write_pairs(path: Path, count: int, seed: int, longest: int = 9, end: str = "") -> Path:
    """Random words, up to `longest` in a response and then `end`; chosen and rejected differ in length and content."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{rng.randrange(VOCABULARY - 3)}" for _ in range(rng.randint(low, high)))

    def pair() -> dict[str, str]:
        return {"prompt": text(2, 5) + " ", "chosen": text(1, longest) + end, "rejected": text(1, longest) + end}

    rows = [pair() for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Run:
    """What a run left behind."""

    code: int | None  # None if it was killed
    output: str
    folder: Path

    def scalars(self, name: str) -> list[float]:
        """Values that the host logged to tensorboard, by step."""
        return [event.value for event in self._logged(name)]

    def steps(self, name: str) -> list[int]:
        """The steps that they are of."""
        return [event.step for event in self._logged(name)]

    def _logged(self, name: str) -> list:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (path,) = {event.parent for event in (self.folder / "tb").rglob("events*")}
        events = EventAccumulator(str(path))
        events.Reload()
        return events.Scalars(name)

    @property
    def losses(self) -> torch.Tensor:
        return torch.tensor(self.scalars("train/loss"), dtype=torch.float64)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Final weights of the model or adapter, and of the mask head if there is one."""
        saved = {}
        for name in ("model.safetensors", "adapter_model.safetensors", "adapter_model.bin", "mask_head.safetensors"):
            path = self.folder / "out" / name
            if path.is_file():  # under ZeRO-3 the host writes an adapter with torch
                values = torch.load(path) if path.suffix == ".bin" else load_file(path)
                saved.update({f"{path.stem}.{key}": value for key, value in values.items()})
        return saved


def difference(one: Run, other: Run) -> tuple[float, float]:
    """Largest difference of per-step losses and of final weights."""
    assert len(one.losses) == len(other.losses) > 0
    return (one.losses - other.losses).abs().max().item(), difference_of_weights(one, other)


def difference_of_weights(one: Run, other: Run) -> float:
    """Largest difference of the final weights, of masks too where both have some."""
    mine, theirs = one.weights, other.weights
    assert mine.keys() == theirs.keys() and mine
    return max((mine[key].double() - theirs[key].double()).abs().max().item() for key in mine)


def merge(base: dict, over: dict) -> dict:
    """`base` with the leaves of `over`; None removes a key."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def places(folder: Path) -> dict:
    """The part of a YAML that says where a run leaves what."""
    return {
        "ckpt": {"output_dir": str(folder / "out"), "path": str(folder / "checkpoints")},
        "logger": {"tensorboard_dir": str(folder / "tb")},
    }
