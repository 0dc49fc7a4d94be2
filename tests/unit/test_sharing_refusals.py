"""Models and settings that cannot share what a pair begins with: each is found out, and said."""

import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import Pairs, decoder, make_step, runner

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.layout import Batch

PAIRS = Pairs([(3, 4), (2, 1), (3, 2), (2, 6)], alike=2)
LONG = Pairs([(3, 9), (2, 7), (3, 8), (2, 12)], alike=2)
TWICE, ONCE = (
    "sparsepo.share_prefix: prompts are computed twice: ",
    "what chosen and rejected begin with is computed once",
)


def steps(policy, share, pairs=(PAIRS,), packed=False, **section):
    """Loss and gradients of a step on each batch; the reference is like the policy's plain model."""
    step = make_step({"share_prefix": share, **section}, policy, None if hasattr(policy, "peft_config") else policy)
    results = []
    for batch in pairs:
        inputs, tokens = (batch.packed_inputs, batch.packed_tokens) if packed else (batch.inputs, batch.tokens)
        reference = None if step.policy.shares_reference else runner(policy, inputs)
        laid = Batch(batch.input_ids, batch.attention_mask, packed)
        output = step(partial(step.policy, **inputs), tokens, reference, batch=laid)
        output.loss.backward()
        results.append(output.loss.item())
    return results


