"""The recipes of the paper: only the method differs within an experiment, and every number has its source."""

import csv
import inspect
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sparsepo_plugin.data import CONVERTERS

PAPER = Path(__file__).parents[2] / "examples" / "openrlhf" / "paper"
TEXTS = {path.stem: path.read_text() for path in sorted(PAPER.glob("*.yaml"))}
RECIPES = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
TRAINED = {name: recipe for name, recipe in RECIPES.items() if not name.endswith("_sft")}
METHODS = {"sparsepo_shared", "sparsepo_independent", "sparsepo_dense", "dpo", "tdpo_v1", "tdpo_v2", "simpo"}
ALL_METHODS = METHODS | {"dpop", "sepo", "d2po"}
ABLATIONS = {"sparsepo", "all_layers", "last_layer", "last_layer_depth_2", "binary", "random"}
ABLATIONS |= {f"decay_{decay}" for decay in ("0", "0.001", "0.1", "1")}
LOSSES = {"sparsepo", "dpo", "tdpo", "dpop", "simpo", "d2po", "sepo"}

# Settings that decide a run as numbers do.
DECISIVE = {
    "activation",
    "init",
    "input_template",
    "layer_norm",
    "layers",
    "lr_scheduler",
    "mask_lr",
    "model_name_or_path",
    "oracle",
    "param_dtype",
    "rescale",
    "target_modules",
}


