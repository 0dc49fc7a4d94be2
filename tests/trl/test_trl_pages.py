"""What people look at works on runs of TRL, full and LoRA, as it does on those of the other hosts."""

import json

import pytest
from typer.testing import CliRunner

from sparsepo_plugin.analysis.heatmap import QUANTITIES
from sparsepo_plugin.cli import app
from sparsepo_plugin.record import last_metrics

LORA = {"lora": {"lora_dropout": 0.0}}


@pytest.mark.parametrize("over", [{}, LORA], ids=["full", "LoRA"])
def test_scores_and_pages(over, train, tiny, tmp_path):
    folder, pairs = str(train(**over).folder / "out"), str(tiny / "held_out.jsonl")
    for command, output in (("score", "tokens.jsonl"), ("heatmap", "heatmap.html")):
        done = CliRunner().invoke(app, [command, folder, "--pairs", pairs, "-n", "3", "-o", str(tmp_path / output)])
        assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    assert {line["pair"] for line in lines} == {0, 1, 2}
    assert all(line[name] is not None for line in lines for name in QUANTITIES)
    assert (tmp_path / "heatmap.html").read_text().count('<article class="pair"') == 3


def test_a_report(train, tmp_path):
    pytest.importorskip("matplotlib")
    folder = train().folder / "out"
    done = CliRunner().invoke(app, ["report", str(folder), "-o", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert "in trl" in page and f"<td>{last_metrics(folder)['train']['token_kl_chosen']:.4g}</td>" in page
