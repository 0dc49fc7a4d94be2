"""Each baseline objective and its mask, by the equations of the cited papers written out from whole logits.

Tolerances: plain formulas run in float64, where only the order of sums differs, 1e-10; the `decay` mask is float32,
1e-6. Whole models run in float32: 1e-5, and 2e-5 between layouts, relative to the largest gradient.
"""

import math
from functools import partial
from itertools import zip_longest

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import TWO_PAIRS, VOCABULARY, WIDTH, Pairs, decoder, describe, make_step

from sparsepo_plugin import (
    OBJECTIVES,
    LossConfig,
    MaskPair,
    ReferenceFeatures,
    ResponseTokens,
    Runner,
    SparsePOError,
    TokenStatistics,
    load_masks,
    save_masks,
    token_statistics,
)
from sparsepo_plugin.masks import build_masks
from sparsepo_plugin.masks.confidence import ConfidenceMask
from sparsepo_plugin.masks.decay import DecayMask
from sparsepo_plugin.masks.diff import DiffMask
from sparsepo_plugin.masks.length import LengthMask
from sparsepo_plugin.masks.log_ratio import LogRatioMask
from sparsepo_plugin.masks.oracle_reward import OracleRewardMask
from sparsepo_plugin.masks.random import RandomMask
from sparsepo_plugin.masks.sampled import SampledMask
from sparsepo_plugin.masks.selected import SelectedMask
from sparsepo_plugin.projection import Projection

PAIRS, BETA = Pairs(TWO_PAIRS), 0.7
ORACLE = {"oracle": "a-folder"}

# Every objective with options that are not its defaults, and one entry more where a default takes another road.
METHODS = {
    "dpo": ("dpo", {}),
    "tdpo1": ("tdpo", {"version": 1}),
    "tdpo2": ("tdpo", {"alpha": 0.3}),
    "dpop": ("dpop", {"lambda": 3}),
    "simpo": ("simpo", {"beta": 2.5, "gamma": 0.3}),
    "d2po": ("d2po", {"gamma": 0.6}),
    "weighted": ("weighted_dpo", {"mask": "decay", "gamma": 0.6}),
    "ld_dpo": ("weighted_dpo", {"mask": "length", "alpha": 0.25}),
    "tgdpo": ("weighted_dpo", {"mask": "oracle_reward", **ORACLE, "scale": 0.2}),
    "confpo": ("confpo", {"beta": 1.2, "gamma": 0.3}),
    "selective": ("selective", {"k": 0.5}),
    "wpo": ("wpo", {}),
    "sepo": ("sepo", {**ORACLE, "k": 0.4, "gamma": 1.5}),
    "ln_dpo": ("ln_dpo", {"beta": 3}),
    "adpo": ("adpo", {"segments": 3}),
    "adpo_token": ("adpo", {}),
    "alphapo": ("alphapo", {"beta": 1.5, "gamma": 0.3, "alpha": 0.2}),
}
every_method = pytest.mark.parametrize("method", METHODS)


# The equations. A sequence is (log π, log π_ref, log π_oracle, labels): three [n, V] and one [n].


def sequences(policy, reference, oracle, pairs):
    """The 2P responses of right-padded logits [S, T, V], chosen first."""
    result = []
    for s, (sequence, prompt) in enumerate(zip(pairs.sequences, pairs.prompt_lens, strict=True)):
        rows = slice(prompt - 1, len(sequence) - 1)
        logps = [model[s, rows] - model[s, rows].exp().sum(-1, keepdim=True).log() for model in (policy, reference)]
        logps.append(oracle[s, rows].log_softmax(-1))
        result.append((*logps, sequence[prompt:]))
    return result


def log_ratio(sequence):
    logps, ref_logps, _, labels = sequence
    return [logps[t, y] - ref_logps[t, y] for t, y in enumerate(labels)]


def sequence_kl(sequence):
    """D_SeqKL(x, y; π_ref‖π)."""
    logps, ref_logps, *_ = sequence
    return (ref_logps.exp() * (ref_logps - logps)).sum()


def dpo(chosen, rejected):
    """Rafailov et al. 2023, Eq. 7."""
    return BETA * sum(log_ratio(chosen)) - BETA * sum(log_ratio(rejected))


def tdpo1(chosen, rejected):
    """Zeng et al. 2024, L_TDPO₁: u − δ."""
    delta = BETA * sequence_kl(rejected) - BETA * sequence_kl(chosen)
    return dpo(chosen, rejected) - delta


def tdpo2(chosen, rejected):
    """Zeng et al. 2024, L_TDPO₂: u − α·δ₂, no gradient through the chosen KL."""
    delta = BETA * sequence_kl(rejected) - (BETA * sequence_kl(chosen)).detach()
    return dpo(chosen, rejected) - 0.3 * delta


def dpop(chosen, rejected):
    """Pal et al. 2024, Eq. 3, λ inside β."""
    penalty = torch.clamp(-sum(log_ratio(chosen)), min=0)
    return BETA * (sum(log_ratio(chosen)) - sum(log_ratio(rejected)) - 3 * penalty)


def simpo(chosen, rejected):
    """Meng et al. 2024, Eq. 6."""
    mean = [sum(logps[t, y] for t, y in enumerate(labels)) / len(labels) for logps, *_, labels in (chosen, rejected)]
    return 2.5 * mean[0] - 2.5 * mean[1] - 0.3


def d2po(chosen, rejected):
    """Shao et al. 2025: DPO's sums with γ^t inside, t from 0."""
    reward = [sum(BETA * 0.6**t * r for t, r in enumerate(log_ratio(response))) for response in (chosen, rejected)]
    return reward[0] - reward[1]


weighted = d2po  # by a mask that the YAML chooses


def ld_dpo(chosen, rejected):
    """Liu et al. 2024: α on what is past the shorter length."""
    shared = min(len(chosen[-1]), len(rejected[-1]))
    ratios = [log_ratio(response) for response in (chosen, rejected)]
    reward = [BETA * (sum(ratio[:shared]) + 0.25 * sum(ratio[shared:])) for ratio in ratios]
    return reward[0] - reward[1]


