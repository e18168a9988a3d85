"""A TCP proxy before a PostgreSQL server that counts round trips and cuts connections where a test wants it."""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import threading
import time
from typing import Literal

import psycopg

Lost = Literal["request", "reply"]


class Proxy:
    """Forwards to the server of `url` until closed.

    Attributes:
        turns: how often a client spoke after it had heard its server: the round trips of all connections.
        hold_seconds: how long an answer is held back, so that what a client sends without waiting for it is no turn.
        cuts: connections that were cut.
    """

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            self._target = f"{connection.info.host}/.s.PGSQL.{connection.info.port}"
            self._user, self._database = connection.info.user, connection.info.dbname
        self.turns = self.cuts = 0
        self.hold_seconds = 0.0
        self._trigger: tuple[bytes, Lost] | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()

    def url(self, options: str = "") -> str:
        """The server's database through this proxy; `options` are settings of its sessions."""
        port = self._listener.getsockname()[1]
        extra = f"&options={options}" if options else ""
        return f"postgresql://{self._user}@127.0.0.1:{port}/{self._database}?sslmode=disable&gssencmode=disable{extra}"

    def cut_at(self, request: str, lost: Lost) -> None:
        """Cut the next connection that sends these words: before they reach the server, or before its answer comes."""
        self._trigger = (request.encode(), lost)

    def cut(self) -> None:
        """Cut all connections."""
        for pair in list(self._pairs):
            self._close(pair)

    def close(self) -> None:
        """Cut all and take no more."""
        self._listener.close()
        self.cut()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                pair = (client, server)
                self._pairs.append(pair)
                threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with contextlib.suppress(ValueError):
            self._pairs.remove(pair)
            self.cuts += 1

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        spoke_last = server
        deaf = False
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    end, other = key.fileobj, key.data
                    assert isinstance(end, socket.socket)
                    data = end.recv(1 << 16)
                    if not data or (deaf and end is server):
                        raise OSError
                    if end is server and self.hold_seconds:
                        time.sleep(self.hold_seconds)
                        if select.select([client], [], [], 0)[0]:
                            server.sendall(client.recv(1 << 16))
                    if end is client:
                        self.turns += spoke_last is server
                        if self._trigger is not None and self._trigger[0] in data:
                            lost, self._trigger = self._trigger[1], None
                            if lost == "request":
                                raise OSError
                            deaf = True
                    spoke_last = end
                    other.sendall(data)
        self._close((client, server))
