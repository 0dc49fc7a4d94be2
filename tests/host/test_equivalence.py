"""Settings of the loss that are the same experiment: ten fp32 steps through the real command line, losses and weights.

That layouts make no difference is shown in tests/invariant.

Losses are read from tensorboard, which stores float32. The tolerances are a few times the largest difference seen,
which comes from the order of fp32 additions alone.
"""

import pytest
from host_runs import DPO, ON_OLDEST_AND_NEWEST, difference

pytestmark = ON_OLDEST_AND_NEWEST

LOSS, WEIGHTS = 1e-5, 1e-5


def test_masks_one_and_zero_follow_the_hosts_own_dpo(train):
    ours = train(sparsepo=DPO)
    host = train(loss=None, sparsepo=None)
    loss, weights = difference(ours, host)
    assert len(host.losses) == 10 and host.losses[0] != host.losses[-1]
    assert loss < LOSS and weights < WEIGHTS


def test_any_chunk_size_equals_any_other(train):
    assert_equal(train(sparsepo={"chunk_size": 3}), train())


def test_skipping_tokens_with_zero_masks_trains_the_same(train):
    """nn.Linear's start leaves many zeros. By default only every tenth step has the KL of all tokens."""
    start = {"init": "linear", "layers": "last", "shared": True}
    every, spare = train(sparsepo=start), train(sparsepo={**start, "metrics_every": None})
    assert 10 < every.scalars("train/sparsity_reward_chosen")[0] < 90
    assert_equal(spare, every)
    name = "train/token_kl_chosen"
    assert spare.steps(name) == [10] and every.steps(name) == [*range(1, 11)]
    assert spare.scalars(name)[0] == pytest.approx(every.scalars(name)[-1], abs=1e-5)


def test_lora_shared_reference_equals_a_separate_one(train):
    assert_equal(train(ds=LORA), train(ds=LORA, ref={"share": False}))


LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}


def assert_equal(one, other):
    loss, weights = difference(one, other)
    assert loss < LOSS and weights < WEIGHTS
