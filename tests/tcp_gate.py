"""A TCP proxy before any server, which a test closes, opens again, holds or cuts."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpGate:
    """Forwards to `host:port` until closed.

    Attributes:
        cut_after: cut all connections, once, when so many bytes more have gone to the server; None for never.
        cuts: how often that happened.
        holding: keep what comes in either direction instead of passing it on.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.cut_after: int | None = None
        self.cuts = 0
        self.holding = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._serve(self._listener)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def shut(self) -> None:
        """Refuse connections and end those that are there."""
        if self._listener is not None:
            # A listener that only is closed still takes who is in its queue.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def open(self) -> None:
        """Take connections again, under the same address."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._serve(self._listener)

    def cut(self) -> None:
        """End all connections."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self, listener: socket.socket) -> None:
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            for source, sink, counted in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, sink, counted), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if counted and self.cut_after is not None:
                    self.cut_after -= len(data)
                    if self.cut_after <= 0:
                        self.cut_after = None
                        self.cuts += 1
                        self.cut()
                        return
                if not self.holding:
                    sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
