"""Every shipped YAML is accepted by Axolotl's own schema and by the loss, and the paper's recipes are OpenRLHF's."""

from pathlib import Path

import pytest
import yaml

from sparsepo_plugin.hosts.axolotl import read_config
from sparsepo_plugin.hosts.axolotl.checks import PLUGIN, TRAINER, check_config

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted((EXAMPLES / "axolotl").rglob("*.yaml"))
A_GPU = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


@pytest.fixture
def validated(monkeypatch):
    """A configuration as Axolotl validates it on a GPU, with the plugin in its schema; no model is looked at."""
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    def validated(file):
        cfg = DictDefault(yaml.safe_load(file.read_text()))
        del cfg["base_model"]  # its config is on a hub
        prepare_plugins(cfg)
        cfg.base_model = "a/model"
        return validate_config(cfg, capabilities=A_GPU, env_capabilities={"torch_version": "2.13.0"})

    return validated


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_example(file, validated):
    given, cfg = read_config(file, {}), validated(file)
    assert (cfg.trainer_cls, cfg.loss, cfg.loss_options.to_dict()) == (TRAINER, "sparsepo", given["sparsepo"])
    dropped = given.keys() - cfg.keys() - {"sparsepo"}
    assert not dropped, "Axolotl knows no such key"
    if "deepspeed" in given:
        assert (EXAMPLES.parent / given["deepspeed"]).is_file()


def test_there_is_one_for_each_road():
    names = {file.stem for file in FILES}
    assert {"full_zero3", "lora", "qlora", "imdb_sparsepo_shared", "hh_sparsepo_dense"} <= names


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name == "paper"], ids=lambda file: file.stem)
def test_recipe_is_the_one_of_openrlhf(file):
    theirs = yaml.safe_load((EXAMPLES / "openrlhf" / "paper" / file.name).read_text())
    ours = read_config(file, {})
    assert ours["plugins"] == [PLUGIN]
    assert ours["sparsepo"] == theirs["sparsepo"]
    assert check_config(ours).objective["beta"] == theirs["model"]["beta"]
    train, precision = theirs["train"], theirs["ds"]["param_dtype"]
    assert ours["base_model"] == theirs["model"]["model_name_or_path"]
    assert ours["micro_batch_size"] * ours["gradient_accumulation_steps"] == train["batch_size"]
    assert (ours["num_epochs"], ours["seed"]) == (train["max_epochs"], train["seed"])
    assert ours["sequence_len"] == theirs["data"]["max_len"]
    assert ours["learning_rate"] == theirs["adam"]["lr"]
    assert [ours["adam_beta1"], ours["adam_beta2"]] == theirs["adam"]["betas"]
    assert (ours["lr_scheduler"], ours["warmup_ratio"]) == (theirs["lr_scheduler"], theirs["lr_warmup_ratio"])
    assert [ours["bf16"], ours["fp16"]] == [False, precision == "fp16"]
    assert ours.get("gradient_checkpointing", False) == theirs["model"].get("gradient_checkpointing_enable", False)
    for key, source in (("datasets", theirs["data"]), ("test_datasets", theirs["eval"])):
        (dataset,) = ours[key]
        template = dataset["type"].get("prompt_format", "{prompt}").replace("{prompt}", "{}")
        assert dataset["path"] == source["dataset"]
        assert template == theirs["data"].get("input_template", "{}")
