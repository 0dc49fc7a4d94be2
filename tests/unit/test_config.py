"""Every kind of mistake in the `sparsepo:` section, and its round trip."""

import re

import pytest
import torch
import yaml
from pydantic import ValidationError

from sparsepo_plugin import OBJECTIVES, LossConfig, Objective, SparsePOError
from sparsepo_plugin.options import within

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
layers: [0, -1]
depth: 2
layer_norm: false
activation: binary
dropout: 0.1
min: 0.1
max: 2.0e0
init: linear
reward: {dropout: 0.0}
kl: {layers: last, min: 2e-4}
"""


def config(text: str) -> LossConfig:
    return LossConfig.from_section(yaml.safe_load(text), beta=0.3, label_smoothing=0.1)


def test_defaults():
    for section in (None, {}):
        default = LossConfig.from_section(section)
        assert default.loss == default.section == "sparsepo"
        assert default.reward.mask == "learned"
        assert default.kl is None
        assert (default.mask_lr, default.mask_weight_decay, default.chunk_size) == (1e-3, 0.01, None)


def test_every_option_is_resolved():
    """What a description keeps: a default that changes later must not change what it means."""
    assert config("").objective == {
        "l1_reward": 0.0,
        "l1_kl": 0.0,
        "l1_reduction": "sum",
        "expectation": "reference",
        "version": 1,
        "alpha": 0.5,
        "beta": 0.3,
        "label_smoothing": 0.1,
    }
    assert config("").reward.options == {
        "layers": "all",
        "depth": 1,
        "layer_norm": True,
        "activation": "relu",
        "dropout": 0.0,
        "min": 0.0,
        "max": None,
        "init": "positive",
    }
    assert LossConfig.from_section({}, "tdpo", beta=0.2).objective["alpha"] == 0.5
    assert LossConfig.from_section({}, "dpo").objective == {"beta": 0.1, "label_smoothing": 0.0}, "the constructor's"


def test_a_reduction_needs_either_norm():
    for key in ("l1_reward", "l1_kl"):
        assert LossConfig.from_section({key: 0.1, "l1_reduction": "mean"}).objective["l1_reduction"] == "mean"


def test_flags_of_the_host_go_to_objectives_that_take_them():
    own_scale = LossConfig.from_section({}, "simpo", beta=0.7, label_smoothing=0.1)
    assert own_scale.objective == {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.1}


def test_every_key():
    full = config(FULL)
    assert full.objective["l1_reward"] == 2e-4  # YAML 1.1 reads 2e-4 and 2.0e0 as strings
    assert full.mask_lr == 1e-3
    assert full.reward.options["layers"] == full.reward.options["layers"] == [0, -1]
    assert full.reward.options | {"dropout": 0.1, "layers": "last", "min": 2e-4} == full.kl.options
    assert (full.reward.options["max"], full.reward.options["dropout"]) == (2.0, 0.0)
    assert config("mask_lr: policy").mask_lr == "policy"


@pytest.mark.parametrize("text", [FULL, "", "mask: uniform\nvalue: 0.5", "mask: activation\nsites: [residual]"])
def test_json_round_trip(text):
    first = config(text)
    assert LossConfig.model_validate_json(first.model_dump_json()) == first


# Masks of the two roles.


@pytest.mark.parametrize(
    ("text", "reward", "kl"),
    [
        ("", ("learned", "all"), None),
        ("shared: true", ("learned", "all"), None),
        ("shared: false", ("learned", "all"), ("learned", "all")),
        ("kl: {layers: last}", ("learned", "all"), ("learned", "last")),
        ("layers: last\nreward: {layers: all}", ("learned", "all"), ("learned", "last")),
        ("kl: {mask: uniform, value: 1}", ("learned", "all"), ("uniform", 1.0)),
        ("layers: last\nkl: {mask: uniform, value: 1}", ("learned", "last"), ("uniform", 1.0)),
        ("shared: false\nlayers: last\nkl: {mask: learned}", ("learned", "last"), ("learned", "all")),
        ("mask: uniform\nvalue: 2\nreward: {mask: learned}", ("learned", "all"), ("uniform", 2.0)),
        (
            "reward: {mask: learned, layers: last}\nkl: {mask: uniform, value: 0.5}",
            ("learned", "last"),
            ("uniform", 0.5),
        ),
    ],
)
def test_roles(text, reward, kl):
    """A role that names a mask has that mask's options alone; one that does not lays its own over the section's."""

    def short(mask):
        return mask and (mask.mask, mask.options["layers" if mask.mask == "learned" else "value"])

    found = config(text)
    assert (short(found.reward), short(found.kl)) == (reward, kl)
    assert list(found.masks) == (["reward"] if kl is None else ["reward", "kl"])


class Clashing(Objective):
    """Has an option that the mask `uniform` has too."""

    chooses_mask = True

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()


def test_an_option_of_objective_and_mask_is_refused(monkeypatch):
    monkeypatch.setitem(OBJECTIVES._classes, "clashing", Clashing)
    with pytest.raises(SparsePOError, match=r"clashing\.value is an option of the objective and of mask 'uniform'"):
        LossConfig.from_section({"mask": "uniform"}, "clashing")
    halves = {role: {"mask": "uniform", "value": 2.0} for role in ("reward", "kl")}
    found = LossConfig.from_section({**halves, "value": 3}, "clashing")
    assert (found.objective, found.kl.options) == ({"value": 3.0}, {"value": 2.0})


def test_what_is_read_of_models():
    """Whether a reference is loaded is known before any model is: from the classes."""
    assert config("").needs == {"hidden_states", "last_hidden"}
    assert config("mask: uniform\nkl: {mask: activation}").needs == {"activations"}
    assert LossConfig.from_section({}, "dpo").uses_reference
    assert not LossConfig.from_section({}, "simpo").uses_reference
    assert LossConfig.from_section({"oracle": "x"}, "sepo").uses_reference
    assert LossConfig.from_section({"oracle": "x"}, "sepo").oracle == "x"
    assert config("").oracle is None
    with pytest.raises(SparsePOError, match=r"sparsepo\.oracle: one oracle serves both masks, not a and b"):
        _ = config("mask: selected\noracle: a\nkl: {oracle: b}").oracle


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "wrong: 1",
            "sparsepo.wrong is not a key of this section: allowed are chunk_size, logits_budget, disable_dropout,",
        ),
        ("wrong: 1", "layers, depth, layer_norm, activation, dropout, min, max, init"),
        ("options: {}", "sparsepo.options is not a key"),
        ("hidden_size: 8", "sparsepo.hidden_size is not a key"),
        ("seed: 8\nmask: random", "sparsepo.seed is not a key"),
        ("mask: uniform\nlayers: all", "sparsepo.layers is not a key of this section: allowed are .*value"),
        (
            "mask: nope",
            "sparsepo.mask: unknown mask 'nope': registered are activation, .*decay, .*uniform",
        ),
        (
            "mask: no_such:Mask",
            "sparsepo.mask: mask 'no_such:Mask' cannot be imported: no such module in the current folder",
        ),
        ("mask: 3", "sparsepo.mask: .*string, not 3"),
        ("mask: collections:OrderedDict", "sparsepo.mask: collections:OrderedDict is not a sparsepo_plugin.TokenMask"),
        ("mask: torch.nn:Linear", "sparsepo.mask: torch.nn:Linear is not a sparsepo_plugin.TokenMask"),
        ("shared: 1", "sparsepo.shared: .*boolean, not 1"),
        ("expectation: both", "sparsepo.expectation: .*'reference' or 'policy', not 'both'"),
        ("l1_reward: -1", "sparsepo.l1_reward: .*greater than or equal to 0, not -1"),
        ("l1_reward: -1e-3", "sparsepo.l1_reward: .*greater than or equal to 0, not -0.001"),
        ("l1_kl: .nan", "sparsepo.l1_kl: .*finite number"),
        ("l1_reward: a lot", "sparsepo.l1_reward: .*number.*, not 'a lot'"),
        ("l1_reward: 1\nl1_reduction: max", "sparsepo.l1_reduction: .*'sum' or 'mean', not 'max'"),
        ("l1_reduction: mean", "sparsepo.l1_reduction has no effect without l1_reward or l1_kl"),
        ("mask_lr: fast", "sparsepo.mask_lr: .*'policy', not 'fast'"),
        ("mask_lr: 1e-3 or so", "sparsepo.mask_lr: .*'policy', not '1e-3 or so'"),
        ("mask_lr: -1", "sparsepo.mask_lr: .*greater than.* 0"),
        ("mask_weight_decay: -1", "sparsepo.mask_weight_decay: .*greater than or equal to 0"),
        ("chunk_size: 0", "sparsepo.chunk_size: .*greater than 0, not 0"),
        ("chunk_size: 1.5", "sparsepo.chunk_size: .*integer"),
        ("plugins: [json]", "sparsepo.plugins is not a key"),
        ("shared: true\nreward: {min: 0.1}", "sparsepo.reward has no effect with sparsepo.shared: true"),
        (
            "mask: learned\nreward: {mask: random}\nkl: {mask: random}",
            "sparsepo.mask has no effect: sparsepo.reward and",
        ),
        ("layers: all\nreward: {mask: random}\nkl: {mask: random}", "sparsepo.layers is not a key"),
        ("kl: {mask: uniform, layers: all}", "sparsepo.kl.layers is not a key of this section: allowed are value$"),
        ("kl: {mask: nope}", "sparsepo.kl.mask: unknown mask 'nope'"),
        ("kl: {mask: 3}", "sparsepo.kl.mask: the name of a mask is needed, not 3"),
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
        ("init: zero", "sparsepo.init: .*'positive', 'linear' or 'normal'"),
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
        LossConfig.from_section(section)


def test_several_mistakes_in_one_line():
    with pytest.raises(SparsePOError, match=r"sparsepo\.chunk_size: .*; sparsepo\.shared: "):
        config("shared: 1\nchunk_size: 0")


def test_the_given_mapping_is_not_changed():
    section = {"mask": "uniform", "value": 0.5, "shared": False, "kl": {"value": 0.0}}
    before = {**section, "kl": {**section["kl"]}}
    LossConfig.from_section(section)
    assert section == before


@pytest.mark.parametrize(
    ("declares", "says"),
    [
        ({"weight": torch.nn.Parameter(torch.ones(1))}, "has parameters, which nothing trains"),
        ({"expectation": "reference", "needs_reference": False}, "says that it needs no reference"),
    ],
)
def test_objectives_that_cannot_work(declares, says, monkeypatch):
    class Impossible(Objective):
        def __init__(self) -> None:
            super().__init__()
            for name, value in declares.items():
                setattr(self, name, value)

    monkeypatch.setitem(OBJECTIVES._classes, "impossible", Impossible)
    with pytest.raises(SparsePOError, match=rf"loss 'impossible' .*{says}"):
        LossConfig.from_section({}, "impossible").build_objective()


def test_a_class_that_is_no_objective():
    with pytest.raises(SparsePOError, match=r"loss: collections:OrderedDict is not a sparsepo_plugin\.Objective"):
        LossConfig.from_section({}, "collections:OrderedDict")


def test_a_class_by_its_path_has_its_options_under_that_name():
    path = "sparsepo_plugin.objectives.dpo:DPO"
    assert LossConfig.from_section({}, path).section == "options"
    with pytest.raises(SparsePOError, match=r"^options\.wrong is not a key"):
        LossConfig.from_section({"wrong": 1}, path)


def test_a_refusal_of_a_constructor_keeps_what_it_is_about():
    def refuse():
        raise SparsePOError("rate is too high", about="learning rate")

    with pytest.raises(SparsePOError, match=r"^sparsepo\.rate is too high$") as caught:
        within("sparsepo", refuse)
    assert caught.value.about == "learning rate"


def test_a_resolved_config_stays_as_it_is():
    with pytest.raises(ValidationError, match="frozen"):
        config("").mask_lr = 1.0


def test_an_annotation_that_is_no_type(monkeypatch):
    class Strange(Objective):
        def __init__(self, rate: "no_such_type" = 1) -> None:  # noqa: F821
            super().__init__()

    monkeypatch.setitem(OBJECTIVES._classes, "strange", Strange)
    with pytest.raises(SparsePOError, match=r"the constructor of .*Strange: NameError: name 'no_such_type'"):
        LossConfig.from_section({}, "strange")
