"""The section of a loss, and the name of the loss itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo_plugin import LossConfig, SparsePOError
from sparsepo_plugin.errors import one_line
from sparsepo_plugin.rehearsal import rehearse

CLEAR = {"sparsepo": None}  # the good YAML's own section


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"l1": 1}, "sparsepo.l1 is not a key of this section: allowed are chunk_size, logits_budget,"),
        ({"l1_kl": "much"}, "sparsepo.l1_kl: input should be a valid number, not 'much'"),
        ({"l1_kl": float("nan")}, "sparsepo.l1_kl: input should be a finite number, not nan"),
        ({"l1_kl": float("inf")}, "sparsepo.l1_kl: input should be a finite number, not inf"),
        ({"l1_kl": -1}, "sparsepo.l1_kl: input should be greater than or equal to 0, not -1"),
        ({"l1_kl": True}, "sparsepo.l1_kl: input should be a valid number, not True"),
        ({"l1_kl": [1]}, "sparsepo.l1_kl: input should be a valid number, not [1]"),
        ({"l1_kl": 10**400}, "sparsepo.l1_kl: "),
        ({"mask_lr": 0}, "sparsepo.mask_lr: input should be greater than 0, not 0"),
        ({"mask_lr": -0.1}, "sparsepo.mask_lr: input should be greater than 0, not -0.1"),
        ({"mask_lr": float("nan")}, "sparsepo.mask_lr: "),
        ({"mask_lr": "adam"}, "sparsepo.mask_lr: "),
        ({"mask_weight_decay": -1}, "sparsepo.mask_weight_decay: input should be greater than or equal to 0"),
        ({"metrics_every": 0}, "sparsepo.metrics_every: input should be greater than 0, not 0"),
        ({"metrics_every": 1.5}, "sparsepo.metrics_every: input should be a valid integer, not 1.5"),
        ({"chunk_size": 0}, "sparsepo.chunk_size: input should be greater than 0, not 0"),
        ({"chunk_size": "64"}, "sparsepo.chunk_size: input should be a valid integer, not '64'"),
        (
            {"logits_budget": -1},
            "sparsepo.logits_budget: must be a number of bytes (0, 256MB, 1.5GB), or a share of free",
        ),
        ({"logits_budget": "101%"}, "memory from 0% to 100%, not '101%'"),
        ({"logits_budget": 0.1}, "sparsepo.logits_budget: must be a number of bytes"),
        ({"logits_budget": True}, "sparsepo.logits_budget: must be a number of bytes"),
        ({"logits_budget": "256 parsecs"}, "sparsepo.logits_budget: must be a number of bytes"),
        ({"offload_features": "yes"}, "sparsepo.offload_features: input should be a valid boolean, not 'yes'"),
        ({"disable_dropout": 1}, "sparsepo.disable_dropout: input should be a valid boolean, not 1"),
        ({"disable_dropout": False}, "sparsepo.disable_dropout: false has no effect: llama has no dropout here"),
        ({"shared": "false"}, "sparsepo.shared: input should be a valid boolean, not 'false'"),
        ({"expectation": "both"}, "sparsepo.expectation: input should be 'reference' or 'policy', not 'both'"),
        ({"l1_reduction": "max"}, "sparsepo.l1_reduction: input should be 'sum' or 'mean', not 'max'"),
        ({"version": 3}, "sparsepo.version: input should be 1 or 2, not 3"),
        ({"version": "2"}, "sparsepo.version: input should be 1 or 2, not '2'"),
        ({"alpha": 1}, "sparsepo.alpha has no effect without version: 2"),
        ({"version": 2, "alpha": -1}, "sparsepo.alpha: input should be greater than or equal to 0, not -1"),
        ({"mask": 7}, "sparsepo.mask: input should be a valid string, not 7"),
        ({"mask": ["learned"]}, "sparsepo.mask: input should be a valid string, not ['learned']"),
        ({"mask": ""}, "sparsepo.mask: unknown mask '': registered are activation, "),
        ({"mask": "dense"}, "sparsepo.mask: unknown mask 'dense': registered are activation, "),
        ({"mask": "x" * 5000}, "sparsepo.mask: unknown mask 'xxx"),
        ({"mask": "a\nb"}, "sparsepo.mask: unknown mask 'a\\nb'"),
        ({"mask": "uniform"}, "sparsepo.l1_reward has no effect: mask 'uniform' has nothing to learn"),
        ({"mask": "uniform", "layers": "last"}, "sparsepo.layers is not a key of this section"),
        ({"layers": "middle"}, "sparsepo.layers: "),
        ({"layers": []}, "sparsepo.layers: [], allowed are all, last, or a list from 0 to 1"),
        ({"layers": [5]}, "sparsepo.layers: [5], allowed are all, last, or a list from 0 to 1"),
        ({"layers": [-3]}, "sparsepo.layers: [-3], allowed are"),
        ({"layers": [0.5]}, "sparsepo.layers: "),
        ({"layers": list(range(5000))}, "sparsepo.layers: [0, 1, 2, 3, 4, 5, ...], allowed are"),
        ({"layers": {0: 1}}, "sparsepo.layers: "),
        ({"depth": 3}, "sparsepo.depth: input should be 1 or 2, not 3"),
        ({"dropout": 1}, "sparsepo.dropout: input should be less than 1, not 1"),
        ({"min": 2.0, "max": 1.0}, "sparsepo.min: 2.0 must be below max: 1.0"),
        ({"max": 0}, "sparsepo.max: input should be greater than 0, not 0"),
        ({"activation": "gelu"}, "sparsepo.activation: input should be 'relu' or 'binary', not 'gelu'"),
        ({"init": "zero"}, "sparsepo.init: input should be 'positive', 'linear' or 'normal', not 'zero'"),
        ({"hidden_size": 8}, "sparsepo.hidden_size is not a key of this section"),
        ({"beta": 0.1}, "sparsepo.beta is not a key of this section"),
        ({"options": {}}, "sparsepo.options is not a key of this section"),
        ({"reward": [1]}, "sparsepo.reward: input should be a valid dictionary, not [1]"),
        ({"reward": {"mask": None}}, "sparsepo.reward.mask: the name of a mask is needed, not None"),
        ({"reward": {"mask": {"a": 1}}}, "sparsepo.reward.mask: the name of a mask is needed, not {'a': 1}"),
        ({"reward": {"mask": "nope"}}, "sparsepo.reward.mask: unknown mask 'nope'"),
        ({"kl": {"wrong": 1}}, "sparsepo.kl.wrong is not a key of this section: allowed are layers, depth"),
        ({"kl": {"depth": 3}}, "sparsepo.kl.depth: input should be 1 or 2, not 3"),
        ({"kl": {1: 2}}, "sparsepo.kl.1 is not a key of this section"),
        ({"kl": {"min": -1}}, "sparsepo.kl.min: input should be greater than or equal to 0, not -1"),
        ({"shared": True, "reward": {"min": 0.1}}, "sparsepo.reward has no effect with sparsepo.shared: true"),
        ({1: 2}, "sparsepo.1 is not a key of this section"),
        ({"x" * 5000: 1}, "sparsepo.xxx"),
        ({"a\nb": 1}, "sparsepo.a b is not a key of this section"),
        ({"l1_kl": "x" * 5000}, "sparsepo.l1_kl: input should be a valid number, not 'xxx"),
        ({"l1_kl": "\x1b[31m"}, "sparsepo.l1_kl: input should be a valid number, not '\\x1b[31m'"),
        ({"chunk_size": 0, "shared": 1, "depth": 7}, "sparsepo.chunk_size: "),
    ],
    ids=lambda value: str(value)[:60],
)
def test_keys(refused, section, says):
    refused((says,), over={"sparsepo": section})


@pytest.mark.parametrize(
    ("loss", "section", "says"),
    [
        (
            "sparsedpo",
            {},
            "loss: unknown loss 'sparsedpo'; registered are ",
        ),
        ("", {}, "loss: unknown loss ''; registered are"),
        ("x" * 5000, {}, "loss: unknown loss 'xxx"),
        ("a\nb", {}, "loss: unknown loss 'a\\nb'"),
        (5, {}, "loss: expected str, got 5"),
        ([], {}, "loss: expected str, got []"),
        (True, {}, "loss: expected str, got True"),
        ({"name": "dpo"}, {}, "loss: expected str, got {'name': 'dpo'}"),
        ("model", {}, "loss: unknown loss 'model'"),
        ("no_such_module:Loss", None, "loss: objective 'no_such_module:Loss' cannot be imported: no such module"),
        ("json:JSONDecoder", None, "loss: json:JSONDecoder is not a sparsepo_plugin.Objective"),
        ("json:no_such_class", None, "json has no class 'no_such_class'"),
        ("json:", None, "json has no class ''"),
        (":Loss", None, "loss: objective ':Loss' cannot be imported"),
        (".a:Loss", None, "loss: objective '.a:Loss' cannot be imported"),
        ("json.nothing:Loss", None, "loss: objective 'json.nothing:Loss' cannot be imported"),
        ("dpo", {"beta": 1}, "dpo.beta is not a key of this section: allowed are chunk_size, logits_budget"),
        ("dpo", {"mask": "learned"}, "dpo.mask is not a key of this section"),
        ("tdpo", {"version": 1, "alpha": 0.5}, "tdpo.alpha has no effect with tdpo.version: 1"),
        ("tdpo", {"alpha": "x"}, "tdpo.alpha: input should be a valid number, not 'x'"),
        ("dpop", {"lambda": -1}, "dpop.lambda: input should be greater than or equal to 0, not -1"),
        ("d2po", {"gamma": 0}, "d2po.gamma: input should be greater than 0, not 0"),
        ("d2po", {"gamma": 1.5}, "d2po.gamma: input should be less than or equal to 1, not 1.5"),
        ("simpo", {"beta": 0}, "simpo.beta: input should be greater than 0, not 0"),
        ("simpo", {"gamma": -0.5}, "simpo.gamma: input should be greater than or equal to 0"),
        ("sepo", {}, "sepo.oracle is needed: it has no default"),
        ("sepo", {"oracle": None}, "sepo.oracle: input should be a valid string, not None"),
        ("sepo", {"oracle": ""}, "sepo.oracle"),
        ("sepo", {"oracle": "/nowhere"}, "sepo.oracle: /nowhere cannot be loaded"),
        ("sepo", {"oracle": "x", "k": 0}, "sepo.k: input should be greater than 0, not 0"),
        ("sepo", {"oracle": "x", "k": 1.5}, "sepo.k: input should be less than or equal to 1, not 1.5"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_losses(refused, loss, section, says):
    named = {} if section is None else {loss: section} if isinstance(loss, str) and loss else {}
    beta = {"model": {"beta": None}} if loss in ("simpo", "sepo") else {}
    refused((says,), over={**CLEAR, "loss": loss, **named, **beta})


@pytest.mark.parametrize(
    ("plugins", "says"),
    [
        ("json", "loss_plugins: expected a list of str, got 'json'"),
        ([1], "loss_plugins: expected a list of str, got [1]"),
        ([None], "loss_plugins: expected a list of str, got [None]"),
        ([""], "loss_plugins: '' cannot be imported: ValueError: Empty module name"),
        (
            ["no_such_module"],
            "loss_plugins: 'no_such_module' cannot be imported: no such module in the",
        ),
        (["./my_masks.py"], "loss_plugins: './my_masks.py' cannot be imported"),
        (["json.nothing"], "loss_plugins: 'json.nothing' cannot be imported: no such module"),
        ({"a": 1}, "loss_plugins: expected a list of str, got {'a': 1}"),
    ],
    ids=str,
)
def test_plugins(refused, plugins, says):
    refused((says,), over={"loss_plugins": plugins})


# Whatever YAML can hold: known keys with any value, and any key with any value.

KEYS = [
    *("mask", "shared", "reward", "kl", "mask_lr", "mask_weight_decay", "metrics_every", "offload_features"),
    *(
        "chunk_size",
        "logits_budget",
        "disable_dropout",
        "l1_reward",
        "l1_kl",
        "l1_reduction",
        "expectation",
        "version",
        "alpha",
    ),
    *("layers", "depth", "layer_norm", "activation", "dropout", "min", "max", "init", "sites", "rescale", "value"),
    *("gamma", "oracle", "k", "beta", "seed", "lambda", "alpha", "scale", "reg", "reg_m"),
    *("segments", "outside", "suffix", "default", "end", "reduce", "signed"),
]
MASKS = ["length", "oracle_reward", "sampled", "confidence", "log_ratio", "transport", "column", "diff"]
WORDS = ["learned", "uniform", "random", "activation", "decay", "selected", "all", "last", "policy", "sum", "mean"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-1, 3),
    st.floats(),
    st.dates(),
    st.binary(max_size=3),
    st.sampled_from([*WORDS, *MASKS, "relu", "binary", "true", "1e-3", "1e999", "", "json:JSONDecoder", ":", "."]),
    st.text(max_size=8),
    st.just(10**400),
)
ANY_KEY = st.one_of(st.sampled_from(KEYS), SCALARS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_KEY, inner, max_size=3), max_leaves=6
)
LOSSES = ["sparsepo", "dpo", "tdpo", "dpop", "simpo", "d2po", "sepo", "weighted_dpo", "confpo", "selective", "wpo"]
LOSSES += ["ln_dpo", "adpo", "alphapo"]
SECTIONS = st.one_of(VALUES, st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))


@settings(max_examples=600)
@given(st.sampled_from(LOSSES), SECTIONS)
def test_any_section_is_accepted_or_refused_in_one_line(loss, section):
    """What is accepted makes masks and a loss that run."""
    try:
        rehearse(LossConfig.from_section(section, loss), hidden_size=8, num_layers=2, seed=0)
    except SparsePOError as error:
        line = one_line(error)
        assert len(line) < 1000 and (loss in line or "mask" in line), line
