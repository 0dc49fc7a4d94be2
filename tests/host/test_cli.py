"""The `sparsepo` command as a user types it."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from host_runs import merge, places
from typer.testing import CliRunner

from sparsepo_plugin.cli import app
from sparsepo_plugin.hosts import HOSTS
from sparsepo_plugin.hosts.openrlhf import patched
from sparsepo_plugin.hosts.openrlhf.program import load_program

PAGE = (Path(__file__).parents[2] / "docs/howto/mask.md").read_text()
STARTS = {
    "check": ["sparsepo", "check", "my.yaml"],
    "train": ["sparsepo", "train", "my.yaml"],
    "DeepSpeed's launcher": [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1"),
        *("--module", "sparsepo_plugin.train", "--config", "my.yaml"),
    ],
}


def test_train_picks_a_launcher_and_flags_win_over_the_file(config, train, sparsepo, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merge(places(tmp_path), config(adam={"lr": 0.5}, sparsepo={"l1_kl": 7}))))
    done = sparsepo("train", str(file), "--adam.lr", "1e-3", "--sparsepo.l1_kl=1e-3")
    assert done.returncode == 0, done.stderr[-3000:]
    saved = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert saved == (train().folder / "out" / "model.safetensors").read_bytes()


def test_train_refuses_before_it_starts_anything(config, sparsepo, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merge(places(tmp_path), config(sparsepo={"mask": "dense"}))))
    done = sparsepo("train", str(file))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert line.startswith("sparsepo: error: sparsepo.mask: unknown mask 'dense'")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(("processes", "times"), [(1, 1), (2, 4)])
def test_torch_is_imported_by_who_needs_it(processes, times, config, sparsepo, tmp_path):
    """By the run's one process; or by the one that looks at the run, DeepSpeed's launcher, and each rank."""
    file = tmp_path / "run.yaml"
    short = config(data={"max_samples": 8}, train={"micro_batch_size": 4})
    file.write_text(yaml.safe_dump(merge(places(tmp_path), short)))
    done = sparsepo("train", str(file), "--num-processes", str(processes), PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall(r"^import time:.*\| +torch$", done.stderr, re.MULTILINE)) == times


PROGRAMS = {"train": "train_dpo", "check": "train_dpo", "sft": "train_sft"}


@pytest.mark.parametrize("command", PROGRAMS)
def test_help_shows_the_hosts_flags_by_section(command, here):
    done = here(command, "--help")
    assert done.exit_code == 0, repr(done.exception)
    text = done.stdout
    assert "docs.axolotl.ai" in text
    shown, section = set(), None
    for line in text.splitlines():
        if heading := re.fullmatch(r"([a-z.]+):", line):
            section = heading[1]
        elif flag := re.match(r"  --([\w.]+)", line):
            assert flag[1].rpartition(".")[0] in (section, ""), line
            shown.add(flag[1])
    assert shown == set(flags_of(PROGRAMS[command]))


def flags_of(program):
    actions = load_program(program).get_parser()._actions
    return [action.option_strings[0].removeprefix("--") for action in actions if action.dest != "help"]


def test_help_without_the_host(here, monkeypatch):
    """Says why its flags are missing."""

    def distribution(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(patched, "distribution", distribution)
    done = here("train", "--help")
    assert done.exit_code == 0 and "is not installed" in done.stdout


def test_a_hosts_marks_are_its_sections():
    flags = flags_of("train_dpo") + flags_of("train_sft")
    assert HOSTS["openrlhf"].marks == {flag.partition(".")[0] for flag in flags if "." in flag}


def test_versions(here):
    lines = here("--version").stdout.splitlines()
    assert lines[:2] == [f"{name} {version(name.lower())}" for name in ("sparsepo-plugin", "OpenRLHF")]


def test_lists(here):
    masks = here("masks").stdout.splitlines()
    names = [line.split()[0] for line in masks]
    assert names == sorted(names) and {"activation", "learned", "selected"} <= set(names)
    assert all(len(line.split()) > 4 for line in masks)
    assert "sparsepo" in [line.split()[0] for line in here("objectives").stdout.splitlines()]


def test_a_mistake_met_in_training_is_one_line(config, sparsepo, tmp_path):
    """Without torchrun's traceback after it: one CPU process is started without a launcher."""
    pairs = tmp_path / "rows.jsonl"
    pairs.write_text('{"prompt": "w1 ", "chosen": "w2", "rejected": ""}\n' * 8)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merge(places(tmp_path), config(data={"dataset": str(pairs)}))))
    done = sparsepo("train", str(file))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert line.startswith(
        f"sparsepo: error: {pairs}, row 1: rejected is empty; a response needs at least one word (8 of"
    )


