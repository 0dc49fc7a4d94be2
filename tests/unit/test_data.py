"""The converters of `sparsepo data`, on tiny files in each dataset's raw form; expected pairs are worked by hand."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import typer
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from sparsepo_plugin.data.base import Pair, Row, spaced, usable
from sparsepo_plugin.data.command import data
from sparsepo_plugin.data.mbpp import mbpp

SAMPLES = Path(__file__).parent / "data_samples"
CHATML = (
    "{% for message in messages %}"
    "{% if message['content'] == 'refuse me' %}{{ raise_exception('refused') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def run(tmp_path):
    """Run the command; gives the pairs as tuples (None: no file was written), what stderr said, and the exit code."""
    app = typer.Typer()
    app.command()(data)

    def run(name, *sources, **options):
        output = tmp_path / "pairs.jsonl"
        output.unlink(missing_ok=True)
        arguments = [text for source in sources for text in ("--input", str(source))]
        arguments += [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        result = CliRunner().invoke(app, [name, *arguments, "--output", str(output)])
        assert not list(tmp_path.glob(".pairs*")), "something half-written is left"
        pairs = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else None
        assert pairs is None or all(list(pair) == ["prompt", "chosen", "rejected"] for pair in pairs)
        return pairs and [tuple(pair.values()) for pair in pairs], result.stderr, result.exit_code

    return run


@pytest.fixture
def write(tmp_path):
    """Write rows as JSON lines."""

    def write(rows, name="raw.jsonl"):
        file = tmp_path / name
        file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return file

    return write


def rows_of(name):
    return [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()]


TURKEY = "\n\nHuman: Why do people eat turkey at thanksgiving?\n\nAssistant:"
FLOAT = "\n\nHuman: Hi!\n\nAssistant: Hello, how can I help?\n\nHuman: How do I float on my back?\n\nAssistant:"
HH = [
    (TURKEY, " It is large enough for a family.", " I don't know."),
    (FLOAT, " Arch your back and breathe in.", " You want physics?"),
]


def test_hh(run):
    pairs, report, code = run("hh", SAMPLES / "hh.jsonl")
    assert (pairs, code) == (HH, 0)
    assert report.splitlines()[:-1] == [
        "hh: dropped 1: the dialogues differ before their last assistant turn",
        "hh: dropped 1: both responses are the same",
        "hh: dropped 1: a response is empty",
        "hh: dropped 1: a dialogue ends with a human turn",
        "hh: dropped 1: a dialogue has no assistant turn",
        "hh: dropped 5 in all",
    ]
    assert report.splitlines()[-1].startswith("hh: 7 rows read, 2 pairs written to ")


def post(subreddit, title, text):
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {text}\n\nTL;DR:"


COMPARED = [
    (post("bikes", "Sold it", "I sold my bike."), " bike sold.", " sold a bike, now walking."),
    (post("cycling", "Missing", "I miss it."), " I miss my bike.", " bikes are good."),
    (post("bikes", "Wheels", "How many wheels?"), " three wheels.", " two wheels."),
]
RATED = [
    (post("pets", "Cat", "My cat ran off."), " my cat ran off, help.", " a dog."),  # 7 and 1, 4 between
    (post("weather", "Rain", "It rains."), " it rains.", " rain."),  # 5 and 2, (7 + 1) / 2 between
]
TLDR = (SAMPLES / "tldr_comparisons.json", SAMPLES / "tldr_axis.json")


def test_tldr_samples_both_subsets_alike(run):
    pairs, report, code = run("tldr", *TLDR)
    assert code == 0
    assert pairs[2:] == RATED
    assert len(pairs) == 4 and all(pair in COMPARED for pair in pairs[:2])
    assert set(report.splitlines()[:-1]) == {
        "tldr: dropped 2: a news article, not a TL;DR post",
        "tldr: dropped 1: both responses are the same",
        "tldr: dropped 1: the responses differ by more than 100 words",
        "tldr: dropped 1: a rating without an overall score",
        "tldr: dropped 1: a post's ratings are all the same",
        "tldr: dropped 1: more pairs of comparisons rows than the sample takes",
        "tldr: dropped 7 in all",
    }


def test_tldr_sample_follows_the_seed(run):
    samples = {seed: run("tldr", *TLDR, seed=seed)[0] for seed in range(8)}
    assert {tuple(pairs) for pairs in samples.values()} == {
        (*(pair for pair in COMPARED if pair != left_out), *RATED) for left_out in COMPARED
    }
    assert all(run("tldr", *TLDR, seed=seed)[0] == pairs for seed, pairs in samples.items())


def test_tldr_takes_as_many_as_asked_or_says_what_there_is(run):
    assert [len(run("tldr", *TLDR, per_subset=number)[0]) for number in (1, 2)] == [2, 4]
    pairs, report, code = run("tldr", *TLDR, per_subset=3)
    assert code == 0 and len(pairs) == 5 and report.startswith("tldr: 2 pairs of axis rows, 1 short of 3\n")
    pairs, report, code = run("tldr", *TLDR, per_subset=9)
    assert code == 0 and len(pairs) == 5
    assert "tldr: 3 pairs of comparisons rows, 6 short of 9\ntldr: 2 pairs of axis rows, 7 short of 9" in report
    _, report, code = run("tldr", TLDR[0])
    assert code == 2 and "there is no pair of axis rows; 1 dropped: a news article" in report


def test_tldr_splits_of_the_public_data(run, write):
    """Comparisons have train, valid1 and valid2, ratings valid1, valid2 and test: each pair is in one set alone."""
    compared, rated = rows_of("tldr_comparisons.json")[0], rows_of("tldr_axis.json")[:2]
    rows = []
    for split in ("train", "valid1", "valid2", "test"):
        texts = [{"text": f" {split} one"}, {"text": f" {split} two"}]
        rows += [{**compared, "split": split, "summaries": texts, "choice": 0}] if split != "test" else []
        for row in rated if split != "train" else ():
            info = {**row["info"], "title": split}
            rows.append({**row, "split": split, "info": info})
    file = write(rows)
    train, report, _ = run("tldr", file, split="train", per_subset=5)
    assert [pair[1] for pair in train[:1]] == [" train one"]
    assert [pair[0].split("TITLE: ")[1].split()[0] for pair in train[1:]] == ["valid1", "valid2"]
    assert "tldr: 1 pairs of comparisons rows, 4 short of 5" in report
    assert "dropped 4: a row of another split than train" in report
    test, *_ = run("tldr", file, split="test", per_subset=5)
    assert [pair[1] for pair in test[:2]] == [" valid1 one", " valid2 one"]
    assert [pair[0].split("TITLE: ")[1].split()[0] for pair in test[2:]] == ["test"]
    del rows[0]["split"]
    _, report, code = run("tldr", write(rows), split="train")
    assert code == 2 and "line 1: split is missing, text is needed" in report


def test_hh_single_turns(run, write):
    rows = [
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: d\n\nAssistant: e",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: d\n\nAssistant: f",
        },
    ]
    app = typer.Typer()
    app.command()(data)
    source, output = write(rows), write([], "pairs.jsonl")
    result = CliRunner().invoke(app, ["hh", "--input", str(source), "--output", str(output), "--single-turn"])
    assert result.exit_code == 0 and "dropped 1: a dialogue has more than one human turn" in result.stderr
    assert [json.loads(line)["chosen"] for line in output.read_text().splitlines()] == [" b"]
    result = CliRunner().invoke(app, ["imdb", "--input", str(source), "--output", str(output), "--single-turn"])
    assert result.exit_code == 2 and "--single-turn has no effect for imdb; it is for hh" in result.stderr


def test_hh_through_a_chat_template(run, write, tokenizer, template):
    """The turns are messages: whose they are is the template's to say."""
    dialogue = "\n\nHuman: a\n\nmore\n\nAssistant: b\n\nHuman: d\n\nAssistant:"
    source = write([{"chosen": f"{dialogue} e", "rejected": f"{dialogue} f"}])
    pairs, *_ = run("hh", source, tokenizer=tokenizer, chat_template=template)
    prompt = "<|user|>a\n\nmore</s><|assistant|>b</s><|user|>d</s><|assistant|>"
    assert pairs == [(prompt, "e</s>", "f</s>")]
    _, report, code = run("hh", source, chat_template=template)
    assert (report, code) == ("sparsepo: error: --chat-template has no effect for hh without --tokenizer\n", 2)


