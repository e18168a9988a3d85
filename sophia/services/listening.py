"""Opens the sockets that processes serve HTTP on, before anything else is started: a port in use is said at once."""

from __future__ import annotations

import socket

from sophia.errors import ConfigurationError


def listen(host: str, port: int, variable: str) -> socket.socket:
    """A listening socket; port 0 takes one that is free.

    Args:
        variable: the setting that names the port, for the message.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error}; choose another with {variable}") from error
