"""What of a step is not finite: the term, the pairs, whose fault it is, and what to do about it.

Nothing here computes as long as all is well, but `first_non_finite`, which hosts ask before they save.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .divergence import TokenStatistics
from .errors import SparsePOError
from .masks import learns
from .objectives import ObjectiveOutput
from .policy import MaskedPolicy
from .reference import ReferenceFeatures, Runner
from .tokens import MaskPair, ResponseTokens

logger = logging.getLogger("sparsepo_plugin")

PATIENCE = 10  # steps in a row that go wrong before it is no longer taken for bad luck

# What messages call each of the token statistics, and its source.
_STATISTICS = {
    "policy_logps": ("log-probabilities of the policy", "policy"),
    "reference_logps": ("log-probabilities of the reference", "reference"),
    "expected_log_ratio": ("token KL", "policy"),
    "log_collision": ("sums of squared probabilities of the policy", "policy"),
}
_SMALLER_STEPS = "a lower learning rate, of the policy or of its masks, or clipped gradients may help"


class NonFinite(SparsePOError):
    """A loss, gradient, mask or weight that is not finite.

    Args:
        message: The line: step, term, pairs, cause and advice.
        about: As for every `SparsePOError`.
        lasting: Whether a weight is not finite, so that no later step can be better.
    """

    def __init__(self, message: str, about: str | None = None, lasting: bool = False) -> None:
        super().__init__(message, about)
        self.lasting = lasting


class Cause(NamedTuple):
    """Why something is not finite and what may help; see `NonFinite`."""

    text: str
    about: str | None = None
    lasting: bool = False


class Term(NamedTuple):
    """A part of the loss.

    Attributes:
        name: What messages call it.
        source: What computes it: `policy`, `reference`, `reward` or `kl` for a mask, an option that weighs a norm, or
            `loss`.
        values: Floating [n], one for each token, response or pair.
        pairs: The pair of each. int64 [n].
    """

    name: str
    source: str
    values: Tensor
    pairs: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether all values are."""
        return bool(self.values.isfinite().all())

    def __str__(self) -> str:
        broken = self.pairs[~self.values.isfinite()].unique().tolist()
        return f"{self.name}, pairs {broken} of the micro-batch"


def stop_or_warn(fault: NonFinite, on_nonfinite: str) -> None:
    """Raise what is not finite, or warn of it where the run skips such steps and a later one may be better.

    Raises:
        NonFinite: `fault`.
    """
    if on_nonfinite == "stop" or fault.lasting:
        raise fault
    logger.warning("%s", fault)


def terms_of_loss(
    result: ObjectiveOutput,
    stats: TokenStatistics,
    masks: MaskPair | None,
    tokens: ResponseTokens,
    policy: MaskedPolicy,
) -> Iterator[Term]:
    """What a loss is computed from, in that order, and the loss."""
    count = tokens.num_pairs
    of_token, of_pair = tokens.sequence % count, torch.arange(count, device=result.loss.device)
    for field in policy.computed:
        yield Term(*_STATISTICS[field], getattr(stats, field), of_token)
    for role, _ in policy.masks.named_children() if masks else ():
        yield Term(f"weights of {policy.masks.names[role]}", role, getattr(masks, role), of_token)
    for key in policy.objective.regularises.values():
        if key in result.metrics:
            yield Term(f"L1 term {key}", key, result.metrics[key].expand(count), of_pair)
    yield Term("reward", "loss", torch.cat([result.chosen_rewards, result.rejected_rewards]), of_pair.repeat(2))
    yield Term("loss", "loss", result.loss.expand(count), of_pair)


def fault_of_loss(
    terms: Iterable[Term], policy: MaskedPolicy, features: ReferenceFeatures, reference: Runner | None, number: int
) -> NonFinite:
    """The first term that is not finite, with its cause.

    Args:
        terms: In the order of computation; one of them is not finite.
        policy: The policy with its masks.
        features: What was read of the frozen models, apart from a shared reference.
        reference: The reference; None where it is the policy with its adapter off, or is not read.
        number: The host's optimizer step.
    """
    term = next(term for term in terms if not term.is_finite)
    of_reference = partial(_cause_in_reference, reference.model if reference else policy.policy)
    if term.source == "policy":
        cause = _cause_in_policy(policy.policy, number)
    elif term.source == "reference":
        cause = of_reference()
    elif term.source in ("reward", "kl"):
        read = [name for name, values in features.tensors().items() if not values.isfinite().all()]
        if read == ["oracle_logps"]:
            cause = Cause(f"nor is what it reads of {policy.loss_config.section}.oracle")
        else:
            cause = of_reference(read) if read else _cause_in_mask(policy, term.source)
    else:
        cause = _cause_in_loss(policy, term.source, number)
    return _fault(number, term, cause)


def fault_of_gradient(name: str, policy: MaskedPolicy, number: int) -> NonFinite:
    """That the gradient of a parameter is not finite, where those of the statistics and masks are.

    Args:
        name: Of the parameter, in `policy`.
        policy: The policy with its masks.
        number: The host's optimizer step.
    """
    part, _, own = name.partition(".")
    dtype = _dtype(policy.policy)
    if part == "masks":
        mask = policy.masks.names[own.partition(".")[0]]
        cause = Cause(f"the loss is finite: the gradient of {mask} itself is at fault")
    elif dtype == "float32":
        cause = Cause(f"the loss is finite: {_SMALLER_STEPS}", "learning rate")
    else:
        cause = Cause(f"the loss is finite: what overflows in {dtype} may not in float32", "dtype")
    return _fault(number, f"gradient of {own} of the {part}, any pair of the step", cause)


