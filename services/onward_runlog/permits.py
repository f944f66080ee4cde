"""Permits in Redis: at most so many of a name at once, over all executors, first come, first served."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from redis.exceptions import RedisError

from onward_runlog import keys
from onward_runlog.connection import Argument
from onward_runlog.errors import StoreUnavailable
from onward_runlog.store import Store
from onward_runlog.subscription import messages

logger = logging.getLogger(__name__)

LEASE_TTL_S = 10.0
"""Whose process says nothing for so long holds no permit and has no place in line. Longer than the lease of a run: a
process whose event loop stands still loses its runs before."""

BEATS = 4
"""How often leases are renewed in the time of one. Each renewal also finds what a message has not told."""

ASKED_MAX = 500
"""Permits in one call."""


@dataclass(eq=False, slots=True)
class _Asked:
    """A permit that is held or waited for.

    Attributes:
        id: New with each question, so that a late reply or a repeat means this one and no other.
        granted: Done when it is held.
    """

    id: str
    name: str
    limit: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def held(self) -> bool:
        return self.granted.done() and not self.granted.cancelled()

    def grant(self) -> None:
        if not self.granted.done():
            self.granted.set_result(None)


class RedisPermits:
    """`onward.permits.Permits` for all runs that a process holds.

    Who gives a permit back hands it to the first in line, whose process is told on a channel of its own: nobody else
    wakes up. While the store is away who waits waits on, and who holds a permit runs on.
    """

    def __init__(self, store: Store, *, ttl_s: float = LEASE_TTL_S) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._process = secrets.token_hex(8)
        self._channel = keys.granted_channel(self._process)
        self._numbers = count(1)
        self._asked: dict[str, _Asked] = {}
        self._waits = asyncio.Event()
        """Set when somebody has to wait: until then nothing is listened to."""
        self._failing = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RedisPermits]:
        """Renew and listen until the block ends. What is still held then is left to its lease."""
        tasks = [
            asyncio.create_task(self._renew_for_ever(), name="permits renewal"),
            asyncio.create_task(self._listen(), name="permits granted"),
        ]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def acquire(self, name: str, limit: int, holder: str) -> Callable[[], None]:
        """See Permits.acquire."""
        asked = _Asked(f"{holder}/{self._process}.{next(self._numbers)}", name, limit)
        self._asked[asked.id] = asked
        try:
            await self._ask(name, [asked])
            if not asked.held:
                self._waits.set()
            await asked.granted
        except BaseException:
            self._release(asked)  # It may have been granted, or have a place in line.
            raise
        return partial(self._release, asked)

    def _release(self, asked: _Asked) -> None:
        if self._asked.pop(asked.id, None) is not None:
            self._call("permit_release", asked.name, asked.id).add_done_callback(_released)

    async def _listen(self) -> None:
        await self._waits.wait()
        async with aclosing(messages(self._store.url, [self._channel])) as granted:
            async for message in granted:
                if message is None:  # What was told before is lost.
                    await self._renew(asked for asked in self._asked.values() if not asked.held)
                elif (asked := self._asked.get(message.data.decode())) is not None:
                    asked.grant()

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / BEATS)
            await self._renew(self._asked.values())

    async def _renew(self, renewed: Iterable[_Asked]) -> None:
        by_name: dict[str, list[_Asked]] = {}
        for asked in renewed:
            by_name.setdefault(asked.name, []).append(asked)
        await asyncio.gather(
            *(
                self._ask(name, all_of_it[first : first + ASKED_MAX])
                for name, all_of_it in by_name.items()
                for first in range(0, len(all_of_it), ASKED_MAX)
            )
        )

    async def _ask(self, name: str, group: Sequence[_Asked]) -> None:
        """Ask for permits, and renew those that are held or waited for. Who gets no answer is asked for again."""
        arguments: list[Argument] = []
        # Given back since, and renewed after that, it would be nobody's for as long as a lease.
        group = [asked for asked in group if asked.id in self._asked]
        if not group:
            return
        for asked in group:
            arguments += (asked.id, asked.limit, int(asked.held))
        try:
            replies = await self._call("permit_take", name, int(self._ttl_s * 1000), self._channel, *arguments)
        except (RedisError, StoreUnavailable) as error:
            if not self._failing:
                logger.warning("permits are not renewed, trying on: %s", error)
            self._failing = True
            return
        self._failing = False
        for asked, held in zip(group, replies, strict=True):
            if held:
                asked.grant()

    def _call(self, function: str, name: str, *arguments: Argument) -> asyncio.Future[list[int]]:
        base = keys.base(keys.partition_of(name, self._store.partitions))
        return self._store.call(function, base, name, *arguments, patience_s=float("inf"))


def _released(reply: asyncio.Future[list[int]]) -> None:
    if not reply.cancelled() and (error := reply.exception()) is not None:
        logger.warning("a permit is left to its lease: %s", error)
