"""How busy a Gateway is. A message costs it much more than an event, so while it is busy events wait for company."""

from __future__ import annotations

import time
from pathlib import Path

BUSY_SHARE = 0.5
"""Of the time: an event loop that wants its core for more of it soon makes readers wait for each other."""

LOOK_S = 0.1
"""How often it is looked."""

SCHEDULED = Path("/proc/self/schedstat")
"""Where Linux tells how long a process's first thread has run, and how long it has waited for a core to run on."""


class Pace:
    """How much of the time the event loop of this process, in its first thread, wants to run.

    It has no timer: it is looked when somebody asks.
    """

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._wanted_s = wanted_s()
        self._busy = False

    def busy(self) -> bool:
        """Say whether that was more than BUSY_SHARE of late."""
        passed_s = time.monotonic() - self._looked_at
        if passed_s >= LOOK_S:
            before_s, self._wanted_s = self._wanted_s, wanted_s()
            self._busy = self._wanted_s - before_s > BUSY_SHARE * passed_s
            self._looked_at += passed_s
        return self._busy


def wanted_s() -> float:
    """Return how long the first thread has run or waited to run until now, in seconds."""
    try:
        ran, waited, _ = SCHEDULED.read_text().split()
    except (OSError, ValueError):  # not Linux, or one that does not tell
        return time.process_time()
    return (int(ran) + int(waited)) / 1e9
