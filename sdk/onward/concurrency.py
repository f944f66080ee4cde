"""How many instances of a component run at once: each try waits for a permit, and gives it back when it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onward.retry import NotRetryable
from onward.signature import dump_any

if TYPE_CHECKING:
    from onward.instance import Instance

logger = logging.getLogger(__name__)

LIMIT_MAX = 1_000_000

LONG_S = 60.0
"""Who has waited for so long is named in the process log, and again each time when that has doubled."""

NOTED_S = 0.01
"""A shorter wait is not noted in the span."""


@dataclass(frozen=True, slots=True)
class ConcurrencyLimit:
    """How many at once, and of what.

    Attributes:
        limit: At most so many.
        key: Calls with different keys are counted apart. A function makes it of the arguments.
    """

    limit: int
    key: str | Callable[..., Any] = ""

    @classmethod
    def of(cls, limit: int, *, key: str | Callable[..., Any]) -> ConcurrencyLimit:
        """Return the limit as `Component.concurrency` takes it.

        Raises:
            ValueError: It is no number from 1.
        """
        if type(limit) is not int or not 1 <= limit <= LIMIT_MAX:
            raise ValueError(f"1 to {LIMIT_MAX} run at once, not {limit!r}")
        return cls(limit, key)

    def identity(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return what a call of the component `name` is counted with.

        Raises:
            Exception: What `key` raises, or that it gives has no JSON form.
        """
        key = self.key(*args, **kwargs) if callable(self.key) else self.key
        return b"\0".join((name.encode(), dump_any(key, f"the concurrency key of {name}")))


async def permit(
    limit: ConcurrencyLimit, instance: Instance, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], None]:
    """Wait until a try may run, and return what is to be called when it has ended.

    Args:
        limit: That of the component.
        instance: The try.
        args: What it is called with, as `kwargs`.

    Raises:
        NotRetryable: It is called below one that it would wait for.
        Exception: What the limit's key raises.
    """
    journal = instance.journal
    # A run is not limited: it is its calls that are.
    if journal.permits is None or instance.parent is None:
        return _nothing
    name = f"{journal.namespace}/{journal.digest(limit.identity(instance.name, args, kwargs)).hex()}"
    if name in instance.permits:
        raise NotRetryable(
            f"{instance.name} has a limit of {limit.limit} at once and is called below itself: calls that hold one "
            "permit and wait for another could wait for ever. Limit what it calls, or give the calls below another key"
        )
    began = time.monotonic()
    with _named_when_long(instance, limit.limit):
        holder = f"{journal.namespace}/{journal.run_id}/{instance.id}/{journal.attempt}"
        release = await journal.permits.acquire(name, limit.limit, holder)
    instance.permits = (*instance.permits, name)
    waited_s = time.monotonic() - began
    if instance.span is not None and waited_s >= NOTED_S:
        instance.span.add_event("permit", {"onward.limit": limit.limit, "onward.waited_s": round(waited_s, 3)})
    return release


def _nothing() -> None:
    pass


@contextmanager
def _named_when_long(instance: Instance, limit: int) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def name(waited_s: float) -> None:
        nonlocal timer
        logger.warning(
            "%s of run %s has waited for %.0f s: %d run at once on all executors, and that is its limit",
            instance.name,
            instance.journal.run_id,
            waited_s,
            limit,
        )
        timer = loop.call_later(waited_s, name, 2 * waited_s)

    timer = loop.call_later(LONG_S, name, LONG_S)
    try:
        yield
    finally:
        timer.cancel()
