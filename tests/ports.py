"""Ports for servers that must be told theirs before they start.

They lie below the range from which the kernel gives ports to connections and to whoever asks for any: what is free when
it is chosen is not taken by a client, or by another worker of the same run, before its server has started.
"""

from __future__ import annotations

import itertools
import os
import socket

FIRST, COUNT = 20_000, 12_000
# Workers of a run have neighbouring process numbers; each begins elsewhere.
_places = itertools.count(os.getpid() * 997)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, another one at each call."""
    for place in _places:
        port = FIRST + place % COUNT
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError
