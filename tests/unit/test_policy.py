"""MaskedPolicy: equal roads to the same loss and gradients.

Tolerances, float32: roads that compute the same kernels on the same shapes are equal to 1e-6 relative to the largest
gradient; roads of another shape (packed against padded) to 2e-5, since the random weights here are large.
"""

import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import LAYERS, TWO_PAIRS, WIDTH, Pairs, decoder, make_step, runner

from sparsepo_plugin import LossConfig, MaskedPolicy, ReferenceFeatures, SparsePOError, StepOutput
from sparsepo_plugin.masks import build_masks
from sparsepo_plugin.projection import Projection
from sparsepo_plugin.reference import collect_features

SECTION = {"mask": "learned", "shared": False, "l1_reward": 1e-3, "l1_kl": 2e-3}
PAIRS = Pairs(TWO_PAIRS)


def lora(model, dropout=0.0, seed=0, **options):
    """A LoRA policy whose adapter already does something."""
    torch.manual_seed(seed)
    names = {"gpt2": ["c_attn", "c_proj"]}.get(model.config.model_type, ["q_proj", "v_proj", "down_proj"])
    config = LoraConfig(
        r=2, lora_alpha=4, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM", **options
    )
    policy = get_peft_model(model, config)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return policy


def run(policy, reference, layout="padded", section=SECTION, seed=3) -> tuple[StepOutput, dict[str, torch.Tensor]]:
    """One step, and the gradient of every parameter by its name in the `MaskedPolicy`."""
    step = make_step(section, policy, reference)
    wrapped = step.policy
    inputs, tokens = (PAIRS.inputs, PAIRS.tokens) if layout == "padded" else (PAIRS.packed_inputs, PAIRS.packed_tokens)
    torch.manual_seed(seed)
    out = step(partial(wrapped, **inputs), tokens, runner(reference, inputs))
    out.loss.backward()
    return out, {n: p.grad for n, p in wrapped.named_parameters() if p.requires_grad}


