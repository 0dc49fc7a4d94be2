"""What a pair begins with computed once, against the plain step on the padded batch: loss, rewards, every gradient.

Float32, with the tolerance of the helper. More architectures are in tests/invariant.
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from shared_steps import ALIKE, LEARNED, assert_same, step_of, take
from tiny import TWO_PAIRS, Pairs, decoder, make_step
from torch.nn.functional import scaled_dot_product_attention
from transformers import modeling_flash_attention_utils as flash_utils

from sparsepo_plugin.layout import Batch, packed, padded

BATCHES = {
    "prompts alike": ALIKE,
    "padded left": Pairs(TWO_PAIRS, alike=2, side="left"),
    "responses begin alike": Pairs([(3, 4), (2, 5), (3, 6), (2, 4)], alike=5),
    "one has nothing in common": Pairs(TWO_PAIRS, alike=[0, 2]),
    "responses of one token": Pairs([(4, 1), (3, 1), (4, 1), (3, 1)], alike=3),
    "one begins the other": Pairs([(3, 2), (2, 6), (3, 5), (2, 1)], alike=9),
    "the same twice": Pairs([(3, 2), (2, 3), (3, 2), (2, 3)], alike=9),
}


# Where the tokens lie


def test_a_batch_by_hand():
    ids = torch.tensor([[5, 6, 7, 8], [9, 4, 3, 0], [5, 6, 1, 0], [2, 4, 3, 3]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    layout = packed(Batch(ids, mask), share=True)
    assert layout.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 3, 1, 2, 4, 3, 3]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 2, 0, 1, 2, 3]]
    assert layout.attention_mask.tolist() == [[2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
    assert layout.rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 7, 8, 9, 10, 11]
    assert (layout.lens, layout.prefixes, layout.own) == ([4, 3, 3, 4], [0, 0, 2, 0], [4, 3, 1, 4])
    assert layout.varlen["cu_seq_lens_q"].tolist() == [0, 4, 7, 8, 12]
    assert layout.varlen["cu_seq_lens_k"].tolist() == [0, 4, 7, 10, 14]


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("share", [True, False])
def test_every_token_is_where_the_layout_says(name, share):
    pairs = BATCHES[name]
    batch = Batch(pairs.input_ids, pairs.attention_mask)
    for layout in (packed(batch, share), padded(batch)):
        index = layout.index(pairs.tokens, batch)
        assert torch.equal(layout.input_ids.flatten()[layout.rows], torch.cat(pairs.sequences))
        assert torch.equal(layout.position_ids.flatten()[layout.rows], pairs.packed_inputs["position_ids"][0])
        assert layout.attention_mask.sum() == len(layout.rows)
        assert torch.equal(
            layout.input_ids.flatten()[index.rows], torch.cat(pairs.sequences)[pairs.packed_tokens.rows]
        )
    assert all(own > 0 for own in packed(batch, share).own)


# The same numbers


@pytest.mark.parametrize("name", BATCHES)
def test_any_pairs(name):
    assert_same(take(True, pairs=BATCHES[name]), take(False, pairs=BATCHES[name]))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "mixtral"])
def test_architectures(name):
    """With the balancing loss of a mixture of experts."""
    assert_same(take(True, name), take(False, name))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_packed_without_flash_attention(name, share):
    assert_same(take(share, name, laid="packed"), take(False, name))


@pytest.mark.parametrize("window", [1, 2, 4, 6])
def test_sliding_window(window):
    results = [take(share, "mistral", sliding_window=window) for share in (True, False)]
    assert_same(*results)


@pytest.mark.parametrize(
    ("loss", "section"),
    [
        ("sparsepo", {"mask": "activation"}),
        ("sparsepo", {"mask": "learned", "init": "linear", "layers": "last", "metrics_every": 100}),
        ("sparsepo", {"mask": "random"}),
        ("dpo", {}),
        ("tdpo", {"version": 2}),
        ("dpop", {}),
        ("simpo", {"beta": 2.0}),
        ("d2po", {"gamma": 0.9}),
        ("weighted_dpo", {"mask": "sampled"}),
        ("confpo", {}),
        ("selective", {}),
        ("wpo", {}),
        ("weighted_dpo", {"mask": "transport"}),
    ],
)
def test_losses_and_masks(loss, section):
    """The second skips tokens whose masks are zero."""
    assert_same(take(True, section=section, loss=loss), take(False, section=section, loss=loss))


@pytest.mark.parametrize("reentrant", [True, False])
def test_lora_shares_its_reference_and_checkpoints(reentrant):
    results = []
    for share in (True, False):
        torch.manual_seed(0)
        policy = get_peft_model(decoder(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.3 * torch.randn_like(parameter)
        policy.train().enable_input_require_grads()
        policy.gradient_checkpointing_enable({"use_reentrant": reentrant})
        results.append(step_of(make_step({**LEARNED, "share_prefix": share}, policy, None), None))
    assert_same(*results)


@pytest.mark.parametrize("window", [None, 4])
def test_flash_attention(window, monkeypatch):
    """transformers' own call of the kernel, which is one written out: causality aligned to the last query and key."""

    def varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale, window_size=None
    ):
        assert causal and softmax_scale
        lens = [each.diff().tolist() for each in (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)]
        outputs = []
        for parts in zip(*(each.split(lens) for each, lens in zip((q, k, v), lens, strict=True)), strict=True):
            queries, keys, values = (part.transpose(0, 1) for part in parts)
            key = torch.arange(keys.shape[1])
            place = key[-queries.shape[1] :, None]
            seen = (key <= place) & (key >= place - (window_size or (keys.shape[1],))[0])
            keys, values = (each.repeat_interleave(len(queries) // len(keys), 0) for each in (keys, values))
            attended = scaled_dot_product_attention(queries, keys, values, seen, scale=softmax_scale)
            outputs.append(attended.transpose(0, 1))
        return torch.cat(outputs)

    kernels = (None, varlen, None, flash_utils._pad_input, flash_utils._unpad_input)
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *args, **options: kernels)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    results = []
    for attention in ("flash_attention_2", "sdpa"):
        policy, reference = (decoder("mistral", seed=seed, sliding_window=window) for seed in (0, 1))
        for model in (policy, reference):
            model.config._attn_implementation = attention
        step = make_step({**LEARNED, "share_prefix": attention != "sdpa"}, policy, reference)
        results.append(step_of(step, reference))
    assert_same(*results)
