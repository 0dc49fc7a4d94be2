"""Mistakes in a model's tokenizer: one line that names the model's key, or file and row, and what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny import decoder
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from sparsepo_plugin.cli import app

PAIR = {"prompt": "w1 w2 ", "chosen": "w3 w4", "rejected": "w5"}
LINE = json.dumps(PAIR) + "\n"
KEY = "model.model_name_or_path"


@pytest.fixture
def model(tiny, tmp_path_factory) -> Path:
    """A copy of the tiny model's folder for a test to spoil."""
    folder = tmp_path_factory.mktemp("spoiled") / "model"
    shutil.copytree(tiny / "model", folder)
    return folder


def reweigh(folder: Path) -> None:
    """Weights that fit a spoiled config."""
    apart = folder.with_name("apart")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(apart)
    (apart / "model.safetensors").rename(folder / "model.safetensors")


def edit(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the JSON of a file."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return spoil


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def remove(*files: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return spoil


def without_tokenizer(kind: str) -> Callable[[Path], None]:
    """Another architecture's config in a folder without tokenizer, of which transformers makes an empty one."""

    def spoil(folder: Path) -> None:
        remove("tokenizer.json", "tokenizer_config.json")(folder)
        decoder(kind).save_pretrained(folder)

    return spoil


def cut_in_half(folder: Path) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(content[: len(content) // 2])


def no_words(tokenizer: dict) -> None:
    tokenizer["model"]["vocab"] = {"<unk>": 0, "<pad>": 1, "</s>": 2}


CANNOT = "no tokenizer can be loaded from "
EMPTY = "has no tokenizer, or an empty one"
CONFIG = "tokenizer_config.json"
SPOILED = {
    "no files": (remove("tokenizer.json", CONFIG), (CANNOT,)),
    "no files of a GPT-2": (without_tokenizer("gpt2"), (EMPTY, "tokenizer.json")),
    "no files of a Pythia": (without_tokenizer("gpt_neox"), (EMPTY,)),
    "no files of a Qwen": (without_tokenizer("qwen2"), (EMPTY,)),
    "no files of a Gemma": (without_tokenizer("gemma"), (EMPTY,)),
    "no files of a Mistral": (without_tokenizer("mistral"), (CANNOT,)),
    "no tokenizer.json": (remove("tokenizer.json"), (CANNOT,)),
    "no configuration": (remove(CONFIG), ("has no eos_token",)),
    "an empty tokenizer.json": (write("tokenizer.json", ""), (CANNOT, "JSONDecodeError")),
    "half a tokenizer.json": (cut_in_half, (CANNOT, "JSONDecodeError")),
    "a tokenizer.json of nothing": (write("tokenizer.json", "{}"), (CANNOT, "KeyError")),
    "a tokenizer.json that is a list": (write("tokenizer.json", "[]"), (CANNOT, "TypeError")),
    "a binary tokenizer.json": (write("tokenizer.json", b"\xff\xfe\0"), (CANNOT, "UnicodeDecodeError")),
    "an unknown kind of tokenizer": (edit("tokenizer.json", lambda t: t["model"].update(type="None")), (CANNOT,)),
    "no words": (edit("tokenizer.json", no_words), (EMPTY,)),
    "a configuration that is no JSON": (write(CONFIG, "{"), (CANNOT, "JSONDecodeError")),
    "a configuration that is a list": (write(CONFIG, "[]"), (CANNOT, "'list'")),
    "a number as eos_token": (edit(CONFIG, lambda c: c.update(eos_token=5)), (CANNOT, "eos_token")),
    "no eos_token": (edit(CONFIG, lambda c: c.pop("eos_token")), ("has no eos_token", "every response ends")),
    "an empty eos_token": (edit(CONFIG, lambda c: c.update(eos_token="")), ("has no eos_token",)),
    "no special tokens": (write(CONFIG, "{}"), ("has no eos_token",)),
    "a new eos_token": (
        edit(CONFIG, lambda c: c.update(eos_token="<end>")),
        ("eos_token", "number 512", "the model has 512 tokens"),
    ),
    "a new pad_token": (
        edit(CONFIG, lambda c: c.update(pad_token="<nothing>")),
        ("pad_token", "number 512", "the model has 512 tokens"),
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_tokenizer(case, model, refused):
    spoil, says = SPOILED[case]
    spoil(model)
    refused((f"{KEY}: ", str(model), *says), over={"model": {"model_name_or_path": str(model)}})


def drop_letters(tokenizer: dict) -> None:
    """All but the words of the vocabulary vanish."""
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[x-z]"}, "content": ""}


def table_of_positions(folder: Path) -> None:
    """The config of a model that has no position after the 24th."""
    shape = {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 512}
    CONFIG_MAPPING["gpt2"](n_positions=24, **shape).save_pretrained(folder)


def no_unknown(tokenizer: dict) -> None:
    tokenizer["model"]["unk_token"] = "<nothing>"


WORDS = {
    "beyond the model's vocabulary": (
        edit("config.json", lambda c: c.update(vocab_size=500)),
        {"chosen": "w1 w508"},
        ("row 9: the tokenizer makes token 511 of prompt and chosen", "the model has 500 tokens"),
    ),
    "no token of the response": (
        edit("tokenizer.json", drop_letters),
        {"rejected": "xyz zyx"},
        ("row 9: the tokenizer makes no token of rejected",),
    ),
    "no token for an unknown word": (
        edit("tokenizer.json", no_unknown),
        {"chosen": "elephant"},
        ("row 9: the tokenizer refuses its text", "WordLevel error"),
    ),
    "beyond the table of positions": (
        table_of_positions,
        {"chosen": "w1 " * 25},
        ("row 9: prompt and chosen have 28 tokens, the model has positions for 24",),
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_rows_that_tokenizer_and_model_cannot_take(case, model, refused):
    spoil, change, says = WORDS[case]
    spoil(model)
    reweigh(model)
    over = {
        "model": {"model_name_or_path": str(model)},
        "data": {"dataset": "d.jsonl"},
        "loss": "dpo",
        "sparsepo": None,
    }
    refused(("d.jsonl, ", *says), over=over, files={"d.jsonl": LINE * 8 + json.dumps({**PAIR, **change}) + "\n"})


TEMPLATES = {
    "none": (None, ("data.apply_chat_template", "the tokenizer has none", "data.tokenizer_chat_template")),
    "no Jinja": ("{% for", ("data.apply_chat_template: the tokenizer's chat template is not Jinja",)),
    "an unknown filter": ("{{ messages | nothing }}", ("the tokenizer's chat template is not Jinja", "nothing")),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_the_tokenizers_own_chat_template(case, model, refused):
    template, says = TEMPLATES[case]
    if template is not None:
        (model / "chat_template.jinja").write_text(template)
    data = {"apply_chat_template": True}
    refused(says, over={"model": {"model_name_or_path": str(model)}, "data": data})


@pytest.fixture
def accepted(model, config, tmp_path):
    """`sparsepo check` with the spoiled model, which must be content."""

    def accepted(**over) -> None:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config(model={"model_name_or_path": str(model)}, **over)))
        result = CliRunner().invoke(app, ["check", str(file)])
        assert result.exit_code == 0, result.output

    return accepted


def test_a_tokenizer_without_pad_token_is_padded_with_the_end(model, accepted):
    """OpenRLHF sees to it; nothing to refuse."""
    edit(CONFIG, lambda settings: settings.pop("pad_token"))(model)
    accepted()


def test_a_pair_that_fills_the_table_of_positions(model, accepted, tmp_path):
    """Two tokens of the prompt, 21 of the response, and its end."""
    table_of_positions(model)
    reweigh(model)
    pairs = tmp_path / "d.jsonl"
    pairs.write_text(LINE * 7 + json.dumps({**PAIR, "chosen": "w1 " * 21}) + "\n")
    accepted(data={"dataset": str(pairs)}, loss="dpo", sparsepo=None)
