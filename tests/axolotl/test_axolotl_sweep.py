"""`sparsepo sweep` on a YAML of Axolotl: its keys of seed and output, and runs that are those of `axolotl train`."""

import json
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file


def test_points_are_the_runs_of_their_yaml(server, config, launch, tmp_path):
    prepared = {"dataset_prepared_path": str(tmp_path / "prepared")}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config(dpo={}, **prepared)))
    flags = ("--set", "loss=dpo,sparsepo", "--set", "rl_beta=0.25", "--seeds", "3", "-o", "sweep")
    command = (str(Path(sys.executable).with_name("sparsepo")), "sweep", "base.yaml", *flags)
    done = server.run(*command, cwd=tmp_path, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0 and not done.left, done.stderr
    for name, over in (("dpo", {"sparsepo": None}), ("sparsepo", {})):
        folder = tmp_path / "sweep" / f"{name}_rl_beta=0.25_seed=3"
        assert json.loads((folder / "point.json").read_text()) == {
            "settings": {"loss": name, "rl_beta": 0.25},
            "seed": 3,
            "finished": True,
        }
        alone = launch(config(loss=name, rl_beta=0.25, seed=3, **over))
        assert alone.code == 0, alone.output[-4000:]
        theirs, ours = (load_file(out / "model.safetensors") for out in (alone.folder / "out", folder / "run"))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    done = server.run(*command, cwd=tmp_path, ACCELERATE_USE_CPU="true")
    assert done.stdout.splitlines() == [f"{tmp_path / 'sweep'}: 2 points, 2 of them finished before"]
