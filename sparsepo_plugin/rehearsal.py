"""A loss and its masks on random numbers before any model is there: what fails here would fail on the first step."""

import inspect

import torch
from torch import Tensor

from .config import LossConfig
from .divergence import computed_statistics, name_statistics
from .errors import SparsePOError, naming_faults, shown
from .masks import Masks, build_masks, learns, refuse_idle_keys
from .objectives import ObjectiveOutput
from .reference import ReferenceFeatures
from .tokens import MaskPair, ResponseTokens

_LOGPS = ("logps", "oracle_logps", "policy_logps")
_LENGTHS = (3, 1, 4, 2)  # response tokens of each sequence: two pairs, with a response of one token


def rehearse(config: LossConfig, hidden_size: int, num_layers: int, seed: int) -> Masks | None:
    """Make the masks and the objective, and run them once.

    Args:
        config: The loss.
        hidden_size: d of the reference model.
        num_layers: L of the reference model.
        seed: The host's.

    Returns:
        The masks, or None for a loss without any.

    Raises:
        SparsePOError: a key has no effect, or the code of a mask or of the objective fails or returns what cannot be
            used; the line names it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masks = build_masks(config, hidden_size, num_layers, seed)
        refuse_idle_keys(config, masks)
        tokens = _tokens()
        weights = masks and masks(_features(masks, hidden_size, num_layers), tokens)
        for role, mask in masks.named_children() if masks else ():
            if learns(mask) and not getattr(weights, role).requires_grad:
                raise SparsePOError(
                    f"{masks.names[role]} has parameters and returns weights without a gradient by them"
                )
        _rehearse_objective(config, weights, tokens)
    return masks


def _tokens() -> ResponseTokens:
    """Index of a batch of two pairs."""
    lengths = torch.tensor(_LENGTHS)
    count = int(lengths.sum())
    return ResponseTokens(
        labels=torch.arange(count),
        rows=torch.arange(count),
        sequence=torch.arange(len(lengths)).repeat_interleave(lengths),
        position=torch.cat([torch.arange(length) for length in _LENGTHS]),
        num_pairs=len(_LENGTHS) // 2,
        weights=torch.ones(count),
    )


def _features(masks: Masks, hidden_size: int, num_layers: int) -> ReferenceFeatures:
    """What the masks ask for."""
    needs, sites, layers = masks.request
    count = sum(_LENGTHS)
    shapes = {
        "hidden_states": (num_layers if layers is None else len(layers), count, hidden_size),
        "activations": (num_layers * len(sites), count),
        "policy_hidden": (count, hidden_size),
        **dict.fromkeys(_LOGPS, (count,)),
    }
    drawn = {name: torch.randn(shape) for name, shape in shapes.items() if name in needs}
    for name in drawn.keys() & set(_LOGPS):
        drawn[name] = -drawn[name].abs()
    return ReferenceFeatures(last_hidden=torch.randn(count, hidden_size), hidden_layers=layers, **drawn)


def _rehearse_objective(config: LossConfig, masks: MaskPair | None, tokens: ResponseTokens) -> None:
    objective, what = config.build_objective(), f"loss {config.loss!r}"
    names = computed_statistics(objective.needs_reference, objective.expectation, objective.needs_collision)
    rows = torch.rand(len(names), len(tokens), requires_grad=True).neg()
    stats = name_statistics(rows, names)
    with naming_faults(f"{what} failed", inspect.getsourcefile(type(objective))):
        output = objective(stats, masks, tokens)
    if problem := _problem(output, tokens.num_pairs):
        raise SparsePOError(f"{what} {problem}")


def _problem(output: object, num_pairs: int) -> str | None:
    """What is wrong with an objective's result, if anything."""
    if not isinstance(output, ObjectiveOutput):
        return f"returns {type(output).__name__}, an ObjectiveOutput is needed"
    shapes = {"loss": [], "chosen_rewards": [num_pairs], "rejected_rewards": [num_pairs]}
    for name, shape in shapes.items():
        value = getattr(output, name)
        if not isinstance(value, Tensor) or list(value.shape) != shape:
            found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            return f"returns {name} of {found}, a tensor of shape {shape} is needed ({num_pairs} pairs)"
    if not output.loss.requires_grad:
        return "returns a loss without a gradient: nothing would be trained"
    for name, value in output.metrics.items():
        if not isinstance(value, int | float) and not (isinstance(value, Tensor) and value.numel() == 1):
            return f"returns metric {name!r}, {shown(value)}: one number is needed"
    return None
