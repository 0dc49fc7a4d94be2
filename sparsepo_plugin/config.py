"""The `sparsepo:` section of a host's YAML: every key typed, documented and with an effect."""

import inspect
import re
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, create_model
from torch import nn

from .errors import SparsePOError
from .registry import MASKS, OBJECTIVES

# Constructor parameters of a mask that the run supplies; all others are options of the YAML.
SUPPLIED = ("hidden_size", "num_layers", "seed")

# Fields that no key of the YAML sets under this name.
_INTERNAL = {"loss", "objective", "options"}

# Keys that a loss with a mask of its own, or none, has too.
_ANY_LOSS = ("chunk_size", "plugins")

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

# YAML 1.1 reads 2e-4, which has no point, as text.
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class SparsePOConfig(BaseModel):
    """Keys of the section that bears the loss's name, `sparsepo:` for `loss: sparsepo`.

    Keys of the chosen mask stand beside these and end up in `options`. A loss that brings its own mask, or none, has
    only its own options, those of its mask, `chunk_size` and `plugins`.
    """

    model_config = _STRICT

    loss: str = Field("sparsepo", description="registered name of the objective")
    objective: dict[str, Any] = Field({}, description="options of the objective, for losses other than sparsepo")
    mask: str | None = Field("learned", description="registered name, or package.module:ClassName")
    shared: bool = Field(True, description="one mask for reward and KL (m_u = m_d), or two")
    reward: dict[str, Any] = Field({}, description="options of m_u alone, when shared is false")
    kl: dict[str, Any] = Field({}, description="options of m_d alone, when shared is false")
    options: dict[str, Any] = Field({}, description="options of the mask; in the YAML they stand beside these keys")
    expectation: Literal["reference", "policy"] = Field("reference", description="distribution X of e_t")
    l1_reward: float = Field(0.0, ge=0, description="weight of the L1 norm of m_u")
    l1_kl: float = Field(0.0, ge=0, description="weight of the L1 norm of m_d; with a shared mask the two add")
    l1_reduction: Literal["sum", "mean"] = Field("sum", description="of the L1 norm over a response's tokens")
    mask_lr: PositiveFloat | Literal["policy"] = Field(
        1e-3, description="learning rate of the masks, absolute, or `policy`"
    )
    mask_weight_decay: float = Field(0.01, ge=0, description="weight decay of the masks")
    chunk_size: PositiveInt | None = Field(
        None, description="rows per vocabulary projection; by default from V and free memory"
    )
    metrics_every: PositiveInt | None = Field(
        None, description="steps between metrics that need every token; by default the host's logging interval"
    )
    offload_features: bool = Field(False, description="keep the reference's hidden rows in host memory")
    plugins: list[str] = Field([], description="modules to import first, which may register masks")

    @classmethod
    def from_section(cls, section: dict[str, Any] | None, loss: str = "sparsepo") -> "SparsePOConfig":
        """Validate the mapping under the loss's name.

        Args:
            section: The mapping as YAML gave it; None is an empty one.
            loss: Registered name of the objective.

        Raises:
            SparsePOError: a key is unknown, has a wrong type, or has no effect; the line names it and what is allowed.
        """
        section = {} if section is None else section
        if not isinstance(section, dict):
            raise SparsePOError(f"{loss}: a mapping of keys is needed, not {section!r}")
        section = {str(key): _numbers(value) for key, value in section.items()}
        objective = OBJECTIVES.get(loss)
        if objective.mask != objective.ANY_MASK:
            return cls._of_fixed_mask(section, loss, objective)
        own = {key: section.pop(key) for key in list(section) if key in cls.model_fields.keys() - _INTERNAL}
        _import_plugins(own.get("plugins") or [])
        config = _validate(cls, own, loss, allowed=())
        options = constructor_options(_mask_class(config.mask), SUPPLIED)
        allowed = [*(key for key in cls.model_fields if key not in _INTERNAL), *options.model_fields]
        common = _validate(options, section, loss, allowed).model_dump(exclude_unset=True)
        update: dict[str, Any] = {"options": common}
        for key in ("reward", "kl"):
            if overrides := getattr(config, key):
                if config.shared:
                    raise SparsePOError(f"{loss}.{key} has no effect with {loss}.shared: true")
                both = _validate(options, {**section, **overrides}, f"{loss}.{key}", list(options.model_fields))
                update[key] = both.model_dump(include=set(overrides))
        if "l1_reduction" in own and not (config.l1_reward or config.l1_kl):
            raise SparsePOError(f"{loss}.l1_reduction has no effect without l1_reward or l1_kl")
        return config.model_copy(update=update)

    @classmethod
    def _of_fixed_mask(cls, section: dict[str, Any], loss: str, objective: type) -> "SparsePOConfig":
        own = {key: section.pop(key) for key in _ANY_LOSS if key in section}
        _import_plugins(own.get("plugins") or [])
        of_objective = constructor_options(objective, objective.supplied)
        of_mask = (
            constructor_options(MASKS.get(objective.mask), SUPPLIED) if objective.mask else create_model("NoMask")
        )
        allowed = [*_ANY_LOSS, *of_objective.model_fields, *of_mask.model_fields]
        for key in section.keys() - set(allowed):
            raise SparsePOError(f"{loss}.{key} is not a key of this section: allowed are {', '.join(allowed)}")
        parts = [
            _validate(
                model, {key: value for key, value in section.items() if key in model.model_fields}, loss, allowed
            )
            for model in (of_objective, of_mask)
        ]
        objective_options, options = (part.model_dump(exclude_unset=True) for part in parts)
        fixed = {"loss": loss, "mask": objective.mask, "objective": objective_options, "options": options}
        return _validate(cls, {**own, **fixed}, loss, allowed)

    def build_objective(self, beta: float, label_smoothing: float) -> nn.Module:
        """The objective with its options.

        Args:
            beta: β of the host's flags, for objectives that take it from there.
            label_smoothing: The host's.
        """
        cls = OBJECTIVES.get(self.loss)
        given = {"beta": beta, "label_smoothing": label_smoothing}
        given = {name: given[name] for name in cls.supplied}
        own = self.model_dump() if cls.mask == cls.ANY_MASK else {}
        values = {**own, **self.objective, **given}
        names = {parameter: parameter.rstrip("_") for parameter in inspect.signature(cls).parameters}
        return cls(**{parameter: values[name] for parameter, name in names.items() if name in values})

    def section(self) -> dict[str, Any]:
        """The mapping that gives this config again, defaults left out."""
        chosen = OBJECTIVES.get(self.loss).mask == OBJECTIVES.get(self.loss).ANY_MASK
        exclude = _INTERNAL if chosen else _INTERNAL | {"mask"}
        return {**self.model_dump(exclude_unset=True, exclude=exclude), **self.objective, **self.options}


