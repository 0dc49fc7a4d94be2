"""`deepspeed --module sparsepo_plugin.sft --config FILE.yaml`: OpenRLHF's supervised fine-tuning, patched."""

from .train import main

if __name__ == "__main__":
    main(program="train_sft")
