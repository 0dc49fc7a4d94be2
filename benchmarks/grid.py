"""What is measured: contestants on shapes."""

from dataclasses import dataclass, replace

from contestants import Ours
from shapes import FIRST, LONG, LONGER, PYTHIA, SECOND, SEVEN_B, SHORT, SMALL, THIRD, Shape

BASELINES = ("openrlhf_dpo", "trl_dpo", "unshared", "plain")
METHODS = ("dpo", "tdpo", "simpo", "sepo")  # one of those that compute the same, by the table in docs/methods.md
SPARSE = Ours(sparsity=0.8)
MASKS = (Ours(), Ours(shared=False), SPARSE, Ours(mask="activation"))
ALL = (*MASKS, *(Ours(name) for name in METHODS))


@dataclass(frozen=True)
class Case:
    """Contestants that take turns on one shape."""

    shape: Shape
    ours: tuple[Ours, ...] = (Ours(),)
    baselines: tuple[str, ...] = ("openrlhf_dpo", "unshared")


# On CPU only what fits into twenty minutes on two cores.
GRID = {
    "cpu": [
        Case(FIRST, ALL, BASELINES),
        Case(SECOND, MASKS),
        Case(THIRD),
        Case(LONG),
        Case(LONGER),
        Case(SHORT, baselines=("openrlhf_dpo", "trl_dpo", "unshared")),
        Case(replace(FIRST, packed=True)),
        Case(replace(FIRST, lora=True)),
    ],
    "cuda": [
        *(Case(Shape(4, 512, 512, 50_304, packed, size=PYTHIA), ALL, BASELINES) for packed in (False, True)),
        Case(Shape(2, 512, 512, 32_000, size=SEVEN_B), MASKS, BASELINES),
        Case(Shape(2, 512, 512, 128_256, lora=True, size=SEVEN_B), MASKS, BASELINES),
    ],
}
POINT, BESIDE = Shape(2, 64, 64, 32_000), ("openrlhf_dpo",)
GROWTH = {  # what the plot shows: every axis alone, from one point; OpenRLHF's step knows no sparsity
    "prompt": {n: Case(replace(POINT, prompt=n), baselines=BESIDE) for n in (64, 256, 512)},
    "response": {n: Case(replace(POINT, response=n), baselines=BESIDE) for n in (32, 128, 256)},
    "vocabulary": {v: Case(replace(POINT, vocab=v), baselines=BESIDE) for v in (8_000, 32_000, 96_000)},
    "layers": {n: Case(replace(POINT, size=replace(SMALL, layers=n)), baselines=BESIDE) for n in (2, 6, 12)},
    "sparsity": {s: Case(replace(POINT, response=192), (replace(SPARSE, sparsity=s),), ()) for s in (0.0, 0.4, 0.8)},
}
