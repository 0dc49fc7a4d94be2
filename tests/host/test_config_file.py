"""`--config FILE.yaml` of the patched OpenRLHF: what it accepts, what wins, and what it says about mistakes."""

import subprocess
import sys

import pytest

from sparsepo_plugin.hosts.openrlhf.overlay import activate

activate()

from openrlhf.cli import train_dpo, train_sft  # noqa: E402
from openrlhf.utils.config import ConfigError  # noqa: E402

LOSS = """
from importlib import import_module
from openrlhf.models.loss_registry import PreferenceLoss
class ExampleLoss(PreferenceLoss):
    pass
def find(name, plugins):
    for module in plugins:
        import_module(module)
    if name not in ("example", "example_loss:Other", "bare", "model"):
        raise LookupError(f"no example is called {name}")
    return ExampleLoss
"""


@pytest.fixture
def parse(tmp_path):
    """Parse a YAML text and command-line arguments with the parser of train_dpo."""

    def parse(text, *argv, cli=train_dpo):
        file = tmp_path / "run.yaml"
        file.write_text(text)
        return cli.parse_args(["--config", str(file), *argv])

    return parse


@pytest.fixture
def losses(tmp_path, monkeypatch):
    """An installed package that offers the losses `example`, `bare`, `model` and `example_loss:Other`."""
    info = tmp_path / "site" / "example_loss-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-loss\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[openrlhf.losses]\nexample = example_loss:find\n")
    (tmp_path / "site" / "example_loss.py").write_text(LOSS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "example_loss", raising=False)


def test_no_file_gives_upstream_defaults():
    args = train_dpo.parse_args(["--model.beta", "0.2"])
    assert (args.model.beta, args.ds.param_dtype, args.loss, args.config) == (0.2, "bf16", None, None)
    assert args.model.trust_remote_code is False


def test_values_of_every_kind(parse):
    args = parse(
        """
        optim: muon
        max_norm: 2
        model: {beta: 0.8, model_name_or_path: some/model, gradient_checkpointing_enable: true}
        ref: {model_name_or_path: null}
        data:
        ds:
          zero_stage: 3
          param_dtype: fp32
          lora: {rank: 8, dropout: 0.1, target_modules: [q_proj, v_proj]}
        adam: {lr: 1e-5, betas: [0.9, 1], eps: 1.0e-8}
        muon: {nesterov: false}
        """
    )
    assert (args.optim, args.max_norm) == ("muon", 2.0)
    assert type(args.max_norm) is float
    assert (args.model.beta, args.model.gradient_checkpointing_enable) == (0.8, True)
    assert args.ref.model_name_or_path == "some/model"
    assert (args.ds.zero_stage, args.ds.param_dtype) == (3, "fp32")
    assert args.ds.lora.target_modules == ["q_proj", "v_proj"]
    assert (args.adam.lr, args.adam.betas, args.adam.eps) == (1e-5, [0.9, 1.0], 1e-8)
    assert args.muon.nesterov is False


def test_file_of_defaults_is_accepted(parse):
    args = parse("ds: {lora: {target_modules: all-linear}}\nmuon: {nesterov: true}\ndata: {dataset: null}")
    assert (args.ds.lora.target_modules, args.data.dataset) == ("all-linear", None)


def test_dotted_keys_are_the_flags_themselves(parse):
    assert parse("model.beta: 0.3\nds: {lora.rank: 4}").ds.lora.rank == 4


def test_command_line_wins(parse):
    text = (
        "model: {beta: 0.8}\nadam: {lr: 1e-3, betas: [0.5, 0.6]}\nmuon: {nesterov: true}\nref: {share: true}\nloss: x"
    )
    with pytest.raises(ConfigError, match=r"loss: unknown loss 'x'; registered are .*, sparsepo, "):
        parse(text)
    args = parse(
        text.replace("\nref: {share: true}\nloss: x", ""),
        *("--model.beta", "0.1", "--adam.betas", "0.7", "0.8", "--muon.no_nesterov"),
    )
    assert (args.model.beta, args.adam.lr, args.adam.betas, args.muon.nesterov) == (0.1, 1e-3, [0.7, 0.8], False)


