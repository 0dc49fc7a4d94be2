"""Models that cannot be trained, or compared, or loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from host_runs import VOCABULARY, merge
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from typer.testing import CliRunner

from sparsepo_plugin.cli import app

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL["vocab_size"] = VOCABULARY
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
PICKLED = {"model.safetensors": None, "pytorch_model.bin": b"what it holds is not looked at"}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Hub names are looked for on this machine alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def model(tiny, tmp_path) -> Callable[..., Path]:
    """A folder `broken` below the working folder: the tiny model with changed settings and files."""

    def model(changes: dict | None = None, files: dict[str, bytes | None] | None = None) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(tiny / "model", folder)
        settings = json.loads((folder / "config.json").read_text())
        settings = {key: value for key, value in {**settings, **(changes or {})}.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(settings))
        for name, content in (files or {}).items():
            (folder / name).unlink(missing_ok=True)
            if content is not None:
                (folder / name).write_bytes(content)
        return folder

    return model


BROKEN = {"model": {"model_name_or_path": "broken"}}
BOTH_LOSSES = pytest.mark.parametrize("loss", [{}, {"loss": None, "sparsepo": None}], ids=["sparsepo", "own DPO"])


@BOTH_LOSSES
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": None}, "Unrecognized model in broken"),
        ({"model_type": "no-such"}, "model type `no-such`"),
        ({"model_type": 7}, "cannot be loaded"),
        ({"model_type": "vit"}, "cannot be loaded: ValueError: Unrecognized configuration class"),
        ({"hidden_size": "wide"}, "cannot be loaded"),
        ({"hidden_size": 250}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "cannot be loaded"),
        ({"num_hidden_layers": -1}, None),
        ({"hidden_size": 128}, "broken: lm_head.weight has shape [512, 256], [512, 128] by config.json"),
        ({"vocab_size": 600}, "has shape [512, 256], [600, 256] by config.json"),
        ({"model_type": "bert", **SMALL}, "bert is bidirectional, its tokens see those after them"),
        ({"model_type": "roberta", **SMALL}, "roberta is bidirectional"),
        ({"model_type": "xlm-roberta", **SMALL}, "xlm-roberta is bidirectional"),
        ({"model_type": "electra", **SMALL}, "electra is bidirectional"),
        ({"model_type": "gemma3_text", **SMALL, "use_bidirectional_attention": True}, "gemma3_text is bidirectional"),
        ({"model_type": "t5"}, "t5 is an encoder-decoder (a decoder, such as Llama or GPT-2, is needed)"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "bart is an encoder-decoder"),
        ({"model_type": "whisper", "is_encoder_decoder": True}, "whisper is an encoder-decoder"),
        ({"model_type": "llava"}, "llava is a vision model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "was made as LlamaForSequenceClassification, without"),
        ({"architectures": ["LlamaForTokenClassification"]}, "was made as LlamaForTokenClassification"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "was made as LlamaForQuestionAnswering"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "llama is quantised"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "llama is quantised"),
        ({"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}, "(model.trust_remote_code: true)"),
    ],
    ids=str,
)
def test_configs(refused, model, changes, says, loss):
    if says is None:
        says, changes = "cannot be loaded", {"num_attention_heads": 3, "num_key_value_heads": 2}
    model(changes)
    refused(("model.model_name_or_path: ", says), over={**BROKEN, **loss})


def _header(length: int, text: bytes = b"{}") -> bytes:
    return length.to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": None}, "model.model_name_or_path: broken cannot be loaded: ValueError: Unrecognized model"),
        ({"config.json": b""}, "broken cannot be loaded"),
        ({"config.json": b"{"}, "broken cannot be loaded"),
        ({"config.json": b"[1]"}, "broken cannot be loaded"),
        ({"config.json": b"\xff\xfe"}, "broken cannot be loaded"),
        ({"adapter_config.json": b"{}"}, "broken is a LoRA adapter; merge it into its model first"),
        ({"model.safetensors": None}, "broken has no weights: model.safetensors or pytorch_model.bin is needed"),
        ({"model.safetensors": b""}, "broken/model.safetensors is broken: SafetensorError: "),
        ({"model.safetensors": b"version https://git-lfs"}, "broken/model.safetensors is broken: SafetensorError: "),
        ({"model.safetensors": _header(2**40)}, "broken/model.safetensors is broken: SafetensorError: "),
        ({"model.safetensors": _header(2)}, "broken has no weight lm_head.weight, [512, 256] by config.json"),
        ({"model.safetensors": None, "pytorch_model.bin": b""}, "pytorch_model.bin is broken: it ends too early"),
        ({"model.safetensors": None, "pytorch_model.bin": b"PK\x03\x04"}, "is broken: it ends too early"),
        ({"model.safetensors": None, "model.safetensors.index.json": b"{"}, "index.json is broken: JSONDecodeError"),
        ({"model.safetensors": None, "model.safetensors.index.json": b"{}"}, "index.json is broken: KeyError"),
        ({"model.safetensors": None, "model.safetensors.index.json": b"[]"}, "index.json is broken: TypeError"),
        (
            {"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'},
            "broken/b.safetensors is missing, model.safetensors.index.json names it",
        ),
    ],
    ids=str,
)
def test_files(refused, model, files, says):
    model(files=files)
    refused((says,), over=BROKEN)


@pytest.mark.parametrize("key", ["model", "ref"])
def test_weights_that_are_cut_off(refused, model, tiny, key):
    whole = (tiny / "model" / "model.safetensors").read_bytes()
    model(files={"model.safetensors": whole[:-100]})
    says = (f"{key}.model_name_or_path: broken/model.safetensors is broken", "SafetensorError")
    refused(says, over={key: {"model_name_or_path": "broken"}})


@pytest.mark.parametrize("key", ["model", "ref"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lm_head.weight", [512, 256]),
        ("model.layers.1.mlp.down_proj.weight", [256, 256]),
        ("model.norm.weight", [256]),
    ],
)
def test_weights_of_which_one_is_missing(refused, model, key, name, shape):
    """transformers warns, and draws it at random."""
    file = model() / "model.safetensors"
    weights = load_file(file)
    del weights[name]
    save_file(weights, file)
    says = f"{key}.model_name_or_path: broken has no weight {name}, {shape} by config.json"
    refused((says,), over={key: {"model_name_or_path": "broken"}})


def test_a_layer_more_than_there_are_weights_for(refused, model):
    model({"num_hidden_layers": 3, "layer_types": None})
    refused(("broken has no weight model.layers.2.", "by config.json"), over=BROKEN)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, "`temperature`: `do_sample` is not set to `True`"),
        ({"early_stopping": True}, "`early_stopping`: `num_beams` is set to"),
        ({"temperature": "hot"}, "`temperature`"),
        ({"max_new_tokens": -5}, "`max_new_tokens` must be greater than 0"),
        ([1], "TypeError"),
    ],
    ids=str,
)
@BOTH_LOSSES
def test_settings_for_generation_that_could_not_be_saved(refused, model, settings, says, loss):
    """transformers loads most of them, and refuses to save a model with them when it is trained."""
    model(files={"generation_config.json": json.dumps(settings).encode()})
    refused(("model.model_name_or_path: ", "broken", says), over={**BROKEN, **loss})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/nowhere/model", "model.model_name_or_path: /nowhere/model cannot be loaded"),
        ("no-such-organisation/no-such-model", "cannot be loaded: OSError: We couldn't connect to"),
        ("a b/c d", "a b/c d cannot be loaded"),
        ("a/b/c/d", "a/b/c/d cannot be loaded"),
        ("../..", "../.. cannot be loaded"),
        (".", ". cannot be loaded"),
        ("", "model.model_name_or_path is missing"),
        ("x" * 5000, "model.model_name_or_path: xxx"),
        ("a\0b", "cannot be loaded"),
        ("run.yaml", "run.yaml cannot be loaded"),
        ("~/model", "cannot be loaded"),
    ],
    ids=lambda text: text[:30].replace("\0", "0"),
)
def test_names(refused, name, says):
    refused((says,), over={"model": {"model_name_or_path": name}})


def test_an_empty_folder(refused, tmp_path):
    (tmp_path / "broken").mkdir()
    refused(("model.model_name_or_path: broken cannot be loaded",), over=BROKEN)


@pytest.mark.parametrize(
    ("over", "key"),
    [
        ({"ref": {"model_name_or_path": "broken"}}, "ref.model_name_or_path"),
        (
            {"loss": "sepo", "sepo": {"oracle": "broken"}, "sparsepo": None, "model": {"beta": None}},
            "sepo.oracle",
        ),
        ({"ref": {"model_name_or_path": "broken"}, "loss": None, "sparsepo": None}, "ref.model_name_or_path"),
    ],
    ids=["reference", "oracle", "reference of own DPO"],
)
def test_other_vocabularies(refused, model, over, key):
    folder = model({"vocab_size": 600})
    weights = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = torch.zeros(600, weights[name].shape[1])
    save_file(weights, folder / "model.safetensors")
    refused((f"{key}: its vocabulary has 600 entries, model.model_name_or_path's 512",), over=over)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gemma2", "head_dim": 8, **SMALL}, "sets final_logit_softcapping"),
        ({"model_type": "cohere", **SMALL}, "sets logit_scale"),
        ({"model_type": "granite", "logits_scaling": 4.0, **SMALL}, "sets logits_scaling"),
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["model", "ref"])
def test_heads_that_are_no_plain_projection(refused, model, tiny, changes, says, key):
    model(changes, PICKLED)
    over = {"model": {"model_name_or_path": str(tiny / "model")}, key: {"model_name_or_path": "broken"}}
    refused((f"{key}.model_name_or_path: the model's config {says}",), over=over)


def test_packing_that_would_mix_samples(refused, model):
    """By OpenRLHF's own DPO; our losses look at the first batch."""
    model({"model_type": "opt", "word_embed_proj_dim": 16, "ffn_dim": 16, **SMALL}, PICKLED)
    says = ("ds.packing_samples: with sdpa attention a opt model (model.model_name_or_path) would mix samples",)
    refused(says, over={**BROKEN, "ds": {"packing_samples": True}, "loss": None, "sparsepo": None})


