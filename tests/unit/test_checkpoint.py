"""Masks and description through their two files; tensors come back bit for bit."""

import json

import pytest
import torch
from tiny import LAYERS, TWO_PAIRS, WIDTH, Pairs, decoder, describe

from sparsepo_plugin import LossConfig, MaskedPolicy, ReferenceFeatures, SparsePOError, load_masks, save_masks
from sparsepo_plugin import checkpoint as checkpoint_module
from sparsepo_plugin.checkpoint import load_description, versions_of
from sparsepo_plugin.config import MaskConfig
from sparsepo_plugin.masks import build_masks
from sparsepo_plugin.masks.learned import LearnedMask
from sparsepo_plugin.texts import Joining

SECTIONS = [
    {},
    {"shared": False, "layers": "last", "depth": 2, "kl": {"min": 0.2}},
    {"mask": "uniform", "value": 0.5},
    {"mask": "random", "shared": False},
    {"mask": "activation", "sites": ["residual"], "min": 0.1},
    {"kl": {"mask": "uniform", "value": 0.5}},
]
TOKENS = Pairs(TWO_PAIRS).tokens


def features():
    hidden_states = torch.randn(LAYERS, len(TOKENS), WIDTH)
    return ReferenceFeatures(hidden_states, torch.randn(LAYERS, len(TOKENS)), hidden_states[-1])


def make(section=None, seed=0):
    config = LossConfig.from_section(section, beta=0.3, label_smoothing=0.1)
    return describe(config), build_masks(config, WIDTH, LAYERS, seed)


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_round_trip(section, tmp_path):
    description, masks = make(section)
    for parameter in masks.parameters():
        parameter.data += torch.randn_like(parameter)
    save_masks(tmp_path / "new" / "folder", description, masks.state_dict())
    loaded, again = load_masks(tmp_path / "new" / "folder")
    assert again == description
    assert not loaded.training
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in masks.state_dict().items()
    }
    if section.get("mask") != "random":
        f = features()
        for got, want in zip(loaded(f, TOKENS), masks.eval()(f, TOKENS), strict=True):
            torch.testing.assert_close(got, want)  # a product's rounding depends on where its weights lie in memory


def test_the_dtype_comes_back(tmp_path):
    """A plain layer that was trained in bfloat16 computes in it."""
    description, masks = make()
    save_masks(tmp_path, description, masks.to(torch.bfloat16).state_dict())
    assert {parameter.dtype for parameter in load_masks(tmp_path)[0].parameters()} == {torch.bfloat16}


def test_a_gathered_state_need_not_be_contiguous(tmp_path):
    description, masks = make()
    state = {name: value.T.contiguous().T if value.dim() > 1 else value for name, value in masks.state_dict().items()}
    assert not state["reward.weight"].is_contiguous()
    save_masks(tmp_path, description, state)
    assert torch.equal(load_masks(tmp_path)[0].reward.weight, masks.reward.weight)


def test_versions_are_those_of_what_is_installed():
    assert versions_of("no-such-package", "peft").keys() == {"sparsepo-plugin", "torch", "transformers", "peft"}