def test_sft_reads_the_same_files(parse):
    args = parse("train: {max_epochs: 3}\nds: {packing_samples: true, attn_implementation: sdpa}", cli=train_sft)
    assert (args.train.max_epochs, args.ds.attn_implementation) == (3, "sdpa")
    with pytest.raises(ConfigError, match=r"unknown key model\.beta"):
        parse("model: {beta: 0.1}", cli=train_sft)


@pytest.mark.parametrize(
    ("attention", "ring", "kept"),
    [
        ("sdpa", 1, "sdpa"),
        ("eager", 1, "eager"),
        ("flash_attention_3", 1, "flash_attention_3"),
        ("sdpa", 2, "flash_attention_2"),
        ("flex_attention", 1, "flash_attention_2"),
    ],
)
def test_attention_under_packing(parse, attention, ring, kept):
    text = f"ds: {{packing_samples: true, attn_implementation: {attention}, ring_attn_size: {ring}}}"
    assert parse(text).ds.attn_implementation == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {btea: 0.1}", r"unknown key model\.btea; did you mean model\.beta"),
        ("modle: {beta: 0.1}", r"unknown key modle; did you mean model"),
        ("lr: 0.1", r"unknown key lr; did you mean muon\.lr, adam\.lr\?"),
        ("muon: {no_nesterov: true}", r"unknown key muon\.no_nesterov; did you mean muon\.nesterov"),
        ("config: other.yaml", "unknown key config"),
        ("help: true", "unknown key help"),
        ("5: 6", "unknown key 5; sections are adam, ckpt"),
        ("example: {mask: learned}", r"unknown key example; .*need `loss: NAME`"),
        ("model: {beta: {x: 1}}", r"model\.beta: expected float, got \{'x': 1\}"),
        ("model: {beta: high}", r"model\.beta: expected float, got 'high'"),
        ("model: {beta: true}", r"model\.beta: expected float, got True"),
        ("model: {beta: null}", r"model\.beta: expected float, got None"),
        ("model: 3", r"model: expected a mapping of flags, got 3"),
        ("train: {seed: true}", r"train\.seed: expected int, got True"),
        ("train: {seed: 1.0}", r"train\.seed: expected int, got 1\.0"),
        ("train: {seed: '1'}", r"train\.seed: expected int, got '1'"),
        ("data: {dataset: 7}", r"data\.dataset: expected str, got 7"),
        ("ref: {offload: 1}", r"ref\.offload: expected true or false, got 1"),
        ("ref: {share: maybe}", r"ref\.share: expected true or false, got 'maybe'"),
        ("optim: sgd", r"optim: expected one of adam, muon, got 'sgd'"),
        ("ds: {param_dtype: fp8}", r"ds\.param_dtype: expected one of bf16, fp16, fp32, got 'fp8'"),
        ("adam: {betas: [0.9]}", r"adam\.betas: expected a list of 2 float, got \[0\.9\]"),
        ("adam: {betas: 0.9}", r"adam\.betas: expected a list of 2 float, got 0\.9"),
        ("adam: {betas: [0.9, x]}", r"adam\.betas: expected a list of 2 float, got \[0\.9, 'x'\]"),
        ("ds: {lora: {target_modules: q_proj}}", r"target_modules: expected a list of str, got 'q_proj'"),
        ("ref: {share: true}", r"ref\.share: needs --loss"),
        ("loss: [x]", r"loss: expected str, got \['x'\]"),
        ("loss: none-such", r"unknown loss 'none-such'; registered are "),
        ("model.beta: 0.1\nmodel: {beta: 0.2}", r"key model\.beta is given twice"),
        ("model: {beta: 0.1, beta: 0.2}", "run.yaml, line 1: key beta is given twice"),
        ("max_norm: 1\noptim: adam\nmax_norm: 2", "run.yaml, line 3: key max_norm is given twice"),
        ("model: {beta: 0.1", "run.yaml, line 1: while parsing a flow mapping"),
        ("- model", "must hold a mapping of flags"),
        ("", "must hold a mapping of flags"),
        ("just words", "must hold a mapping of flags"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(parse, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_mistake_in_the_file_names_the_file(parse, tmp_path):
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/run\.yaml: max_norm: expected float"):
        parse("max_norm: much")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(ConfigError, match=r"^--config \S+: (No such file|Is a directory)"):
        train_dpo.parse_args(["--config", str(tmp_path / name)])


def test_section_of_the_loss_is_a_plain_dict(parse, losses):
    args = parse("loss: example\nexample: {mask: learned, rate: 1e-3, nested: {a: 1, b: 2}}")
    assert args.loss_options == {"mask": "learned", "rate": "1e-3", "nested": {"a": 1, "b": 2}}
    assert parse("loss: example\nexample:").loss_options == {}
    assert parse("loss: example").loss_options == parse("max_norm: 1").loss_options == {}


def test_a_class_by_its_path_has_its_options_under_that_name(parse, losses):
    args = parse("loss: example_loss:Other\noptions: {a: 1}", "--options.b", "2")
    assert (args.loss, args.loss_options) == ("example_loss:Other", {"a": 1, "b": 2})
    with pytest.raises(ConfigError, match=r"unknown key example_loss:Other"):
        parse("loss: example_loss:Other\nexample_loss:Other: {a: 1}")


def test_plugins_are_given_to_whoever_offers_losses(parse, losses, tmp_path, monkeypatch):
    (tmp_path / "site" / "seen_by_example.py").write_text("")
    monkeypatch.delitem(sys.modules, "seen_by_example", raising=False)
    assert parse("loss: example\nloss_plugins: [seen_by_example]").loss_plugins == ["seen_by_example"]
    assert "seen_by_example" in sys.modules
    assert parse("loss: example", "--loss_plugins", "json", "csv").loss_plugins == ["json", "csv"]


def test_section_arguments_win_over_the_file(parse, losses):
    args = parse(
        "example: {mask: learned, layers: all, nested: {a: 1, b: 2}}",
        *("--loss", "example", "--example.mask=random", "--example.layers", "[0, -1]", "--model.beta", "0.3"),
        *("--example.nested.b", "-3", "--example.new.c.d", "true", "--no-ref.share"),
    )
    assert args.loss_options == {
        "mask": "random",
        "layers": [0, -1],
        "nested": {"a": 1, "b": -3},
        "new": {"c": {"d": True}},
    }
    assert (args.model.beta, args.ref.share) == (0.3, False)


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("example: {a: 1}\nloss: bare", [], "unknown key example"),
        ("loss: other", [], "no example is called other"),
        ("loss: model", [], "loss: model has the name of a section of flags"),
        ("loss: example\nloss_plugins: json", [], "loss_plugins: expected a list of str, got 'json'"),
        ("example: [a]\nloss: example", [], r"example: expected a mapping, got \['a'\]"),
        ("example: 0\nloss: example", [], "example: expected a mapping, got 0"),
        ("example: {a: 1, a: 2}\nloss: example", [], "key a is given twice"),
        ("loss: example", ["--example.a"], r"--example\.a: expected a value"),
        ("loss: example", ["--example.a", "--model.beta", "1"], r"--example\.a: expected a value"),
        ("loss: example", ["--example.a", "{b"], r"--example\.a, line 1: while parsing"),
        ("loss: example\nexample: {a: 1}", ["--example.a.b", "1"], r"--example\.a\.b: a is not a mapping"),
    ],
)
def test_mistakes_in_a_section(parse, losses, text, argv, message):
    with pytest.raises(ConfigError, match=message):
        parse(text, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--example.mask", "random"], "^--example.mask: unknown key example.mask; sections are"),
        (["--model.btea", "1"], "^--model.btea: unknown key model.btea; did you mean model.beta"),
        (["--loss", "bare", "--example.a=1"], "^--example.a: unknown key example.a"),
        (["--model.beta", "high"], "^argument --model.beta: invalid float value: 'high'"),
        (["--model.beta"], "^argument --model.beta: expected one argument"),
        (
            ["--model.gradient"],
            "^ambiguous option: --model.gradient could match --model.gradient_checkpointing_e",
        ),
        (["word"], "^unexpected argument 'word': flags are --KEY VALUE"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_too(parse, losses, argv, message, capsys):
    with pytest.raises(ConfigError, match=message) as error:
        parse("max_norm: 1", *argv)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("cli", ["train_dpo", "train_sft"])
def test_program_prints_one_line_and_exits_with_2(tmp_path, cli):
    (tmp_path / "run.yaml").write_text("model: {typo: 1}")
    command = [sys.executable, "-W", "ignore", "-m", f"openrlhf.cli.{cli}", "--config", "run.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("run.yaml: unknown key model.typo")
    assert "Traceback" not in done.stderr
    assert "usage" not in done.stderr
