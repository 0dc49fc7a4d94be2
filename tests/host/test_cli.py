"""The `sparsepo` command as a user types it."""

import yaml
from host_runs import merge, places


def test_train_picks_a_launcher_and_flags_win_over_the_file(config, train, sparsepo, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merge(places(tmp_path), config(adam={"lr": 0.5}, sparsepo={"l1_kl": 7}))))
    done = sparsepo("train", str(file), "--adam.lr", "1e-3", "--sparsepo.l1_kl=1e-3")
    assert done.returncode == 0, done.stderr[-3000:]
    saved = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert saved == (train().folder / "out" / "model.safetensors").read_bytes()


def test_train_refuses_before_it_starts_anything(config, sparsepo, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merge(places(tmp_path), config(sparsepo={"mask": "dense"}))))
    done = sparsepo("train", str(file))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert line.startswith("sparsepo: error: sparsepo.mask: unknown mask 'dense'")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_lists(sparsepo):
    masks = sparsepo("masks").stdout.splitlines()
    assert [line.split()[0] for line in masks] == ["activation", "decay", "learned", "random", "selected", "uniform"]
    assert all(len(line.split()) > 4 for line in masks)
    assert "sparsepo" in [line.split()[0] for line in sparsepo("objectives").stdout.splitlines()]


def test_a_mistake_met_in_training_is_one_line(config, sparsepo, tmp_path):
    """Without torchrun's traceback after it: one CPU process is started without a launcher."""
    pairs = tmp_path / "rows.jsonl"
    pairs.write_text('{"prompt": "w1 ", "chosen": "w2", "rejected": ""}\n' * 8)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merge(places(tmp_path), config(data={"dataset": str(pairs)}))))
    done = sparsepo("train", str(file))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert line == f"sparsepo: error: {pairs}, row 1: rejected is empty; a response needs at least one word"
