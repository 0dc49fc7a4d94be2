"""`sparsepo score` against the tables of the run, and what becomes of pairs that cannot be asked about."""

import json

import pytest
import torch
from finished_runs import NASTY, PLAIN, finished_run, write_lines
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from sparsepo_plugin import SparsePOError, load_run
from sparsepo_plugin.analysis.files import names_of
from sparsepo_plugin.analysis.pairs import read_pairs
from sparsepo_plugin.analysis.score import COLUMNS
from sparsepo_plugin.cli import app
from sparsepo_plugin.texts import token_text

PAIRS = [PLAIN, *NASTY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs `sparsepo`, `dpo` and `simpo`, and `pairs.jsonl`."""
    folder = tmp_path_factory.mktemp("scored")
    for seed, loss in enumerate(("sparsepo", "dpo", "simpo")):
        finished_run(folder / loss, loss, seed=seed)
    write_lines(folder / "pairs.jsonl", PAIRS)
    return folder


@pytest.fixture
def sparsepo(folder, tmp_path, monkeypatch):
    """The command, typed where the runs are; `out/` is a folder of the test."""
    monkeypatch.chdir(folder)
    return lambda *arguments: CliRunner().invoke(
        app, [argument.replace("out/", f"{tmp_path}/") for argument in arguments]
    )


@pytest.mark.parametrize("loss", ["sparsepo", "dpo", "simpo"])
def test_lines_are_the_tables(loss, sparsepo, folder, tmp_path):
    """Every float32 bit for bit: the decimals are read back as float32."""
    done = sparsepo("score", loss, "--pairs", "pairs.jsonl", "-o", "out/new/tokens.jsonl")
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "new" / "tokens.jsonl").read_text().splitlines()]
    run = load_run(folder / loss, device="cpu")
    tables = [run.tokens(**pair) for pair in PAIRS]
    assert [line["text"] for line in lines] == [text for table in tables for text in table.text]
    assert [line["response"] for line in lines] == [name for table in tables for name in table.response]
    places = [
        (number, position)
        for number, table in enumerate(tables)
        for side in ("chosen", "rejected")
        for position in range(len(table.of(side)))
    ]
    assert [(line["pair"], line["position"]) for line in lines] == places
    for name in COLUMNS:
        columns = [getattr(table, name) for table in tables]
        found = [line[name] for line in lines]
        if columns[0] is None:
            assert found == [None] * len(lines)
        else:
            assert torch.equal(torch.tensor(found), torch.cat(columns)), name


def test_weights_that_the_pairs_bring(sparsepo, tmp_path):
    """A run whose mask reads them is asked with them; a line's spans are checked against its texts."""
    finished_run(tmp_path / "column", seed=3, section={"mask": "column", "suffix": "_w"})
    pair = {**PLAIN, "chosen_w": [{"start": 0, "end": len(PLAIN["chosen"]), "weight": 0.25}]}
    write_lines(tmp_path / "weighed.jsonl", [pair, PLAIN])
    done = sparsepo("score", "out/column", "--pairs", "out/weighed.jsonl", "-o", "out/tokens.jsonl")
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    first = [line["mask_reward"] for line in lines if line["pair"] == 0 and line["response"] == "chosen"]
    others = {line["mask_reward"] for line in lines if line["pair"] == 1 or line["response"] == "rejected"}
    assert first == [0.25] * (len(first) - 2) + [1.0, 1.0] and others == {1.0}  # the end comes after a space
    pair["chosen_w"][0]["end"] += 1
    write_lines(tmp_path / "weighed.jsonl", [pair])
    done = sparsepo("score", "out/column", "--pairs", "out/weighed.jsonl", "-o", "out/tokens.jsonl")
    assert done.exit_code == 2 and "weighed.jsonl, line 1: chosen_weights: span 1 is from 0 to" in done.stderr


def test_masked_columns(folder):
    """m_u·r and m_d·KL; a loss without masks weighs every token alike."""
    table, bare = (load_run(folder / loss, device="cpu").tokens(**PLAIN) for loss in ("sparsepo", "dpo"))
    assert 0 < (table.mask_reward == 0).sum() < len(table)
    assert torch.equal(table.masked_reward, table.mask_reward * table.log_ratio)
    assert torch.equal(table.masked_kl, table.mask_kl * table.kl)
    assert bare.mask_reward is None
    assert torch.equal(bare.masked_reward, bare.log_ratio) and torch.equal(bare.masked_kl, bare.kl)


def test_the_first_pairs(sparsepo, tmp_path):
    assert sparsepo("score", "dpo", "--pairs", "pairs.jsonl", "-n", "2", "-o", "out/tokens.jsonl").exit_code == 0
    lines = (tmp_path / "tokens.jsonl").read_text().splitlines()
    assert {json.loads(line)["pair"] for line in lines} == {0, 1}


def test_tokens_keep_their_text(folder):
    """Spaces, tabs, line feeds and all else are in the tokens, which together are the response."""
    run = load_run(folder / "sparsepo", device="cpu")
    for pair in PAIRS[:2]:  # the third has characters of several tokens, each of which alone is no character
        for side in ("chosen", "rejected"):
            assert "".join(run.tokens(**pair).of(side).text) == f"{pair[side]} </s>"


def test_spaces_of_sentencepiece():
    """Decoders such as Llama 2's drop the space that a lone token begins with."""
    words = ["▁good", "ness", "▁▁", "<0x0A>"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="ness"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert fast.decode([0]) == "good"
    assert [token_text(fast, label) for label in range(4)] == [" good", "ness", "  ", "\n"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON: "),
        ("[1]", "line 2: an object with prompt, chosen, rejected is needed"),
        ('{"prompt": "a", "chosen": "b"}', "line 2: rejected must be text, or a list of messages"),
        ('{"prompt": 1, "chosen": "b", "rejected": "c"}', "line 2: prompt must be text"),
        ('{"prompt": "a", "chosen": [{"role": "user"}], "rejected": "c"}', "line 2: chosen must be text, or a list"),
        ('{"prompt": "a", "chosen": "\\ud83d", "rejected": "c"}', "line 2: chosen must be text"),
    ],
)
def test_a_line_that_is_no_pair(line, says, sparsepo, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f"{json.dumps(PLAIN)}\n{line}\n")
    done = sparsepo("score", "dpo", "--pairs", "out/rows.jsonl", "-o", "out/tokens.jsonl")
    refused(done, f"{rows}, {says}")
    assert read_pairs(rows, 1)[0].chosen == PLAIN["chosen"], "what is not asked for is not read"
    assert not (tmp_path / "tokens.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "--pairs", "pairs.jsonl", "-o", "out/a.jsonl"), "nowhere/sparsepo.json is missing"),
        (("dpo", "--pairs", "nowhere.jsonl", "-o", "out/a.jsonl"), "--pairs nowhere.jsonl cannot be read: No such"),
        (("dpo", "--pairs", "dpo", "-o", "out/a.jsonl"), "--pairs dpo cannot be read: Is a directory"),
        (("dpo", "--pairs", "/dev/null", "-o", "out/a.jsonl"), "--pairs /dev/null has no pair"),
        (("dpo", "--pairs", "pairs.jsonl", "-n", "0", "-o", "out/a.jsonl"), "-n is 0, 1 or more is needed"),
        (("dpo", "--pairs", "pairs.jsonl", "-o", "dpo"), "-o dpo is a folder, a file is needed"),
        (("dpo", "--pairs", "pairs.jsonl", "-o", "pairs.jsonl/a"), "pairs.jsonl is a file, a folder is needed there"),
        (("dpo", "--pairs", "dpo/model.safetensors", "-o", "out/a.jsonl"), "model.safetensors is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("command", ["score", "heatmap"])
def test_bad_input(command, arguments, says, sparsepo, tmp_path):
    refused(sparsepo(command, *arguments), says)
    assert list(tmp_path.iterdir()) == []


def test_a_pair_that_is_too_long(sparsepo, folder, tmp_path):
    """After the first was asked about: nothing half-written is left."""
    finished_run(tmp_path / "short", architecture="gpt2")
    rows = write_lines(tmp_path / "rows.jsonl", [PLAIN, {**PLAIN, "chosen": PLAIN["chosen"] * 5}])
    done = sparsepo("score", "out/short", "--pairs", "out/rows.jsonl", "-o", "out/new/tokens.jsonl")
    refused(done, f"{rows}, line 2: tokens: prompt and response have 117 tokens, the model has positions for 64")
    assert list((tmp_path / "new").iterdir()) == []


def test_messages_need_the_chat_template_of_the_run(sparsepo, tmp_path):
    talk = {name: [{"role": "user", "content": text}] for name, text in PLAIN.items()}
    rows = write_lines(tmp_path / "rows.jsonl", [talk])
    done = sparsepo("score", "dpo", "--pairs", "out/rows.jsonl", "-o", "out/tokens.jsonl")
    refused(done, f"{rows}, line 1: tokens: text is needed, the run had no chat template that takes messages")


def test_code_of_the_run_is_imported_only_if_asked(tmp_path, sparsepo, monkeypatch):
    (tmp_path / "plugin_of_a_scored_run.py").write_text("ran = True")
    monkeypatch.syspath_prepend(tmp_path)
    finished_run(tmp_path / "own", "dpo", loss_plugins=["plugin_of_a_scored_run"])
    write_lines(tmp_path / "pairs.jsonl", [PLAIN])
    arguments = ("score", "out/own", "--pairs", "out/pairs.jsonl", "-o", "out/tokens.jsonl")
    refused(sparsepo(*arguments), "names code of its own (plugin_of_a_scored_run), which is imported only with")
    assert sparsepo(*arguments, "--allow-code").exit_code == 0


def test_names_are_as_short_as_they_can_be(tmp_path):
    places = [tmp_path / place for place in ("a/policy", "b/policy", "b/other")]
    assert names_of(places[1:]) == ["policy", "other"]
    assert names_of(places) == ["a/policy", "b/policy", "b/other"]
    with pytest.raises(SparsePOError, match="a run is given twice"):
        names_of([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def refused(done, says):
    """One line, and exit code 2."""
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sparsepo: error: ")]
    assert says in line
    assert "Traceback" not in done.stderr
