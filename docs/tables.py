"""What the pages of docs/ say of keys, options, commands and versions, from the code; run it after a change of these.

python docs/tables.py
"""

import tomllib
from pathlib import Path

import typer
from packaging.requirements import Requirement
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from sparsepo_plugin.cli import app
from sparsepo_plugin.config import FROM_RUN, mask_class, objective_class, section_keys
from sparsepo_plugin.hosts.openrlhf.patched import TESTED
from sparsepo_plugin.options import describe, options_of
from sparsepo_plugin.registry import MASKS, OBJECTIVES

ROOT = Path(__file__).parent.parent
Row = tuple[str, ...]


def table(header: Row, rows: list[Row]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def option_rows(*models: type[BaseModel]) -> list[Row]:
    """Key, type, default and meaning."""
    rows = [row for model in models for row in describe(model)]
    return [
        (f"`{key}`", kind, f"`{default}`" if default != "needed" else default, text)
        for key, kind, default, text in rows
    ]


def own(cls: type) -> bool:
    """Whether a class is this project's, and not of a package that happens to be installed."""
    return cls.__module__.startswith("sparsepo_plugin.")


def section_table(loss: str) -> str:
    """All keys of a loss's section but the options of its mask."""
    objective = objective_class(loss)
    rows = option_rows(section_keys(objective), options_of(objective, without=objective.from_host))
    return table(("key", "type", "default", "meaning"), rows)


def objective_options() -> str:
    """Every option of every objective, by loss."""
    rows = []
    for name in OBJECTIVES.names():
        cls = objective_class(name)
        if own(cls):
            rows += [(f"`{name}`", *row) for row in option_rows(options_of(cls, without=cls.from_host))]
    return table(("loss", "option", "type", "default", "meaning"), rows)


def mask_options() -> str:
    """Every mask with its summary, and its options."""
    rows = []
    for name in MASKS.names():
        cls = mask_class(name, "mask")
        if own(cls):
            summary = (cls.__doc__ or "").strip().partition("\n")[0]
            rows += [(f"`{name}`", "", "", "", summary)]
            rows += [("", *row) for row in option_rows(options_of(cls, without=FROM_RUN))]
    return table(("mask", "option", "type", "default", "meaning"), rows)


def commands() -> str:
    """Every command with its arguments and options, as typer documents them."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group, info_name="sparsepo"), name="sparsepo", indent=1)
    return text.replace("```console", "```text").strip()


def pins(file: str) -> dict[str, str]:
    """Packages of a file of pins, with their versions."""
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def versions() -> str:
    """The range of each release that pyproject.toml allows, and those that the tests run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [Requirement(line) for line in (*project["dependencies"], *extras["openrlhf"], *extras["trl"])]
    allowed = {each.name: str(each.specifier) for each in needed}
    oldest, newest = pins("constraints-oldest.txt"), pins("constraints-cpu.txt")
    names = {
        "torch": "PyTorch",
        "transformers": "transformers",
        "deepspeed": "DeepSpeed",
        "trl": "TRL",
        "peft": "PEFT",
    }
    rows = [(name, f"`{allowed[key]}`", oldest[key], newest[key]) for key, name in names.items()]
    minor = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    rows.append(("Python", f"`{project['requires-python']}`", minor[0], minor[-1]))
    rows.insert(0, ("OpenRLHF", "those that the patches fit", TESTED[0], TESTED[-1]))
    axolotl = pins("constraints-axolotl-cpu.txt")["axolotl"]
    rows.append(("Axolotl", f"`=={axolotl}`", axolotl, axolotl))
    return table(("", "allowed", "oldest tested", "newest tested"), rows)


def sections() -> list[tuple[Path, str, str]]:
    """File, name and text of every generated table."""
    methods = ROOT / "docs/methods.md"
    return [
        (ROOT / "docs/install.md", "versions", versions()),
        (ROOT / "docs/reference/keys.md", "keys", section_table("sparsepo")),
        (ROOT / "docs/reference/cli.md", "cli", commands()),
        (methods, "objectives", objective_options()),
        (methods, "masks", mask_options()),
    ]


def fill(path: Path, name: str, text: str) -> None:
    """Put `text` between a file's `<!-- name -->` and `<!-- /name -->`."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = path.read_text().split(opening)
    path.write_text(f"{before}{opening}\n{text}\n{rest[rest.index(closing) :]}")


if __name__ == "__main__":
    for part in sections():
        fill(*part)
