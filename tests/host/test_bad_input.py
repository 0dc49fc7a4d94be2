"""Bad input: one line that names the key or the row and what is allowed, exit code not 0, nothing half-written."""

import json

import pytest
import yaml
from host_runs import merge
from transformers import LlavaConfig
from typer.testing import CliRunner

from sparsepo_plugin.cli import app


@pytest.fixture
def check(config, tmp_path):
    """Output of `sparsepo check` for the good YAML with changes, which must be refused."""

    def check(*flags: str, pairs: list[dict] | None = None, **over) -> str:
        settings = config(**over)
        if pairs is not None:
            file = tmp_path / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in pairs))
            settings = merge(settings, {"data": {"dataset": str(file)}})
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(settings))
        result = CliRunner().invoke(app, ["check", str(path), *flags])
        assert result.exit_code == 2, result.output
        lines = [line for line in result.stderr.splitlines() if line.startswith("sparsepo: error:")]
        assert len(lines) == 1, result.stderr
        return lines[0]

    return check


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"sparsepo": {"l1": 1}}, ("sparsepo.l1 ", "l1_reward, l1_kl")),
        ({"sparsepo": {"l1_kl": "much"}}, ("sparsepo.l1_kl", "number", "'much'")),
        (
            {"sparsepo": {"mask": "dense"}},
            ("sparsepo.mask", "'dense'", "activation, decay, learned, random, selected, uniform"),
        ),
        ({"sparsepo": {"mask": "uniform"}}, ("sparsepo.l1_reward", "no effect")),
        ({"loss": "sparsedpo"}, ("sparsedpo", "sparsepo")),
        ({"loss": None}, ("sparsepo",)),
        ({"train": {"micro_batchsize": 2}}, ("train.micro_batchsize", "train.micro_batch_size")),
        ({"train": {"batch_size": "many"}}, ("train.batch_size", "int", "many")),
        ({"ds": {"param_dtype": "int8"}}, ("ds.param_dtype", "fp32")),
        ({"model": {"model_name_or_path": "/nowhere/model"}}, ("model.model_name_or_path", "/nowhere/model")),
        ({"data": {"dataset": "/nowhere/pairs.jsonl"}}, ("data.dataset", "/nowhere/pairs.jsonl")),
        ({"data": {"chosen_key": "better"}}, ("data.chosen_key", "'better'", "prompt, chosen, rejected")),
        ({"data": {"max_samples": 3}}, ("data.dataset", "3 pairs", "train.batch_size is 8")),
        ({"model": {"ipo_enable": True}}, ("model.ipo_enable",)),
        ({"model": {"aux_loss_coef": 0.1}}, ("model.aux_loss_coef", "no effect", "router")),
        ({"ds": {"tensor_parallel_size": 2}}, ("ds.tensor_parallel_size",)),
        ({"sparsepo": {"layers": [5]}}, ("sparsepo.layers", "from 0 to 1")),
        ({"ds": {"packing_samples": True, "ring_attn_size": 2}}, ("ds.ring_attn_size", "ring_flash_attn")),
        ({"ref": {"share": True}}, ("ref.share", "ds.lora.rank")),
        (
            {"sparsepo": {"metrics_every": 5}, "model": {"nll_loss_coef": 0.1}},
            ("sparsepo.metrics_every", "no effect", "model.nll_loss_coef"),
        ),
        ({"optim": "muon"}, ("optim: muon", "sparsepo.mask_lr")),
        ({"sparsepo": {"on_nonfinite": "ignore"}}, ("sparsepo.on_nonfinite", "'stop' or 'skip'", "'ignore'")),
        (
            {
                "sparsepo": {"on_nonfinite": "skip"},
                "ds": {"zero_stage": 1, "param_dtype": "bf16", "grad_accum_dtype": "fp32"},
            },
            ("sparsepo.on_nonfinite: skip", "ds.zero_stage", "ds.grad_accum_dtype"),
        ),
        ({"ds": {"lora": {"rank": 4}}, "ref": {"offload": True}}, ("ref.offload", "no effect")),
    ],
)
def test_keys(check, over, says):
    line = check(**over)
    for word in says:
        assert word in line, line


