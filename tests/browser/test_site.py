"""The site is built without a warning, and can be read and searched in a real browser, wide and narrow."""

import os
import subprocess
import sys
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from selenium.webdriver.common.keys import Keys

pytest.importorskip("sphinx")

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
WIDTHS = {"wide": 1440, "narrow": 390}
# The widest that a page is scrolled to, and what sticks out of it without a box of its own that scrolls.
STICKING_OUT = """
const scrolls = (e) => e && (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll('article *')].filter((e) => e.getClientRects().length
    && e.getBoundingClientRect().right > wide + 1 && !scrolls(e.parentElement) && !scrolls(e))
    .map((e) => e.tagName + ': ' + e.textContent.slice(0, 60));
"""
CODE = """
return [...document.querySelectorAll('article .highlight pre')].map((e) => {
  const style = getComputedStyle(e);
  return [parseFloat(style.fontSize), /mono|code|consol/i.test(style.fontFamily)];
});
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Its folder; warnings, such as a link to a page or a heading that there is not, are errors."""
    folder = tmp_path_factory.mktemp("site")
    build = [*(sys.executable, "-m", "sphinx", "--builder", "html"), "--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run(
        [*build, "--doctree-dir", folder / "doctrees", ROOT / "docs", folder / "html"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder / "html"


class Quiet(SimpleHTTPRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_):
        pass


def pages(folder):
    special = {"search.html", "genindex.html", "py-modindex.html"}
    return sorted(path for path in folder.rglob("*.html") if path.name not in special and "_static" not in path.parts)


def test_every_page_of_the_folder_is_in_it(site):
    expected = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {path.relative_to(site) for path in pages(site)} == expected
    from sparsepo_plugin import __all__ as names

    reference = (site / "reference/api.html").read_text()
    assert [name for name in names if f'id="sparsepo_plugin.{name}"' not in reference] == []


@pytest.fixture
def window(chromium):
    """The browser, whose console must stay empty."""
    chromium.driver.get("about:blank")
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_and_code_is_readable(width, site, window):
    for page in pages(site):
        window.open(page, width=WIDTHS[width])
        name = page.relative_to(site).as_posix()
        assert window.ask("return document.documentElement.scrollWidth") <= WIDTHS[width], name
        assert window.ask(STICKING_OUT) == [], name
        for size, monospaced in window.ask(CODE):
            assert size >= 11 and monospaced, name
        assert VERSION in window.driver.title, name
    for name in ("index", "tutorial", "reference/api"):
        window.open(site / f"{name}.html", width=WIDTHS[width])
        window.shoot(f"site_{name.replace('/', '_')}_{width}")


@pytest.fixture
def address(site):
    """Of the site, served as a web server does: its search fetches pages, which browsers do not allow of files."""
    handler = partial(Quiet, directory=site)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_search_finds_a_key(address, window):
    window.driver.get(f"{address}/index.html")
    window.find("input[name=q]").send_keys("mask_weight_decay", Keys.ENTER)
    window.wait("return !!document.querySelector('#search-results ul.search li a')")
    found = window.ask("return [...document.querySelectorAll('#search-results li a')].map((link) => link.textContent)")
    assert "Keys of the YAML" in found
    window.shoot("site_search")


def test_it_is_readable_in_the_dark(site, window):
    window.open(site / "tutorial.html", dark=True)
    dark, light = window.ask(
        "const style = getComputedStyle(document.body), largest = (c) => Math.max(...c.match(/\\d+/g).slice(0, 3));"
        "return [style.backgroundColor, style.color].map(largest);"
    )
    assert dark < 80 < 140 < light
