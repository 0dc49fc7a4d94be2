"""A second plugin: without a GPU Axolotl alone puts the models of several processes on GPUs, and asks for NCCL."""

import os

from axolotl.integrations.base import BasePlugin


class OnCPU(BasePlugin):
    """Gives each process its models on the CPU, and gloo."""

    def load_datasets(self, cfg, preprocess=False):
        """The first hook after Axolotl has set the device map."""
        cfg.device_map = {"": "cpu"}

    def get_training_args(self, cfg):
        return {"ddp_backend": "gloo"} if int(os.environ.get("WORLD_SIZE", 1)) > 1 else {}
