"""From hidden states to log-probabilities and their expected log-ratio, in chunks: the hot path."""

from functools import reduce
from typing import Literal, NamedTuple

import psutil
import torch
from torch import Tensor

from .errors import SparsePOError
from .fused import fused

Expectation = Literal["reference", "policy"]

# Logits of both models and one temporary are alive at once, [rows, V] each; this many bytes of them together,
# or _MIN_ROWS rows.
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
        chunk_size: Rows at a time; chosen from V and free memory when None. The result does not depend on it.

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
        policy = _Projection(weight, bias, hidden.dtype, dtype, chunk_size)
        reference = _reference(ref_hidden, ref_weight, ref_bias, dtype, chunk_size)
        models = 2 if reference else 1
        statistics = torch.empty(models + (expectation is not None), len(labels), dtype=dtype, device=hidden.device)
        log_sums = torch.empty(models, len(labels), dtype=dtype, device=hidden.device)
        spare = None if expectation is None or policy.buffer is None else torch.empty_like(policy.buffer)
        ctx.fuses = _fuses(hidden.device)
        summarise = _fused_summary if ctx.fuses else _summary
        for chunk in _chunks(len(labels), chunk_size):
            logits = policy.logits(hidden[chunk])
            ref_logits = reference.logits(ref_hidden[chunk]) if reference else None
            found = summarise(logits, ref_logits, labels[chunk, None], expectation, spare)
            statistics[:, chunk], log_sums[:, chunk] = found
        ctx.save_for_backward(
            hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, log_sums, statistics[-1].clone()
        )
        ctx.expectation, ctx.chunk_size = expectation, chunk_size
        return statistics

    @staticmethod
    def backward(ctx, grad):
        with torch.autocast(grad.device.type, enabled=False):
            return _TokenStatistics.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx, grad):
        """What `backward` returns, in full precision."""
        hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, log_sums, expected = ctx.saved_tensors
        policy = _Projection(weight, bias, hidden.dtype, grad.dtype, ctx.chunk_size)
        read = ref_hidden if ctx.expectation else None
        reference = _reference(read, ref_weight, ref_bias, grad.dtype, ctx.chunk_size)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if wants_weight else None
        grad_bias = torch.zeros(len(weight), dtype=grad.dtype, device=grad.device) if wants_bias else None
        differentiate = _fused_grad_logits if ctx.fuses else _grad_logits
        for chunk in _chunks(len(labels), ctx.chunk_size):
            grad_logits = differentiate(
                policy.logits(hidden[chunk]),
                reference.logits(ref_hidden[chunk]) if reference else None,
                log_sums[:, chunk, None],
                expected[chunk, None],
                grad[:, chunk, None],
                labels[chunk],
                ctx.expectation,
                policy.weight.dtype,
            )
            if wants_hidden:
                grad_hidden[chunk] = _product(grad_logits, policy.weight, grad.dtype)
            if wants_weight:
                _add_product(grad_weight, grad_logits.T, hidden[chunk].to(grad_logits.dtype))
            if wants_bias:
                grad_bias += grad_logits.sum(0, dtype=grad.dtype)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if wants_weight else None,
            grad_bias.to(bias.dtype) if wants_bias else None,
            *[None] * 6,
        )


class _Projection:
    """A vocabulary projection whose logits have the dtype `dtype`, for hidden states of `hidden_dtype`.

    The weight is converted once and not per chunk, or not at all where tensor cores take it as it is. On CPU the
    logits go to one buffer, as fresh memory would be mapped anew for each chunk; a GPU's allocator does that itself.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, hidden_dtype: torch.dtype, dtype: torch.dtype, rows: int
    ) -> None:
        gpu = _is_gpu(weight.device)
        native = gpu and dtype == torch.float32 and weight.dtype == hidden_dtype
        self.weight = weight.detach() if native else weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.dtype = dtype
        self.buffer = None if gpu else self.weight.new_empty(rows, len(weight))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of a chunk, [n, d] -> [n, V], valid until the next call."""
        # Not F.linear: under ZeRO-3 DeepSpeed replaces it by a function that expects to own the weight.
        out = None if self.buffer is None else self.buffer[: len(hidden)]
        logits = _product(hidden.to(self.weight.dtype), self.weight.T, self.dtype, out)
        return logits if self.bias is None else logits.add_(self.bias)


