"""The objective against hand-worked numbers, and its two limits against DPO and TDPO v1 written out from logits.

Everything that is compared with plain formulas runs in float64, where only the order of sums differs: 1e-10.
"""

import math

import pytest
import torch
from tiny import TWO_PAIRS, VOCABULARY, Pairs

from sparsepo_plugin import (
    OBJECTIVES,
    LossConfig,
    MaskPair,
    ResponseTokens,
    SparsePOError,
    TokenStatistics,
    token_statistics,
)
from sparsepo_plugin.masks import build_masks, refuse_idle_keys
from sparsepo_plugin.objectives import preference_loss
from sparsepo_plugin.objectives.sparsepo import SparsePO


def by_hand() -> tuple[TokenStatistics, MaskPair, ResponseTokens]:
    """One pair: two chosen tokens, one rejected.

    r = (0.5, -1.0 | 2.0), e = (-0.25, -0.5 | -0.1), m_u = (1, 0.5 | 0.2), m_d = (0, 2 | 1):
    a = (0.5, -0.5 + 1.0 | 0.4 + 0.1), so with beta = 2: R = 2·1.0 = 2.0 and 2·0.5 = 1.0.
    """
    tokens = ResponseTokens(*torch.tensor([[3, 4, 5], [1, 2, 5], [0, 0, 1], [0, 1, 0]]), num_pairs=1)
    stats = TokenStatistics(
        torch.tensor([-1.0, -3.0, -0.5]), torch.tensor([-1.5, -2.0, -2.5]), torch.tensor([-0.25, -0.5, -0.1])
    )
    return stats, MaskPair(torch.tensor([1.0, 0.5, 0.2]), torch.tensor([0.0, 2.0, 1.0])), tokens


def softplus(x):
    return math.log1p(math.exp(x))


def test_by_hand():
    out = OBJECTIVES.get("sparsepo")(beta=2.0)(*by_hand())
    assert out.chosen_rewards.tolist() == pytest.approx([2.0])
    assert out.rejected_rewards.tolist() == pytest.approx([1.0])
    assert out.loss.item() == pytest.approx(softplus(-1.0))
    assert out.loss.dim() == 0
    # Mean m_u is 1.7/3, and beta 2.
    assert out.metrics == {"l1_reward": 0.0, "l1_kl": 0.0, "effective_beta": pytest.approx(3.4 / 3)}


@pytest.mark.parametrize(
    ("reduction", "l1_reward", "l1_kl"),
    # Norms: m_u 1.5 and 0.2, m_d 2 and 1; means over tokens 0.75 and 0.2, 1 and 1. The pair's two responses add up.
    [("sum", 1.7, 3.0), ("mean", 0.95, 2.0)],
)
def test_l1_by_hand(reduction, l1_reward, l1_kl):
    stats, masks, tokens = by_hand()
    out = SparsePO(beta=2.0, l1_reward=0.1, l1_kl=0.01, l1_reduction=reduction)(stats, masks, tokens)
    negative = SparsePO(l1_reward=0.1, l1_reduction=reduction)(stats, MaskPair(-masks.reward, masks.kl), tokens)
    assert negative.metrics["l1_reward"] == out.metrics["l1_reward"], "a norm, also of a mask with a sign"
    assert out.loss.item() == pytest.approx(softplus(-1.0) + 0.1 * l1_reward + 0.01 * l1_kl)
    assert out.metrics["l1_reward"].item() == pytest.approx(0.1 * l1_reward)
    assert out.metrics["l1_kl"].item() == pytest.approx(0.01 * l1_kl)


def test_label_smoothing_by_hand():
    out = SparsePO(beta=2.0, label_smoothing=0.1)(*by_hand())
    assert out.loss.item() == pytest.approx(0.9 * softplus(-1.0) + 0.1 * softplus(1.0))


