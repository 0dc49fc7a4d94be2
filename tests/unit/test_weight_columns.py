"""`sparsepo score --to-column` and the converters of weights: each character's weight, against plain computations.

Tolerance: log-probabilities of tiny fp32 models, computed here from whole logits, differ in the order of sums: 1e-5.
"""

import json

import pytest
import torch
from finished_runs import NASTY, PLAIN, finished_run, write_lines
from tiny import decoder
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner
from words import word_tokenizer

from sparsepo_plugin import SparsePOError, load_run
from sparsepo_plugin.analysis.tis import rank_based, threshold_and_scale, transform_of
from sparsepo_plugin.cli import app
from sparsepo_plugin.data.command import convert

PAIRS = [{**PLAIN, "source": "a film"}, NASTY[0]]
SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs `sparsepo` and `simpo`; beside the first, `sparsepo_reference`, a plain model; `pairs.jsonl`."""
    folder = tmp_path_factory.mktemp("weighed")
    for seed, loss in enumerate(("sparsepo", "simpo")):
        finished_run(folder / loss, loss, seed=seed)
    write_lines(folder / "pairs.jsonl", PAIRS)
    return folder


@pytest.fixture
def score(folder, tmp_path, monkeypatch):
    """The command where the runs are; gives the rows that it writes, or its one line if it refuses."""
    monkeypatch.chdir(folder)

    def score(*arguments, pairs="pairs.jsonl"):
        output = tmp_path / "new" / "weighted.jsonl"
        done = CliRunner().invoke(app, ["score", *map(str, arguments), "--pairs", str(pairs), "-o", str(output)])
        if done.exit_code == 0:
            return [json.loads(line) for line in output.read_text().splitlines()]
        assert done.exit_code == 2 and "Traceback" not in done.stderr
        assert not output.exists() and not list(tmp_path.glob("new/*"))
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("sparsepo: error: ")]
        return line

    return score


def characters(row, side):
    """The weight of each character of a response; None where it has none."""
    weights = [None] * len(row[side])
    for span in row[f"{side}_weights"]:
        assert weights[span["start"] : span["end"]] == [None] * (span["end"] - span["start"]) != []
        weights[span["start"] : span["end"]] = [span["weight"]] * (span["end"] - span["start"])
    return weights


def spread(texts, values, response):
    """The same from tokens' texts, which together are the response and its end."""
    assert "".join(texts).startswith(response)
    return [value for text, value in zip(texts, values, strict=True) for _ in text][: len(response)]


@pytest.mark.parametrize("column", ["mask_reward", "log_ratio", "advantage"])
def test_what_a_run_has(column, score, folder):
    """Bit for bit, whatever the text; other columns stay, and so do the pairs."""
    rows = score("sparsepo", "--to-column", column)
    run = load_run(folder / "sparsepo", device="cpu")
    assert [{key: row[key] for key in pair} for row, pair in zip(rows, PAIRS, strict=True)] == PAIRS
    for row, pair in zip(rows, PAIRS, strict=True):
        table = run.tokens(pair["prompt"], pair["chosen"], pair["rejected"])
        for side in SIDES:
            own = table.of(side)
            expected = spread(own.text, getattr(own, column).tolist(), row[side])
            assert torch.tensor(characters(row, side)).tolist() == expected
    if column == "mask_reward":
        zeros = [span for row in rows for side in SIDES for span in row[f"{side}_weights"] if span["weight"] == 0]
        assert max(span["end"] - span["start"] for span in zeros) > 6, "neighbours of equal weight are one span"


def test_a_frozen_mask_weighs_as_it_did(score, folder):
    """What `mask: column` reads of a learned mask's weights is that mask, but for the end of the sequence."""
    finished_run(folder / "column", "weighted_dpo", {"mask": "column", "end": 0.25})
    learned, column = (load_run(folder / name, device="cpu") for name in ("sparsepo", "column"))
    for row in score("sparsepo", "--to-column", "mask_reward"):
        pair = [row[key] for key in ("prompt", *SIDES)]
        spans = {f"{side}_weights": row[f"{side}_weights"] for side in SIDES}
        expected, read = learned.tokens(*pair).mask_reward, column.tokens(*pair, **spans)
        for side in SIDES:
            own = [place for place, name in enumerate(read.response) if name == side]
            inside = [place for place in own if "</s>" not in read.text[place]]
            assert torch.equal(read.mask_reward[inside[:-1]], expected[inside[:-1]]) and len(inside) > 9
            assert read.mask_reward[own[-1]] == 0.25


