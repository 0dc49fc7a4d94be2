"""How mistakes reach a user: one line from the rank that is to tell it, and every other error as it is."""

import pytest
import torch.distributed as dist

from sparsepo_plugin import SparsePOError, errors
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


@pytest.fixture
def starter(tmp_path, monkeypatch):
    """The file in which a run's processes leave the reason of its end."""
    monkeypatch.setenv(errors.REASON, str(tmp_path / "reason"))
    monkeypatch.setattr(errors, "_LAUNCHER_LOOKS", 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    return tmp_path / "reason"


def test_bad_input_in_a_process_of_a_run_is_told_its_starter(starter):
    with pytest.raises(SystemExit) as ended, errors.telling_its_starter():
        raise SparsePOError("loss: misspelled")
    assert ended.value.code == 2 and "loss: misspelled" in starter.read_text()


def test_a_crash_is_told_and_goes_on_its_way(starter):
    with pytest.raises(ZeroDivisionError), errors.telling_its_starter():
        raise ZeroDivisionError("by nought")
    assert starter.read_text().startswith("sparsepo: error: ") and starter.read_text().endswith("(rank 1)")


def test_who_misses_another_process_ends_without_a_word(starter):
    starter.write_text("another's")
    with pytest.raises(SystemExit) as ended, errors.telling_its_starter():
        raise RuntimeError("connection closed")
    assert ended.value.code == 1 and starter.read_text() == "another's"


def test_without_a_starter_a_lost_rank_is_one_line(monkeypatch, capsys):
    monkeypatch.delenv(errors.REASON, raising=False)
    with pytest.raises(SystemExit) as ended, errors.telling_its_starter():
        raise RuntimeError("[/somewhere/gloo/transport/tcp/pair.cc:1] closed")
    assert ended.value.code == 1 and "another rank has ended" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="of its own"), errors.telling_its_starter():
        raise RuntimeError("of its own")