def test_l1_is_averaged_over_pairs():
    tokens = Pairs(TWO_PAIRS).tokens
    ones, zeros = torch.ones(len(tokens)), torch.zeros(len(tokens))
    out = SparsePO(l1_reward=1.0)(TokenStatistics(zeros, zeros, zeros), MaskPair(ones, ones), tokens)
    assert out.metrics["l1_reward"].item() == len(tokens) / 2
    assert out.loss.item() == pytest.approx(math.log(2) + len(tokens) / 2)


def test_outputs_are_detached_and_the_loss_is_not():
    stats, masks, tokens = by_hand()
    for given in (stats.policy_logps, *masks):
        given.requires_grad_()
    out = SparsePO(l1_reward=0.1, l1_kl=0.1)(stats, masks, tokens)
    assert out.loss.requires_grad
    assert not any(x.requires_grad for x in (out.chosen_rewards, out.rejected_rewards, *out.metrics.values()))


def test_no_token_at_all():
    """As on a ring-attention rank that holds none: nothing is divided by their number."""
    stats, masks, tokens = by_hand()
    stats, masks = TokenStatistics(*(x[:0] for x in stats)), MaskPair(*(x[:0] for x in masks))
    out = SparsePO(l1_reward=0.1, l1_reduction="mean")(stats, masks, tokens.shard(0, 0, None))
    assert out.loss.item() == pytest.approx(math.log(2))
    assert out.metrics == {"l1_reward": 0.0, "l1_kl": 0.0, "effective_beta": 0.0}


def test_extreme_margins_stay_finite():
    rewards = torch.tensor([-1e4, 1e4, 1e4, -1e4], requires_grad=True)
    loss = preference_loss(rewards)
    loss.sum().backward()
    assert loss.tolist() == [2e4, 0.0]
    assert torch.isfinite(rewards.grad).all()


# DPO and TDPO from whole logits [S, T, V], every sum written out; no function of the plugin is used.


def log_probabilities(logits, pairs):
    """Per sequence: (log-probabilities of the response rows [n, V], labels [n]) of a right-padded batch."""
    result = []
    for s, (sequence, prompt) in enumerate(zip(pairs.sequences, pairs.prompt_lens, strict=True)):
        rows = logits[s, prompt - 1 : len(sequence) - 1]
        result.append((rows - rows.exp().sum(-1, keepdim=True).log(), sequence[prompt:]))
    return result


def plain_dpo(logits, ref_logits, pairs, beta):
    """Rafailov et al. 2023, Eq. 7."""
    ratio = []
    both = zip(log_probabilities(logits, pairs), log_probabilities(ref_logits, pairs), strict=True)
    for (logps, labels), (ref_logps, _) in both:
        ratio.append(sum(logps[t, y] - ref_logps[t, y] for t, y in enumerate(labels)))
    count = len(ratio) // 2
    return -sum(torch.log(torch.sigmoid(beta * (ratio[p] - ratio[p + count]))) for p in range(count)) / count


def plain_tdpo1(logits, ref_logits, pairs, beta):
    """Zeng et al. 2024, TDPO1: -log σ(u - δ), δ = β·D_SeqKL(y_l; ref‖π) - β·D_SeqKL(y_w; ref‖π)."""
    ratio, sequence_kl = [], []
    both = zip(log_probabilities(logits, pairs), log_probabilities(ref_logits, pairs), strict=True)
    for (logps, labels), (ref_logps, _) in both:
        ratio.append(sum(logps[t, y] - ref_logps[t, y] for t, y in enumerate(labels)))
        sequence_kl.append((ref_logps.exp() * (ref_logps - logps)).sum())
    count, loss = len(ratio) // 2, 0
    for p in range(count):
        u = beta * (ratio[p] - ratio[p + count])
        delta = beta * sequence_kl[p + count] - beta * sequence_kl[p]
        loss = loss - torch.log(torch.sigmoid(u - delta))
    return loss / count


