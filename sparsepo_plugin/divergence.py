"""From hidden states to log-probabilities and their expected log-ratio, in chunks: the hot path."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .errors import SparsePOError, shown
from .fused import fused
from .projection import (
    BUDGETS,
    Projection,
    Rows,
    add_product,
    budget_in_bytes,
    chunks_of,
    is_budget,
    is_gpu,
    product,
    rows_per_chunk,
)

Expectation = Literal["reference", "policy"]


class TokenStatistics(NamedTuple):
    """What an objective may know of a response token; float32 [N] each (float64 for float64 inputs).

    Attributes:
        policy_logps: log π(y_t).
        reference_logps: log π_ref(y_t), without gradient; None if there is no reference.
        expected_log_ratio: e_t = E_{y∼X}[log π(y) − log π_ref(y)]: −KL(π_ref‖π) for X = reference,
            KL(π‖π_ref) for X = policy; None if nobody asked for it.
    """

    policy_logps: Tensor
    reference_logps: Tensor | None = None
    expected_log_ratio: Tensor | None = None


class CollisionStatistics(NamedTuple):
    """`TokenStatistics` with one more, for an objective that says that it needs it.

    Attributes:
        policy_logps: As there.
        reference_logps: As there.
        expected_log_ratio: As there.
        log_collision: log Σ_v π(v)², how likely two draws of the policy are to agree, without gradient.
    """

    policy_logps: Tensor
    reference_logps: Tensor | None = None
    expected_log_ratio: Tensor | None = None
    log_collision: Tensor | None = None


def computed_statistics(reference: bool, expectation: Expectation | None, collision: bool) -> tuple[str, ...]:
    """Names of the statistics that there are, in the order in which they are stacked.

    Args:
        reference: Whether there is a reference.
        expectation: X, or None.
        collision: Whether log Σ_v π(v)² is asked for.
    """
    optional = {"reference_logps": reference, "expected_log_ratio": expectation, "log_collision": collision}
    return ("policy_logps", *(name for name, asked in optional.items() if asked))


def name_statistics(stacked: Tensor, names: tuple[str, ...]) -> TokenStatistics | CollisionStatistics:
    """Stacked statistics, [1 to 4, N], by the names of `computed_statistics`."""
    kind = CollisionStatistics if "log_collision" in names else TokenStatistics
    return kind(**dict(zip(names, stacked.unbind(0), strict=True)))


def token_statistics(
    policy_hidden: Tensor,
    policy_weight: Tensor,
    reference_hidden: Tensor | None,
    reference_weight: Tensor | None,
    labels: Tensor,
    *,
    policy_bias: Tensor | None = None,
    reference_bias: Tensor | None = None,
    expectation: Expectation | None = "reference",
    collision: bool = False,
    chunk_size: int | None = None,
    logits_budget: int | str | None = None,
) -> TokenStatistics | CollisionStatistics:
    """Log-probabilities of `labels` and expected log-ratio (paper Eq. 8 and 13) of N response tokens.

    Logits are computed for one chunk of rows at a time. Those that `logits_budget` has room for are kept for the
    backward, the reference's first; the others are computed again there, where the gradient depends on them.
    Gradients reach `policy_hidden`, `policy_weight` and `policy_bias`. On a GPU 16-bit hidden states and weights are
    multiplied as they are, with float32 sums, and the gradient of the logits is rounded to their dtype before it
    meets them; elsewhere they are converted first.

    Args:
        policy_hidden: Last hidden state of the policy that predicts each token. [N, d].
        policy_weight: Its vocabulary projection. [V, d].
        reference_hidden: The same of the reference, or None when there is none. [N, d'].
        reference_weight: [V, d'].
        labels: The tokens that were written. int64 [N].
        policy_bias: [V].
        reference_bias: [V].
        expectation: The distribution X that the log-ratio is averaged under; None leaves e_t out, and with it the
            reference's part of the backward.
        collision: Whether log Σ_v π(v)² is computed too.
        chunk_size: Rows at a time; chosen from V and free memory when None. The result does not depend on it.
        logits_budget: Bytes of logits to keep, with or without a unit (0, 256MB, 1.5GB), or a share of free memory
            (10%); by default as the device has it. The result does not depend on it.

    Returns:
        [N] tensors, computed in float32 whatever the input dtype (float64 stays float64); `CollisionStatistics` with
        `collision`.

    Raises:
        SparsePOError: the shapes disagree, or `expectation`, `chunk_size` or `logits_budget` is out of range.

    Examples:
        Two words; the policy gives them 1/4 and 3/4, the reference a half each, so that the expected log-ratio is
        (log 1/2 + log 3/2) / 2:

        >>> hidden, policy, reference = torch.ones(2, 1), torch.tensor([[1.0], [3.0]]).log(), torch.zeros(2, 1)
        >>> stats = token_statistics(hidden, policy, hidden, reference, labels=torch.tensor([1, 0]))
        >>> [round(value, 4) for value in stats.policy_logps.exp().tolist()]
        [0.75, 0.25]
        >>> [round(value, 4) for value in stats.expected_log_ratio.tolist()]
        [-0.1438, -0.1438]
    """
    rows, vocabulary = len(labels), len(policy_weight)
    if expectation not in ("reference", "policy", None) or (expectation and reference_hidden is None):
        raise SparsePOError(f"expectation: {expectation!r}, allowed are reference and policy, or None without either")
    if chunk_size is not None and chunk_size < 1:
        raise SparsePOError(f"chunk_size: {chunk_size}, must be at least 1")
    if logits_budget is not None and not is_budget(logits_budget):
        raise SparsePOError(f"logits_budget: {shown(logits_budget)}, must be {BUDGETS}")
    reference_shape = (
        (rows, vocabulary) if reference_hidden is None else (len(reference_hidden), len(reference_weight))
    )
    if len(policy_hidden) != rows or reference_shape != (rows, vocabulary):
        raise SparsePOError(
            f"{len(policy_hidden)} policy rows, {reference_shape[0]} reference rows and {rows} labels must agree, "
            f"and so must the vocabularies {vocabulary} and {reference_shape[1]}"
        )
    device = policy_hidden.device
    size = chunk_size or rows_per_chunk(vocabulary, device)
    budget = budget_in_bytes(logits_budget, device) if torch.is_grad_enabled() else 0
    with torch.autocast(device.type, enabled=False):
        statistics = _TokenStatistics.apply(
            policy_hidden,
            policy_weight,
            policy_bias,
            reference_hidden,
            reference_weight,
            reference_bias,
            labels,
            expectation,
            collision,
            min(size, max(rows, 1)),
            budget,
        )
    return name_statistics(statistics, computed_statistics(reference_hidden is not None, expectation, collision))


class _TokenStatistics(torch.autograd.Function):
    """Stacked statistics, [1 to 4, N]. One output, because DeepSpeed's backward hooks then see one gradient."""

    @staticmethod
    def forward(
        ctx, hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, expectation, collision, chunk_size, budget
    ):
        dtype = _accurate(hidden, weight, ref_hidden, ref_weight)
        chunks = chunks_of(len(labels), chunk_size)
        models = _models(Rows(hidden, weight, bias), Rows(ref_hidden, ref_weight, ref_bias), dtype, chunks)
        ctx.expectation, ctx.chunks, ctx.fuses = expectation, chunks, _fuses(hidden.device)
        room = budget if any(ctx.needs_input_grad) else 0
        # The reference's first: where reward and KL share a mask, the backward reads no others.
        for model in models[::-1] if expectation else models[:1]:
            room = model.keep(room)
        names = computed_statistics(len(models) > 1, expectation, collision)
        statistics = torch.empty(len(names), len(labels), dtype=dtype, device=hidden.device)
        summarise = _fused_summary if ctx.fuses else _summary
        for number, chunk in enumerate(chunks):
            values = _values(models, number, torch.log_softmax, ctx.fuses)
            statistics[:, chunk] = summarise(*values, labels[chunk, None], expectation, collision)
        ctx.kept = [len(model.kept) for model in models]
        kept = [logits for model in models for logits in model.kept]
        inputs = hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels
        ctx.save_for_backward(*inputs, statistics[2 if expectation else 0].clone(), *kept)
        return statistics

    @staticmethod
    def backward(ctx, grad):
        with torch.autocast(grad.device.type, enabled=False):
            return _TokenStatistics.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx, grad):
        """What `backward` returns, in full precision."""
        hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, expected, *kept = ctx.saved_tensors
        read = Rows(ref_hidden if ctx.expectation else None, ref_weight, ref_bias)
        kept = kept[: ctx.kept[0]], kept[ctx.kept[0] :]
        models = _models(Rows(hidden, weight, bias), read, grad.dtype, ctx.chunks, kept)
        policy, normalise = models[0], _normalise(ctx.expectation)
        models, coefficients = _with_coefficients(models, grad, ctx.expectation)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if wants_weight else None
        grad_bias = torch.zeros(len(weight), dtype=grad.dtype, device=grad.device) if wants_bias else None
        differentiate = _fused_grad_logits if ctx.fuses else _grad_logits
        for number, chunk in enumerate(ctx.chunks):
            values = _values(models, number, normalise, ctx.fuses)
            rest = coefficients[:, chunk, None], expected[chunk, None], grad[0, chunk], labels[chunk]
            grad_logits = differentiate(*values, *rest, ctx.expectation, policy.weight.dtype)
            if wants_hidden:
                grad_hidden[chunk] = product(grad_logits, policy.weight, grad.dtype)
            if wants_weight:
                add_product(grad_weight, grad_logits.T, hidden[chunk].to(grad_logits.dtype))
            if wants_bias:
                grad_bias += grad_logits.sum(0, dtype=grad.dtype)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if wants_weight else None,
            grad_bias.to(bias.dtype) if wants_bias else None,
            *[None] * 8,
        )


def _models(
    policy: Rows, reference: Rows, dtype: torch.dtype, chunks: list[slice], kept: Sequence[list[Tensor]] = ((), ())
) -> list[Projection]:
    """The policy's projection and, if there is one, the reference's."""
    rows, device = [policy] if reference.hidden is None else [policy, reference], policy.hidden.device
    buffer = None
    if not _fuses(device):
        buffer = torch.empty(chunks[0].stop if chunks else 0, len(policy.weight), dtype=dtype, device=device)
    return [Projection(own, dtype, chunks, buffer, known) for own, known in zip(rows, kept, strict=False)]


def _values(
    models: list[Projection], number: int, softmax: Callable[..., Tensor], fuses: bool
) -> tuple[Tensor, Tensor | None]:
    """What the arithmetic takes of a chunk, [n, V] of one or two models: logits where it is fused, else `softmax`."""
    found = [model.logits(number) if fuses else model.normalised(number, softmax) for model in models]
    return found[0], found[1] if len(found) > 1 else None


def _with_coefficients(
    models: list[Projection], grad: Tensor, expectation: Expectation | None
) -> tuple[list[Projection], Tensor]:
    """The models that the gradient depends on, and the coefficients that `_grad_logits` takes.

    Args:
        models: Policy and, if there is one, reference.
        grad: Of the statistics, of which log Σ_v π(v)² has none. [1 to 4, N].
        expectation: X, or None.
    """
    if expectation is None:
        return models[:1], -grad[:1]
    if expectation == "policy":
        return models, grad[:3:2]
    coefficients = torch.stack([-(grad[0] + grad[2]), grad[2]])
    # One mask for log-ratio and e_t, a_t = m·(r_t − e_t), makes the two gradients opposite: no π is left.
    needed = _not_zero(coefficients) or [0]
    return [models[model] for model in needed], coefficients[needed]


