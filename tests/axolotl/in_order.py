"""A plugin for comparisons with other hosts: pairs come in the order of their file, for which Axolotl has no key."""

from axolotl.integrations.base import BasePlugin


class InOrder(BasePlugin):
    """Takes the first pairs first."""

    def get_training_args(self, cfg):
        return {"train_sampling_strategy": "sequential"}
