"""`sparsepo evaluate` of a run of TRL, its checkpoints included: the last one is the finished policy."""

import json

import pytest
from typer.testing import CliRunner

from sparsepo_plugin.cli import app

pytest.importorskip("scipy")


@pytest.mark.parametrize("over", [{}, {"lora": {"lora_dropout": 0.0}}], ids=["full", "LoRA"])
def test_checkpoints(over, train, tiny, tmp_path, monkeypatch):
    folder = train(save_strategy="steps", save_steps=5, **over).folder / "out"
    (tmp_path / "words_of_a_test.py").write_text("def count(prompts, texts): return [len(t.split()) for t in texts]")
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--prompts", str(tiny / "held_out.jsonl"), "--reward", "words_of_a_test:count", "--checkpoints"]
    output = tmp_path / "evaluation.jsonl"
    done = CliRunner().invoke(app, ["evaluate", str(folder), *options, "--max-new-tokens", "8", "-o", str(output)])
    assert done.exit_code == 0, done.output
    _, *rows = map(json.loads, output.read_text().splitlines())
    first, last, finished = (
        [row for row in rows if row["checkpoint"] == name] for name in ("checkpoint-5", "checkpoint-10", "")
    )
    assert [part[0]["step"] for part in (first, last, finished)] == [5, 10, 10]
    assert [row | {"checkpoint": ""} for row in last] == finished and len(finished) == 12
    assert 0 < sum(row["kl"] for row in first) < sum(row["kl"] for row in finished)
