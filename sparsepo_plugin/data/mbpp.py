"""MBPP: programs that pass or fail their unit tests."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from .base import Pair, Row


def mbpp(rows: Iterable[Row], dropped: Counter[str], *, seed: int, epochs: int = 1) -> Iterator[Pair]:
    """Draw a passing and a failing program of each problem, anew for every epoch (paper §C.4).

    Raw row: {"prompt": "…", "completion": "…", "passed": true}, one program each, such as a code evaluation harness
    leaves them; rows of one prompt need not be neighbours. Problems with fewer than two passing programs or no failing
    one are left out. A problem's pairs differ from epoch to epoch for as long as there are new ones.

    Args:
        rows: Raw rows.
        dropped: Counts what is left out, by reason.
        seed: Of the draws.
        epochs: Epochs of pairs to write, one after another.

    Raises:
        SparsePOError: a row lacks a key.
    """
    programs: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for row in rows:
        program, passed = row.take("completion", str), row.take("passed", bool)
        if program.strip():
            programs[row.take("prompt", str)][not passed].append(program)
        else:
            dropped["the program is empty"] += 1
    draws = {}
    for number, (prompt, (passing, failing)) in enumerate(programs.items()):
        if len(passing) >= 2 and failing:
            draws[prompt] = _draws(prompt, passing, failing, random.Random(f"{seed} {number}"))
        else:
            dropped["a problem has fewer than two passing programs, or no failing one"] += 1
    for _ in range(epochs):
        yield from (next(pairs) for pairs in draws.values())


def _draws(prompt: str, passing: list[str], failing: list[str], generator: random.Random) -> Iterator[Pair]:
    """Endless pairs; all of them in a random order, then all again in another."""
    combinations = len(passing) * len(failing)
    while True:
        for drawn in generator.sample(range(combinations), combinations):
            yield Pair(prompt, passing[drawn // len(failing)], failing[drawn % len(failing)])
