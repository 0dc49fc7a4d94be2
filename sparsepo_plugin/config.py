"""The section of a loss in a host's YAML: every key typed, documented and with an effect."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, PositiveFloat, PositiveInt, create_model
from pydantic_core import PydanticCustomError
from torch import nn

from .divergence import Expectation
from .errors import SparsePOError, shown
from .objectives import Objective
from .options import STRICT, construct, options_of, parameters, read_mapping, validate, within
from .projection import BUDGETS, is_budget
from .reference import OF_POLICY
from .registry import MASKS, OBJECTIVES, Registry
from .spans import WeightColumn

# Constructor parameters of a mask that the run gives; all others are options of the YAML.
FROM_RUN = ("hidden_size", "num_layers", "seed")


def _budget(value: Any) -> Any:
    if value is None or is_budget(value):
        return value
    raise PydanticCustomError("budget", f"must be {BUDGETS}")


class StepKeys(BaseModel):
    """Keys of every loss."""

    model_config = STRICT

    chunk_size: PositiveInt | None = Field(
        None, description="rows per vocabulary projection; by default from the vocabulary and free memory"
    )
    logits_budget: Annotated[int | str | None, BeforeValidator(_budget)] = Field(
        None,
        description="logits kept for the backward, the rest is computed again: bytes (0, 256MB, 1.5GB) or a share of "
        "free memory (10%); by default 128MB on a CPU and 10% on a GPU",
    )
    disable_dropout: bool = Field(
        True, description="train without the dropout of the policy's config, as TRL does; that of a LoRA adapter stays"
    )
    share_prefix: Literal["auto"] | bool = Field(
        "auto",
        description="run the models once over what chosen and rejected have in common; `auto` where the first batch "
        "shows that the models allow it, `true` ends the run where they do not",
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="what a loss or gradient that is not finite does: end the run, or leave that update out; ten in a "
        "row end the run",
    )


class MaskedKeys(StepKeys):
    """Keys of losses that read masks."""

    mask_lr: PositiveFloat | Literal["policy"] = Field(
        1e-3, description="learning rate of the masks; `policy` takes the policy's, as in the paper"
    )
    mask_weight_decay: float = Field(0.01, ge=0, description="weight decay of the masks")
    metrics_every: PositiveInt = Field(
        10,
        description="log the token KL of all tokens every so many steps, at the first one that the host logs; on "
        "other steps, tokens whose masks are zero skip the vocabulary",
    )
    offload_features: bool = Field(False, description="keep the reference's hidden rows in host memory")
    on_dead_mask: Literal["warn", "stop"] = Field(
        "warn",
        description="what a learned mask that is zero on every token does: warn, or end the run after ten such steps "
        "in a row",
    )


class ChosenMaskKeys(MaskedKeys):
    """Keys of losses whose mask the YAML chooses; its options stand beside them."""

    mask: str = Field(description="registered name, or `package.module:ClassName`")


class MaskPairKeys(ChosenMaskKeys):
    """Keys of losses that weigh the KL too, by the same mask or by one of its own."""

    mask: str = Field("learned", description="registered name, or `package.module:ClassName`")
    shared: bool | None = Field(
        None, description="one mask for reward and KL (m_u = m_d), or two; true unless `reward` or `kl` is given"
    )
    reward: dict[str, Any] = Field({}, description="options of m_u alone, or another `mask` with its options")
    kl: dict[str, Any] = Field({}, description="options of m_d alone, or another `mask` with its options")


class MaskConfig(BaseModel):
    """One mask: its name, and every option of its constructor."""

    model_config = STRICT

    mask: str
    options: dict[str, Any]


class LossConfig(MaskedKeys):
    """A loss with its masks, every option resolved."""

    loss: str = Field(description="registered name of the objective, or `package.module:ClassName`")
    objective: dict[str, Any] = Field(description="options of its constructor, those of the host's flags included")
    reward: MaskConfig | None = Field(None, description="m_u; none for a loss without masks")
    kl: MaskConfig | None = Field(None, description="m_d; none where it is m_u, or there are no masks")

    @classmethod
    def from_section(cls, section: dict[str, Any] | None, loss: str = "sparsepo", **from_host: float) -> "LossConfig":
        """Validate the section of a loss.

        Args:
            section: The mapping as YAML gave it; None is an empty one.
            loss: Registered name of the objective, or `package.module:ClassName`.
            **from_host: What the host's flags say, `beta` and `label_smoothing`; an objective is given what its
                constructor has.

        Raises:
            SparsePOError: a key is unknown, has a wrong type, or has no effect; the line names it and what is allowed.

        Examples:
            >>> config = LossConfig.from_section({"shared": False, "l1_kl": 0.1}, beta=0.5)
            >>> config.objective["beta"], sorted(config.masks)
            (0.5, ['kl', 'reward'])
            >>> LossConfig.from_section({"l1": 0.1})
            Traceback (most recent call last):
            sparsepo_plugin.errors.SparsePOError: sparsepo.l1 is not a key of this section: allowed are ...
        """
        where, objective = section_name(loss), objective_class(loss)
        values = read_mapping(section, where)
        model = section_keys(objective)
        keys = validate(model, {key: values.pop(key) for key in list(values) if key in model.model_fields}, where)
        mask = _mask_of_section(objective, keys, where)

        own = options_of(objective, without=objective.from_host)
        of_mask = create_model("NoMask", __config__=STRICT) if mask is None else _mask_options(mask, f"{where}.mask")
        if clash := own.model_fields.keys() & of_mask.model_fields.keys():
            raise SparsePOError(
                f"{where}.{min(clash)} is an option of the objective and of mask {mask!r}: "
                f"give the mask and its options under {where}.reward and {where}.kl"
            )
        both = create_model("Options", __base__=(own, of_mask))
        given = validate(both, values, where, allowed=[*model.model_fields, *both.model_fields])
        within(where, objective.refuse_idle, {key: values[key] for key in values if key in own.model_fields})

        defaults = {key: parameters(objective)[key].default for key in taken_from_host(objective)}
        return cls(
            loss=loss,
            objective=given.model_dump(include=set(own.model_fields))
            | {key: from_host.get(key, default) for key, default in defaults.items()},
            **_read_masks(keys, mask, {key: values[key] for key in values if key in of_mask.model_fields}, where),
            **keys.model_dump(include=set(MaskedKeys.model_fields), exclude_unset=True),
        )

    @property
    def section(self) -> str:
        """Name of the section that holds these keys, for messages."""
        return section_name(self.loss)

    @property
    def masks(self) -> dict[str, MaskConfig]:
        """The masks that there are, by role: `reward`, and `kl` if it has one of its own."""
        return {role: mask for role in ("reward", "kl") if (mask := getattr(self, role)) is not None}

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this the loss it is, by key of the YAML: its own options and those of its masks.

        What the host's flags give is left out, and how a step is computed, and the optimizer's options of the masks.
        """
        given = {f"{self.section}.{key}": self.objective[key] for key in self.objective.keys() - self._from_host}
        for role, mask in self.masks.items():
            where = self.section if self.kl is None else f"{self.section}.{role}"
            given |= {f"{where}.{key}": value for key, value in {"mask": mask.mask, **mask.options}.items()}
        return given

    @property
    def _from_host(self) -> set[str]:
        return taken_from_host(objective_class(self.loss))

    @property
    def needs(self) -> frozenset[str]:
        """All that the masks' classes may read of models."""
        return frozenset().union(*(MASKS.get(mask.mask).needs for mask in self.masks.values())) - {"weights"}

    @property
    def uses_reference(self) -> bool:
        """Whether the objective or a mask reads a reference model at all."""
        return objective_class(self.loss).needs_reference or bool(self.needs - OF_POLICY)

    @property
    def oracle(self) -> str | None:
        """Folder or hub name of the oracle that masks read.

        Raises:
            SparsePOError: they name two.
        """
        named = {mask.options["oracle"]: None for mask in self.masks.values() if "oracle" in mask.options}
        if len(named) > 1:
            raise SparsePOError(f"{self.section}.oracle: one oracle serves both masks, not {' and '.join(named)}")
        return next(iter(named), None)

    @property
    def column(self) -> WeightColumn | None:
        """How masks read the weights that the data bring; None where no mask does.

        Raises:
            SparsePOError: they read them in two ways.
        """
        given = [mask.options for mask in self.masks.values() if "weights" in MASKS.get(mask.mask).needs]
        read = [WeightColumn(**{key: own[key] for key in WeightColumn._fields if key in own}) for own in given]
        if apart := [key for key in WeightColumn._fields if len({getattr(each, key) for each in read}) > 1]:
            raise SparsePOError(f"{self.section}: one column serves both masks, which differ in {', '.join(apart)}")
        return read[0] if read else None

    def build_objective(self) -> Objective:
        """The objective with its options.

        Raises:
            SparsePOError: its constructor refuses them, or it has parameters.
        """
        objective = construct(objective_class(self.loss), self.objective, f"loss {self.loss!r}", self.section)
        if any(True for _ in objective.parameters()):
            raise SparsePOError(f"loss {self.loss!r} has parameters, which nothing trains: they belong into a mask")
        if objective.expectation not in (None, *get_args(Expectation)):
            raise SparsePOError(
                f"loss {self.loss!r} has expectation {shown(objective.expectation)}, allowed are reference, policy"
            )
        if objective.expectation is not None and not objective.needs_reference:
            raise SparsePOError(f"loss {self.loss!r} has an expectation, and says that it needs no reference for it")
        return objective


