"""HOST:PORT, as options and variables hold it."""

from __future__ import annotations

import re

from onward_serving.environment import SettingInvalid, members

PORT_MAX = 65_535
"""gRPC takes the rest of what is above it, and listens on another port than it was told."""

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):([0-9]{1,5})", re.ASCII)


def address(text: str, name: str) -> str:
    """Return an address as it was given.

    Args:
        text: HOST:PORT; an IPv6 address is in brackets.
        name: The option or the variable that holds it.

    Raises:
        SettingInvalid: It is none, or has no port that there is.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > PORT_MAX:
        raise SettingInvalid(f"{name}={text}: HOST:PORT is wanted, with a port from 0 to {PORT_MAX}")
    return text


def addresses(text: str, name: str) -> tuple[str, ...]:
    """Return the addresses of a comma-separated list; raises as `address`."""
    return tuple(address(member, name) for member in members(text))
