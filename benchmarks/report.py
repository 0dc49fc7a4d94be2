"""Tables and plots from the CSV files of measurements and of `make localize`; no number in them is written by hand."""

import csv
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from shapes import FIRST, LONG, LONGER, PYTHIA, SECOND, SEVEN_B, SHORT, THIRD

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
# The most that a dense step may cost: time and memory to OpenRLHF's DPO step, and time to our own without sharing.
BARS = {
    FIRST: (0.45, 0.45, 0.82),
    SECOND: (0.88, 0.50, 1.00),
    THIRD: (0.42, 0.35, 0.95),
    LONG: (0.45, 0.40, 0.80),
    LONGER: (0.48, 0.40, 0.78),
    replace(FIRST, packed=True): (0.40, 0.40, 0.60),
}
TO_TRL = (0.35, 0.25)  # time and memory to TRL's DPO step, on SHORT
BUDGET = 128e6  # bytes of logits that are kept on a CPU by default
AXES = {
    "prompt": "prompt tokens",
    "response": "response tokens",
    "vocabulary": "vocabulary",
    "layers": "layers",
    "sparsity": "share of zero masks",
}

QUANTITIES = {
    "mask_reward": "m_u",
    "mask_kl": "m_d",
    "log_ratio": "log-ratio",
    "advantage": "advantage",
    "kl": "token KL",
}
UNMEASURED = "not measured"

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def label(row: Row) -> str:
    """What one of our losses is called in tables."""
    if row["objective"] != "sparsepo":
        return f"`{row['objective']}`"
    name = f"`{row['mask']}`"
    if row["mask"] == "learned":
        name += " shared" if row["shared"] == "True" else " independent"
    return name if float(row["sparsity"]) == 0 else f"{name}, {float(row['sparsity']):.0%} zero"


def shape(row: Row) -> str:
    """The batch of a row."""
    extras = [name for key, name in (("packed", "packed"), ("lora", "LoRA")) if row[key] == "True"]
    text = f"{row['pairs']} × {row['prompt']} × {row['response']}, {int(row['vocab']):,}"
    return ", ".join([text, *extras])


def ratios(row: Row) -> str:
    """Wall time with the least and the most of the turns / user time / memory."""
    time, least, most = (f"{float(row[f'time_ratio{end}']):.2f}" for end in ("", "_least", "_most"))
    user = f"{float(row['user_ratio']):.2f}" if row["user_ratio"] else "–"
    return f"{time} ({least}–{most}) / {user} / {float(row['memory_ratio']):.2f}"


def cost_table(rows: list[Row]) -> str:
    """Every measured loss with its ratios to each baseline."""
    baselines = list(dict.fromkeys(row["baseline"] for row in rows))
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        device = "" if row["device"] == "cpu" else f" ({row['device']})"
        measured = row["time_ratio"] != UNMEASURED
        value = ratios(row) if measured else UNMEASURED
        seconds = "–" if row["seconds"] == UNMEASURED else f"{float(row['seconds']):.2f} s"
        name = "each" if seconds == "–" else label(row)
        lines.setdefault((shape(row) + device, name, seconds), {})[row["baseline"]] = value
    cells = [[*key, *(values.get(name, "–") for name in baselines)] for key, values in lines.items()]
    header = ["pairs × prompt × response, vocabulary", "loss", "a step", *(f"to `{name}`" for name in baselines)]
    return table(header, cells)


def short_table(rows: list[Row]) -> str:
    """The dense `learned` mask on every shape that was measured, for the front page."""
    dense = [row for row in rows if label(row) == "`learned` shared" and row["seconds"] != UNMEASURED]
    return cost_table(dense) + f"\n\nMeasured on {hardware(rows)}"


def hardware(rows: list[Row]) -> str:
    """Hardware and versions of the first measured row, as a sentence's end."""
    return next(row["versions"] for row in rows if row["seconds"] != UNMEASURED) + "."


