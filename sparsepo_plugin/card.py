"""The model card of a finished run: README.md in its folder, as model hubs show it."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .checkpoint import DESCRIPTION, WEIGHTS, RunDescription, write_whole
from .config import objective_class
from .record import last_metrics

CARD = "README.md"
TAGS = ("sparsepo", "preference-optimization", "dpo")

_HOSTS = {"openrlhf": "OpenRLHF", "trl": "TRL", "axolotl": "Axolotl"}
_CITATION = """\
@inproceedings{christopoulou-etal-2025-sparsepo,
    title = "{S}parse{PO}: Controlling Preference Alignment of {LLM}s via Sparse Token Masks",
    author = "Christopoulou, Fenia and Cardenas, Ronald and Lampouras, Gerasimos and Bou-Ammar, Haitham and Wang, Jun",
    booktitle = "Findings of the Association for Computational Linguistics: EMNLP 2025",
    year = "2025",
    pages = "25477--25503",
    url = "https://aclanthology.org/2025.findings-emnlp.1389/"
}"""


def write_card(folder: str | Path, description: RunDescription, data: Sequence[str]) -> None:
    """Write `README.md` beside the model of a finished run, over the one that a library has left there.

    Args:
        folder: Where the model and the run's metrics are.
        description: Of the run.
        data: Files, folders or hub names of the training pairs.
    """
    text = card_text(description, data, last_metrics(folder), Path(folder).resolve().name)
    write_whole(Path(folder) / CARD, lambda path: path.write_text(text))


def card_text(description: RunDescription, data: Sequence[str], results: dict[str, dict[str, Any]], name: str) -> str:
    """A model card: front matter, base model, data, the loss with every option, results, versions, citation.

    Args:
        description: Of the run.
        data: Files, folders or hub names of the training pairs.
        results: The last numbers of each split, as `last_metrics` reads them.
        name: Of the model.
    """
    loss = description.loss
    method = (inspect.getdoc(objective_class(loss.loss)) or loss.loss).partition("\n")[0]
    versions = "\n".join(f"- {package} {version}" for package, version in description.versions.items())
    parts = [
        f"---\n{_front_matter(description, data)}---",
        f"# {name}",
        f"Aligned from `{description.base_model}` on preference pairs with `loss: {loss.loss}` of sparsepo-plugin, in "
        f"{_HOSTS.get(description.host, description.host)}. {method} {_reference(description)}",
        "## Data",
        "\n".join(f"- `{source}`" for source in data),
        "## Loss",
        f"Every option, defaults included:\n\n```yaml\n{_yaml(loss.model_dump(mode='json', exclude_none=True))}```",
        _mask_note(description),
        "## Results",
        _results(results),
        "## Versions",
        versions,
        "## Citation",
        f"```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(description: RunDescription, data: Sequence[str]) -> str:
    """Metadata of a hub, which wants its own names: what lies on a disk is named in the text alone."""
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": list(TAGS)}
    if not os.path.exists(description.base_model):
        fields["base_model"] = description.base_model
    if named := [source for source in data if not os.path.exists(source) and source.count("/") == 1]:
        fields["datasets"] = named
    return _yaml(fields)


def _reference(description: RunDescription) -> str:
    if description.shared_reference:
        return "The reference is the model without its adapter."
    return f"The reference is `{description.reference}`." if description.reference else "No reference model is read."


def _mask_note(description: RunDescription) -> str:
    if not description.loss.masks:
        return ""
    return (
        f"The token masks are in `{WEIGHTS}` and described by `{DESCRIPTION}`; the model itself loads without them. "
        "`sparsepo_plugin.load_run(folder)` shows what they do to a text."
    )


def _results(results: dict[str, dict[str, Any]]) -> str:
    """A table of the last numbers, a column for each split."""
    if not results:
        return "No numbers were logged."
    names = dict.fromkeys(name for row in results.values() for name in row if name not in ("step", "split"))
    header = [f"{split}, step {row['step']}" for split, row in results.items()]
    rows = [[f"`{name}`", *(_number(row.get(name)) for row in results.values())] for name in names]
    return "\n".join("| " + " | ".join(row) + " |" for row in [["", *header], ["---"] * (len(header) + 1), *rows])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
