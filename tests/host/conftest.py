"""Real runs of the patched OpenRLHF under DeepSpeed, on a tiny model made here."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import yaml
from host_runs import VOCABULARY, WIDTH, Run, merge, places, write_pairs
from process_server import ProcessServer

# Of all processes: as pytest was given them, before a test in this process activates the patched host.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture(autouse=True)
def _host_marker(request):
    request.node.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder with `model/` (a random Llama), `other/` (another one), and `pairs.jsonl` and `held_out.jsonl`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["<unk>", "<pad>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", model_max_length=64
    )
    for seed, name in ((0, "model"), (1, "other")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=1,
            eos_token_id=2,
            initializer_range=0.1,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    write_pairs(folder / "pairs.jsonl", 80, seed=0)
    write_pairs(folder / "held_out.jsonl", 12, seed=1)
    return folder


@pytest.fixture(scope="session")
def config(tiny) -> Callable[..., dict]:
    """The YAML of ten fp32 steps with learned, independent masks; arguments are merged over it."""
    base = {
        "model": {"model_name_or_path": str(tiny / "model"), "beta": 0.5},
        "data": {"dataset": str(tiny / "pairs.jsonl"), "prompt_key": "prompt", "max_len": 32},
        "train": {"batch_size": 8, "micro_batch_size": 8, "max_epochs": 1},
        "ds": {"zero_stage": 2, "param_dtype": "fp32", "attn_implementation": "sdpa"},
        # With the usual eps of 1e-8 Adam turns rounding noise in near-zero gradients into whole steps.
        "adam": {"lr": 1e-3, "eps": 1e-4},
        "lr_warmup_ratio": 0.1,
        "loss": "sparsepo",
        "sparsepo": {"mask": "learned", "shared": False, "l1_reward": 1e-3, "l1_kl": 1e-3, "mask_lr": 1e-2},
    }
    return lambda **over: merge(base, over)


@pytest.fixture(scope="session")
def extensions(pytestconfig) -> Path:
    """Where torch compiles DeepSpeed's C++: below this checkout, as another one's is compiled anew for its paths."""
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or pytestconfig.cache.mkdir("torch_extensions"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def server(extensions) -> Iterator[ProcessServer]:
    """What starts, and ends, every process of these tests."""
    server = ProcessServer({**ENVIRONMENT, "TORCH_EXTENSIONS_DIR": str(extensions)})
    yield server
    server.close()


@pytest.fixture(scope="session")
def sparsepo(server) -> Callable[..., CompletedProcess]:
    """The installed command."""
    return partial(server.run, "sparsepo")


@pytest.fixture(scope="session")
def launch(server, tmp_path_factory) -> Callable[..., Run]:
    """Run the training module, forked from a warm process or under torchrun or DeepSpeed's launcher, to its end."""

    def launch(
        config: dict,
        *flags: str,
        processes: int = 1,
        folder: Path | None = None,
        launcher: str = "fork",
        kill_when: Path | None = None,
        path: Path | None = None,
    ) -> Run:
        folder = folder or tmp_path_factory.mktemp("run")
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(merge(places(folder), config)))
        command = ["sparsepo_plugin.train", "--config", str(file), *flags]
        starts = {
            "torchrun": [*("-m", "torch.distributed.run", "--standalone"), "--nproc_per_node", str(processes), "-m"],
            "deepspeed": [*("-m", "deepspeed.launcher.runner"), "--num_gpus", str(processes), "--module"],
        }
        if launcher == "fork":
            done = server.fork(*command, processes=processes, kill_when=kill_when, path=path)
        else:
            done = server.run(sys.executable, *starts[launcher], *command, kill_when=kill_when)
        assert not server.running()
        return Run(done.returncode, done.stdout + done.stderr, folder)

    return launch


@pytest.fixture(scope="session")
def train(config, launch) -> Callable[..., Run]:
    """`launch` of a run that must succeed; the same arguments give the same finished run."""
    finished: dict[str, Run] = {}

    def train(processes: int = 1, **over) -> Run:
        key = json.dumps([processes, over], sort_keys=True)
        if key not in finished:
            run = launch(config(**over), processes=processes)
            assert run.code == 0, run.output[-4000:]
            finished[key] = run
        return finished[key]

    return train
