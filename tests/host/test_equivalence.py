"""Ten fp32 steps through the real command line, compared on per-step loss and final weights.

Losses are read from tensorboard, which stores float32. The tolerances are a few times the largest difference seen,
which comes from the order of fp32 additions alone.
"""

import pytest
from host_runs import DPO, difference, difference_of_weights

LOSS, WEIGHTS = 1e-5, 1e-5


def test_masks_one_and_zero_follow_the_hosts_own_dpo(train):
    ours = train(sparsepo=DPO)
    host = train(loss=None, sparsepo=None)
    loss, weights = difference(ours, host)
    assert len(host.losses) == 10 and host.losses[0] != host.losses[-1]
    assert loss < LOSS and weights < WEIGHTS


def test_packed_equals_padded(train):
    assert_equal(train(ds={"packing_samples": True}), train())


def test_any_chunk_size_equals_any_other(train):
    assert_equal(train(sparsepo={"chunk_size": 3}), train())


def test_skipping_tokens_with_zero_masks_trains_the_same(train):
    """nn.Linear's start leaves many zeros; logging_steps is 1, so nothing is skipped by default."""
    start = {"init": "linear", "layers": "last", "shared": True}
    every, spare = train(sparsepo=start), train(sparsepo={**start, "metrics_every": 100})
    assert 10 < every.scalars("train/sparsity_reward_chosen")[0] < 90
    assert_equal(spare, every)
    with pytest.raises(KeyError):
        spare.scalars("train/token_kl_chosen")


def test_gradient_checkpointing_on_equals_off(train):
    assert_equal(train(model={"gradient_checkpointing_enable": True}), train())


def test_two_processes_under_zero_3_equal_one(train):
    two = train(processes=2, ds={"zero_stage": 3}, train={"micro_batch_size": 4}, sparsepo=DEEP)
    assert_equal(two, train(sparsepo=DEEP))


def test_gradient_accumulation_equals_one_batch(train):
    halves, whole = train(train={"micro_batch_size": 4}), train()
    # What the host calls loss is that of the last micro-batch; loss_mean is the step's.
    means = zip(halves.scalars("train/loss_mean"), whole.scalars("train/loss_mean"), strict=True)
    assert max(abs(one - other) for one, other in means) < LOSS
    assert difference_of_weights(halves, whole) < WEIGHTS


def test_lora_shared_reference_equals_a_separate_one(train):
    assert_equal(train(ds=LORA), train(ds=LORA, ref={"share": False}))


# A mask deep enough for its weights to be partitioned, too.
DEEP = {"depth": 2}
LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}


def assert_equal(one, other):
    loss, weights = difference(one, other)
    assert loss < LOSS and weights < WEIGHTS