def parts_table(rows: list[Row], measurement: str) -> str:
    """Seconds, shares, and bytes where they were measured, of one measurement."""
    found = [row for row in rows if row["measurement"] == measurement]
    cells = [[row["part"], f"{float(row['seconds']):.3f}", f"{float(row['share']):.0%}"] for row in found]
    if not found[0]["bytes"]:
        return table(["part", "seconds", "share"], cells)
    sized = [[*cell, f"{int(row['bytes']) / 2**20:.0f} MiB"] for cell, row in zip(cells, found, strict=True)]
    return table(["part", "seconds", "share", "peak memory"], sized)


def allocation_table(rows: list[Row]) -> str:
    """What two steps take with memory kept and with fresh memory."""
    found = [row for row in rows if row["measurement"] == "allocation"]
    cells = [
        [row["part"], f"{float(row['seconds']):.2f}", f"{float(row['share']):.1f}", f"{int(row['faults']):,}"]
        for row in found
    ]
    return table(["step", "seconds", "times as long as kept", "new pages"], cells)


def floor_table(rows: list[Row]) -> str:
    """GFLOP of a step's matrix products, OpenRLHF's and ours by what is kept, and their ratios beside the measured."""
    measured, cells = to_baseline(rows, "openrlhf_dpo"), []
    for batch in (FIRST, SECOND, THIRD, LONG, LONGER):
        tokens, responses = (2 * batch.pairs * length for length in (batch.prompt + batch.response, batch.response))
        once = tokens - batch.pairs * batch.prompt
        models, ours_models = (8 * batch.size.body * rows for rows in (tokens, once))
        product = 2 * batch.size.width * batch.vocab
        kept = min(1.0, BUDGET / (4 * responses * batch.vocab))  # of the reference's logits
        theirs, ours = 4 * product * tokens, [(5 - share) * product * responses for share in (0.0, kept, 1.0)]
        counts = [f"{count:,}" for count in (tokens, once, responses)]
        counts += [f"{flop / 1e9:.0f}" for flop in (models, ours_models, theirs, *ours)]
        floors = [f"{(ours_models + flop) / (models + theirs):.2f}" for flop in ours]
        row = measured.get((str(batch), "`learned` shared"))
        found = [f"{float(row[f'{kind}_ratio']):.2f}" if row else UNMEASURED for kind in ("time", "user")]
        cells.append([str(batch), *counts, *floors, *found])
    budgets = ("none", "128 MB", "all")
    header = ["T", "T − C", "N", "models, OpenRLHF", "models, ours", "vocabulary, OpenRLHF"]
    header += [f"vocabulary, ours, {kept} kept" for kept in budgets] + [f"ratio of all, {kept}" for kept in budgets]
    header += ["measured, time", "measured, user time"]
    return table(["pairs × prompt × response, V", *header], cells)


def hidden_rows_table() -> str:
    """Bytes of the hidden rows that a mask over all layers reads, in bf16: 2·L·N·d."""
    cells = [
        [
            size.name,
            str(size.layers),
            f"{size.width:,}",
            f"{rows:,}",
            f"{2 * size.layers * rows * size.width / 2**30:.2f} GiB",
        ]
        for size in (PYTHIA, SEVEN_B)
        for rows in (2048, 8192, 32768)
    ]
    return table(["model", "L", "d", "N, response tokens of a micro-batch", "rows"], cells)


def mask_start_table(rows: list[Row]) -> str:
    """What became of each start of the masks: means over seeds, with the least and the most."""
    cells = []
    for l1, init in dict.fromkeys((row["l1"], row["init"]) for row in rows):
        own = [row for row in rows if (row["l1"], row["init"]) == (l1, init)]
        first, last = ([row for row in own if row["step"] == step] for step in ("0", own[-1]["step"]))
        zeros = f"{spread(first, 'zeros', 0)} → {spread(last, 'zeros', 0)}"
        kl = spread(last, "token_kl", 3)
        cells.append(
            [f"{float(l1):g}", f"`{init}`", spread(last, "accuracy", 2), zeros, spread(last, "mask_mean", 2), kl]
        )
    return table(["L1", "`init`", "accuracy", "zeros, %, first → last step", "mean weight", "token KL"], cells)


