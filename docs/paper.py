"""The tables of examples/openrlhf/paper/README.md, from its recipes; run it after a change of one.

python docs/paper.py
"""

import csv
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from tables import Row, fill, table

PAPER = Path(__file__).parent.parent / "examples/openrlhf/paper"
METHODS = {
    "dpo": "DPO",
    "tdpo_v1": "TDPO v1",
    "tdpo_v2": "TDPO v2",
    "dpop": "DPOP",
    "simpo": "SimPO",
    "sepo": "SePO",
    "d2po": "D²PO",
    "sparsepo_dense": "SparsePO[dense]",
    "sparsepo_shared": "SparsePO[m_u = m_d]",
    "sparsepo_independent": "SparsePO[m_u ≠ m_d]",
}
TITLES = {
    1: "Win rates (%) against DPO, HH",
    2: "Open LLM Leaderboard, HH",
    3: "Win rates (%) against DPO, TL;DR",
    4: "Open LLM Leaderboard 2, HH",
    5: "Pass@k (%) after training on MBPP",
    6: "HumanRankEval, HH",
    7: "Mask architecture, DPO-mix-7k",
    8: "Weight decay of the mask, DPO-mix-7k",
    9: "Kinds of mask, DPO-mix-7k",
}


@dataclass(frozen=True)
class Experiment:
    """What arithmetic needs to know of an experiment beside its recipes.

    Attributes:
        name: First word of its recipes' names.
        title: The paper's.
        model: Its model, whose sizes follow.
        parameters: P.
        layers: L.
        width: d.
        pairs: Pairs that a recipe's file holds.
        counted: Where that number is from.
        typical: A recipe that stands for the others.
    """

    name: str
    title: str
    model: str
    parameters: float
    layers: int
    width: int
    pairs: int
    counted: str
    typical: str = "sparsepo_shared"


EXPERIMENTS = (
    Experiment("imdb", "Sentiment control", "GPT-2 large", 774e6, 36, 1280, 10_000, "assumed, no text has it"),
    Experiment("hh", "Helpfulness and harmlessness", "Pythia 1.4B", 1.41e9, 24, 2048, 160_800, "rows of the hub"),
    Experiment("tldr", "Summary quality", "GPT-J 6B", 6.05e9, 28, 4096, 40_000, "E B.2"),
    Experiment("mbpp", "Text-to-code", "StarCoder 1B", 1.14e9, 24, 2048, 5_490, "E C.4: 30 epochs of 183"),
    Experiment("mix", "Ablations", "Pythia 410M", 405e6, 24, 1024, 6_750, "rows of the hub", "sparsepo"),
)


def recipe(name: str) -> dict[str, Any]:
    """A recipe's settings."""
    return yaml.safe_load((PAPER / f"{name}.yaml").read_text())


def recipes(experiment: str) -> list[str]:
    """Names of an experiment's recipes in the order to run them: SFT, DPO (SePO's oracle), then the rest."""
    names = [path.stem for path in PAPER.glob(f"{experiment}_*.yaml")]
    return sorted(names, key=lambda name: (not name.endswith("_sft"), not name.endswith("_dpo"), name))


def link(name: str) -> str:
    """A recipe as a link."""
    return f"[{name}]({name}.yaml)"


def header(name: str) -> list[str]:
    """The comment that a recipe opens with, a line a string."""
    lines = (PAPER / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("#").removeprefix(" ") for line in lines[: lines.index("model:")]]


def commands(name: str) -> list[str]:
    """The commands of a recipe's header, in order; continued ones with their line breaks."""
    lines = [line.removeprefix("  ") for line in header(name) if line.startswith("  ")]
    return re.split(r"(?<!\\)\n", "\n".join(lines))


