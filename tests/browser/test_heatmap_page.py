"""The heatmap's page in a real browser: every control by mouse and by keyboard, against the run's tables.

The numbers that the page holds are compared with the tables in tests/unit; here, what it shows of them.
"""

import re

import pytest
from finished_runs import NASTY, PLAIN, finished_run, write_lines
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from typer.testing import CliRunner

from sparsepo_plugin import load_run
from sparsepo_plugin.analysis.heatmap import QUANTITIES
from sparsepo_plugin.cli import app

PAIRS = [PLAIN, *NASTY]
LABELS = list(QUANTITIES.values())
SIGNED = ("log_ratio", "masked_reward", "advantage")
LEVELS = 40
# Classes, colours and texts of the tokens of one response of the first pair.
LOOK = """
const tokens = document.querySelectorAll('.tokens')[arguments[0]];
return tokens.items.map((token) => ({text: token.textContent, level: token.className, tab: token.tabIndex}));
"""
CONTRASTS = """
const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const page = rgb(getComputedStyle(document.body).backgroundColor);
const found = {};
for (const kind of ["q", "n", "p"]) for (let i = 0; i <= 40; i++) {
  const probe = document.querySelector(".tokens").appendChild(document.createElement("span"));
  probe.className = i ? kind + i : "";
  const style = getComputedStyle(probe), back = rgb(style.backgroundColor);
  const [a, b] = [light(rgb(style.color)), light(back[3] === 0 ? page : back)];
  found[kind + i] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  probe.remove();
}
return found;
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs `sparsepo` and `tdpo`, pairs, and the pages of one run and of two."""
    folder = tmp_path_factory.mktemp("page")
    finished_run(folder / "sparsepo")
    finished_run(folder / "tdpo", "tdpo", seed=1)
    write_lines(folder / "pairs.jsonl", PAIRS)
    write_page(folder, "one")
    write_page(folder, "two", "--compare", str(folder / "tdpo"))
    return folder


def write_page(folder, name, *arguments, pairs="pairs.jsonl"):
    given = ["heatmap", str(folder / "sparsepo"), *arguments, "--pairs", str(folder / pairs)]
    done = CliRunner().invoke(app, [*given, "-o", str(folder / f"{name}.html")])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def chosen(folder):
    """What the run says of the first pair's chosen response."""
    return load_run(folder / "sparsepo", device="cpu").tokens(**PLAIN).of("chosen")


