"""What a heatmap's page holds: numbers of the run's tables to the printed digits, and texts as nothing but text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from finished_runs import NASTY, PLAIN, finished_run, write_lines
from typer.testing import CliRunner

from sparsepo_plugin import TokenTable, load_run
from sparsepo_plugin.analysis.heatmap import QUANTITIES, section
from sparsepo_plugin.analysis.pairs import Pair
from sparsepo_plugin.cli import app

PAIRS = [PLAIN, *NASTY]


class Page(HTMLParser):
    """Elements of a page and the text of its scripts, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag == "script":
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data

    @property
    def data(self):
        """The set-up, and each pair."""
        setup, *pairs = map(json.loads, self.scripts[:-1])
        return setup, pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs `sparsepo` and `tdpo`, and the pairs."""
    folder = tmp_path_factory.mktemp("heatmap")
    finished_run(folder / "sparsepo")
    finished_run(folder / "tdpo", "tdpo", seed=1)
    write_lines(folder / "pairs.jsonl", PAIRS)
    return folder


@pytest.fixture
def page(folder, tmp_path):
    """What the command writes."""

    def page(*arguments):
        path = tmp_path / "heatmap.html"
        done = CliRunner().invoke(app, ["heatmap", *arguments, "--pairs", f"{folder}/pairs.jsonl", "-o", str(path)])
        assert done.exit_code == 0, done.output
        return path.read_text(encoding="utf-8")

    return page


def test_numbers_are_the_tables(page, folder):
    """Five digits, of each run, pair and response."""
    setup, pairs = Page(page(str(folder / "sparsepo"), "--compare", str(folder / "tdpo"))).data
    assert setup["runs"] == ["sparsepo", "tdpo"]
    assert len(pairs) == len(PAIRS)
    for number, name in enumerate(setup["runs"]):
        run = load_run(folder / name, device="cpu")
        for pair, found in zip(PAIRS, pairs, strict=True):
            assert found["prompt"] == pair["prompt"]
            for side in ("chosen", "rejected"):
                table, shown = run.tokens(**pair).of(side), found["runs"][number][side]
                assert shown.pop("text") == table.text
                columns = {quantity: getattr(table, quantity) for quantity in QUANTITIES}
                columns = {quantity: column for quantity, column in columns.items() if column is not None}
                assert shown.keys() == columns.keys()
                for quantity, column in columns.items():
                    assert [f"{value:.5g}" for value in shown[quantity]] == [f"{v:.5g}" for v in column.tolist()]


def test_every_text_stays_text(page, folder):
    """No element comes of a response, no script element ends early, and only our script may run."""
    text = page(str(folder / "sparsepo"))
    read = Page(text)
    ours = {"html", "head", "meta", "link", "title", "style", "body", "header", "h1", "h3", "p", "main", "section"}
    ours |= {"div", "label", "select", "fieldset", "legend", "input", "kbd", "script", "article", "aside"}
    assert {tag for tag, _ in read.tags} == ours
    assert len(read.scripts) == 2 + len(PAIRS)
    assert [attrs.get("type") for tag, attrs in read.tags if tag == "script"][-1] is None
    (policy,) = [attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(read.scripts[-1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"https?://|@import|url\(", text)


def test_a_files_name_is_text_too(page, folder):
    finished_run(folder / "<i>run")
    read = Page(page(str(folder / "<i>run")))
    assert "i" not in {tag for tag, _ in read.tags}
    assert read.data[0]["runs"] == ["<i>run"]


def table(**columns):
    values = {name: torch.tensor(column) for name, column in columns.items()}
    count = len(next(iter(columns.values())))
    text, response, labels = ["w"] * count, ["chosen"] * count, torch.zeros(count, dtype=torch.long)
    return TokenTable(text, response, labels, logps=torch.zeros(count), **values)


def colours(*tables):
    pairs = [Pair("p", "c", "r", f"line {number}") for number in range(len(tables))]
    setup, _ = Page(section(["run"], pairs, [list(tables)]) + "<script></script>").data
    return {quantity.pop("name"): quantity for quantity in setup["quantities"]}


def test_colours_end_at_the_99th_percentile_of_all_pairs_and_runs():
    """Of the sizes that are not zero: of 1, 2, …, 100 in two tables it is 99."""
    halves = [torch.arange(1.0, 51), torch.arange(51.0, 101)]
    found = colours(
        *(table(log_ratio=(-half).tolist() + [0.0] * 900, kl=half.tolist() + [0.0] * 900) for half in halves)
    )
    assert found["log_ratio"] == {"label": "log-ratio", "signed": True, "end": 99.0, "clipped": True}
    assert found["kl"] == {"label": "token KL", "signed": False, "end": 99.0, "clipped": True}
    assert found.keys() == {"log_ratio", "kl", "masked_reward", "masked_kl"}, "what no run has is not offered"


def test_colours_of_one_value_of_zeros_and_of_rounding():
    """A KL of −1e-7 is zero and no sign; a mask whose weights are negative has two colours."""
    assert colours(table(kl=[0.5, 0.5]))["kl"]["clipped"] is False
    assert colours(table(kl=[0.0]))["kl"] == {"label": "token KL", "signed": False, "end": 1.0, "clipped": False}
    assert colours(table(kl=[-1e-7, 1.0]))["kl"]["signed"] is False
    assert colours(table(mask_reward=[-0.5, 1.0]))["mask_reward"]["signed"] is True


def test_messages_are_shown_with_their_roles():
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "<b>?"}]
    _, (pair,) = Page(
        section(["run"], [Pair(talk, "c", "r", "line 1")], [[table(kl=[1.0])]]) + "<script></script>"
    ).data
    assert pair["prompt"] == "system: Be kind.\n\nuser: <b>?"