def _not_zero(coefficients: Tensor) -> list[int]:
    return [row for row, not_zero in enumerate(coefficients.any(1).tolist()) if not_zero]


def _summary(
    logps: Tensor, ref_logps: Tensor | None, labels: Tensor, expectation: Expectation | None, collision: bool
) -> Tensor:
    """Statistics [1 to 4, n] of a chunk's log-probabilities [n, V]; overwrites them.

    Args:
        logps: Of the policy.
        ref_logps: Of the reference, or None.
        labels: [n, 1].
        expectation: X, or None.
        collision: Whether log Σ_v π(v)² is among them.
    """
    models = [logps] if ref_logps is None else [logps, ref_logps]
    statistics = [of_model.gather(1, labels).squeeze(1) for of_model in models]
    last = []
    if collision:
        policy = logps.exp()
        last = [torch.linalg.vecdot(policy, policy).log()]
    if expectation == "reference":
        log_ratio = logps.sub_(ref_logps)
        statistics.append(torch.linalg.vecdot(ref_logps.exp_(), log_ratio))
    elif expectation == "policy":
        log_ratio = torch.sub(logps, ref_logps, out=ref_logps)
        statistics.append(torch.linalg.vecdot(logps.exp_(), log_ratio))
    return torch.stack(statistics + last)


