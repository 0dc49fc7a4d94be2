"""Two processes train, evaluate, save, are stopped under torchrun, and resume under the DeepSpeed launcher."""

import sys
from pathlib import Path

import torch
from host_runs import merge
from transformers import AutoModelForCausalLM

from sparsepo_plugin import load_masks

LONG = {
    "train": {"max_epochs": 3, "micro_batch_size": 4},
    "ds": {"zero_stage": 3, "packing_samples": True},
    "ckpt": {"save_steps": 4, "max_num": 2},
    "eval": {"split": "train", "steps": 10},
}


def test_a_stopped_run_resumes_to_the_same_weights(config, launch, tiny, tmp_path):
    settings = merge(config(**LONG), {"eval": {"dataset": str(tiny / "held_out.jsonl")}})
    whole = launch(settings, processes=2)
    assert whole.code == 0, whole.output[-4000:]
    assert len(whole.scalars("eval/eval_loss")) == len(whole.scalars("eval/acc_mean")) == 3
    assert len(list((whole.folder / "checkpoints").glob("global_step*"))) == 2  # the host's rotation

    stop_after_first_checkpoint(settings, launch, tmp_path)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    resumed = launch(settings, "--ckpt.load_enable", processes=2, launcher="deepspeed", folder=tmp_path)
    assert resumed.code == 0, resumed.output[-4000:]
    assert "Loaded the checkpoint" in resumed.output

    expected, weights = whole.weights, resumed.weights
    assert expected.keys() == weights.keys()
    assert any(key.startswith("mask_head.") for key in weights)
    for key in weights:
        assert torch.equal(weights[key], expected[key]), key


def stop_after_first_checkpoint(settings, launch, folder: Path):
    apart = {"logger": {"tensorboard_dir": str(folder / "stopped")}}
    first = folder / "checkpoints" / "latest"
    stopped = launch(merge(settings, apart), processes=2, launcher="torchrun", folder=folder, kill_when=first)
    assert stopped.code is None, "the run ended before its first checkpoint"


def test_the_saved_folder_is_a_plain_model_with_the_mask_beside_it(train, server, tiny):
    folder = train().folder / "out"
    # In a process that cannot import the plugin.
    code = (
        "import sys; sys.modules['sparsepo_plugin'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        "print(tokenizer.decode(model.generate(**tokenizer('w1 w2', return_tensors='pt'), max_new_tokens=3)[0]))"
    )
    done = server.run(sys.executable, "-c", code)
    assert done.returncode == 0 and done.stdout.startswith("w1 w2"), done.stderr
    trained = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    start = AutoModelForCausalLM.from_pretrained(tiny / "model").state_dict()
    assert trained.keys() == start.keys()
    assert all(not torch.equal(trained[key], start[key]) for key in trained)
    masks, description = load_masks(folder)
    assert description.loss.reward.mask == description.loss.kl.mask == "learned" and masks.kl is not None


def test_the_saved_adapter_loads_with_peft(train, tiny):
    from peft import PeftModel

    run = train(ds={"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}})
    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    model = PeftModel.from_pretrained(base, run.folder / "out")
    lora_b = [value for key, value in model.state_dict().items() if "lora_B" in key]
    assert lora_b and all(value.abs().max() > 0 for value in lora_b)
    load_masks(run.folder / "out")
