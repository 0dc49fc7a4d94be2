"""The recipes of the paper: one experiment's files differ in nothing but the method, and every number has a source."""

import re
from pathlib import Path

import pytest
import yaml

PAPER = Path(__file__).parents[2] / "examples" / "openrlhf" / "paper"
RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(PAPER.glob("*.yaml"))}
TRAINED = {name: recipe for name, recipe in RECIPES.items() if not name.endswith("_sft")}
METHODS = {"sparsepo_shared", "sparsepo_independent", "sparsepo_dense", "dpo", "tdpo_v1", "tdpo_v2", "simpo"}
ALL_METHODS = METHODS | {"dpop", "sepo", "d2po"}
ABLATIONS = {"sparsepo", "last_layer", "last_layer_depth_2", "binary", "random"}
ABLATIONS |= {f"decay_{decay}" for decay in ("0", "0.001", "0.1", "1")}
LOSSES = {"sparsepo", "dpo", "tdpo", "dpop", "simpo", "d2po", "sepo"}


def experiment(name):
    return name.split("_")[0]


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("imdb", ALL_METHODS),
        ("hh", ALL_METHODS | {"sft"}),
        ("tldr", ALL_METHODS),
        ("mbpp", METHODS),
        ("mix", ABLATIONS | {"sft"}),
    ],
)
def test_every_row_of_the_paper_has_its_file(name, methods):
    assert {recipe.split("_", 1)[1] for recipe in RECIPES if experiment(recipe) == name} == methods


@pytest.mark.parametrize("name", TRAINED)
def test_only_the_method_differs(name):
    def shared(recipe):
        own = {"loss", recipe["loss"], "ckpt"}
        return {
            key: {**value} if isinstance(value, dict) else value for key, value in recipe.items() if key not in own
        }

    recipe, other = (
        shared(RECIPES[name]),
        shared(RECIPES[f"{experiment(name)}_dpo" if "mix" not in name else "mix_binary"]),
    )
    for side in (recipe, other):
        side["model"].pop("beta", None)
        if experiment(name) == "hh":  # B.3 has one learning rate for SparsePO and one for the rest
            side["adam"].pop("lr")
    assert recipe == other


@pytest.mark.parametrize("name", TRAINED)
def test_loss_section_and_folders(name):
    recipe = RECIPES[name]
    assert recipe["loss"] in LOSSES
    assert set(recipe) & LOSSES <= {recipe["loss"]}
    assert recipe["ckpt"] == {"output_dir": f"runs/paper/{name}", "path": f"runs/paper/{name}/checkpoints"}


@pytest.mark.parametrize("name", ["hh", "mix"])
def test_preference_stage_starts_from_the_sft_stage(name):
    stages = [recipe["model"]["model_name_or_path"] for key, recipe in TRAINED.items() if experiment(key) == name]
    assert set(stages) == {RECIPES[f"{name}_sft"]["ckpt"]["output_dir"]}
    assert {recipe["data"]["dataset"] for key, recipe in RECIPES.items() if experiment(key) == name} == {
        f"data/{name}.jsonl"
    }


@pytest.mark.parametrize("name", [name for name in TRAINED if name.endswith("_sepo")])
def test_oracle_is_trained_with_dpo(name):
    oracle = RECIPES[f"{experiment(name)}_dpo"]
    assert oracle["loss"] == "dpo"
    merged = "_merged" if "lora" in oracle["ds"] else ""
    assert RECIPES[name]["sepo"]["oracle"] == oracle["ckpt"]["output_dir"] + merged


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_names_its_source(name):
    lines = (PAPER / f"{name}.yaml").read_text().splitlines()
    bare = [line for line in lines if re.match(r"\s*\w+: [-\d.]", line) and "#" not in line]
    assert not bare
    assert f"examples/openrlhf/paper/{name}.yaml" in "\n".join(lines), "the header names its own file"


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_sft")])
def test_train_sft_accepts_its_recipe(name):
    from sparsepo_plugin.hosts.openrlhf.overlay import activate

    activate()
    from openrlhf.cli import train_sft

    args = train_sft.parse_args(["--config", str(PAPER / f"{name}.yaml")])
    assert (args.data.input_key, args.data.output_key, args.data.input_template) == ("prompt", "chosen", "{}")
    assert args.train.batch_size == {"hh_sft": 1024, "mix_sft": 128}[name]
