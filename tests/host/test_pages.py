"""Every command of the tutorial and of the how-to pages runs as it is printed.

Models are tiny ones under the names that the pages use. A block that begins with `# needs …` is left out, which its
reader is told by it.
"""

import glob
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from finished_runs import NASTY, PLAIN, finished_run, write_lines, write_metrics
from typer.testing import CliRunner

from sparsepo_plugin import MASKS, OBJECTIVES
from sparsepo_plugin.cli import app

DOCS = Path(__file__).parents[2] / "docs"
EXISTING = ("axolotl", "several_machines", "looking", "pairs", "measuring")
PAGES = [DOCS / "tutorial.md", *sorted(DOCS.glob("howto/*.md")), *(DOCS / f"{name}.md" for name in EXISTING)]
MODELS = ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B", "EleutherAI/pythia-1.4b", "EleutherAI/pythia-6.9b")
ALONE = ("train", "sweep")  # start processes of their own
SENTIMENTS = (" good", " pretty good", " great", " bad", " weak", " boring")


class Block(NamedTuple):
    """A piece of code of a page: its language, the name of the file that its first line gives, and its text."""

    language: str
    file: str | None
    text: str


def blocks(page):
    found = re.findall(r"^```(bash|python|yaml)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    names = [re.match(r"# ([\w.]+\.(?:py|yaml))\n", text) for _, text in found]
    return [Block(kind, name and name[1], text) for (kind, text), name in zip(found, names, strict=True)]


def commands(block):
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs that pages ask about, with their numbers, and pairs and prompts; none of them is trained."""
    folder = tmp_path_factory.mktemp("pages")
    for name, loss in (("first", "sparsepo"), ("sparsepo", "sparsepo"), ("tdpo", "tdpo"), ("dpo", "dpo")):
        finished_run(folder / "runs" / name, loss)
        write_metrics(folder / "runs" / name)
    finished_run(folder / "runs/simpo", "simpo")
    for name in ("swapped", "right", "wrong"):
        shutil.copytree(folder / "runs/dpo", folder / "runs" / name)
    for model in folder.glob("runs/*/config.json"):
        longer = json.loads(model.read_text()) | {"max_position_embeddings": 2048}
        model.write_text(json.dumps(longer))
    shutil.copytree(folder / "runs/dpo", folder / "runs/sft", ignore=shutil.ignore_patterns("*sparsepo*"))
    shutil.copytree(folder / "runs/sparsepo", folder / "runs/first/checkpoint-5")
    for name in MODELS:
        shutil.copytree(folder / "runs/sft", folder / name)
    edited = {**PLAIN, "rejected": PLAIN["chosen"].replace("good", "weak")}
    write_lines(folder / "held_out.jsonl", [PLAIN, *NASTY[:1]] * 5)
    write_lines(folder / "edited.jsonl", [edited] * 3)
    write_lines(folder / "pairs.jsonl", [PLAIN] * 128)
    write_lines(folder / "prompts.jsonl", [{"prompt": PLAIN["prompt"] + text} for text in SENTIMENTS])
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of it as the working folder, and registries that forget what is registered."""
    here = shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry in (MASKS, OBJECTIVES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield here
    for name in ("my_masks", "my_losses"):
        sys.modules.pop(name, None)


def run(words, server, folder):
    """Exit code and output of a command; what starts no process runs in this one, in which torch is loaded."""
    words = [part for word in words for part in (sorted(glob.glob(word)) if "*" in word else [word])]
    if words[0] == "sparsepo" and words[1] not in ALONE:
        done = CliRunner().invoke(app, words[1:])
        return done.exit_code, done.output + repr(done.exception)
    program = {"sparsepo": ["sparsepo"], "python": [sys.executable]}[words[0]]
    done = server.run(*program, *words[1:], cwd=folder)
    return done.returncode, done.stdout + done.stderr


def shorten(*files):
    """To as many lines as a test needs: what runs is the page's, how much of it is not."""
    for file in files:
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:40]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, folder, server):
    ran = marked = 0
    if "-o pairs.jsonl" in page.read_text():
        (folder / "pairs.jsonl").unlink()  # which the page makes itself
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.language == "bash" and block.text.startswith("# needs "):
            marked += 1
        elif block.language == "bash":
            for words in commands(block):
                code, output = run(words, server, folder)
                assert code == 0, f"{shlex.join(words)}\n{output[-3000:]}"
                ran += 1
                shorten(folder / "prompts.jsonl", folder / "held_out.jsonl")
    assert ran + marked > 0


def test_a_block_in_another_language_is_no_command():
    """What is to be typed is in a block of bash, or it would not be run."""
    kinds = {kind for page in PAGES for kind in re.findall(r"^ *```(\S+)$", page.read_text(), re.MULTILINE)}
    assert kinds <= {"bash", "python", "yaml", "text"}
