"""Whose YAML a file is, by its keys."""

from pathlib import Path

import pytest

from sparsepo_plugin import SparsePOError, hosts
from sparsepo_plugin.hosts import HOSTS, Host, host_of, load_host

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["openrlhf", "axolotl"])
def test_every_example_is_its_folders(name):
    for file in (EXAMPLES / name).rglob("*.yaml"):
        assert host_of(hosts._top_keys(file)) == name, file


def test_no_key_marks_two_hosts():
    marks = [mark for host in HOSTS.values() for mark in host.marks]
    assert len(marks) == len(set(marks))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("model: {beta: 1}\nds.lora.rank: 4", {"model", "ds"}),
        ('{"base_model": {"model": 1}, "rl": "dpo"}', {"base_model", "rl"}),
        ("a: &a [x, {model: 1}]\nb: *a\n? [c]\n: d\n'e': 1", {"a", "b", "", "e"}),
        ("a: !!python/object/apply:os.system [ls]", {"a"}),
        ("- [model, 1]", set()),
        ("", set()),
        ("words", set()),
    ],
)
def test_keys_at_the_top(text, keys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert hosts._top_keys(file) - {""} == keys - {""}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr: 1", ": whose YAML it is cannot be told by the keys at its top: OpenRLHF's has adam, ckpt, data, ds, "),
        ("model: {}\nrl: dpo", ": keys of OpenRLHF (model) and Axolotl (rl) in one file: leave those of one host"),
        ("dataset_name: x", ": has keys of TRL, which is used from Python, with sparsepo_plugin.hosts.trl.Spar"),
        ("rl: dpo", ": has keys of Axolotl, which is not installed: "),
        ("a: [1", ", line 1: while parsing a flow sequence: expected ',' or ']'"),
        ("a: \x07", ": not YAML: unacceptable character #x0007"),
        ("#" * 1_000_001, ": more than 1000000 bytes"),
        (None, ": No such file or directory"),
    ],
)
def test_what_nobody_takes_is_one_line(text, says, tmp_path, monkeypatch):
    monkeypatch.setattr(Host, "version", None)
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SparsePOError) as error:
        load_host(file)
    assert str(error.value).startswith(f"{file}{says}")
