"""The seam between model calls and what the whole fleet knows of an outage: whether a provider answers anybody.

While it does, nobody is asked. Where nobody gets an answer any more, calls wait instead of failing one after the
other: one at a time asks the provider, and once that is answered the others follow, more and more of them. Implemented
on Redis by `onward_runlog`. Without breakers (in tests by `onward.testing`) every call finds out for itself.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    """Whether a call may go.

    Attributes:
        delay_s: Seconds after which it is to ask again; 0 where it may go now.
        probe: It alone goes, to find out. It tells how that ended: `answered`, `failed` or `left`.
        down_s: How long the outage has lasted; 0 where there is none.
    """

    delay_s: float = 0.0
    probe: bool = False
    down_s: float = 0.0


class Breakers(Protocol):
    """Breakers by name. One event loop uses it. A name stands for one provider and model."""

    def tripped(self, name: str) -> bool:
        """Tell whether a provider is down or coming back, as far as is known here. Asks nobody."""

    async def enter(self, name: str, call: str) -> Entry:
        """Ask whether a call may go.

        Args:
            name: The breaker.
            call: Names one try of one call: its run, its instance, its number. The same one may ask again.

        Raises:
            ConnectionError: The breakers do not answer.
        """

    def answered(self, name: str, call: str) -> None:
        """Tell that a provider answered, whatever it said. Nobody waits for this."""

    async def failed(self, name: str, call: str, took_s: float) -> float | None:
        """Tell that a provider did not answer.

        Args:
            name: The breaker.
            call: As for `enter`.
            took_s: How long ago it was asked.

        Returns:
            How many seconds the outage has lasted; None where there is none, and the failure is the call's own.

        Raises:
            ConnectionError: The breakers do not answer.
        """

    def left(self, name: str, call: str) -> None:
        """Tell that a call which was let go ended with neither. Nobody waits for this."""
