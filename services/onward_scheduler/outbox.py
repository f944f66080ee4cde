"""The outbox: what has to be done elsewhere because of something in a run, at least once and by any Scheduler.

An entry is written by the call that makes it necessary, so neither can be without the other. It is removed only when
its handler has returned; one that does not work out now is taken again later, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from onward_runlog import keys
from onward_runlog.errors import QueueFull, RunLogError, StoreUnavailable
from onward_runlog.runs import Entry, Runs
from onward_runlog.store import Store
from onward_runlog.subscription import messages

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often every outbox is looked at: hints get lost."""

BUSY_S = 60.0
"""How long an entry is left to the Scheduler that took it. Handlers give up before."""

AGAIN_FIRST_S, AGAIN_LAST_S = 1.0, 4 * 3600.0
"""Pause before an entry that did not work out is taken again: three times as long each time, up to the last."""

DOING_MAX = 256
"""With so many entries under way no more are taken: what ten thousand runs that end at once call for takes its turn."""

TRIES_MAX = 15
"""Then it is given up. That is after a day."""

Handler = Callable[[Entry], Awaitable[None]]


class Later(Exception):
    """It does not work out now, and may another time."""


async def _unknown(entry: Entry) -> None:
    raise Later(f"this Scheduler does not know what {entry.kind!r} is; a newer one does")


class Outbox:
    """Does what is in the outboxes of all partitions. Every Scheduler has one.

    Args:
        store: The store.
        runs: Takes and settles entries.
        handlers: By the kind of an entry. What they do is idempotent; they raise `Later` for another try.
    """

    def __init__(self, store: Store, runs: Runs, handlers: Mapping[str, Handler]) -> None:
        self._store = store
        self._runs = runs
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
        finally:
            doing = list(self._doing)
            for task in doing:
                task.cancel()
            await asyncio.gather(*doing, return_exceptions=True)

    async def listen(self) -> None:
        """Learn of entries from whoever writes them, until cancelled."""
        channels = {keys.posted_channel(base): base for base in self._store.bases()}
        async for message in messages(self._store.url, list(channels)):
            if message is not None:
                self._hinted.add(channels[message.channel])
                self._wanted.set()

    async def _empty(self, base: str) -> None:
        while len(self._doing) < DOING_MAX:
            entries = await self._runs.take(base, busy_s=BUSY_S)
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
            async with asyncio.timeout(BUSY_S / 2):
                await self._handlers.get(entry.kind, _unknown)(entry)
        except (Later, QueueFull, StoreUnavailable, TimeoutError) as error:
            again_s = min(AGAIN_LAST_S, AGAIN_FIRST_S * 3 ** (entry.tries - 1)) * random.uniform(0.8, 1.2)
            if entry.tries >= TRIES_MAX:
                again_s = None
            level = logging.INFO if again_s is not None else logging.ERROR
            then = "given up" if again_s is None else f"again in {again_s:.0f} s"
            logger.log(
                level, "%s: %s after %d tries: %s", entry.id, then, entry.tries, str(error) or type(error).__name__
            )
        except RunLogError as error:
            logger.info("%s: nothing is left to do: %s", entry.id, error)
        except Exception:
            logger.exception("%s: given up for a bug", entry.id)
        try:
            await self._runs.settle(entry, again_s)
        except StoreUnavailable:
            logger.debug("%s comes again: the store does not answer", entry.id)