def read_csv(name):
    with (PAPER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


SOURCES = read_csv("sources.csv")
RESULTS = read_csv("results.csv")


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
    if name in ("hh_sparsepo_shared", "hh_sparsepo_independent"):  # B.3 has a learning rate of their own
        assert recipe["adam"]["lr"] == other["adam"]["lr"] / 2
        recipe["adam"] = other["adam"]
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


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_writes_the_data_and_names_the_file(name):
    header = TEXTS[name].partition("\nmodel:")[0]
    written = re.findall(r"--output (\S+)", header)
    recipe = RECIPES[name]
    assert written == [recipe["data"]["dataset"], recipe["eval"]["dataset"]]
    assert recipe["eval"]["split"] == "train", "a file of pairs has no other split"
    assert f"examples/openrlhf/paper/{name}.yaml" in header


@pytest.mark.parametrize("name", RECIPES)
def test_the_data_commands_know_their_options(name):
    header = TEXTS[name].partition("\nmodel:")[0].replace("\\\n#", "")
    for converter, options in re.findall(r"#   sparsepo data (\w+) (.*)", header):
        known = {"input", "output", *inspect.signature(CONVERTERS[converter]).parameters}
        assert {option.replace("-", "_") for option in re.findall(r"--(\S+)", options)} <= known


@pytest.mark.parametrize("name", [name for name in TRAINED if name.endswith("_sepo")])
def test_oracle_is_trained_with_dpo(name):
    oracle = RECIPES[f"{experiment(name)}_dpo"]
    assert oracle["loss"] == "dpo"
    merged = "_merged" if "lora" in oracle["ds"] else ""
    assert RECIPES[name]["sepo"]["oracle"] == oracle["ckpt"]["output_dir"] + merged
    assert bool(merged) == (f"--output_path {RECIPES[name]['sepo']['oracle']} " in TEXTS[name])


def settings(node, prefix=""):
    """Every setting below a YAML mapping: its dotted key, its value and the line that it begins on."""
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            yield from settings(value, f"{prefix}{key.value}.")
        else:
            yield f"{prefix}{key.value}", yaml.safe_load(yaml.serialize(value)), value.start_mark.line


def is_number(value):
    if isinstance(value, list):
        return all(map(is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def held(name):
    """The settings of a recipe that need a source."""
    every = settings(yaml.compose(TEXTS[name]))
    return [item for item in every if is_number(item[1]) or item[0].split(".")[-1] in DECISIVE]


def applying(name, key):
    """The row of sources.csv for a recipe's setting: of those that fit, the one with the longest pattern."""
    fitting = [row for row in SOURCES if row["key"] == key and fnmatchcase(name, row["recipes"])]
    fitting.sort(key=lambda row: -len(row["recipes"]))
    assert fitting, f"{name}: {key} has no source"
    assert len({len(row["recipes"]) for row in fitting[:2]}) == len(fitting[:2]), f"{name}: {key} has two sources"
    return fitting[0]


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_has_its_source(name):
    lines = TEXTS[name].splitlines()
    assert len(held(name)) > 10
    for key, value, line in held(name):
        row = applying(name, key)
        assert yaml.safe_load(row["value"]) == value, key
        comment = lines[line].partition(" # ")[2]
        assert re.match(re.escape(row["source"]) + "(;|$)", comment), f"{key}: {comment}"


def test_every_source_is_used_and_says_what_it_is():
    used = [applying(name, key) for name in RECIPES for key, _, _ in held(name)]
    assert [row for row in SOURCES if row not in used] == []
    for row in SOURCES:
        assert re.match(r"(E|V1) (§\d|[A-D]\b|Table \d)|release(, | of )|none: ", row["source"]), row


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_names_the_tables_with_its_numbers(name):
    headline = TEXTS[name].splitlines()[0]
    named = {
        int(number) for text in re.findall(r"Tables? ([\d, and]+)", headline) for number in re.findall(r"\d+", text)
    }
    assert named == {int(cell["table"]) for cell in RESULTS if cell["file"] == name}


def test_results_are_whole_tables():
    assert {cell["table"] for cell in RESULTS} == set("123456789")
    assert {cell["file"] for cell in RESULTS} - set(RECIPES) == {""}, "rows of models that are not trained"
    for number in set("123456789"):
        cells = [cell for cell in RESULTS if cell["table"] == number]
        rows = {cell["row"] for cell in cells}
        assert len(cells) == len(rows) * len({cell["column"] for cell in cells})
        for row in rows:
            check_average({cell["column"]: float(cell["value"]) for cell in cells if cell["row"] == row})


def check_average(row):
    """The paper's own average, which a slip in copying would miss."""
    average = row.pop("average", None)
    assert average is None or abs(sum(row.values()) / len(row) - average) < 0.02, (row, average)


@pytest.fixture(scope="module")
def tokenizer():
    """One that ends texts as GPT-2 and Pythia do."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<|endoftext|>")


def render(tokenizer, *messages, **options):
    messages = [{"role": role, "content": content} for role, content in messages]
    template = (PAPER / "chat.jinja").read_text()
    return tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template, **options)


def test_template_of_conversations(tokenizer):
    end = "<|endoftext|>\n"
    talk = ("user", "Hi.\n\nMe again."), ("assistant", "Hello."), ("user", "{% raw %}")
    text = f"<|system|>\n{end}<|user|>\nHi.\n\nMe again.{end}<|assistant|>\nHello.{end}<|user|>\n{{% raw %}}{end}"
    assert render(tokenizer, *talk) == text
    assert render(tokenizer, *talk, add_generation_prompt=True) == f"{text}<|assistant|>\n"
    assert render(tokenizer, *talk, ("assistant", "A.")) == f"{text}<|assistant|>\nA.{end}"
    assert (
        render(tokenizer, ("system", "Be brief."), ("user", "Hi.")) == f"<|system|>\nBe brief.{end}<|user|>\nHi.{end}"
    )


@pytest.mark.parametrize("name", [name for name in RECIPES if experiment(name) in ("imdb", "tldr")])
def test_template_of_prompts_is_that_of_conversations(tokenizer, name):
    prompt = "POST: {a} text\n\nTL;DR:"
    template = RECIPES[name]["data"]["input_template"]
    assert template.format(prompt) == render(tokenizer, ("user", prompt), add_generation_prompt=True)
