"""Ten steps through the real command line give the same numbers in whatever layout: losses, weights and masks.

Each row of the table in layouts.py is compared with the plain run of the same masks and reference. All is fp32, so
that what is left is the order of additions: up to 1.3e-6 of losses near 0.7 when it was measured, and 6e-6 of weights,
since Adam divides small gradients by their own size, or by its eps of 1e-4. The tolerances are four times as much.
"""

import shutil

import pytest
import torch
from host_runs import difference_of_weights, merge
from layouts import plain

LOSS, WEIGHTS = 5e-6, 2.5e-5
STEPS, BATCH = 10, 8

_NOTHING_TO_LEARN = dict.fromkeys(("l1_reward", "l1_kl", "mask_lr", "shared"))
MASKS = {
    # nn.Linear's start leaves many zeros, which skip the vocabulary on steps that are not logged.
    "learned shared": {"shared": True, "init": "linear", "layers": "last"},
    # Deep enough for the masks' weights to be partitioned too.
    "learned independent": {"depth": 2},
    "activation": {**_NOTHING_TO_LEARN, "mask": "activation"},
    "random": {**_NOTHING_TO_LEARN, "mask": "random"},
}
LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}


@pytest.fixture
def keys(tiny):
    """What a row adds to the YAML."""

    def keys(row: dict) -> dict:
        micro = BATCH // row["processes"] // row["accumulation"]
        laid_out = {
            "ds": {"zero_stage": row["zero"], "packing_samples": row["packed"]},
            "model": {"gradient_checkpointing_enable": row["checkpointing"]},
            "train": {"batch_size": BATCH, "micro_batch_size": micro},
            "logger": {"logging_steps": row["logging"]},
            "sparsepo": {**MASKS[row["mask"]], "share_prefix": row["prefix once"]},
        }
        other = {"ref": {"model_name_or_path": str(tiny / "other")}}
        references = {"full": {}, "LoRA shared": {"ds": LORA}, "LoRA other": {"ds": LORA, **other}}
        return merge(laid_out, references[row["reference"]])

    return keys


def test_equals_the_plain_run(row, keys, config, launch, train):
    run = launch(config(**keys(row)), processes=row["processes"])
    assert run.code == 0, run.output[-4000:]
    usual = train(**keys(plain(row)))
    # What the host calls loss is that of the last micro-batch; loss_mean is the step's.
    losses, expected = (torch.tensor(one.scalars("train/loss_mean")) for one in (run, usual))
    expected = expected[row["logging"] - 1 :: row["logging"]]
    assert len(losses) == len(expected) == STEPS // row["logging"]
    assert (losses - expected).abs().max() < LOSS
    assert difference_of_weights(run, usual) < WEIGHTS
    shutil.rmtree(run.folder)  # or those of every layout would fill the disk


def test_the_shared_mask_has_zeros(train):
    """Else a row that logs at every fifth step would skip nothing."""
    assert 10 < train(sparsepo=MASKS["learned shared"]).scalars("train/sparsity_reward_chosen")[0] < 90


def test_random_masks_are_drawn_anew_for_every_step(train):
    means = train(sparsepo=MASKS["random"]).scalars("train/mask_reward_mean_chosen")
    assert len(set(means)) == STEPS
