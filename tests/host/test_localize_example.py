"""`make localize` on few made-up reviews: language model, two methods through OpenRLHF, and the numbers."""

import csv
import json
import sys
from pathlib import Path

EXAMPLE = """
import sys

sys.path.insert(0, sys.argv.pop(1))
import language_model
import run

language_model.STEPS, language_model.BATCH, run.TRAIN_PAIRS = 3, 4, 16
run.METHODS = {name: run.METHODS[name] for name in ("dpo", "sparsepo_v2")}
run.main(*map(run.Path, sys.argv[1:]))
"""


def write_reviews(path, count, prompt):
    """Pairs of reviews, a pair with an empty response last."""
    rows = [
        {"prompt": prompt, "chosen": f"is good, number {n}. A great story.", "rejected": f"was bad, the {n}th time."}
        for n in range(count)
    ]
    rows.append({"prompt": prompt, "chosen": "is good.", "rejected": ""})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_edited_words_of_reviews(server, tmp_path):
    files = write_reviews(tmp_path / "pairs.jsonl", 20, "This film"), write_reviews(tmp_path / "others.jsonl", 3, "It")
    example = Path(__file__).parents[2] / "examples" / "localize"
    done = server.run(sys.executable, "-c", EXAMPLE, example, *files, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read(tmp_path / "out" / "results" / "localize.csv")
    quantities = ["log_ratio", "advantage", "kl"]
    assert [(row["run"], row["quantity"]) for row in rows] == [
        *(("dpo", name) for name in quantities),
        *(("sparsepo_v2", name) for name in ("mask_reward", "mask_kl", *quantities)),
    ]
    # Six reviews of other prompts, and the words: two of three, and one of three.
    assert {(row["pairs"], row["without_edit"], row["unlike"]) for row in rows} == {("6", "0", "0")}
    assert {row["auc"] for row in rows if row["quantity"] == "mask_kl"} == {"0.5"}
    (facts,) = read(tmp_path / "out" / "results" / "experiment.csv")
    assert facts["reviews"] == "40"
    assert 0 <= float(facts["probe_auc"]) <= 1
