"""Ten fp32 steps through the real command line, with what a pair begins with computed once and twice.

The tolerances are those of the layouts in tests/invariant: other shapes add in another order.
"""

import shutil

import pytest
import torch
from host_runs import VOCABULARY, difference

LOSS, WEIGHTS = 5e-6, 2.5e-5
SAID = "sparsepo.share_prefix: what chosen and rejected begin with is computed once"
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}

RUNS = {
    "padded": {},
    "packed": {"ds": {"packing_samples": True}},
    "LoRA, its reference without the adapter, checkpointing": {
        "ds": {"lora": LORA},
        "model": {"gradient_checkpointing_enable": True},
    },
    "accumulation, skipped rows, evaluation": {
        "train": {"micro_batch_size": 2},
        "sparsepo": {"init": "linear", "layers": "last", "shared": True, "metrics_every": 100},
        "eval": {"dataset": "held_out", "split": "train", "steps": 5},
    },
    "dense masks": {"sparsepo": {**dict.fromkeys(("l1_reward", "l1_kl", "mask_lr", "shared")), "mask": "activation"}},
}


@pytest.fixture
def shared(train, tiny):
    """Runs that share what a pair begins with, and that do not; both have told the truth about it."""

    def shared(processes=1, **over):
        if "eval" in over:
            over["eval"] = {**over["eval"], "dataset": str(tiny / "held_out.jsonl")}
        section = over.pop("sparsepo", {})
        once, twice = (
            train(processes=processes, sparsepo={**section, "share_prefix": share}, **over) for share in (True, False)
        )
        assert once.output.count(SAID) == 1 and SAID not in twice.output
        return once, twice

    return shared


@pytest.mark.parametrize("name", RUNS)
def test_equals_the_run_without(name, shared):
    assert_equal(*shared(**RUNS[name]))


def test_two_packed_processes_under_zero_3(shared):
    zero_3 = {"zero_stage": 3, "packing_samples": True}
    assert_equal(*shared(processes=2, ds=zero_3, train={"micro_batch_size": 2}))


@pytest.mark.parametrize("share", [True, False])
def test_a_model_that_the_host_cannot_pack_without_flash_attention(share, train, tiny, tmp_path_factory):
    """Its attention takes sequences one by one. An OPT, which the host says would mix them."""
    from transformers import OPTConfig, OPTForCausalLM

    folder = tmp_path_factory.getbasetemp() / "opt"
    if not folder.exists():
        shutil.copytree(tiny / "model", folder)
        torch.manual_seed(0)
        width = {"hidden_size": 32, "ffn_dim": 32, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
        shape = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 4, **width}
        ends = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
        OPTForCausalLM(OPTConfig(**shape, **ends, init_std=0.1)).save_pretrained(folder)
    opt = {"model": {"model_name_or_path": str(folder)}}
    packed = train(ds={"packing_samples": True}, sparsepo={"share_prefix": share}, **opt)
    assert_equal(packed, train(sparsepo={"share_prefix": False}, **opt))


def assert_equal(once, twice):
    loss, weights = difference(once, twice)
    assert len(once.losses) == 10 and once.losses[0] != once.losses[-1]
    assert loss < LOSS and weights < WEIGHTS
