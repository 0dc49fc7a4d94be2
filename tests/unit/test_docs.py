"""Snippets of README.md and docs run as they are printed; tables say what the code says.

Commands of the tutorial and the how-to pages are run by tests/host/test_pages.py.
"""

import doctest
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from tiny import TWO_PAIRS, Pairs, decoder

from sparsepo_plugin import MASKS, OBJECTIVES, LossConfig, MaskedPolicy, ReferenceFeatures, ResponseTokens
from sparsepo_plugin.config import FROM_RUN, mask_class, objective_class
from sparsepo_plugin.masks import build_masks
from sparsepo_plugin.options import options_of
from sparsepo_plugin.reference import OF_POLICY

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README, MASK, EXTENDING, METHODS, PAIRS = (
    (ROOT / name).read_text()
    for name in ("README.md", "docs/howto/mask.md", "docs/extending.md", "docs/methods.md", "docs/pairs.md")
)


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def read(text):
    """The loss that a YAML of the documents describes."""
    settings = yaml.safe_load(text)
    loss = settings.get("loss", "sparsepo")
    return LossConfig.from_section(settings.get(loss), loss, beta=0.1, label_smoothing=0.0)


@pytest.fixture
def ideas(tmp_path, monkeypatch):
    """A folder on the path, and registries that forget what is registered."""
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (MASKS, OBJECTIVES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield tmp_path
    for name in ("my_masks", "my_ideas", "plain_loop"):
        sys.modules.pop(name, None)


def test_mask_of_the_page(ideas):
    (code,) = blocks(MASK, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    (ideas / "my_masks.py").write_text(code)
    (written,) = blocks(MASK, "yaml")
    importlib.import_module(*yaml.safe_load(written)["loss_plugins"])
    tokens = ResponseTokens.from_packed(torch.arange(24), [12, 12], [2, 1])
    masks = build_masks(read(written), hidden_size=4, num_layers=2, seed=0)(ReferenceFeatures(), tokens)
    assert masks.reward.tolist() == [1.0] * 8 + [0.0] * 2 + [1.0] * 8 + [0.0] * 3


def test_yaml_of_the_readme():
    first, *_ = blocks(README, "yaml")
    assert set(read(first).masks) == {"reward", "kl"}


def batches(count):
    pairs = Pairs(TWO_PAIRS)
    return [(pairs.input_ids, pairs.attention_mask, pairs.prompt_lens)] * count


def test_extending(ideas):
    """The two halves of my_ideas.py are one module; each YAML builds its masks, and one trains in the plain loop."""
    *halves, loop = blocks(EXTENDING, "python")
    assert [half.splitlines()[0] for half in halves] == ["# my_ideas.py", "# my_ideas.py, continued"]
    (ideas / "my_ideas.py").write_text("".join(halves))
    (ideas / "plain_loop.py").write_text(loop)
    configs = blocks(EXTENDING, "yaml")
    importlib.import_module("my_ideas")
    assert [read(text).loss for text in configs] == ["sparsepo", "sparsepo", "length_normalised"]
    for text in configs:
        masks = MaskedPolicy(decoder("llama"), decoder("llama", seed=1), read(text)).masks
        assert type(masks.reward).__name__ == "Surprise"
    train = importlib.import_module("plain_loop").train
    section = yaml.safe_load(configs[1])["sparsepo"]
    metrics = list(train(decoder("llama"), decoder("llama", seed=1), batches(3), section, lr=1e-3))
    assert len(metrics) == 3
    assert [step["mask_kl_mean_chosen"] for step in metrics] == [1.0] * 3
    assert metrics[0]["token_kl_chosen"] != metrics[2]["token_kl_chosen"]


def test_entry_points_name_what_the_snippet_defines():
    (text,) = blocks(EXTENDING, "toml")
    code = "".join(blocks(EXTENDING, "python"))
    for group in tomllib.loads(text)["project"]["entry-points"].values():
        for path in group.values():
            assert f"class {path.partition(':')[2]}(" in code


def run_script(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """In the working folder what two runs leave that were evaluated, one of them with a checkpoint."""
    monkeypatch.chdir(tmp_path)
    drawn = [{"temperature": 1.0, "prompt_index": n, "sample": s, "prompt": f"Q{n}"} for n in range(9) for s in (0, 1)]
    for name in ("first", "dpo"):
        rows = [{"checkpoint": "", **row, "completion": f" {name} {row['sample']}"} for row in drawn]
        lines = [{"reward": "vader"}, {**rows[0], "checkpoint": "checkpoint-5", "completion": "old"}, *rows]
        path = tmp_path / "runs" / name / "evaluation.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_completions_for_judges(evaluated):
    """Each answer stands under the letter that its line names, and both come first at times."""
    questions, alpaca = (
        next(code for code in blocks(PAIRS, "python") if name in code) for name in ("QUESTION", "alpaca")
    )
    run_script(questions)
    lines = [json.loads(line) for line in (evaluated / "questions.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [[1.0, number, sample] for number in range(9) for sample in (0, 1)]
    names = {"ours": "first", "theirs": "dpo"}
    for line in lines:
        _, number, sample = line["key"]
        assert {line["A"], line["B"]} == {"ours", "theirs"} and f"Q{number}" in line["question"]
        for letter in "AB":
            assert f"Answer {letter}:\n {names[line[letter]]} {sample}\n" in line["question"]
    assert {line["A"] for line in lines} == {"ours", "theirs"}
    run_script(alpaca, "runs/first", "sparsepo", "sparsepo.json")
    expected = [{"instruction": f"Q{n}", "output": " first 0", "generator": "sparsepo"} for n in range(9)]
    assert json.loads((evaluated / "sparsepo.json").read_text()) == expected


def test_reward_of_the_page(ideas):
    (code,) = [code for code in blocks(PAIRS, "python") if "def brevity" in code]
    (ideas / "my_ideas.py").write_text(code)
    assert importlib.import_module("my_ideas").brevity(["a", "b"], [" x y", " z"]) == [-2, -1]


def test_table_of_attributes_of_an_objective():
    """Defaults as they are in the class."""
    from sparsepo_plugin import Objective

    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", EXTENDING, re.MULTILINE)
    names = ["needs_reference", "expectation", "needs_collision", "chooses_mask", "reads_kl_mask", "mask", "from_host"]
    assert dict(rows) == {name: repr(getattr(Objective, name)).replace("'", '"') for name in names}


def test_generated_tables_are_those_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    for script in ("tables", "paper"):
        for path, name, text in importlib.import_module(script).sections():
            written = path.read_text().split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
            assert written == text, f"{path.name}, {name}: run docs/{script}.py"
    for script in ("tables", "paper"):
        sys.modules.pop(script)


OURS = [name for name in OBJECTIVES.names() if objective_class(name).__module__.startswith("sparsepo_plugin.")]


def rows_of(loss):
    return [row.split("|")[1:-1] for row in METHODS.splitlines() if f"| `loss: {loss}`" in row]


@pytest.mark.parametrize("loss", OURS)
def test_the_table_of_methods(loss):
    """Every objective has its rows: options with their defaults, and what is loaded and computed for it."""
    objective = objective_class(loss)
    rows = rows_of(loss)
    assert rows
    for row in rows:
        of_mask = mask_class(objective.mask, "mask").needs if objective.mask else frozenset()
        reads = objective.needs_reference or bool(of_mask - OF_POLICY)
        assert row[4].strip().startswith("yes" if reads else "no"), row
        assert row[5].strip().startswith("yes" if objective.expectation else "no"), row
    if objective.chooses_mask:
        return
    options = dict(options_of(objective, without=objective.from_host).model_fields)
    if objective.mask:
        options |= options_of(mask_class(objective.mask, "mask"), without=FROM_RUN).model_fields
    written = {}
    for row in rows:
        written |= dict(re.findall(r"`(\w+)` \(([^)]*)\)", row[3]))
    assert written == {
        name: "needed" if field.is_required() else _shown(field.default) for name, field in options.items()
    }


def _shown(default):
    return default if isinstance(default, str) else f"{default:g}"


def test_no_list_repeats_the_names_of_the_losses():
    """Adding an objective is one file; only the generated and tested tables name them all."""
    for path in ("pyproject.toml", "README.md", "sparsepo_plugin/config.py", "sparsepo_plugin/hosts/openrlhf/loss.py"):
        text = (ROOT / path).read_text()
        named = [name for name in OURS if re.search(rf"[`\"' ]{name}[`\"',]", text)]
        assert len(named) <= 2, f"{path} names {named}"


def test_references_name_every_work_that_is_cited():
    references = (ROOT / "docs/references.md").read_text()
    sources = [
        *ROOT.glob("sparsepo_plugin/**/*.py"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.yaml"),
        ROOT / "README.md",
    ]
    cited = {name for path in sources for name in re.findall(r"(\w+) et al", path.read_text())}
    cited |= {name for path in sources for name in re.findall(r"\(([A-Z]\w+) \d{4}[,)]", path.read_text())}
    assert {"Rafailov", "Christopoulou", "Mitchell"} <= cited
    assert [name for name in sorted(cited) if name not in references] == []
    entries = references.split("\n- ")[1:]
    assert len(entries) > 12
    assert all("](http" in entry for entry in entries)


def test_links_of_the_readme_lead_from_anywhere_to_files_that_there_are():
    """An index shows it without the repository around it."""
    repository = PROJECT["urls"]["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    links = re.findall(r"(?:\]\(|--requirement |-r )([^)\s]+)", README)
    ours = [link for link in links if link.startswith((repository, raw))]
    assert len(ours) >= 8 and all(link.startswith("https://") for link in links)
    for link in ours:
        path = re.sub(r"^(/blob|/tree)?/main/", "", link.removeprefix(repository).removeprefix(raw))
        assert (ROOT / path).exists(), link


def test_an_index_shows_the_readme():
    """As PyPI renders it: the pictures are there, by absolute address, and the table of cost is one."""
    markdown = pytest.importorskip("readme_renderer.markdown")
    shown = markdown.render(README)
    assert "<table>" in shown and "<h2" in shown
    pictures = re.findall(r'<img[^>]* src="([^"]+)"', shown)
    assert pictures and all(address.startswith("https://") for address in pictures)


def test_messages_of_the_page_of_errors_are_those_of_the_code():
    code = "".join(re.sub(r'"\s*f?"', "", path.read_text()) for path in ROOT.glob("sparsepo_plugin/**/*.py"))
    messages = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(messages) > 20
    assert [message for message in messages if message not in code] == []


def test_the_version_is_said_once_more_where_it_must_be():
    version, changes = PROJECT["version"], (ROOT / "CHANGELOG.md").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.stem)
def test_files_of_the_forge_are_yaml_and_name_targets_that_there_are(path):
    settings = yaml.safe_load(path.read_text())
    assert settings
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in re.findall(r"run: make (.+)", path.read_text()):
        assert set(command.split()) <= targets


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: ([a-z-]+)$", text, re.MULTILINE)) - {"test-host", "bench-cpu"}
    explained = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert targets == explained


@pytest.mark.parametrize("name", ["tokens", "divergence", "config", "registry"])
def test_examples_of_public_names(name):
    """What docstrings show is what comes out."""
    found = doctest.testmod(importlib.import_module(f"sparsepo_plugin.{name}"), optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed
