"""`data.on_bad_row: drop`: a run whose data have bad rows is the run without those rows."""

import json

import pytest
import torch
from host_runs import write_pairs

EMPTY = {"prompt": "w1 ", "chosen": "", "rejected": "w2"}
LONG = {"prompt": "w1 ", "chosen": "w2", "rejected": "w3 " * 40}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders `clean` and `spoiled`, each with a.jsonl, b.jsonl and held_out.jsonl."""
    folder = tmp_path_factory.mktemp("rows")
    for seed, (name, count) in enumerate({"a": 40, "b": 24, "held_out": 12}.items()):
        (folder / "clean").mkdir(exist_ok=True)
        (folder / "spoiled").mkdir(exist_ok=True)
        rows = write_pairs(folder / "clean" / f"{name}.jsonl", count, seed).read_text().splitlines()
        for place, bad in ((0, EMPTY), (7, LONG), (11, EMPTY)):
            rows.insert(place, json.dumps(bad))
        (folder / "spoiled" / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def blended(folder, **data) -> dict:
    data = {"dataset": f"{folder}/a.jsonl,{folder}/b.jsonl", "dataset_probs": "0.7,0.3", **data}
    return {"data": data, "eval": {"dataset": f"{folder}/held_out.jsonl", "split": "train", "steps": 2}}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_without_its_bad_rows(processes, files, train):
    micro = {"train": {"micro_batch_size": 4}}
    clean = train(processes, **micro, **blended(files / "clean"))
    dropped = train(processes, **micro, **blended(files / "spoiled", on_bad_row="drop"))
    assert len(clean.losses) > 4 and torch.equal(clean.losses, dropped.losses)
    assert clean.scalars("eval/eval_loss") == dropped.scalars("eval/eval_loss") != []
    assert clean.weights.keys() == dropped.weights.keys() != set()
    assert all(torch.equal(value, dropped.weights[key]) for key, value in clean.weights.items())
    told = dropped.output.splitlines()
    listed = [line.removeprefix(f"  {files}/spoiled/") for line in told if line.startswith(f"  {files}")]
    assert [line.partition(":")[0] for line in listed] == [
        f"{name}.jsonl, row {row}" for name in ("a", "b", "held_out") for row in (1, 8, 12)
    ]
    assert told.count("data.on_bad_row: drop leaves out 9 of 85 rows") == 1
