"""Prompts of a file, and prefixes cut from texts, against the draws and offsets written out."""

import json

import pytest
from finished_runs import PLAIN, byte_tokenizer, write_lines
from numpy.random import default_rng
from words import word_tokenizer

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.generation.prompts import PrefixRange, read_prefixes, read_prompts

TEXTS = [" ".join(f"w{(3 * row + place) % 30}" for place in range(20)) for row in range(200)]


def test_prefixes_of_words(tmp_path):
    """A word is a token: the prefix is the first words of the text, as many as are drawn for its line."""
    path = write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    prompts, short = read_prefixes(path, word_tokenizer(), PrefixRange(5, 8), seed=7)
    lengths = [int(default_rng([1, 7, number]).integers(5, 8, endpoint=True)) for number in range(200)]
    assert short == 0
    assert [prompt.text for prompt in prompts] == [
        " ".join(text.split()[:length]) for text, length in zip(TEXTS, lengths, strict=True)
    ]
    # Each of the four has 50 of 200 on average, with a standard deviation of 6.
    assert all(25 < lengths.count(length) < 75 for length in (5, 6, 7, 8))
    assert read_prefixes(path, word_tokenizer(), PrefixRange(5, 8), seed=8)[0] != prompts


def test_prefixes_keep_the_text(tmp_path):
    """Of byte-level pieces, spaces and line feeds included, and every character whole."""
    tokenizer, text = byte_tokenizer(), PLAIN["prompt"] + PLAIN["chosen"]
    for length in range(1, len(tokenizer(text)["input_ids"]) + 1):
        path = write_lines(tmp_path / "texts.jsonl", [{"prompt": text}])
        ((prompt,), _) = read_prefixes(path, tokenizer, PrefixRange(length, length), seed=0)
        assert text.startswith(prompt.text)
        assert tokenizer(prompt.text)["input_ids"] == tokenizer(text)["input_ids"][:length]


def test_short_texts_are_left_out_and_change_no_other(tmp_path):
    rows = [{"text": "w1 w2"}, {"text": TEXTS[0]}, {"text": ""}, {"text": TEXTS[1]}]
    path = write_lines(tmp_path / "texts.jsonl", rows)
    prompts, short = read_prefixes(path, word_tokenizer(), PrefixRange(5, 8), seed=0)
    assert short == 2 and [prompt.place for prompt in prompts] == [f"{path}, line 2", f"{path}, line 4"]
    full = write_lines(tmp_path / "full.jsonl", [{"text": text} for text in [TEXTS[5], TEXTS[0], TEXTS[6], TEXTS[1]]])
    whole, _ = read_prefixes(full, word_tokenizer(), PrefixRange(5, 8), seed=0)
    assert [prompt.text for prompt in prompts] == [whole[1].text, whole[3].text]
    with pytest.raises(SparsePOError, match=r"every text of .* is shorter than its prefix"):
        read_prefixes(path, word_tokenizer(), PrefixRange(30, 30), seed=0)


@pytest.mark.parametrize(("text", "found"), [("5-8", (5, 8)), ("6", (6, 6)), ("3-3", (3, 3))])
def test_ranges(text, found):
    assert PrefixRange.parse(text) == found


@pytest.mark.parametrize("text", ["", "8-5", "0-3", "0", "a-b", "5-", "-5", "5-8-9", "5 - 8", "٣"])
def test_no_ranges(text):
    with pytest.raises(SparsePOError, match=r"--prefix-tokens is .* a range such as 5-8 is needed"):
        PrefixRange.parse(text)


def test_prompts_as_they_are(tmp_path):
    talk = [{"role": "user", "content": "w1"}]
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "w1 ", "chosen": 3}, {"prompt": talk}])
    assert [tuple(prompt) for prompt in read_prompts(path)] == [("w1 ", f"{path}, line 1"), (talk, f"{path}, line 2")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": []}, "prompt must be text, or a list of messages with role and content"),
        ({"prompt": [{"role": "user"}]}, "prompt must be text, or a list of messages"),
        ({"prompt": "\ud83d"}, "prompt must be text"),
        ({"text": "w1"}, r"prompt must be text.*\(--prefix-tokens cuts prompts from text\)"),
        ({}, "prompt must be text"),
    ],
)
def test_lines_without_a_prompt(row, says, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "w1"}) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(SparsePOError, match=f"{path}, line 3: {says}"):
        read_prompts(path)


@pytest.mark.parametrize("row", [{"text": 1}, {"prompt": [{"role": "user", "content": "w1"}]}, {}])
def test_lines_without_a_text(row, tmp_path):
    path = write_lines(tmp_path / "texts.jsonl", [row])
    with pytest.raises(
        SparsePOError, match="line 1: text or prompt must be text, --prefix-tokens cuts prompts from it"
    ):
        read_prefixes(path, word_tokenizer(), PrefixRange(1, 1), seed=0)