def _reference(
    hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype, rows: int
) -> _Projection | None:
    return None if hidden is None else _Projection(weight, bias, hidden.dtype, dtype, rows)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The product a @ b, added up and returned in `dtype`; on a GPU a and b may be of 16 bits and `dtype` float32."""
    return torch.mm(a, b, out=out) if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total` + a @ b in place, as in `_product`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += _product(a, b, total.dtype)


def _summary(
    logits: Tensor, ref_logits: Tensor | None, labels: Tensor, expectation: Expectation | None, spare: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Statistics [1 to 3, n] and log-sum-exp [1 or 2, n] of a chunk's logits [n, V]; overwrites them.

    Args:
        logits: Of the policy.
        ref_logits: Of the reference, or None.
        labels: [n, 1].
        expectation: X, or None.
        spare: At least [n, V] for the log-ratio, or None.
    """
    models = [logits] if ref_logits is None else [logits, ref_logits]
    label_logits = torch.stack([of_model.gather(1, labels).squeeze(1) for of_model in models])
    if expectation is not None:
        log_ratio = torch.sub(logits, ref_logits, out=None if spare is None else spare[: len(logits)])
    sums, log_sums = map(torch.stack, zip(*map(_exponentiate, models), strict=True))
    statistics = label_logits - log_sums
    if expectation is None:
        return statistics, log_sums
    over = 1 if expectation == "reference" else 0
    mean_ratio = torch.linalg.vecdot(models[over], log_ratio) / sums[over]
    return torch.cat([statistics, (mean_ratio - log_sums[0] + log_sums[1])[None]]), log_sums


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
    labels: Tensor,
    expectation: Expectation | None,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient with respect to the policy's logits z of a chunk, [n, V]; overwrites the logits.

    ∂ log π(y)/∂z = δ_y − π; ∂e/∂z = π_ref − π for X = reference, π·(log π − log π_ref − e) for X = policy.

    Args:
        logits: Of the policy. [n, V].
        ref_logits: Of the reference, or None without X. [n, V].
        log_sums: [1 or 2, n, 1].
        expected: e_t. [n, 1].
        grad: Of the statistics. [1 to 3, n, 1].
        labels: [n].
        expectation: X, or None.
        dtype: Of the result.
    """
    if expectation == "policy":
        log_ratio = torch.sub(logits, ref_logits, out=ref_logits).sub_(log_sums[0] - log_sums[1] + expected)
        total = log_ratio.mul_(grad[2]).sub_(grad[0]).mul_(logits.sub_(log_sums[0]).exp_())
    elif expectation == "reference":
        probs, ref_probs = logits.sub_(log_sums[0]).exp_(), ref_logits.sub_(log_sums[1]).exp_()
        total = ref_probs.mul_(grad[2]).addcmul_(probs, grad[0] + grad[2], value=-1)
    else:
        total = logits.sub_(log_sums[0]).exp_().mul_(-grad[0])
    # Before rounding to 16 bits: for a confident token 1 − π is what is left of two numbers near 1.
    total[torch.arange(len(labels), device=labels.device), labels] += grad[0, :, 0]
    return total.to(dtype)


_fused_summary, _fused_grad_logits = fused(_summary), fused(_grad_logits)


def _fuses(device: torch.device) -> bool:
    return _is_gpu(device)


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    budget = _WORKSPACE.get(device.type, _WORKSPACE["cpu"])
    # Free memory differs from step to step, and with the rows the order of sums.
    if not torch.are_deterministic_algorithms_enabled():
        budget = min(budget, _free_memory(device) // 8)
    return max(_MIN_ROWS, budget // (3 * 4 * vocabulary))


def _free_memory(device: torch.device) -> int:
    """Bytes that an allocation on `device` may still take."""
    if not _is_gpu(device):
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _accurate(*tensors: Tensor | None) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors if tensor is not None), torch.float32)


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