def random_models(width=6):
    """Hidden states and heads of a policy and a reference; the policy's with gradient."""
    g = torch.Generator().manual_seed(0)
    shape = (len(TWO_PAIRS), 9, width)
    hidden, ref_hidden = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    weight, ref_weight = (torch.randn(VOCABULARY, width, generator=g, dtype=torch.float64) for _ in range(2))
    return hidden.requires_grad_(), weight.requires_grad_(), ref_hidden, ref_weight


def test_version_2_by_hand():
    """alpha 0.5: a = (0.5, -0.5 + 0.5 | 0.4 + 0.05), so R = 2·0.5 and 2·0.45."""
    out = SparsePO(beta=2.0, version=2)(*by_hand())
    assert out.chosen_rewards.tolist() == pytest.approx([1.0])
    assert out.rejected_rewards.tolist() == pytest.approx([0.9])
    assert out.advantage.tolist() == pytest.approx([0.5, 0.0, 0.45])


@pytest.mark.parametrize(("expectation", "stopped"), [("reference", slice(0, 2)), ("policy", slice(2, 3))])
def test_version_2_stops_the_policys_gradient_where_the_loss_pays_for_kl(expectation, stopped):
    """By value and gradient against R_c = β·Σ(m_u·r − α·m_d·e), R_r likewise, one side's e held fixed; masks learn."""
    (policy, reference, e), masks, tokens = by_hand()
    e = e if expectation == "reference" else -e
    inputs = [x.clone().requires_grad_() for x in (policy, e, *masks)]
    stats = TokenStatistics(inputs[0], reference, inputs[1])
    ours = SparsePO(beta=2.0, version=2, alpha=0.3, expectation=expectation)(stats, MaskPair(*inputs[2:]), tokens).loss

    plain = [x.clone().requires_grad_() for x in (policy, e, *masks)]
    held = torch.tensor([n in range(3)[stopped] for n in range(3)])
    kl = torch.where(held, plain[1].detach(), plain[1])
    a = plain[2] * (plain[0] - reference) - 0.3 * plain[3] * kl
    expected = -torch.log(torch.sigmoid(2.0 * (a[0] + a[1]) - 2.0 * a[2]))
    torch.testing.assert_close(ours, expected)
    grads, wanted = (torch.autograd.grad(loss, x) for loss, x in ((ours, inputs), (expected, plain)))
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want)
    assert not grads[1][stopped].any()
    assert grads[1].any()
    assert all(grad.any() for grad in grads[2:])