@torch.no_grad()
def logps(name, pair, side):
    """log-probabilities of the response rows of a plain model, [n + 1, V], its token ids and their texts."""
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
    prompt = len(tokenizer(pair["prompt"])["input_ids"])
    ids = tokenizer(pair["prompt"] + pair[side] + "</s>")["input_ids"]
    rows = model(torch.tensor([ids])).logits[0, prompt - 1 : -1].log_softmax(-1)
    return rows, ids[prompt:], [tokenizer.decode([label]) for label in ids[prompt:]]


def contrast(folder, pair, side):
    (one, ids, texts), (other, *_) = (logps(folder / name, pair, side) for name in ("first", "sparsepo_reference"))
    return [(one[t, y] - other[t, y]).item() for t, y in enumerate(ids)], texts


@pytest.fixture
def first(folder):
    """A model that no run left, beside the reference of one."""
    if not (folder / "first").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder / "sparsepo_reference")
        decoder("llama", 7, vocab_size=len(tokenizer)).save_pretrained(folder / "first")
        tokenizer.save_pretrained(folder / "first")
    return "first"


@pytest.mark.parametrize("transform", [None, "threshold_and_scale", "origin"])
def test_tis_of_two_models(transform, score, folder, first):
    """Chosen tokens by log π₁ − log π₂, rejected ones by its negative, ranked without the end of the sequence."""
    flags = ("--transform", transform) if transform else ()
    rows = score(first, "--reference", "sparsepo_reference", "--to-column", "tis", *flags)
    for row, pair in zip(rows, PAIRS, strict=True):
        for side, sign in zip(SIDES, (1, -1), strict=True):
            ratios, texts = contrast(folder, pair, side)
            weights = transform_of(transform)([sign * ratio for ratio in ratios[:-1]])
            expected = spread(texts[:-1], weights, pair[side])
            assert characters(row, side) == pytest.approx(expected, abs=1e-5)


def test_cdpo_of_two_models(score, folder, first):
    """1 − softmax(2·log P_pos − log P_neg) of the rejected tokens; chosen ones keep the default."""
    rows = score(first, "--reference", "sparsepo_reference", "--to-column", "cdpo")
    for row, pair in zip(rows, PAIRS, strict=True):
        (one, ids, texts), (other, *_) = (
            logps(folder / name, pair, "rejected") for name in ("first", "sparsepo_reference")
        )
        odds = (one.double() * 2 - other.double()).exp()
        weights = [1 - (odds[t, y] / odds[t].sum()).item() for t, y in enumerate(ids)]
        assert row["chosen_weights"] == []
        assert characters(row, "rejected") == pytest.approx(spread(texts, weights, pair["rejected"]), abs=1e-5)


def test_the_numbers_of_the_release():
    """Its functions worked by hand: equal scores in their order; ±1.5 are the ends of the scale."""
    scores = [0.3, -1.2, 0.3, 2.0]
    assert rank_based(scores) == pytest.approx([0.9, 0.7, 1.1, 1.3], abs=1e-12)
    assert rank_based([4.0]) == [1.0] and rank_based([]) == []
    assert threshold_and_scale([*scores, -9.0, 0.0]) == pytest.approx([1.06, 0.76, 1.06, 1.3, 0.7, 1.0], abs=1e-12)
    with pytest.raises(SparsePOError, match="--transform top: allowed are rank_based, threshold_and_scale, origin"):
        transform_of("top")


