"""What the entry point that torch loads costs where Axolotl is not used."""

import subprocess
import sys

CODE = "import sys, torch; print(*sorted(name for name in sys.modules if name.partition('.')[0] == 'sparsepo_plugin'))"


def test_torch_brings_a_few_small_modules():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    hosts = ("hosts", "hosts.axolotl", "hosts.axolotl.guard")
    assert done.stdout.split() == sorted(
        ["sparsepo_plugin", *(f"sparsepo_plugin.{name}" for name in ("errors", *hosts))]
    )