def section_name(loss: str) -> str:
    """The section that holds the options of a loss: its name, or `options` for `package.module:ClassName`."""
    return "options" if ":" in loss else loss


def section_keys(objective: type[Objective]) -> type[StepKeys]:
    """The keys of a loss's section beside the options of its objective and mask."""
    if objective.chooses_mask:
        return MaskPairKeys if objective.reads_kl_mask else ChosenMaskKeys
    return MaskedKeys if objective.mask else StepKeys


def objective_class(name: str) -> type[Objective]:
    """The class behind `loss: name`.

    Raises:
        SparsePOError: there is none, or it is no `Objective`.
    """
    cls = _get(OBJECTIVES, name, "loss")
    if not issubclass(cls, Objective):
        raise SparsePOError(f"loss: {name} is not a sparsepo_plugin.Objective")
    return cls


def taken_from_host(objective: type[Objective]) -> set[str]:
    """The options of an objective that a host's flags give."""
    return set(objective.from_host) & parameters(objective).keys()


def mask_class(name: str, key: str) -> type[nn.Module]:
    """The class behind the mask that a key names.

    Raises:
        SparsePOError: there is none, or it is no `TokenMask`.
    """
    cls = _get(MASKS, name, key)
    if not (issubclass(cls, nn.Module) and hasattr(cls, "needs")):  # TokenMask itself stands a floor above
        raise SparsePOError(f"{key}: {name} is not a sparsepo_plugin.TokenMask")
    if not isinstance(cls.needs, frozenset):
        raise SparsePOError(f"{key}: {name} has needs of {type(cls.needs).__name__}, a frozenset of names is needed")
    return cls


