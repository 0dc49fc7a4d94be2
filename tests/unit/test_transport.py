"""The `transport` mask against a plain Sinkhorn iteration, and through the step.

Tolerances: in float64 1e-8, which is how near the mask brings the plan; whole models as in test_methods.py.
"""

from functools import partial

import pytest
import torch
from tiny import TWO_PAIRS, Pairs, decoder, make_step, row_stats, runner

from sparsepo_plugin import ReferenceFeatures, SparsePOError
from sparsepo_plugin.masks.transport import TransportMask

PAIRS = Pairs(TWO_PAIRS)
SECTION = {"mask": "transport", "reg": 0.5, "reg_m": 0.3}


def plain(states, tokens, reg, reg_m):
    """Pair by pair: u = (1/Kv)^f and v = (1/Kᵀu)^f until nothing moves, as the authors' solver has it."""
    weights = torch.zeros(len(tokens), dtype=torch.float64)
    for pair in range(tokens.num_pairs):
        own = [tokens.sequence == pair, tokens.sequence == pair + tokens.num_pairs]
        chosen, rejected = (states[mine].double() for mine in own)
        cost = torch.stack([torch.stack([(a - b).square().sum().sqrt() for b in rejected]) for a in chosen])
        norms = [state.square().sum().sqrt() for state in (*chosen, *rejected)]  # distances to a prompt's rows, at 0
        cost = cost / max(1, cost.max(), *norms)
        kernel, power = (-cost / reg).exp(), reg_m / (reg_m + reg)
        u, v = torch.ones(len(chosen)).double(), torch.ones(len(rejected)).double()
        for _ in range(500):
            u = (1 / (kernel @ v)) ** power
            v = (1 / (kernel.T @ u)) ** power
        plan = u[:, None] * kernel * v
        scale = plan.sum() / min(len(chosen), len(rejected))
        weights[own[0]], weights[own[1]] = plan.sum(1) / scale, plan.sum(0) / scale
    return weights


@pytest.mark.parametrize("size", [0.01, 1, 30], ids=lambda size: f"states of {size}")
@pytest.mark.parametrize(("reg", "reg_m"), [(1.0, 0.2), (0.1, 0.2), (0.05, 2.0)])
def test_equals_a_plain_iteration(reg, reg_m, size):
    states = size * torch.randn(len(PAIRS.tokens), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = TransportMask(reg=reg, reg_m=reg_m)(ReferenceFeatures(policy_hidden=states), PAIRS.tokens)
    torch.testing.assert_close(mask, plain(states, PAIRS.tokens, reg, reg_m), atol=1e-8, rtol=0)


def test_by_hand():
    """In all what the shorter response has; alike where nothing is nearer, and one token is all that there is."""
    tokens = Pairs([(1, 3), (1, 1), (1, 2), (1, 4)]).tokens
    mask = TransportMask()(ReferenceFeatures(policy_hidden=torch.ones(10, 4)), tokens)
    assert mask.dtype == torch.float32
    assert mask.tolist() == pytest.approx([2 / 3] * 3 + [1] + [1] * 2 + [1 / 4] * 4)


def test_what_is_far_from_the_other_response_counts_less():
    tokens = Pairs([(1, 2), (1, 1)]).tokens
    states = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]])
    near, far, only = TransportMask(reg=0.1)(ReferenceFeatures(policy_hidden=states), tokens).tolist()
    assert near > 10 * far and near + far == pytest.approx(1) and only == pytest.approx(1)


def test_without_tokens():
    tokens = PAIRS.tokens.shard(0, 0, None)
    assert TransportMask()(ReferenceFeatures(policy_hidden=torch.zeros(0, 4)), tokens).shape == (0,)


def test_a_share_of_a_sequence_is_refused():
    tokens = PAIRS.tokens.shard(0, 5, group=object())
    with pytest.raises(SparsePOError, match=r"whole responses are compared, which must not be sharded") as caught:
        TransportMask()(ReferenceFeatures(policy_hidden=torch.zeros(len(tokens), 4)), tokens)
    assert caught.value.about == "sharded sequences"


def take(layout="padded"):
    policy, reference = decoder("llama").train(), decoder("llama", seed=1)
    step = make_step(SECTION, policy, reference, loss="weighted_dpo")
    inputs, tokens = (PAIRS.inputs, PAIRS.tokens) if layout == "padded" else (PAIRS.packed_inputs, PAIRS.packed_tokens)
    output = step(partial(step.policy, **inputs), tokens, runner(reference, inputs))
    output.loss.backward()
    return output, {name: parameter.grad for name, parameter in policy.named_parameters()}


def test_whole_step():
    """Whole logits of both models, the policy's states as transformers gives them; the weights are numbers."""
    (output, gradients), policy, tokens = take(), decoder("llama").train(), PAIRS.tokens
    run = policy(**PAIRS.inputs, output_hidden_states=True)
    weights = plain(run.hidden_states[-1].detach().flatten(0, 1)[tokens.rows], tokens, 0.5, 0.3)
    torch.testing.assert_close(output.masks.reward, weights.float(), atol=1e-5, rtol=0)
    logits = run.logits, decoder("llama", seed=1)(**PAIRS.inputs).logits.detach()
    logps, ref_logps = (row_stats(each, tokens).gather(1, tokens.labels[:, None])[:, 0] for each in logits)
    advantage = weights.float() * (logps - ref_logps)
    rewards = torch.stack([0.5 * advantage[tokens.sequence == s].sum() for s in range(4)])
    loss = -(rewards[:2] - rewards[2:]).sigmoid().log().mean()
    loss.backward()
    torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-5)
    for name, parameter in policy.named_parameters():
        scale = max(1.0, parameter.grad.abs().max().item())
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5 * scale, rtol=0, msg=name)


def test_packed_equals_padded():
    (packed, gradients), (padded, expected) = take("packed"), take()
    torch.testing.assert_close(packed.masks.reward, padded.masks.reward, atol=2e-5, rtol=0)
    torch.testing.assert_close(packed.loss, padded.loss, atol=2e-5, rtol=2e-5)
    for name, gradient in gradients.items():
        scale = max(1.0, expected[name].abs().max().item())
        torch.testing.assert_close(gradient, expected[name], atol=2e-5 * scale, rtol=0, msg=name)