def test_the_description_says_everything(tmp_path):
    """Options that the YAML left out, the host's flags, models, joining and versions: by their names in the file."""
    description, masks = make({"l1_reward": 0.1, "layers": "last"})
    description = description.model_copy(update={"joining": Joining(input_template="Q: {}"), "loss_plugins": []})
    save_masks(tmp_path, description, masks.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask_head.safetensors", "sparsepo.json"]
    assert json.loads((tmp_path / "sparsepo.json").read_text()) == {
        "format": 1,
        "versions": {"sparsepo-plugin": "0.1.0"},
        "host": "a test",
        "loss": {
            "loss": "sparsepo",
            "objective": {
                "beta": 0.3,
                "label_smoothing": 0.1,
                "l1_reward": 0.1,
                "l1_kl": 0.0,
                "l1_reduction": "sum",
                "expectation": "reference",
                "version": 1,
                "alpha": 0.5,
            },
            "reward": {
                "mask": "learned",
                "options": {
                    "layers": "last",
                    "depth": 1,
                    "layer_norm": True,
                    "activation": "relu",
                    "dropout": 0.0,
                    "min": 0.0,
                    "max": None,
                    "init": "positive",
                },
            },
            "kl": None,
            "mask_lr": 0.001,
            "mask_weight_decay": 0.01,
            "metrics_every": 10,
            "offload_features": False,
            "chunk_size": None,
            "logits_budget": None,
            "disable_dropout": True,
            "share_prefix": "auto",
            "on_nonfinite": "stop",
            "on_dead_mask": "warn",
        },
        "loss_plugins": [],
        "base_model": "base",
        "reference": "base",
        "shared_reference": False,
        "dtype": "float32",
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "joining": {
            "input_template": "Q: {}",
            "output_template": None,
            "chat_template": False,
            "end": "spaced",
            "unknown": None,
        },
    }


def test_a_changed_default_does_not_change_an_old_mask(tmp_path, monkeypatch):
    description, masks = make()
    save_masks(tmp_path, description, masks.state_dict())
    defaults = dict(LearnedMask.__init__.__kwdefaults__)
    monkeypatch.setattr(LearnedMask.__init__, "__kwdefaults__", {**defaults, "layer_norm": False, "min": 0.5})
    loaded, _ = load_masks(tmp_path)
    assert (loaded.reward.normalises, loaded.reward.min) == (True, 0.0)


def test_overwrites_an_older_one(tmp_path):
    for seed in (0, 1):
        description, masks = make(seed=seed)
        save_masks(tmp_path, description, masks.state_dict())
    assert torch.equal(load_masks(tmp_path)[0].reward.weight, masks.reward.weight)


@pytest.mark.parametrize("fails", ["save_file", "replace"])
def test_an_interrupted_write_leaves_the_old_file(fails, tmp_path, monkeypatch):
    """As when the disk is full, before or after the new file was begun."""
    description, masks = make()
    save_masks(tmp_path, description, masks.state_dict())

    def stop(tensors, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    target = checkpoint_module if fails == "save_file" else checkpoint_module.os
    monkeypatch.setattr(target, fails, stop if fails == "save_file" else lambda source, path: 1 / 0)
    with pytest.raises((OSError, ZeroDivisionError)):
        save_masks(tmp_path, *_other())
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask_head.safetensors", "sparsepo.json"]
    assert torch.equal(load_masks(tmp_path)[0].reward.weight, masks.reward.weight)


def _other():
    description, masks = make({"layers": "last"}, seed=1)
    return description, masks.state_dict()


@pytest.mark.parametrize("missing", ["mask_head.safetensors", "sparsepo.json"])
def test_missing_file_is_named(missing, tmp_path):
    description, masks = make()
    save_masks(tmp_path, description, masks.state_dict())
    (tmp_path / missing).unlink()
    with pytest.raises(SparsePOError, match=f"{missing} is missing: a run with one of our losses leaves it"):
        load_masks(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('"format": 1', '"format": 2'), r"sparsepo\.json: format: .*this version reads"),
        (lambda text: text.replace('"dtype"', '"type"'), r"sparsepo\.json: dtype: "),
        (lambda text: text[: len(text) // 2], r"sparsepo\.json: content: "),
        (lambda text: text.replace('"depth"', '"deepness"'), r"mask 'learned' cannot be made: .*deepness"),
        (lambda text: text.replace('"layers": "all"', '"layers": [0]'), "does not fit the masks of sparsepo.json"),
    ],
    ids=["newer", "key", "cut off", "option", "shape"],
)
def test_a_file_that_cannot_be_read(change, says, tmp_path):
    description, masks = make()
    save_masks(tmp_path, description, masks.state_dict())
    path = tmp_path / "sparsepo.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(SparsePOError, match=says) as caught:
        load_masks(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_plugins": ["code_of_others"]},
        {"loss": LossConfig(loss="code_of_others:Objective", objective={})},
        {
            "loss": LossConfig.model_validate(
                {"loss": "sparsepo", "objective": {}, "reward": {"mask": "code_of_others:M", "options": {}}}
            )
        },
        {
            "loss": LossConfig.from_section({}).model_copy(
                update={"kl": MaskConfig(mask="code_of_others:M", options={})}
            )
        },
    ],
    ids=["plugins", "loss", "mask", "kl mask"],
)
def test_code_that_a_file_names_runs_only_if_the_caller_allows_it(changes, tmp_path, monkeypatch):
    (tmp_path / "code_of_others.py").write_text("raise RuntimeError('the code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    save_masks(tmp_path, make()[0].model_copy(update=changes), {})
    with pytest.raises(SparsePOError, match=r"names code of its own \(code_of_others.*allow_code=True"):
        load_masks(tmp_path)
    with pytest.raises(SparsePOError, match="the code ran"):
        load_masks(tmp_path, allow_code=True)[1].loss.build_objective()


def test_masks_of_a_reference_of_another_size(tmp_path):
    """The masks are as wide and deep as the reference, and that is what the file must say."""
    policy, reference = decoder("llama"), decoder("gpt2", n_embd=24, n_layer=2)
    wrapped = MaskedPolicy(policy, reference, LossConfig.from_section({}))
    save_masks(tmp_path, describe(wrapped.loss_config, hidden_size=24, num_layers=2), wrapped.masks.state_dict())
    assert torch.equal(load_masks(tmp_path)[0].reward.weight, wrapped.masks.reward.weight)
    assert load_description(tmp_path).num_layers == 2
