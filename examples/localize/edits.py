"""Pairs whose edits are known: reviews, and the same with every word of praise or blame replaced by its opposite."""

import re
from typing import NamedTuple

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

# Of the same part of speech, and alike in whether `a` or `an` stands before them, so that nothing else need change.
_TABLE = """
amazing/appalling awesome/abysmal beautiful/hideous beautifully/badly best/worst better/worse brilliant/stupid
charming/tiresome clever/silly enjoyable/unwatchable enjoyed/endured entertaining/irritating excellent/awful
exciting/uninspired fantastic/dreadful fascinating/tedious funny/boring good/bad great/terrible greatest/weakest
impressive/unimpressive intelligent/idiotic interesting/uninteresting liked/disliked likes/dislikes love/hate
loved/hated loves/hates masterpiece/disaster memorable/forgettable nice/nasty outstanding/atrocious perfect/pathetic
perfectly/poorly powerful/feeble solid/shoddy strong/weak success/failure superb/poor talented/talentless
terrific/dismal wonderful/horrible wonderfully/horribly
"""
OPPOSITES = dict(words.split("/") for words in _TABLE.split())
SWAPS = OPPOSITES | {negative: positive for positive, negative in OPPOSITES.items()}
# VADER's scores are from -1 to 1. It knows negations: "not good" made "not bad" is no pair.
MIN_DIFFERENCE = 0.5

_WORDS = re.compile(rf"\b({'|'.join(sorted(SWAPS, key=len, reverse=True))})\b", re.IGNORECASE)
_SCORER = SentimentIntensityAnalyzer()


class Pair(NamedTuple):
    """One row of a file of pairs."""

    prompt: str
    chosen: str
    rejected: str


def edited_pairs(reviews: list[tuple[str, str]]) -> list[Pair]:
    """A pair of each review that has words of the table, praise alone or blame alone, if VADER agrees on the better.

    Args:
        reviews: A prompt and the rest of the review each. The prompt stays as it is.
    """
    pairs = []
    for prompt, text in reviews:
        words = {word.lower() for word in _WORDS.findall(text)}
        if words and words <= set(OPPOSITES):
            pairs.append(Pair(prompt, text, swap(text)))
        elif words and words.isdisjoint(OPPOSITES):
            pairs.append(Pair(prompt, swap(text), text))
    return [pair for pair in pairs if is_clear(pair)]


def is_clear(pair: Pair) -> bool:
    """Whether VADER too finds the chosen response better, by far enough."""
    chosen, rejected = (
        _SCORER.polarity_scores(pair.prompt + response)["compound"] for response in (pair.chosen, pair.rejected)
    )
    return chosen - rejected >= MIN_DIFFERENCE


def swap(text: str) -> str:
    """The text with every word of the table as its opposite, capitals kept."""
    return _WORDS.sub(lambda match: _like(SWAPS[match[0].lower()], match[0]), text)


def _like(word: str, model: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
