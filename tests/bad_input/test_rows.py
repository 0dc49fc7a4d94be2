"""Mistakes in the data: one line that names the key, or file and row, and what is allowed."""

import gzip
import json
import os
import re
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from datasets import Dataset, DatasetDict
from host_runs import ONES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sparsepo_plugin.cli import app

PAIR = {"prompt": "w1 w2 ", "chosen": "w3 w4", "rejected": "w5"}
LINE = json.dumps(PAIR) + "\n"
CHECKED = "run.yaml: ok, loss: sparsepo"
CSV = "prompt,chosen,rejected\n" + "w1 ,w3,w5\n" * 8
NEEDED = "one JSON object a line"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """What the datasets library keeps of these files goes, and the hub is not asked."""
    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield
    datasets.enable_progress_bars()


def lines(*rows: dict | str) -> str:
    """Eight good rows and these, from row 9."""
    return LINE * 8 + "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def row(**over) -> str:
    return lines({**PAIR, **over})


def without(key: str) -> str:
    return lines({name: text for name, text in PAIR.items() if name != key})


# File of the training data, its content, and what the line must say.
UNREADABLE = {
    "a truncated last line": ("d.jsonl", LINE * 8 + LINE[:30], ("d.jsonl, row 9: not JSON", NEEDED, "1 of 9 rows")),
    "a line that is no JSON": ("d.jsonl", lines("hello"), ("row 9: not JSON", NEEDED)),
    "single quotes": ("d.jsonl", lines("{'prompt': 'w1'}"), ("row 9: not JSON", NEEDED)),
    "a comma after an object": ("d.jsonl", lines(LINE.strip() + ","), ("row 9: not JSON: Extra data", NEEDED)),
    "two objects on a line": ("d.jsonl", lines(LINE.strip() * 2), ("row 9: not JSON: Extra data", NEEDED)),
    "a row that is a list": ("d.jsonl", lines("[1, 2]"), ("row 9: [1, 2] is no object", NEEDED)),
    "a row that is text": ("d.jsonl", lines('"x"'), ('row 9: "x" is no object', NEEDED)),
    "a row that is a number": ("d.jsonl", lines("5"), ("row 9: 5 is no object", NEEDED)),
    "a row that is true": ("d.jsonl", lines("true"), ("row 9: true is no object", NEEDED)),
    "a row that is null": ("d.jsonl", lines("null"), ("row 9: null is no object", NEEDED)),
    "a first row that is null": ("d.jsonl", "null\n" + LINE * 8, ("row 1: null is no object", NEEDED)),
    "rows of null alone": ("d.jsonl", "null\n" * 9, ("row 1: null", "9 of 9 rows cannot be read")),
    "rows that all are lists": ("d.jsonl", "[1]\n" * 9, ("row 1: a list begins here", NEEDED)),
    "a file that is null": ("d.json", "null", ("row 1: null is no object", NEEDED)),
    "a file that is a number": ("d.json", "5", ("row 1: 5 is no object", NEEDED)),
    "a list with a number": ("d.json", f"[{LINE}, 5, {LINE}]", ("d.json, row 2: 5 is no object", "1 of 3 rows")),
    "a list of texts": ("d.json", '["a", "b"]', ('row 1: "a" is no object', "2 of 2 rows")),
    "a list that does not end": ("d.json", f"[{LINE},", ("d.json, row 1: a list begins here", NEEDED)),
    "an empty list": ("d.json", "[]", ("data.dataset: d.json has no rows",)),
    "half a surrogate pair": ("d.jsonl", row(chosen="\ud800"), ("row 9: not JSON", "half of a surrogate pair")),
    "a raw NUL": ("d.jsonl", lines('{"prompt": "w1\0"}'), ("row 9: not JSON", "control character")),
    "a line feed in a text": ("d.jsonl", lines('{"prompt": "w1\nw2"}'), ("row 9: not JSON", "2 of 10 rows")),
    "Latin-1": ("d.jsonl", LINE.encode() * 8 + '{"prompt": "é"}'.encode("latin-1"), ("row 9: not JSON", "utf-8")),
    "UTF-16": ("d.jsonl", (LINE * 8).encode("utf-16"), ("row 1: not JSON", "utf-8")),
    "a key given twice": ("d.jsonl", lines('{"chosen": "w1", "chosen": "w2"}'), ("row 9", "'chosen' is given twice")),
    "nested endlessly": ("d.jsonl", lines("[" * 10**5), ("row 9: not JSON", "nested too deeply")),
    "an empty file": ("d.jsonl", "", ("data.dataset: d.jsonl has no rows",)),
    "empty lines": ("d.jsonl", "\n\n  \n", ("data.dataset: d.jsonl has no rows",)),
    "empty lines between": ("d.jsonl", "\n" + LINE + "\n \n" + "x\n", ("d.jsonl, row 2: not JSON", "1 of 2 rows")),
    "mixed kinds and an empty line": (
        "d.jsonl",
        "\n" + row(prompt=5),
        ("row 9: prompt is int", "1 of 9 rows cannot be r"),
    ),
    "objects without keys": ("d.jsonl", "{}\n" * 9, ("d.jsonl, row 1: prompt is null", "9 of 9 rows")),
    "compressed": ("d.jsonl", gzip.compress(LINE.encode() * 9), ("d.jsonl, row 1: not JSON", "utf-8")),
    "a longer CSV row": ("d.csv", CSV + "w1,w2,w3,w4\n", ("d.csv, row 9: 4 fields, the head of the file has 3",)),
    "a shorter CSV row": ("d.csv", CSV + "w1,w2\n", ("d.csv, row 9: 2 fields, the head of the file has 3",)),
    "a CSV index without a name": ("d.csv", "prompt,chosen,rejected\n" + "0,a,b,c\n" * 9, ("row 1: 4 fields",)),
    "an open CSV quote": ("d.csv", CSV + 'w1,"w2,w3\n' + CSV, ("d.csv, row 9: 2 fields",)),
    "empty lines in a CSV": ("d.csv", CSV.replace("\n", "\n\n") + "w1\n", ("d.csv, row 9: 1 fields",)),
    "a CSV of Latin-1": ("d.csv", CSV.encode() + b"w1,\xe9,w3\n", ("d.csv, row 9: its text is not UTF-8",)),
    "a CSV column given twice": ("d.csv", CSV.replace("rejected", "chosen"), ("d.csv", "'chosen' is given twice")),
    "a CSV head alone": ("d.csv", "prompt,chosen,rejected\n", ("data.dataset: d.csv has no rows",)),
    "an empty CSV": ("d.csv", "", ("data.dataset: d.csv has no rows",)),
    "no parquet": ("d.parquet", b"PAR1 but no more", ("data.dataset: d.parquet cannot be read", "ArrowInvalid")),
    "an empty parquet": ("d.parquet", b"", ("data.dataset: d.parquet cannot be read", "0 bytes")),
    "no arrow": ("d.arrow", b"nothing of the kind", ("data.dataset: d.arrow cannot be read",)),
    "a wrong ending": ("d.txt", LINE, ("data.dataset: d.txt has the wrong ending", ".jsonl", ".parquet")),
    "an ending in capitals": ("d.JSONL", LINE, ("data.dataset: d.JSONL has the wrong ending", ".jsonl")),
    "a compressed file": ("d.jsonl.gz", gzip.compress(LINE.encode()), ("d.jsonl.gz has the wrong ending",)),
    "a script": ("d.py", "raise SystemExit", ("data.dataset: d.py has the wrong ending",)),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read(case, refused):
    name, content, says = UNREADABLE[case]
    refused(says, over={"data": {"dataset": name}}, files={name: content})


ROWS = {
    "empty chosen": (row(chosen=""), ("row 9: chosen is empty", "at least one word")),
    "blank rejected": (row(rejected=" \t\n"), ("row 9: rejected is empty", "at least one word")),
    "null chosen": (row(chosen=None), ("row 9: chosen is null, text is needed",)),
    "null prompt": (row(prompt=None), ("row 9: prompt is null, text is needed",)),
    "no rejected": (without("rejected"), ("row 9: rejected is null, text is needed",)),
    "no prompt": (without("prompt"), ("row 9: prompt is null, text is needed",)),
    "an object without keys": (lines({}), ("row 9: prompt is null",)),
    "a number": (row(chosen=5), ("row 9: chosen is int, text is needed",)),
    "a fraction": (row(rejected=0.5), ("row 9: rejected is float",)),
    "true": (row(prompt=True), ("row 9: prompt is bool",)),
    "a mapping": (row(chosen={"text": "w1"}), ("row 9: chosen is dict",)),
    "a list": (row(chosen=["w1"]), ("row 9: chosen is list", "data.apply_chat_template")),
    "not a number": (lines('{"prompt": "w1 ", "chosen": NaN, "rejected": "w2"}'), ("row 9: chosen is null",)),
    "numbers alone": ('{"prompt": 1, "chosen": 2, "rejected": 3}\n' * 8, ("row 1: prompt is int", "8 of 8 rows")),
    "dates": ('{"prompt": "w1", "chosen": "2020-01-01", "rejected": "w2"}\n' * 8, ("row 1: chosen is datetime",)),
    "a long response": (row(rejected="w1 " * 40), ("row 9: prompt and rejected have 43 tokens", "data.max_len is 32")),
    "one token too long": (row(chosen="w1 " * 30), ("row 9: prompt and chosen have 33 tokens", "data.max_len is 32")),
    "two bad rows": (lines({**PAIR, "chosen": ""}, PAIR, {**PAIR, "rejected": 5}), ("row 9", "2 of 11 rows")),
}


@pytest.mark.parametrize("case", ROWS)
def test_what_cannot_be_trained_on(case, refused):
    content, says = ROWS[case]
    line = refused(("d.jsonl, row", *says), over={"data": {"dataset": "d.jsonl"}}, files={"d.jsonl": content})
    assert "data.on_bad_row: drop" in line


# Spans of the chosen response, "w3 w4", in row 9, and what the line must say; the mask reads them.
COLUMN = {**ONES, "mask": "column"}
SPAN = {"start": 0, "end": 2, "weight": 0.5}
SPANS = {
    "past the end": ([{**SPAN, "end": 6}], ("span 1 is from 0 to 6, 0 ≤ start < end ≤ 5 is needed",)),
    "before the start": ([{**SPAN, "start": -1}], ("span 1 is from -1 to 2",)),
    "empty": ([{**SPAN, "start": 2}], ("span 1 is from 2 to 2",)),
    "an overlap": ([SPAN, {**SPAN, "start": 1, "end": 4}], ("span 2 starts at 1, before span 1 ends at 2",)),
    "unsorted": ([{**SPAN, "start": 3, "end": 5}, SPAN], ("span 2 starts at 0, before span 1 ends at 5",)),
    "another text": ([{**SPAN, "text": "w4"}], ("span 1 has text 'w4', from 0 to 2 is 'w3'",)),
    "negative": ([{**SPAN, "weight": -1.0}], ("span 1 has weight -1, below 0 only with signed: true",)),
    "too large": ([{**SPAN, "weight": 1e300}], ("span 1 has weight 1e+300, a finite number is needed",)),
    "no weight": ([{"start": 0, "end": 2}], ("span 1 has no weight",)),
    "a fraction": ([{**SPAN, "end": 1.5}], ("span 1 has end 1.5, a whole number is needed",)),
    "lists": ([[0, 2, 0.5]], ("span 1 is list, an object such as",)),
    "numbers": ([0.5, 1.0], ("span 1 is float, an object such as",)),
    "an object": (SPAN, ("dict is no list of spans",)),
    "text": ("0-2: 0.5", ("str is no list of spans",)),
    "text for a weight": ([{**SPAN, "weight": "high"}], ("span 1 has weight 'high', a finite number is needed",)),
    "another key": ([{**SPAN, "token": 7}], ("span 1 has 'token', which is none of start, end, weight, text",)),
}


@pytest.mark.parametrize("others", ["weighed", "bare"])
@pytest.mark.parametrize("case", SPANS)
def test_spans_of_weights(case, others, refused):
    """Among rows that have good ones, with which Arrow may not mix them, and among rows without."""
    spans, says = SPANS[case]
    good = {**PAIR, "chosen_weights": [SPAN]} if others == "weighed" else PAIR
    content = (json.dumps(good) + "\n") * 8 + json.dumps({**PAIR, "chosen_weights": spans}) + "\n"
    line = refused(
        ("d.jsonl, row 9: chosen_weights: ", *says),
        over={"data": {"dataset": "d.jsonl"}, "sparsepo": COLUMN},
        files={"d.jsonl": content},
    )
    assert "1 of 9 rows" in line


def test_numbers_that_are_none(refused):
    """JSON has no NaN and no infinity, and Python's reader takes both."""
    for number in ("NaN", "Infinity"):
        content = LINE * 8 + json.dumps({**PAIR, "chosen_weights": [SPAN]}).replace("0.5", number) + "\n"
        refused(
            ("d.jsonl, row 9: ",),
            over={"data": {"dataset": "d.jsonl"}, "sparsepo": COLUMN},
            files={"d.jsonl": content},
        )


COLUMNS = {
    "no weights": (
        LINE * 8,
        {},
        ("sparsepo: mask 'column' has no effect, no row of d.jsonl has chosen_weights",),
    ),
    "null alone": (
        (json.dumps({**PAIR, "chosen_weights": None, "rejected_weights": None}) + "\n") * 8,
        {},
        ("no row of d.jsonl has chosen_weights or rejected_weights",),
    ),
    "another suffix": (
        (json.dumps({**PAIR, "chosen_weights": [SPAN]}) + "\n") * 8,
        {"suffix": "_scores"},
        ("no row of d.jsonl has chosen_scores or rejected_scores",),
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_data_without_weights(case, refused):
    content, options, says = COLUMNS[case]
    refused(says, over={"data": {"dataset": "d.jsonl"}, "sparsepo": {**COLUMN, **options}}, files={"d.jsonl": content})


def test_two_columns(refused):
    says = "sparsepo: one column serves both masks, which differ in suffix, end"
    section = {**COLUMN, "kl": {"suffix": "_kl", "end": 0.5}}
    refused((says,), over={"data": {"dataset": "d.jsonl"}, "sparsepo": section}, files={"d.jsonl": LINE * 8})


def test_messages_whose_text_the_template_changes(refused):
    span = {"chosen_weights": [{"start": 0, "end": 2, "weight": 0.5}]}
    content = (json.dumps({**ASKED, **span}) + "\n") * 9
    template = CHAT.replace("m.content", "m.content | upper")
    data = {"dataset": "d.jsonl", "apply_chat_template": True, "tokenizer_chat_template": template}
    says = "d.jsonl, row 1: chosen: the chat template changes its text, which spans of weights are of"
    refused((says,), over={"data": data, "sparsepo": COLUMN}, files={"d.jsonl": content})


def test_what_is_told_of_rows_without_weights(check):
    weighed = {**PAIR, "chosen_weights": [SPAN], "rejected_weights": [{**SPAN, "weight": 2, "text": "w5"}]}
    Path("d.jsonl").write_text((json.dumps(weighed) + "\n") * 8 + LINE * 3)
    code, _, (told,) = check(data={"dataset": "d.jsonl"}, sparsepo=COLUMN)
    assert code == 0 and told.startswith("data.dataset: d.jsonl: 3 of 11 rows have no chosen_weights or rejected_weig")


def test_negative_weights_that_are_allowed(check):
    Path("d.jsonl").write_text((json.dumps({**PAIR, "chosen_weights": [{**SPAN, "weight": -1}]}) + "\n") * 8)
    assert check(data={"dataset": "d.jsonl"}, sparsepo={**COLUMN, "signed": True}) == (0, [CHECKED], [])


def test_weights_that_no_mask_reads_are_not_looked_at(check):
    Path("d.jsonl").write_text((json.dumps({**PAIR, "chosen_weights": "anything"}) + "\n") * 8)
    assert check(data={"dataset": "d.jsonl"}) == (0, [CHECKED], [])


CSV_ROWS = {
    "an empty field": ("w1 ,,w3\n", "row 9: chosen is null"),
    "the word null": ("w1 ,null,w3\n", "row 9: chosen is null"),
    "quoted lines": ('"w1\nw2 ","w3",""\n', "row 9: rejected is null"),
}


@pytest.mark.parametrize("case", CSV_ROWS)
def test_rows_of_a_csv_file(case, refused):
    added, says = CSV_ROWS[case]
    refused((f"d.csv, {says}",), over={"data": {"dataset": "d.csv"}}, files={"d.csv": CSV + added})


def test_numbers_in_a_csv_file(refused):
    numbers = "prompt,chosen,rejected\n" + "1,2,3\n" * 8
    refused(("d.csv, row 1: prompt is int",), over={"data": {"dataset": "d.csv"}}, files={"d.csv": numbers})


KEYS = {
    "no file": ({"dataset": "nowhere.jsonl"}, ("data.dataset: nowhere.jsonl does not exist", "a hub name")),
    "no folder": ({"dataset": "./nowhere"}, ("data.dataset: ./nowhere does not exist",)),
    "no hub name": ({"dataset": "nobody/nothing"}, ("data.dataset: nobody/nothing cannot be read", "Hub")),
    "no second file": ({"dataset": "d.jsonl,e.jsonl"}, ("data.dataset: e.jsonl does not exist",)),
    "an empty name": ({"dataset": "d.jsonl,"}, ("data.dataset", "empty name", "commas")),
    "a folder by a file's name": ({"dataset": "f.jsonl"}, ("data.dataset: f.jsonl is a folder", "must be a file")),
    "a folder without data": ({"dataset": "empty"}, ("data.dataset: empty cannot be read", "data files")),
    "no such split": ({"dataset_split": "test"}, ("data.dataset_split", "d.jsonl has no split 'test'", "train")),
    "an empty split": ({"dataset_split": ""}, ("data.dataset_split", "d.jsonl has no split ''", "train")),
    "no such folder of data": ({"dataset": "f.jsonl@x"}, ("f.jsonl is a folder",)),
    "no such column": ({"chosen_key": "better"}, ("data.chosen_key", "'better'", "prompt, chosen, rejected")),
    "no such prompt": ({"prompt_key": "question"}, ("data.prompt_key", "'question'", "prompt, chosen, rejected")),
    "no name of a column": ({"chosen_key": ""}, ("data.chosen_key and data.rejected_key: the name of a column",)),
    "a folder inside a file": ({"dataset": "d.jsonl@x"}, ("data.dataset: d.jsonl@x: @ names a folder", "is a file")),
    "a pattern": ({"dataset": "g[1].jsonl"}, ("data.dataset: g[1].jsonl has a wildcard",)),
    "the same column": ({"rejected_key": "chosen"}, ("data.chosen_key and data.rejected_key", "same column")),
    "a response as prompt": ({"prompt_key": "chosen"}, ("data.prompt_key", "column of a response")),
    "two probabilities": ({"dataset_probs": "0.5,0.5"}, ("data.dataset_probs", "'0.5,0.5' for 1 data sets")),
    "a word": ({"dataset_probs": "half"}, ("data.dataset_probs", "'half'", "one number above 0")),
    "nothing": ({"dataset_probs": ""}, ("data.dataset_probs", "''")),
    "a negative": ({"dataset": "d.jsonl,d.jsonl", "dataset_probs": "-0.5,1.5"}, ("data.dataset_probs", "above 0")),
    "a zero": ({"dataset": "d.jsonl,d.jsonl", "dataset_probs": "0,1"}, ("data.dataset_probs", "above 0")),
    "not a number": ({"dataset": "d.jsonl,d.jsonl", "dataset_probs": "nan,1"}, ("data.dataset_probs", "above 0")),
    "less than 1": ({"dataset": "d.jsonl,d.jsonl", "dataset_probs": "0.3,0.3"}, ("data.dataset_probs", "1 in all")),
    "fewer samples than a batch": ({"max_samples": 3}, ("data.dataset", "3 pairs", "train.batch_size is 8")),
    "a useless length": ({"max_len": 3}, ("data.max_len: must be at least 4",)),
    "every prompt too long": ({"max_len": 4}, ("data.dataset", "0 pairs", "train.batch_size is 8")),
    "a template without {}": ({"input_template": "Q: "}, ("data.input_template: must contain {}", "'Q: '")),
    "a template with a name": ({"input_template": "{} {x}"}, ("data.input_template", "'{} {x}'", "doubled")),
    "a template with two": ({"input_template": "{} {}"}, ("data.input_template", "one {}")),
    "a template with a brace": ({"input_template": "{} {"}, ("data.input_template", "doubled")),
    "two templates": ({"input_template": "{}", "apply_chat_template": True}, ("data.input_template has no effect",)),
    "a template for nothing": ({"input_template": "{}", "prompt_key": None}, ("data.input_template has no effect",)),
    "an idle chat template": ({"tokenizer_chat_template": "x"}, ("data.tokenizer_chat_template has no effect",)),
    "what to do with bad rows": ({"on_bad_row": "skip"}, ("data.on_bad_row", "stop, drop", "'skip'")),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys(case, refused):
    data, says = KEYS[case]
    files = {"d.jsonl": LINE * 8, "g[1].jsonl": LINE * 8, "f.jsonl/d.jsonl": LINE * 8, "empty/.keep": ""}
    refused(says, over={"data": {"dataset": "d.jsonl", **data}}, files=files)


def test_a_pipe(refused, tmp_path):
    """Reading one would wait for a writer without end."""
    os.mkfifo(tmp_path / "d.jsonl")
    refused(
        ("data.dataset: d.jsonl is no file; what ends in .jsonl must be a file",),
        over={"data": {"dataset": "d.jsonl"}},
    )


HELD_OUT = {
    "no split given": ({"dataset": "e.jsonl"}, LINE, ("eval.split", "e.jsonl has no split 'test'", "are train")),
    "no file": ({"dataset": "nowhere.csv"}, LINE, ("eval.dataset: nowhere.csv does not exist",)),
    "a bad row": ({"dataset": "e.jsonl", "split": "train"}, row(chosen=""), ("e.jsonl, row 9: chosen is empty",)),
    "no rows": ({"dataset": "e.jsonl", "split": "train"}, "", ("eval.dataset: e.jsonl has no rows",)),
    "no column": ({"dataset": "e.jsonl", "split": "train"}, '{"chosen": "w1"}\n', ("data.prompt_key: e.jsonl has",)),
    "prompts too long": (
        {"dataset": "e.jsonl", "split": "train"},
        json.dumps({**PAIR, "prompt": "w1 " * 40}),
        ("eval.dataset: e.jsonl has 0 pairs that can be trained on, needed is 1",),
    ),
}


@pytest.mark.parametrize("case", HELD_OUT)
def test_evaluation_data(case, refused):
    held_out, content, says = HELD_OUT[case]
    refused(says, over={"eval": held_out}, files={"e.jsonl": content})


CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
ASKED = {
    "prompt": [{"role": "user", "content": "w1"}],
    "chosen": [{"role": "assistant", "content": "w2 w3"}],
    "rejected": [{"role": "assistant", "content": "w4"}],
}
PICKY = "{% if messages[0].content == 'w9' %}{{ raise_exception('no w9 here') }}{% endif %}" + CHAT
CONVERSATIONS = {
    "text": ({"chosen": "w2"}, CHAT, ("chosen is str, a list of messages is needed (data.apply_chat_template)",)),
    "no messages": ({"prompt": []}, CHAT, ("prompt is an empty list",)),
    "null": ({"rejected": None}, CHAT, ("rejected is null", "a list of messages")),
    "texts": ({"chosen": ["w2"]}, CHAT, ("chosen has str as message 1", "role and content")),
    "no role": ({"chosen": [{"content": "w2"}]}, CHAT, ("chosen has no role in message 1",)),
    "a role that is a number": (
        {"chosen": [{"role": 1, "content": "w2"}]},
        CHAT,
        ("chosen has no role in message 1",),
    ),
    "no content": ({"chosen": [{"role": "assistant"}]}, CHAT, ("chosen has null as content of message 1",)),
    "content that is a number": (
        {"prompt": [{"role": "user", "content": 5}]},
        CHAT,
        ("prompt has int as content of message 1",),
    ),
    "empty content": (
        {"chosen": [{"role": "assistant", "content": " "}]},
        CHAT,
        ("chosen ends with an empty message",),
    ),
    "another role": (
        {"rejected": [{"role": "user", "content": "w4"}]},
        CHAT,
        ("chat template's text of the conversation does not begin with its text of the prompt",),
    ),
    "a template that raises": ({"prompt": [{"role": "user", "content": "w9"}]}, PICKY, ("refuses it", "no w9 here")),
    "a template without responses": (
        {},
        "{{ messages[0].content }}",
        ("row 1: chosen is empty; a response needs at least one word",),
    ),
    "a prompt that changes": (
        {},
        "{{ messages | length }} w1 {% for m in messages %}{{ m.content }} {% endfor %}",
        ("row 1", "does not begin with its text of the prompt"),
    ),
    "an unknown filter": ({}, "{{ messages | nothing }}", ("is not Jinja", "nothing")),
    "an open tag": (
        {},
        "{% for m in messages %}",
        ("data.tokenizer_chat_template is not Jinja", "TemplateSyntaxError"),
    ),
    "a sum of text and list": ({}, "{{ messages + 'x' }}", ("row 1: the chat template refuses it", "TypeError")),
    "a division by zero": ({}, "{{ 1 / 0 }}", ("row 1: the chat template refuses it: ZeroDivisionError",)),
    "an endless template": ({}, "{% for i in range(10**6) %}{% endfor %}", ("refuses it: OverflowError",)),
    "a macro of itself": ({}, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ("refuses it: RecursionError",)),
    "a text without end": ({}, "{{ 'x' * 10**13 }}", ("row 1: the chat template refuses it: MemoryError",)),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_conversations(case, refused):
    changes, template, says = CONVERSATIONS[case]
    content = (json.dumps(ASKED) + "\n") * 8 + json.dumps({**ASKED, **changes}) + "\n"
    data = {"dataset": "d.jsonl", "apply_chat_template": True, "tokenizer_chat_template": template}
    line = refused(says, over={"data": data}, files={"d.jsonl": content})
    assert not changes or "d.jsonl, row 9: " in line


def test_no_chat_template(refused):
    refused(("data.apply_chat_template", "data.tokenizer_chat_template"), over={"data": {"apply_chat_template": True}})


@pytest.fixture
def check(config, tmp_path, monkeypatch):
    """Exit code, and the lines of stdout and of stderr, of `sparsepo check` on the good YAML with changes."""
    monkeypatch.chdir(tmp_path)

    def check(**over) -> tuple[int, list[str], list[str]]:
        Path("run.yaml").write_text(yaml.safe_dump(config(**over)))
        done = CliRunner().invoke(app, ["check", "run.yaml"])
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return done.exit_code, done.stdout.splitlines(), done.stderr.splitlines()

    return check


BAD = {**PAIR, "rejected": ""}
EMPTY = "rejected is empty; a response needs at least one word"


def test_twenty_bad_rows_are_listed_and_the_rest_counted(check):
    Path("a.jsonl").write_text(lines(*[BAD] * 30))
    Path("b.csv").write_text(CSV + "w1,,w2\n")
    code, _, told = check(data={"dataset": "a.jsonl,b.csv"})
    assert code == 2
    assert told[-22:-2] == [f"  a.jsonl, row {9 + number}: {EMPTY}" for number in range(20)]
    assert told[-2] == "  and 11 more"
    assert told[-1] == (
        f"sparsepo: error: a.jsonl, row 9: {EMPTY} "
        "(31 of 47 rows cannot be trained on; data.on_bad_row: drop leaves them out)"
    )


def test_rows_are_those_of_their_file_when_data_sets_are_blended(check):
    """A file in a folder with two, one file of several, one that is saved, and one of two splits."""
    Path("folder").mkdir()
    Path("folder/a.jsonl").write_text(LINE * 8)
    Path("folder/b.jsonl").write_text(LINE * 3 + json.dumps(BAD) + "\n" + LINE)
    Path("c.jsonl").write_text(LINE * 5 + json.dumps(BAD) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR, BAD]), "d.parquet")
    Dataset.from_list([PAIR, PAIR, BAD]).save_to_disk("saved")
    DatasetDict(train=Dataset.from_list([BAD]), test=Dataset.from_list([PAIR])).save_to_disk("splits")
    names = ("folder", "c.jsonl", "d.parquet", "saved", "splits")
    data = {"dataset": ",".join(names), "dataset_probs": ",".join(["0.2"] * 5)}
    code, _, told = check(data=data, eval={"dataset": "splits", "split": "test"})
    places = [line.strip().removesuffix(f": {EMPTY}") for line in told if line.startswith("  ")]
    assert code == 2 and places == [
        f"{Path('folder').resolve()}/b.jsonl, row 4",
        "c.jsonl, row 6",
        "d.parquet, row 2",
        "saved (train), row 3",
        "splits (train), row 1",
    ]


def test_drop_says_what_it_leaves_out(check):
    Path("d.jsonl").write_text(LINE + json.dumps(BAD) + "\n" + LINE * 8)
    code, out, told = check(data={"dataset": "d.jsonl", "on_bad_row": "drop"})
    assert code == 0 and out == ["run.yaml: ok, loss: sparsepo"]
    assert told == [f"  d.jsonl, row 2: {EMPTY}", "data.on_bad_row: drop leaves out 1 of 10 rows"]


DROPPED = {
    "fewer than a batch": (lines(BAD)[len(LINE) :], ("data.dataset: d.jsonl has 7 pairs", "train.batch_size is 8")),
    "none": (f"{json.dumps(BAD)}\n" * 9, ("data.dataset: no row of d.jsonl can be trained on",)),
    "what cannot be read": (lines("hello"), ("d.jsonl, row 9: not JSON",)),
}


@pytest.mark.parametrize("case", DROPPED)
def test_drop_leaves_too_little(case, refused):
    content, says = DROPPED[case]
    refused(says, over={"data": {"dataset": "d.jsonl", "on_bad_row": "drop"}}, files={"d.jsonl": content})


PLAIN = {"loss": None, "sparsepo": None}


def test_drop_needs_a_loss(refused):
    refused(("data.on_bad_row: drop needs --loss",), over={**PLAIN, "data": {"on_bad_row": "drop"}})


def test_check_without_a_loss(check, refused):
    assert check(**PLAIN)[:2] == (0, ["run.yaml: ok, loss: OpenRLHF DPO"])
    refused(
        ("d.jsonl, row 9: chosen is empty",),
        over={**PLAIN, "data": {"dataset": "d.jsonl"}},
        files={"d.jsonl": row(chosen="")},
    )
    for key in ("model", "ref"):
        says = (f"{key}.model_name_or_path", "/nowhere")
        refused(says, over={**PLAIN, key: {"model_name_or_path": "/nowhere"}})
    refused(("data.dataset is missing",), over={**PLAIN, "data": {"dataset": None}})


def test_what_is_told_of_good_rows(check):
    same, long = {**PAIR, "rejected": PAIR["chosen"]}, {**PAIR, "prompt": "w1 " * 30}
    Path("d.jsonl").write_text(lines(same, long, long))
    code, _, told = check(data={"dataset": "d.jsonl"})
    assert code == 0 and told == [
        "data.dataset: d.jsonl: 2 of 11 prompts have 30 tokens or more (data.max_len - 2), "
        "OpenRLHF leaves those pairs out",
        "data.dataset: d.jsonl: 1 of 11 pairs have twice the same response and teach nothing",
    ]


GOOD = {
    "a response that fits": row(chosen="w1 " * 29),
    "a byte-order mark": "\ufeff" + LINE * 8,
    "Windows lines": (LINE * 8).replace("\n", "\r\n"),
    "no line feed at the end": (LINE * 8).strip(),
    "an empty prompt": row(prompt=""),
    "an escaped NUL": row(chosen="w1\0"),
    "a surrogate pair": lines('{"prompt": "w1 ", "chosen": "\\ud83d\\ude00", "rejected": "w2"}'),
    "other columns of mixed kinds": lines({**PAIR, "meta": 5}, {**PAIR, "meta": "x"}, {**PAIR, "meta": [None]}),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_is_good(case, check):
    Path("d.jsonl").write_text(GOOD[case])
    code, _, told = check(data={"dataset": "d.jsonl"})
    assert code == 0, told


def test_a_list_of_objects_is_good(check):
    Path("d.json").write_text(json.dumps([PAIR] * 8, indent=1))
    assert check(data={"dataset": "d.json"})[0] == 0


TEXTS = st.text() | st.sampled_from(["w1", "w2 w3", "", " "])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYED = st.dictionaries(st.sampled_from([*PAIR, "meta"]), TEXTS | VALUES)
OBJECTS = (KEYED | KEYED.map(lambda row: PAIR | row)).map(json.dumps).map(str.encode)
ROWS_OF_ALL_KINDS = st.one_of(OBJECTS, OBJECTS, VALUES.map(json.dumps).map(str.encode), st.binary(max_size=20))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS_OF_ALL_KINDS, min_size=1, max_size=3), chat=st.booleans(), drop=st.booleans())
def test_whatever_the_rows_it_is_ok_or_one_line(rows, chat, drop, check):
    """The good rows before them are enough for a batch; a mistake names the file, and its row if that is known."""
    good = json.dumps(ASKED if chat else PAIR).encode()
    Path("d.jsonl").write_bytes(b"\n".join([*[good] * 8, *rows]))
    templates = {"apply_chat_template": True, "tokenizer_chat_template": CHAT} if chat else {}
    data = {"dataset": "d.jsonl", "on_bad_row": "drop" if drop else "stop", **templates}
    code, _, told = check(data=data)
    errors = [line for line in told if line.startswith("sparsepo: error: ")]
    assert (code, len(errors)) in ((0, 0), (2, 1)), told
    if errors:
        (line,) = errors
        assert line == told[-1] and re.match(
            r"sparsepo: error: (d.jsonl, row \d+: |data.dataset: d.jsonl cannot)", line
        )