def tgdpo(chosen, rejected):
    """Zhu et al. 2025: β·(1 ± α·β·q_t), q_t the oracle's log-ratio to the reference; αβ is 0.2."""
    reward = []
    for (_, ref_logps, oracle, labels), sign, response in ((chosen, 1, chosen), (rejected, -1, rejected)):
        guide = [1 + sign * 0.2 * (oracle[t, y] - ref_logps[t, y]) for t, y in enumerate(labels)]
        reward.append(sum(BETA * weight * r for weight, r in zip(guide, log_ratio(response), strict=True)))
    return reward[0] - reward[1]


def below_average(response):
    """log π of the tokens that are less likely than the mean of their probabilities."""
    logps, *_, labels = response
    written = [logps[t, y] for t, y in enumerate(labels)]
    mean = sum(logp.exp() for logp in written) / len(written)
    return [logp for logp in written if logp.exp() < mean]


def confpo(chosen, rejected):
    """Yoon et al. 2025, as the authors' trainer has it: SimPO's means, of selected tokens alone."""
    selected = [below_average(response) for response in (chosen, rejected)]
    means = [sum(logps) / max(len(logps), 1) for logps in selected]
    return torch.as_tensor(1.2 * means[0] - 1.2 * means[1] - 0.3)


def confpo_weight(chosen, rejected):
    """Of a pair, whose loss is 0 where nothing is selected."""
    return float(all(map(below_average, (chosen, rejected))))


def selective(chosen, rejected):
    """Dong 2025, as the author's trainer has it: DPO on tokens whose score is at least the quantile of all scores."""
    rewards = []
    for response, sign in ((chosen, -1), (rejected, 1)):
        score = sign * torch.stack(log_ratio(response)).detach().double()
        kept = score >= torch.quantile(score, 0.5)
        rewards.append(BETA * sum(r for r, keep in zip(log_ratio(response), kept, strict=True) if keep))
    return rewards[0] - rewards[1]


wpo = dpo


def wpo_weight(chosen, rejected):
    """Zhou et al. 2024, as the authors' trainer has it: min(1, exp(u_w + u_l)), u a mean of log π(y) − log Σπ²."""
    total = 0.0
    for logps, *_, labels in (chosen, rejected):
        written = [logps[t, y] - logps[t].exp().square().sum().log() for t, y in enumerate(labels)]
        total = total + sum(written).detach() / len(written)
    return total.exp().clamp(max=1)


