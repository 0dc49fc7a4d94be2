"""`axolotl train` for real: what differs in how a run is started and laid out trains the same, and leaves the same.

Losses are read from the metrics file. Ten steps in fp32; the tolerances are a few times the largest difference seen,
which comes from the order of fp32 additions alone.
"""

import json

import pytest
import torch
from safetensors import safe_open
from host_runs import Run, difference_of_weights

from sparsepo_plugin.record import read_metrics

LOSS, WEIGHTS = 1e-5, 1e-5


def losses(run: Run) -> torch.Tensor:
    rows = [row for row in read_metrics(run.folder / "out") if row["split"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 11))
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


def assert_equal(one: Run, other: Run) -> None:
    assert (losses(one) - losses(other)).abs().max() < LOSS
    assert difference_of_weights(one, other) < WEIGHTS


HALF = {"micro_batch_size": 4}  # of the batch for each of two processes


def test_two_processes_equal_one(train):
    assert_equal(train(2, **HALF), train())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_equals_plain(stage, train, zero):
    assert_equal(train(2, deepspeed=zero(stage), **HALF), train())


@pytest.fixture(scope="session")
def zero(tmp_path_factory):
    def zero(stage: int) -> str:
        file = tmp_path_factory.mktemp("zero") / f"zero{stage}.json"
        optimization = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
        auto = ("gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu")
        file.write_text(json.dumps({"zero_optimization": optimization, **dict.fromkeys(auto, "auto")}))
        return str(file)

    return zero


LORA = {
    "adapter": "lora",
    **{"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_linear": True},
}


def test_lora_looks(train):
    run = train(**LORA)
    print(sorted(p.name for p in (run.folder / "out").iterdir()))
    print(sorted(p.name for p in (run.folder / "out" / "checkpoint-10").iterdir()))
    for p in (run.folder/"out").glob("*.safetensors"):
        with safe_open(p, "pt") as f: print(p.name, list(f.keys())[:8], len(list(f.keys())))
    print((run.folder/"out"/"sparsepo.json").read_text()[-800:])
    assert 0
