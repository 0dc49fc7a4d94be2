"""`sparsepo generate` killed by SIGKILL, in processes of its own: it ends with the files of a run that never was."""

import pytest
from finished_runs import write_lines
from process_server import Stop

PROMPTS, COUNT = 30, 2
# As slow as a large model's, and it says how far it is: a kill hits the middle of a batch, and of a file's growth.
REWARD = """
import time
from pathlib import Path

def length(prompts, completions):
    place = Path("reached")
    place.mkdir(exist_ok=True)
    (place / str(len(list(place.iterdir())) + 1)).touch()
    time.sleep(0.1)
    return [len(text) + text.count("w1") / 10 for text in completions]
"""


@pytest.fixture
def generate(server, tiny, tmp_path):
    """The command in a folder of its own, killed when the reward was asked so many times, and a little later."""

    def generate(folder, after=None, delay=0.0, **flags):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "reward_of_a_test.py").write_text(REWARD)
        rows = [{"text": " ".join(f"w{(7 * n + k) % 500}" for k in range(9))} for n in range(PROMPTS)]
        write_lines(place / "texts.jsonl", rows)
        given = {"prefix-tokens": "3-5", "count": COUNT, "batch-size": 4, "max-new-tokens": 8, "seed": 3, **flags}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        asked = ["--prompts", "texts.jsonl", "--reward", "reward_of_a_test:length", "-o", "out/pairs.jsonl"]
        stop = None if after is None else Stop(place / "reached" / str(after), after=delay)
        return server.run("sparsepo", "generate", str(tiny / "model"), *asked, *options, cwd=place, stop=stop)

    return generate


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_and_started_again(generate, tmp_path):
    """Three times, at different places of a batch; nothing is lost, and no batch that was finished is drawn again."""
    assert generate("whole").returncode == 0
    whole = files(tmp_path / "whole" / "out")
    assert set(whole) == {"pairs.jsonl", "pairs.samples.jsonl"}
    assert whole["pairs.samples.jsonl"].count(b"\n") == 1 + COUNT * PROMPTS
    assert len(whole["pairs.jsonl"].splitlines()) > PROMPTS / 2

    left, out = [], tmp_path / "killed" / "out"
    for after, delay in ((2, 0.0), (6, 0.11), (11, 0.05)):
        assert generate("killed", after, delay).returncode is None
        assert set(files(out)) == {"pairs.samples.jsonl"}, "no pairs before the end"
        left.append(files(out)["pairs.samples.jsonl"])
        assert whole["pairs.samples.jsonl"].startswith(left[-1])
    assert 1 < len(left[0]) < len(left[1]) < len(left[2]) < len(whole["pairs.samples.jsonl"])
    other = generate("killed", seed=4)
    assert other.returncode == 2
    assert "pairs.samples.jsonl is of an earlier run, --seed was 3 and is now 4; choose another -o" in other.stderr
    assert files(out) == {"pairs.samples.jsonl": left[-1]}
    assert generate("killed").returncode == 0
    assert files(out) == whole
    batches = PROMPTS * COUNT // 4
    reached = len(list((tmp_path / "killed" / "reached").iterdir()))
    assert batches <= reached <= batches + 3, "each kill costs the batch that it hit, at most"
