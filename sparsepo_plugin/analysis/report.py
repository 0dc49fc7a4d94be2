"""`sparsepo report`: a run on one page, in one file."""

from html import escape
from pathlib import Path

import yaml

from ..checkpoint import RunDescription, load_description
from ..record import last_metrics, read_metrics
from . import heatmap
from .curves import draw_curves
from .distributions import distributions_of, draw_distributions
from .files import check_output, names_of, write_lines
from .page import page
from .pairs import ask, check_count, read_pairs
from .plots import Figure, svg

COUNT = 8  # pairs that are shown


def report(
    run: Path, output: Path, pairs: Path | None = None, count: int | None = None, allow_code: bool = False
) -> None:
    """Write a page with a run's last numbers, its curves, its options and, with pairs, its masks and tokens.

    Raises:
        SparsePOError: the run or the pairs cannot be read, matplotlib is not installed, or the output cannot be
            written.
    """
    check_output(output)
    check_count(count, pairs)
    description, (name,) = load_description(run), names_of([run])
    sections = {"Last numbers": _numbers(run), "Curves": _curves(name, run)}
    if pairs is not None:
        sections |= _of_pairs(name, run, pairs, count, allow_code)
    sections["Options"] = f"<pre>{escape(_options(description))}</pre>"
    body = "\n".join(f"<h2>{title}</h2>\n{html}" for title, html in sections.items() if html)
    write_lines(output, [page(name, _subtitle(description), f'<div class="report">\n{body}\n</div>')])


def _subtitle(described: RunDescription) -> str:
    reference = "the policy without its adapter" if described.shared_reference else described.reference or "none"
    return f"loss: {described.loss.loss}, from {described.base_model}, in {described.host}; reference: {reference}"


def _numbers(run: Path) -> str:
    """A table of the last numbers, a column for each split."""
    last = last_metrics(run)
    if not last:
        return "<p>No numbers were logged.</p>"
    names = dict.fromkeys(name for row in last.values() for name in row if name not in ("step", "split"))
    header = "".join(f"<th>{escape(split)}, step {row['step']}</th>" for split, row in last.items())
    rows = "\n".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{_number(row.get(name))}</td>' for row in last.values())}</tr>"
        for name in names
    )
    return f"<div class='scroll'><table><thead><tr><th></th>{header}</tr></thead>\n<tbody>{rows}</tbody></table></div>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _curves(name: str, run: Path) -> str:
    rows = read_metrics(run)
    return _figure(draw_curves([name], [rows]), "curves of training and evaluation") if rows else ""


def _of_pairs(name: str, run: Path, pairs: Path, count: int | None, allow_code: bool) -> dict[str, str]:
    asked = read_pairs(pairs, COUNT if count is None else count)
    tables = list(ask(run, asked, allow_code))
    found = distributions_of(name, tables)
    masks = _figure(draw_distributions(found), "distributions of mask values") if found else ""
    return {"Values of the masks": masks, "Tokens": heatmap.section([name], asked, [tables])}


def _figure(figure: Figure, label: str) -> str:
    return f'<div class="figure" role="img" aria-label="{label}">{svg(figure)}</div>'


def _options(description: RunDescription) -> str:
    return yaml.safe_dump(description.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
