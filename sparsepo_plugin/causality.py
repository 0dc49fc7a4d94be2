"""Whether a mask sees only what comes before a token: asked by changing what comes after."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .masks import Masks
from .reference import Runner, read_frozen
from .tokens import MaskPair, ResponseTokens

# Weights are of order 1. A token that changes changes what sees it by far more, and rounding by far less.
_TOLERANCE = 1e-4


@torch.no_grad()
def first_leak(
    masks: Masks, model: nn.Module, sequences: list[Tensor], prompt_lens: list[int], oracle: nn.Module | None = None
) -> dict[str, int | None]:
    """The first response token whose weight changes when it, and all tokens after it, are replaced.

    Args:
        masks: In evaluation mode.
        model: The model that they read.
        sequences: Token ids of the chosen and of the rejected sequence.
        prompt_lens: How many of them are the prompt's.
        oracle: The oracle that they read, if they do.

    Returns:
        By role, for masks that claim to be causal: the token's position in its response, from 0, or None.
    """
    roles = {role: None for role, mask in masks.named_children() if mask.causal}
    vocabulary = model.config.get_text_config().vocab_size
    before, position = _weights(masks, model, sequences, prompt_lens, oracle)
    for start in range(int(position.max()) + 1):
        places = [prompt + start for prompt in prompt_lens]
        changed = [_replace(ids, place, vocabulary) for ids, place in zip(sequences, places, strict=True)]
        after, _ = _weights(masks, model, changed, prompt_lens, oracle)
        for role in [role for role, found in roles.items() if found is None]:
            moved = (getattr(after, role) - getattr(before, role)).abs() > _TOLERANCE
            if (leaks := position[moved & (position <= start)]).numel():
                roles[role] = int(leaks.min())
    return roles


def _weights(
    masks: Masks, model: nn.Module, sequences: list[Tensor], prompt_lens: list[int], oracle: nn.Module | None
) -> tuple[MaskPair, Tensor]:
    """The weights of both responses, and the position of each in its response."""
    input_ids = pad_sequence(sequences, batch_first=True)
    attention_mask = pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    tokens = ResponseTokens.from_padded(input_ids, attention_mask, prompt_lens)
    tokens = replace(tokens, weights=torch.ones(len(tokens.labels)))  # what the data say changes with no token
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    run = lambda asked: None if asked is None else Runner(asked, partial(asked, **inputs))  # noqa: E731
    request, follows = masks.request, masks.follow_policy
    if follows:  # of a policy that is still this model
        request = request._replace(needs=request.needs | {"logps"})
    features = read_frozen(tokens, request, run(model), run(oracle))
    if follows:
        features = replace(features, policy_logps=features.logps, policy_hidden=features.last_hidden)
    return masks(features, tokens), tokens.position


def _replace(ids: Tensor, start: int, vocabulary: int) -> Tensor:
    """The sequence with another token in every place from `start` on."""
    generator = torch.Generator().manual_seed(start)
    shift = torch.randint(1, vocabulary, ids[start:].shape, generator=generator).to(ids.device)
    return torch.cat([ids[:start], (ids[start:] + shift) % vocabulary])
