"""The report's page in a real browser: complete, quiet, and no wider than its window; pictures of it are kept."""

import pytest
from finished_runs import NASTY, PLAIN, finished_run, write_lines, write_metrics
from typer.testing import CliRunner

from sparsepo_plugin.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The report of a run, with pairs and without."""
    folder = tmp_path_factory.mktemp("report")
    finished_run(folder / "run")
    write_metrics(folder / "run", steps=20)
    write_lines(folder / "pairs.jsonl", [PLAIN, *NASTY])
    for name, pairs in (("bare", []), ("whole", ["--pairs", str(folder / "pairs.jsonl")])):
        arguments = ["report", str(folder / "run"), *pairs, "-o", str(folder / f"{name}.html")]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder


@pytest.mark.parametrize("width", [1280, 400])
def test_whole(width, browser, folder):
    """The heatmap in it answers as on a page of its own."""
    browser.open(folder / "whole.html", width=width, height=2600)
    assert browser.ask("return document.documentElement.scrollWidth") <= width
    browser.press("3")
    assert "m_u" in browser.find("#legend").get_attribute("aria-label")
    browser.hover(browser.find(".tokens span"))
    assert browser.find("#numbers .chosen-quantity").text == "m_u"
    browser.shoot(f"report_{width}")


def test_without_pairs(browser, folder):
    browser.open(folder / "bare.html", width=400)
    assert browser.ask("return document.querySelectorAll('svg').length") == 1
    assert browser.ask("return document.documentElement.scrollWidth") <= 400
