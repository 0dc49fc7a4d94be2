"""What the machine, its packages and the launcher's variables can get wrong."""

import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from sparsepo_plugin import train
from sparsepo_plugin.cli import app
from sparsepo_plugin.hosts.openrlhf import flags, patched
from sparsepo_plugin.launch import run


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE in the environment: a whole number is needed, not 'two'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE in the environment: a whole number is needed, not ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE in the environment: a whole number is needed, not '0'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE in the environment: a whole number is needed, not '-1'"),
        ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE in the environment: a whole number is needed, not '1.5'"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE in the environment: a whole number is needed, not '²'"),
        ({"WORLD_SIZE": "3"}, "8 is no multiple of train.micro_batch_size × processes, 8 × 3"),
        ({"RANK": "first"}, "RANK in the environment: a whole number is needed, not 'first'"),
        ({"RANK": "1"}, "RANK in the environment: must be from 0 to below WORLD_SIZE (1), not 1"),
        ({"RANK": "-1"}, "RANK in the environment: must be from 0 to below WORLD_SIZE (1), not -1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK in the environment: must be from 0 to below WORLD_SIZE (2), not 2"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK in the environment: a whole number is needed, not 'x'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT in the environment: a whole number is needed, not 'http'"),
    ],
    ids=str,
)
def test_variables_of_a_launcher(refused, monkeypatch, variables, says):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused((says,))


@pytest.mark.parametrize(("names", "lines"), [(("RANK", "LOCAL_RANK"), {"0": 1, "1": 0}), (("RANK",), {"1": 1})])
def test_only_the_first_rank_tells(names, lines, monkeypatch, tmp_path):
    """Without LOCAL_RANK no launcher has started this process: RANK is a cluster's number of the machine."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in lines.items():
        for name in names:
            monkeypatch.setenv(name, rank)
        result = CliRunner().invoke(app, ["check", str(tmp_path / "absent.yaml")])
        assert (result.exit_code, result.stderr.count("sparsepo: error: ")) == (2, count)


def test_a_start_without_a_launcher(monkeypatch, capsys):
    """DeepSpeed would ask MPI, which is not there either."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="2"):
        train.main(["--config", "absent.yaml"])
    said = "sparsepo: error: RANK is not in the environment: start with `sparsepo train`, deepspeed or torchrun\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("code", "says"), [(200, "exit code 200 and gave no reason"), (-9, "SIGKILL"), (247, "SIGKILL")]
)
def test_an_end_without_a_reason(capfd, code, says):
    end = f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"import os; os._exit({code})"
    assert run([sys.executable, "-c", end]) == (137 if says == "SIGKILL" else code)
    assert says in capfd.readouterr().err.splitlines()[-1]


def test_an_accelerator_that_does_not_exist(config, sparsepo, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config()))
    done = sparsepo("check", file, DS_ACCELERATOR="nonsense")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("sparsepo: error: OpenRLHF cannot be imported: ValueError: ")
    assert "DS_ACCELERATOR" in last and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "train", "sft"])
@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, "OpenRLHF is not installed; tested are 0.10.4, 0.11.0, 0.11.1, 0.11.2: pip install"),
        ("0.10.3", "OpenRLHF 0.10.3 is installed, which is too old; tested are 0.10.4, 0.11.0"),
        (
            "0.12.0",
            "ring_attn_utils.py of the installed OpenRLHF 0.12.0; tested are 0.10.4, 0.11.0, 0.11.1, 0.11.2: pip",
        ),
    ],
)
def test_openrlhf(refused, monkeypatch, tmp_path, command, version, says):
    def distribution(name):
        if version is None:
            raise PackageNotFoundError(name)
        return SimpleNamespace(version=version, locate_file=lambda name: tmp_path / "no files")

    monkeypatch.setattr(patched, "distribution", distribution)
    refused((says,), command=command)


@pytest.mark.parametrize(
    ("package", "over"),
    [
        ("tensorboard", {"logger": {"tensorboard_dir": "tb"}}),
        ("wandb", {"logger": {"wandb": {"key": "k"}}}),
        ("bitsandbytes", {"ds": {"load_in_4bit": True, "param_dtype": "bf16", "lora": {"rank": 4}}}),
        ("liger_kernel", {"ds": {"use_liger_kernel": True}}),
        ("ring_flash_attn", {"ds": {"ring_attn_size": 2, "packing_samples": True}}),
    ],
)
def test_packages(refused, monkeypatch, package, over):
    monkeypatch.setattr(flags, "_installed", lambda name: name != package)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refused((f"needs the package {package}",), over=over)


def test_flash_attention_that_is_not_installed(refused, monkeypatch):
    """Where there is a GPU, transformers says what else its attention needs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    over = {"ds": {"attn_implementation": "flash_attention_3", "packing_samples": True}}
    refused(
        ("ds.attn_implementation: flash_attention_3 with llama (model.model_name_or_path): ImportError",), over=over
    )


def test_half_precision_that_the_processor_lacks(refused, monkeypatch):
    monkeypatch.setattr(flags, "_accelerator", lambda: SimpleNamespace(is_fp16_supported=lambda: False))
    refused(("ds.param_dtype: fp16 is not supported by this processor",), over={"ds": {"param_dtype": "fp16"}})
