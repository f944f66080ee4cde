"""How long a component may take: a try, all of it, and the items of its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from onward.durations import Duration, seconds, text
from onward.retry import TotalTimeout, TryTimeout


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a component, in seconds. None is without limit.

    Attributes:
        each_s: One try.
        total_s: All tries, with the waits between them, over all attempts of the run.
        first_s: From the beginning of a try of a stream to its first item.
        between_s: From one item of a stream to the next, and from the last to its end.
    """

    each_s: float | None = None
    total_s: float | None = None
    first_s: float | None = None
    between_s: float | None = None

    @classmethod
    def of(
        cls,
        each: Duration | None,
        *,
        total: Duration | None = None,
        first: Duration | None = None,
        between: Duration | None = None,
    ) -> Limits:
        """Return the limits as `Component.timeout` takes them.

        Raises:
            ValueError: One is not a duration above 0.
        """
        limits = cls(*(None if one is None else above_0(seconds(one)) for one in (each, total, first, between)))
        return UNLIMITED if limits == UNLIMITED else limits

    def item(self, *, first: bool) -> tuple[float | None, str]:
        """Return how long the next item of a stream may take, and what an item that takes longer is told with."""
        limit_s = self.first_s if first else self.between_s
        if limit_s is None:
            return None, ""
        return limit_s, f"no {'first' if first else 'further'} item within {text(limit_s)}"


UNLIMITED = Limits()


def above_0(timeout_s: float) -> float:
    """Return a limit that leaves time to run.

    Raises:
        ValueError: It does not.
    """
    if timeout_s == 0:
        raise ValueError("a timeout of 0 leaves no time to run")
    return timeout_s


def try_timeout(limit_s: float) -> TryTimeout:
    """Return the error of a try that took too long."""
    return TryTimeout(f"no result within {text(limit_s)}")


def total_timeout(limit_s: float) -> TotalTimeout:
    """Return the error of a component that took too long in all."""
    return TotalTimeout(f"no result within {text(limit_s)} in all, every try counted")


@asynccontextmanager
async def within(left_s: float, error: TryTimeout) -> AsyncIterator[None]:
    """Cancel the block and raise `error` when the time is up; at once where none is left."""
    if left_s <= 0:
        raise error
    try:
        async with asyncio.timeout(left_s) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise error from None
        raise