@pytest.mark.parametrize("start", STARTS)
def test_the_mask_of_the_page_beside_the_yaml(start, config, server, tmp_path):
    """As it is printed, from the folder that holds both files."""
    (code,), (written,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "yaml"))
    (tmp_path / "my_masks.py").write_text(code)
    keys = {key: yaml.safe_load(written)[key] for key in ("loss", "loss_plugins", "sparsepo")}
    settings = merge(config(sparsepo=None, data={"max_samples": 16}), keys)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(merge(places(tmp_path), settings)))
    done = server.run(*STARTS[start], cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "out" / "sparsepo.json").is_file() == (start != "check")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The command in this process, typed in a folder of its own: milliseconds in place of seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "peeking", raising=False)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def peeking(config, tmp_path):
    """A YAML with a mask of one's own that sees the token it weighs, in one of its roles."""
    (tmp_path / "peeking.py").write_text(
        "import torch\n"
        "from sparsepo_plugin import TokenMask\n"
        "class Peek(TokenMask):\n"
        '    """Sees the token itself from the third on."""\n'
        "    def forward(self, features, tokens):\n"
        "        return torch.where(tokens.position < 2, 1.0, tokens.labels.float())\n"
    )
    file = tmp_path / "my.yaml"

    def write(**over):
        rows = '{"prompt": "w1 w2 ", "chosen": "w3 w4 w5 w6", "rejected": "w7"}\n' * 8
        (tmp_path / "pairs.jsonl").write_text(rows)
        file.write_text(yaml.safe_dump(config(data={"dataset": str(tmp_path / "pairs.jsonl")}, **over)))
        return file

    return write


def test_causality(here, peeking):
    learned = {"l1_reward": None, "l1_kl": None, "shared": None}
    file = peeking(sparsepo={**learned, "kl": {"mask": "activation"}})
    done = here("check", file, "--causality")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "reward mask 'learned': sees only the tokens before",
        "kl mask 'activation': not looked at, it says of itself that it is not causal",
        f"{file}: ok, loss: sparsepo",
    ]


def test_a_mask_that_looks_ahead_is_one_line(here, peeking):
    file = peeking(sparsepo={**dict.fromkeys(("shared", "l1_kl", "metrics_every")), "kl": {"mask": "peeking:Peek"}})
    assert here("check", file).exit_code == 0
    done = here("check", file, "--causality")
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert line.startswith("sparsepo: error: kl mask 'peeking:Peek' looks ahead: ")
    assert "the weight of its token 2, counted from 0, changes" in line


@pytest.mark.parametrize(
    ("over", "says"),
    [({"loss": None, "sparsepo": None}, "OpenRLHF's own DPO"), ({"loss": "dpo", "sparsepo": None}, "loss: dpo")],
)
def test_causality_of_no_mask_is_refused(over, says, here, peeking):
    done = here("check", peeking(**over), "--causality")
    assert done.exit_code == 2
    assert "--causality has no effect" in done.stderr and says in done.stderr


def test_one_of_them_is_described(here):
    """Docstring, options, types and defaults."""
    objective, mask = here("objectives", "tdpo").stdout, here("masks", "learned").stdout
    assert "With D = Σ_t KL(π_ref‖π) of a response" in objective
    rows = {line.split()[0]: line.split() for line in (objective + mask).splitlines() if line.startswith("  ")}
    assert rows["version"][1:5] == ["1", "|", "2", "2"]
    assert rows["alpha"][1:5] == ["float", "≥", "0", "0.5"]
    assert rows["layer_norm"][1:5] == ["bool", "|", "affine", "true"]
    assert {"chunk_size", "logits_budget", "disable_dropout"} <= rows.keys(), "those of every loss"
    assert not {"hidden_size", "num_layers", "beta"} & rows.keys(), "the run gives them, and no YAML"
    unknown = here("masks", "nope")
    assert unknown.exit_code == 2
    assert unknown.stderr.startswith("sparsepo: error: mask: unknown mask 'nope': registered are activation, ")
