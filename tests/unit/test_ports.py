"""The port of a run that `sparsepo train` starts."""

import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from sparsepo_plugin.start import _reserved_port


def test_a_reserved_port_is_free_for_the_run_alone():
    with _reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        store = TCPStore("127.0.0.1", port, 1, is_master=True, timeout=timedelta(seconds=10))
        store.set("key", "value")
        assert TCPStore("127.0.0.1", port, 1, is_master=False, timeout=timedelta(seconds=10)).get("key") == b"value"
