"""Ten fp32 steps of TRL's trainer, with what a pair begins with computed once and twice.

The tolerances are those of the layouts in tests/invariant: other shapes add in another order.
"""

import pytest
from host_runs import difference
from test_trl_processes import zero

from sparsepo_plugin import SparsePOError

LOSS, WEIGHTS = 5e-6, 2.5e-5
ONCE = "sparsepo.share_prefix: what chosen and rejected begin with is computed once"
RUNS = {
    "full": {},
    "LoRA, its reference without the adapter, checkpointing": {
        "lora": {"lora_dropout": 0.0},
        "gradient_checkpointing": True,
    },
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
}


def sharing(share):
    return {"loss_options": {"share_prefix": share}}


def assert_equal(once, twice):
    loss, weights = difference(once, twice)
    assert len(once.losses) == 10 and once.losses[0] != once.losses[-1]
    assert loss < LOSS and weights < WEIGHTS


@pytest.mark.parametrize("kind", RUNS)
def test_equals_the_run_without(kind, train, capsys):
    twice = train(**RUNS[kind], **sharing(False))
    assert ONCE not in capsys.readouterr().err
    once = train(**RUNS[kind], **sharing(True))
    assert capsys.readouterr().err.count(ONCE) == 1
    assert_equal(once, twice)


@pytest.mark.parametrize("kind", ["DDP", "ZeRO-3"])
def test_two_processes_equal_one_without(kind, launch, train):
    given = {"DDP": {}, "ZeRO-3": {"deepspeed": zero(3), "use_cpu": False}}[kind]
    two = launch(**given, per_device_train_batch_size=4, **sharing(True))
    assert two.code == 0, two.output[-4000:]
    assert two.output.count(ONCE) == 1
    assert_equal(two, train(**sharing(False)))


def test_dropout_of_an_adapter_is_refused(make):
    trainer = make(lora={"lora_dropout": 0.1}, **sharing(True))
    with pytest.raises(SparsePOError, match="true is not possible: the policy trains with dropout"):
        trainer.train()