PAIR = {"prompt": "w1 w2 ", "chosen": "w3 w4", "rejected": "w5"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**PAIR, "chosen": " "}, ("row 9: chosen is empty",)),
        ({**PAIR, "rejected": "w1 " * 40}, ("row 9: prompt and rejected have 43 tokens", "data.max_len is 32")),
    ],
)
def test_rows(check, row, says):
    line = check(pairs=[*[PAIR] * 8, row, PAIR])
    for word in ("rows.jsonl", *says):
        assert word in line, line


def test_rows_that_are_not_text(check):
    messages = [{"role": "user", "content": "w1"}]
    line = check(pairs=[{**PAIR, "chosen": messages}] * 10)
    assert "row 1: chosen is list" in line and "data.apply_chat_template" in line


def test_missing_column(check):
    line = check(pairs=[{"prompt": "w1", "chosen": "w2"}] * 10)
    assert "data.rejected_key" in line and "'rejected'" in line


def test_vision_models(check, tmp_path):
    LlavaConfig().save_pretrained(tmp_path / "vision")
    line = check(model={"model_name_or_path": str(tmp_path / "vision")})
    assert "model.model_name_or_path: llava is a vision model" in line


def test_code_of_the_model_runs_only_if_the_yaml_says_so(check, config, tmp_path):
    """A model type that exists only in the folder's own Python file."""
    folder = tmp_path / "custom"
    folder.mkdir()
    automap = {"AutoConfig": "own.OwnConfig"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": automap}))
    (folder / "own.py").write_text("raise RuntimeError('the code of the model ran')")
    model = {"model_name_or_path": str(folder)}
    assert "trust_remote_code" in check(model=model)
    file = tmp_path / "trusting.yaml"
    file.write_text(yaml.safe_dump(config(model={**model, "trust_remote_code": True})))
    result = CliRunner().invoke(app, ["check", str(file)])
    assert "the code of the model ran" in str(result.exception)


def test_command_line_is_checked_like_the_file(check):
    assert "sparsepo.l1_kl" in check("--sparsepo.l1_kl", "much")
    assert "sparsepo.nothing" in check("--sparsepo.nothing=1")


def test_a_good_file_passes(config, tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(config()))
    result = CliRunner().invoke(app, ["check", str(path), "--sparsepo.l1_kl", "0.5"])
    assert result.exit_code == 0 and "ok, loss: sparsepo" in result.stdout, result.output


def test_loss_that_is_not_a_number(config, launch):
    run = launch(config(adam={"lr": 1e30}, max_norm=0.0), processes=1)
    assert run.code == 2
    (line,) = [line for line in run.output.splitlines() if "sparsepo: error:" in line]
    assert "not finite at step" in line and line.endswith("clipped gradients may help (adam.lr, max_norm)")
    assert not list((run.folder / "out").iterdir())


@pytest.mark.parametrize("launcher", ["fork", "torchrun"])
def test_an_empty_response_stops_two_processes(launcher, config, launch, tmp_path):
    file = tmp_path / "rows.jsonl"
    bad = {**PAIR, "rejected": ""}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*[PAIR] * 9, bad, *[PAIR] * 1000, bad]))
    run = launch(config(data={"dataset": str(file)}, train={"micro_batch_size": 4}), processes=2, launcher=launcher)
    assert run.code != 0
    (line,) = [line for line in run.output.splitlines() if "sparsepo: error:" in line]
    assert "row 10: rejected is empty" in line and "(2 of 1011 rows" in line and "(rank" not in line
    listed = [line for line in run.output.splitlines() if line.startswith(f"  {file}, row ")]
    assert [line.split(":")[0].split()[-1] for line in listed] == ["10", "1011"]  # one in the share of each rank
    assert not (run.folder / "out").exists()