def expected_levels(values, end, signed):
    """A class for each value: zero has none, others a step of 1 to 40, and their sign where there are two colours."""
    levels = []
    for value in values:
        step = min(LEVELS, max(1, -int(-abs(value) / end * LEVELS // 1)))
        levels.append("" if value == 0 else f"{('n' if value < 0 else 'p') if signed else 'q'}{step}")
    return levels


def ends(browser):
    """The two numbers of the legend, and its colours in order."""
    low, high = browser.ask("return [...document.querySelectorAll('#legend span')].map((part) => part.textContent)")
    bar = browser.ask("return [...document.querySelectorAll('#legend i')].map((part) => part.className)")
    return low, high, bar


def shown(browser):
    """The numbers that are shown, by quantity, of each run; what a run does not have is a dash."""
    rows = browser.ask(
        "return [...document.querySelectorAll('#numbers tr')].map((row) => "
        "[...row.children].map((cell) => cell.textContent))"
    )
    header, *runs = rows
    return [{label: number(text) for label, text in zip(header, run, strict=True)} for run in runs]


def number(text):
    plain = text.replace("−", "-")
    return float(plain) if plain[-1:].isdecimal() and "→" not in plain else text


def printed(table, row):
    columns = {label: getattr(table, name) for name, label in QUANTITIES.items()}
    return {label: "–" if column is None else float(f"{column[row]:.5g}") for label, column in columns.items()}


@pytest.mark.parametrize("by", ["select", "keys in the select", "a number key"])
def test_every_quantity(by, browser, folder, chosen):
    """Texts, colours and legend; the last digits of a legend's end decide no more than which of two steps it is."""
    browser.open(folder / "one.html")
    select = Select(browser.find("#quantity"))
    assert [option.text for option in select.options] == [f"{i} {label}" for i, label in enumerate(LABELS, start=1)]
    for number, name in enumerate(QUANTITIES):
        if by == "select":
            select.select_by_index(number)
        elif by == "a number key":
            browser.press(str(number + 1))
        elif number:
            browser.find("#quantity").send_keys(Keys.ARROW_DOWN)
        look = browser.ask(LOOK, 0)
        assert [token["text"] for token in look] == chosen.text
        low, high, bar = ends(browser)
        end = float(high.removeprefix("≥ "))
        signed = name in SIGNED
        assert low == (f"{'≤ ' if '≥' in high else ''}−{high.removeprefix('≥ ')}" if signed else "0")
        steps = range(1, LEVELS + 1)
        negative = [f"n{i}" for i in reversed(steps)] if signed else []
        assert bar == [*negative, *(f"{'p' if signed else 'q'}{i}" for i in steps)]
        values = [float(f"{value:.5g}") for value in getattr(chosen, name).tolist()]
        assert [token["level"] for token in look] == expected_levels(values, end, signed)
        assert select.first_selected_option.text == f"{number + 1} {LABELS[number]}"


@pytest.mark.parametrize("by", ["mouse", "arrow key", "the key s"])
def test_each_response_scaled(by, browser, folder, chosen):
    browser.open(folder / "one.html")
    raw, scaled = browser.driver.find_elements("css selector", "[name=scale]")
    if by == "mouse":
        scaled.click()
    elif by == "arrow key":
        raw.send_keys(Keys.ARROW_RIGHT)
    else:
        browser.press("s")
    assert scaled.is_selected()
    values = [float(f"{value:.5g}") for value in chosen.log_ratio.tolist()]
    share = [(value - min(values)) / (max(values) - min(values)) for value in values]
    assert [token["level"] for token in browser.ask(LOOK, 0)] == expected_levels(share, 1, signed=False)
    assert ends(browser)[:2] == ("0, least", "1, most")
    browser.hover(browser.find(".tokens span"))
    (numbers,) = shown(browser)
    raw_text, scaled_text = numbers["log-ratio"].split(" → ")
    assert (number(raw_text), scaled_text) == (printed(chosen, 0)["log-ratio"], f"{share[0]:.3f}")
    browser.press("s")
    assert raw.is_selected() and ends(browser)[1] != "1, most"


def test_numbers_on_hover(browser, folder, chosen):
    browser.open(folder / "one.html")
    for row, token in enumerate(browser.driver.find_elements("css selector", ".tokens span")[:5]):
        browser.hover(token)
        assert shown(browser) == [printed(chosen, row)]


def test_numbers_on_focus_and_the_arrow_keys(browser, folder, chosen):
    """One stop of Tab a response; in it the arrow keys, Home and End go from token to token."""
    browser.open(folder / "one.html")
    assert [token["tab"] for token in browser.ask(LOOK, 0)] == [0] + [-1] * (len(chosen) - 1)
    for _ in range(5):  # quantity, colours, pair, prompt, and the tokens
        browser.press(Keys.TAB)
    assert at(browser) == ("chosen", 0)
    assert shown(browser) == [printed(chosen, 0)]
    focused = browser.driver.switch_to.active_element
    assert focused.get_attribute("aria-describedby") == "numbers"
    last = len(chosen) - 1
    moves = [
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_RIGHT, 2),
        (Keys.ARROW_LEFT, 1),
        (Keys.END, last),
        (Keys.ARROW_RIGHT, last),
    ]
    for key, row in [*moves, (Keys.HOME, 0), (Keys.ARROW_LEFT, 0)]:
        browser.press(key)
        assert at(browser) == ("chosen", row)
        assert shown(browser) == [printed(chosen, row)]
    browser.press(Keys.ARROW_DOWN)
    below = at(browser)[1]
    assert chosen.text[:below].count("\n") or below > 5, "the token under the first one begins another line"
    browser.press(Keys.ARROW_UP)
    assert at(browser) == ("chosen", 0)
    browser.press(Keys.ARROW_RIGHT, Keys.TAB)
    assert at(browser) == ("rejected", 0)
    browser.driver.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
    assert at(browser) == ("chosen", 1), "where it was left"
    browser.press(Keys.ESCAPE)
    assert not browser.find("#numbers").is_displayed()


def at(browser):
    """Whose token has the focus, and which it is."""
    return tuple(browser.ask("const t = document.activeElement; return [t.parentElement.side, +t.dataset.index]"))


def test_going_to_a_pair(browser, folder):
    """And from the keyboard into a text that runs from right to left, where the left arrow goes on."""
    browser.open(folder / "one.html", height=500)
    browser.find("#pair").send_keys(Keys.CONTROL, "a")
    browser.press("3", Keys.ENTER)
    browser.wait("return document.querySelectorAll('.pair')[2].getBoundingClientRect().top < 250")
    browser.wait("return document.querySelectorAll('.pair')[2].querySelector('.tokens span')")
    browser.ask("document.querySelectorAll('.pair')[2].querySelector('.tokens span').focus()")
    browser.press(Keys.ARROW_LEFT)
    assert at(browser) == ("chosen", 1)
    browser.press(Keys.ARROW_RIGHT)
    assert at(browser) == ("chosen", 0)


def test_texts_stay_texts(browser, folder):
    """Every token's text, character by character; nothing of it became an element, and no alert came up."""
    browser.open(folder / "one.html", height=3000)
    browser.wait("return document.querySelectorAll('.tokens').length === 6")
    run = load_run(folder / "sparsepo", device="cpu")
    tables = [run.tokens(**pair).of(side) for pair in PAIRS for side in ("chosen", "rejected")]
    for place, table in enumerate(tables):
        assert [token["text"] for token in browser.ask(LOOK, place)] == table.text
    prompts = browser.ask("return [...document.querySelectorAll('.prompt')].map((prompt) => prompt.textContent)")
    assert prompts == [pair["prompt"] for pair in PAIRS]
    assert browser.ask("return document.querySelectorAll('img, iframe, b, .tokens span *').length") == 0
    marks = browser.ask("return [...document.querySelectorAll('[data-mark]')].map((token) => token.dataset.mark)")
    assert {"↵", "⇥"} <= set("".join(marks)) and "␀␁␛" in "".join(marks)


def test_runs_beside_each_other(browser, folder, chosen):
    """The same token of both runs is marked and its numbers shown; a run without a quantity says so."""
    browser.open(folder / "two.html")
    other = load_run(folder / "tdpo", device="cpu").tokens(**PLAIN).of("chosen")
    heads = browser.ask("return [...document.querySelectorAll('h4:first-child')].map((head) => head.textContent)")
    assert heads[:4] == [
        f"{run} · {side} · {len(table)} tokens" for run, tables in both(folder).items() for side, table in tables
    ]
    browser.hover(browser.driver.find_elements("css selector", ".tokens span")[3])
    first, second = shown(browser)
    assert (first.pop(""), second.pop("")) == ("sparsepo", "tdpo")
    assert (first, second) == (printed(chosen, 3), printed(other, 3))
    marked = browser.ask("return [...document.querySelectorAll('.here, .twin')].map((token) => token.dataset.index)")
    assert marked == ["3", "3"]
    browser.press("3")
    absent = browser.ask(
        "return [...document.querySelectorAll('.absent')].map((head) => head.textContent).slice(0, 4)"
    )
    assert absent == ["", "", "has no m_u", "has no m_u"]


def both(folder):
    tables = {name: load_run(folder / name, device="cpu").tokens(**PLAIN) for name in ("sparsepo", "tdpo")}
    return {name: [(side, table.of(side)) for side in ("chosen", "rejected")] for name, table in tables.items()}


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark, browser, folder):
    """Text on every colour, and on none, is 4.5 to 1 or more (WCAG AA); the more, the further from the page's own."""
    browser.open(folder / "one.html", dark=dark)
    contrasts = browser.ask(CONTRASTS)
    assert len(contrasts) == 3 * (LEVELS + 1)
    assert min(contrasts.values()) >= 4.5
    for selector in (".sub", ".prompt", "h4", "label", "#legend span"):
        assert browser.ask(TEXT_CONTRAST, selector) >= 4.5, selector


TEXT_CONTRAST = """
const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = (text) => {
  const c = text.match(/[\\d.]+/g).map(Number);
  return 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
};
let element = document.querySelector(arguments[0]), back = element;
while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(back).backgroundColor)];
return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, False), (1280, True)])
def test_a_picture_is_kept(width, dark, browser, folder):
    """And no page is wider than its window."""
    browser.open(folder / "two.html", width=width, dark=dark)
    browser.ask("document.querySelectorAll('.tokens span')[3].focus()")
    assert browser.ask("return document.documentElement.scrollWidth") <= width
    browser.shoot(f"heatmap_{width}{'_dark' if dark else ''}")
    place = browser.ask("return document.activeElement.getBoundingClientRect().bottom")
    assert place < browser.ask("return document.querySelector('#numbers').getBoundingClientRect().top")


@pytest.fixture(scope="module")
def large(folder):
    """200 pairs of responses of about a thousand tokens."""
    row = {**PLAIN, "chosen": PLAIN["chosen"] * 47, "rejected": PLAIN["rejected"] * 72}
    write_lines(folder / "large.jsonl", [row])
    write_page(folder, "large", pairs="large.jsonl")
    text = (folder / "large.html").read_text(encoding="utf-8")
    (article,) = re.findall(r"<article.*?</article>", text, re.DOTALL)
    path = folder / "large.html"
    path.write_text(text.replace(article, article * 200), encoding="utf-8")
    return path


def test_two_hundred_pairs_of_a_thousand_tokens(large, browser):
    """Few of them are drawn at a time. Times are of a busy machine too: on a free one they are a quarter of these."""
    browser.open(large)
    counts = browser.ask("return [...document.querySelectorAll('.tokens')].map((tokens) => tokens.items.length)")
    assert browser.ask("return document.querySelectorAll('.pair').length") == 200
    assert all(900 < count < 1200 for count in counts)
    assert len(counts) <= 6
    paint = browser.ask("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 2000
    recolour = browser.ask(
        "const t = performance.now(); choose(1); document.body.offsetHeight; return performance.now() - t"
    )
    assert recolour < 1000
    for number in (150, 149, 20):  # what is drawn above a pair does not move it
        browser.find("#pair").send_keys(Keys.CONTROL, "a")
        browser.press(str(number), Keys.ENTER)
        browser.wait(f"return document.querySelectorAll('.pair')[{number - 1}].querySelector('.tokens span')")
        browser.wait("return new Promise((done) => setTimeout(() => done(true), 300))")
        top = browser.ask(f"return document.querySelectorAll('.pair')[{number - 1}].getBoundingClientRect().top")
        assert 60 < top < 200
        assert browser.ask("return document.querySelectorAll('.tokens').length") <= 10
