"""What `warm_host` imports for runs of the patched OpenRLHF."""

import importlib
from contextlib import suppress
from importlib.metadata import entry_points

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from sparsepo_plugin.hosts.openrlhf.program import load_program

LAZY = (
    *("openrlhf.utils.deepspeed", "torch.utils.tensorboard", "transformers.models.llama.modeling_llama"),
    *("deepspeed.module_inject.auto_ep_layer", "deepspeed.runtime.zero.muon", "deepspeed.moe.ep_repack"),
    *("deepspeed.ops.op_builder.all_ops", "setuptools", "scipy.io"),
)

for program in ("train_dpo", "train_sft"):
    load_program(program)
for loss in entry_points(group="openrlhf.losses"):
    loss.load()
for module in LAZY:
    with suppress(ModuleNotFoundError):  # of another release
        importlib.import_module(module)
get_checkpoint_conversion_mapping("llama")  # a table of patterns, compiled when it is first asked for

from openrlhf.datasets import RewardDataset  # noqa: E402 (from the patched copy, once it is on the path)

# Its default of eight processes for the 80 pairs of a run takes longer than the pairs.
RewardDataset.__init__.__defaults__ = (None, False, None)