@pytest.mark.parametrize(("words", "kept"), [(101, True), (102, False)])
def test_tldr_word_limit(run, write, words, kept):
    comparison, axis = rows_of("tldr_comparisons.json")[0], rows_of("tldr_axis.json")[:2]
    comparison["summaries"][1]["text"] = " one"
    comparison["summaries"][0]["text"] = " word" * words
    pairs, report, _ = run("tldr", write([comparison, *axis]))
    assert (pairs is not None) is kept
    assert ("differ by more than 100 words" in report) is not kept


SEEN, UNUSUAL = "I had never seen the", "Unusual film about a"


def test_imdb_one_completion_a_row(run):
    pairs, report, _ = run("imdb", SAMPLES / "imdb_completions.jsonl")
    assert pairs == [
        (SEEN, " series and loved it.", " film, a waste of time."),
        (UNUSUAL, ", well, man I adore.", " man. A bore."),
    ]
    assert report.splitlines()[:-1] == [
        "imdb: dropped 1: the prompt already has two completions",
        "imdb: dropped 1: both completions have the same score",
        "imdb: dropped 1: the prompt has a single completion",
        "imdb: dropped 3 in all",
    ]


def test_imdb_one_prompt_a_row_with_the_classifiers_answers(run):
    pairs, *_ = run("imdb", SAMPLES / "imdb_prompts.jsonl")
    assert pairs == [
        ("This was one of the", " best films ever.", " worst films ever."),  # 0.9 and 1 - 0.98
        ("Most of it was", " good.", " bad."),
    ]