def sepo(chosen, rejected):
    """Yang et al. 2024: the share k of highest oracle reward in chosen, of lowest in rejected; means of log π."""
    means = []
    for (logps, ref_logps, oracle, labels), best_first in ((chosen, True), (rejected, False)):
        score = [(oracle[t, y] - ref_logps[t, y]).item() for t, y in enumerate(labels)]
        ranked = sorted(range(len(labels)), key=score.__getitem__, reverse=best_first)
        keep = ranked[: max(2 * len(labels) // 5, 1)]  # ⌊0.4·n⌋ in whole numbers, one at least
        means.append(sum(logps[t, labels[t]] for t in keep) / len(keep))
    return 1.5 * means[0] - 1.5 * means[1]


def ln_dpo(chosen, rejected):
    """Lambert et al. 2024: DPO's sums divided by the length of their response."""
    mean = [sum(log_ratio(response)) / len(response[-1]) for response in (chosen, rejected)]
    return 3 * mean[0] - 3 * mean[1]


def adpo(chosen, rejected):
    """Oi et al. 2026: a term for each of three segments, or as many as the shorter response has tokens."""
    number = min(3, len(chosen[-1]), len(rejected[-1]))
    parts = []
    for response in (chosen, rejected):
        ratio = log_ratio(response)
        parts.append([[r for t, r in enumerate(ratio) if t * number // len(ratio) == i] for i in range(number)])
    assert all(part for side in parts for part in side)
    return [BETA * sum(one) - BETA * sum(other) for one, other in zip(*parts, strict=True)]


def adpo_token(chosen, rejected):
    """A term for each position; past its end a response adds nothing."""
    pairs = zip_longest(log_ratio(chosen), log_ratio(rejected), fillvalue=0)
    return [BETA * one - BETA * other for one, other in pairs]


def alphapo(chosen, rejected):
    """Gupta et al. 2025: (1 − p^(−α))/α of the mean probability."""
    reward = []
    for logps, *_, labels in (chosen, rejected):
        p = (sum(logps[t, y] for t, y in enumerate(labels)) / len(labels)).exp()
        reward.append(1.5 * (1 - p**-0.2) / 0.2)
    return reward[0] - reward[1] - 0.3


def plain_loss(method, policy, reference, oracle, label_smoothing, pairs=PAIRS):
    """−(1 − s)·log σ(d) − s·log σ(−d), summed over the d of a pair where it has several, mean over pairs."""
    all_sequences = sequences(policy, reference, oracle, pairs)
    count, loss = len(all_sequences) // 2, 0.0
    for p in range(count):
        pair = all_sequences[p], all_sequences[p + count]
        terms, weigh = globals()[method](*pair), globals().get(f"{method}_weight", lambda *pair: 1.0)
        for d in terms if isinstance(terms, list) else [terms]:
            term = (1 - label_smoothing) * d.sigmoid().log() + label_smoothing * (-d).sigmoid().log()
            loss = loss - weigh(*pair) * term
    return loss / count


class Heads:
    """Hidden states [S, T, d] and vocabulary heads of a policy, a reference and an oracle, in float64."""

    def __init__(self, seed=0, width=6):
        g = torch.Generator().manual_seed(seed)
        shape = (*PAIRS.input_ids.shape, width)
        self.hidden = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3)]
        self.weight = [torch.randn(VOCABULARY, width, generator=g, dtype=torch.float64) for _ in range(3)]
        self.trained = (self.hidden[0].requires_grad_(), self.weight[0].requires_grad_())

    @property
    def logits(self):
        return [hidden @ weight.T for hidden, weight in zip(self.hidden, self.weight, strict=True)]

    def rows(self, model):
        return self.hidden[model].flatten(0, 1)[PAIRS.tokens.rows]


def read_by(objective):
    return {"expectation": objective.expectation, "collision": objective.needs_collision}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@every_method
def test_equals_the_paper(method, label_smoothing, seed):
    """Loss, and gradients of hidden states and vocabulary head, from the statistics that the objective declares."""
    loss, section = METHODS[method]
    config = LossConfig.from_section(section, loss, beta=BETA, label_smoothing=label_smoothing)
    objective = config.build_objective()
    heads, tokens = Heads(seed), PAIRS.tokens
    reference = (heads.rows(1), heads.weight[1]) if objective.needs_reference else (None, None)
    stats = token_statistics(
        heads.rows(0), heads.weight[0], *reference, tokens.labels, chunk_size=4, **read_by(objective)
    )
    logps = [logits.flatten(0, 1)[tokens.rows].log_softmax(-1) for logits in heads.logits]
    _, ref_logps, oracle_logps = (row.gather(1, tokens.labels[:, None])[:, 0] for row in logps)
    head = build_masks(config, WIDTH, 1, seed=0)
    read = ReferenceFeatures(logps=ref_logps, oracle_logps=oracle_logps, policy_logps=stats.policy_logps.detach())
    masks = head and head(read, tokens)
    ours = objective(stats, masks, tokens).loss
    plain = plain_loss(method, *heads.logits, label_smoothing)
    tolerance = 1e-6 if method in ("d2po", "weighted") else 1e-10
    torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)
    got = torch.autograd.grad(ours, heads.trained)
    for mine, expected in zip(got, torch.autograd.grad(plain, heads.trained), strict=True):
        torch.testing.assert_close(mine, expected, atol=tolerance, rtol=tolerance)


def test_both_sides_of_the_dpop_penalty_were_seen():
    """What makes the seeds above a test of max(0, ·)."""
    margins = []
    for seed in range(3):
        responses = sequences(*Heads(seed).logits, PAIRS)
        margins += [sum(log_ratio(response)).item() for response in responses[:2]]
    assert min(margins) < 0 < max(margins)


def test_wpo_on_both_sides_of_the_cap():
    """With policies that are less sure of themselves, which words drawn at random suit better."""
    weights, tokens = [], PAIRS.tokens
    for seed in range(6):
        heads = Heads(seed)
        heads.hidden[0].data *= 0.3
        rows = heads.rows(0), heads.weight[0], heads.rows(1), heads.weight[1]
        stats = token_statistics(*rows, tokens.labels, expectation=None, collision=True)
        ours, plain = OBJECTIVES.get("wpo")(beta=BETA)(stats, None, tokens), plain_loss("wpo", *heads.logits, 0.0)
        torch.testing.assert_close(ours.loss, plain, atol=1e-10, rtol=1e-10)
        got, expected = (torch.autograd.grad(loss, heads.trained) for loss in (ours.loss, plain))
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
        pairs = sequences(*heads.logits, PAIRS)
        weights.append([wpo_weight(pairs[p], pairs[p + 2]).item() for p in (0, 1)])
        assert ours.metrics["pair_weight"].item() == pytest.approx(sum(weights[-1]) / 2)
    assert min(map(min, weights)) < 0.9 and max(map(max, weights)) == 1


def test_wpo_by_hand():
    """Two words of 0.8 and 0.2: Σπ² is 0.68, a word weighs 0.8/0.68 or 0.2/0.68, and a pair 1 at most."""
    tokens, words = responses([1], [1]), torch.tensor([[0.8, 0.2]] * 2).log()
    for labels, weight in (([1, 1], (0.2 / 0.68) ** 2), ([0, 1], 0.8 * 0.2 / 0.68**2), ([0, 0], 1)):
        models = words, torch.eye(2), torch.zeros(2, 2), torch.eye(2)
        stats = token_statistics(*models, torch.tensor(labels), expectation=None, collision=True)
        output = OBJECTIVES.get("wpo")(beta=BETA)(stats, None, tokens)
        d = BETA * (stats.policy_logps[0] - stats.policy_logps[1]).item()
        assert output.loss.item() == pytest.approx(weight * math.log(1 + math.exp(-d)), rel=1e-6)
        assert output.metrics["pair_weight"].item() == pytest.approx(weight, rel=1e-6)


def test_rewards_are_those_of_the_loss():
    """The margin of SimPO belongs to the loss; the rewards that are logged leave it out, as its authors do."""
    heads, tokens = Heads(), PAIRS.tokens
    stats = token_statistics(heads.rows(0), heads.weight[0], None, None, tokens.labels, expectation=None)
    out = OBJECTIVES.get("simpo")(beta=2.5, gamma=0.3)(stats, None, tokens)
    means = [
        2.5 * sum(logps[t, y] for t, y in enumerate(labels)) / len(labels)
        for logps, *_, labels in sequences(*heads.logits, PAIRS)
    ]
    torch.testing.assert_close(torch.cat([out.chosen_rewards, out.rejected_rewards]), torch.stack(means).detach())
    assert not out.chosen_rewards.requires_grad


def loss_of(loss, section, **from_host):
    heads, tokens = Heads(), PAIRS.tokens
    stats = token_statistics(heads.rows(0), heads.weight[0], heads.rows(1), heads.weight[1], tokens.labels)
    return LossConfig.from_section(section, loss, **from_host).build_objective()(stats, None, tokens)


def test_one_segment_is_dpo():
    one, dpo = loss_of("adpo", {"segments": 1}, beta=BETA), loss_of("dpo", {}, beta=BETA)
    torch.testing.assert_close(one.loss, dpo.loss, atol=1e-12, rtol=0)


def test_rewards_of_segments_are_those_of_dpo():
    """What is logged is the sum over a response, however many terms the loss has."""
    many, dpo = loss_of("adpo", {"segments": 3}, beta=BETA), loss_of("dpo", {}, beta=BETA)
    for side in ("chosen_rewards", "rejected_rewards", "advantage"):
        torch.testing.assert_close(getattr(many, side), getattr(dpo, side), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("alpha", "tolerance"), [(0, 1e-12), (1e-9, 1e-7)])
def test_alphapo_of_no_alpha_is_simpo(alpha, tolerance):
    """The next term of the expansion is α·mean²/2, of order α; without expm1 rounding would make it 1e-7 and more."""
    ours = loss_of("alphapo", {"alpha": alpha, "beta": 2, "gamma": 0.5})
    torch.testing.assert_close(ours.loss, loss_of("simpo", {}).loss, atol=tolerance, rtol=0)


# Through the step, on tiny models.


class Run:
    """One step of a method on tiny Llamas; `gradients` are of the policy, by name."""

    def __init__(self, method, policy=None, separate=True, layout="padded", **changes):
        loss, section = METHODS[method]
        self.policy, self.calls = policy or decoder("llama").train(), []
        reads = LossConfig.from_section(section, loss).uses_reference
        self.reference = decoder("llama", seed=1) if separate and reads else None
        self.oracle = decoder("llama", seed=2) if "oracle" in section else None
        options = {"loss": loss, "beta": BETA, "label_smoothing": 0.1}
        self.step = make_step({**section, **changes}, self.policy, self.reference, **options)
        self.tokens = PAIRS.tokens if layout == "padded" else PAIRS.packed_tokens
        inputs = PAIRS.inputs if layout == "padded" else PAIRS.packed_inputs
        self.output = self.step(
            partial(self.call, "policy", self.step.policy, inputs),
            self.tokens,
            self.reference and Runner(self.reference, partial(self.call, "reference", self.reference, inputs)),
            self.oracle and Runner(self.oracle, partial(self.call, "oracle", self.oracle, inputs)),
        )
        self.output.loss.backward()
        self.gradients = {n: p.grad for n, p in self.policy.named_parameters() if p.requires_grad}

    def call(self, name, model, inputs, **extra):
        """Run a model, noting who ran and how many hooks it ran with."""
        self.calls.append((name, sum(len(module._forward_hooks) for module in model.modules())))
        result = model(**inputs, **extra)
        if name == "policy":
            self.statistics, self.features = result["statistics"], extra["features"]
        return result


def assert_same(one: Run, other: Run, tolerance: float):
    torch.testing.assert_close(one.output.loss, other.output.loss, atol=tolerance, rtol=tolerance)
    assert one.output.metrics == pytest.approx(other.output.metrics, rel=20 * tolerance, abs=20 * tolerance)
    assert one.gradients.keys() == other.gradients.keys()
    assert max(gradient.abs().max() for gradient in one.gradients.values()) > 1e-3
    for name, gradient in one.gradients.items():
        scale = max(1.0, other.gradients[name].abs().max().item())
        torch.testing.assert_close(gradient, other.gradients[name], atol=tolerance * scale, rtol=0, msg=name)


@every_method
def test_whole_step_equals_the_paper(method):
    """Loss and gradient of every parameter of the policy, against autograd through whole logits of three models."""
    run, policy = Run(method), decoder("llama").train()
    with torch.no_grad():
        others = [decoder("llama", seed=seed)(**PAIRS.inputs).logits for seed in (1, 2)]
    plain = plain_loss(method, policy(**PAIRS.inputs).logits, *others, label_smoothing=0.1)
    plain.backward()
    torch.testing.assert_close(run.output.loss, plain, atol=1e-5, rtol=1e-5)
    for name, parameter in policy.named_parameters():
        scale = max(1.0, parameter.grad.abs().max().item())
        torch.testing.assert_close(run.gradients[name], parameter.grad, atol=1e-5 * scale, rtol=0, msg=name)


@every_method
def test_packed_equals_padded(method):
    assert_same(Run(method, layout="packed"), Run(method), tolerance=2e-5)


@every_method
def test_any_chunk_size_equals_any_other(method):
    assert_same(Run(method, chunk_size=3), Run(method), tolerance=1e-5)


def lora(dropout=0.3):
    """A LoRA policy around the weights of the separate reference, whose adapter already does something."""
    torch.manual_seed(0)
    options = {"r": 2, "lora_alpha": 4, "lora_dropout": dropout, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    policy = get_peft_model(decoder("llama", seed=1), LoraConfig(**options, task_type="CAUSAL_LM")).train()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    torch.manual_seed(3)  # of the policy's own dropout
    return policy


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("simpo", "alphapo", "confpo")])
def test_shared_reference_equals_a_separate_one(method, layout):
    shared = Run(method, lora(), separate=False, layout=layout)
    assert "reference" not in dict(shared.calls)
    assert_same(shared, Run(method, lora(), layout=layout), tolerance=1e-5)


def test_without_a_reference_the_adapter_stays_on(monkeypatch):
    policy = lora()
    monkeypatch.setattr(policy, "disable_adapter", lambda: pytest.fail("simpo ran the policy without its adapter"))
    assert torch.isfinite(Run("simpo", policy).output.loss)


# What is not needed is not loaded, run, collected or computed.


@pytest.mark.parametrize(
    ("method", "ran"),
    [(method, ["policy"]) for method in ("simpo", "alphapo", "confpo")]
    + [(method, ["reference", "oracle", "policy"]) for method in ("sepo", "tgdpo")]
    + [
        (method, ["reference", "policy"])
        for method in ("dpo", "tdpo1", "tdpo2", "dpop", "d2po", "weighted", "ln_dpo", "adpo")
    ],
)
def test_models_that_run(method, ran):
    run = Run(method)
    assert [name for name, _ in run.calls] == ran
    assert run.step.config.uses_reference == ("reference" in ran)


@every_method
def test_no_hidden_states_are_collected(method):
    """No hook on any model, and nothing of the reference but the rows that its head needs."""
    run = Run(method)
    assert all(hooks == 0 for _, hooks in run.calls)
    if run.features is not None:
        assert run.features.hidden_states is run.features.activations is None
        assert (run.features.logps is not None) == ("oracle" in METHODS[method][1])


@pytest.mark.parametrize("mask", ["uniform", "random", "decay"])
def test_masks_of_sparsepo_without_hooks(mask, monkeypatch):
    monkeypatch.setitem(METHODS, "sparsepo", ("sparsepo", {"mask": mask}))
    assert all(hooks == 0 for _, hooks in Run("sparsepo").calls)


def test_the_hook_count_counts(monkeypatch):
    """The learned mask reads every layer but the last through a hook; the last is what the head sees."""
    monkeypatch.setitem(METHODS, "sparsepo", ("sparsepo", {}))
    run = Run("sparsepo")
    assert dict(run.calls)["reference"] == len(run.reference.model.layers) - 1


@pytest.mark.parametrize(
    ("method", "statistics", "forward", "backward"),
    [
        # Who is projected onto the vocabulary, once a chunk: (policy, reference, oracle) in forward and backward.
        ("simpo", 1, (1, 0, 0), (1, 0, 0)),
        ("sepo", 1, (1, 1, 1), (1, 0, 0)),
        ("dpo", 2, (1, 1, 0), (1, 0, 0)),
        ("dpop", 2, (1, 1, 0), (1, 0, 0)),
        ("d2po", 2, (1, 1, 0), (1, 0, 0)),
        ("weighted", 2, (1, 1, 0), (1, 0, 0)),
        ("ld_dpo", 2, (1, 1, 0), (1, 0, 0)),
        ("tgdpo", 2, (1, 2, 1), (1, 0, 0)),
        ("confpo", 1, (1, 0, 0), (1, 0, 0)),
        ("selective", 2, (1, 1, 0), (1, 0, 0)),
        ("wpo", 3, (1, 1, 0), (1, 0, 0)),
        ("ln_dpo", 2, (1, 1, 0), (1, 0, 0)),
        ("adpo", 2, (1, 1, 0), (1, 0, 0)),
        ("adpo_token", 2, (1, 1, 0), (1, 0, 0)),
        ("alphapo", 1, (1, 0, 0), (1, 0, 0)),
        ("tdpo1", 3, (1, 1, 0), (0, 1, 0)),  # the gradient of r_t − e_t is without π
        ("tdpo2", 3, (1, 1, 0), (1, 1, 0)),
    ],
)
@pytest.mark.parametrize("budget", [0, None], ids=["kept: none", "kept: all"])
def test_projections(method, statistics, forward, backward, budget, monkeypatch):
    seen = []
    project = Projection._project

    def count(self, number):
        seen.append(self.weight.data_ptr())
        return project(self, number)

    loss, section = METHODS[method]
    monkeypatch.setitem(METHODS, method, (loss, {**section, "logits_budget": budget}))
    monkeypatch.setattr(Projection, "_project", count)
    monkeypatch.setattr(torch.Tensor, "backward", watch(torch.Tensor.backward, lambda: seen.append("backward")))
    run = Run(method)
    assert run.statistics.shape == (statistics, len(run.tokens))
    heads = [model and model.lm_head.weight.data_ptr() for model in (run.policy, run.reference, run.oracle)]
    turn = seen.index("backward")
    assert tuple(map(seen[:turn].count, heads)) == forward
    assert tuple(map(seen[turn:].count, heads)) == (backward if budget == 0 else (0, 0, 0))


def watch(function, before):
    def watched(*args, **kwargs):
        before()
        return function(*args, **kwargs)

    return watched


MASKED = ("d2po", "weighted", "ld_dpo", "tgdpo", "confpo", "selective", "sepo")


@pytest.mark.parametrize(
    ("method", "logged"),
    [
        *((method, set()) for method in ("dpo", "dpop", "simpo", "ln_dpo", "adpo", "alphapo")),
        *((method, {"token_kl"}) for method in ("tdpo1", "tdpo2")),
        ("wpo", {"pair_weight"}),
        *((method, {"sparsity_reward", "mask_reward_mean"}) for method in MASKED),
    ],
)
def test_metrics(method, logged):
    """Nothing of masks where there are none, nothing of a KL that is not computed."""
    run = Run(method)
    names = {f"{name}_{side}" for name in logged - {"pair_weight"} for side in ("chosen", "rejected")}
    names |= logged & {"pair_weight"}
    assert run.output.metrics.keys() == names | ({"token_kl_margin"} if "token_kl" in logged else set())
    assert (run.output.masks is None) == ("sparsity_reward" not in logged)


def test_selection_models_may_have_another_vocabulary_size():
    """SePO's reference and oracle are often smaller models of the family, padded to another size (Pythia's are)."""
    policy = decoder("llama")
    reference, oracle = (decoder("llama", seed, vocab_size=VOCABULARY + 1, hidden_size=2 * WIDTH) for seed in (1, 2))
    step = make_step(METHODS["sepo"][1], policy, reference, loss="sepo", beta=BETA)
    models = [Runner(model, partial(model, **PAIRS.inputs)) for model in (reference, oracle)]
    loss = step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, *models).loss
    with torch.no_grad():
        logits = [model(**PAIRS.inputs).logits for model in (policy, reference, oracle)]
    torch.testing.assert_close(loss.detach(), plain_loss("sepo", *logits, 0.0), atol=1e-5, rtol=1e-5)


