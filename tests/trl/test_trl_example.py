"""The script of examples/trl runs as it stands, from the command line."""

import sys
from pathlib import Path

from sparsepo_plugin import load_run

SCRIPT = Path(__file__).parents[2] / "examples" / "trl" / "sparsepo.py"


def test_it_runs(server, tiny, tmp_path):
    names = ["--model", tiny / "model", "--dataset", tiny / "ended.jsonl", "--output_dir", tmp_path / "out"]
    small = [
        "--max_steps",
        2,
        "--per_device_train_batch_size",
        2,
        "--use_cpu",
        "--bf16",
        "false",
        "--report_to",
        "none",
    ]
    done = server.run(sys.executable, SCRIPT, *names, *small)
    assert done.returncode == 0, done.stderr
    assert f"The run is in {tmp_path / 'out'}" in done.stdout
    assert load_run(tmp_path / "out").description.loss.objective["l1_kl"] == 2e-4
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`{tiny / 'ended.jsonl'}`" in card and "christopoulou-etal-2025-sparsepo" in card
    assert len(SCRIPT.read_text().splitlines()) <= 35


def test_a_mistake_is_told_before_a_model_is_loaded(server, tmp_path):
    names = ["--model", "/no/such/model", "--dataset", "/no/such/pairs.jsonl", "--output_dir", tmp_path / "out"]
    done = server.run(sys.executable, SCRIPT, *names, "--use_cpu", "--precompute_ref_log_probs")
    assert done.returncode == 1
    assert "SparsePOError: precompute_ref_log_probs: must be off" in done.stderr.strip().splitlines()[-1]