TRUSTING = {"model": {"model_name_or_path": "broken", "trust_remote_code": True}}
OWN = {"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise RuntimeError('its code ran')", "RuntimeError: its code ran"),
        ("class Config(", "SyntaxError"),
        ("import no_such_package", "no_such_package"),
        ("Config = 3", "cannot be loaded"),
        ("", "cannot be loaded"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
    ],
    ids=str,
)
def test_code_of_the_model_that_fails(refused, model, code, says):
    model(OWN, {"own.py": code.encode()})
    refused(("model.model_name_or_path: broken cannot be loaded", says), over=TRUSTING)


@pytest.mark.parametrize(
    ("over", "changes", "files"),
    [
        ({"ref": {"model_name_or_path": "broken"}}, {}, {}),
        ({"ref": {"model_name_or_path": "broken"}}, GPT2, PICKLED),
        (BROKEN, {"auto_map": {"AutoModelForCausalLM": "own.Model"}}, {}),  # not needed: transformers knows Llama
        (BROKEN, {"architectures": None}, {}),
        (BROKEN, {}, PICKLED),
        (BROKEN, {"tie_word_embeddings": True}, {}),
        (BROKEN, {}, {"generation_config.json": b'{"temperature": 0.9, "do_sample": true}'}),
        ({"ref": {"model_name_or_path": "broken"}}, {}, {"generation_config.json": b'{"temperature": 0.9}'}),
        (BROKEN, {"model_type": "bert", "is_decoder": True, **SMALL}, PICKLED),
    ],
    ids=str,
)
def test_models_that_can_be_used(config, model, tmp_path, monkeypatch, over, changes, files):
    """Another width or depth of the reference does not matter, nor do pickled weights, which are not run."""
    model(changes, files)
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(merge(config(), over)))
    result = CliRunner().invoke(app, ["check", "run.yaml"])
    assert result.exit_code == 0, result.output
    assert AutoConfig.from_pretrained("broken")


def test_looking_at_models_draws_no_random_number(config, tmp_path, monkeypatch):
    """The adapter's start comes after it, from the seed: what has been looked at must not change a run."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(config(ds={"lora": {"rank": 4}})))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    result = CliRunner().invoke(app, ["check", "run.yaml"])
    assert result.exit_code == 0, result.output
    assert torch.equal(torch.get_rng_state(), before)