def matrix() -> str:
    """Methods by experiments, then the ablations with the row of the paper that each is."""
    columns = [experiment for experiment in EXPERIMENTS if experiment.name != "mix"]
    known = {name for experiment in columns for name in recipes(experiment.name)}
    rows = [
        (title, *(link(name) if (name := f"{e.name}_{method}") in known else "" for e in columns))
        for method, title in {"sft": "SFT", **METHODS}.items()
    ]
    ablations = [(link(name), header(name)[0].partition(": ")[2]) for name in recipes("mix")]
    return f"{table(('', *(e.title for e in columns)), rows)}\n\n{table(('ablation', 'what it is'), ablations)}"


def all_commands() -> str:
    """Every command once, the data of an experiment before its first recipe."""
    blocks = []
    for experiment in EXPERIMENTS:
        every = dict.fromkeys(command for name in recipes(experiment.name) for command in commands(name))
        blocks.append(f"# {experiment.title}\n" + "\n".join(every))
    return "```bash\n" + "\n\n".join(blocks) + "\n```"


def steps(experiment: Experiment) -> int:
    """Optimizer's steps of a recipe."""
    settings = recipe(f"{experiment.name}_{experiment.typical}")["train"]
    return experiment.pairs // settings["batch_size"] * settings["max_epochs"]


def trained(experiment: Experiment, lora: dict[str, Any] | None) -> float:
    """Parameters that are trained: all, or LoRA's 2·r·d of each module, all of them square here."""
    if lora is None:
        return experiment.parameters
    return 2 * lora["rank"] * experiment.width * len(lora["target_modules"]) * experiment.layers


def gigabytes(experiment: Experiment) -> list[float]:
    """Memory in 10⁹ bytes: weights, training state, reference, and the hidden rows of a full micro-batch."""
    settings = recipe(f"{experiment.name}_{experiment.typical}")
    lora = settings["ds"].get("lora")
    width = 4 if settings["ds"]["param_dtype"] == "fp32" else 2
    weights = width * experiment.parameters
    state = (width + 16) * trained(experiment, lora)
    tokens = 2 * settings["train"]["micro_batch_size"] * settings["data"]["max_len"]
    rows = experiment.layers * tokens * experiment.width * width
    return [size / 1e9 for size in (weights, state, 0 if lora else weights, rows)]


def cost() -> str:
    """Steps and memory of each experiment."""
    rows: list[Row] = []
    for e in EXPERIMENTS:
        sizes = gigabytes(e)
        numbers = (*(f"{size:.1f}" for size in sizes), f"{sum(sizes):.0f}")
        rows.append((e.title, e.model, f"{e.pairs:,} ({e.counted})", f"{steps(e):,}", *numbers))
    memory = ("weights", "state", "reference", "hidden rows", "together")
    return table(("", "model", "pairs", "steps", *(f"{name}, GB" for name in memory)), rows)


def results() -> str:
    """The paper's tables, with the recipe of each row."""
    with (PAPER / "results.csv").open(encoding="utf-8") as file:
        numbers = list(csv.DictReader(file))
    return "\n\n".join(
        f"Table {number}. {TITLES[int(number)]}\n\n{result_table(list(group))}"
        for number, group in groupby(numbers, lambda cell: cell["table"])
    )


def result_table(cells: list[dict[str, str]]) -> str:
    """One table of the paper."""
    rows = [list(group) for _, group in groupby(cells, lambda cell: cell["row"])]
    columns = tuple(cell["column"] for cell in rows[0])
    lines = [
        (row[0]["row"], *(cell["value"] for cell in row), link(row[0]["file"]) if row[0]["file"] else "")
        for row in rows
    ]
    return table(("", *columns, "recipe"), lines)


def sections() -> list[tuple[Path, str, str]]:
    """File, name and text of every generated table."""
    page = PAPER / "README.md"
    parts = {"matrix": matrix, "commands": all_commands, "cost": cost, "results": results}
    return [(page, name, text()) for name, text in parts.items()]


if __name__ == "__main__":
    for part in sections():
        fill(*part)
