"""`plugins: [sparsepo_plugin.SparsePOPlugin]`: from Axolotl's configuration to our trainer."""

from typing import Any

from axolotl.integrations.base import BasePlugin

from ...errors import telling_its_starter
from .checks import TRAINER, check_run, loss_arguments


class SparsePOPlugin(BasePlugin):
    """Brings `loss:`, the section of its name, and `loss_plugins:` to Axolotl's DPO.

    Nothing here imports `axolotl.core`: its argument classes are made, with what plugins add, when it is imported.
    """

    def register(self, cfg: Any) -> None:
        """Check the configuration, and name our trainer in it.

        Args:
            cfg: As the YAML and the command line gave it.
        """
        plain = cfg.to_dict()
        with telling_its_starter():
            check_run(plain)
        cfg.update(loss_arguments(plain), trainer_cls=TRAINER)

    def get_input_args(self) -> str:
        """The keys that Axolotl's schema is to know."""
        return "sparsepo_plugin.hosts.axolotl.arguments.LossInput"

    def get_training_args_mixin(self) -> str:
        """The fields that the trainer's arguments are to have."""
        return "sparsepo_plugin.hosts.trl.SparsePOArguments"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Their values."""
        given = cfg.to_dict()
        return {
            "loss": given["loss"],
            "loss_options": given.get("loss_options"),
            "loss_plugins": given.get("loss_plugins") or [],
        }