# Options.


@pytest.mark.parametrize(
    ("loss", "section", "expected"),
    [
        ("dpo", {}, {"beta": BETA, "label_smoothing": 0.1}),
        ("tdpo", {}, {"beta": BETA, "label_smoothing": 0.1, "version": 2, "alpha": 0.5}),
        ("tdpo", {"version": 1}, {"version": 1}),
        ("tdpo", {"version": 2, "alpha": 0.7}, {"version": 2, "alpha": 0.7}),
        ("dpop", {}, {"beta": BETA, "lambda_": 50.0}),
        ("dpop", {"lambda": 3}, {"lambda_": 3.0}),
        ("dpop", {"lambda": "3e0"}, {"lambda_": 3.0}),
        ("simpo", None, {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.1}),
        ("simpo", {"beta": 2.5, "gamma": 0}, {"beta": 2.5, "gamma": 0.0}),
        ("d2po", {}, {"beta": BETA}),
        ("confpo", {}, {"beta": 1.5, "gamma": 1.6, "label_smoothing": 0.1}),
        ("ln_dpo", {}, {"beta": 5.0, "label_smoothing": 0.1}),
        ("adpo", {}, {"beta": BETA, "segments": "token"}),
        ("adpo", {"segments": 4}, {"segments": 4}),
        ("alphapo", {}, {"beta": 2.5, "gamma": 0.1, "alpha": 0.25, "label_smoothing": 0.1}),
        ("sepo", {**ORACLE, "gamma": 3, "k": 0.5}, {"gamma": 3.0, "label_smoothing": 0.1}),
    ],
)
def test_options_reach_the_objective(loss, section, expected):
    objective = LossConfig.from_section(section, loss, beta=BETA, label_smoothing=0.1).build_objective()
    assert type(objective) is OBJECTIVES.get(loss)
    assert {name: getattr(objective, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("loss", "section", "expected"),
    [
        ("d2po", {}, {"gamma": 0.98}),
        ("d2po", {"gamma": 0.9}, {"gamma": 0.9}),
        ("weighted_dpo", {"mask": "length"}, {"alpha": 0.5}),
        ("selective", {}, {"k": 0.6}),
        ("weighted_dpo", {"mask": "oracle_reward", **ORACLE}, {"scale": 0.05}),
        ("sepo", ORACLE, {"oracle": "a-folder", "k": 0.3}),
        ("sepo", {**ORACLE, "k": 0.8, "gamma": 3}, {"k": 0.8}),
    ],
)
def test_options_reach_the_mask(loss, section, expected):
    head = build_masks(LossConfig.from_section(section, loss), WIDTH, 1, seed=0)
    assert head.kl is None
    assert {name: getattr(head.reward, name) for name in expected} == expected


@pytest.mark.parametrize("loss", ["dpo", "tdpo", "dpop", "simpo", "ln_dpo", "adpo", "alphapo"])
def test_losses_without_a_mask_build_none(loss):
    assert build_masks(LossConfig.from_section({}, loss), WIDTH, 1, seed=0) is None


@pytest.mark.parametrize(
    ("loss", "section", "message"),
    [
        (
            "dpo",
            {"beta": 1},
            r"dpo\.beta is not a key .* chunk_size, logits_budget, disable_dropout, share_prefix, on_nonfinite$",
        ),
        (
            "tdpo",
            {"mask": "learned"},
            r"tdpo\.mask is not a key .* chunk_size, logits_budget, .*share_prefix, on_nonfinite, version, alpha$",
        ),
        ("tdpo", {"l1_reward": 0.1}, r"tdpo\.l1_reward is not a key"),
        ("tdpo", {"version": 3}, r"tdpo\.version: input should be 1 or 2, not 3"),
        ("tdpo", {"version": "1"}, r"tdpo\.version: input should be 1 or 2, not '1'"),
        ("tdpo", {"alpha": "much"}, r"tdpo\.alpha: .*number, not 'much'"),
        ("tdpo", {"alpha": -1}, r"tdpo\.alpha: .*greater than or equal to 0"),
        (
            "dpop",
            {"lambda_": 3},
            r"dpop\.lambda_ is not a key .* chunk_size, logits_budget, .*share_prefix, on_nonfinite, lambda$",
        ),
        ("dpop", {"lambda": -3}, r"dpop\.lambda: .*greater than or equal to 0"),
        ("dpop", {"lambda": True}, r"dpop\.lambda: .*number, not True"),
        ("simpo", {"beta": 0}, r"simpo\.beta: .*greater than 0"),
        ("simpo", {"gamma": -0.1}, r"simpo\.gamma: .*greater than or equal to 0"),
        ("simpo", {"lambda": 1}, r"simpo\.lambda is not a key .* beta, gamma$"),
        ("d2po", {"gamma": 0}, r"d2po\.gamma: .*greater than 0"),
        ("d2po", {"gamma": 1.1}, r"d2po\.gamma: .*less than or equal to 1"),
        ("d2po", {"chunk_size": 0}, r"d2po\.chunk_size: .*greater than 0"),
        ("d2po", {"objective": {}}, r"d2po\.objective is not a key"),
        ("weighted_dpo", {"mask": "length", "alpha": 1.1}, r"weighted_dpo\.alpha: .*less than or equal to 1"),
        ("weighted_dpo", {"mask": "oracle_reward"}, r"weighted_dpo\.oracle is needed"),
        ("confpo", {"mask": "confidence"}, r"confpo\.mask is not a key .* beta, gamma$"),
        ("selective", {"k": 1}, r"selective\.k: .*less than 1"),
        ("sepo", {}, r"sepo\.oracle is needed"),
        ("sepo", {**ORACLE, "k": 0}, r"sepo\.k: .*greater than 0"),
        ("sepo", {**ORACLE, "k": 1.5}, r"sepo\.k: .*less than or equal to 1"),
        ("sepo", {"oracle": 3}, r"sepo\.oracle: .*string, not 3"),
        ("sepo", {**ORACLE, "gamma": 0}, r"sepo\.gamma: .*greater than 0"),
        ("ln_dpo", {"beta": 0}, r"ln_dpo\.beta: .*greater than 0"),
        ("adpo", {"segments": 0}, r"adpo\.segments: .*greater than 0, not 0; .*'token', not 0$"),
        ("adpo", {"segments": "word"}, r"adpo\.segments: .*'token', not 'word'$"),
        ("alphapo", {"gamma": -0.1}, r"alphapo\.gamma: .*greater than or equal to 0"),
        ("dpo", [1], r"dpo: a mapping of keys is needed"),
        ("weighted_dpo", {}, r"^weighted_dpo\.mask is needed: it has no default$"),
        *(
            ("weighted_dpo", {"mask": "decay", key: value}, rf"^weighted_dpo\.{key} is not a key .* mask, gamma$")
            for key, value in {"shared": True, "reward": {}, "kl": {"gamma": 0.5}, "l1_reward": 0.1}.items()
        ),
    ],
)
def test_mistakes_in_a_section(loss, section, message):
    with pytest.raises(SparsePOError, match=message):
        LossConfig.from_section(section, loss)


def test_alpha_without_effect_is_refused():
    with pytest.raises(SparsePOError, match=r"tdpo\.alpha has no effect with tdpo\.version: 1"):
        LossConfig.from_section({"version": 1, "alpha": 0.5}, "tdpo")


@pytest.mark.parametrize("method", ["d2po", "sepo"])
def test_the_mask_is_saved_beside_the_model(method, tmp_path):
    loss, section = METHODS[method]
    config = LossConfig.from_section(section, loss)
    save_masks(tmp_path, describe(config), {})
    head, _ = load_masks(tmp_path)
    assert vars(head.reward).items() >= config.reward.options.items()


# The masks.


def responses(chosen: list[int], rejected: list[int]) -> ResponseTokens:
    """One token index per response length."""
    return Pairs([(1, length) for length in (*chosen, *rejected)]).tokens


def select(k, rewards: list[list[float]]) -> list[list[int]]:
    """Tokens selected in each response, chosen first; rewards by response."""
    half = len(rewards) // 2
    tokens = responses(*([len(r) for r in part] for part in (rewards[:half], rewards[half:])))
    flat = torch.tensor([reward for response in rewards for reward in response])
    mask = SelectedMask(oracle="a-folder", k=k)(
        ReferenceFeatures(logps=torch.zeros_like(flat), oracle_logps=flat), tokens
    )
    assert mask.dtype == torch.float32
    assert set(mask.tolist()) <= {0.0, 1.0}
    return [mask[tokens.sequence == s].nonzero().flatten().tolist() for s in range(len(rewards))]


def test_selected_by_hand():
    """Highest of the chosen, lowest of the rejected; ⌊k·n⌋ of each, one at least, ragged."""
    chosen = [[0.1, 0.9, -0.5, 0.4], [2.0, 1.0]]
    rejected = [[0.1, 0.9, -0.5, 0.4], [-1.0, 3.0, 0.0, -2.0, 5.0]]
    assert select(0.5, chosen + rejected) == [[1, 3], [0], [0, 2], [0, 3]]
    assert select(0.25, chosen + rejected) == [[1], [0], [2], [3]]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 20, 25, 50, 100, 999, 1000])
