"""Runs with ring attention over two processes equal runs of one process.

All is the real command line on two gloo processes with `ds.ring_attn_size: 2`: OpenRLHF's groups and slices of a
packed row, `TokenLoss` and its layout, masks, reference, DeepSpeed. One thing is not: the package ring_flash_attn,
whose kernels need CUDA. In its place plain_ring/ exchanges keys and values in plain PyTorch, with the same backward.
"""

from pathlib import Path

import pytest
from host_runs import difference, merge
from test_layouts import LORA, LOSS, MASKS, WEIGHTS
from weighed_pairs import COLUMN, write_weighed

PLAIN_RING = Path(__file__).with_name("plain_ring")
RING = {"ds": {"ring_attn_size": 2, "attn_implementation": "flash_attention_2"}, "loss_plugins": ["on_cpu"]}
CASES = {
    "learned with zeros": {"sparsepo": MASKS["learned shared"], "logger": {"logging_steps": 5}},
    "learned deep under ZeRO-3": {"sparsepo": MASKS["learned independent"], "ds": {"zero_stage": 3}},
    "activation with accumulation": {"sparsepo": MASKS["activation"], "train": {"micro_batch_size": 4}},
    "random with LoRA": {"sparsepo": MASKS["random"], "ds": LORA},
}


@pytest.fixture(scope="session")
def ring_and_one(config, launch, train):
    """Two packed runs that must succeed, and have the same losses and weights."""

    def ring_and_one(**over):
        over = merge({"ds": {"packing_samples": True}}, over)
        ring = launch(config(**merge(over, RING)), processes=2, path=PLAIN_RING)
        assert ring.code == 0, ring.output[-4000:]
        one = train(**over)
        loss, weights = difference(ring, one)
        assert loss < LOSS and weights < WEIGHTS
        return ring, one

    return ring_and_one


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, ring_and_one):
    ring, one = ring_and_one(**CASES[case])
    for name in ("chosen_reward", "sparsity_reward_chosen", "mask_kl_mean_rejected", "token_kl_margin"):
        shared, whole = (run.scalars(f"train/{name}") for run in (ring, one))
        assert shared == pytest.approx(whole, abs=1e-4), name


def test_weights_of_the_data(ring_and_one, tiny):
    pairs = write_weighed(tiny / "weighed_ring.jsonl", 80, seed=5)
    ring, one = ring_and_one(data={"dataset": str(pairs)}, sparsepo=COLUMN)
    means = [run.scalars("train/mask_reward_mean_chosen") for run in (ring, one)]
    assert means[0] == pytest.approx(means[1], abs=1e-6) and len(set(means[1])) == 10
