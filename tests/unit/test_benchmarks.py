"""The committed measurements: complete, within their bars, and the only source of the numbers in the documents."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLUMNS = (
    "device baseline objective mask shared sparsity shared_prefix pairs prompt response vocab packed lora "
    "time_ratio time_ratio_least time_ratio_most user_ratio user_ratio_least user_ratio_most "
    "memory_ratio seconds bytes faults versions"
)


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """Modules of the benchmark by their plain names, for one test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in ("report", "shapes", "meter"):
        sys.modules.pop(name, None)


@pytest.fixture
def report(modules):
    import report

    return report


@pytest.fixture
def meter(modules):
    import meter

    return meter


@pytest.fixture
def measured(report):
    """Rows of the CPU's grid."""
    rows = report.read(report.RESULTS / "step_cost_cpu.csv")
    assert list(rows[0]) == COLUMNS.split()
    return [row for row in rows if row["device"] == "cpu"]


def test_documents_say_what_the_csv_files_say(report):
    for path, name, text in report.sections(report.RESULTS):
        written = path.read_text().split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
        assert written == text, f"{path.name}, {name}: run benchmarks/report.py"


@pytest.mark.parametrize(
    ("ratio", "cost", "spread"), [("memory_ratio", "bytes", 1.002), ("time_ratio", "seconds", 1.25)]
)
def test_every_ratio_is_to_the_same_step(report, measured, ratio, cost, spread):
    """Cost by ratio is what the baseline took, the same for all losses of a shape.

    Ratios have four decimals; those of time are medians over turns, each of which has a time of its own.
    """
    baselines: dict[tuple, list] = {}
    for row in measured:
        key = (report.shape(row), row["baseline"])
        baselines.setdefault(key, []).append(float(row[cost]) / float(row[ratio]))
    assert all(max(costs) / min(costs) < spread for costs in baselines.values())


def test_ratios_lie_between_the_least_and_the_most(measured):
    for row in measured:
        for kind in ("time", "user"):
            middle, least, most = (float(row[f"{kind}_ratio{end}"]) for end in ("", "_least", "_most"))
            assert 0 < least <= middle <= most


def test_no_committed_time_has_fresh_memory_in_it(report, meter, measured):
    """Faults are near zero by the rule that refuses a run; only the note on what fresh memory costs has them."""
    growth, parts = (report.read(report.RESULTS / f"{name}_cpu.csv") for name in ("growth", "parts"))
    fresh = [row for row in parts if row["part"].endswith("memory fresh")]
    assert len(fresh) == 2
    for row in [*measured, *growth, *parts]:
        if row not in fresh and row["bytes"]:
            meter.Cost(float(row["seconds"]), faults=int(row["faults"])).check(row, int(row["bytes"]))
    for row in fresh:
        with pytest.raises(meter.FreshMemory):
            meter.Cost(float(row["seconds"]), faults=int(row["faults"])).check(row, int(row["bytes"]))


def test_the_grid_is_whole(report):
    rows = report.read(report.RESULTS / "step_cost_cpu.csv")
    assert {report.label(row) for row in rows} >= {
        *("`learned` shared", "`learned` independent", "`learned` shared, 80% zero", "`activation`"),
        *("`dpo`", "`tdpo`", "`simpo`", "`sepo`"),
    }
    assert {row["packed"] for row in rows} == {row["lora"] for row in rows} == {"True", "False"}
    assert {row["vocab"] for row in rows if row["device"] == "cpu"} == {"32000", "128256"}


def test_committed_numbers_keep_the_bars_or_nearly(report):
    """The table says which are not reached; a change that costs more than a quarter over one is a mistake."""
    cost, parts = (report.read(report.RESULTS / f"{name}_cpu.csv") for name in ("step_cost", "parts"))
    found = report.bars(cost, parts)
    assert len(found) == 22
    assert [name for name, limit, value in found if value > 1.25 * limit] == []
    assert sum(value <= limit for _, limit, value in found) >= 18


def test_a_step_with_fresh_memory_is_refused_by_name(meter):
    size, weight = 1 << 22, torch.ones(1, requires_grad=True)

    def mapping():
        with mmap.mmap(-1, size) as block:
            block[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
        return weight.sum()

    losses = {"still": lambda: weight.sum(), "mapping": mapping}
    costs = meter.take_turns(losses, meter.Meter("cpu", fresh=False), 2, lambda: None)
    assert {name: len(turns) for name, turns in costs.items()} == {"still": 2, "mapping": 2}
    meter.middle(costs["still"]).check("still", 16 * size)
    with pytest.raises(meter.FreshMemory, match=r"^mapping touched 1,0\d\d new pages .* works on 1,024"):
        meter.middle(costs["mapping"]).check("mapping", size)


def test_what_a_host_lacks_is_the_reason_in_place_of_a_cost(meter):
    weight = torch.ones(1, requires_grad=True)

    def lacking():
        raise ImportError("no library\nof that name")

    arguments = (meter.Meter("cpu", fresh=False), 1, lambda: None)
    costs = meter.take_turns({"ours": lambda: weight.sum(), "theirs": lacking}, *arguments, may_lack=("theirs",))
    assert costs["theirs"] == "no library"
    assert costs["ours"][0].seconds > 0
    with pytest.raises(ImportError):
        meter.take_turns({"ours": lacking}, *arguments)