def assert_same(first, second, tolerance=1e-6):
    (out, grads), (other, other_grads) = first, second
    torch.testing.assert_close(out.loss, other.loss, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(out.chosen_rewards, other.chosen_rewards, atol=20 * tolerance, rtol=tolerance)
    assert out.metrics == pytest.approx(other.metrics, rel=20 * tolerance, abs=20 * tolerance)
    assert grads.keys() == other_grads.keys()
    assert any(grad.abs().max() > 1e-3 for grad in grads.values())
    for name, grad in grads.items():
        scale = max(1.0, other_grads[name].abs().max().item())
        torch.testing.assert_close(grad, other_grads[name], atol=tolerance * scale, rtol=0, msg=name)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_packed_equals_padded(name):
    results = [run(decoder(name), decoder(name, seed=1), layout) for layout in ("padded", "packed")]
    assert_same(*results, tolerance=2e-5)


def test_gradients_equal_those_of_the_plain_road():
    """Whole logits of both models, autograd throughout, the learned mask's own forward."""
    policy, reference = decoder("llama"), decoder("llama", seed=1)
    plain_policy = copy.deepcopy(policy)
    out, grads = run(policy, reference, section={"mask": "uniform", "value": 0.6})
    tokens = PAIRS.tokens
    with torch.no_grad():
        ref_logps = reference(**PAIRS.inputs).logits.flatten(0, 1)[tokens.rows].log_softmax(-1)
    logps = plain_policy(**PAIRS.inputs).logits.flatten(0, 1)[tokens.rows].log_softmax(-1)
    ratio = (logps - ref_logps).gather(1, tokens.labels[:, None])[:, 0]
    advantage = 0.6 * (ratio - (ref_logps.exp() * (logps - ref_logps)).sum(1))
    reward = torch.stack([0.5 * advantage[tokens.sequence == s].sum() for s in range(4)])
    loss = -(reward[:2] - reward[2:]).sigmoid().log().mean()
    loss.backward()
    torch.testing.assert_close(out.loss, loss, atol=1e-5, rtol=1e-5)
    for name, parameter in plain_policy.named_parameters():
        scale = max(1.0, parameter.grad.abs().max().item())
        torch.testing.assert_close(grads[f"policy.{name}"], parameter.grad, atol=1e-5 * scale, rtol=0, msg=name)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing(name, reentrant):
    plain, checkpointed = decoder(name).train(), decoder(name).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(*(run(policy, decoder(name, seed=1)) for policy in (plain, checkpointed)))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings(tied):
    """The gradient of a tied weight is the sum of those of the same numbers untied."""
    policy = decoder("llama", tie_word_embeddings=tied)
    if not tied:
        policy.lm_head.weight.data = policy.model.embed_tokens.weight.data.clone()
    assert (policy.lm_head.weight is policy.model.embed_tokens.weight) == tied
    _, grads = run(policy, decoder("llama", seed=1))
    own = decoder("llama", tie_word_embeddings=True)
    _, expected = run(own, decoder("llama", seed=1))
    got = grads["policy.model.embed_tokens.weight"]
    if not tied:
        got = got + grads["policy.lm_head.weight"]
    torch.testing.assert_close(got, expected["policy.model.embed_tokens.weight"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["off", "not reentrant", "reentrant"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_shared_reference_equals_a_separate_one(name, dropout, checkpointing, layout):
    """With the adapter off and dropout off, in training mode; the policy's own dropout is drawn from the same seed."""
    results = []
    for reference in (decoder(name), None):
        policy = lora(decoder(name), dropout).train()
        if checkpointing is not None:
            policy.enable_input_require_grads()
            policy.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        results.append(run(policy, reference, layout))
        assert policy.training
        assert all(module.training for module in policy.modules())
    assert_same(*results)
    assert all("lora" in key or key.startswith("masks") for key in results[0][1])


@pytest.mark.parametrize(
    ("name", "dropout"),
    [("llama", {"attention_dropout": 0.3}), ("gpt2", {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3})],
)
def test_shared_reference_has_no_dropout_of_the_base_model_either(name, dropout):
    """GPT-2 has 0.1 by default; with the adapter off it would still be drawn."""
    reference, section = decoder(name, **dropout), {**SECTION, "disable_dropout": False}
    assert_same(*(run(lora(decoder(name, **dropout)).train(), other, section=section) for other in (reference, None)))


DROPOUT = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "gptj": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "gpt_bigcode": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "gpt_neox": {"attention_dropout": 0.3, "hidden_dropout": 0.3},
    "llama": {"attention_dropout": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3, "ffn_dim": 24, "word_embed_proj_dim": WIDTH},
    "falcon": {"attention_dropout": 0.3, "hidden_dropout": 0.3},
    "bloom": {"hidden_dropout": 0.3, "attention_dropout": 0.3, "n_layer": LAYERS, "n_head": 2},
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", DROPOUT)
def test_a_policy_has_no_dropout_unless_asked(name, attention):
    """Policy = reference in training mode: the KL is that of equal models, and with dropout it is not."""
    if name in ("gptj", "bloom") and attention == "sdpa":
        attention = "eager"  # transformers has no other for these
    kl = {}
    for disable in (True, False):
        policy, reference = (decoder(name, attention=attention, **DROPOUT[name]) for _ in range(2))
        config = copy.deepcopy(policy.config)
        out, _ = run(policy.train(), reference, section={"mask": "uniform", "disable_dropout": disable})
        assert policy.config.to_dict() == config.to_dict(), "it is saved with the model"
        kl[disable] = out.metrics["token_kl_chosen"]
    assert abs(kl[True]) < 1e-6
    assert kl[False] > 1e-3


def test_numbers_that_are_no_rates_stay():
    policy = decoder("gpt2", **DROPOUT["gpt2"])
    block = policy.transformer.h[0]
    block.dropped_heads, block.drops, block.drop_rate = 3, True, 0.3
    make_step({}, policy, decoder("gpt2"))
    assert (block.dropped_heads, block.drops, block.drop_rate) == (3, True, 0.0)


def test_an_adapters_dropout_stays():
    """It has a flag of its own."""
    policy = lora(decoder("gpt2", **DROPOUT["gpt2"]), dropout=0.4)
    make_step({}, policy, None)
    rates = {("lora" in name, module.p) for name, module in policy.named_modules() if type(module) is torch.nn.Dropout}
    assert rates == {(True, 0.4), (False, 0.0)}


def test_shared_reference_needs_the_same_masks_input():
    """The activation mask hooks PEFT's modules as well as a plain model's."""
    section = {"mask": "activation"}
    results = [run(lora(decoder("llama")), reference, section=section) for reference in (decoder("llama"), None)]
    assert_same(*results)


def test_shared_reference_without_adapter_is_refused():
    with pytest.raises(SparsePOError, match=r"without a reference model the policy needs a LoRA adapter") as caught:
        make_step({}, decoder("llama"), None)
    assert caught.value.about == "shared reference"


def test_adapter_on_the_head_is_refused():
    model = decoder("llama")
    policy = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(SparsePOError, match=r"vocabulary head of .* a LoRA adapter or a quantised weight"):
        run(policy, None)


def test_modes_inside_the_policy_are_restored():
    """A part that the host keeps in evaluation mode stays there after the shared reference's forward."""
    policy = lora(decoder("llama")).train()
    frozen = policy.get_input_embeddings().eval()
    run(policy, None)
    assert policy.training
    assert not frozen.training


def test_reference_gets_no_gradient_and_is_no_parameter():
    policy, reference = decoder("llama"), decoder("llama", seed=1)
    before = copy.deepcopy(reference.state_dict())
    run(policy, reference)
    assert all(parameter.grad is None for parameter in reference.parameters())
    assert all(torch.equal(before[key], value) for key, value in reference.state_dict().items())
    wrapped = make_step({}, policy, reference).policy
    own = {id(parameter) for parameter in wrapped.parameters()}
    assert not own & {id(parameter) for parameter in reference.parameters()}
    assert [id(p) for p in wrapped.reference_parameters()] == [id(reference.lm_head.weight)]


def test_a_reference_that_serves_the_masks_alone_keeps_its_head():
    """SePO's: nothing of its head is read, so ZeRO-3 must not gather it with the policy's."""
    reference = decoder("llama", seed=1)
    wrapped = make_step({"oracle": "a"}, decoder("llama"), reference, loss="sepo").policy
    assert wrapped.reference_parameters() == []


def test_chunk_size_reaches_the_projection(monkeypatch):
    rows = []
    project = Projection._project

    def count(self, number):
        logits = project(self, number)
        rows.append(len(logits))
        return logits

    monkeypatch.setattr(Projection, "_project", count)
    run(decoder("llama"), decoder("llama", seed=1), section={**SECTION, "chunk_size": 5})
    assert set(rows) == {5, len(PAIRS.tokens) % 5}


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_offloading_reaches_whoever_reads_the_reference(shared, offload, monkeypatch):
    asked = []

    def collect(runner, tokens, wanted, offload=False):
        asked.append(offload)
        return collect_features(runner, tokens, wanted, offload)

    for module in ("reference", "policy"):
        monkeypatch.setattr(f"sparsepo_plugin.{module}.collect_features", collect)
    section = {**SECTION, "offload_features": offload}
    run(lora(decoder("llama")), None if shared else decoder("llama"), section=section)
    assert asked == [offload]


def test_every_parameter_that_trains_gets_a_gradient():
    _, grads = run(decoder("llama"), decoder("llama", seed=1))
    assert all(grad is not None for grad in grads.values())
    assert {name.partition(".")[0] for name in grads} == {"policy", "masks"}
    assert all(grad.abs().max() > 0 for name, grad in grads.items() if name.startswith("masks"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_response_tokens_still_run_both_heads(name):
    """A ring-attention rank may hold none; a parameter without gradient would leave the other ranks waiting."""
    policy, reference = decoder(name), decoder(name, seed=1)
    wrapped = make_step(SECTION, policy, reference).policy
    tokens = PAIRS.tokens.shard(0, 0, None)
    features = ReferenceFeatures(torch.zeros(LAYERS, 0, WIDTH), None, torch.zeros(0, WIDTH))
    out = wrapped(**PAIRS.inputs, tokens=tokens, features=features)
    assert out["statistics"].shape == (3, 0)
    (out["statistics"].sum() + out["masks"].sum()).backward()
    for parameter in wrapped.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() == 0


def test_experts_pass_on_their_balancing_loss():
    policy = decoder("mixtral").train()
    expected = copy.deepcopy(policy)(**PAIRS.inputs).aux_loss
    out, _ = run(policy, decoder("mixtral", seed=1))
    torch.testing.assert_close(out.aux_loss, expected)
    assert out.aux_loss.requires_grad
    assert run(decoder("llama"), decoder("llama", seed=1))[0].aux_loss is None


def wrap(section=SECTION, policy=None):
    policy = policy or decoder("llama")
    return make_step(section, policy, decoder("llama", seed=1)).policy


def test_masks_have_an_optimizer_group_of_their_own():
    wrapped = wrap({**SECTION, "mask_lr": 0.02, "mask_weight_decay": 0.3})
    own = wrapped.mask_group()
    assert {id(p) for p in own.pop("params")} == {id(p) for p in wrapped.masks.parameters()}
    assert own == {"lr": 0.02, "weight_decay": 0.3}


def test_mask_lr_of_the_policy():
    assert wrap({**SECTION, "mask_lr": "policy"}).mask_group().keys() == {"params", "weight_decay"}


def test_a_frozen_part_of_a_mask_is_not_in_the_group():
    wrapped = wrap()
    frozen = wrapped.masks.reward.weight.requires_grad_(False)
    assert {id(p) for p in wrapped.mask_group()["params"]} == {id(p) for p in wrapped.masks.parameters()} - {
        id(frozen)
    }


def test_masks_that_learn_nothing_have_no_group():
    assert wrap({"mask": "uniform"}).mask_group() is None


def test_state_dict_round_trip():
    """The engine's checkpoint is this state dict: masks inside, the reference not."""
    wrapped, other = wrap(), wrap(policy=decoder("llama", seed=5))
    other.load_state_dict(wrapped.state_dict())
    for key, value in wrapped.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    assert {key.partition(".")[0] for key in wrapped.state_dict()} == {"policy", "masks"}


def test_the_seed_is_that_of_the_masks():
    config = LossConfig.from_section(SECTION)
    own = MaskedPolicy(decoder("llama"), decoder("llama", seed=1), config, seed=7).masks
    expected = build_masks(config, WIDTH, LAYERS, seed=7)
    assert torch.equal(own.kl.weight, expected.kl.weight)
    assert not torch.equal(own.kl.weight, build_masks(config, WIDTH, LAYERS, seed=42).kl.weight)


def test_trained_masks_can_be_given():
    trained = wrap().masks
    config = LossConfig.from_section(SECTION)
    wrapped = MaskedPolicy(decoder("llama"), decoder("llama", seed=1), config, masks=trained)
    assert wrapped.masks is trained
