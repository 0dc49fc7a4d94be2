"""How Axolotl's prompt strategies join prompt and response, for whoever asks a finished run."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from axolotl.prompt_strategies.dpo import load

from ...texts import Joining

# What a strategy is shown in place of a row's texts; it takes them from columns of its own choice.
_PROMPT, _CHOSEN, _REJECTED, _SYSTEM = "PROMPT", "CHOSEN", "REJECTED", "SYSTEM"
_COLUMNS = {
    _PROMPT: ("prompt", "input", "question", "instruction", "messages"),
    _CHOSEN: ("chosen", "chosen_response"),
    _REJECTED: ("rejected", "rejected_response"),
    _SYSTEM: ("system",),
}
_FIELDS = {
    _PROMPT: ("field_prompt", "field_messages"),
    _CHOSEN: ("field_chosen",),
    _REJECTED: ("field_rejected",),
    _SYSTEM: ("field_system",),
}


def describe_joining(cfg: Any, tokenizer: Any, columns: list[str], joining: Joining) -> Joining:
    """What happens to the texts of a run's data.

    A strategy is a function from rows to rows. Most put fixed text around prompt and response, and what that is shows
    when one is given a row. Any other is said to be unknown.

    Args:
        cfg: Axolotl's configuration.
        tokenizer: The run's.
        columns: Of the data.
        joining: What TRL does with the texts that the strategies have made.
    """
    found = {_describe(cfg, index, tokenizer, columns, joining) for index in range(len(cfg["datasets"]))}
    return found.pop() if len(found) == 1 else _unknown(joining, "its data sets have different prompt strategies")


def _describe(cfg: Any, index: int, tokenizer: Any, columns: list[str], joining: Joining) -> Joining:
    dataset = cfg["datasets"][index]
    strategy = dataset.get("type")
    if not strategy:
        return joining
    name = "user_defined.default" if isinstance(strategy, Mapping) else strategy
    try:
        row = _shown(load(name, cfg, dataset_idx=index), _row(dataset, strategy, columns), tokenizer)
        around, *responses = (_template(row[key], mark) for key, mark in _ROLES.items())
        if responses[0] != responses[1]:
            raise ValueError("chosen and rejected differ in more than their text")
    except Exception as error:  # a strategy may do anything with a row, and with one that it does not know
        return _unknown(joining, f"Axolotl's prompt strategy {name} does more than put text around them ({error})")
    if joining.chat_template:
        return joining if (around, responses[0]) == (None, None) else _unknown(joining, f"{name} makes messages")
    return joining.model_copy(update={"input_template": around, "output_template": responses[0]})


_ROLES = {"prompt": _PROMPT, "chosen": _CHOSEN, "rejected": _REJECTED}


def _row(dataset: Mapping[str, Any], strategy: Any, columns: list[str]) -> dict[str, str]:
    """A row with its texts in every column that they may be read from, and a system message if the data has one."""
    settings = {**dataset, **(strategy if isinstance(strategy, Mapping) else {})}
    row = {}
    for mark, names in _COLUMNS.items():
        own = [settings[field] for field in _FIELDS[mark] if settings.get(field)]
        row |= {name: mark for name in (*names, *own) if mark != _SYSTEM or name in columns}
    return row


def _shown(transform: Any, row: dict[str, str], tokenizer: Any) -> dict[str, Any]:
    function: Callable = transform[0] if isinstance(transform, tuple) else transform
    given = {"tokenizer": tokenizer} if "tokenizer" in inspect.signature(function).parameters else {}
    return function(row, **given)


def _template(text: str, mark: str) -> str | None:
    """The format string around a text, None where there is nothing around it."""
    if text.count(mark) != 1 or any(other in text for other in _COLUMNS if other != mark):
        raise ValueError(f"{text!r} is made of a row whose text is {mark!r}")
    template = text.replace("{", "{{").replace("}", "}}").replace(mark, "{}")
    return None if template == "{}" else template


def _unknown(joining: Joining, reason: str) -> Joining:
    return joining.model_copy(update={"unknown": reason})
