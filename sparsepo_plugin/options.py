"""A constructor's parameters as options: which there are, whether values fit them, and the instance they make."""

import inspect
import re
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from .errors import SparsePOError, fault, naming_faults, shown

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

# YAML 1.1 reads 2e-4, which has no point, as text.
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def options_of(cls: type, without: Iterable[str] = ()) -> type[BaseModel]:
    """A model of the options that a constructor takes, typed by its annotations; `lambda_` is the key `lambda`.

    Args:
        cls: A mask's or objective's class.
        without: Parameters that are no options.

    Raises:
        SparsePOError: an annotation is no type that a value can be checked against.
    """
    meanings = _meanings(cls)
    fields: dict[str, Any] = {}
    try:
        hints = get_type_hints(cls.__init__, include_extras=True)
        for key, parameter in parameters(cls).items():
            if key not in without:
                default = ... if parameter.default is parameter.empty else parameter.default
                field = Field(default, description=meanings.get(parameter.name))
                fields[key] = (hints.get(parameter.name, Any), field)
        return create_model(cls.__name__, __config__=STRICT, **fields)
    except Exception as error:
        raise SparsePOError(f"the constructor of {cls.__module__}:{cls.__name__}: {fault(error)}") from error


def describe(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """Key, type, default and meaning of each option, as text; those of a class before those that it inherits."""
    order = dict.fromkeys(key for cls in model.__mro__ for key in inspect.get_annotations(cls))
    fields = [(key, model.model_fields[key]) for key in order if key in model.model_fields]
    return [
        (
            key,
            _type_text(field.annotation, field.metadata),
            "needed" if field.is_required() else _value_text(field.default),
            field.description or "",
        )
        for key, field in fields
    ]


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Parameters of a constructor that can be given by name, by the key that sets them."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(cls).parameters.values()
    return {parameter.name.rstrip("_"): parameter for parameter in found if parameter.kind in named}


def construct(cls: type, options: dict[str, Any], what: str, where: str) -> Any:
    """An instance, or one line: what its constructor refuses, or the place of its fault.

    Args:
        cls: A mask's or objective's class.
        options: Values by key.
        what: What is made, for faults.
        where: Section of its options, which is put before the option that a refusal names.
    """
    names = {key: parameter.name for key, parameter in parameters(cls).items()}
    with naming_faults(f"{what} cannot be made", inspect.getsourcefile(cls)):
        made = within(where, cls, **{names.get(key, key): value for key, value in options.items()})
    if not hasattr(made, "_parameters"):
        raise SparsePOError(f"{what} cannot be made: its constructor does not call super().__init__()")
    return made


def within(where: str, call: Callable[..., Any], *args: Any, **values: Any) -> Any:
    """The result of a call whose errors begin with an option; the section's name is put before it."""
    try:
        return call(*args, **values)
    except SparsePOError as error:
        raise SparsePOError(f"{where}.{error}", error.about) from error


def read_mapping(section: Any, where: str) -> dict[str, Any]:
    """A section as YAML gave it, numbers such as 2e-4 read as such; None is an empty one.

    Raises:
        SparsePOError: it is no mapping.
    """
    if section is not None and not isinstance(section, dict):
        raise SparsePOError(f"{where}: a mapping of keys is needed, not {shown(section)}")
    return _numbers(section or {})


def validate(model: type[BaseModel], values: dict[str, Any], where: str, allowed: Iterable[str] = ()) -> BaseModel:
    """The values, checked.

    Args:
        model: Their types.
        values: What the YAML sets.
        where: Section that they stand in.
        allowed: Keys of that section, for messages; by default those of the model.

    Raises:
        SparsePOError: in one line, every key that is unknown or does not fit.
    """
    try:
        return model(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join([where, *(str(part) for part in problem["loc"][:1])])
            if problem["type"] == "missing":
                lines.append(f"{key} is needed: it has no default")
            elif problem["type"] == "extra_forbidden":
                lines.append(
                    f"{key} is not a key of this section: allowed are {', '.join(allowed or model.model_fields)}"
                )
            else:
                lines.append(f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {shown(problem['input'])}")
        raise SparsePOError("; ".join(dict.fromkeys(lines))) from None


def _meanings(cls: type) -> dict[str, str]:
    """What the `Args:` of a class docstring in Google's style say of each parameter."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Args:\n")
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", section.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _type_text(annotation: Any, limits: Iterable[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0], arguments[1:])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(map(_type_text, arguments))
    if origin is list:
        return f"list of {_type_text(*arguments)}"
    name = "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{signs[key]} {getattr(limit, key):g}" for limit in limits for key in signs if hasattr(limit, key)]
    return " ".join([name, " and ".join(bounds)]).rstrip()


def _value_text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _numbers(entry) for key, entry in value.items()}
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
