"""No configuration that names one of our losses trains plain DPO: one line, exit code not 0, and nothing written."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from axolotl_runs import ON_CPU, OURS, zero_file

NEEDED = "loss: sparsepo needs plugins: [sparsepo_plugin.SparsePOPlugin]"
UNLISTED = {"plugins": None}
BROKEN = "import sys\nsys.modules['sparsepo_plugin.hosts.axolotl.plugin'] = None  # as where a package is missing\n"


def assert_refused(done, says, folder):
    output = done.stdout + done.stderr
    lines = [line for line in output.splitlines() if line.startswith("sparsepo: error:")]
    assert len(lines) == 1 and says in lines[0], output[-3000:]
    assert done.returncode == 2 and "Traceback" not in output
    assert {path.name for path in folder.iterdir()} <= {"run.yaml", "sitecustomize.py", "mine.py", "__pycache__"}


@pytest.fixture
def write(config, tmp_path):
    """A YAML file of the usual run with changes."""

    def write(**over):
        file = tmp_path / "run.yaml"
        places = {"output_dir": str(tmp_path / "out"), "dataset_prepared_path": str(tmp_path / "prepared")}
        file.write_text(yaml.safe_dump({**config(**over), **places}))
        return file

    return write


@pytest.mark.parametrize(
    ("launcher", "over", "says"),
    [
        ("accelerate", UNLISTED, f"{NEEDED}, without which Axolotl drops it and trains DPO; listed: none"),
        ("torchrun", {"plugins": [OURS.removesuffix("n")]}, f"{NEEDED}, without which"),
        ("python", {"sparsepo": {"masks": "a"}, "loss_plugins": ["mine"]}, "sparsepo.masks is not a key of this"),
    ],
)
def test_before_a_launcher_is_started(launcher, over, says, server, write, tmp_path):
    """Modules of one's own are found in the current folder."""
    (tmp_path / "mine.py").touch()
    done = server.run("axolotl", "train", write(**over), "--launcher", launcher, cwd=tmp_path)
    assert_refused(done, says, tmp_path)


def test_a_plugin_that_cannot_be_imported(server, write, tmp_path):
    """Axolotl itself only logs it."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    done = server.run("axolotl", "train", write(), PYTHONPATH=str(tmp_path))
    assert_refused(done, "plugins: sparsepo_plugin.SparsePOPlugin cannot be imported: ModuleNotFoundError", tmp_path)


def test_options_of_the_command_line_count(server, write, tmp_path):
    done = server.run("axolotl", "train", write(rl=None), "--rl", "dpo", "--sample-packing")
    assert_refused(done, "sample_packing: must be off", tmp_path)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (UNLISTED, NEEDED),
        ({**UNLISTED, "loss": None}, "sparsepo needs plugins:"),
        ({"plugins": ["on_cpu.OnCPU"]}, NEEDED),
        ({"plugins": ["no_such_module.SparsePOPlugin"]}, NEEDED),
        ({"loss": None}, "sparsepo has no effect without loss: NAME"),
        ({"rl": None}, "needs rl: dpo, it is missing"),
        ({"rl": "orpo"}, "needs rl: dpo, not 'orpo'"),
        ({"base_model": "no/such/folder"}, "base_model: no/such/folder cannot be loaded"),
        ({"adapter": "lora", "lora_r": 4, "lora_target_modules": ["lm_head"]}, "lora_target_modules: lm_head is the"),
        ({"sparsepo": {"layers": [7]}}, "sparsepo.layers"),
    ],
)
def test_in_a_process_that_a_launcher_has_started(over, says, server, write, tmp_path):
    done = server.fork("axolotl.cli.train", str(write(**over)))
    output = done.stdout + done.stderr
    lines = [line for line in output.splitlines() if line.startswith("sparsepo: error:")]
    assert len(lines) == 1 and says in lines[0], output[-3000:]
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize("deepspeed", [False, True])
def test_what_accelerate_does_on_cpus_without_a_word(deepspeed, server, write, tmp_path):
    """It does not join two processes, or turns DeepSpeed off."""
    over = {"deepspeed": zero_file(tmp_path, 2)} if deepspeed else {}
    environment = {"ACCELERATE_USE_CPU": "true"} if deepspeed else {}
    file = write(plugins=[OURS, ON_CPU], **over)
    done = server.fork("axolotl.cli.train", str(file), processes=2, **environment)
    output = done.stdout + done.stderr
    says = "deepspeed: is not turned on where ACCELERATE_USE_CPU is set" if deepspeed else "each would train alone"
    assert done.returncode == 2 and output.count("sparsepo: error:") == 1 and says in output, output[-3000:]
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_by_our_own_command_line(server, write, tmp_path):
    """It tells the reason last, of a run that had started too; a good file is said to be one."""
    file = write(plugins=[OURS, ON_CPU])
    checked = server.run("sparsepo", "check", file)
    assert checked.stdout == f"{file}: ok, loss: sparsepo\n", checked.stderr
    assert "rl_beta: a number is needed" in server.run("sparsepo", "check", file, "--rl-beta", "high").stderr
    options = ["--num-processes", "2", "--", "--multi_gpu"]  # without ACCELERATE_USE_CPU
    command = Path(sys.executable).with_name("sparsepo")  # of an environment that is not activated
    done = server.run(command, "train", file, *options, PATH=os.defpath)
    assert done.returncode != 0 and "each would train alone" in done.stderr.splitlines()[-1], done.stderr[-3000:]


def test_axolotls_own_runs_are_left_alone(server, write, tmp_path):
    """Without a key of ours nothing of ours has a say."""
    file = write(plugins=None, loss=None, sparsepo=None, max_steps=1)
    done = server.fork("axolotl.cli.train", str(file), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "sparsepo.json").exists()
