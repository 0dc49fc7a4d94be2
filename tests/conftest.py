"""Settings that hold for every test, and the tiny run that those with a real host start from."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from host_runs import VOCABULARY, WIDTH, merge, write_pairs
from hypothesis import settings

# The same examples in every run: a failure can be repeated, and time does not vary.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

pytest_plugins = ["host_fixtures"]

TESTS = Path(__file__).parent
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MARKERS = {"unit": [], "browser": [], "gpu": [pytest.mark.gpu, NEEDS_CUDA]}  # by folder; all others run the real host


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark tests by the folder that they are in."""
    for item in items:
        for marker in MARKERS.get(item.path.relative_to(TESTS).parts[0], [pytest.mark.host]):
            item.add_marker(marker)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What is imported stays, and the garbage collector would look at it for a third of the unit tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder with `model/` (a random Llama), `other/` (another one), and pairs.

    `pairs.jsonl`, `held_out.jsonl`, and `ended.jsonl`: the rows of `pairs.jsonl` with the end-of-sequence token, which
    hosts put there in ways of their own.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["<unk>", "<pad>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", model_max_length=64
    )
    for seed, name in ((0, "model"), (1, "other")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=1,
            eos_token_id=2,
            initializer_range=0.1,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    write_pairs(folder / "pairs.jsonl", 80, seed=0)
    write_pairs(folder / "ended.jsonl", 80, seed=0, end=" </s>")
    write_pairs(folder / "held_out.jsonl", 12, seed=1)
    return folder


@pytest.fixture(scope="session")
def config(tiny) -> Callable[..., dict]:
    """The YAML of ten fp32 steps with learned, independent masks and every number of every step; arguments are merged
    over it."""
    base = {
        "model": {"model_name_or_path": str(tiny / "model"), "beta": 0.5},
        "data": {"dataset": str(tiny / "pairs.jsonl"), "prompt_key": "prompt", "max_len": 32},
        "train": {"batch_size": 8, "micro_batch_size": 8, "max_epochs": 1},
        "ds": {"zero_stage": 2, "param_dtype": "fp32", "attn_implementation": "sdpa"},
        # With the usual eps of 1e-8 Adam turns rounding noise in near-zero gradients into whole steps.
        "adam": {"lr": 1e-3, "eps": 1e-4},
        "lr_warmup_ratio": 0.1,
        "loss": "sparsepo",
        "sparsepo": {
            "mask": "learned",
            "shared": False,
            "l1_reward": 1e-3,
            "l1_kl": 1e-3,
            "mask_lr": 1e-2,
            "metrics_every": 1,
        },
    }
    return lambda **over: merge(base, over)
