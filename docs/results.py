"""The numbers and figures of docs/results.md, from what `make frontier` leaves.

python docs/results.py
"""

import csv
import shutil
from pathlib import Path
from typing import Any

from tables import ROOT, fill

from sparsepo_plugin.analysis.frontier import markdown

RUNS, PAGE = ROOT / "runs/frontier", ROOT / "docs/results.md"
BASELINES = {"figures": "dpo", "figures_tdpo": "tdpo v1"}  # as examples/frontier/run.py has them
IMAGES = {"frontier.png": "frontier.png", "bins.png": "frontier_bins.png"}
OURS = "sparsepo"

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Rows of a CSV file; numbers as such, without what is empty."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _value(text) for key, text in row.items() if text} for row in csv.DictReader(file)]


def setting(policies: list[Row]) -> str:
    """What was run, counted."""
    runs = len({row["run"] for row in policies})
    betas = ", ".join(f"{beta:g}" for beta in sorted({row["beta"] for row in policies}))
    (completions,) = {row["completions"] for row in policies}
    counts = f"{len(policies)} policies with their checkpoints, {completions} held-out completions of each"
    return f"{runs} runs; β {betas}; {counts}."


def verdicts(rows: list[Row]) -> str:
    """For each quantity, which of our methods are ahead of the baseline, behind it, or neither by the interval."""
    lines: dict[tuple[str, float | None], dict[str, list[str]]] = {}
    for row in rows:
        if row["method"].startswith(OURS):
            kl = row["kl_to"] if row["quantity"] == "reward" else None  # a shared area has an end of its own
            found = lines.setdefault((row["quantity"], kl), {"ahead": [], "behind": [], "not told apart": []})
            found[_verdict(row)].append(row["method"])
    return "\n".join(
        f"- {quantity}{f' at KL {kl:.2f}' if quantity == 'reward' else ''}: "
        + "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in found.items() if names)
        for (quantity, kl), found in lines.items()
    )


def sections(runs: Path) -> list[tuple[Path, str, str]]:
    """File, name and text of every part of the page that comes from CSV files."""
    policies = read(runs / "figures/frontier.csv")
    parts, told = [], []
    for folder, baseline in BASELINES.items():
        rows = read(runs / folder / "table.csv")
        parts += ["\n".join(markdown(rows))] if not parts else ["\n".join(markdown(rows)).split("\n\n")[1]]
        told.append(
            f"Of the methods of SparsePO, by the intervals of the differences to `{baseline}`:\n\n{verdicts(rows)}"
        )
    texts = {"setting": setting(policies), "frontier": "\n\n".join(parts), "verdicts": "\n\n".join(told)}
    return [(PAGE, name, text) for name, text in texts.items()]


def _verdict(row: Row) -> str:
    return "ahead" if row["difference_low"] > 0 else "behind" if row["difference_high"] < 0 else "not told apart"


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    for part in sections(RUNS):
        fill(*part)
    for source, image in IMAGES.items():
        shutil.copy(RUNS / "figures" / source, ROOT / "docs/images" / image)
