"""The seam between the engine and the cache: results that are kept across runs, by key.

One call makes a result and the others wait ("single flight"), over all executors. Implemented on Redis by
`onward_runlog` and in memory by `onward.memory`; both pass one test suite.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Owner(NamedTuple):
    """Who makes a result.

    Attributes:
        call: Names the call: its run and its instance.
        attempt: The attempt of the run. A later one takes over what an earlier one had begun.
    """

    call: str
    attempt: int


class StillMade(Exception):
    """Another call makes the result, and the caller's patience is over."""


class Cache(Protocol):
    """Results by key. One event loop uses it."""

    async def take(self, key: str, owner: Owner, *, patience_s: float | None = None) -> bytes | None:
        """Return what is kept under `key`. None says that `owner` makes it from now on, until `keep` or `release`.

        While another owner makes it this waits. Who has died makes nothing: after a while the next one may.

        Args:
            key: Begins with the namespace and a slash.
            owner: Who asks.
            patience_s: How long to wait; None is as long as it takes.

        Raises:
            StillMade: Another still makes it.
            ConnectionError: The cache does not answer.
        """

    def keep(self, key: str, owner: Owner, value: bytes, ttl_s: float) -> None:
        """Keep what was made, and give it to those who wait. Nobody waits for this; it may be lost."""

    def release(self, key: str, owner: Owner) -> None:
        """Make it no more: another may. Nobody waits for this; it may be lost."""
