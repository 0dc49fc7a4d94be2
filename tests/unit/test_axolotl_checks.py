"""What is refused of a configuration of Axolotl by its keys, without Axolotl."""

from pathlib import Path

import pytest
import yaml

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.hosts.axolotl import check, command, read_config
from sparsepo_plugin.hosts.axolotl.checks import PLUGIN, check_config, key_of_ours

GOOD = {"base_model": "model", "plugins": [PLUGIN], "rl": "dpo", "loss": "sparsepo", "sparsepo": {"mask": "learned"}}


def changed(**over):
    """`GOOD` with some keys; None removes one."""
    return {key: value for key, value in {**GOOD, **over}.items() if value is not None}


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"plugins": None}, "loss: sparsepo needs plugins: [sparsepo_plugin.SparsePOPlugin], without which"),
        ({"plugins": ["sparsepo_plugin.SparsePoPlugin"]}, "listed: sparsepo_plugin.SparsePoPlugin"),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"]}, "listed: axolotl.integrations.liger.LigerPlugin"),
        ({"plugins": None, "loss": None}, "sparsepo needs plugins:"),
        ({"plugins": None, "loss": None, "sparsepo": None, "loss_plugins": ["mine"]}, "loss_plugins needs plugins:"),
        ({"plugins": None, "loss": "mine:Loss", "sparsepo": None}, "loss: mine:Loss needs plugins:"),
        ({"loss": None}, "sparsepo has no effect without loss: NAME"),
        (
            {"loss": None, "sparsepo": None},
            "plugins: [sparsepo_plugin.SparsePOPlugin] has no effect without loss: NAME",
        ),
        ({"loss": 3}, "loss: the name of a loss is needed, not 3"),
        ({"loss": "sparspo"}, "loss: unknown objective 'sparspo'"),
        ({"loss_plugins": "mine"}, "loss_plugins: a list of modules is needed"),
        ({"loss_plugins": ["no_such_module"]}, "loss_plugins: 'no_such_module' cannot be imported"),
        ({"sparsepo": {"masks": "learned"}}, "sparsepo.masks is not a key of this section"),
        ({"loss": "dpo"}, "sparsepo has no effect with loss: dpo"),
        ({"rl": None}, "needs rl: dpo, it is missing"),
        ({"rl": "orpo"}, "needs rl: dpo, not 'orpo'"),
        ({"rl": "ipo"}, "needs rl: dpo, not 'ipo'"),
        ({"rl_beta": "high"}, "rl_beta: a number is needed, not 'high'"),
        ({"loss": "simpo", "sparsepo": None, "rl_beta": 0.5}, "rl_beta has no effect with loss: simpo"),
        ({"loss_options": {}}, "loss_options: the options of a loss stand in the section of its name, sparsepo"),
        ({"trainer_cls": "mine.Trainer"}, "trainer_cls: loss: sparsepo brings its own"),
        ({"sample_packing": True}, "sample_packing: must be off"),
        ({"eval_sample_packing": True}, "eval_sample_packing: must be off"),
        ({"dpo_padding_free": True}, "dpo_padding_free: must be off"),
        ({"dpo_use_liger_kernel": True}, "dpo_use_liger_kernel: must be off"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs: must be off"),
        ({"dpo_loss_type": ["ipo"]}, "dpo_loss_type and dpo_loss_weights have no effect"),
        ({"dpo_loss_weights": [1.0]}, "dpo_loss_type and dpo_loss_weights have no effect"),
        ({"dpo_use_weighting": True}, "dpo_use_weighting has no effect"),
        ({"dpo_beta": 0.1}, "dpo_beta: is called rl_beta"),
        ({"orpo_alpha": 0.1}, "orpo_alpha: Axolotl would take it for β"),
        ({"rl_adapter_ref_model": True}, "rl_adapter_ref_model: must be off"),
        ({"context_parallel_size": 2}, "context_parallel_size: must be 1"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size: must be 1"),
        ({"adapter": "lora", "fsdp_version": 2}, "fsdp_version: 2 with an adapter is not possible"),
        ({"torch_compile": True}, "torch_compile: must be off"),
        ({"use_ray": True}, "use_ray: must be off"),
    ],
)
def test_refused(over, says):
    with pytest.raises(SparsePOError) as caught:
        check_config(changed(**over))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"excess_length_strategy": "truncate"}, "excess_length_strategy: truncate cuts responses"),
        (
            {"datasets": [{"type": "chatml.intel"}], "test_datasets": [{"type": "chatml.icr"}]},
            "test_datasets: with mask 'column' their type must be that of datasets",
        ),
    ],
)
def test_what_weights_of_the_data_refuse(over, says):
    check_config(changed(**over))
    with pytest.raises(SparsePOError, match=says):
        check_config(changed(**over, sparsepo={"mask": "column"}))


@pytest.mark.parametrize(
    "cfg",
    [
        {"rl": "dpo"},
        {"rl": "dpo", "plugins": ["axolotl.integrations.liger.LigerPlugin"]},
        {"rl": "dpo", "plugins": ["their.Plugin"], "loss": "theirs"},  # a key of that plugin, as far as we know
    ],
)
def test_configurations_that_are_not_ours(cfg):
    assert key_of_ours(cfg) is None and check_config(cfg) is None


def test_options_that_axolotl_has_keys_for():
    """The first of Axolotl's keys for β that is given, as it reads them."""
    assert check_config(GOOD).objective["beta"] == 0.1
    assert check_config(changed(rl_beta=0.5, dpo_label_smoothing=0.2)).objective["label_smoothing"] == 0.2
    assert check_config(changed(rl_beta=0.5)).objective["beta"] == 0.5
    assert check_config(changed(rl_beta=0.5, trl={"beta": 0.3})).objective["beta"] == 0.3


@pytest.mark.parametrize("name", ["README.md", "docs/axolotl.md"])
def test_yaml_of_the_documents(name):
    text = (Path(__file__).parents[2] / name).read_text()
    (block,) = [part.partition("```")[0] for part in text.split("```yaml\n")[1:] if PLUGIN in part.partition("```")[0]]
    assert check_config(yaml.safe_load(block)).loss == "sparsepo"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--trl.beta", "x"], "trl.beta: a number is needed, not 'x'"),
        (["--rl-beta=high", "--seed", "1"], "rl_beta: a number is needed, not 'high'"),
        (["--sample-packing"], "sample_packing: must be off"),
        (["--rl", "orpo", "--", "--rl", "dpo"], "needs rl: dpo, not 'orpo'"),
    ],
)
def test_words_of_a_command_line(words, says, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed(base_model=None)))
    assert check(file, []) == "sparsepo"
    assert check(file, ["--rl-beta", "0.5"]) == "sparsepo"
    with pytest.raises(SparsePOError) as caught:
        check(file, words)
    assert says in str(caught.value)


def test_overrides_of_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("rl: orpo\ntrl: {beta: 0.1, use_vllm: false}\n")
    assert read_config(file, {"rl": "dpo", "trl__beta": 0.3}) == {"rl": "dpo", "trl": {"beta": 0.3, "use_vllm": False}}
    assert command(file, 2, ["--rl", "dpo"])[1:] == ["train", str(file), "--num-processes", "2", "--rl", "dpo"]


@pytest.mark.parametrize("text", ["- 1", "a: [", ""])
def test_files_that_are_no_configuration(text, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(SparsePOError, match=r"run\.yaml"):
        read_config(file, {})