def constructor_options(cls: type, supplied: tuple[str, ...]) -> type[BaseModel]:
    """A model of the options that a constructor takes, `supplied` ones apart; `lambda_` is the key `lambda`."""
    hints = get_type_hints(cls.__init__, include_extras=True)
    fields = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in supplied and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name.rstrip("_")] = (hints.get(name, Any), default)
    return create_model(cls.__name__, __config__=_STRICT, **fields)


def _mask_class(name: str) -> type:
    try:
        cls = MASKS.get(name)
    except SparsePOError as error:
        raise SparsePOError(f"sparsepo.mask: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and hasattr(cls, "needs")):
        raise SparsePOError(f"sparsepo.mask: {name} is not a sparsepo_plugin.TokenMask")
    return cls


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _import_plugins(modules: Any) -> None:
    for module in modules if isinstance(modules, list) else []:
        try:
            __import__(str(module))
        except ImportError as error:
            raise SparsePOError(f"sparsepo.plugins: {module!r} cannot be imported: {error}") from error


def _validate(model: type[BaseModel], values: dict[str, Any], where: str, allowed: Any) -> BaseModel:
    try:
        return model(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join([where, *(str(part) for part in problem["loc"][:1])])
            if problem["type"] == "extra_forbidden":
                lines.append(f"{key} is not a key of this section: allowed are {', '.join(allowed)}")
            else:
                lines.append(f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}")
        raise SparsePOError("; ".join(dict.fromkeys(lines))) from None