ADD, TWO = "def add(a):\n", "def two(a):\n"
PASSING = {ADD: {"    return a + 1\n", "    return 1 + a\n"}, TWO: {"    return a * 2\n", "    return a + a\n"}}
FAILING = {ADD: {"    return a\n", "    return a - 1\n"}, TWO: {"    return a\n"}}


def test_mbpp(run):
    pairs, report, _ = run("mbpp", SAMPLES / "mbpp.jsonl")
    assert [prompt for prompt, *_ in pairs] == [ADD, TWO]
    assert all(chosen in PASSING[prompt] and rejected in FAILING[prompt] for prompt, chosen, rejected in pairs)
    assert report.splitlines()[:-1] == [
        "mbpp: dropped 1: the program is empty",
        "mbpp: dropped 2: a problem has fewer than two passing programs, or no failing one",
        "mbpp: dropped 3 in all",
    ]


def test_mbpp_epochs_are_drawn_anew(run):
    pairs, *_ = run("mbpp", SAMPLES / "mbpp.jsonl", epochs=4)
    assert [prompt for prompt, *_ in pairs] == [ADD, TWO] * 4
    drawn = {prompt: [pair[1:] for pair in pairs if pair[0] == prompt] for prompt in (ADD, TWO)}
    assert set(drawn[ADD]) == {(good, bad) for good in PASSING[ADD] for bad in FAILING[ADD]}
    assert set(drawn[TWO][:2]) == set(drawn[TWO][2:]) == {(good, "    return a\n") for good in PASSING[TWO]}


def test_mbpp_follows_the_seed(run):
    draws = [run("mbpp", SAMPLES / "mbpp.jsonl", epochs=2, seed=seed)[0] for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1] and len({tuple(pairs) for pairs in draws}) > 1