def localize_table(rows: list[Row], experiment: Row) -> str:
    """AUC of each quantity of each run, and the share of |advantage|, with intervals over pairs."""
    cells = []
    for run in dict.fromkeys(row["run"] for row in rows):
        own = {row["quantity"]: row for row in rows if row["run"] == run}
        aucs = [interval(own[name], "auc", ".2f") if name in own else "–" for name in QUANTITIES]
        cells.append([f"`{run}`", *aucs, interval(own["advantage"], "share", ".1%")])
    header = ["run", *(f"AUC of {label}" for label in QUANTITIES.values()), "share of advantage on edited tokens"]
    edits = f"{float(rows[0]['edited_share']):.1%} of {int(rows[0]['tokens']):,} tokens"
    facts = [
        f"- {rows[0]['pairs']} pairs of held-out reviews, in which {edits} are edited.",
        f"- The linear function that is told the edits: AUC {interval(experiment, 'probe_auc', '.2f')}.",
        f"- The language model: {float(experiment['nats_seen']):.2f} nats a token on reviews that it learned, "
        f"{float(experiment['nats_unseen']):.2f} on others.",
    ]
    return f"{table(header, cells)}\n\n" + "\n".join(facts)


def interval(row: Row, name: str, digits: str) -> str:
    """A value with its interval; – if there is none."""
    if not row[name]:
        return "–"
    value, low, high = (f"{float(row[key]):{digits}}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} ({low}–{high})"


def spread(rows: list[Row], column: str, digits: int) -> str:
    """Mean with the least and the most."""
    values = [float(row[column]) for row in rows]
    mean, least, most = (f"{value:.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return f"{mean} ({least}–{most})"


def to_baseline(rows: list[Row], baseline: str) -> dict[tuple[str, str], Row]:
    """Rows on the CPU against a baseline, by shape and loss."""
    found = [row for row in rows if row["baseline"] == baseline and row["device"] == "cpu"]
    return {(shape(row), label(row)): row for row in found}


def bars(rows: list[Row], parts: list[Row]) -> list[tuple[str, float, float]]:
    """Name, limit and measured value of each bar."""
    dense, sparse = "`learned` shared", "`learned` shared, 80% zero"
    openrlhf, unshared, trl = (to_baseline(rows, name) for name in ("openrlhf_dpo", "unshared", "trl_dpo"))
    found = []
    for batch, (time, memory, time_to_unshared) in BARS.items():
        key = str(batch), dense
        found.append((f"{batch}: time to `openrlhf_dpo`", time, float(openrlhf[key]["time_ratio"])))
        found.append((f"{batch}: memory to `openrlhf_dpo`", memory, float(openrlhf[key]["memory_ratio"])))
        found.append((f"{batch}: time to `unshared`", time_to_unshared, float(unshared[key]["time_ratio"])))
    key = str(SHORT), dense
    found.append((f"{SHORT}: time to `trl_dpo`", TO_TRL[0], float(trl[key]["time_ratio"])))
    found.append((f"{SHORT}: memory to `trl_dpo`", TO_TRL[1], float(trl[key]["memory_ratio"])))
    seconds = {name: float(openrlhf[str(FIRST), name]["seconds"]) for name in (dense, sparse)}
    found.append((f"{FIRST}: 80% zero to dense, time", 0.80, seconds[sparse] / seconds[dense]))
    vocabulary = {row["part"]: float(row["share"]) for row in parts if row["measurement"] == "vocabulary"}
    return [*found, ("80% zero to dense, vocabulary part, time", 0.3, vocabulary["80% sparse"])]


def bars_table(results: Path = RESULTS) -> str:
    """The bars with what was measured."""
    found = bars(read(results / "step_cost_cpu.csv"), read(results / "parts_cpu.csv"))
    cells = [
        [name, f"{limit:.2f}", f"{value:.2f}", "reached" if value <= limit else "not reached"]
        for name, limit, value in found
    ]
    return table(["bar", "at most", "measured", "result"], cells)


def plot(rows: list[Row], path: Path) -> None:
    """Seconds of a step along each axis, ours and OpenRLHF's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, (axis, name) in zip(figure.subplots(1, len(AXES)), AXES.items(), strict=True):
        for contestant, style in (("openrlhf_dpo", "s--"), ("sparsepo", "o-")):  # ours last: it has every point
            points = [row for row in rows if (row["axis"], row["contestant"]) == (axis, contestant)]
            axes.plot(*([float(row[key]) for row in points] for key in ("value", "seconds")), style, label=contestant)
        axes.set(xlabel=name, ylim=(0, None), xticks=[float(row["value"]) for row in points])
    figure.axes[0].set_ylabel("seconds a step")
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def plot_mask_start(rows: list[Row], path: Path) -> None:
    """Accuracy, zeros and loss over steps by start of the masks: means over seeds, with the least and the most."""
    from matplotlib.figure import Figure

    weights, columns = list(dict.fromkeys(row["l1"] for row in rows)), ("accuracy", "zeros", "loss")
    figure = Figure(figsize=(10, 2.4 * len(weights)), layout="constrained")
    for l1, line in zip(weights, figure.subplots(len(weights), len(columns), squeeze=False), strict=True):
        for column, axes in zip(columns, line, strict=True):
            for init in dict.fromkeys(row["init"] for row in rows):
                curves: dict[int, list[float]] = {}
                for row in rows:
                    if (row["l1"], row["init"]) == (l1, init):
                        curves.setdefault(int(row["step"]), []).append(float(row[column]))
                (drawn,) = axes.plot(curves.keys(), [fmean(values) for values in curves.values()], label=init)
                bounds = ([bound(values) for values in curves.values()] for bound in (min, max))
                axes.fill_between(curves.keys(), *bounds, alpha=0.2, color=drawn.get_color())
            axes.set(xlabel="step", title=f"{column}{', %' if column == 'zeros' else ''}, L1 {float(l1):g}")
    figure.axes[0].legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def fill(path: Path, name: str, text: str) -> None:
    """Put `text` between a file's `<!-- name -->` and `<!-- /name -->`."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = path.read_text().split(opening)
    path.write_text(f"{before}{opening}\n{text}\n{rest[rest.index(closing) :]}")


def sections(results: Path) -> list[tuple[Path, str, str]]:
    """File, name and text of every section that comes from the CSV files."""
    cost, parts = read(results / "step_cost_cpu.csv"), read(results / "parts_cpu.csv")
    if (gpu := results / "step_cost_cuda.csv").exists():
        cost = [row for row in cost if row["device"] == "cpu"] + read(gpu)
    (experiment,) = read(results / "localize_experiment.csv")
    localize = localize_table(read(results / "localize.csv"), experiment)
    page, performance = ROOT / "benchmarks/README.md", ROOT / "docs/performance.md"
    return [
        (ROOT / "README.md", "cost", short_table(cost)),
        (page, "cost", f"{cost_table(cost)}\n\nMeasured on {hardware(cost)}"),
        (page, "bars", bars_table(results)),
        (ROOT / "docs" / "methods.md", "mask start", mask_start_table(read(results / "mask_start.csv"))),
        (ROOT / "docs" / "results.md", "localize", localize),
        (performance, "floor", floor_table(cost)),
        (performance, "allocation", allocation_table(parts)),
        (performance, "hidden rows", hidden_rows_table()),
        (performance, "profile", parts_table(parts, "profile")),
        (performance, "vocabulary", parts_table(parts, "vocabulary")),
        (performance, "tried", parts_table(parts, "tried")),
    ]


def main(results: Annotated[Path, typer.Option(help="folder of the CSV files")] = RESULTS) -> None:
    """Renew the tables of README.md, benchmarks/README.md and docs, and the plots."""
    for path, name, text in sections(results):
        fill(path, name, text)
    plot(read(results / "growth_cpu.csv"), ROOT / "docs/images/step_cost.png")
    plot_mask_start(read(results / "mask_start.csv"), ROOT / "docs/images/mask_start.png")


if __name__ == "__main__":
    typer.run(main)
