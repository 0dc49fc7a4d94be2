"""What unit tests share."""

import shutil
from functools import partial

import pytest
import torch


@pytest.fixture(params=["aot_eager", "inductor"])
def compiler(request, monkeypatch):
    """torch.compile as it is, and in a form that traces and functionalises but needs no C++ compiler."""
    if request.param == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    return request.param
