"""Every kind of mistake in the `sparsepo:` section, and its round trip."""

import re

import pytest
import yaml

from sparsepo_plugin import SparsePOConfig, SparsePOError

FULL = """
mask: learned
shared: false
expectation: policy
l1_reward: 2e-4
l1_kl: 0.0002
l1_reduction: mean
mask_lr: 1e-3
mask_weight_decay: 0.01
chunk_size: 64
plugins: [json]
layers: [0, -1]
depth: 2
layer_norm: false
activation: binary
dropout: 0.1
min: 0.1
max: 2
init: linear
reward: {dropout: 0.0}
kl: {layers: last, min: 0}
"""


def config(text: str) -> SparsePOConfig:
    return SparsePOConfig.from_section(yaml.safe_load(text))


def test_defaults():
    for section in (None, {}):
        default = SparsePOConfig.from_section(section)
        assert (default.mask, default.shared, default.expectation) == ("learned", True, "reference")
        assert (default.mask_lr, default.mask_weight_decay) == (1e-3, 0.01)
        assert (default.l1_reward, default.l1_kl, default.l1_reduction, default.chunk_size) == (0.0, 0.0, "sum", None)
        assert default.section() == {}


def test_every_key():
    full = config(FULL)
    assert full.l1_reward == 2e-4  # YAML 1.1 reads 2e-4 as a string
    assert full.mask_lr == 1e-3
    assert full.options["layers"] == [0, -1]
    assert full.options["max"] == 2.0
    assert full.kl == {"layers": "last", "min": 0.0}
    assert config("mask_lr: policy").mask_lr == "policy"


@pytest.mark.parametrize("text", [FULL, "", "mask: uniform\nvalue: 0.5", "mask: activation\nsites: [residual]"])
def test_round_trip(text):
    """What `section()` gives is what checkpoints hold: the same config again, and a YAML that says it."""
    first = config(text)
    again = SparsePOConfig.from_section(first.section())
    assert again == first
    assert again.section() == first.section()
    assert config(yaml.safe_dump(first.section())) == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrong: 1", "sparsepo.wrong is not a key of this section: allowed are mask, shared, reward"),
        ("wrong: 1", "layers, depth, layer_norm, activation, dropout, min, max, init"),
        ("options: {}", "sparsepo.options is not a key"),
        ("hidden_size: 8", "sparsepo.hidden_size is not a key"),
        ("seed: 8\nmask: random", "sparsepo.seed is not a key"),
        ("mask: uniform\nlayers: all", "sparsepo.layers is not a key of this section: allowed are .*value"),
        (
            "mask: nope",
            "sparsepo.mask: unknown mask 'nope': registered are activation, decay, learned, random, selected, uniform",
        ),
        ("mask: no_such:Mask", "sparsepo.mask: mask 'no_such:Mask' cannot be imported: No module named 'no_such'"),
        ("mask: 3", "sparsepo.mask: .*string, not 3"),
        ("shared: 1", "sparsepo.shared: .*boolean, not 1"),
        ("expectation: both", "sparsepo.expectation: .*'reference' or 'policy', not 'both'"),
        ("l1_reward: -1", "sparsepo.l1_reward: .*greater than or equal to 0, not -1"),
        ("l1_kl: .nan", "sparsepo.l1_kl: .*finite number"),
        ("l1_reward: a lot", "sparsepo.l1_reward: .*number.*, not 'a lot'"),
        ("l1_reward: 1\nl1_reduction: max", "sparsepo.l1_reduction: .*'sum' or 'mean', not 'max'"),
        ("l1_reduction: mean", "sparsepo.l1_reduction has no effect without l1_reward or l1_kl"),
        ("mask_lr: fast", "sparsepo.mask_lr: .*'policy', not 'fast'"),
        ("mask_lr: -1", "sparsepo.mask_lr: .*greater than.* 0"),
        ("mask_weight_decay: -1", "sparsepo.mask_weight_decay: .*greater than or equal to 0"),
        ("chunk_size: 0", "sparsepo.chunk_size: .*greater than 0, not 0"),
        ("chunk_size: 1.5", "sparsepo.chunk_size: .*integer"),
        ("plugins: json", "sparsepo.plugins: .*list, not 'json'"),
        ("plugins: [no_such_module]", "sparsepo.plugins: 'no_such_module' cannot be imported"),
        ("reward: {min: 0.1}", "sparsepo.reward has no effect with sparsepo.shared: true"),
        ("shared: false\nkl: {wrong: 1}", "sparsepo.kl.wrong is not a key of this section: allowed are layers, depth"),
        ("shared: false\nkl: {depth: 3}", "sparsepo.kl.depth: input should be 1 or 2, not 3"),
        ("shared: false\nreward: [1]", "sparsepo.reward: .*dictionary, not \\[1\\]"),
        ("layers: middle", "sparsepo.layers: "),
        ("layers: [a]", "sparsepo.layers: "),
        ("depth: 3", "sparsepo.depth: input should be 1 or 2, not 3"),
        ("layer_norm: perhaps", "sparsepo.layer_norm: .*boolean"),
        ("activation: gelu", "sparsepo.activation: .*'relu' or 'binary', not 'gelu'"),
        ("dropout: 1", "sparsepo.dropout: .*less than 1, not 1"),
        ("min: -0.1", "sparsepo.min: .*greater than or equal to 0"),
        ("max: 0", "sparsepo.max: .*greater than 0"),
        ("init: zero", "sparsepo.init: .*'positive' or 'linear'"),
        ("mask: uniform\nvalue: -1", "sparsepo.value: .*greater than or equal to 0"),
        ("mask: activation\nsites: []", "sparsepo.sites: .*at least 1"),
        ("mask: activation\nsites: [mlp]", "sparsepo.sites: .*'attention', 'feed_forward' or 'residual'"),
        ("mask: activation\nmin: 1", "sparsepo.min: .*less than 1"),
        ("mask: activation\nrescale: l2", "sparsepo.rescale: .*'minmax' or 'none'"),
    ],
    ids=lambda value: value.replace("\n", " ") if isinstance(value, str) else None,
)
def test_mistakes(text, message):
    """One line that names the key and what is allowed."""
    with pytest.raises(SparsePOError) as caught:
        config(text)
    line = str(caught.value)
    assert re.search(message, line)
    assert "\n" not in line


@pytest.mark.parametrize("section", [[1], "learned", 3, [], ""])
def test_section_that_is_no_mapping(section):
    with pytest.raises(SparsePOError, match="sparsepo: a mapping of keys is needed"):
        SparsePOConfig.from_section(section)


def test_several_mistakes_in_one_line():
    with pytest.raises(SparsePOError, match=r"sparsepo\.shared: .*; sparsepo\.chunk_size: "):
        config("shared: 1\nchunk_size: 0")


def test_the_given_mapping_is_not_changed():
    section = {"mask": "uniform", "value": 0.5, "shared": False, "kl": {"value": 0.0}}
    before = {**section, "kl": {**section["kl"]}}
    SparsePOConfig.from_section(section)
    assert section == before