def _grad_logits(
    values: Tensor,
    other: Tensor | None,
    coefficients: Tensor,
    expected: Tensor,
    grad: Tensor,
    labels: Tensor,
    expectation: Expectation | None,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient with respect to the policy's logits z of a chunk, [n, V]; overwrites the values.

    ∂ log π(y)/∂z = δ_y − π; ∂e/∂z = π_ref − π for X = reference, π·(log π − log π_ref − e) for X = policy.

    Args:
        values: Log-probabilities of the policy for X = policy, else the probabilities that the first coefficient is
            of. [n, V].
        other: The same of the reference or the second coefficient, or None. [n, V].
        coefficients: Gradients of log π(y) and e for X = policy, else what probabilities are multiplied by.
            [1 or 2, n, 1].
        expected: e_t. [n, 1].
        grad: Of log π(y). [n].
        labels: [n].
        expectation: X, or None.
        dtype: Of the result.
    """
    if expectation == "policy":
        total = torch.sub(values, other, out=other).sub_(expected).mul_(coefficients[1]).sub_(coefficients[0])
        total.mul_(values.exp_())
    else:
        total = values.mul_(coefficients[0])
        if other is not None:
            total.addcmul_(other, coefficients[1])
    # Before rounding to 16 bits: for a confident token 1 − π is what is left of two numbers near 1.
    total[torch.arange(len(labels), device=labels.device), labels] += grad
    return total.to(dtype)


def _normalise(expectation: Expectation | None) -> Callable[..., Tensor]:
    """What `_grad_logits` takes of logits."""
    return torch.log_softmax if expectation == "policy" else torch.softmax


@fused
def _fused_summary(
    logits: Tensor, ref_logits: Tensor | None, labels: Tensor, expectation: Expectation | None, collision: bool
) -> Tensor:
    """`_summary` of logits."""
    ref_logps = None if ref_logits is None else ref_logits.log_softmax(1)
    return _summary(logits.log_softmax(1), ref_logps, labels, expectation, collision)


@fused
def _fused_grad_logits(
    logits: Tensor,
    other: Tensor | None,
    coefficients: Tensor,
    expected: Tensor,
    grad: Tensor,
    labels: Tensor,
    expectation: Expectation | None,
    dtype: torch.dtype,
) -> Tensor:
    """`_grad_logits` of logits."""
    softmax = _normalise(expectation)
    values = softmax(logits, 1), None if other is None else softmax(other, 1)
    return _grad_logits(*values, coefficients, expected, grad, labels, expectation, dtype)


def _fuses(device: torch.device) -> bool:
    return is_gpu(device)


def _accurate(*tensors: Tensor | None) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors if tensor is not None), torch.float32)
