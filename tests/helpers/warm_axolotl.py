"""What `warm_host` imports for Axolotl: not `axolotl.core`, which asks the run's plugins when it is imported."""

import importlib

EARLY = ("axolotl.cli.train", "axolotl.cli.config", "axolotl.common.datasets", "axolotl.train")
LATE = (
    *("trl.trainer.dpo_trainer", "trl.experimental.cpo", "trl.experimental.orpo", "trl.experimental.prm"),
    *("transformers.models.llama.modeling_llama", "torch.utils.tensorboard", "deepspeed", "sparsepo_plugin.step"),
)

for module in EARLY + LATE:
    importlib.import_module(module)
