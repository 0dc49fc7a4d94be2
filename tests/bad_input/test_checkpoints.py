"""A checkpoint is resumed by the run that wrote it, or refused before any model is loaded."""

import json
import shutil
from pathlib import Path

import pytest

STEP, RESUME = "ckpt/global_step4", {"ckpt": {"path": "ckpt", "load_enable": True, "save_steps": 4}}


@pytest.fixture(scope="module")
def written(config, launch, tmp_path_factory) -> Path:
    """The checkpoint of a run."""
    folder = tmp_path_factory.mktemp("written")
    assert launch(config(ckpt={"save_steps": 4}, data={"max_samples": 40}), folder=folder).code == 0
    return folder / "checkpoints"


@pytest.fixture
def refused_there(refused, written, tmp_path):
    """`refused` beside a copy of that checkpoint."""

    def refused_there(says, over, damage=lambda folder: None):
        shutil.copytree(written, tmp_path / "ckpt")
        damage(tmp_path / "ckpt")
        return refused(says, over=over)

    return refused_there


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"model": {"beta": 0.1}}, ("model.beta: 0.5, not 0.1",)),
        ({"model": {"label_smoothing": 0.1}}, ("model.label_smoothing: 0.0, not 0.1",)),
        ({"loss": "dpo", "sparsepo": None}, ('loss: "sparsepo", not "dpo":',)),
        ({"sparsepo": {"shared": True}}, ('sparsepo.reward.mask: "learned", not none', " more: ")),
        ({"sparsepo": {"kl": {"mask": "uniform"}, "l1_kl": None}}, ('sparsepo.kl.mask: "learned", not "uniform"',)),
        ({"sparsepo": {"depth": 2}}, ("sparsepo.reward.depth: 1, not 2", "sparsepo.kl.depth: 1, not 2")),
        ({"sparsepo": {"kl": {"min": 0.1}}}, ("sparsepo.kl.min: 0.0, not 0.1",)),
        ({"sparsepo": {"l1_kl": 0.5}}, ("sparsepo.l1_kl: 0.001, not 0.5",)),
        ({"sparsepo": {"version": 2}}, ("sparsepo.version: 1, not 2",)),
        ({"ds": {"zero_stage": 3}}, ("ds.zero_stage: 2, not 3",)),
        ({"ds": {"param_dtype": "bf16"}}, ('ds.param_dtype: "fp32", not "bf16"',)),
        ({"ds": {"lora": {"rank": 4}}}, ("ds.lora.rank: 0, not 4",)),
        ({"train": {"seed": 7}}, ("train.seed: 42, not 7",)),
        ({"optim": "muon", "sparsepo": {"mask_lr": "policy"}}, ('optim: "adam", not "muon"',)),
    ],
)  # fmt: skip
def test_another_run(refused_there, over, says):
    refused_there(
        ("ckpt.path: ", STEP, "was written by a run with", *says, "resume with the same"), {**RESUME, **over}
    )


def test_another_base_model(refused_there, tiny):
    other = str(tiny / "other")
    line = refused_there((), {**RESUME, "model": {"model_name_or_path": other}})
    assert f'model.model_name_or_path: "{tiny / "model"}", not "{other}"' in line


def test_another_reference(refused_there, tiny):
    other = str(tiny / "other")
    line = refused_there((), {**RESUME, "ref": {"model_name_or_path": other}})
    assert f'ref.model_name_or_path: "{tiny / "model"}", not "{other}"' in line and "model.model_name" not in line


def test_a_new_run_among_anothers_checkpoints(refused_there):
    says = ("ckpt.path: ckpt holds checkpoints of another run (global_step4)", "ckpt.load_enable: true")
    refused_there(says, {"ckpt": {"path": "ckpt", "save_steps": 2}})


def test_a_new_run_among_anothers_broken_checkpoints(refused_there):
    says = ("ckpt.path: ckpt holds checkpoints of another run (global_step4)", "ckpt.load_enable: true")
    refused_there(says, {"ckpt": {"path": "ckpt", "save_steps": 2}}, truncate)


@pytest.mark.parametrize("load", [True, False])
@pytest.mark.parametrize("file", ["global_step8/notes.txt", "global_step8"])
def test_what_has_the_name_of_a_checkpoint(refused, file, load):
    says = ("ckpt.path: ckpt/global_step8 is no checkpoint, and one of that name would replace it",)
    refused(
        says, over={"ckpt": {"path": "ckpt", "save_steps": 4, "load_enable": load}}, files={f"ckpt/{file}": "mine"}
    )


def truncate(folder: Path):
    file = next((folder / "global_step4").glob("*model_states.pt"))
    file.write_bytes(file.read_bytes()[:10])


def claim(folder: Path):
    record = json.loads((folder / "global_step4" / "checkpoint.json").read_text())
    record["files"]["bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"] = 1000
    (folder / "global_step4" / "checkpoint.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "has 10 of"),
        (claim, "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt is missing"),
        (lambda folder: (folder / "global_step4" / "checkpoint.json").unlink(), "checkpoint.json is missing"),
        (lambda folder: (folder / "global_step4" / "checkpoint.json").write_text("[]"), "checkpoint.json cannot be"),
        (lambda folder: (folder / "global_step4" / "checkpoint.json").write_bytes(b"\xff"), "checkpoint.json cannot"),
    ],
)
def test_no_whole_checkpoint(refused_there, damage, reason):
    refused_there(("ckpt.path: ckpt holds no whole checkpoint: global_step4 (", reason), RESUME, damage)
