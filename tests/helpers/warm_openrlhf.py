"""What `warm_host` imports for runs of the patched OpenRLHF."""

import importlib
from importlib.metadata import entry_points

from sparsepo_plugin.hosts.openrlhf.program import load_program

LAZY = ("openrlhf.utils.deepspeed", "torch.utils.tensorboard", "transformers.models.llama.modeling_llama")

for program in ("train_dpo", "train_sft"):
    load_program(program)
for loss in entry_points(group="openrlhf.losses"):
    loss.load()
for module in LAZY:
    importlib.import_module(module)
