"""The arguments of a run: TRL's for DPO, and which loss with which options."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import DPOConfig

from ...config import LossConfig
from ...errors import SparsePOError
from ...registry import import_plugins
from .checks import refuse_arguments


@dataclass
class SparsePOArguments:
    """What is added to the arguments of TRL's DPO trainer."""

    loss: str = field(
        default="sparsepo",
        metadata={"help": "A registered loss, such as sparsepo or dpo, or package.module:ClassName."},
    )
    loss_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "The loss's options, those of its mask beside them: {'mask': 'learned', 'shared': True}."},
    )
    loss_plugins: list[str] = field(
        default_factory=list,
        metadata={"help": "Modules to import first, which may register losses and masks."},
    )


@dataclass
class SparsePOTrainerConfig(SparsePOArguments, DPOConfig):
    """TRL's `DPOConfig` with the loss; β and label smoothing are DPO's own `beta` and `label_smoothing`.

    Raises:
        SparsePOError: an option is wrong, or an argument cannot be honoured.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*DPOConfig._VALID_DICT_FIELDS, "loss_options"]

    def __post_init__(self) -> None:
        super().__post_init__()
        read_loss(self)


def read_loss(args: Any) -> LossConfig:
    """The loss of a run.

    Args:
        args: Arguments of TRL's DPO trainer with those of `SparsePOArguments`.

    Raises:
        SparsePOError: an option is wrong, or an argument cannot be honoured.
    """
    if not isinstance(args.loss_plugins, list):
        raise SparsePOError(f"loss_plugins: a list of modules is needed, not {args.loss_plugins!r}")
    import_plugins(args.loss_plugins)
    flags = {"beta": args.beta, "label_smoothing": args.label_smoothing}
    config = LossConfig.from_section(args.loss_options, args.loss, **flags)
    config.build_objective()
    refuse_arguments(args, config)
    return config
