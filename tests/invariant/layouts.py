"""What a run may be laid out like without a change of its numbers, and the rows of these tables that are run."""

from itertools import combinations, product

# The first value of each is that of the plain run that all others are compared with; of masks and references each
# combination has a plain run of its own.
FACTORS = {
    "mask": ("learned shared", "learned independent", "activation", "random"),
    "reference": ("full", "LoRA shared", "LoRA other"),
    "packed": (False, True),
    "zero": (2, 0, 1, 3),
    "processes": (1, 2),
    "checkpointing": (False, True),
    "logging": (1, 5),
    "accumulation": (1, 2),
    "prefix once": (False, True),
}
EXPERIMENT = ("mask", "reference")


def every_layout() -> list[dict]:
    """The whole product of all factors but the last, which takes turns: it would double hours. Without plain runs."""
    rows = [row for row in _product() if row["prefix once"] == bool(_steps_from_plain(row) % 2)]
    return [row for row in rows if row != plain(row)]


def covering_layouts() -> list[dict]:
    """Rows in which every value of a factor meets every value of every other, chosen greedily."""
    rows = [row for row in reversed(_product()) if row != plain(row)]  # of equally good ones the furthest from plain
    missing = set().union(*map(_pairs, rows))
    chosen = []
    while missing:
        chosen.append(max(rows, key=lambda row: len(_pairs(row) & missing)))
        missing -= _pairs(chosen[-1])
    return chosen


def _product() -> list[dict]:
    return [dict(zip(FACTORS, values, strict=True)) for values in product(*FACTORS.values())]


def _steps_from_plain(row: dict) -> int:
    """Over all factors but the last and those that are no layout, how far down its list each value stands."""
    return sum(FACTORS[name].index(row[name]) for name in FACTORS if name not in (*EXPERIMENT, "prefix once"))


def _pairs(row: dict) -> set[tuple]:
    return set(combinations(row.items(), 2))


def plain(row: dict) -> dict:
    """The run with the same masks and reference that a row must equal."""
    return {name: row[name] if name in EXPERIMENT else values[0] for name, values in FACTORS.items()}


def name(row: dict) -> str:
    """What is not plain in it."""
    usual = plain(row)
    apart = [f"{factor} {value}" for factor, value in row.items() if value != usual[factor]]
    return ", ".join([row["mask"], row["reference"], *apart])