def _get(registry: Registry, name: str, key: str) -> type:
    try:
        return registry.get(name)
    except SparsePOError as error:
        raise SparsePOError(f"{key}: {error}") from error


def _mask_options(name: str, key: str) -> type[BaseModel]:
    return options_of(mask_class(name, key), without=FROM_RUN)


def _mask_of_section(objective: type[Objective], keys: StepKeys, where: str) -> str | None:
    """The mask whose options stand in the section itself; None if there is none, or reward and KL name their own."""
    if not objective.chooses_mask:
        return objective.mask
    if not all("mask" in getattr(keys, role, {}) for role in ("reward", "kl")):
        return keys.mask
    if "mask" in keys.model_fields_set:
        raise SparsePOError(f"{where}.mask has no effect: {where}.reward and {where}.kl name their own")
    return None


def _read_masks(keys: StepKeys, mask: str | None, options: dict[str, Any], where: str) -> dict[str, MaskConfig]:
    """The masks by role; `options` are those of `mask`, the section's own."""
    halves = {role: half for role in ("reward", "kl") if (half := getattr(keys, role, {}))}
    shared = getattr(keys, "shared", None)
    if halves and shared:
        raise SparsePOError(f"{where}.{min(halves)} has no effect with {where}.shared: true")
    if mask is None and not halves:
        return {}
    roles = ("reward", "kl") if halves or shared is False else ("reward",)
    return {role: _read_mask(halves.get(role, {}), mask, options, f"{where}.{role}") for role in roles}


def _read_mask(half: dict[str, Any], mask: str | None, options: dict[str, Any], where: str) -> MaskConfig:
    """The section's mask with the options of one role over its own; or another one, with its own options alone."""
    name = half.get("mask", mask)
    if not isinstance(name, str):
        raise SparsePOError(f"{where}.mask: the name of a mask is needed, not {shown(name)}")
    model = _mask_options(name, f"{where}.mask")
    values = half if "mask" in half else {**options, **half}
    values = {key: value for key, value in values.items() if key != "mask"}
    return MaskConfig(mask=name, options=validate(model, values, where).model_dump())
