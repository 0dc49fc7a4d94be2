"""Files with code in what a run reads: none of it runs, unless the YAML or the command line says so.

Each test plants code that leaves a mark, in the form in which a careless reader would run it.
"""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from sparsepo_plugin.cli import app

CODE = """
open({mark!r}, "w").close()
from datasets import GeneratorBasedBuilder
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    pass
class Model(LlamaForCausalLM):
    config_class = Config
class Fast(PreTrainedTokenizerFast):
    pass
class Builder(GeneratorBasedBuilder):
    pass
"""
AUTO_MODEL = {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}
AUTO_TOKENIZER = {"AutoTokenizer": ["planted.Fast", "planted.Fast"]}
PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "mask_head.bin", "state.pkl")


class Planted:
    """Leaves its mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """Where the planted code leaves its mark; a pickle does when it is loaded."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Planted(mark)))
    mark.unlink()
    return mark


@pytest.fixture
def model(tiny, tmp_path, mark):
    """A copy of the tiny model's folder with `planted.py` in it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny / "model", folder)
    (folder / "planted.py").write_text(CODE.format(mark=str(mark)))
    return folder


@pytest.fixture
def check(config, tmp_path, monkeypatch):
    """`sparsepo check` of the good YAML with changes: its exit code and output."""

    def check(*flags, **over):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config(**over)))
        result = CliRunner().invoke(app, ["check", "run.yaml", *flags])
        return result.exit_code, result.output

    return check


def edit(path, **values):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


@pytest.mark.parametrize("role", ["model", "ref"])
def test_a_model_with_code_of_its_own(check, model, mark, role):
    edit(model / "config.json", model_type="planted", auto_map=AUTO_MODEL, trust_remote_code=True)
    code, output = check(**{role: {"model_name_or_path": str(model)}})
    assert code == 2 and "brings code of its own" in output and f"{role}.model_name_or_path" in output
    assert not mark.exists()


def test_a_tokenizer_with_code_of_its_own(check, model, mark, tmp_path, monkeypatch):
    """Refused, and run where the command line says so."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    edit(model / "tokenizer_config.json", tokenizer_class="Fast", auto_map=AUTO_TOKENIZER, trust_remote_code=True)
    code, _ = check(model={"model_name_or_path": str(model)})
    assert code != 0 and not mark.exists()
    code, output = check("--model.trust_remote_code", model={"model_name_or_path": str(model)})
    assert code == 0 and mark.exists(), output


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_script_as_data(check, tmp_path, mark, form):
    script = tmp_path / "planted.py" if form == "file" else tmp_path / "planted" / "planted.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(CODE.format(mark=str(mark)))
    code, _ = check(data={"dataset": str(script if form == "file" else script.parent)})
    assert code != 0 and not mark.exists()


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet", "pairs.arrow", "pairs.csv", "pairs.pkl"])
def test_a_pickle_as_data(check, tmp_path, mark, name):
    (tmp_path / name).write_bytes(pickle.dumps(Planted(mark)))
    code, _ = check(data={"dataset": str(tmp_path / name)})
    assert code != 0 and not mark.exists()


def test_what_lies_about_is_not_run(model, tmp_path, mark, config, launch):
    """Beside the model and in the output folder, as an earlier run would have left it."""
    edit(model / "config.json", auto_map=AUTO_MODEL, trust_remote_code=True)
    edit(model / "generation_config.json", custom_generate=str(model), trust_remote_code=True)
    for folder in (model, tmp_path / "out"):
        folder.mkdir(exist_ok=True)
        edit(folder / "sparsepo.json", loss_plugins=["planted"], trust_remote_code=True, allow_code=True)
        for name in PICKLES:
            torch.save({"weight": Planted(mark)}, folder / name)
    run = launch(config(model={"model_name_or_path": str(model)}), folder=tmp_path, path=model)
    assert run.code == 0, run.output[-4000:]
    assert not mark.exists()
    assert json.loads((tmp_path / "out" / "sparsepo.json").read_text())["loss_plugins"] == []


@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_pickle_as_weights(model, mark, config, launch, form):
    (model / "model.safetensors").unlink()
    planted = {"weight": Planted(mark)}
    torch.save(planted, model / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    run = launch(config(model={"model_name_or_path": str(model)}))
    assert run.code != 0 and "Weights only load failed" in run.output, run.output[-4000:]
    assert not mark.exists()
