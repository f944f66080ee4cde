"""The seam between the engine and what limits components: permits, of each name only so many at once.

Implemented on Redis by `onward_runlog`, over all executors, and in memory by `onward.memory`; both pass one test suite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Permits(Protocol):
    """Permits by name. One event loop uses it."""

    async def acquire(self, name: str, limit: int, holder: str) -> Callable[[], None]:
        """Wait in line for a permit, and return what gives it back. It may be called again, and then does nothing.

        First come, first served. Who is cancelled leaves the line. Who has died holds nothing: after a while his permit
        is the next one's.

        Args:
            name: Begins with the namespace and a slash.
            limit: How many permits of this name there may be with this one.
            holder: Who asks, for a person who looks. Nothing depends on it.
        """
