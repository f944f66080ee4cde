"""An outbox: what has to be done elsewhere because of something in a run, at least once and by any Scheduler.

An entry is written by the call that makes it necessary, so neither can be without the other. It is removed only when
its handler has returned; one that does not work out now is taken again later, and holds up nobody else. Hooks have an
outbox of their own, since only so many entries are under way at a time, and receivers may be slow.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from onward_runlog import keys
from onward_runlog.errors import QueueFull, RunLogError, StoreUnavailable
from onward_runlog.runs import HOOKS, OUTBOX, Entry, Runs, kind_of
from onward_runlog.store import Store
from onward_runlog.subscription import messages

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often every outbox is looked at: hints get lost."""

AGAIN_FIRST_S = 1.0
"""Pause before an entry that did not work out is taken again. It is three times as long each time."""


DOING_MAX = 256
"""With so many entries under way no more are taken: what ten thousand runs that end at once call for takes its turn."""


@dataclass(frozen=True)
class Care:
    """How the entries of an outbox are dealt with.

    Attributes:
        outbox: Which one it is, in each partition.
        busy_s: How long it is left to the Scheduler that took it, which gives up after half of that.
        again_max_s: The longest pause before it is taken again.
        tries_max: Then it is given up; None is never.
    """

    outbox: str
    busy_s: float
    again_max_s: float
    tries_max: int | None


HOOK = Care(outbox=HOOKS, busy_s=60.0, again_max_s=4 * 3600.0, tries_max=15)
"""A receiver outside may be slow, or away for a day."""

ERRAND = Care(outbox=OUTBOX, busy_s=10.0, again_max_s=30.0, tries_max=None)
"""A run waits for another one: soon, and for ever."""

Handler = Callable[[Entry], Awaitable[None]]


class Later(Exception):
    """It does not work out now, and may another time."""


async def _unknown(entry: Entry) -> None:
    raise Later(f"this Scheduler does not know what {entry.kind!r} is; a newer one does")


class Outbox:
    """Does what is in one outbox of all partitions. Every Scheduler has both.

    Args:
        store: The store.
        runs: Takes and settles entries.
        care: Which outbox, and how its entries are dealt with.
        handlers: By the kind of an entry. What they do is idempotent; they raise `Later` for another try.
    """

    def __init__(self, store: Store, runs: Runs, care: Care, handlers: Mapping[str, Handler]) -> None:
        self._store = store
        self._runs = runs
        self._care = care
        self._handlers = handlers
        self._hinted: set[str] = set()
        self._wanted = asyncio.Event()
        self._doing: set[asyncio.Task[None]] = set()
        self._left: set[str] = set()
        """Partitions in which more may be due than could be taken."""

    async def empty_for_ever(self) -> None:
        """Do what is due until cancelled; what is under way then comes again."""
        try:
            while True:
                bases = self._store.bases()
                try:
                    async with asyncio.timeout(LOOK_S * random.uniform(0.8, 1.0)):
                        await self._wanted.wait()
                    bases = list(self._hinted)
                except TimeoutError:
                    pass
                self._wanted.clear()
                self._hinted.clear()
                try:
                    await asyncio.gather(*(self._empty(base) for base in bases))
                except StoreUnavailable as error:
                    logger.debug("the outbox waits for the store: %s", error)
                except Exception:
                    logger.exception("the outbox cannot be read")
        finally:
            doing = list(self._doing)
            for task in doing:
                task.cancel()
            await asyncio.gather(*doing, return_exceptions=True)

    async def listen(self) -> None:
        """Learn of entries from whoever writes them, until cancelled."""
        channels = {keys.posted_channel(base): base for base in self._store.bases()}
        async for message in messages(self._store.url, list(channels)):
            if message is not None and kind_of(message.data.decode()) in self._handlers:
                self._hinted.add(channels[message.channel])
                self._wanted.set()

    async def _empty(self, base: str) -> None:
        while len(self._doing) < DOING_MAX:
            entries = await self._runs.take(base, self._care.outbox, busy_s=self._care.busy_s)
            if not entries:
                return
            for entry in entries:
                task = asyncio.create_task(self._do(entry), name=f"outbox {entry.id}")
                self._doing.add(task)
                task.add_done_callback(self._done)
        self._left.add(base)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._doing.discard(task)
        if self._left and len(self._doing) < DOING_MAX:
            self._hinted |= self._left
            self._left.clear()
            self._wanted.set()

    async def _do(self, entry: Entry) -> None:
        again_s: float | None = None
        try:
            async with asyncio.timeout(self._care.busy_s / 2):
                await self._handlers.get(entry.kind, _unknown)(entry)
        except (Later, QueueFull, StoreUnavailable, TimeoutError) as error:
            again_s = self._again_s(entry)
            level = logging.INFO if again_s is not None else logging.ERROR
            then = "given up" if again_s is None else f"again in {again_s:.0f} s"
            logger.log(
                level, "%s: %s after %d tries: %s", entry.id, then, entry.tries, str(error) or type(error).__name__
            )
        except RunLogError as error:
            logger.info("%s: nothing is left to do: %s", entry.id, error)
        except Exception:
            again_s = self._again_s(entry) if self._care.tries_max is None else None
            logger.exception("%s: %s for a bug", entry.id, "given up" if again_s is None else "put off")
        try:
            await self._runs.settle(entry, again_s)
        except StoreUnavailable:
            logger.debug("%s comes again: the store does not answer", entry.id)

    def _again_s(self, entry: Entry) -> float | None:
        care = self._care
        if care.tries_max is not None and entry.tries >= care.tries_max:
            return None
        return min(care.again_max_s, AGAIN_FIRST_S * 3.0 ** min(entry.tries - 1, 20)) * random.uniform(0.8, 1.2)