def test_version_2_with_masks_of_1_is_tdpo_v2():
    stats, _, tokens = by_hand()
    ones = torch.ones(3)
    ours = SparsePO(beta=0.7, version=2, alpha=0.3)
    theirs = OBJECTIVES.get("tdpo")(beta=0.7, version=2, alpha=0.3)
    results = []
    for objective in (ours, theirs):
        inputs = [x.clone().requires_grad_() for x in (stats.policy_logps, stats.expected_log_ratio)]
        loss = objective(
            TokenStatistics(inputs[0], stats.reference_logps, inputs[1]), MaskPair(ones, ones), tokens
        ).loss
        results.append((loss, *torch.autograd.grad(loss, inputs)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_alpha_without_version_2_is_refused():
    for given in ({"alpha": 0.3}, {"alpha": 0.3, "version": 1}):
        with pytest.raises(SparsePOError, match="alpha has no effect without version: 2"):
            SparsePO.refuse_idle(given)
    SparsePO.refuse_idle({"alpha": 0.3, "version": 2})


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(("kl", "plain"), [(1.0, plain_tdpo1), (0.0, plain_dpo)], ids=["tdpo", "dpo"])
def test_limits(layout, kl, plain):
    """m_u = m_d = 1 is TDPO v1; m_u = 1, m_d = 0 is DPO: loss and gradients."""
    pairs, beta = Pairs(TWO_PAIRS), 0.7
    hidden, weight, ref_hidden, ref_weight = random_models()
    hidden, ref_hidden = (h[:, : pairs.input_ids.shape[1]] for h in (hidden, ref_hidden))
    if layout == "padded":
        tokens, flat, ref_flat = pairs.tokens, hidden.flatten(0, 1), ref_hidden.flatten(0, 1)
    else:
        real = pairs.attention_mask.bool()
        tokens, flat, ref_flat = pairs.packed_tokens, hidden[real], ref_hidden[real]
    stats = token_statistics(flat[tokens.rows], weight, ref_flat[tokens.rows], ref_weight, tokens.labels, chunk_size=4)
    ones = torch.ones(len(tokens), dtype=torch.float64)
    ours = SparsePO(beta=beta)(stats, MaskPair(ones, kl * ones), tokens).loss
    expected = plain(hidden @ weight.T, ref_hidden @ ref_weight.T, pairs, beta)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)
    for got, want in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("expectation", ["reference", "policy"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equals_the_loop_over_tokens(expectation, label_smoothing, reduction):
    """Eq. 6-8 with any masks, by Python loops; gradients of the policy and of both masks."""
    pairs, beta, l1 = Pairs(TWO_PAIRS), 0.7, (0.03, 0.05)
    tokens = pairs.tokens
    hidden, weight, ref_hidden, ref_weight = random_models()
    width = pairs.input_ids.shape[1]
    rows = hidden[:, :width].flatten(0, 1)[tokens.rows]
    ref_rows = ref_hidden[:, :width].flatten(0, 1)[tokens.rows]
    stats = token_statistics(rows, weight, ref_rows, ref_weight, tokens.labels, expectation=expectation)
    g = torch.Generator().manual_seed(1)
    masks = MaskPair(*(torch.rand(len(tokens), generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)))
    objective = SparsePO(beta, *l1, label_smoothing=label_smoothing, l1_reduction=reduction)
    out = objective(stats, masks, tokens)

    logps, ref_logps = (rows @ weight.T).log_softmax(-1), (ref_rows @ ref_weight.T).log_softmax(-1)
    over = logps if expectation == "policy" else ref_logps
    reward, norms = [0.0] * 4, [[0.0] * 4, [0.0] * 4]
    for n, (y, s) in enumerate(zip(tokens.labels, tokens.sequence, strict=True)):
        r = logps[n, y] - ref_logps[n, y]
        e = sum(over[n, v].exp() * (logps[n, v] - ref_logps[n, v]) for v in range(VOCABULARY))
        reward[s] = reward[s] + beta * (masks.reward[n] * r - masks.kl[n] * e)
        length = TWO_PAIRS[s][1] if reduction == "mean" else 1
        for norm, mask in zip(norms, masks, strict=True):
            norm[s] = norm[s] + mask[n].abs() / length
    loss = 0.0
    for p in range(2):
        margin = reward[p] - reward[p + 2]
        loss = loss - (1 - label_smoothing) * margin.sigmoid().log() - label_smoothing * (-margin).sigmoid().log()
        loss = loss + sum(w * (norm[p] + norm[p + 2]) for w, norm in zip(l1, norms, strict=True))
    loss = loss / 2

    torch.testing.assert_close(out.loss, loss, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(torch.cat([out.chosen_rewards, out.rejected_rewards]), torch.stack(reward).detach())
    inputs = (hidden, weight, *masks)
    ours = torch.autograd.grad(out.loss, inputs, retain_graph=True)  # both start at the same rows
    for got, want in zip(ours, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


def test_unknown_objective():
    with pytest.raises(SparsePOError, match=r"unknown objective 'nope': registered are .*sparsepo"):
        OBJECTIVES.get("nope")


class WithoutNorms(SparsePO):
    """A third party's, which inherits what `regularises` says and leaves those options out."""

    def __init__(self, *, beta: float = 0.1):
        super().__init__(beta=beta)


def test_a_subclass_may_leave_options_out():
    config = LossConfig.from_section({"mask": "uniform"}, f"{__name__}:WithoutNorms", beta=0.5)
    refuse_idle_keys(config, build_masks(config, hidden_size=4, num_layers=2, seed=0))
    assert config.objective == {"beta": 0.5}
