"""`sparsepo curves` and `report`, on their CSV, their lines and their pages, against what runs logged and answer."""

import csv
import sys
from xml.etree import ElementTree

import pytest
import torch
from finished_runs import INDEPENDENT, NASTY, PLAIN, finished_run, write_lines, write_metrics
from typer.testing import CliRunner

from sparsepo_plugin import load_run
from sparsepo_plugin.analysis.curves import COLUMNS, PANELS, draw_curves
from sparsepo_plugin.analysis.distributions import BINS
from sparsepo_plugin.analysis.plots import svg
from sparsepo_plugin.cli import app
from sparsepo_plugin.record import METRICS, read_metrics

PAIRS = [PLAIN, *NASTY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs with metrics: independent and shared masks, and none; a run that logged nothing; pairs."""
    folder = tmp_path_factory.mktemp("curves")
    finished_run(folder / "two", section=INDEPENDENT)
    finished_run(folder / "one", section={"shared": True, "init": "linear"}, seed=3)
    finished_run(folder / "dpo", "dpo")
    finished_run(folder / "silent", "dpo")
    for scale, name in enumerate(("two", "one", "dpo"), start=1):
        write_metrics(folder / name, scale=scale)
    write_lines(folder / "pairs.jsonl", PAIRS)
    return folder


@pytest.fixture
def sparsepo(folder, tmp_path, monkeypatch):
    """The command, typed where the runs are; `out` is a folder of the test."""
    monkeypatch.chdir(folder)

    def sparsepo(*arguments):
        return CliRunner().invoke(app, [part.replace("out", f"{tmp_path}/out") for part in arguments])

    return sparsepo


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_what_was_logged(sparsepo, folder, tmp_path):
    done = sparsepo("curves", "two", "one", "-o", "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(tmp_path / "out" / f"curves.{ending}") for ending in ("csv", "png", "svg")]
    logged = [{"run": name, **row} for name in ("two", "one") for row in read_metrics(folder / name)]
    expected = [{name: str(row.get(name, "")) for name in COLUMNS} for row in logged]
    assert read(tmp_path / "out" / "curves.csv") == expected
    assert {row["split"] for row in expected} == {"train", "eval"}
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "out" / "curves.svg").getroot().tag.endswith("svg")


def test_lines_are_what_was_logged(folder):
    """A line of training and points of evaluation for each run and number; steps without a number have no point."""
    logged = [read_metrics(folder / name) for name in ("two", "one")]
    figure = draw_curves(["two", "one"], logged)
    for panel, (_, names) in zip(figure.axes, PANELS, strict=True):
        drawn = [line.get_xydata().tolist() for line in panel.lines]
        expected = [
            [[row["step"], row[name]] for row in rows if row["split"] == split and name in row]
            for rows in logged
            for name in names
            for split in ("train", "eval")
        ]
        assert drawn == expected
        assert len({line.get_color() for line in panel.lines}) == 2
    kl = figure.axes[2].lines[0]
    assert kl.get_xdata().tolist() == [1, 2, 4, 5]


def test_a_number_that_no_run_logged_is_said():
    figure = draw_curves(["run"], [[{"step": 1, "split": "train", "loss": 0.5, "accuracy": None}]])
    assert {text.get_text() for panel in figure.axes for text in panel.texts} == {"not logged"}


def test_a_name_with_signs_of_mathematics_is_text_and_no_formula():
    assert "<svg" in svg(draw_curves(["$x_{1$ <b>"], [[{"step": 1, "split": "train", "accuracy": 0.5}]]))


def test_the_same_numbers_are_the_same_file(folder):
    logged = [read_metrics(folder / "two")]
    assert svg(draw_curves(["two"], logged)) == svg(draw_curves(["two"], logged))


def test_distributions_are_those_of_the_tables(sparsepo, folder, tmp_path):
    """Zeros apart, then as many tokens in each bin as there are weights between its edges."""
    done = sparsepo("curves", "two", "one", "dpo", "-o", "out", "--pairs", "pairs.jsonl", "-n", "2")
    assert done.exit_code == 0, done.output
    rows = read(tmp_path / "out" / "masks.csv")
    found = {}
    for row in rows:
        found.setdefault((row["run"], row["mask"], row["response"]), []).append(row)
    masks = {("two", "m_u"): "mask_reward", ("two", "m_d"): "mask_kl", ("one", "m_u = m_d"): "mask_kl"}
    assert list(found) == [(*mask, side) for mask in masks for side in ("chosen", "rejected")]
    zeros = 0
    for (name, mask, side), bins in found.items():
        tables = [load_run(folder / name, device="cpu").tokens(**pair) for pair in PAIRS[:2]]
        values = torch.cat([getattr(table.of(side), masks[name, mask]) for table in tables])
        assert len(bins) == BINS + 1
        assert (bins[0]["from"], bins[0]["to"]) == ("0.0", "0.0")
        assert int(bins[0]["tokens"]) == (values == 0).sum()
        zeros += int(bins[0]["tokens"])
        assert sum(int(row["tokens"]) for row in bins) == len(values)
        last = bins[-1]
        for row in bins[1:]:
            least, most = float(row["from"]), float(row["to"])
            below = values <= most + 1e-6 if row is last else values < most
            assert int(row["tokens"]) == ((values >= least) & below & (values != 0)).sum()
    assert zeros > 0
    assert (tmp_path / "out" / "masks.png").is_file() and (tmp_path / "out" / "masks.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("curves", "nowhere", "-o", "out"), "nowhere/sparsepo.json is missing"),
        (("curves", "silent", "-o", "out"), f"silent/{METRICS} is missing or empty: the run logged no numbers"),
        (("curves", "two", "./two", "-o", "out"), "two, two: a run is given twice"),
        (("curves", "two", "-o", "pairs.jsonl"), "pairs.jsonl is a file, a folder is needed there"),
        (("curves", "two", "-n", "3", "-o", "out"), "-n has no effect without --pairs"),
        (("curves", "dpo", "-o", "out", "--pairs", "pairs.jsonl"), "--pairs: dpo: the loss has no masks whose values"),
        (("curves", "two", "-o", "out", "--pairs", "absent.jsonl"), "--pairs absent.jsonl cannot be read"),
        (("report", "nowhere", "-o", "out/report.html"), "nowhere/sparsepo.json is missing"),
        (("report", "two", "-o", "two"), "-o two is a folder, a file is needed"),
        (("report", "two", "-n", "3", "-o", "out/report.html"), "-n has no effect without --pairs"),
        (("report", "two", "-o", "out/report.html", "--pairs", "absent.jsonl"), "--pairs absent.jsonl cannot be read"),
        (("report", "two", "-o", "out/report.html", "--pairs", "pairs.jsonl", "-n", "0"), "-n is 0, 1 or more is"),
    ],
)
def test_bad_input(arguments, says, sparsepo, tmp_path):
    done = sparsepo(*arguments)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sparsepo: error: ")]
    assert says in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["curves", "report"])
def test_without_matplotlib(command, sparsepo, monkeypatch):
    for name in ("plots", "distributions", "curves", "report"):
        monkeypatch.delitem(sys.modules, f"sparsepo_plugin.analysis.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = sparsepo(command, "two", "-o", "out/x")
    assert done.exit_code == 2
    assert done.stderr.startswith("sparsepo: error: figures need matplotlib (")
    assert "pip install 'sparsepo-plugin[analysis]'" in done.stderr


def test_a_report_has_everything(sparsepo, tmp_path):
    done = sparsepo("report", "two", "-o", "out/report.html", "--pairs", "pairs.jsonl")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert [part.split("<")[0] for part in text.split("<h2>")[1:]] == [
        "Last numbers",
        "Curves",
        "Values of the masks",
        "Tokens",
        "Options",
    ]
    assert text.count("<svg") == 2 and text.count('<article class="pair"') == len(PAIRS)
    assert "<tr><th>loss</th><td>6</td><td>0.5</td></tr>" in text
    assert "l1_reward: 0.001" in text.split("<h2>Options")[1]


@pytest.mark.parametrize(("run", "logged"), [("dpo", True), ("silent", False)])
def test_a_report_has_what_there_is(run, logged, sparsepo, tmp_path):
    """Without pairs no model is loaded; a run without numbers has no curves, one without masks no distributions."""
    assert sparsepo("report", run, "-o", "out/report.html").exit_code == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ("<h2>Curves" in text) == logged and ("No numbers were logged." in text) != logged
    assert "<article" not in text
    assert sparsepo("report", run, "-o", "out/report.html", "--pairs", "pairs.jsonl", "-n", "1").exit_code == 0
    again = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Tokens" in again and "<h2>Values of the masks" not in again


def test_a_reports_texts_are_escaped(tmp_path):
    folder = tmp_path / "<b>run"
    finished_run(folder, "dpo", base_model="<img src=x>")
    path = tmp_path / "report.html"
    assert CliRunner().invoke(app, ["report", str(folder), "-o", str(path)]).exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert "<b>" not in text and "<img" not in text and "&lt;img src=x&gt;" in text
