"""Masks in real runs: what reaches them from the YAML, and pairs of them under ZeRO-3; more in tests/invariant."""

import json
import shutil

import pytest
import torch
from host_runs import WIDTH, difference, merge

from sparsepo_plugin import LossConfig
from sparsepo_plugin.masks import build_masks

LOSS, WEIGHTS = 1e-5, 1e-5
HALVES = {"micro_batch_size": 4}


def test_the_runs_seed_is_that_of_the_masks(train):
    """A learning rate too small to move a float32 leaves the start."""
    still = {"mask_lr": 1e-30, "mask_weight_decay": 0.0, "layers": "last"}
    found = train(sparsepo=still, train={"seed": 7}).weights
    start = build_masks(LossConfig.from_section({"shared": False, "layers": "last"}), WIDTH, 2, seed=7)
    for name, value in start.state_dict().items():
        assert torch.equal(found[f"mask_head.{name}"], value), name
    other = build_masks(LossConfig.from_section({"shared": False, "layers": "last"}), WIDTH, 2, seed=42)
    assert not torch.equal(other.reward.weight, start.reward.weight)


def test_masks_of_different_kinds_under_zero_3(train):
    section = {"shared": None, "l1_kl": None, "kl": {"mask": "uniform", "value": 0.7}}
    two = train(processes=2, sparsepo=section, ds={"zero_stage": 3}, train=HALVES)
    assert_equal(two, train(sparsepo=section))
    assert two.scalars("train/mask_kl_mean_chosen") == pytest.approx([0.7] * 10)
    assert not any(key.startswith("mask_head.kl") for key in two.weights)


def test_learned_masks_in_16_bits_under_zero_3(train):
    """The default of OpenRLHF. The start is the same to float32; then two stages round to bfloat16 (2⁻⁸) in turns."""
    runs = [train(ds={"zero_stage": stage, "param_dtype": "bf16"}) for stage in (2, 3)]
    apart = (runs[0].losses - runs[1].losses).abs()
    assert apart[:2].max() < LOSS and apart.max() < 0.03
    first, second = (run.weights["mask_head.reward.weight"] for run in runs)
    assert first.dtype == second.dtype == torch.bfloat16
    start = build_masks(LossConfig.from_section({"shared": False}), WIDTH, 2, seed=42).reward.weight.detach()
    moved = (first.float() - start).abs().mean()
    assert moved > 0.005
    assert (first.float() - second.float()).abs().mean() < 0.3 * moved


@pytest.fixture(scope="session")
def selected(train, tiny):
    """A run of SePO with an oracle."""

    def selected(oracle: str):
        section = {"oracle": str(tiny / oracle), "k": 0.4}
        return train(loss="sepo", sparsepo=None, sepo=section, model={"beta": None})

    return selected


def test_the_oracle_is_the_model_that_the_yaml_names(selected):
    """With the reference in its place no token has a reward, and the first ones are selected."""
    assert (selected("other").losses - selected("model").losses).abs().max() > 1e-3


def test_the_oracle_has_no_dropout(selected, tiny):
    shutil.copytree(tiny / "other", tiny / "dropping", dirs_exist_ok=True)
    config = json.loads((tiny / "dropping" / "config.json").read_text())
    (tiny / "dropping" / "config.json").write_text(json.dumps(merge(config, {"attention_dropout": 0.9})))
    assert_equal(selected("dropping"), selected("other"))


def assert_equal(one, other):
    loss, weights = difference(one, other)
    assert loss < LOSS and weights < WEIGHTS
