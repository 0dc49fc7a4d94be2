"""The grid of a sweep, against points written by hand."""

import pytest
import yaml

from sparsepo_plugin.errors import SparsePOError
from sparsepo_plugin.sweep.grid import find, put, read_grid, read_seeds

BASE = {
    "model": {"model_name_or_path": "m", "beta": 0.1},
    "ckpt.output_dir": "elsewhere",
    "loss": "sparsepo",
    "sparsepo": {"shared": True},
    "tdpo": {"alpha": 0.7},
}


@pytest.fixture
def grid(tmp_path):
    """Points of settings over a base; variants are a mapping."""

    def grid(*sets, base=BASE, seeds="0", variants=None):
        for name, content in (("base.yaml", base), ("variants.yaml", variants)):
            (tmp_path / name).write_text(
                content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
            )
        return read_grid(
            tmp_path / "base.yaml", list(sets), seeds, None if variants is None else tmp_path / "variants.yaml"
        )

    return grid


def test_points_are_the_product_and_a_point_keeps_the_section_of_its_own_loss(grid):
    points = grid("loss=dpo,tdpo,sparsepo", "model.beta=0.1,0.4", seeds="0,3")
    names = [
        f"{loss}_model.beta={beta}_seed={seed}"
        for seed in (0, 3)
        for loss in ("dpo", "tdpo", "sparsepo")
        for beta in (0.1, 0.4)
    ]
    assert [point.name for point in points] == names
    assert points[0].settings == {"loss": "dpo", "model.beta": 0.1} and points[0].seed == 0
    first, second, third = points[0].config, points[3].config, points[11].config
    model = {"model_name_or_path": "m", "beta": 0.1}
    assert first == {"model": model, "ckpt.output_dir": "elsewhere", "loss": "dpo", "train": {"seed": 0}}
    assert second["model"]["beta"] == 0.4 and second["tdpo"] == {"alpha": 0.7} and "sparsepo" not in second
    assert third["sparsepo"] == {"shared": True} and "tdpo" not in third and third["train"] == {"seed": 3}


def test_a_setting_of_another_loss_makes_no_points(grid):
    points = grid("loss=dpo,tdpo", "tdpo.version=1,2")
    assert [point.name for point in points] == [
        "dpo_seed=0",
        "tdpo_tdpo.version=1_seed=0",
        "tdpo_tdpo.version=2_seed=0",
    ]
    assert [point.config.get("tdpo") for point in points] == [
        None,
        {"alpha": 0.7, "version": 1},
        {"alpha": 0.7, "version": 2},
    ]


def test_a_section_of_no_point_is_left_for_the_host_to_refuse(grid):
    (point,) = grid("loss=dpo", base={**BASE, "simpo": {"gamma": 1}})
    assert "simpo" in point.config and "sparsepo" not in point.config


def test_variants_have_their_names_and_are_merged(grid):
    variants = {
        "TDPO, v1": {"loss": "tdpo", "tdpo": {"version": 1}},
        "two": {"sparsepo": {"shared": False, "l1_kl": 1}},
    }
    points = grid("model.beta=0.4", variants=variants)
    assert [point.name for point in points] == ["TDPO-v1_model.beta=0.4_seed=0", "two_model.beta=0.4_seed=0"]
    assert [point.settings["variant"] for point in points] == list(variants)
    assert points[0].config["tdpo"] == {"alpha": 0.7, "version": 1}
    assert points[1].config["sparsepo"] == {"shared": False, "l1_kl": 1}


def test_values_are_those_of_yaml(grid):
    points = grid("sparsepo={shared: false},{mask: activation}", "model.beta=null,1e-1,[1]", "loss=sparsepo")
    assert [point.name for point in points[:3]] == [
        "sparsepo=shared=false_model.beta=null_sparsepo_seed=0",
        "sparsepo=shared=false_model.beta=1e-1_sparsepo_seed=0",
        "sparsepo=shared=false_model.beta=1_sparsepo_seed=0",
    ]
    assert [point.config["model"].get("beta") for point in points[:3]] == [None, "1e-1", [1]]
    assert points[3].config["sparsepo"] == {"shared": True, "mask": "activation"}


