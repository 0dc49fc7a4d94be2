"""What unit tests share."""

import shutil
from functools import partial

import pytest
import torch


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
