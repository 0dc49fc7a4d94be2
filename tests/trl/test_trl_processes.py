"""Two processes under `accelerate launch` train as one does, whatever is around the model. Ten fp32 steps.

The tolerances are a few times the largest difference seen, which comes from the order of fp32 additions alone.
"""

import pytest
from host_runs import difference

LOSS, WEIGHTS = 1e-5, 1e-5


def zero(stage: int) -> dict:
    automatic = (
        "train_micro_batch_size_per_gpu",
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        **dict.fromkeys(automatic, "auto"),
    }


def around(wrapper: str, stage: int | None = None) -> dict:
    return {"processes": 2, "wrapper": wrapper, "zero_stage": stage, "sharded": stage == 3}


ENGINE = "DeepSpeedEngine"
LORA = {"lora": {"lora_dropout": 0.0}}
KINDS = {
    "DDP": ({}, around("DistributedDataParallel")),
    "DDP, LoRA": (LORA, around("DistributedDataParallel")),
    "ZeRO-2": ({"deepspeed": zero(2), "use_cpu": False}, around(ENGINE, 2)),
    "ZeRO-3": ({"deepspeed": zero(3), "use_cpu": False}, around(ENGINE, 3)),
    "ZeRO-3, LoRA": ({**LORA, "deepspeed": zero(3), "use_cpu": False}, around(ENGINE, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind, launch, train):
    given, expected = KINDS[kind]
    two = launch(**given, per_device_train_batch_size=4)
    assert two.code == 0, two.output[-4000:]
    assert two.launched == expected
    one = train(**(LORA if "LoRA" in kind else {}))
    losses, weights = difference(two, one)
    assert len(two.losses) == 10 and two.losses[0] != two.losses[-1]
    assert losses < LOSS and weights < WEIGHTS
    assert {name.partition(".")[0] for name in two.weights} == {
        "mask_head",
        "adapter_model" if LORA.items() <= given.items() else "model",
    }
