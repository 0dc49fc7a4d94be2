"""Files that are no YAML, or YAML that no run can be read from."""

import os
from itertools import pairwise

import pytest
import yaml

DEEP = "[" * 200 + "]" * 200
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n" for a, b in pairwise("abcdefghij"))
HUGE = "9" * 5000
SECTION = "\nds: {}"  # by which a YAML is known as OpenRLHF's


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("model: {beta: 0.1", "line 1: while parsing a flow mapping", id="open brace"),
        pytest.param("model:\n\tbeta: 0.1", "line 2: while scanning for the next token", id="tab"),
        pytest.param("model: 'beta", "line 1: while scanning a quoted scalar", id="open quote"),
        pytest.param("model: [1, 2", "line 1: while parsing a flow sequence", id="open bracket"),
        pytest.param("model: a: b", "line 1: mapping values are not allowed here", id="two colons"),
        pytest.param("max_norm: 1\n optim: adam", "line 2: mapping values are not allowed", id="indent"),
        pytest.param("max_norm: %1", "line 1: while scanning for the next token", id="percent"),
        pytest.param("max_norm: *nobody\nds: {}", "line 1: found undefined alias 'nobody'", id="undefined alias"),
        pytest.param("--- {ds: {}}\n--- {ds: {}}", "line 2: expected a single document", id="two documents"),
        pytest.param("max_norm: 1\nmax_norm: 2\nds: {}", "line 2: key max_norm is given twice", id="duplicate"),
        pytest.param("model: {beta: 1, beta: 2}", "line 1: key beta is given twice", id="duplicate inside"),
        pytest.param("loss: dpo\ndpo: {a: 1, a: 2}\nds: {}", "line 2: key a is given twice", id="duplicate option"),
        pytest.param("model.beta: 1\nmodel: {beta: 2}", "key model.beta is given twice", id="duplicate by dots"),
        pytest.param("ds.lora.rank: 1\nds: {lora: {rank: 2}}", "key ds.lora.rank is given twice", id="dots, nested"),
        pytest.param("ds.lora: {rank: 1}\nds: {lora.rank: 2}", "key ds.lora.rank is given twice", id="dots, both"),
        pytest.param("", "whose YAML it is cannot be told", id="empty"),
        pytest.param("# nothing", "whose YAML it is cannot be told", id="comment alone"),
        pytest.param("null", "whose YAML it is cannot be told", id="null"),
        pytest.param("- model", "must hold a mapping of flags", id="list"),
        pytest.param("just words", "whose YAML it is cannot be told", id="words"),
        pytest.param("3", "whose YAML it is cannot be told", id="number"),
        pytest.param('{"model": 3}', "model: expected a mapping of flags, got 3", id="JSON"),
        pytest.param(b"\x00\x01\x02\x7fELF", "not YAML: unacceptable character #x0000", id="binary"),
        pytest.param(b"\xff\xfe\xfa", "not YAML: unacceptable character", id="half UTF-16"),
        pytest.param("model: {beta: ü}".encode("latin-1"), "unacceptable character #x00fc", id="latin-1"),
        pytest.param("max_norm: \x07", "not YAML: unacceptable character #x0007", id="bell"),
        pytest.param(
            "a: !!python/object/apply:os.system [ls]\nds: {}", "could not determine a constructor", id="python tag"
        ),
        pytest.param("a: !!python/name:os.system\nds: {}", "could not determine a constructor", id="python name"),
        pytest.param("max_norm: !own 3\nds: {}", "could not determine a constructor for the tag '!own'", id="own tag"),
        pytest.param("max_norm: !!int ''\nds: {}", "not YAML", id="empty int"),
        pytest.param("max_norm: !!int x\nds: {}", "not YAML: invalid literal for int()", id="int of a letter"),
        pytest.param("max_norm: !!timestamp x\nds: {}", "not YAML", id="timestamp of a letter"),
        pytest.param("max_norm: 2024-13-45\nds: {}", "not YAML: month must be in 1..12", id="month 13"),
        pytest.param(LAUGHS + SECTION, "holds 10000 values or more, aliases counted", id="billion laughs"),
        pytest.param("a: &a [*a]\nds: {}", "holds 10000 values or more, aliases counted", id="alias of itself"),
        pytest.param("a: &a {b: *a}\nds: {}", "holds 10000 values or more, aliases counted", id="mapping in itself"),
        pytest.param(f"a: {DEEP}" + SECTION, "nested deeper than 32 levels", id="deep"),
        pytest.param(f"loss: sparsepo\nsparsepo: {DEEP}" + SECTION, "nested deeper than 32 levels", id="deep section"),
        pytest.param("a: [" + "1," * 10_000 + "]" + SECTION, "holds 10000 values or more", id="long list"),
        pytest.param("# " + "x" * 1_000_000, "more than 1000000 bytes", id="large file"),
        pytest.param(f"train: {{seed: {HUGE}}}", "not YAML: Exceeds the limit (4300 digits)", id="huge number"),
        pytest.param(
            "max_norm: 0x" + "f" * 9000 + SECTION, "max_norm: expected float, got a huge number", id="huge float"
        ),
        pytest.param("<<: 5\nds: {}", "expected a mapping or list of mappings for merging", id="merged number"),
        pytest.param("a: &a {b: 1}\n<<: *a\nds: {}", "unknown key b;", id="merged anchor"),
        pytest.param("1: 2\nds: {}", "unknown key 1;", id="number as key"),
        pytest.param("null: 2\nds: {}", "unknown key None;", id="null as key"),
        pytest.param("yes: 2\nds: {}", "unknown key True;", id="bool as key"),
        pytest.param("2024-01-01: 2\nds: {}", "unknown key 2024-01-01;", id="date as key"),
        pytest.param("[a]: 2\nds: {}", "line 1: while constructing a mapping: found unhashable key", id="list as key"),
        pytest.param("? {a: 1}\n: 2\nds: {}", "found unhashable key", id="mapping as key"),
        pytest.param("'': 2\nds: {}", "unknown key '';", id="empty key"),
        pytest.param('"a\\nb": 2\nds: {}', "unknown key a b;", id="line break in a key"),
        pytest.param("x" * 900 + ": 2" + SECTION, "unknown key " + "x" * 200 + "...;", id="long key"),
        pytest.param("model..beta: 1", "unknown key model..beta;", id="two dots"),
        pytest.param(".beta: 1\nds: {}", "unknown key .beta; did you mean model.beta", id="dot first"),
        pytest.param("model.: 1", "unknown key model.;", id="dot last"),
        pytest.param("model: {model.beta: 1}", "unknown key model.model.beta; did you mean model.beta", id="repeated"),
        pytest.param("model: {beta: {beta: 1}}", "model.beta: expected float, got {'beta': 1}", id="too deep"),
    ],
)
def test_text(refused, text, says):
    assert "run.yaml" in refused((says,), text=text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {beta: yes}", "model.beta: expected float, got True"),
        ("model: {beta: 2024-01-01}", "model.beta: expected float, got datetime.date(2024, 1, 1)"),
        ("model: {beta: 1:30}", None),  # YAML 1.1 reads 90
        ("model: {beta: [0.1]}", "model.beta: expected float, got [0.1]"),
        ("model: {beta: }", "model.beta: expected float, got None"),
        ("model: {beta: 0,1}", "unknown key model.1; did you mean model, model.beta?"),
        ("model: {beta: ''}", "model.beta: expected float, got ''"),
        ("train: {batch_size: 8.0}", "train.batch_size: expected int, got 8.0"),
        ("train: {batch_size: '8'}", "train.batch_size: expected int, got '8'"),
        ("train: {batch_size: 1e2}", "train.batch_size: expected int, got '1e2'"),
        ("train: {max_epochs: no}", "train.max_epochs: expected int, got False"),
        ("ds: {packing_samples: 'true'}", "ds.packing_samples: expected true or false, got 'true'"),
        ("ds: {packing_samples: 1}", "ds.packing_samples: expected true or false, got 1"),
        ("ds: {param_dtype: fp8}", "ds.param_dtype: expected one of bf16, fp16, fp32, got 'fp8'"),
        ("ds: {param_dtype: [fp32]}", "ds.param_dtype: expected one of bf16, fp16, fp32, got ['fp32']"),
        ("ds: {lora: 8}", "ds.lora: expected a mapping of flags, got 8"),
        ("ds: {lora: {target_modules: q_proj}}", "ds.lora.target_modules: expected a list of str, got 'q_proj'"),
        ("ds: {lora: {target_modules: [1]}}", "ds.lora.target_modules: expected a list of str, got [1]"),
        ("adam: {betas: 0.9}", "adam.betas: expected a list of 2 float, got 0.9"),
        ("adam: {betas: [0.9]}", "adam.betas: expected a list of 2 float, got [0.9]"),
        ("adam: {betas: [0.9, null]}", "adam.betas: expected a list of 2 float, got [0.9, None]"),
        ("data: {dataset: 7}", "data.dataset: expected str, got 7"),
        ("data: {dataset: [a, b]}", "data.dataset: expected str, got ['a', 'b']"),
        ("data: {dataset: 2024-01-01}", "data.dataset: expected str, got datetime.date"),
        ("data: pairs.jsonl", "data: expected a mapping of flags, got 'pairs.jsonl'"),
        ("model: [beta]", "model: expected a mapping of flags, got ['beta']"),
        ("optim: sgd\nds: {}", "optim: expected one of adam, muon, got 'sgd'"),
        ("ref: {share: maybe}", "ref.share: expected true or false, got 'maybe'"),
        ("train: {seed: 0x" + "f" * 9000 + "}", "train.seed: a whole number from 0 to 4294967295 is needed"),
        ("model: {beta: " + "x" * 2000 + "}", "model.beta: expected float, got 'xxx"),
        ("model: {beta: " + str(list(range(900))) + "}", "got [0, 1, 2, 3, 4, 5, ...]"),
        ("config: other.yaml\nds: {}", "unknown key config"),
        ("help: true\nds: {}", "unknown key help"),
        ("model: {btea: 1}", "unknown key model.btea; did you mean model.beta"),
        ("lr: 1\nds: {}", "unknown key lr; did you mean muon.lr, adam.lr"),
        ("sparsepo: {l1_kl: 1}\nds: {}", "unknown key sparsepo; "),
        ("loss: sparsepo\nsparsepo.l1_kl: 1\nds: {}", "unknown key sparsepo.l1_kl"),
        ("loss: sparsepo\nsparsepo: 3\nds: {}", "sparsepo: expected a mapping, got 3"),
        ("loss: sparsepo\nsparsepo: [mask]\nds: {}", "sparsepo: expected a mapping, got ['mask']"),
        ("loss: sparsepo\nsparsepo: ''\nds: {}", "sparsepo: expected a mapping, got ''"),
        ("loss: my:Loss\nmy:Loss: {}\nds: {}", "unknown key my:Loss;"),  # its section is called options
    ],
)
def test_values(refused, text, says):
    if says is None:
        assert yaml.safe_load(text)["model"]["beta"] == 90
        says = "model.model_name_or_path is missing"
    refused((says,), text=text)


@pytest.mark.parametrize(
    ("name", "says"),
    [("absent.yaml", "No such file"), (".", "Is a directory"), ("x" * 300, "File name too long"), ("a/b", "No such")],
)
def test_files_that_cannot_be_opened(refused, name, says):
    refused((f"--config {name[:200]}", says), "--config", name)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_file_without_permission(refused, tmp_path):
    (tmp_path / "secret.yaml").touch(mode=0)
    refused(("--config secret.yaml: Permission denied",), "--config", "secret.yaml")
