"""Settings of the site, which `make docs` builds with warnings as errors."""

import re
import sys
import tomllib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
author = "the authors of sparsepo-plugin"
version = release = PROJECT["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
highlight_language = "text"

html_theme = "furo"
html_title = f"{project} {release}"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False

_OUTWARD = re.compile(r"(?<=\]\()(\.\./[^)#\s]*)")


def link_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links that leave `docs/` into those of the repository's pages; as files they work for who reads them there.

    Raises:
        SphinxError: there is no such file.
    """
    folder = DOCS.joinpath(page).parent

    def moved(found: re.Match) -> str:
        path = (folder / found[1]).resolve()
        if not path.exists():
            raise SphinxError(f"{page}: {found[1]} does not exist")
        if path.is_relative_to(DOCS):
            return found[1]
        kind = "tree" if path.is_dir() else "blob"
        return f"{PROJECT['urls']['Repository']}/{kind}/main/{path.relative_to(ROOT).as_posix()}"

    source[0] = _OUTWARD.sub(moved, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_to_repository)
