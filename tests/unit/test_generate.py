"""`sparsepo generate` of tiny models: pairs against samples chosen by hand, and where a file of samples goes on."""

import json
from collections import Counter
from itertools import islice

import pytest
from finished_runs import finished_run, write_lines
from tiny import decoder
from typer.testing import CliRunner
from words import word_tokenizer

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.cli import app
from sparsepo_plugin.generation.pairs import pairs_of
from sparsepo_plugin.generation.samples import SamplesFile, fingerprint_of

PROMPTS = [{"prompt": f"w{n} w{n + 1}"} for n in range(7)]
LENGTH = "length_of_a_test:length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, prompts, and a reward: how many words there are, which many completions have in common."""
    folder = tmp_path_factory.mktemp("generate")
    decoder("llama").save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    write_lines(folder / "prompts.jsonl", PROMPTS)
    (folder / "length_of_a_test.py").write_text(
        "def length(prompts, completions):\n    return [len(text.split()) for text in completions]\n"
    )
    return folder


@pytest.fixture
def generate(folder, tmp_path, monkeypatch):
    """The command, typed where the model is; `out/` is a folder of the test."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def generate(*flags, model="model", reward=LENGTH, prompts="prompts.jsonl", output="out/pairs.jsonl"):
        flags = ["generate", model, "--prompts", prompts, "--reward", reward, "-o", output, *flags]
        flags += [] if "--max-new-tokens" in flags else ["--max-new-tokens", "6"]
        return CliRunner().invoke(app, [flag.replace("out/", f"{tmp_path}/") for flag in flags])

    return generate


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_best_and_worst_by_hand():
    """Ties go to the first; what cannot be a pair is counted."""
    scores = {
        "a pair": [(" x", 0.1), (" y", 0.9), (" z", 0.9), (" x x", 0.1)],
        "alike": [(" x", 0.5), (" x", 0.5)],
        "level": [(" x", 0.5), (" y", 0.5)],
        "near": [(" x", 0.5), (" y", 0.7)],
        "empty": [(" ", 0.0), (" y", 0.7)],
        "just": [(" x", 0.75), (" y", 0.5)],
        "noisy": [(" x", 0.1), (" x", 0.9), (" y", 0.5)],
    }
    samples = [
        {"prompt_index": number, "prompt": prompt, "completion": text, "reward": reward}
        for number, (prompt, completions) in enumerate(scores.items())
        for text, reward in completions
    ]
    dropped = Counter()
    found = list(pairs_of(samples, 0.25, dropped))
    columns = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
    assert found == [
        dict(zip(columns, row, strict=True))
        for row in (("a pair", " y", " x", 0.9, 0.1), ("just", " x", " y", 0.75, 0.5))
    ]
    assert dropped == {
        "the completions are the same": 1,
        "the scores are the same": 1,
        "the scores differ less than --min-difference": 1,
        "a completion is empty": 1,
        "the reward gave the same text different scores": 1,
    }


def test_the_command(generate, tmp_path):
    """Rewards are those of the function, pairs those of the samples; what is dropped is said."""
    done = generate("--count", "3", "--batch-size", "6")
    assert done.exit_code == 0, done.output
    header, *samples = rows(tmp_path / "pairs.samples.jsonl")
    assert header["--count"] == 3 and header["--reward"] == LENGTH
    assert [(row["prompt_index"], row["sample"]) for row in samples] == [(n, s) for n in range(7) for s in range(3)]
    assert all(row["reward"] == len(row["completion"].split()) for row in samples)
    assert [row["prompt"] for row in samples[::3]] == [row["prompt"] for row in PROMPTS]
    dropped = Counter()
    pairs = rows(tmp_path / "pairs.jsonl")
    assert pairs == list(pairs_of(samples, 0.0, dropped)) and 0 < len(pairs) < 7
    for reason, count in dropped.items():
        assert f"generate: dropped {count}: {reason}" in done.stderr
    mean = sum(row["reward"] for row in samples) / 21
    assert f"7 prompts, mean reward {mean:.4g}, {len(pairs)} pairs written to" in done.stderr


def test_the_same_command_again_changes_nothing(generate, tmp_path, monkeypatch):
    """And draws nothing."""
    assert generate().exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("transformers.GenerationMixin.generate", None)
    assert generate().exit_code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "pairs.jsonl").unlink()
    assert generate().exit_code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kept", [1, 200, 700])
def test_it_goes_on_from_any_byte(kept, generate, tmp_path):
    """A file that was cut off anywhere ends as it would have."""
    assert generate("--batch-size", "4").exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    samples = tmp_path / "pairs.samples.jsonl"
    assert len(before[samples.name]) > 1000
    samples.write_bytes(before[samples.name][:kept])
    (tmp_path / "pairs.jsonl").unlink()
    assert generate("--batch-size", "4").exit_code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed", "1"], "--seed was 0 and is now 1"),
        (["--count", "3"], "--count was 2 and is now 3"),
        (["--temperature", "0.5"], "--temperature was 1.0 and is now 0.5"),
        (["--top-p", "0.5"], "--top-p was 1.0 and is now 0.5"),
        (["--batch-size", "4"], "--batch-size was 256 and is now 4"),
        (["--max-new-tokens", "7"], "--max-new-tokens was 6 and is now 7"),
        (["--min-difference", "1"], "--min-difference was 0.0 and is now 1.0"),
        (["--prefix-tokens", "1-2"], "--prefix-tokens was None and is now '1-2'"),
        (["--prompts", "out/other.jsonl"], "the fingerprint of --prompts was"),
        (["--reward", "vader"], f"--reward was '{LENGTH}' and is now 'vader'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_options_are_refused(flags, says, generate, tmp_path):
    assert generate().exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_lines(tmp_path / "other.jsonl", PROMPTS[1:])
    done = generate(*flags)
    refused(done, f"pairs.samples.jsonl is of an earlier run, {says}")
    refused(done, "; choose another -o, or remove what is there")
    (tmp_path / "other.jsonl").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_that_was_trained_on_is_another(generate, folder, tmp_path):
    """Under the same name."""
    for seed in (0, 1):
        decoder("llama", seed).save_pretrained(tmp_path / "model")
        word_tokenizer().save_pretrained(tmp_path / "model")
        done = generate(model="out/model")
        assert done.exit_code == (0 if seed == 0 else 2)
    refused(done, "the fingerprint of MODEL was")
    assert fingerprint_of(decoder("llama", 0)) == fingerprint_of(decoder("llama", 0))


def test_what_is_there_is_not_overwritten(generate, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("of somebody else\n")
    refused(generate(), "pairs.jsonl is there, and pairs.samples.jsonl, which says what it was made with, is not")
    (tmp_path / "new.samples.jsonl").write_text("of somebody else\n")
    refused(generate(output="out/new.jsonl"), "new.samples.jsonl is there, and is no file of this command")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"of somebody else\n"}


def test_prefixes(generate, tmp_path):
    write_lines(tmp_path / "texts.jsonl", [{"text": "w1 w2 w3 w4 w5"}, {"text": "w1"}, {"text": "w7 w8 w9"}])
    done = generate("--prefix-tokens", "2", prompts="out/texts.jsonl")
    assert done.exit_code == 0, done.output
    assert "1 texts are left out, they are shorter than their prefix" in done.stderr
    samples = rows(tmp_path / "pairs.samples.jsonl")[1:]
    assert [row["prompt"] for row in samples] == ["w1 w2", "w1 w2", "w7 w8", "w7 w8"]


def test_messages(generate, tmp_path):
    """A plain model gets them through its chat template, and responses are messages too."""
    talk = [{"role": "user", "content": "w5 w6"}]
    write_lines(tmp_path / "talk.jsonl", [{"prompt": talk}])
    assert generate("--count", "8", prompts="out/talk.jsonl").exit_code == 0
    (pair,) = rows(tmp_path / "pairs.jsonl")
    best = max(rows(tmp_path / "pairs.samples.jsonl")[1:], key=lambda row: row["reward"])
    assert pair["prompt"] == talk
    assert pair["chosen"] == [{"role": "assistant", "content": best["completion"]}]


def test_the_policy_of_a_run(generate, folder, tmp_path):
    """Without its reference and its masks, which need not be there; joined as the run joined."""
    finished_run(tmp_path / "run")
    for name in ("run_reference/model.safetensors", "run/mask_head.safetensors"):
        (tmp_path / name).unlink()
    done = generate("--count", "4", model="out/run")
    assert done.exit_code == 0, done.output
    assert len(rows(tmp_path / "pairs.samples.jsonl")) == 1 + 4 * 7


def test_no_pair_is_left(generate, tmp_path):
    """Greedy completions of a prompt are the same; their samples are kept."""
    done = generate("--temperature", "0")
    refused(done, "no pair is left of 7 prompts")
    assert "generate: dropped 7: the completions are the same" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.samples.jsonl"]


def test_batches_of_a_samples_file(tmp_path):
    """What a kill left of a batch is dropped, but not the last batch, which may be smaller."""
    path, options = tmp_path / "new" / "a.samples.jsonl", {"--seed": 1}
    file = SamplesFile(path, options, total=5, batch=2)
    assert file.done == 0
    for samples, done in (([0, 1], 2), ([2], 2), ([2, 3], 4), ([4], 5)):
        file.add({"n": n} for n in samples)
        file = SamplesFile(path, options, total=5, batch=2)
        assert file.done == done
        assert [sample["n"] for sample in islice(file.read(), done)] == list(range(done))
    with path.open("a") as cut:
        cut.write('{"n": 5')
    with pytest.raises(SparsePOError, match="--seed was 1 and is now 2"):
        SamplesFile(path, {"--seed": 2}, total=5, batch=2)
    assert SamplesFile(path, options, total=5, batch=2).done == 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"output": "out/pairs.json"}, "pairs.json must end in .jsonl, the trainer goes by it"),
        ({"output": "prompts.jsonl/pairs.jsonl"}, "prompts.jsonl is a file, a folder is needed there"),
        ({"prompts": "absent.jsonl"}, "--prompts absent.jsonl cannot be read: No such file"),
        ({"prompts": "/dev/null"}, "--prompts /dev/null has no prompt"),
        ({"model": "absent"}, "MODEL: absent cannot be loaded"),
        ({"reward": "absent"}, "--reward: allowed are vader, package.module:function, or"),
        ({"flags": ["--count", "0"]}, "--count is 0, 1 or more is needed"),
        ({"flags": ["--count", "1"]}, "--count is 1, 2 or more are needed for a pair"),
        ({"flags": ["--prefix-tokens", "8-5"]}, "--prefix-tokens is '8-5', a number of tokens or a range"),
        ({"flags": ["--min-difference", "-1"]}, "--min-difference is -1, 0 or more is needed"),
    ],
    ids=str,
)
def test_bad_input(given, says, generate, tmp_path):
    refused(generate(*given.pop("flags", []), **given), says)
    assert list(tmp_path.iterdir()) == []


def refused(done, says):
    """One line, and exit code 2."""
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sparsepo: error: ")]
    assert says in line, line
    assert "Traceback" not in done.stderr