def test_mbpp_draws_every_combination_alike():
    rows = [Row(row, "") for row in rows_of("mbpp.jsonl")]
    drawn = Counter(next(mbpp(rows, Counter(), seed=seed))[1:] for seed in range(400))
    assert len(drawn) == 4 and min(drawn.values()) > 70


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a tokenizer that has no chat template."""
    folder = tmp_path / "tokenizer"
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0, "</s>": 1}, "?")), eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def template(tmp_path):
    """A file with a chat template."""
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    return file


def test_chat(run, tokenizer, template):
    pairs, report, code = run("chat", SAMPLES / "chat.jsonl", tokenizer=tokenizer, chat_template=template)
    assert code == 0
    assert pairs == [
        ("<|user|>Hi</s><|assistant|>Hello!</s><|user|>A joke?</s><|assistant|>", "Knock knock.</s>", "No.</s>"),
        ("<|system|>Be brief.</s><|user|>2 + 2?</s><|assistant|>", "4</s>", "It is four, as everybody knows.</s>"),
        ("<|user|>Sing</s><|assistant|>", "La la.</s>", "No.</s>"),
    ]
    assert report.splitlines()[:-1] == [
        "chat: dropped 1: the conversations differ before their last message",
        "chat: dropped 1: a conversation does not end with the assistant's answer",
        "chat: dropped 1: the chat template refuses the conversation: refused",
        "chat: dropped 3 in all",
    ]


def test_chat_uses_the_tokenizers_own_template(run, tokenizer, template):
    shutil.copy(template, tokenizer / "chat_template.jinja")
    assert len(run("chat", SAMPLES / "chat.jsonl", tokenizer=tokenizer)[0]) == 3


def test_chat_template_must_render_the_prompt_as_the_beginning(run, tokenizer, template):
    template.write_text(CHATML.replace("{{ message['content'] }}", "{{ messages|length }}"))
    pairs, report, code = run("chat", SAMPLES / "chat.jsonl", tokenizer=tokenizer, chat_template=template)
    assert (pairs, code) == (None, 2)
    assert (
        "chat: dropped 3: the template's text of the conversation does not begin with its text of the prompt" in report
    )
    assert "chat: no pair is left of 6 rows" in report


def without(name, number, path):
    """A row of a sample with a value taken out."""
    row = rows_of(name)[number]
    *outer, key = path.split(".")
    values = row
    for part in outer:
        values = values[int(part) if part.isdigit() else part]
    del values[key]
    return row


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("hh", '{"chosen": ', "not JSON"),
        ("hh", "[1, 2]", "[1, 2] is not a mapping; one object a line is needed"),
        ("hh", without("hh.jsonl", 0, "rejected"), "rejected is missing, text is needed"),
        ("hh", {"chosen": 3, "rejected": "x"}, "chosen is 3, text is needed"),
        ("hh", {"chosen": None, "rejected": "x"}, "chosen is missing, text is needed"),
        ("tldr", without("tldr_comparisons.json", 0, "info"), "info is missing, a mapping is needed"),
        ("tldr", without("tldr_comparisons.json", 0, "info.title"), "info.title is missing, text is needed"),
        ("tldr", without("tldr_comparisons.json", 0, "choice"), "choice is missing, a whole number is needed"),
        (
            "tldr",
            {**rows_of("tldr_comparisons.json")[0], "choice": 2},
            "choice is 2 of 2 summaries, 0 or 1 of two is needed",
        ),
        (
            "tldr",
            {**rows_of("tldr_comparisons.json")[0], "summaries": [{"text": "a"}] * 3},
            "choice is 1 of 3 summaries, 0 or 1 of two is needed",
        ),
        ("tldr", without("tldr_comparisons.json", 0, "summaries.1.text"), "item 2 of summaries: text is missing"),
        (
            "tldr",
            {**rows_of("tldr_comparisons.json")[0], "summaries": [{"text": "a"}, "b"]},
            "item 2 of summaries is 'b', a mapping is needed",
        ),
        ("tldr", without("tldr_axis.json", 0, "summary.axes"), "summary.axes.overall is missing, a number is needed"),
        ("imdb", without("imdb_completions.jsonl", 0, "reward"), "reward is missing, a number is needed"),
        ("imdb", {"prompt": "a", "text": "b", "reward": True}, "reward is True, a number is needed"),
        ("imdb", {"prompt": "a", "completions": ["b", "c"], "scores": [1]}, "2 completions have 1 scores"),
        (
            "imdb",
            {"prompt": "a", "text": "b", "reward": {"label": "LABEL_1", "score": 0.9}},
            "reward.label is 'LABEL_1', POSITIVE or NEGATIVE is needed",
        ),
        ("imdb", {"prompt": "a", "text": "b", "reward": float("nan")}, "reward is not a number"),
        ("imdb", r'{"prompt": "a \ud83d", "text": "b", "reward": 1}', "prompt is not Unicode text"),
        ("mbpp", {"prompt": "a", "completion": "b", "passed": 1}, "passed is 1, true or false is needed"),
    ],
)
def test_malformed_row_is_refused_with_file_and_line(run, write, name, row, message):
    good = (
        SAMPLES / {"tldr": "tldr_axis.json", "imdb": "imdb_completions.jsonl"}.get(name, f"{name}.jsonl")
    ).read_text()
    file = write([good.splitlines()[0], "", row])
    pairs, report, code = run(name, file)
    assert (pairs, code) == (None, 2)
    assert report.startswith(f"sparsepo: error: {file}, line 3: ") and message in report and report.count("\n") == 1


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ([{"role": "assistant"}], "message 1 of chosen: content is missing, text is needed"),
        ([], "chosen is an empty list, text or messages are needed"),
    ],
)
def test_malformed_conversation(chosen, says, run, write, tokenizer, template):
    file = write([{"prompt": "a", "chosen": chosen, "rejected": "b"}])
    _, report, code = run("chat", file, tokenizer=tokenizer, chat_template=template)
    assert (report, code) == (f"sparsepo: error: {file}, line 1: {says}\n", 2)


def test_chat_without_its_tokenizer_is_one_line(run, tmp_path):
    _, report, code = run("chat", SAMPLES / "chat.jsonl", tokenizer=tmp_path / "nowhere")
    assert code == 2 and report.startswith("sparsepo: error: --tokenizer ") and report.count("\n") == 1


def test_chat_of_answers_that_cannot_be_trained_on(run, write, tokenizer, template):
    """The same ones, an empty one, and one for which the template writes the prompt in another way."""
    template.write_text("{% if messages[-1]['content'] == 'odd' %}?{% endif %}" + CHATML)
    rows = [{"prompt": "a", "chosen": "b", "rejected": answer} for answer in ("b", " ", "odd", "c")]
    pairs, report, _ = run("chat", write(rows), tokenizer=tokenizer, chat_template=template)
    assert pairs == [("<|user|>a</s><|assistant|>", "b</s>", "c</s>")]
    assert report.splitlines()[:-1] == [
        "chat: dropped 1: both responses are the same",
        "chat: dropped 1: a response is empty",
        "chat: dropped 1: the template's text of the conversation does not begin with its text of the prompt",
        "chat: dropped 3 in all",
    ]


@pytest.mark.parametrize(
    ("prompt", "response", "joined"),
    [("a", "b", " b"), ("a ", "b", "b"), ("a\n", "b", "b"), ("a", " b", " b"), ("a", ", b", ", b"), ("a", "’s", "’s")],
)
def test_one_space_between_prompt_and_response(prompt, response, joined):
    assert spaced(prompt, response) == joined


@pytest.mark.parametrize(("chosen", "rejected"), [(" ", "b"), ("b", "\n"), ("b", "b")])
def test_pairs_that_no_trainer_can_use(chosen, rejected):
    assert not usable(Pair("a", chosen, rejected), Counter())


def test_hh_sides_that_end_otherwise(run, write):
    """On either side alone: no assistant turn, or a human turn after it."""
    human, turn = "\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b"
    broken = {"a dialogue has no assistant turn": human, "a dialogue ends with a human turn": f"{turn}\n\nHuman: c"}
    for reason, text in broken.items():
        for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
            _, report, code = run("hh", write([{side: text, other: f"{turn}!"}]))
            assert code == 2 and f"hh: dropped 1: {reason}\n" in report


def test_imdb_labels_of_either_case(run, write):
    row = rows_of("imdb_prompts.jsonl")[0]
    lower = [{**score, "label": score["label"].lower()} for score in row["scores"]]
    assert run("imdb", write([{**row, "scores": lower}]))[0] == run("imdb", write([row]))[0]


def test_mbpp_problems_are_drawn_apart():
    """Two problems of as many programs draw the same places only by chance."""
    rows = [
        Row({"prompt": problem, "completion": f"{number}", "passed": number < 4}, "")
        for problem in ("one", "two")
        for number in range(8)
    ]
    drawn = [[pair[1:] for pair in mbpp(rows, Counter(), seed=seed)] for seed in range(32)]
    assert 0 < sum(first == second for first, second in drawn) < 8


def test_tldr_posts_may_name_an_article_too(run, write):
    comparison, *axis = rows_of("tldr_comparisons.json")[0], *rows_of("tldr_axis.json")[:2]
    comparison["info"]["article"] = "of no interest"
    assert len(run("tldr", write([comparison, *axis]))[0]) == 2


def test_a_failed_run_leaves_the_old_file(run, write, tmp_path):
    app = typer.Typer()
    app.command()(data)
    old = write(["old"], "pairs.jsonl")
    bad = write([*rows_of("hh.jsonl"), "{"])
    result = CliRunner().invoke(app, ["hh", "--input", str(bad), "--output", str(old)])
    assert result.exit_code == 2 and old.read_text() == "old\n" and not list(tmp_path.glob(".pairs*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, "--epochs has no effect for hh; it is for mbpp"),
        ({"per_subset": 3}, "--per-subset has no effect for hh; it is for tldr"),
        ({"split": "test"}, "--split has no effect for hh; it is for tldr"),
    ],
)
def test_option_without_effect(run, options, message):
    assert run("hh", SAMPLES / "hh.jsonl", **options)[1:] == (f"sparsepo: error: {message}\n", 2)


def test_chat_needs_a_tokenizer_with_a_template(run, tokenizer):
    assert "chat needs --tokenizer" in run("chat", SAMPLES / "chat.jsonl")[1]
    assert (
        "has no chat template; give --chat-template FILE"
        in run("chat", SAMPLES / "chat.jsonl", tokenizer=tokenizer)[1]
    )


def test_pairs_are_written_as_they_read(run, write, tmp_path):
    """Unicode is not escaped; a name with a colon is a file's all the same."""
    turn = "\n\nHuman: a\n\nAssistant:"
    assert run("hh", write([{"chosen": f"{turn} café", "rejected": f"{turn} b"}], "raw:test.jsonl"))[2] == 0
    assert "café" in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8")


