"""SparsePO with TRL: `accelerate launch examples/trl/sparsepo.py --model MODEL --dataset DATASET --output_dir FOLDER`.

All arguments of TRL's DPO trainer can be given too, and `--loss`, `--loss_options`, `--loss_plugins`.
"""

from dataclasses import dataclass

from datasets import load_dataset
from transformers import HfArgumentParser

from sparsepo_plugin.hosts.trl import SparsePOTrainer, SparsePOTrainerConfig


@dataclass
class Names:
    """Which model is aligned on which pairs (columns prompt, chosen, rejected): a hub name or a file."""

    model: str
    dataset: str


names, args = HfArgumentParser((Names, SparsePOTrainerConfig)).parse_args_into_dataclasses()
if args.loss == "sparsepo" and not args.loss_options:
    args.loss_options = {"mask": "learned", "shared": False, "l1_reward": 2e-4, "l1_kl": 2e-4}

is_file = names.dataset.endswith((".json", ".jsonl"))
files = {"path": "json", "data_files": names.dataset} if is_file else {"path": names.dataset}
trainer = SparsePOTrainer(names.model, args=args, train_dataset=load_dataset(**files, split="train"))
trainer.train()
trainer.save_model()
trainer.create_model_card(dataset_name=names.dataset)
