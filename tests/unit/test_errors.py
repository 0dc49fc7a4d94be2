"""How mistakes reach a user: one line from the rank that is to tell it, and every other error as it is."""

import pytest
import torch.distributed as dist

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.errors import fault, one_line_errors


class ConfigError(ValueError):
    """By its name alone that of the patched host, which need not be installed."""


@pytest.fixture
def told(monkeypatch):
    """The lines that a rank tells of an error, which must end it with code 2."""

    def told(error, rank=None, together=False):
        monkeypatch.setattr(dist, "is_initialized", lambda: together)
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "4"}.items():
                monkeypatch.setenv(name, value)
        lines = []
        with pytest.raises(SystemExit) as exit_, one_line_errors(lines.append):
            raise error
        assert exit_.value.code == 2
        return lines

    return told


@pytest.mark.parametrize(
    "error", [SparsePOError("a.b: wrong"), ConfigError("a.b: wrong")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("rank", [None, "0"])
def test_the_first_rank_tells(error, rank, told):
    assert told(error, rank) == ["sparsepo: error: a.b: wrong"]


def test_other_ranks_tell_what_they_alone_have_met(told):
    """Before the processes have found each other all of them see the same mistakes."""
    assert told(SparsePOError("a.b: wrong"), "3") == []
    assert told(SparsePOError("row 7 is empty"), "3", together=True) == ["sparsepo: error: row 7 is empty (rank 3)"]


@pytest.mark.parametrize("error", [ValueError("not ours"), KeyError("x")], ids=repr)
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)), one_line_errors(pytest.fail):
        raise error


def test_to_stderr_by_default(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise SparsePOError("wrong")
    assert capsys.readouterr() == ("", "sparsepo: error: wrong\n")


def test_a_fault_is_one_line():
    assert fault(KeyError("x")) == "KeyError: 'x'"
    assert fault(RuntimeError("of two\n  lines")) == "RuntimeError: of two lines"
    assert fault(ZeroDivisionError()) == "ZeroDivisionError"


def test_the_place_of_a_fault_is_the_innermost_line_of_its_folder(tmp_path):
    """What that calls, as here the standard library, is where it shows and not where it is."""
    file = tmp_path / "own.py"
    file.write_text("import json\ndef outer():\n    inner()\ndef inner():\n    json.loads('{')\n")
    scope = {}
    exec(compile(file.read_text(), file, "exec"), scope)
    with pytest.raises(ValueError) as caught:
        scope["outer"]()
    assert fault(caught.value, str(file)).endswith(f"({file}:5)")
    assert "own.py" not in fault(caught.value)
