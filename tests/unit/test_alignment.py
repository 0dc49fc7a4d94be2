"""Which tokens are edits: worked by hand, and what must hold for any two sequences."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsepo_plugin.alignment import edited

SEQUENCES = st.lists(st.integers(0, 4), max_size=12)


@pytest.mark.parametrize(
    ("first", "second", "edits", "others"),
    [
        ([1, 2, 3], [1, 2, 3], "...", "..."),
        ([1, 2, 3], [1, 9, 3], ".#.", ".#."),  # replaced
        ([1, 2, 3], [1, 3], ".#.", ".."),  # left out
        ([1, 3], [1, 7, 8, 3], "..", ".##."),  # added, two tokens
        ([5, 1, 2, 3], [6, 7, 1, 2, 3], "#...", "##..."),  # one token for two, at the start
        ([1, 2, 3], [1, 2, 4, 5], "..#", "..##"),  # at the end
        ([1, 2, 3], [4, 5], "###", "##"),  # nothing in common
        ([1, 2, 3, 4, 5, 6], [1, 9, 3, 4, 8, 6], ".#..#.", ".#..#."),
        ([1, 2], [2, 1], ".#", "#."),  # as many either way: what stands late in the second stays
        ([1, 1, 1], [1, 1], "#..", ".."),
        ([1, 1, 1], [1, 9, 1, 1], "...", ".#.."),  # where the longest run alone would leave one over
        ([], [1], "", "#"),
        ([], [], "", ""),
    ],
)
def test_by_hand(first, second, edits, others):
    """A dot is a token that both have."""
    found = edited(first, second)
    assert tuple("".join(".#"[flag] for flag in flags.tolist()) for flags in found) == (edits, others)
    assert all(flags.dtype == torch.bool for flags in found)


@given(SEQUENCES, SEQUENCES)
def test_without_its_edits_each_is_the_other(first, second):
    left = [
        [token for token, flag in zip(tokens, flags.tolist(), strict=True) if not flag]
        for tokens, flags in zip((first, second), edited(first, second), strict=True)
    ]
    assert left[0] == left[1]
    assert bool(left[0]) == bool(set(first) & set(second)), "a token that both have is never all edits"


@given(SEQUENCES)
def test_the_same_sequence_has_no_edits(tokens):
    assert not any(flags.any() for flags in edited(tokens, tokens))


@given(SEQUENCES, st.integers(0, 12), st.integers(1, 3))
def test_new_tokens_are_found_exactly(tokens, place, count):
    """What is added and occurs nowhere else is what is edited."""
    place = min(place, len(tokens))
    longer = tokens[:place] + [9] * count + tokens[place:]
    without, added = edited(tokens, longer)
    assert not without.any()
    assert added.tolist() == [False] * place + [True] * count + [False] * (len(tokens) - place)


@given(SEQUENCES, SEQUENCES)
def test_as_few_as_can_be(first, second):
    """Against the recursive definition of the longest common subsequence."""

    @cache
    def longest(row, column):
        if not row or not column:
            return 0
        if first[row - 1] == second[column - 1]:
            return longest(row - 1, column - 1) + 1
        return max(longest(row - 1, column), longest(row, column - 1))

    shared = longest(len(first), len(second))
    assert [int((~flags).sum()) for flags in edited(first, second)] == [shared, shared]


def test_long_sequences_with_a_frequent_token():
    first = [token for number in range(300) for token in (0, 1 + number)]
    second = [0 if token == 0 else token + 1000 * (token % 7 == 0) for token in first]
    for flags, tokens in zip(edited(first, second), (first, second), strict=True):
        assert [token for token, flag in zip(tokens, flags.tolist(), strict=True) if flag] == [
            token for token in tokens if token and token % 1000 % 7 == 0
        ]