def with_dropout_of_adapter():
    return get_peft_model(decoder(), LoraConfig(lora_dropout=0.1, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def one_layer_apart(model):
    """Its attention has an implementation of its own."""
    attention = decoder(attention="eager").model.layers[1].self_attn
    attention.load_state_dict(model.model.layers[1].self_attn.state_dict())
    model.model.layers[1].self_attn = attention
    return model


def positions_counted_along_the_row(model):
    """As models do that take no positions."""

    def count(module, args, inputs):
        inputs["position_ids"] = torch.arange(args[0].shape[1])[None]
        return args, inputs

    model.model.rotary_emb.register_forward_pre_hook(count, with_kwargs=True)
    return model


def window_kept_to_itself(model):
    """Its attention knows its window by the mask alone."""
    unaware = copy.copy(model.config)
    unaware.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.config = unaware
    return model


def layout_dropped(model):
    """Its layers are given no keywords."""
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, args, inputs: (args, {key: value for key, value in inputs.items() if key != "layout"}),
            with_kwargs=True,
        )
    return model


def failing(model):
    """On one row."""

    def fail(module, args, inputs):
        if len(inputs["input_ids"]) == 1:
            raise IndexError("a model's own trouble")

    model.model.register_forward_pre_hook(fail, with_kwargs=True)
    return model


def tells_no_keywords(model):
    class Strict(type(model)):
        def forward(self, input_ids, attention_mask=None, position_ids=None):
            return super().forward(input_ids, attention_mask, position_ids)

    model.__class__ = Strict
    return model


LLAMA_4 = {"attention_chunk_size": 4, "num_local_experts": 2, "intermediate_size_mlp": 24}
LFM_2 = ["conv", "full_attention", "conv"]
TRAPS = {
    "dropout": (lambda: decoder(attention_dropout=0.1), {"disable_dropout": False}, "with dropout"),
    "dropout of an adapter": (with_dropout_of_adapter, {}, "with dropout"),
    "jitter of a router": (lambda: decoder("mixtral", router_jitter_noise=0.1), {}, "with dropout"),
    "eager": (lambda: decoder(attention="eager"), {}, "attention of llama is eager, needed is sdpa or flash"),
    "chunked": (lambda: decoder("llama4_text", **LLAMA_4), {}, "llama4_text has chunked attention"),
    "ALiBi": (lambda: decoder("bloom", n_head=2, n_layer=3, attention="eager"), {}, "bloom"),
    "rotary, but an attention of its own": (lambda: decoder("falcon"), {}, "layers of falcon have no attention that"),
    "state space": (lambda: decoder("mamba", attention="eager", state_size=4), {}, "mamba"),
    "convolutions": (lambda: decoder("lfm2", layer_types=LFM_2), {}, "2 layers of lfm2 have no attention that"),
    "one layer apart": (lambda: one_layer_apart(decoder()), {}, "1 layers of llama have no attention that"),
    "own positions": (lambda: positions_counted_along_the_row(decoder()), {}, "hidden states differ by"),
    "no keywords": (lambda: tells_no_keywords(decoder()), {}, "llama hands on no keywords to its attention"),
    "layout dropped": (lambda: layout_dropped(decoder()), {}, "3 layers of llama have no attention that"),
    "a window kept to itself": (
        lambda: window_kept_to_itself(decoder("mistral", sliding_window=3)),
        {},
        "hidden states differ by",
    ),
    "an error": (lambda: failing(decoder()), {}, "cannot be run so: IndexError: a model's own trouble"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_true_refuses_and_says_why(name):
    build, section, reason = TRAPS[name]
    with pytest.raises(SparsePOError, match=rf"^sparsepo\.share_prefix: true is not possible: .*{reason}") as error:
        steps(build().train(), True, **section)
    assert error.value.met_by_all


@pytest.mark.parametrize("name", sorted(TRAPS.keys() - {"dropout", "dropout of an adapter", "jitter of a router"}))
def test_auto_trains_the_plain_way_and_says_why_once(name, capsys):
    build, section, reason = TRAPS[name]
    shared = steps(build().train(), "auto", (PAIRS, LONG), **section)
    told = capsys.readouterr().err
    assert told.count(TWICE) == 1 and reason in told.partition(TWICE)[2] and ONCE not in told
    assert shared == steps(build().train(), False, (PAIRS, LONG), **section)


def test_auto_shares_and_says_so_once(capsys):
    steps(decoder().train(), "auto", (PAIRS, LONG))
    assert capsys.readouterr().err == f"sparsepo.share_prefix: {ONCE}\n"


def test_a_window_is_looked_at_when_a_batch_passes_it(capsys):
    """The first batch says nothing of it: its sequences have eight tokens at most."""
    policy = window_kept_to_itself(decoder("mistral", sliding_window=9))
    plain = steps(window_kept_to_itself(decoder("mistral", sliding_window=9)), False, (PAIRS, LONG, PAIRS))
    assert steps(policy, "auto", (PAIRS, LONG, PAIRS)) == pytest.approx(plain, abs=1e-5)
    told = capsys.readouterr().err
    assert ONCE in told and "hidden states differ" in told.partition(TWICE)[2]


def test_pairs_with_nothing_in_common_run_as_they_come():
    apart = Pairs([(3, 4), (2, 1), (3, 2), (2, 6)])
    assert steps(decoder(), True, (apart,)) == steps(decoder(), False, (apart,))


def test_a_host_that_shares_sequences_over_processes_cannot():
    policy = decoder()
    step = make_step({"share_prefix": True}, policy, policy)
    with pytest.raises(SparsePOError, match="true is not possible: sequences are shared over processes"):
        step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, runner(policy, PAIRS.inputs))


# Packed without flash-attention


@pytest.mark.parametrize("share", ["auto", False])
def test_a_model_that_would_mix_packed_sequences(share):
    """It takes no positions, by which alone its own attention would know where a sequence ends."""
    policy = decoder("gpt2")
    count = lambda module, args, inputs: (args, inputs | {"position_ids": None})  # noqa: E731
    policy.transformer.register_forward_pre_hook(count, with_kwargs=True)
    with pytest.raises(SparsePOError, match=r"^packed with sdpa attention a gpt2 model would mix samples") as error:
        steps(policy, share, packed=True)
    assert error.value.met_by_all and error.value.about == "packing"


@pytest.mark.parametrize(("name", "attention"), [("stablelm", "sdpa"), ("falcon", "sdpa"), ("llama", "eager")])
def test_a_model_whose_own_attention_understands_packing(name, attention):
    """It cannot share, and packs as before."""
    packed = steps(decoder(name, attention=attention), "auto", (PAIRS, LONG), packed=True)
    plain = steps(decoder(name, attention=attention), False, (PAIRS, LONG))
    assert packed == pytest.approx(plain, abs=1e-5)