def fault_of_weight(name: str, policy: MaskedPolicy, number: int) -> NonFinite:
    """That a parameter is not finite after a step; arguments as of `fault_of_gradient`."""
    part, _, own = name.partition(".")
    cause = Cause(f"lower {policy.loss_config.section}.mask_lr")
    if part == "policy":
        cause = Cause(_SMALLER_STEPS, "learning rate")
    return _fault(number, f"weight {own} of the {part}, after the update", cause._replace(lasting=True))


def first_non_finite(module: nn.Module) -> str | None:
    """Name of the first parameter that is not finite; under ZeRO-3, in this process's share of it.

    Weights in 4 bits are passed over: they are no numbers of the dtype that they lie in.
    """
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "quant_state"):
            continue
        share = getattr(parameter, "ds_tensor", parameter).detach()
        # The norm rather than isfinite, which would take a byte for each number.
        if share.is_floating_point() and share.numel() and not torch.linalg.vector_norm(share, torch.inf).isfinite():
            return name
    return None


class GradientWatch:
    """The gradients of a step's losses by token statistics and masks, which tell where a gradient went wrong.

    Args:
        policy: The policy with its masks.
    """

    def __init__(self, policy: MaskedPolicy) -> None:
        self.policy = policy
        self._number = 0
        self._kept: list[tuple[list[str], ResponseTokens, Tensor]] = []

    def keep(self, number: int, tokens: ResponseTokens, statistics: Tensor, masks: Tensor | None) -> None:
        """Have the backward leave its gradients here until the next step: a few numbers for each token, no copy.

        Args:
            number: The host's optimizer step.
            tokens: Index of the micro-batch's N tokens.
            statistics: [1 to 4, N].
            masks: [2, N] or None.
        """
        if number != self._number:
            self._number, self._kept = number, []
        watched = [([_STATISTICS[field][0] for field in self.policy.computed], statistics)]
        if masks is not None:
            names = self.policy.masks.names
            watched.append(([f"weights of {names.get(role, names['reward'])}" for role in ("reward", "kl")], masks))
        for names, values in watched:
            if values.requires_grad:
                values.register_hook(partial(self._keep, names, tokens))

    def _keep(self, names: list[str], tokens: ResponseTokens, gradients: Tensor) -> None:
        self._kept.append((names, tokens, gradients))

    def fault(self) -> NonFinite | None:
        """The first of them that is not finite, though the loss is."""
        loss = self.policy.loss_config.loss
        for names, tokens, gradients in self._kept:
            for name, values in zip(names, gradients, strict=True):
                term = Term(f"gradient of the loss by {name}", "loss", values, tokens.sequence % tokens.num_pairs)
                if not term.is_finite:
                    cause = Cause(f"the loss is finite: the gradient of loss {loss!r} itself is at fault")
                    return _fault(self._number, term, cause)
        return None


def _fault(number: int, what: object, cause: Cause) -> NonFinite:
    return NonFinite(f"not finite at step {number}: {what}; {cause.text}", cause.about, cause.lasting)


def _cause_in_policy(model: nn.Module, number: int) -> Cause:
    if weight := first_non_finite(model):
        if number <= 1:
            return _broken_files(model, f"{weight} is not finite, and no step has changed it", "policy")
        return Cause(f"its weight {weight} is not finite since an update: {_SMALLER_STEPS}", "learning rate", True)
    if _dtype(model) == "float16":
        return _overflow()
    if number <= 1:
        return Cause("its weights are finite and no step has changed them: the model is at fault, or these texts")
    return Cause(f"its weights are finite and may have grown: {_SMALLER_STEPS}", "learning rate")


def _cause_in_reference(model: nn.Module, read: Iterable[str] = ()) -> Cause:
    """Why a frozen model, or what a mask reads of it, is not finite."""
    if weight := first_non_finite(model):
        cause = _broken_files(model, f"{weight} is not finite", "reference")
    elif _dtype(model) == "float16":
        cause = _overflow()
    else:
        cause = Cause("its weights are finite: the model is at fault, or these texts", "reference")
    if read:
        cause = cause._replace(text=f"nor is what it reads of the reference, {', '.join(read)}: {cause.text}")
    return cause


def _cause_in_mask(policy: MaskedPolicy, role: str) -> Cause:
    mask, lower = policy.masks.of(role), f"lower {policy.loss_config.section}.mask_lr"
    if weight := first_non_finite(mask):
        return Cause(f"its parameter {weight} is not finite since an update: {lower}", lasting=True)
    if learns(mask):
        return Cause(f"its parameters are finite and may have grown: {lower}, or look at its code")
    return Cause("its parameters and what it reads are finite: its code is at fault")


def _cause_in_loss(policy: MaskedPolicy, source: str, number: int) -> Cause:
    """Why a reward, a loss, or the norm that an option weighs is not finite, where all that it reads is."""
    config = policy.loss_config
    if source != "loss":
        return Cause(f"the weights themselves are finite: lower {config.section}.{source} or {config.section}.mask_lr")
    cause = f"all that loss {config.loss!r} reads is finite: its code or its options are at fault"
    return Cause(cause) if number <= 1 else Cause(f"{cause}, or {_SMALLER_STEPS}", "learning rate")


def _broken_files(model: nn.Module, weight: str, about: str) -> Cause:
    text = f"its weight {weight}: the model's files are broken, or their numbers do not fit into {_dtype(model)}"
    return Cause(text, about, lasting=True)


def _overflow() -> Cause:
    return Cause("its weights are finite: float16 cannot hold what they compute, bfloat16 or float32 can", "dtype")


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
