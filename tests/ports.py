"""Addresses for servers that are ended and started again at the same one."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

LOWEST = 10_000


def lasting_address() -> str:
    """Return HOST:PORT where a server can listen, now and after it was ended.

    It is below the ports that the kernel gives to whoever connects. One of those could be given, while the server is
    down, to a client of all things that tries to reach it: that then is connected to itself, and the port is taken.
    """
    above = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        address = ("127.0.0.1", LOWEST + secrets.randbelow(above - LOWEST))
        try:
            with socket.create_server(address):
                return f"{address[0]}:{address[1]}"
        except OSError:
            continue  # somebody has it
