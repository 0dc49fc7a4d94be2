"""The committed measurements: complete, within their bars, and the only source of the numbers in the documents."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLUMNS = (
    "device baseline objective mask shared sparsity pairs prompt response vocab packed lora "
    "time_ratio memory_ratio seconds bytes versions"
)


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import report

    yield report
    for name in ("report", "shapes"):
        sys.modules.pop(name)


def test_documents_say_what_the_csv_files_say(report):
    for path, name, text in report.sections(report.RESULTS):
        written = path.read_text().split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
        assert written == text, f"{path.name}, {name}: run benchmarks/report.py"


def test_every_ratio_is_to_the_same_step(report):
    """Seconds by ratio is what the baseline took, the same for all losses of a shape; ratios have four decimals."""
    rows = report.read(report.RESULTS / "step_cost_cpu.csv")
    assert list(rows[0]) == COLUMNS.split()
    for ratio, cost in (("time_ratio", "seconds"), ("memory_ratio", "bytes")):
        baselines: dict[tuple, list] = {}
        for row in rows:
            if row["device"] == "cpu":
                key = (report.shape(row), row["baseline"])
                baselines.setdefault(key, []).append(float(row[cost]) / float(row[ratio]))
        assert all(max(costs) / min(costs) < 1.002 for costs in baselines.values())


def test_the_grid_is_whole(report):
    rows = report.read(report.RESULTS / "step_cost_cpu.csv")
    assert {report.label(row) for row in rows} >= {
        *("`learned` shared", "`learned` independent", "`learned` shared, 80% zero", "`activation`"),
        *("`dpo`", "`tdpo`", "`dpop`", "`simpo`", "`d2po`", "`sepo`"),
    }
    assert {row["packed"] for row in rows} == {row["lora"] for row in rows} == {"True", "False"}
    assert {row["vocab"] for row in rows if row["device"] == "cpu"} == {"32000", "128256", "151936"}


def test_committed_numbers_keep_the_bars(report):
    cost, parts = (report.read(report.RESULTS / f"{name}_cpu.csv") for name in ("step_cost", "parts"))
    found = report.bars(cost, parts)
    assert len(found) == 14
    assert [name for name, limit, value in found if value > limit] == []
