"""What needs no model answers without loading torch."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "deepspeed", "datasets", "numpy")
CODE = """
import sys
from sparsepo_plugin.cli import app
try:
    app(sys.argv[1:])
finally:
    print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["recipes"], 0),
        (["copy", "openrlhf/lora"], 0),
        (["copy", "nothing"], 2),
        (["data", "--help"], 0),
        (["data", "imdb", "--input", "rows.jsonl", "--output", "pairs.jsonl"], 0),
        (["data", "imdb", "--input", "absent.jsonl", "--output", "pairs.jsonl"], 2),
        (["masks", "--help"], 0),
        (["score", "--help"], 0),
        (["heatmap", "--help"], 0),
        (["curves", "--help"], 0),
        (["report", "--help"], 0),
        (["generate", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["train", "absent.yaml"], 2),
        (["check", "rows.jsonl"], 2),
    ],
    ids=str,
)
def test_without_torch(arguments, code, tmp_path):
    rows = [{"prompt": "It was", "text": text, "reward": reward} for text, reward in (("good", 1.0), ("bad", -1.0))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-c", CODE.format(heavy=HEAVY), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
