"""What unit tests share, and that none of them needs the host."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch


@contextmanager
def host_hidden() -> Iterator[None]:
    """As where OpenRLHF is not installed: an import of it fails."""
    hidden = {name: sys.modules[name] for name in list(sys.modules) if name.partition(".")[0] == "openrlhf"}
    sys.modules.update(dict.fromkeys(["openrlhf", *hidden]))
    try:
        yield
    finally:
        del sys.modules["openrlhf"]
        sys.modules.update(hidden)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """While the modules of unit tests are imported."""
    with host_hidden():
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def without_host():
    """While they run."""
    with host_hidden():
        yield


@pytest.fixture
def tracer(monkeypatch):
    """torch.compile that traces and functionalises but writes no kernels, in a tenth of the time."""
    _compile_with("aot_eager", monkeypatch)


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile as it is, or as far as it goes without a C++ compiler."""
    _compile_with("inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager", monkeypatch)


def _compile_with(backend, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
