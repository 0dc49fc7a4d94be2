"""The paper's experiments through the real host: ten steps of a recipe of each, on tiny models of its architecture.

The data is converted from the raw form of each dataset by the command that the recipe's header names; everything but
the places, the batches, the model's size and its dtype is the recipe's own.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from host_runs import merge, write_pairs
from transformers import AutoConfig

from sparsepo_plugin import LossConfig, SparsePOError
from sparsepo_plugin.hosts.models import refuse_idle_dropout

PAPER = Path(__file__).parents[2] / "examples" / "openrlhf" / "paper"
WORDS = [f"w{index}" for index in range(120)]
SIZE = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_inner": 32, "n_positions": 256}
MODELS = {
    "imdb": ("gpt2", SIZE),
    "hh": (
        "gpt_neox",
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    ),
    "tldr": ("gptj", {**SIZE, "rotary_dim": 4}),
    "mbpp": ("gpt_bigcode", SIZE),
    "mix": (
        "gpt_neox",
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    ),
}
RECIPES = ["imdb_sparsepo_independent", "hh_sparsepo_dense", "tldr_sparsepo_shared", "mbpp_sparsepo_shared"]
RECIPES += ["mix_sparsepo", "imdb_tdpo_v2"]
STEPS, BATCH = 10, 4


def text(index: int, count: int) -> str:
    return " ".join(WORDS[(7 * index + 3 * place) % len(WORDS)] for place in range(count))


def raw_rows(experiment: str) -> list[dict]:
    """Twice as many rows as are needed, as the public files have them."""
    rows = []
    for n in range(2 * STEPS * BATCH):
        prompt, better, worse = text(n, 5), text(n + 1, 4 + n % 5), text(n + 2, 3 + n % 7)
        if experiment == "imdb":
            scored = ((better, 0.9), (worse, 0.1))
            rows += [{"prompt": f"{prompt} w{n}", "text": f" {side}", "reward": reward} for side, reward in scored]
        elif experiment == "hh":
            turns = f"\n\nHuman: {prompt}\n\nAssistant:"
            rows.append({"chosen": f"{turns} {better}", "rejected": f"{turns} {worse}"})
        elif experiment == "tldr":
            info = {"id": str(n), "post": prompt, "title": f"w{n}", "subreddit": "w1"}
            rows.append(
                {"info": info, "summaries": [{"text": better}, {"text": worse}], "choice": 0, "split": "train"}
            )
            for score, side in ((6, better), (2, worse)):
                rated = {"text": side, "axes": {"overall": score}}
                rows.append({"info": {**info, "title": f"v{n}"}, "summary": rated, "split": "valid1"})
        elif experiment == "mbpp":
            programs = ((better, True), (f"{better} w0", True), (worse, False))
            rows += [{"prompt": f"{prompt} w{n}", "completion": f" {side}", "passed": ok} for side, ok in programs]
        else:
            user = {"role": "user", "content": prompt}
            sides = [[user, {"role": "assistant", "content": side}] for side in (better, worse)]
            rows.append({"chosen": sides[0], "rejected": sides[1]})
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a tiny model of an experiment's architecture, with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

    def model(experiment: str) -> Path:
        folder = tmp_path_factory.mktemp("paper") / experiment
        words = ["<unk>", "<|endoftext|>", *WORDS]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        end = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **end).save_pretrained(folder)
        torch.manual_seed(0)
        name, size = MODELS[experiment]
        ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
        config = CONFIG_MAPPING[name](vocab_size=len(words), initializer_range=0.1, **ids, **size)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder

    return model


@pytest.fixture(scope="module")
def converted(sparsepo):
    """The pairs of an experiment, from rows in the raw form."""

    def converted(experiment: str, folder: Path) -> Path:
        raw, output = folder / "raw.jsonl", folder / "pairs.jsonl"
        raw.write_text("".join(json.dumps(row) + "\n" for row in raw_rows(experiment)))
        template = ["--tokenizer", folder, "--chat-template", PAPER / "chat.jinja"]
        flags = {"hh": template, "mix": template, "tldr": ["--split", "train", "--per-subset", "40"]}
        name = "chat" if experiment == "mix" else experiment
        arguments = ["--input", raw, "--output", output, *flags.get(experiment, [])]
        done = sparsepo("data", name, *map(str, arguments))
        assert done.returncode == 0, done.stderr
        return output

    return converted


@pytest.mark.parametrize("name", RECIPES)
def test_ten_steps(name, model, converted, launch):
    experiment = name.split("_")[0]
    folder = model(experiment)
    pairs = converted(experiment, folder)
    rows = pairs.read_text().splitlines()[: STEPS * BATCH]
    assert len(rows) == STEPS * BATCH
    pairs.write_text("\n".join(rows) + "\n")
    held_out = folder / "held_out.jsonl"
    held_out.write_text("\n".join(rows[:BATCH]) + "\n")

    own = {
        "model": {"model_name_or_path": str(folder), "gradient_checkpointing_enable": None},
        "data": {"dataset": str(pairs), "max_len": 128},
        "eval": {"dataset": str(held_out)},
        "train": {"batch_size": BATCH, "micro_batch_size": BATCH, "max_epochs": 1},
        "ds": {"param_dtype": "fp32"},
        "ckpt": None,
    }
    recipe = yaml.safe_load((PAPER / f"{name}.yaml").read_text())
    if recipe["loss"] == "sparsepo":
        own["sparsepo"] = {"metrics_every": 1}
    run = launch(merge(recipe, own))
    assert run.code == 0, run.output[-4000:]
    assert len(run.losses) == STEPS and torch.isfinite(run.losses).all()
    # No dropout: the policy still is the reference, so the first loss is that of no difference, and of the L1 terms.
    l1 = sum(run.scalars(f"train/{key}")[0] for key in ("l1_reward", "l1_kl")) if recipe["loss"] == "sparsepo" else 0.0
    assert run.losses[0].item() == pytest.approx(math.log(2) + l1, abs=1e-5)
    assert run.scalars("train/token_kl_chosen")[0] == pytest.approx(0.0, abs=1e-6)
    # The last rate of a cosine or linear schedule without a floor is small, not a tenth of the first.
    rates = run.scalars("train/lr")
    assert max(rates) <= recipe["adam"]["lr"] and rates[-1] < 0.1 * max(rates)


@pytest.fixture(scope="module")
def dropping(tmp_path_factory, tiny):
    """A tiny GPT-2 whose config has the usual dropout, with the other models' tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("dropping")
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
    )
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    GPT2LMHeadModel(config).save_pretrained(folder)
    write_pairs(folder / "pairs.jsonl", 16, seed=0)
    return folder


