"""Listening to an address of this machine."""

from __future__ import annotations

import socket

from model.errors import ConfigError


def listening(host: str, port: int, remedy: str) -> socket.socket:
    """A socket that is bound, and does not listen yet. port: 0: any free one.

    Raises:
        ConfigError: another process listens there, or the address is none of this machine; it ends with `remedy`.
    """
    tried = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        tried.bind((host, port))
    except OSError as error:
        tried.close()
        raise ConfigError(
            f"{host} port {port} cannot be listened to ({error.strerror or error}): name {remedy}"
        ) from None
    return tried
