"""Whether a server keeps its connections within their bound."""

from __future__ import annotations

import socket
from contextlib import closing

import httpx
import pytest

from sophia.services import connections


def the_idle_one_makes_room(address: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether, where one connection may be open, a second takes the place of the first, which has been answered."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
    url = httpx.URL(address)
    assert url.port is not None
    ask = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with (
        closing(socket.create_connection((url.host, url.port), timeout=60)) as first,
        closing(socket.create_connection((url.host, url.port), timeout=60)) as second,
    ):
        second.sendall(ask)
        assert second.recv(4_096).startswith(b"HTTP/1.1 200")
        try:
            return first.recv(4_096) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
