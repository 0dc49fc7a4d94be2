"""Real runs of Axolotl on a tiny model; the fixtures have the names of those of OpenRLHF, and mean Axolotl's here."""

import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from axolotl_runs import ON_CPU, OURS
from host_fixtures import ENVIRONMENT
from host_runs import Run, merge
from process_server import ProcessServer, Stop

# Axolotl has an environment of its own: make test-axolotl.
collect_ignore_glob = [] if find_spec("axolotl") else ["test_*.py"]


@pytest.fixture(scope="session")
def server(extensions) -> Iterator[ProcessServer]:
    """What starts, and ends, every process of these tests."""
    own = {"AXOLOTL_DO_NOT_TRACK": "1", "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(extensions)}
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    server = ProcessServer({**ENVIRONMENT, **own, **paths}, "warm_axolotl")
    yield server
    server.close()


@pytest.fixture(scope="session")
def config(tiny) -> Callable[..., dict]:
    """The YAML of ten fp32 steps with learned, independent masks; arguments are merged over it."""
    base = {
        "base_model": str(tiny / "model"),
        "plugins": [OURS],
        "rl": "dpo",
        "rl_beta": 0.5,
        "datasets": [{"path": str(tiny / "pairs.jsonl"), "split": "train", "type": {"field_prompt": "prompt"}}],
        "val_set_size": 0,
        "dataset_num_proc": 1,
        "sequence_len": 32,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "optimizer": "adamw_torch",
        # With the usual eps of 1e-8 Adam turns rounding noise in near-zero gradients into whole steps.
        "adam_epsilon": 1e-4,
        "seed": 42,
        "attn_implementation": "sdpa",
        **dict.fromkeys(("bf16", "fp16", "tf32"), False),
        "loss": "sparsepo",
        "sparsepo": {"mask": "learned", "shared": False, "l1_reward": 1e-3, "l1_kl": 1e-3, "mask_lr": 1e-2},
    }
    return lambda **over: merge(base, over)


@pytest.fixture(scope="session")
def launch(server, tmp_path_factory) -> Callable[..., Run]:
    """Run `axolotl train`, or its module forked from a warm process, to its end."""

    def launch(
        config: dict,
        processes: int = 1,
        folder: Path | None = None,
        launcher: str = "fork",
        stop: Stop | None = None,
        path: Path | None = None,
    ) -> Run:
        folder = folder or tmp_path_factory.mktemp("run")
        places = {"output_dir": str(folder / "out"), "dataset_prepared_path": str(folder / "prepared")}
        settings, environment = merge(places, config), {}
        if processes > 1:
            settings["plugins"] = [*settings.get("plugins", []), ON_CPU]
        if "deepspeed" not in settings:  # with it accelerate turns DeepSpeed off
            environment["ACCELERATE_USE_CPU"] = "true"
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(settings))
        if launcher == "fork":
            done = server.fork(
                "axolotl.cli.train", str(file), processes=processes, stop=stop, path=path, **environment
            )
        else:
            words = {"FILE": str(file), "PROCESSES": str(processes)}
            done = server.run(*[words.get(word, word) for word in LAUNCHERS[launcher]], stop=stop, **environment)
        assert not server.running()
        return Run(done.returncode, done.stdout + done.stderr, folder)

    return launch


TRAIN = ["axolotl", "train", "FILE", "--launcher"]
LAUNCHERS = {
    "accelerate": [*TRAIN, "accelerate", "--", "--multi_gpu", "--num_processes", "PROCESSES"],
    "torchrun": [*TRAIN, "torchrun", "--", "--standalone", "--nproc_per_node", "PROCESSES"],
    "python": [*TRAIN, "python"],
    "deepspeed": ["deepspeed", "--num_gpus", "PROCESSES", "--no_local_rank", "--module", "axolotl.cli.train", "FILE"],
}


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
