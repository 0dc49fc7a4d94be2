"""The patches apply to every tested release of OpenRLHF, and what 0004 says about attention under packing holds."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from host_runs import RELEASES

from sparsepo_plugin.hosts.openrlhf.overlay import activate
from sparsepo_plugin.hosts.openrlhf.patched import TESTED, patched_package

PATCHES = sorted((Path(__file__).parents[2] / "patches" / "openrlhf").glob("*.patch"))

activate()


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs GNU patch to compare with")
@pytest.mark.parametrize("version", TESTED)
def test_patches_apply_in_order_as_gnu_patch_applies_them_and_leave_python_that_compiles(
    version, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(RELEASES / version)
    package = patched_package()
    assert package.version == version
    pristine = RELEASES / version / "openrlhf"
    shutil.copytree(pristine, tmp_path / "openrlhf", ignore=shutil.ignore_patterns("__pycache__"))
    assert PATCHES
    for number, patch in enumerate(PATCHES, start=1):
        assert patch.name.startswith(f"{number:04}-")
        command = ["patch", "--strip=1", "--fuzz=0", "--no-backup-if-mismatch", f"--input={patch}"]
        subprocess.run(command, cwd=tmp_path, check=True)
        for file in tmp_path.rglob("*.py"):
            compile(file.read_text(), str(file), "exec")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert package.files == {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_header_tells_upstream_why(patch):
    header, _, diff = patch.read_text().partition("diff --git ")
    assert 3 <= len(header.split("\n\n", 1)[1].strip().splitlines()) <= 8
    assert all(line.split("/")[1] == "openrlhf" for line in diff.splitlines() if line.startswith(("--- a/", "+++ b/")))
    assert "sparsepo" not in patch.read_text().lower()


SMALL = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GPT_LIKE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
WINDOW = {"sliding_window": 6}
SHAPES = {
    "codegen": GPT_LIKE | {"rotary_dim": 8},
    "cohere2": LLAMA_LIKE | WINDOW,
    "exaone4": LLAMA_LIKE | WINDOW,
    "gemma2": LLAMA_LIKE | WINDOW,
    "gemma3_text": LLAMA_LIKE | WINDOW,
    "gpt2": GPT_LIKE,
    "gpt_bigcode": GPT_LIKE,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "gptj": GPT_LIKE | {"rotary_dim": 8},
    "mistral": LLAMA_LIKE | WINDOW,
    "mixtral": LLAMA_LIKE | {"num_local_experts": 4},
    "olmo3": LLAMA_LIKE | WINDOW,
    "olmoe": LLAMA_LIKE | MIXTURE,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "qwen2_moe": LLAMA_LIKE | MIXTURE,
    "qwen3_moe": LLAMA_LIKE | MIXTURE,
}


def save_tiny_model(model_type, folder):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SMALL, **SHAPES.get(model_type, LLAMA_LIKE))
    model = AutoModelForCausalLM.from_config(config).float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def packed_model_types():
    from openrlhf.models.actor import PACKED_BY_POSITION_IDS

    return sorted(PACKED_BY_POSITION_IDS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", packed_model_types())
def test_packed_log_probs_equal_padded_ones_and_see_no_other_sample(model_type, attention, tmp_path):
    from openrlhf.models import Actor

    model = save_tiny_model(model_type, tmp_path)
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("transformers has no sdpa for this model")
    lengths = torch.tensor([9, 13, 3, 1, 12])
    mask = (torch.arange(13) < lengths[:, None]).long()
    ids = torch.randint(3, 97, mask.shape) * mask
    other_first_sample = torch.cat([ids[:1].flip(1).roll(9, 1), ids[1:]])

    def log_probs(sequences, packed):
        actor = Actor(str(tmp_path), attention, "fp32", packing_samples=packed).eval()
        with torch.no_grad():
            return actor(sequences, attention_mask=mask, return_logprobs=True) * mask[:, 1:]

    packed = log_probs(ids, packed=True)
    assert (packed - log_probs(ids, packed=False)).abs().max() < 2e-5
    assert (packed - log_probs(other_first_sample, packed=True))[1:].abs().max() < 2e-5


def test_model_that_would_mix_packed_samples_is_refused(tmp_path):
    from openrlhf.models import Actor

    save_tiny_model("opt", tmp_path)
    Actor(str(tmp_path), "sdpa", "fp32", packing_samples=False)
    with pytest.raises(ValueError, match="would mix samples of a opt model"):
        Actor(str(tmp_path), "sdpa", "fp32", packing_samples=True)