@pytest.mark.parametrize("percent", [7, 10, 14, 20, 29, 30, 55, 70, 80, 99, 100])
def test_selected_counts(n, percent):
    """⌊k·n⌋ in whole numbers: 0.3 of 10 is 3; 0.29 of 100 is 29, which floats make a little less; never none."""
    g = torch.Generator().manual_seed(n)
    selected = select(percent / 100, torch.randn(2, n, generator=g).tolist())
    assert [len(response) for response in selected] == [max(percent * n // 100, 1)] * 2


def test_selected_ties_go_to_the_earlier_token():
    assert select(0.5, [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]]) == [[0, 1], [0, 2]]


def test_selected_responses_of_one_token():
    assert select(0.3, [[-5.0], [5.0]]) == [[0], [0]]


def test_selected_without_tokens():
    """A rank whose batch has no active row still runs the mask."""
    tokens = responses([1], [1]).shard(0, 0, None)
    features = ReferenceFeatures(logps=torch.zeros(0), oracle_logps=torch.zeros(0))
    assert SelectedMask(oracle="a-folder")(features, tokens).shape == (0,)


def test_selected_refuses_a_share_of_a_sequence():
    tokens = responses([4], [3]).shard(0, 3, group=object())
    features = ReferenceFeatures(logps=torch.zeros(len(tokens)), oracle_logps=torch.zeros(len(tokens)))
    with pytest.raises(SparsePOError, match=r"ranked, which must not be sharded over processes"):
        SelectedMask(oracle="a-folder")(features, tokens)


def differing(chosen: list[list[int]], rejected: list[list[int]], **options) -> list[list[float]]:
    """Weights of `diff` for responses of these tokens, after prompts of one token, chosen first."""
    sequences = [torch.tensor([0, *response]) for response in (*chosen, *rejected)]
    lens = [len(sequence) for sequence in sequences]
    tokens = ResponseTokens.from_packed(torch.cat(sequences), lens, [1] * len(lens))
    mask = DiffMask(**options)(ReferenceFeatures(), tokens)
    assert mask.dtype == torch.float32
    return [mask[tokens.sequence == s].tolist() for s in range(len(lens))]


def test_diff_by_hand():
    """Two pairs: a token replaced before a common end, and a response that is the beginning of the other."""
    chosen, rejected = [[5, 6, 7, 2], [5, 6]], [[5, 8, 9, 7, 2], [5, 6, 2]]
    assert differing(chosen, rejected) == [[0, 1, 0, 0], [0, 0], [0, 1, 1, 0, 0], [0, 0, 1]]
    assert differing(chosen[:1], rejected[:1], outside=0.25) == [[0.25, 1, 0.25, 0.25], [0.25, 1, 1, 0.25, 0.25]]


def test_diff_refuses_a_share_of_a_sequence():
    tokens = responses([4], [3]).shard(0, 3, group=object())
    with pytest.raises(SparsePOError, match=r"whole responses are compared, which must not be sharded"):
        DiffMask()(ReferenceFeatures(), tokens)


def test_length_by_hand():
    """Past the shorter response of its own pair, whichever that is; two of a length are DPO's."""
    mask = LengthMask(alpha=0.3)(ReferenceFeatures(), responses([4, 1, 2], [2, 3, 2]))
    assert mask.dtype == torch.float32
    assert mask.tolist() == pytest.approx([1, 1, 0.3, 0.3, 1, 1, 1, 1, 1, 1, 0.3, 0.3, 1, 1])


def test_oracle_reward_by_hand():
    """Up with the oracle's reward in chosen, down in rejected; not clamped, so that a token may be turned round."""
    rewards = torch.tensor([1.0, -2.0, 30.0, -30.0, 0.0, 1.0, 30.0])
    features = ReferenceFeatures(logps=torch.full((7,), -1.0), oracle_logps=rewards - 1)
    mask = OracleRewardMask(oracle="a-folder")(features, responses([4], [3]))
    assert mask.tolist() == pytest.approx([1.05, 0.9, 2.5, -0.5, 1.0, 0.95, -0.5])


def test_sampled_by_the_numbers_of_the_random_mask():
    """As many of the longer response as the shorter has, those with the lowest numbers; the shorter is kept whole."""
    tokens = responses([4, 1, 3], [2, 6, 3])
    drawn, numbers = SampledMask(seed=5)(ReferenceFeatures(), tokens), RandomMask(seed=5)(ReferenceFeatures(), tokens)
    assert drawn.dtype == torch.float32
    for sequence, count in enumerate([2, 1, 3] * 2):
        own = tokens.sequence == sequence
        assert drawn[own].nonzero().flatten().tolist() == sorted(numbers[own].argsort()[:count].tolist())


def test_sampled_anew_and_evenly():
    """Each of the longer response's tokens in 2 of 5 steps, by the step and the seed alone."""
    tokens, mask = responses([5], [2]), SampledMask(seed=0).train()
    drawn = [mask(ReferenceFeatures(), tokens)[:5] for _ in range(500)]
    assert {row.sum().item() for row in drawn} == {2.0}
    share = torch.stack(drawn).mean(0)
    assert (share - 0.4).abs().max() < 4 * (0.4 * 0.6 / 500) ** 0.5
    mask.at_step(0)
    assert torch.equal(mask(ReferenceFeatures(), tokens)[:5], drawn[0])
    other = SampledMask(seed=1).train()
    assert not all(torch.equal(other(ReferenceFeatures(), tokens)[:5], row) for row in drawn[:10])


def test_sampled_alike_in_any_layout_and_batch():
    packed, padded = (SampledMask()(ReferenceFeatures(), tokens) for tokens in (PAIRS.packed_tokens, PAIRS.tokens))
    assert torch.equal(packed, padded)
    swapped = Pairs([TWO_PAIRS[index] for index in (1, 0, 3, 2)])
    swapped.sequences = [PAIRS.sequences[index] for index in (1, 0, 3, 2)]
    other = SampledMask()(ReferenceFeatures(), swapped.packed_tokens)
    of = lambda mask, tokens, sequence: mask[tokens.sequence == sequence].tolist()  # noqa: E731
    for sequence, place in enumerate((1, 0, 3, 2)):
        assert of(other, swapped.packed_tokens, sequence) == of(packed, PAIRS.packed_tokens, place)


def test_sampled_refuses_a_share_of_a_sequence():
    with pytest.raises(SparsePOError, match=r"ranked, which must not be sharded over processes"):
        SampledMask()(ReferenceFeatures(), responses([4], [3]).shard(0, 3, group=object()))


def of_policy(mask, probabilities: list[list[float]], reference: list[list[float]] | None = None):
    """A mask's weights of each response of one pair, whose tokens have these probabilities."""
    tokens = responses([len(probabilities[0])], [len(probabilities[1])])
    each = (probabilities, reference or probabilities)
    logps, ref_logps = (torch.tensor([*responses[0], *responses[1]]).log() for responses in each)
    weights = mask(ReferenceFeatures(policy_logps=logps, logps=ref_logps), tokens)
    assert weights.dtype == torch.float32
    return [weights[tokens.sequence == s].tolist() for s in (0, 1)], logps, tokens


def test_confidence_by_hand():
    """Below the mean of probabilities, 0.3 and 0.35, and not of their logarithms, 0.26 and 0.22."""
    weights, *_ = of_policy(ConfidenceMask(), [[0.5, 0.1, 0.29, 0.31], [0.9, 0.05, 0.25, 0.2]])
    assert weights == [[0, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize("probability", [0.1, 0.3, 1 / 3, 0.7, 1e-30])
def test_no_token_is_below_a_mean_that_all_have(probability):
    weights, *_ = of_policy(ConfidenceMask(), [[probability] * 7, [probability]])
    assert weights == [[0] * 7, [0]]


def test_confpo_by_hand():
    """(log 0.1 + log 0.2)/2 against log 0.05; a pair with nothing to select is 0 and counts in the mean."""
    weights, logps, tokens = of_policy(ConfidenceMask(), [[0.6, 0.1, 0.2], [0.8, 0.05]])
    assert weights == [[0, 1, 1], [0, 1]]
    mask = torch.tensor([0.0, 1, 1, 0, 1])
    d = 1.5 * ((math.log(0.1) + math.log(0.2)) / 2 - math.log(0.05)) - 1.6
    output = OBJECTIVES.get("confpo")()(TokenStatistics(logps), MaskPair(mask, mask), tokens)
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-d)), rel=1e-6)
    assert output.chosen_rewards.item() == pytest.approx(1.5 * math.log(0.1 * 0.2) / 2, rel=1e-6)
    tokens = responses([3, 1], [2, 2])
    mask = torch.tensor([0.0, 1, 1, 0, 0, 1, 0, 1])
    logps = torch.tensor([0.6, 0.1, 0.2, 0.3, 0.8, 0.05, 0.8, 0.05]).log()
    output = OBJECTIVES.get("confpo")()(TokenStatistics(logps), MaskPair(mask, mask), tokens)
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-d)) / 2, rel=1e-6)


