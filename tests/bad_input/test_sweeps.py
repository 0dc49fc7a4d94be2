"""Grids that are none, and points that could not train; nothing is left behind."""

import pytest

VARIANTS = ("--variants", "v.yaml")


@pytest.mark.parametrize(
    ("flags", "files", "says"),
    [
        (("--seeds", "a"), {}, "--seeds a: whole numbers from 0 to 4294967295 with commas are needed"),
        (("--seeds", "0,0"), {}, "--seeds 0,0: one is given twice"),
        (("--seeds", "0", "--set", "model.beta"), {}, "--set model.beta: key=value,value is needed"),
        (("--seeds", "0", "--set", "model.beta=[1"), {}, "--set model.beta=[1: not YAML"),
        (("--seeds", "0", "--set", "train.seed=1"), {}, "--set train.seed: --seeds sets it"),
        (("--seeds", "0", "--set", "ckpt.path=a"), {}, "--set ckpt.path: each point has its own"),
        (("--seeds", "0", *VARIANTS), {}, "v.yaml: No such file or directory"),
        (("--seeds", "0", *VARIANTS), {"v.yaml": "a: dpo"}, "v.yaml: a: a mapping of keys is needed, not 'dpo'"),
        (("--seeds", "0", *VARIANTS), {"v.yaml": "a: {b: 1}\na: {b: 2}"}, "v.yaml: not YAML: a is given twice"),
        (("--seeds", "0", *VARIANTS, "--set", "loss=dpo"), {"v.yaml": "a: {loss: tdpo}"}, "variant a sets it too"),
        (("--seeds", "0"), {"sweep": "a file"}, "is a file, a folder is needed there"),
        (("--seeds", "0", "--set", "model.btea=1,2"), {}, "error: model.btea=1_seed=0: unknown key"),
        (("--seeds", "0", "--set", "loss=dpo,ppo"), {}, "error: ppo_seed=0: loss: unknown loss 'ppo'"),
    ],
)
def test_grids(refused, flags, files, says):
    refused((says,), *flags, "-o", "sweep", files=files, command="sweep")


def test_a_key_twice_in_the_base_is_not_lost(refused):
    text = "model: {beta: 1, beta: 2}\nds: {}"
    refused(("beta is given twice",), "--seeds", "0", "-o", "sweep", text=text, command="sweep")
