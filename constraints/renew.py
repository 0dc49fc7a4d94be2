"""Write the files of this folder: every package that runs need, pinned, with the hashes of its files.

python constraints/renew.py

The versions are those of constraints-cpu.txt, as far as they are named there. pip resolves; the hashes are those that
the index names for the files that it picks, of Linux on x86-64 with the Python that runs this, which has to be 3.11.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
BUILDS = {"cpu": "+cpu", "cuda12": "+cu129", "cuda13": ""}  # of PyTorch: what its version ends in
INDEX = "https://download.pytorch.org/whl/"  # of its builds with such an end; the other is on PyPI
EXTRAS = "openrlhf,trl,analysis"
HEADER = """\
# Every package that a run needs on Linux, x86-64, Python 3.11, by hash: pip install --require-hashes -r FILE
# PyTorch is {build}.
# Made by `make constraints`; the versions are those of constraints-cpu.txt.
"""
SOURCES = {
    "cpu": f"the build for CPUs, from its own index (--extra-index-url {INDEX}cpu)",
    "cuda12": f"the build for CUDA 12.9, from its own index (--extra-index-url {INDEX}cu129)",
    "cuda13": "the build that is on PyPI, for CUDA 13",
}


def resolve(suffix: str) -> list[dict]:
    """What pip would install of the plugin's dependencies in an empty environment."""
    # === is of the whole string: == would be content with 2.13.0+cpu for 2.13.0.
    pins = (ROOT / "constraints-cpu.txt").read_text()
    pins = re.sub(r"^torch==([\d.]+)\S*$", rf"torch===\1{suffix}", pins, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        constraints.write_text(pins)
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        pip += ["--only-binary", ":all:", "--no-binary", "deepspeed"]  # which has no wheel
        if suffix:
            pip += ["--extra-index-url", INDEX + suffix.removeprefix("+")]
        subprocess.run([*pip, "--constraint", constraints, "--report", report, f"{ROOT}[{EXTRAS}]"], check=True)
        return json.loads(report.read_text())["install"]


def line(package: dict) -> str:
    """One package, pinned, with the hash of its file."""
    name, version = package["metadata"]["name"], package["metadata"]["version"]
    digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name}=={version} --hash=sha256:{digest}\n"


def main() -> None:
    """Write a file for each kind of machine."""
    assert sys.version_info[:2] == (3, 11), "the pins are for Python 3.11"
    for name, suffix in BUILDS.items():
        packages = [package for package in resolve(suffix) if package["metadata"]["name"] != "sparsepo-plugin"]
        text = "".join(sorted(map(line, packages), key=str.lower))
        (FOLDER / f"{name}.txt").write_text(HEADER.format(build=SOURCES[name]) + text)


if __name__ == "__main__":
    main()
