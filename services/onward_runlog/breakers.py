"""Breakers of all executors, in Redis: whether a provider answers anybody, and who may find out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from itertools import count
from random import random
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError

from onward.breakers import Entry
from onward_runlog import keys
from onward_runlog.announced import Announced
from onward_runlog.connection import Argument
from onward_runlog.errors import StoreUnavailable
from onward_runlog.store import Store

logger = logging.getLogger(__name__)

TELL_S = 1.0
"""How often it is told that a provider answers. Failures are told at once, and with them what was answered before."""

RENEW_S = 5.0
"""How often a probe that is under way is renewed. Its lease is three times as long."""

KNOWN_S = 600.0
"""How long a breaker is asked that was not heard of again."""


class RedisBreakers:
    """`onward.breakers.Breakers` for all runs that a process holds."""

    def __init__(self, store: Store, *, on_wait: Callable[[float], None] = lambda _delay_s: None) -> None:
        """Args:
        on_wait: Called with the seconds that a call is told to wait.
        """
        self._store = store
        self._on_wait = on_wait
        self._tripped = Announced(store, keys.BREAKERS, keys.breakers)
        self._answers: dict[str, tuple[int, float]] = {}
        """Since the last report, by name: how many, and when the newest came by the loop's clock."""
        self._telling: asyncio.TimerHandle | None = None
        self._probes: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._reporter = uuid4().hex
        self._reports = count(1)
        """Each has a number, so that one whose reply was lost and that is sent again counts once."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[RedisBreakers]:
        """Hear of outages until the block ends."""
        async with self._tripped.heard():
            try:
                yield self
            finally:
                if self._telling is not None:
                    self._telling.cancel()
                for renewing in self._probes.values():
                    renewing.cancel()
                await asyncio.gather(*self._probes.values(), return_exceptions=True)

    def tripped(self, name: str) -> bool:
        """See Breakers.tripped."""
        return name in self._tripped

    async def enter(self, name: str, call: str) -> Entry:
        """See Breakers.enter."""
        status, *told_ms = await self._asked(self._call("breaker_enter", name, call))
        if status == b"wait":
            delay_s = max(0.001, int(told_ms[0]) / 1000)
            self._on_wait(delay_s)
            return Entry(delay_s, down_s=int(told_ms[1]) / 1000)
        if status == b"closed":
            self._tripped.discard(name)
        if status == b"probe" and (name, call) not in self._probes:
            self._probes[name, call] = asyncio.create_task(self._renew(name, call), name=f"probe: {call}")
        return Entry(probe=status == b"probe")

    def answered(self, name: str, call: str) -> None:
        """See Breakers.answered."""
        loop = asyncio.get_running_loop()
        self._answers[name] = (self._answers.get(name, (0, 0.0))[0] + 1, loop.time())
        if self._ended(name, call) or name in self._tripped:
            self._report(name, call).add_done_callback(_told)
        elif self._telling is None:
            self._telling = loop.call_later(TELL_S, self._tell)

    async def failed(self, name: str, call: str, took_s: float) -> float | None:
        """See Breakers.failed."""
        self._ended(name, call)
        status, *down_ms = await self._asked(self._report(name, call, failures=1, took_s=took_s))
        if status == b"closed":
            return None
        self._tripped.add(name, KNOWN_S)
        return int(down_ms[0]) / 1000

    def left(self, name: str, call: str) -> None:
        """See Breakers.left."""
        if self._ended(name, call):
            self._report(name, call).add_done_callback(_told)

    def _tell(self) -> None:
        self._telling = None
        for name in list(self._answers):
            self._report(name, "").add_done_callback(_told)

    def _report(self, name: str, call: str, *, failures: int = 0, took_s: float = 0.0) -> asyncio.Future[Any]:
        answers, at = self._answers.pop(name, (0, 0.0))
        age_ms = round((asyncio.get_running_loop().time() - at) * 1000) if answers else 0
        jitter = f"{random():.3f}"
        told = (answers, age_ms, failures, round(took_s * 1000), jitter)
        return self._call("breaker_report", name, call, *told, self._reporter, next(self._reports))

    def _ended(self, name: str, call: str) -> bool:
        """Note that a call is over. Returns whether it was a probe."""
        renewing = self._probes.pop((name, call), None)
        if renewing is not None:
            renewing.cancel()
        return renewing is not None

    async def _renew(self, name: str, call: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(RedisError, StoreUnavailable):
                await self._call("breaker_renew", name, call)

    async def _asked(self, reply: asyncio.Future[Any]) -> Any:
        try:
            return await reply
        except (RedisError, StoreUnavailable) as error:
            raise ConnectionError(f"the breakers do not answer: {error}") from error

    def _call(self, function: str, name: str, *arguments: Argument) -> asyncio.Future[Any]:
        base = keys.base(keys.partition_of(name, self._store.partitions))
        return self._store.call(function, base, name, *arguments, patience_s=float("inf"))


def _told(reply: asyncio.Future[Any]) -> None:
    if not reply.cancelled() and (error := reply.exception()) is not None:
        logger.warning("a breaker was not told how a provider does: %s", error)
