"""Results that runs share, in Redis: one call of all that want one makes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import RedisError

from onward.cache import Owner, StillMade
from onward_runlog import keys
from onward_runlog.connection import Argument
from onward_runlog.errors import StoreUnavailable
from onward_runlog.store import Store

logger = logging.getLogger(__name__)

MAKING_TTL_S = 15.0
"""Who makes a result and does not say so for so long is dead, and another makes it."""

MAKING_MAX_S = 3600.0
"""Who makes a result for longer loses the claim: code that hangs must not hang every run that wants the same."""

ASK_S = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Pauses of who waits for a result that another process makes; the last one repeats."""


class RedisCache:
    """`onward.cache.Cache` for all runs that a process holds.

    Who waits asks again, now and then: for each result one call of the process does, and the others stand in line
    behind it. What this process makes itself it hears of at once.
    """

    def __init__(self, store: Store, *, making_ttl_s: float = MAKING_TTL_S) -> None:
        self._store = store
        self._making_ttl_s = making_ttl_s
        self._renewals: dict[tuple[str, Owner], asyncio.Task[None]] = {}
        self._lines: dict[str, _Line] = {}

    async def take(self, key: str, owner: Owner, *, patience_s: float | None = None) -> bytes | None:
        """See Cache.take."""
        try:
            async with asyncio.timeout(patience_s):
                # Everybody asks once before standing in line: a later attempt is given at once what an earlier one had.
                answered, value = await self._ask(key, owner)
                if answered:
                    return value
                with self._in_line(key) as line:
                    async with line.first:
                        return await self._first_asks(key, owner, line.changed)
        except TimeoutError:
            raise StillMade(key) from None
        except (RedisError, StoreUnavailable) as error:
            raise ConnectionError(f"the cache does not answer: {error}") from error

    def keep(self, key: str, owner: Owner, value: bytes, ttl_s: float) -> None:
        """See Cache.keep."""
        self._end(key, owner, "cache_keep", value, max(1, round(ttl_s * 1000)))

    def release(self, key: str, owner: Owner) -> None:
        """See Cache.release."""
        self._end(key, owner, "cache_release")

    async def _first_asks(self, key: str, owner: Owner, changed: asyncio.Event) -> bytes | None:
        asked = 0
        while True:
            changed.clear()
            answered, value = await self._ask(key, owner)
            if answered:
                return value
            pause_s = ASK_S[min(asked, len(ASK_S) - 1)]
            asked += 1
            try:
                async with asyncio.timeout(pause_s):
                    await changed.wait()
            except TimeoutError:
                pass

    async def _ask(self, key: str, owner: Owner) -> tuple[bool, bytes | None]:
        """Return whether there is an answer, and what is kept; None where the owner makes it."""
        try:
            status, *rest = await self._take(key, owner)
        except asyncio.CancelledError:
            self._end(key, owner, "cache_release")  # It may have been given the making, and will not make it.
            raise
        if status == b"make" and (key, owner) not in self._renewals:
            self._renewals[key, owner] = asyncio.create_task(self._renew(key, owner), name="cache renewal")
        return status != b"wait", rest[0] if rest else None

    def _take(self, key: str, owner: Owner) -> asyncio.Future[Any]:
        return self._call("cache_take", key, *owner, int(self._making_ttl_s * 1000))

    async def _renew(self, key: str, owner: Owner) -> None:
        pause_s = self._making_ttl_s / 3
        for _ in range(int(MAKING_MAX_S / pause_s)):
            await asyncio.sleep(pause_s)
            try:
                await self._take(key, owner)
            except (RedisError, StoreUnavailable) as error:
                logger.debug("the making of a cached result is not renewed: %s", error)

    def _end(self, key: str, owner: Owner, function: str, *arguments: Argument) -> None:
        renewal = self._renewals.pop((key, owner), None)
        if renewal is not None:
            renewal.cancel()
        self._call(function, key, *owner, *arguments).add_done_callback(lambda reply: self._ended(key, reply))

    def _ended(self, key: str, reply: asyncio.Future[Any]) -> None:
        if not reply.cancelled() and (error := reply.exception()) is not None:
            logger.warning("a result was not cached: %s", error)
        line = self._lines.get(key)
        if line is not None:
            line.changed.set()

    def _call(self, function: str, key: str, *arguments: Argument) -> asyncio.Future[Any]:
        base = keys.base(keys.partition_of(key, self._store.partitions))
        return self._store.call(function, base, key, *arguments, patience_s=float("inf"))

    @contextmanager
    def _in_line(self, key: str) -> Iterator[_Line]:
        line = self._lines.setdefault(key, _Line())
        line.waiting += 1
        try:
            yield line
        finally:
            line.waiting -= 1
            if not line.waiting:
                del self._lines[key]


class _Line:
    """The calls of this process that want one result."""

    def __init__(self) -> None:
        self.waiting = 0
        self.first = asyncio.Lock()
        """Held by the one that asks."""
        self.changed = asyncio.Event()
        """This process kept the result, or gave it up."""
