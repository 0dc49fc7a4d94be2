"""`sparsepo localize`: its numbers by their plain definitions and by hand, and the command on tiny runs."""

import csv
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from finished_runs import PLAIN, finished_run, write_lines
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sparsepo_plugin import load_run
from sparsepo_plugin.analysis.edits import COLUMNS, QUANTITIES, find_edits, roc_auc, rows_of
from sparsepo_plugin.cli import app
from sparsepo_plugin.run import TokenTable

# Of words that the tokenizer knows, each once in its response.
SWAPPED = PLAIN | {"rejected": PLAIN["chosen"].replace(" good", " weak")}
ADDED = PLAIN | {"rejected": PLAIN["chosen"].replace(" pretty", " pretty weak")}
TWICE = PLAIN | {"rejected": PLAIN["chosen"].replace(" good", " weak").replace(" acting", " storyline")}
EDITS = [([" good"], [" weak"]), ([], [" weak"]), ([" acting", " good"], [" storyline", " weak"])]
SAME = PLAIN | {"rejected": PLAIN["chosen"]}
UNLIKE = {"prompt": "a", "chosen": "bcd", "rejected": "efg"}
RUNS = ["sparsepo", "constant", "dpo", "simpo"]
PAIRS = [SWAPPED, SAME, ADDED, UNLIKE, TWICE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs with independent masks, with a learned and a constant one, with none, without a reference; pairs."""
    folder = tmp_path_factory.mktemp("localized")
    finished_run(folder / "sparsepo", seed=1)
    constant = {"reward": {"mask": "learned", "init": "linear"}, "kl": {"mask": "uniform", "value": 1}}
    finished_run(folder / "constant", section=constant, seed=3)
    finished_run(folder / "dpo", "dpo")
    finished_run(folder / "simpo", "simpo")
    write_lines(folder / "pairs.jsonl", PAIRS)
    write_lines(folder / "same.jsonl", [SAME, UNLIKE])
    return folder


@pytest.fixture(scope="module")
def output(folder):
    """What the command prints for all runs, and the folder that it writes."""
    done = CliRunner().invoke(
        app,
        ["localize", *(str(folder / run) for run in RUNS), "--pairs", f"{folder}/pairs.jsonl", "-o", f"{folder}/out"],
    )
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines(), folder / "out"


@pytest.fixture
def sparsepo(folder, tmp_path, monkeypatch):
    """The command, typed where the runs are; `out` is a folder of the test."""
    monkeypatch.chdir(folder)
    return lambda *arguments: CliRunner().invoke(
        app, ["localize", *(part.replace("out", f"{tmp_path}/out") for part in arguments)]
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2))
def test_auc_is_that_of_all_pairs_of_tokens(tokens):
    """Every edited token against every other: 1 if larger, ½ if as large."""
    edited, others = ([size for size, flag in tokens if flag is kind] for kind in (True, False))
    if edited and others:
        wins = [(size > other) + 0.5 * (size == other) for size in edited for other in others]
        sizes, flags = (np.array(column) for column in zip(*tokens, strict=True))
        assert roc_auc(sizes, flags) == pytest.approx(sum(wins) / len(wins))


def table(chosen, rejected, **columns):
    """Token ids of both responses, and columns of numbers over all of them."""
    count = len(chosen) + len(rejected)
    return TokenTable(
        text=["w"] * count,
        response=["chosen"] * len(chosen) + ["rejected"] * len(rejected),
        labels=torch.tensor(chosen + rejected),
        logps=torch.zeros(count),
        **{name: torch.tensor(column) for name, column in columns.items()},
    )


def test_numbers_by_hand():
    """Two pairs, tokens 8 and 9 edited, 0 the end."""
    tables = [
        table([1, 8, 0], [1, 9, 0], advantage=[0.0, -3.0, 1.0, 1.0, 2.0, 1.0], mask_kl=[0.5] * 6),
        table([1, 2, 0], [1, 2, 9, 0], advantage=[1.0, 4.0, 0.0, 0.0, 0.0, 1.0, 2.0], mask_kl=[0.5] * 7),
    ]
    edits = find_edits(tables)
    assert [flags.tolist() for flags in edits.edited] == [[False, True, False] * 2, [False] * 5 + [True, False]]
    constant, advantage = rows_of("run", edits)
    assert (constant["quantity"], advantage["quantity"]) == ("mask_kl", "advantage")
    assert (advantage["pairs"], advantage["tokens"], advantage["edited_tokens"]) == (2, 13, 3)
    # First pair: 3 and 2 above 0, 1, 1, 1. Second: 1 above 0, 0, 0, as large as 1, below 4 and 2.
    assert advantage["auc"] == pytest.approx((1 + 3.5 / 6) / 2)
    # 3 above 9 of 10; 2 above 8 and as large as 1; 1 above 4 and as large as 4: their zeros and ones.
    assert advantage["pooled_auc"] == pytest.approx((9 + 8.5 + (4 + 4 / 2)) / 30)
    assert advantage["share"] == pytest.approx((5 + 1) / (8 + 8))
    assert advantage["edited_share"] == pytest.approx(3 / 13)
    # Of two pairs resamples hold one of them twice or both, each end in a quarter of them.
    assert (advantage["auc_low"], advantage["auc_high"]) == pytest.approx((3.5 / 6, 1))
    assert (advantage["share_low"], advantage["share_high"]) == pytest.approx((1 / 8, 5 / 8))
    assert [constant[key] for key in ("auc", "auc_low", "auc_high", "pooled_auc")] == [0.5] * 4
    assert constant["share"] == pytest.approx(constant["edited_share"])


def test_a_dead_mask_has_no_share():
    (row,) = rows_of("run", find_edits([table([1, 8, 0], [1, 9, 0], mask_reward=[0.0] * 6)] * 2))
    assert (row["auc"], row["pooled_auc"]) == (0.5, 0.5)
    assert np.isnan([row["share"], row["share_low"], row["share_high"]]).all()


def test_pairs_that_are_left_out():
    same, ends = table([1, 2, 0], [1, 2, 0]), table([1, 0], [2, 3, 0])
    apart, kept = table([1, 2], [3, 4]), table([1, 2, 0], [2, 3, 0])
    edits = find_edits([same, ends, kept, apart])
    assert edits.tables == [kept]
    assert (edits.without_edit, edits.unlike) == (1, 2)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_edits_are_the_words_that_were_edited(folder):
    run = load_run(folder / "sparsepo", device="cpu")
    edits = find_edits(run.tokens(**pair) for pair in PAIRS)
    assert (edits.without_edit, edits.unlike) == (1, 1)
    for found, flags, sides in zip(edits.tables, edits.edited, EDITS, strict=True):
        words = [text for text, flag in zip(found.text, flags.tolist(), strict=True) if flag]
        assert words == [*sides[0], *sides[1]]


def test_the_csv_says_what_the_tables_say(output, folder):
    """AUC and share of every run and quantity, from the runs' own tables and the words that were edited."""
    rows = read(output[1] / "localize.csv")
    has = {"dpo": ["log_ratio", "advantage", "kl"], "simpo": ["advantage"]}
    assert [(row["run"], row["quantity"]) for row in rows] == [
        (run, quantity) for run in RUNS for quantity in has.get(run, QUANTITIES)
    ]
    assert list(rows[0]) == list(COLUMNS)
    tables = {run: [load_run(folder / run, device="cpu").tokens(**pair) for pair in PAIRS[::2]] for run in RUNS}
    for row in rows:
        sizes = [parts(found, row["quantity"], *words) for found, words in zip(tables[row["run"]], EDITS, strict=True)]
        aucs = [
            np.mean([(size > other) + 0.5 * (size == other) for size in edited for other in others])
            for edited, others in sizes
        ]
        assert float(row["auc"]) == pytest.approx(np.mean(aucs))
        on_edits, elsewhere = (sum(map(sum, kind)) for kind in zip(*sizes, strict=True))
        assert float(row["share"]) == pytest.approx(on_edits / (on_edits + elsewhere))
        assert float(row["auc_low"]) <= float(row["auc"]) <= float(row["auc_high"])
        assert (row["pairs"], row["without_edit"], row["unlike"]) == ("3", "1", "1")
    assert {row["auc"] for row in rows if (row["run"], row["quantity"]) == ("constant", "mask_kl")} == {"0.5"}


def parts(found, quantity, chosen, rejected):
    """Sizes on the tokens that have these words, and on all others."""
    words = {"chosen": chosen, "rejected": rejected}
    kinds = [], []
    sizes = getattr(found, quantity).abs().double().tolist()
    for text, side, size in zip(found.text, found.response, sizes, strict=True):
        kinds[text not in words[side]].append(size)
    return kinds


def test_what_is_printed(output):
    (header, *lines), folder = output
    assert header.split()[:4] == ["run", "pairs", "edited", "quantity"]
    rows = read(folder / "localize.csv")
    for line, row in zip(lines, rows, strict=False):
        assert line.startswith(row["run"]) and QUANTITIES[row["quantity"]] in line
        assert f"{float(row['auc']):.3f} ({float(row['auc_low']):.3f}–{float(row['auc_high']):.3f})" in line
        assert f"{float(row['share']):.1%} ({float(row['share_low']):.1%}–{float(row['share_high']):.1%})" in line
    assert lines[len(rows) :] == [
        *(f"{run}: pairs left out: 1 without an edit, 1 with less than half in common" for run in RUNS),
        *(str(folder / f"localize.{ending}") for ending in ("csv", "png", "svg")),
    ]
    assert (folder / "localize.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(folder / "localize.svg").getroot().tag.endswith("svg")


def test_one_pair_has_no_interval(sparsepo, tmp_path):
    done = sparsepo("sparsepo", "--pairs", "pairs.jsonl", "-n", "1", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "left out" not in done.stdout and "nan" not in done.stdout
    assert {row["auc_low"] for row in read(tmp_path / "out" / "localize.csv")} == {""}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "--pairs", "pairs.jsonl", "-o", "out"), "nowhere/sparsepo.json is missing"),
        (("dpo", "./dpo", "--pairs", "pairs.jsonl", "-o", "out"), "dpo, dpo: a run is given twice"),
        (("dpo", "--pairs", "absent.jsonl", "-o", "out"), "--pairs absent.jsonl cannot be read"),
        (("dpo", "--pairs", "pairs.jsonl", "-n", "0", "-o", "out"), "-n is 0, 1 or more is needed"),
        (("dpo", "--pairs", "pairs.jsonl", "-o", "pairs.jsonl"), "pairs.jsonl is a file, a folder is needed there"),
        (
            ("dpo", "--pairs", "same.jsonl", "-o", "out"),
            "--pairs same.jsonl: dpo: no pair differs by edits: 1 without an edit, 1 with less than half in common",
        ),
    ],
)
def test_bad_input(arguments, says, sparsepo, tmp_path):
    done = sparsepo(*arguments)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sparsepo: error: ")]
    assert says in line
    assert list(tmp_path.iterdir()) == []


def test_without_scipy(sparsepo, monkeypatch):
    for name in ("edits", "intervals", "localize"):
        monkeypatch.delitem(sys.modules, f"sparsepo_plugin.analysis.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    done = sparsepo("dpo", "--pairs", "pairs.jsonl", "-o", "out")
    assert done.exit_code == 2
    assert done.stderr.startswith("sparsepo: error: intervals need scipy (")
    assert "pip install 'sparsepo-plugin[analysis]'" in done.stderr
