"""Prompts, rewards, models and runs that completions cannot be drawn from or scored with."""

import pytest

PROMPTS = b'{"prompt": "w1 w2"}\n'
REWARD = "def score(prompts, completions):\n    return [len(text) for text in completions]\n"
GOOD = {"--prompts": "prompts.jsonl", "--reward": "own_of_a_test:score", "-o": "out/pairs.jsonl"}
LFS = b"version https://git-lfs.github.com/spec/v1\n"


@pytest.fixture
def draws(refused, tiny, tmp_path, monkeypatch):
    """`generate`, or another command, that must be refused."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.syspath_prepend(tmp_path)

    def draws(says, over=None, files=None, command="generate", target=None):
        flags = [part for flag, value in {**GOOD, **(over or {})}.items() for part in (flag, value)]
        given = {"prompts.jsonl": PROMPTS, "own_of_a_test.py": REWARD, **(files or {})}
        target = target or str(tiny / "model")
        return refused((says,), *flags, files=given, command=command, target=target)

    return draws


@pytest.mark.parametrize("command", ["generate", "evaluate"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "--prompts prompts.jsonl has no prompt"),
        (b"\n\n", "--prompts prompts.jsonl has no prompt"),
        (b"\xff\xfe{}", "--prompts prompts.jsonl is not UTF-8 text"),
        (LFS, "prompts.jsonl, line 1: not JSON"),
        (PROMPTS + b"{", "prompts.jsonl, line 2: not JSON"),
        (PROMPTS + b"[" * 100_000, "prompts.jsonl, line 2: not JSON"),
        (PROMPTS + b"[]", "prompts.jsonl, line 2: an object with prompt is needed"),
        (b'{"prompt": null}', "prompts.jsonl, line 1: prompt must be text"),
        (b'{"prompt": [[]]}', "prompts.jsonl, line 1: prompt must be text, or a list of messages"),
        (b'{"prompt": "\\ud800"}', "prompts.jsonl, line 1: prompt must be text"),
        (PROMPTS + b'{"text": "w1"}', "prompts.jsonl, line 2: prompt must be text"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_prompts(draws, command, content, says):
    """Those of `evaluate` are read before any run."""
    draws(says, {"-o": "new.jsonl"}, {"prompts.jsonl": content}, command)


def test_a_prompt_without_tokens(draws):
    """Before the first is completed, and without a file of samples."""
    draws("prompts.jsonl, line 2: the prompt has no token", files={"prompts.jsonl": PROMPTS + b'{"prompt": ""}'})


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"--reward": ""}, "--reward: allowed are vader, package.module:function, or"),
        ({"--reward": "absent"}, "--reward: allowed are vader, package.module:function, or"),
        ({"--reward": "prompts.jsonl"}, "--reward: allowed are vader"),
        ({"--reward": "a\0b"}, "--reward: allowed are vader"),
        (
            {"--reward": "own_of_a_test:absent"},
            "--reward own_of_a_test:absent: own_of_a_test has no function 'absent'",
        ),
        ({"--reward": "absent:score"}, "--reward absent:score cannot be imported: no such module"),
        ({"--reward": ":score"}, "--reward :score cannot be imported"),
        ({"--prompts": "absent.jsonl"}, "--prompts absent.jsonl cannot be read: No such file or directory"),
        ({"--prompts": "."}, "--prompts . cannot be read: Is a directory"),
        ({"-o": "pairs.csv"}, "-o pairs.csv must end in .jsonl"),
        ({"-o": "prompts.jsonl"}, "-o prompts.jsonl is there, and prompts.samples.jsonl, which says"),
        ({"-o": "run.yaml/pairs.jsonl"}, "run.yaml is a file, a folder is needed there"),
        ({"--temperature": "nan"}, "--temperature is nan, 0 or more is needed"),
        ({"--temperature": "-1"}, "--temperature is -1, 0 or more is needed"),
        ({"--top-p": "0"}, "--top-p is 0, more than 0 and at most 1 is needed"),
        ({"--seed": "-1"}, "--seed is -1, 0 or more is needed"),
        ({"--batch-size": "0"}, "--batch-size is 0, 1 or more is needed"),
        ({"--max-new-tokens": "-3"}, "--max-new-tokens is -3, 1 or more is needed"),
        ({"--min-difference": "nan"}, "--min-difference is nan, 0 or more is needed"),
        ({"--prefix-tokens": "5–8"}, "--prefix-tokens is '5–8', a number of tokens or a range such as 5-8 is needed"),
        ({"--prefix-tokens": "9"}, "--prefix-tokens: every text of prompts.jsonl is shorter than its prefix"),
    ],
    ids=str,
)
def test_options(draws, over, says):
    draws(says, over)


@pytest.mark.parametrize("command", ["generate", "evaluate"])
@pytest.mark.parametrize("target", ["absent", "run.yaml", "out", "prompts.jsonl"])
def test_no_model(draws, command, target):
    says = {"generate": f"MODEL: {target} cannot be loaded", "evaluate": f"{target}/sparsepo.json is missing"}
    draws(says[command], {"-o": "new.jsonl"}, command=command, target=target)


@pytest.mark.parametrize("name", ["broken", "broken_reward"])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": b"{"}, "cannot be loaded"),
        ({"config.json": b"[1]"}, "cannot be loaded"),
        ({"config.json": LFS}, "cannot be loaded"),
        ({"config.json": b'{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}'}, "cannot be loaded"),
    ],
    ids=str,
)
def test_broken_models(draws, name, files, says):
    """As the model that is drawn from, and as a reward."""
    given = {f"{name}/{file}": content for file, content in files.items()}
    if name == "broken":
        draws(f"MODEL: {name} {says}", files=given, target=name)
    else:
        draws(f"; as a model: {name} {says}", {"--reward": name}, given)


def test_a_description_that_is_broken(draws):
    draws("run/sparsepo.json: ", files={"run/sparsepo.json": b"{"}, target="run")
    draws("run/sparsepo.json: ", {"-o": "new.jsonl"}, {"run/sparsepo.json": b"{"}, "evaluate", "run")


@pytest.mark.parametrize("header", [b"\n", b"{}\n", b"null\n", b"[]\n", b"\xff\n", b"of somebody else"])
def test_samples_of_somebody_else(draws, header):
    """They stay as they are."""
    draws("is there, and is no file of this command; choose another -o", files={"out/pairs.samples.jsonl": header})
