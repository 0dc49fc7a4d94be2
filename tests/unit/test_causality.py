"""Whether a mask looks ahead, found by changing what comes after; the masks here say by hand what they see."""

import pytest
import torch
from tiny import LAYERS, TWO_PAIRS, WIDTH, Pairs, decoder

from sparsepo_plugin import LossConfig, Masks, TokenMask
from sparsepo_plugin.causality import first_leak
from sparsepo_plugin.masks import build_masks

PAIRS = Pairs(TWO_PAIRS)  # responses of 4 and 3 tokens in the first pair: sequences 0 and 2
SEQUENCES = [PAIRS.sequences[0], PAIRS.sequences[2]]
PROMPTS = [PAIRS.prompt_lens[0], PAIRS.prompt_lens[2]]


class SeesAt(TokenMask):
    """The sum of what is read `ahead` of each token, from position `start` on."""

    needs = frozenset({"last_hidden"})

    def __init__(self, ahead: int, start: int = 0) -> None:
        super().__init__()
        self.ahead, self.start = ahead, start

    def forward(self, features, tokens):
        seen = features.last_hidden.abs().sum(1)
        row = (torch.arange(len(tokens)) + self.ahead).clamp(max=len(tokens) - 1)
        inside = (tokens.sequence[row] == tokens.sequence) & (tokens.position >= self.start)
        return torch.where(inside, seen[row], seen)


class SeesTheToken(TokenMask):
    """The token that is written, which nobody knows before, from position `start` on."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start = start

    def forward(self, features, tokens):
        return torch.where(tokens.position >= self.start, tokens.labels.float(), 0.0)


def leaks(masks, **options):
    return first_leak(masks.eval(), decoder("llama"), SEQUENCES, PROMPTS, **options)


@pytest.mark.parametrize(
    ("mask", "position"),
    [
        (SeesAt(0), None),
        (SeesAt(1), 0),
        (SeesAt(2), 0),
        (SeesAt(1, start=2), 2),
        (SeesTheToken(), 0),
        (SeesTheToken(3), 3),
    ],
    ids=["causal", "one ahead", "two ahead", "only late", "the token", "the last token"],
)
def test_the_first_position_that_looks_ahead(mask, position):
    """The state of token t+1 has read token t: a mask that sees it leaks at t."""
    assert leaks(Masks(mask)) == {"reward": position}


def test_each_role_is_looked_at():
    assert leaks(Masks(SeesAt(0), SeesAt(1))) == {"reward": None, "kl": 0}


@pytest.mark.parametrize(
    "section", [{}, {"layers": "last", "depth": 2}, {"mask": "random"}, {"mask": "decay"}], ids=str
)
def test_ours_are_causal(section):
    assert leaks(build_masks(LossConfig.from_section(section), WIDTH, LAYERS, seed=0)) == {"reward": None}


@pytest.mark.parametrize(
    "section",
    [
        {"mask": "activation"},
        {"mask": "selected", "oracle": "a"},
        {"mask": "oracle_reward", "oracle": "a"},
        {"mask": "confidence"},
        {"mask": "transport"},
    ],
    ids=lambda section: section["mask"],
)
def test_masks_that_say_they_are_not(section):
    """They read a whole response. That they do look ahead is shown with the claim turned round."""
    masks = build_masks(LossConfig.from_section(section), WIDTH, LAYERS, seed=0)
    oracle = {"oracle": decoder("llama", seed=1)} if "oracle" in section else {}
    assert leaks(masks, **oracle) == {}
    masks.reward.causal = True
    assert leaks(masks, **oracle)["reward"] is not None
