"""Folders that a run would write and cannot, or must not."""

import os
from pathlib import Path

import pytest
import yaml
from host_runs import merge
from typer.testing import CliRunner

from sparsepo_plugin.cli import app

KEYS = {
    "ckpt.output_dir": lambda folder: {"ckpt": {"output_dir": folder}},
    "ckpt.path": lambda folder: {"ckpt": {"path": folder, "save_steps": 1}},
    "logger.tensorboard_dir": lambda folder: {"logger": {"tensorboard_dir": folder}},
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("", "a folder is needed, not ''"),
        ("~/runs", "a folder is needed, not '~/runs' (~ is not expanded)"),
        ("taken", "a folder is needed, taken is none"),
        ("taken/deep/er", "a folder is needed, taken is none"),
        ("run.yaml", "a folder is needed, run.yaml is none"),
        ("dangling", "a folder is needed, dangling is none"),
        ("dangling/deeper", "a folder is needed, dangling is none"),
        ("circle", "a folder is needed, circle is none"),
        ("x" * 300, "cannot be written: File name too long"),
        ("new/" + "x" * 300, "cannot be written: File name too long"),
        ("deep/" * 2000, "cannot be written: File name too long"),
        ("a\0b", "cannot be written: embedded null byte"),
        ("/proc/runs", "'/proc/runs' cannot be written: "),
        ("/dev/null", "a folder is needed, /dev/null is none"),
    ],
    ids=lambda text: text[:30].replace("\0", "0"),
)
def test_no_folder(refused, tmp_path, key, folder, says):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    refused((f"{key}: ", says), over=KEYS[key](folder), files={"taken": "a file"})


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
@pytest.mark.parametrize("key", KEYS)
def test_a_folder_without_permission(refused, tmp_path, key):
    (tmp_path / "closed").mkdir(mode=0o500)
    refused((f"{key}: 'closed/out' cannot be written: Permission denied",), over=KEYS[key]("closed/out"))


@pytest.mark.parametrize("command", ["train", "sft"])
def test_before_any_process_is_started(refused, config, command):
    over = {"ckpt": {"output_dir": "run.yaml"}}
    sft = {"loss": None, "sparsepo": None, "model": {"beta": None}, "data": {"prompt_key": None}}
    text = yaml.safe_dump(merge(config(), {**over, **(sft if command == "sft" else {})}))
    refused(("ckpt.output_dir: a folder is needed, run.yaml is none",), command=command, text=text)


@pytest.mark.parametrize("name", ["a\0b", "/proc/runs", "x" * 300])
def test_a_run_without_a_folder_for_its_name(refused, name):
    logger = {"tensorboard_dir": "tb", "wandb": {"run_name": name}}
    refused(("logger.wandb.run_name: ", "cannot be written"), over={"logger": logger})


@pytest.mark.parametrize("loss", [{}, {"loss": None, "sparsepo": None}], ids=["sparsepo", "own DPO"])
@pytest.mark.parametrize("written", ["{}", "{}/", "{}/../model", "{}/.", "link"])
@pytest.mark.parametrize("key", KEYS)
def test_the_folder_of_the_policy(refused, tiny, tmp_path, key, written, loss):
    model = tiny / "model"
    (tmp_path / "link").symlink_to(model)
    over = {**KEYS[key](written.format(model)), **loss}
    refused((f"{key}: ", "is model.model_name_or_path, which the run would overwrite"), over=over)


def test_checkpoints_beside_a_model(refused, tiny):
    """Such as the one that an earlier run exported there, which a checkpoint of the same step would replace."""
    says = f"ckpt.path: {tiny} holds model.model_name_or_path, and the run would write its own there"
    refused((says,), over=KEYS["ckpt.path"](str(tiny)))


@pytest.mark.parametrize(
    ("over", "key"),
    [
        ({}, "ref.model_name_or_path"),
        ({"loss": "sepo", "model": {"beta": None}, "sparsepo": None}, "sepo.oracle"),
    ],
    ids=["reference", "oracle"],
)
def test_the_folder_of_another_model(refused, tiny, over, key):
    section, name = key.split(".")
    folder = f"{tiny}/other/"
    over = {**over, section: {name: folder}, "ckpt": {"output_dir": folder}}
    refused((f"ckpt.output_dir: {folder} is {key}, which the run would overwrite",), over=over)


@pytest.mark.parametrize("folder", ["new", "new/deeper", "old", "link", ".", "new/../other"])
def test_folders_that_can_be_written(config, tmp_path, monkeypatch, folder):
    """That of a finished run too, which OpenRLHF overwrites; looking at it leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    Path("old", "model.safetensors").write_text("of the run before")
    Path("link").symlink_to("old")
    Path("run.yaml").write_text(yaml.safe_dump(config(**KEYS["ckpt.output_dir"](folder))))
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["check", "run.yaml"])
    assert result.exit_code == 0, result.output
    assert sorted(tmp_path.rglob("*")) == before