def test_log_ratio_by_hand():
    """Where the policy is below the reference in chosen, above it in rejected: the 3 highest of 6, the 2 of 4."""
    reference = [[0.5] * 6, [0.2] * 4]
    policy = [[0.1, 0.9, 0.4, 0.6, 0.7, 0.3], [0.1, 0.3, 0.25, 0.05]]
    weights, *_ = of_policy(LogRatioMask(), policy, reference)
    assert weights == [[1, 0, 1, 0, 0, 1], [0, 1, 1, 0]]


def test_log_ratio_keeps_all_that_are_equal():
    """At the first step, where the policy is its reference; later those at the quantile."""
    weights, *_ = of_policy(LogRatioMask(), [[0.1, 0.9, 0.4], [0.5]])
    assert weights == [[1, 1, 1], [1]]
    weights, *_ = of_policy(LogRatioMask(), [[0.25, 0.25, 0.25, 0.5], [0.5, 0.5]], [[0.5] * 4, [0.25, 0.5]])
    assert weights == [[1, 1, 1, 0], [1, 0]]


@pytest.mark.parametrize("k", [0.0, 0.1, 0.29, 0.5, 0.55, 0.6, 0.7, 0.99])
def test_log_ratio_keeps_what_the_quantile_does(k):
    """Its interpolation changes nothing: what is kept begins with the next value that there is."""
    for n in (1, 2, 3, 6, 11, 101):
        policy = torch.rand(2, n, generator=torch.Generator().manual_seed(n)).tolist()
        (chosen, rejected), logps, _ = of_policy(LogRatioMask(k=k), policy, [[0.5] * n] * 2)
        score = (logps - torch.tensor(0.5).log()).chunk(2)
        place = round(k * (n - 1), 6)  # torch's own is a bit off where this is whole
        for weights, values in ((chosen, -score[0]), (rejected, score[1])):
            ordered = values.double().sort().values
            low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
            assert weights == (values >= low + (place - math.floor(place)) * (high - low)).float().tolist()


def test_log_ratio_refuses_a_share_of_a_sequence():
    tokens = responses([4], [3]).shard(0, 3, group=object())
    features = ReferenceFeatures(logps=torch.zeros(len(tokens)), policy_logps=torch.zeros(len(tokens)))
    with pytest.raises(SparsePOError, match=r"ranked, which must not be sharded over processes"):
        LogRatioMask()(features, tokens)


def test_length_without_tokens():
    assert LengthMask()(ReferenceFeatures(), responses([1], [1]).shard(0, 0, None)).shape == (0,)


@pytest.mark.parametrize("gamma", [0.98, 0.5, 1.0])
def test_decay(gamma):
    tokens = responses([4, 1], [2, 300])
    mask = DecayMask(gamma=gamma)(ReferenceFeatures(), tokens)
    expected = [gamma**t for length in (4, 1, 2, 300) for t in range(length)]
    assert mask.dtype == torch.float32
    assert mask.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-38)
