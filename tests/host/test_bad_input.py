"""Bad input: one line that names the key or the row and what is allowed, exit code not 0, nothing half-written."""

import json

import pytest
import yaml
from host_runs import merge
from typer.testing import CliRunner

from sparsepo_plugin.cli import app


@pytest.fixture
def check(config, tmp_path):
    """Output of `sparsepo check` for the good YAML with changes, which must be refused."""

    def check(*flags: str, pairs: list[dict] | None = None, **over) -> str:
        settings = config(**over)
        if pairs is not None:
            file = tmp_path / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in pairs))
            settings = merge(settings, {"data": {"dataset": str(file)}})
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(settings))
        result = CliRunner().invoke(app, ["check", str(path), *flags])
        assert result.exit_code == 2, result.output
        lines = [line for line in result.stderr.splitlines() if line.startswith("sparsepo: error:")]
        assert len(lines) == 1, result.stderr
        return lines[0]

    return check


PAIR = {"prompt": "w1 w2 ", "chosen": "w3 w4", "rejected": "w5"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**PAIR, "chosen": " "}, ("row 9: chosen is empty",)),
        ({**PAIR, "rejected": "w1 " * 40}, ("row 9: prompt and rejected have 43 tokens", "data.max_len is 32")),
    ],
)
def test_rows(check, row, says):
    line = check(pairs=[*[PAIR] * 8, row, PAIR])
    for word in ("rows.jsonl", *says):
        assert word in line, line


def test_rows_that_are_not_text(check):
    messages = [{"role": "user", "content": "w1"}]
    line = check(pairs=[{**PAIR, "chosen": messages}] * 10)
    assert "row 1: chosen is list" in line and "data.apply_chat_template" in line


def test_missing_column(check):
    line = check(pairs=[{"prompt": "w1", "chosen": "w2"}] * 10)
    assert "data.rejected_key" in line and "'rejected'" in line


def test_a_good_file_passes(config, tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(config()))
    result = CliRunner().invoke(app, ["check", str(path), "--sparsepo.l1_kl", "0.5"])
    assert result.exit_code == 0 and "ok, loss: sparsepo" in result.stdout, result.output


def test_loss_that_is_not_a_number(config, launch):
    run = launch(config(adam={"lr": 1e30}, max_norm=0.0), processes=1)
    assert run.code == 2
    (line,) = [line for line in run.output.splitlines() if "sparsepo: error:" in line]
    assert "not finite at step" in line and line.endswith("clipped gradients may help (adam.lr, max_norm)")
    assert {path.name for path in (run.folder / "out").iterdir()} == {"sparsepo_metrics.jsonl"}  # of the steps before


@pytest.mark.parametrize("launcher", ["fork", "torchrun"])
def test_an_empty_response_stops_two_processes(launcher, config, launch, tmp_path):
    file = tmp_path / "rows.jsonl"
    bad = {**PAIR, "rejected": ""}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*[PAIR] * 9, bad, *[PAIR] * 1000, bad]))
    run = launch(config(data={"dataset": str(file)}, train={"micro_batch_size": 4}), processes=2, launcher=launcher)
    assert run.code != 0
    (line,) = [line for line in run.output.splitlines() if "sparsepo: error:" in line]
    assert "row 10: rejected is empty" in line and "(2 of 1011 rows" in line and "(rank" not in line
    listed = [line for line in run.output.splitlines() if line.startswith(f"  {file}, row ")]
    assert [line.split(":")[0].split()[-1] for line in listed] == ["10", "1011"]  # one in the share of each rank
    assert not (run.folder / "out").exists()
