"""`sparsepo evaluate` of real runs of OpenRLHF, their checkpoints included."""

import json

import pytest
from typer.testing import CliRunner

from sparsepo_plugin.cli import app

pytest.importorskip("scipy")
SAVED = {"save_steps": 5, "save_hf": True, "disable_ds": True}
LORA = {"lora": {"rank": 4, "alpha": 8}}


@pytest.fixture
def evaluated(launch, config, tiny, tmp_path, monkeypatch):
    """The rows of a run with checkpoints at steps 5 and 10 in its output folder, by checkpoint."""

    def evaluated(**over):
        checkpoints = {**SAVED, "path": str(tmp_path / "out" / "checkpoints")}
        run = launch(config(ckpt=checkpoints, **over), folder=tmp_path)
        assert run.code == 0, run.output[-4000:]
        (tmp_path / "words_of_a_test.py").write_text(
            "def count(prompts, texts): return [len(t.split()) for t in texts]"
        )
        monkeypatch.syspath_prepend(tmp_path)
        options = ["--prompts", str(tiny / "held_out.jsonl"), "--reward", "words_of_a_test:count", "--checkpoints"]
        done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "out"), *options, "--max-new-tokens", "8"])
        assert done.exit_code == 0, done.output
        _, *rows = map(json.loads, (tmp_path / "out" / "evaluation.jsonl").read_text().splitlines())
        return [
            [row for row in rows if row["checkpoint"] == name] for name in ("global_step5_hf", "global_step10_hf", "")
        ]

    return evaluated


@pytest.mark.parametrize("over", [{}, {"ds": LORA}], ids=["full", "LoRA"])
def test_checkpoints(over, evaluated):
    """The last one is the finished policy; the first is nearer to the reference."""
    first, last, finished = evaluated(**over)
    assert [rows[0]["step"] for rows in (first, last, finished)] == [5, 10, 10]
    assert [row | {"checkpoint": ""} for row in last] == finished and len(finished) == 12
    assert 0 < mean_kl(first) < mean_kl(finished)


def mean_kl(rows):
    return sum(row["kl"] for row in rows) / len(rows)
