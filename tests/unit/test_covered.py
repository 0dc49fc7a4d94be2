"""The last lines of `make test` (tests/covered.py), on files that a real pytest wrote."""

import os
import subprocess
import sys
from pathlib import Path

COVERED = Path(__file__).parents[1] / "covered.py"
MODULES = {
    "tests/unit/test_some.py": """
        import pytest
        def test_one(): pass
        def test_two(): pass
        def test_three(): pytest.skip("no GPU here")
        """,
    "tests/trl/test_whole.py": """
        import pytest
        pytest.skip("no scipy here", allow_module_level=True)
        """,
}


def covered(folder: Path, modules: dict[str, str]) -> subprocess.CompletedProcess:
    for name, text in modules.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(line[8:] for line in text.splitlines()))
    (folder / "pytest.ini").write_text("[pytest]\n")
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    run += ["--junitxml", "openrlhf.xml", "tests"]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(run, cwd=folder, capture_output=True, env=bare | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    return subprocess.run([sys.executable, str(COVERED), "openrlhf.xml"], cwd=folder, capture_output=True, text=True)


def test_a_line_for_each_folder_and_the_sum(tmp_path):
    done = covered(tmp_path, MODULES)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "openrlhf tests/unit 2 passed, 1 skipped" in lines
    assert "openrlhf tests/trl 1 skipped" in lines, done.stdout + done.stderr
    assert "not covered: 1 × no GPU here" in lines
    assert "not covered: 1 × no scipy here" in lines
    assert lines[-1] == "2 passed, 0 failed, 2 skipped"
    assert done.returncode == 0


def test_a_failed_test_and_a_module_that_cannot_be_imported(tmp_path):
    done = covered(tmp_path, {
        "tests/unit/test_fails.py": """
        def test_no(): assert False
        """,
        "tests/host/test_broken.py": """
        import no_such_module
        """,
    })  # fmt: skip
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "openrlhf tests/host 1 failed" in lines, done.stdout + done.stderr
    assert "openrlhf tests/unit 1 failed" in lines
    assert lines[-1] == "0 passed, 2 failed, 0 skipped" and done.returncode == 1
