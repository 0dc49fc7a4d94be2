"""A page in one file: style and script of our own inside it, nothing fetched, and no other script runs."""

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from string import Template
from typing import Any


def page(title: str, subtitle: str, body: str) -> str:
    """A whole page.

    Args:
        title: Text.
        subtitle: Text.
        body: HTML, in which every text is escaped.
    """
    script = part("heatmap.js")
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fill(
        "page.html",
        title=escape(title),
        subtitle=escape(subtitle),
        body=body,
        style=part("style.css"),
        script=script,
        hash=hashed,
    )


def fill(name: str, **values: object) -> str:
    """A template of ours with its places filled."""
    return Template(part(name)).substitute(values)


def part(name: str) -> str:
    """A file beside this one, in `page/`."""
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")


def embedded(values: Any) -> str:
    """JSON for a script element of data: nothing in it can end the element."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