@pytest.mark.parametrize(
    ("loss", "section", "kl"),
    [
        ("sparsepo", {"mask": "uniform", "metrics_every": 1}, (0.0, 1e-6)),
        ("tdpo", {"version": 1}, (0.0, 1e-6)),
        ("tdpo", {"version": 1, "disable_dropout": False}, (0.01, math.inf)),
    ],
    ids=["sparsepo", "tdpo", "asked for"],
)
def test_a_policy_without_a_learning_rate_stays_the_reference(loss, section, kl, dropping, config, launch):
    """GPT-2's own dropout is off in training for every loss, unless the section turns it on."""
    over = {
        "model": {"model_name_or_path": str(dropping)},
        "data": {"dataset": str(dropping / "pairs.jsonl")},
        "adam": {"lr": 1e-9},
        "loss": loss,
        "sparsepo": None,
    }
    run = launch(merge(config(**over), {loss: section}))
    assert run.code == 0, run.output[-4000:]
    least, most = kl
    values = run.scalars("train/token_kl_chosen") + run.scalars("train/token_kl_rejected")
    assert len(values) == 4
    assert all(least <= abs(value) <= most for value in values)


def test_plain_openrlhf_keeps_its_dropout(dropping, config, launch):
    """Without `loss` nothing of ours runs: the first loss is not that of equal models."""
    over = {
        "model": {"model_name_or_path": str(dropping)},
        "data": {"dataset": str(dropping / "pairs.jsonl")},
        "loss": None,
        "sparsepo": None,
    }
    run = launch(config(**over))
    assert run.code == 0, run.output[-4000:]
    assert abs(run.losses[0].item() - math.log(2)) > 1e-4


def test_a_classifiers_dropout_is_none_of_a_language_models(model):
    """Pythia's config has a rate for a head that it does not have; GPT-2's has rates that are its own too."""
    section = LossConfig.from_section({"disable_dropout": False})
    config = AutoConfig.from_pretrained(model("hh"))
    assert config.classifier_dropout > 0
    with pytest.raises(SparsePOError, match=r"disable_dropout: false has no effect: gpt_neox has no dropout here"):
        refuse_idle_dropout(config, section)
    refuse_idle_dropout(AutoConfig.from_pretrained(model("imdb")), section)


def test_dropout_that_is_not_there_cannot_be_asked_for(tiny, config, launch):
    run = launch(config(sparsepo={"disable_dropout": False}))
    assert run.code == 2
    assert "sparsepo.disable_dropout: false has no effect: llama has no dropout here" in run.output
