"""From hidden states to log-probabilities and their expected log-ratio, in chunks: the hot path."""

from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .errors import SparsePOError

Expectation = Literal["reference", "policy"]

# Logits of both models, their softmaxes and the gradient are alive at once: about 2^24 float32 values a copy.
_LOGITS_PER_CHUNK = 1 << 24


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
    return TokenStatistics(
        *_TokenStatistics.apply(
            policy_hidden,
            policy_weight,
            policy_bias,
            reference_hidden,
            reference_weight,
            reference_bias,
            labels,
            expectation,
            chunk_size or max(1, _LOGITS_PER_CHUNK // vocabulary),
        ).unbind(0)
    )


class _TokenStatistics(torch.autograd.Function):
    """Stacked statistics, [1 to 3, N]. One output, because DeepSpeed's backward hooks then see one gradient."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, expectation, chunk_size):
        ctx.save_for_backward(hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels)
        ctx.expectation, ctx.chunk_size = expectation, chunk_size
        ctx.dtype = dtype = _accurate(hidden, weight, ref_hidden, ref_weight)
        policy = _Projection(weight, bias, dtype)
        reference = None if ref_hidden is None else _Projection(ref_weight, ref_bias, dtype)
        kinds = 1 + (reference is not None) + (expectation is not None)
        statistics = torch.empty(kinds, len(labels), dtype=dtype, device=hidden.device)
        for chunk in _chunks(len(labels), chunk_size):
            index = labels[chunk, None]
            logps = policy.logps(hidden[chunk])
            statistics[0, chunk] = logps.gather(1, index).squeeze(1)
            if reference is None:
                continue
            ref_logps = reference.logps(ref_hidden[chunk])
            statistics[1, chunk] = ref_logps.gather(1, index).squeeze(1)
            if expectation:
                over = ref_logps if expectation == "reference" else logps
                statistics[2, chunk] = (over.exp() * logps.sub(ref_logps)).sum(1)
        return statistics

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels = ctx.saved_tensors
        policy = _Projection(weight, bias, ctx.dtype)
        reference = _Projection(ref_weight, ref_bias, ctx.dtype) if ctx.expectation else None
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(policy.weight) if wants_weight else None
        grad_bias = torch.zeros(len(weight), dtype=grad.dtype, device=grad.device) if wants_bias else None
        for chunk in _chunks(len(labels), ctx.chunk_size):
            ref_logps = reference.logps(ref_hidden[chunk]) if reference else None
            upstream = grad[0, chunk], grad[2, chunk] if reference else None
            grad_logits = _grad_logits(
                policy.logps(hidden[chunk]), ref_logps, labels[chunk], *upstream, ctx.expectation
            )
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
    """A vocabulary projection in `dtype`, its weight converted once and not per chunk."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weight = weight.detach().to(self.dtype)
        self.bias = None if bias is None else bias.detach().to(self.dtype)

    def logps(self, hidden: Tensor) -> Tensor:
        """Log-softmax over the vocabulary. [n, d] -> [n, V]."""
        # Not F.linear: under ZeRO-3 DeepSpeed replaces it by a function that expects to own the weight.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = hidden.to(self.dtype) @ self.weight.T
            return (logits if self.bias is None else logits.add_(self.bias)).log_softmax(-1)


def _grad_logits(
    logps: Tensor,
    ref_logps: Tensor | None,
    labels: Tensor,
    grad_logp: Tensor,
    grad_expected: Tensor | None,
    expectation: Expectation | None,
) -> Tensor:
    """Gradient with respect to the policy's logits z of one chunk, [n, V].

    ∂ log π(y)/∂z = δ_y − π; ∂e/∂z = π_ref − π for X = reference, π·(log π − log π_ref − e) for X = policy.
    """
    probs = logps.exp()
    if expectation is None:
        grad_logits = probs.mul_(-grad_logp[:, None])
    else:
        if expectation == "reference":
            grad_logits = ref_logps.exp().sub_(probs)
        else:
            log_ratio = logps.sub(ref_logps)
            grad_logits = log_ratio.sub_((probs * log_ratio).sum(1, keepdim=True)).mul_(probs)
        grad_logits.mul_(grad_expected[:, None]).sub_(probs.mul_(grad_logp[:, None]))
    return grad_logits.scatter_add_(1, labels[:, None], grad_logp[:, None])


def _accurate(*tensors: Tensor | None) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors if tensor is not None), torch.float32)


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
