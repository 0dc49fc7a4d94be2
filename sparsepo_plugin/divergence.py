"""From hidden states to log-probabilities and their expected log-ratio, in chunks: the hot path."""

from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .errors import SparsePOError

Expectation = Literal["reference", "policy"]

# Logits of both models and one temporary are alive at once, [rows, V] each; this many bytes of them together.
_WORKSPACE = {"cpu": 48 << 20, "cuda": 1 << 30}
_MIN_ROWS = 64  # below, the vocabulary projection is read more often than it is worth


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
    chunk_size: int | None = None,
) -> TokenStatistics:
    """Log-probabilities of `labels` and expected log-ratio (paper Eq. 8 and 13) of N response tokens.

    Logits exist for one chunk of rows at a time and are computed again in the backward: no [N, V] tensor is kept.
    Gradients reach `policy_hidden`, `policy_weight` and `policy_bias`.

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
        chunk_size: Rows at a time; chosen from V when None. The result does not depend on it.

    Returns:
        [N] tensors, computed in float32 whatever the input dtype (float64 stays float64).

    Raises:
        SparsePOError: the shapes disagree, or `expectation` or `chunk_size` is out of range.
    """
    rows, vocabulary = len(labels), len(policy_weight)
    if expectation not in ("reference", "policy", None) or (expectation and reference_hidden is None):
        raise SparsePOError(f"expectation: {expectation!r}, allowed are reference and policy, or None without either")
    if chunk_size is not None and chunk_size < 1:
        raise SparsePOError(f"chunk_size: {chunk_size}, must be at least 1")
    reference_shape = (
        (rows, vocabulary) if reference_hidden is None else (len(reference_hidden), len(reference_weight))
    )
    if len(policy_hidden) != rows or reference_shape != (rows, vocabulary):
        raise SparsePOError(
            f"{len(policy_hidden)} policy rows, {reference_shape[0]} reference rows and {rows} labels must agree, "
            f"and so must the vocabularies {vocabulary} and {reference_shape[1]}"
        )
    rows_per_chunk = chunk_size or _rows_per_chunk(vocabulary, policy_hidden.device)
    with torch.autocast(policy_hidden.device.type, enabled=False):
        statistics = _TokenStatistics.apply(
            policy_hidden,
            policy_weight,
            policy_bias,
            reference_hidden,
            reference_weight,
            reference_bias,
            labels,
            expectation,
            min(rows_per_chunk, max(rows, 1)),
        )
    return TokenStatistics(*statistics.unbind(0))