def test_weights_of_messages_are_of_the_last_one(score, tmp_path):
    """The template's words are no characters of the response, nor are the spaces between its tokens."""
    for seed, name in enumerate(("one", "two")):
        decoder("llama", seed).save_pretrained(tmp_path / name)
        word_tokenizer().save_pretrained(tmp_path / name)
    talk = {"prompt": "w5 w6", "chosen": "w7 w17  w8", "rejected": "w9"}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    pair = {name: [{"role": roles[name], "content": text}] for name, text in talk.items()}
    pairs = write_lines(tmp_path / "talk.jsonl", [pair])
    flags = ("--reference", tmp_path / "two", "--to-column", "log_ratio")
    (row,) = score(tmp_path / "one", *flags, pairs=pairs)
    assert [(span["start"], span["end"]) for span in row["chosen_weights"]] == [(0, 2), (3, 6), (8, 10)]
    assert [(span["start"], span["end"]) for span in row["rejected_weights"]] == [(0, 2)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sparsepo", "--to-column", "mask"), "--to-column mask: allowed are logps, reference_logps, log_ratio, "),
        (("simpo", "--to-column", "mask_reward"), "pairs.jsonl, line 1: the run has no mask_reward; it has logps"),
        (("simpo", "--to-column", "tis"), "pairs.jsonl, line 1: the run has no log_ratio; it has logps"),
        (("simpo", "--to-column", "cdpo"), "--to-column cdpo compares two models: --reference MODEL is needed"),
        (("sparsepo", "--to-column", "kl", "--transform", "origin"), "--transform has no effect with --to-column kl;"),
        (("sparsepo", "--to-column", "tis", "--transform", "top"), "--transform top: allowed are rank_based,"),
        (("sparsepo", "--transform", "origin"), "--transform has no effect without --to-column tis"),
        (("nowhere", "--to-column", "tis"), "nowhere/sparsepo.json is missing"),
        (("nowhere", "--reference", "simpo", "--to-column", "tis"), "the model: nowhere cannot be loaded"),
        (("sparsepo", "--to-column", "kl", "-n", "0"), "-n is 0, 1 or more is needed"),
    ],
)
def test_bad_input(arguments, says, score, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert says in score(*arguments)


def test_weights_are_not_overwritten(score, tmp_path):
    pairs = write_lines(tmp_path / "again.jsonl", [PLAIN, {**PLAIN, "rejected_weights": []}])
    line = score("sparsepo", "--to-column", "kl", pairs=pairs)
    assert line.endswith(f"{pairs}, line 2: rejected_weights is there already, and is not overwritten")
    assert len(score("sparsepo", "--to-column", "kl", "-n", "1", pairs=pairs)) == 1


def test_another_reference_without_a_column(score, folder, first):
    """`sparsepo score MODEL --reference MODEL` writes the tokens of any two models."""
    rows = score(first, "--reference", "sparsepo_reference", "-n", "1")
    for side in SIDES:
        ratios, _ = contrast(folder, PAIRS[0], side)
        own = [row["log_ratio"] for row in rows if row["response"] == side]
        assert own == pytest.approx(ratios, abs=1e-5)


# The converters.


@pytest.fixture
def convert_rows(tmp_path):
    """Rows through a converter; gives the pairs that it writes."""

    def convert_rows(name, rows, **options):
        output = tmp_path / "pairs.jsonl"
        convert(name, [str(write_lines(tmp_path / "raw.jsonl", rows))], output, 0, options)
        return [json.loads(line) for line in output.read_text().splitlines()]

    return convert_rows


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a tokenizer of one token a word."""
    word_tokenizer().save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


TIS = {
    "prompt": "w0 ",
    "chosen": "w1 w12 w3",
    "chosen_weight": [0.5, -2, 0.1],
    "rejected": "w4 w5",
    "rejected_weight": [1, -0.5],
}


def spans(*triples):
    return [dict(zip(("start", "end", "weight"), triple, strict=True)) for triple in triples]


@pytest.mark.parametrize(
    ("options", "chosen", "rejected"),
    [
        # Chosen scores are negated: -0.5, 2, -0.1 have the ranks 0, 2, 1.
        ({}, spans((0, 2, 0.7), (3, 6, 1.3), (7, 9, 1.0)), spans((0, 2, 1.3), (3, 5, 0.7))),
        (
            {"transform": "threshold_and_scale"},
            spans((0, 2, 0.9), (3, 6, 1.3), (7, 9, 0.98)),
            spans((0, 2, 1.2), (3, 5, 0.9)),
        ),
        ({"transform": "origin"}, spans((0, 2, -0.5), (3, 6, 2.0), (7, 9, -0.1)), spans((0, 2, 1.0), (3, 5, -0.5))),
    ],
)
def test_tis_dpo(options, chosen, rejected, convert_rows, tokenizer):
    (pair,) = convert_rows("tis_dpo", [TIS], tokenizer=tokenizer, **options)
    assert list(pair) == ["prompt", "chosen", "rejected", "chosen_weights", "rejected_weights"]
    for side, expected in zip(SIDES, (chosen, rejected), strict=True):
        assert pair[f"{side}_weights"] == [pytest.approx(span, abs=1e-12) for span in expected]
        assert pair[side] == TIS[side]


GOOD, BAD = "no_hallucination", "hallucination"
MASKED = {
    "prompt": [{"role": "user", "content": "How high is it?"}],
    "chosen": [{"role": "assistant", "content": "It is high. It is high. Ask me."}],
    "chosen_item": {"sents": ["It is high.", "It is high.", "Ask me."], "type": [GOOD, BAD, "unverifiable"]},
    "rejected": [{"role": "assistant", "content": "It opened in 1889. It is 500 m tall."}],
    "rejected_item": {"sents": ["It opened in 1889.", "It is 500 m tall."], "type": [GOOD, BAD]},
}


def test_mask_dpo(convert_rows):
    """The second of two equal sentences is hallucinated; of the rejected ones the right one is left out."""
    plain = {**MASKED, **{key: MASKED[key][0]["content"] for key in ("prompt", *SIDES)}}
    for row, pair in zip((MASKED, plain), convert_rows("mask_dpo", [MASKED, plain]), strict=True):
        assert {key: pair[key] for key in ("prompt", *SIDES)} == {key: row[key] for key in ("prompt", *SIDES)}
        assert pair["chosen_weights"] == spans((12, 23, 0.0)) and pair["rejected_weights"] == spans((0, 18, 0.0))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("tis_dpo", {"chosen_weight": [1, 2]}, "chosen_weight has 2 numbers, chosen has 3 tokens: the tokenizer is"),
        ("tis_dpo", {"chosen_weight": None}, "chosen_weight is missing, a list is needed"),
        ("tis_dpo", {"rejected_weight": [1, True]}, "number 2 of rejected_weight is True, a finite number is needed"),
        ("tis_dpo", {"rejected_weight": [float("nan"), 1]}, "number 1 of rejected_weight is nan, a finite number"),
        (
            "mask_dpo",
            {"chosen_item": {"sents": ["It is low."], "type": ["x"]}},
            "'It is low.', is not in chosen after",
        ),
        ("mask_dpo", {"chosen_item": {"sents": ["It is"], "type": []}}, "has 1 sents and 0 types, one of each"),
        ("mask_dpo", {"chosen_item": {"sents": [" "], "type": ["x"]}}, "sentence 1 of chosen_item is ' ', text is"),
        ("mask_dpo", {"chosen_item": None}, "chosen_item.sents is missing, a list is needed"),
        ("mask_dpo", {"rejected": []}, "rejected is an empty list, text or messages are needed"),
        ("mask_dpo", {"rejected": [{"content": "x"}]}, "message 1 of rejected: role is missing, text is needed"),
    ],
)
def test_rows_that_are_refused(name, change, says, convert_rows, tokenizer, tmp_path):
    row = {**(TIS if name == "tis_dpo" else MASKED), **change}
    options = {"tokenizer": tokenizer} if name == "tis_dpo" else {}
    with pytest.raises(SparsePOError) as refused:
        convert_rows(name, [row], **options)
    assert str(refused.value).startswith(f"{tmp_path}/raw.jsonl, line 1: ") and says in str(refused.value)
    assert not (tmp_path / "pairs.jsonl").exists()


def test_the_tokenizer_is_needed(convert_rows):
    with pytest.raises(SparsePOError, match="tis_dpo needs --tokenizer, a folder or a hub name"):
        convert_rows("tis_dpo", [TIS])