def test_no_epochs_at_all(run):
    _, report, code = run("mbpp", SAMPLES / "mbpp.jsonl", epochs=0)
    assert code == 2 and "'--epochs'" in report


def test_missing_input(run, tmp_path):
    for missing in ("missing.jsonl", "./missing", str(tmp_path / "missing")):
        assert f"{missing} does not exist; a file, a folder or a hub name is needed" in run("hh", missing)[1]
    assert "--input is empty; a file, a folder or a hub name is needed" in run("hh", "")[1]


@pytest.fixture
def write_to(tmp_path):
    """Exit code and the line of the command with an output below a folder that has `file` and `folder.jsonl/`."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.jsonl").mkdir()
    app = typer.Typer()
    app.command()(data)

    def write_to(output, source=SAMPLES / "hh.jsonl"):
        result = CliRunner().invoke(app, ["hh", "--input", str(source), "--output", str(tmp_path / output)])
        return result.exit_code, result.stderr.splitlines()[-1]

    return write_to


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("pairs.csv", "must end in .jsonl"),
        ("folder.jsonl", "is a folder, a file is needed"),
        ("file/pairs.jsonl", "file is a file, a folder is needed there"),
    ],
)
def test_bad_output(output, says, write_to, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, line = write_to(output)
    assert code == 2 and line.startswith(f"sparsepo: error: --output {tmp_path / output}") and says in line
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_of_the_output_are_made_when_the_pairs_are_there(write_to, write, tmp_path):
    bad = write([*rows_of("hh.jsonl"), {"chosen": 5}])
    assert write_to("new/folder/pairs.jsonl", bad)[0] == 2 and not (tmp_path / "new").exists()
    assert write_to("new/folder/pairs.jsonl")[0] == 0
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["folder", "pairs.jsonl"]


def test_a_line_nested_endlessly(run, write):
    _, report, code = run("hh", file := write(["[" * 10**5]))
    assert code == 2 and f"{file}, line 1: not JSON: maximum recursion depth exceeded" in report


def test_a_tokenizer_that_cannot_be_loaded(run, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    _, report, code = run("hh", SAMPLES / "hh.jsonl", tokenizer=tmp_path)
    assert code == 2 and f"--tokenizer {tmp_path} cannot be loaded: " in report and report.count("\n") == 1


def test_gzip_and_a_folder_without_its_other_splits(run, tmp_path):
    folder = tmp_path / "raw"
    for part, name, row in (("base", "train", 0), ("base", "test", 2), ("online", "train", 1)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / part / f"{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps(rows_of("hh.jsonl")[row]))
    assert run("hh", folder)[0] == HH
    assert run("hh", folder / "base" / "train.jsonl.gz", folder / "online")[0] == HH
    assert "1 rows" in run("hh", f"{folder}:test")[1]
    (folder / "base" / "test.jsonl.gz").rename(folder / "base" / "valid1.jsonl.gz")
    assert "1 rows" in run("hh", f"{folder}:valid1")[1]


def test_broken_gzip(run, tmp_path):
    file = tmp_path / "raw.jsonl.gz"
    file.write_bytes(gzip.compress((SAMPLES / "hh.jsonl").read_bytes())[:-20])
    _, report, code = run("hh", file)
    assert code == 2 and report.startswith(f"sparsepo: error: {file}: cannot be read: ") and report.count("\n") == 1


def test_folder_that_the_datasets_library_saved(run, tmp_path):
    raw = Dataset.from_list(rows_of("hh.jsonl"))
    raw.save_to_disk(tmp_path / "saved")
    DatasetDict(train=raw.select([0]), test=raw.select([1])).save_to_disk(tmp_path / "splits")
    assert run("hh", tmp_path / "saved")[0] == HH
    assert run("hh", tmp_path / "splits")[0] == HH[:1]
    assert run("hh", f"{tmp_path / 'splits'}:test")[0] == HH[1:]
    assert "has the splits train, test; none is called 'dev'" in run("hh", f"{tmp_path / 'splits'}:dev")[1]


def test_dataset_folder_and_file_through_the_datasets_library(run, tmp_path):
    Dataset.from_list(rows_of("mbpp.jsonl")[:4]).to_parquet(tmp_path / "hub" / "data" / "train-0000.parquet")
    assert len(run("mbpp", tmp_path / "hub")[0]) == 1
    assert len(run("mbpp", tmp_path / "hub" / "data" / "train-0000.parquet")[0]) == 1
    Dataset.from_list([{"prompt": "a", "completion": "b"}]).to_parquet(tmp_path / "bad.parquet")
    assert f"{tmp_path / 'bad.parquet'}, row 1: passed is missing" in run("mbpp", tmp_path / "bad.parquet")[1]
    (tmp_path / "bad.parquet").write_text("no parquet")
    _, report, code = run("mbpp", tmp_path / "bad.parquet")
    assert code == 2 and f"--input {tmp_path / 'bad.parquet'} cannot be read: " in report and report.count("\n") == 1


def test_a_folder_of_a_datasets_data(run, tmp_path, monkeypatch):
    """NAME@FOLDER, as some of the hub's datasets have one for each subset."""
    for part, row in (("base", 0), ("online", 1)):
        Dataset.from_list(rows_of("hh.jsonl")[row : row + 1]).to_parquet(tmp_path / "hub" / part / "train.parquet")
    monkeypatch.chdir(tmp_path)
    assert run("hh", "hub@online")[0] == HH[1:]


def test_hub_rows_where_missing_values_are_null(run, tmp_path):
    """The datasets library gives every row of a column the same keys."""
    comparisons, axis = (Dataset.from_list(rows_of(file.name)) for file in TLDR)
    assert comparisons[3]["info"]["post"] is None and comparisons[0]["info"]["article"] is None
    comparisons.save_to_disk(tmp_path / "comparisons")
    axis.save_to_disk(tmp_path / "axis")
    assert run("tldr", tmp_path / "comparisons", tmp_path / "axis")[0] == run("tldr", *TLDR)[0]
