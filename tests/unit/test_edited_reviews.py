"""The pairs of `make localize`: what is edited is exactly the words of the table."""

import re
import sys
from pathlib import Path

import pytest

REVIEWS = [
    ("I saw it", " twice. Good acting, a GREAT story, and the best music."),
    ("I saw it", " twice. An awful story that I hated."),
    ("I saw it", " and it was good and bad."),  # praise and blame
    ("I saw it", " with my sister in a goodwill store."),  # none
    ("I saw it", ". It is not good at all."),  # the opposite of a blame
]


@pytest.fixture
def edits(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "localize")
    import edits

    yield edits
    sys.modules.pop("edits")


def test_every_word_has_one_opposite(edits):
    assert len(edits.SWAPS) == 2 * len(edits.OPPOSITES), "a word stands twice"
    vowel = lambda word: word[0] in "aeiou"  # noqa: E731
    assert [pair for pair in edits.OPPOSITES.items() if vowel(pair[0]) != vowel(pair[1])] == []


def test_pairs_by_hand(edits):
    assert edits.edited_pairs(REVIEWS) == [
        (*REVIEWS[0], " twice. Bad acting, a TERRIBLE story, and the worst music."),
        ("I saw it", " twice. An excellent story that I loved.", REVIEWS[1][1]),
    ]


def test_swapping_twice_changes_nothing(edits):
    text = "Good, GREAT and best; wonderfully bad and Enjoyable."
    assert edits.swap(edits.swap(text)) == text
    assert not set(re.findall(r"\w+", text)) & set(re.findall(r"\w+", edits.swap(text))) - {"and"}