class _TokenStatistics(torch.autograd.Function):
    """Stacked statistics, [1 to 3, N]. One output, because DeepSpeed's backward hooks then see one gradient."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, expectation, chunk_size):
        dtype = _accurate(hidden, weight, ref_hidden, ref_weight)
        policy = _Projection(weight, bias, dtype, chunk_size)
        reference = None if ref_hidden is None else _Projection(ref_weight, ref_bias, dtype, chunk_size)
        log_ratio = torch.empty_like(policy.buffer) if expectation else None
        kinds = 1 + (reference is not None) + (expectation is not None)
        statistics = torch.empty(kinds, len(labels), dtype=dtype, device=hidden.device)
        log_sums = torch.zeros(2, len(labels), dtype=dtype, device=hidden.device)
        for chunk in _chunks(len(labels), chunk_size):
            index = labels[chunk, None]
            logits = policy.logits(hidden[chunk])
            label_logits = logits.gather(1, index).squeeze(1)
            if reference is not None:
                ref_logits = reference.logits(ref_hidden[chunk])
                ref_label_logits = ref_logits.gather(1, index).squeeze(1)
                ratio = torch.sub(logits, ref_logits, out=log_ratio[: len(logits)]) if expectation else None
                ref_sums, log_sums[1, chunk] = _exponentiate(ref_logits)
                statistics[1, chunk] = ref_label_logits - log_sums[1, chunk]
            sums, log_sums[0, chunk] = _exponentiate(logits)
            statistics[0, chunk] = label_logits - log_sums[0, chunk]
            if expectation:
                weights, total = (ref_logits, ref_sums) if expectation == "reference" else (logits, sums)
                mean_ratio = torch.linalg.vecdot(weights, ratio) / total
                statistics[2, chunk] = mean_ratio - log_sums[0, chunk] + log_sums[1, chunk]
        ctx.save_for_backward(
            hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, log_sums, statistics[-1].clone()
        )
        ctx.expectation, ctx.chunk_size = expectation, chunk_size
        return statistics

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, log_sums, expected = ctx.saved_tensors
        policy = _Projection(weight, bias, grad.dtype, ctx.chunk_size)
        reference = _Projection(ref_weight, ref_bias, grad.dtype, ctx.chunk_size) if ctx.expectation else None
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(policy.weight) if wants_weight else None
        grad_bias = torch.zeros(len(weight), dtype=grad.dtype, device=grad.device) if wants_bias else None
        for chunk in _chunks(len(labels), ctx.chunk_size):
            grad_logits = _grad_logits(
                policy.logits(hidden[chunk]),
                reference.logits(ref_hidden[chunk]) if reference else None,
                log_sums[:, chunk, None],
                expected[chunk, None],
                grad[:, chunk, None],
                ctx.expectation,
            ).scatter_add_(1, labels[chunk, None], grad[0, chunk, None])
            if wants_hidden:
                grad_hidden[chunk] = (grad_logits @ policy.weight).to(hidden.dtype)
            if wants_weight:
                grad_weight.addmm_(grad_logits.T, hidden[chunk].to(grad_logits.dtype))
            if wants_bias:
                grad_bias += grad_logits.sum(0)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if wants_weight else None,
            grad_bias.to(bias.dtype) if wants_bias else None,
            *[None] * 6,
        )


class _Projection:
    """A vocabulary projection in `dtype`: its weight converted once and not per chunk, its output written in place."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> None:
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.buffer = self.weight.new_empty(rows, len(weight))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of a chunk, [n, d] -> [n, V], valid until the next call."""
        # Not F.linear: under ZeRO-3 DeepSpeed replaces it by a function that expects to own the weight.
        logits = torch.mm(hidden.to(self.weight.dtype), self.weight.T, out=self.buffer[: len(hidden)])
        return logits if self.bias is None else logits.add_(self.bias)


def _exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits [n, V] into exp(logits − max) in place; their sums and the log-sum-exp, [n] each."""
    top = logits.amax(1)
    sums = logits.sub_(top[:, None]).exp_().sum(1)
    return sums, sums.log().add_(top)


def _grad_logits(
    logits: Tensor,
    ref_logits: Tensor | None,
    log_sums: Tensor,
    expected: Tensor,
    grad: Tensor,
    expectation: Expectation | None,
) -> Tensor:
    """Gradient with respect to the policy's logits z of one chunk, [n, V], but for the label's own; in place.

    ∂ log π(y)/∂z = δ_y − π; ∂e/∂z = π_ref − π for X = reference, π·(log π − log π_ref − e) for X = policy.
    """
    if expectation == "policy":
        log_ratio = torch.sub(logits, ref_logits, out=ref_logits).sub_(log_sums[0] - log_sums[1] + expected)
        return log_ratio.mul_(grad[2]).sub_(grad[0]).mul_(logits.sub_(log_sums[0]).exp_())
    probs = logits.sub_(log_sums[0]).exp_()
    if expectation is None:
        return probs.mul_(-grad[0])
    ref_probs = ref_logits.sub_(log_sums[1]).exp_()
    return ref_probs.mul_(grad[2]).addcmul_(probs, grad[0] + grad[2], value=-1)


def _rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    budget = _WORKSPACE.get(device.type, _WORKSPACE["cpu"])
    if device.type == "cuda":
        budget = min(budget, torch.cuda.mem_get_info(device)[0] // 8)
    return max(_MIN_ROWS, budget // (3 * 4 * vocabulary))


def _accurate(*tensors: Tensor | None) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors if tensor is not None), torch.float32)


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