def test_what_a_run_writes_is_below_its_point(grid, tmp_path):
    base = {**BASE, "ckpt.path": "mine", "logger": {"tensorboard_dir": "tb"}}
    (point,) = grid(base=base)
    placed = point.placed(tmp_path, tmp_path / "run")
    assert placed["ckpt.output_dir"] == str(tmp_path / "run")
    assert find(placed, "ckpt.path") == str(tmp_path / "run/checkpoints")
    assert placed["logger"] == {"tensorboard_dir": str(tmp_path / "tensorboard")}
    assert point.config["ckpt.output_dir"] == "elsewhere", "the point itself stays"
    (point,) = grid(base={"base_model": "m", "rl": "dpo"}, seeds="7")
    assert point.placed(tmp_path, tmp_path / "run") == {
        "base_model": "m",
        "rl": "dpo",
        "seed": 7,
        "output_dir": str(tmp_path / "run"),
    }


@pytest.mark.parametrize(
    ("config", "key", "value", "after"),
    [
        ({"a": {"b": 1}}, "a.b", 2, {"a": {"b": 2}}),
        ({"a.b": 1}, "a.b", 2, {"a.b": 2}),
        ({"a.b": {"c": 1}, "a": {"d": 0}}, "a.b.c", 2, {"a.b": {"c": 2}, "a": {"d": 0}}),
        ({"a": {"b.c": 1}}, "a.b.c", 2, {"a": {"b.c": 2}}),
        ({"a": None}, "a.b", 2, {"a": {"b": 2}}),
        ({}, "a.b.c", 2, {"a": {"b": {"c": 2}}}),
        ({"a": {"b": 1, "c": 2}}, "a.b", None, {"a": {"c": 2}}),
        ({"a": {"b": 1}}, "a", {"c": {"d": 2}}, {"a": {"b": 1, "c": {"d": 2}}}),
        ({"a": 1}, "a", {"b": 2}, {"a": {"b": 2}}),
    ],
)
def test_put(config, key, value, after):
    """Where it stands, dotted or nested."""
    put(config, key, value)
    assert config == after
    assert find(config, key) == (after["a"] if key == "a" else value)


def test_seeds():
    assert read_seeds("0,2,1") == [0, 2, 1]


@pytest.mark.parametrize("text", ["", "a", "0,", "-1", "1.5", "0,0", str(2**32), "0 1"])
def test_no_seeds(text):
    with pytest.raises(SparsePOError, match="--seeds"):
        read_seeds(text)


@pytest.mark.parametrize(
    ("sets", "over", "says"),
    [
        (["model.beta"], {}, "--set model.beta: key=value,value is needed"),
        (["=1"], {}, "--set =1: key=value,value"),
        (["model.beta="], {}, "--set model.beta=: key=value,value"),
        (["model.beta=0.1,0.1"], {}, "a value is given twice"),
        (["model.beta={a"], {}, "--set model.beta={a: not YAML"),
        (["model.beta=1", "model.beta=2"], {}, "--set model.beta is given twice"),
        (["train.seed=1,2"], {}, "--set train.seed: --seeds sets it"),
        (["ckpt.output_dir=x"], {}, "--set ckpt.output_dir: each point has its own"),
        (["loss.x=1"], {}, "loss.x: loss is 'sparsepo', no mapping"),
        (["model.beta=" + "[" + "1," * 100 + "2]"], {}, "too long a name: give the values names with --variants"),
        (["loss=a b,a-b"], {}, "two points would be called a-b_seed=0"),
        (["loss=dpo"], {"variants": {"a": {"loss": "tdpo"}}}, "--set loss: variant a sets it too"),
        ([], {"variants": {"a": 3}}, "variants.yaml: a: a mapping of keys is needed, not 3"),
        ([], {"variants": {}}, "variants.yaml: has no variant"),
        ([], {"variants": "[1]"}, "variants.yaml: a mapping of keys is needed"),
        ([], {"variants": "a: {b: 1, b: 2}"}, "b is given twice"),
        ([], {"base": "model: {beta: 1, beta: 2}"}, "beta is given twice"),
        ([], {"base": "model: ["}, "base.yaml: not YAML"),
    ],
)
def test_what_is_refused(sets, over, says, grid):
    with pytest.raises(SparsePOError) as caught:
        grid(*sets, **over)
    assert says in str(caught.value)
