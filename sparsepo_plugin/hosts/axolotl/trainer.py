"""The trainer that the plugin names: TRL's with our losses, and Axolotl's additions to TRL's."""

from dataclasses import replace
from typing import Any

from axolotl.core.trainers.dpo import DPOStrategy
from axolotl.integrations.base import PluginManager
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ...checkpoint import RunDescription, save_masks, versions_of
from ...errors import SparsePOError, met_by_all, telling_its_starter
from ...texts import Joining
from ..trl import SparsePOTrainer
from ..trl.weighed import Weigher
from .strategies import describe_joining


class AxolotlSparsePOTrainer(SparsePOTrainer, DPOStrategy.get_trainer_class()):
    """`SparsePOTrainer` over Axolotl's own DPO trainer; bad input ends the process with one line.

    Args:
        *args: Policy and reference, as Axolotl's builder gives them.
        **kwargs: As of `SparsePOTrainer`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cfg, self._rows = PluginManager.get_instance().cfg, kwargs["train_dataset"]
        with telling_its_starter(), met_by_all():
            super().__init__(*args, **kwargs)
            if self._cfg["deepspeed"] and not self.is_deepspeed_enabled:  # Axolotl turns it on past the arguments
                raise SparsePOError("deepspeed: is not turned on where ACCELERATE_USE_CPU is set")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `SparsePOTrainer`; leaves masks and description where Axolotl is about to save the model."""
        with telling_its_starter():
            output = super().train(*args, **kwargs)
            self.guard.check_weights(self.state.global_step)
        # Weights that are sharded Axolotl saves by `save_model`, all others past the trainer.
        if self.args.should_save and not (is_deepspeed_zero3_enabled() or self.is_fsdp_enabled):
            masks = self.masked.masks
            save_masks(self.args.output_dir, self.description, masks.state_dict() if masks else {})
        return output

    def _weigher(self, tokenizer: Any, dataset: Any) -> Weigher:
        """See `SparsePOTrainer`; Axolotl's prompt strategies have put text around the responses."""
        joining = describe_joining(self._cfg, tokenizer, dataset.column_names, Joining(end="appended"))
        if joining.unknown:
            raise SparsePOError(f"datasets: mask 'column' must know where responses stand: {joining.unknown}")
        return replace(super()._weigher(tokenizer, dataset), template=joining.output_template)

    def _describe(self, joining: Joining) -> RunDescription:
        columns, tokenizer = self._rows.column_names, self.processing_class
        own = {
            "host": "axolotl",
            "versions": versions_of("axolotl", "trl", "accelerate", "peft", "deepspeed"),
            "joining": describe_joining(self._cfg, tokenizer, columns, joining),
        }
        return super()._describe(joining).model_copy(update=own)

    def _sources(self) -> list[str]:
        return [dataset["path"] for dataset in self._cfg["datasets"]]
