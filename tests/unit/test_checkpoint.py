"""Mask head and section through their two files; tensors come back bit for bit."""

import json

import pytest
import torch
from tiny import LAYERS, TWO_PAIRS, WIDTH, Pairs, decoder

from sparsepo_plugin import MaskedPolicy, ReferenceFeatures, SparsePOConfig, SparsePOError, load_mask, save_mask
from sparsepo_plugin.masks import build_masks

SECTIONS = [
    {},
    {"shared": False, "layers": "last", "depth": 2, "kl": {"min": 0.2}},
    {"mask": "uniform", "value": 0.5},
    {"mask": "random", "shared": False},
    {"mask": "activation", "sites": ["residual"], "min": 0.1},
]
TOKENS = Pairs(TWO_PAIRS).tokens


def features():
    hidden_states = torch.randn(LAYERS, len(TOKENS), WIDTH)
    return ReferenceFeatures(hidden_states, torch.randn(LAYERS, len(TOKENS)), hidden_states[-1])


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_round_trip(section, tmp_path):
    config = SparsePOConfig.from_section(section)
    head = build_masks(config, WIDTH, LAYERS, seed=0)
    for parameter in head.parameters():
        parameter.data += torch.randn_like(parameter)
    save_mask(tmp_path / "new" / "folder", config, head.state_dict(), decoder("llama").config)
    loaded, loaded_config = load_mask(tmp_path / "new" / "folder")
    assert loaded_config == config
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in head.state_dict().items()
    }
    if section.get("mask") != "random":
        f = features()
        for got, want in zip(loaded(f, TOKENS), head(f, TOKENS), strict=True):
            assert torch.equal(got, want)


def test_files_are_plain(tmp_path):
    config = SparsePOConfig.from_section({"l1_reward": 0.1})
    head = build_masks(config, WIDTH, LAYERS, seed=0)
    save_mask(tmp_path, config, head.state_dict(), decoder("llama").config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask_head.safetensors", "sparsepo.json"]
    described = json.loads((tmp_path / "sparsepo.json").read_text())
    assert described == {
        "loss": "sparsepo",
        "sparsepo": {"l1_reward": 0.1},
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
    }


def test_overwrites_an_older_one(tmp_path):
    config = SparsePOConfig.from_section({})
    for seed in (0, 1):
        head = build_masks(config, WIDTH, LAYERS, seed)
        save_mask(tmp_path, config, head.state_dict(), decoder("llama").config)
    assert torch.equal(load_mask(tmp_path)[0].reward.weight, head.reward.weight)


@pytest.mark.parametrize("missing", ["mask_head.safetensors", "sparsepo.json"])
def test_missing_file_is_named(missing, tmp_path):
    config = SparsePOConfig.from_section({})
    save_mask(tmp_path, config, build_masks(config, WIDTH, LAYERS, 0).state_dict(), decoder("llama").config)
    (tmp_path / missing).unlink()
    with pytest.raises(SparsePOError, match=f"{missing} is missing: a run with loss: sparsepo leaves it"):
        load_mask(tmp_path)


def test_masks_of_a_reference_of_another_size(tmp_path):
    """The head is as wide and deep as the reference, and that is what the file must say."""
    from sparsepo_plugin import PreferenceStep

    policy, reference = decoder("llama"), decoder("gpt2", n_embd=24, n_layer=2)
    wrapped = PreferenceStep(SparsePOConfig.from_section({}), beta=0.1).wrap(policy, reference)
    assert isinstance(wrapped, MaskedPolicy)
    wrapped.export(wrapped.state_dict(), tmp_path)
    loaded, _ = load_mask(tmp_path)
    assert torch.equal(loaded.reward.weight, wrapped.mask_head.reward.weight)
