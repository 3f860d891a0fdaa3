"""No network for a test."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any, Final

import pytest

_VARIABLES: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


class NetworkRefused(OSError):
    """A test that must work offline tried to reach another machine."""


def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse everything but loopback and Unix sockets until `monkeypatch` undoes it."""
    for name in _VARIABLES:
        monkeypatch.setenv(name, "1")
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it read its variable when it was imported
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for method in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, method, _guarded(getattr(socket.socket, method)))
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        _check(host)
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def _guarded(method: Any) -> Any:
    def call(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]  # the last argument of all three methods
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return method(self, *arguments)

    return call


def _check(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if not is_loopback(name):
        raise NetworkRefused(f"offline: a connection to {name!r} is refused")


def is_loopback(host: str | None) -> bool:
    """Whether a host's name or address is this machine's loopback; None and "" mean any of its own."""
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:  # a name
        return False
