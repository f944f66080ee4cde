"""Budgets of all executors, in Redis: who may ask a provider, and when."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from redis.exceptions import RedisError

from onward.budgets import LEARNED_S, Caller, Limit
from onward_runlog import keys
from onward_runlog.announced import Announced
from onward_runlog.connection import Argument
from onward_runlog.errors import StoreUnavailable
from onward_runlog.store import Store

logger = logging.getLogger(__name__)

TOKENS_MAX = 2**53
"""The store counts in floating point: up to here it does so exactly."""


class RedisBudgets:
    """`onward.budgets.Budgets` for all runs that a process holds.

    Names that are limited though nobody declared it are pushed to every process, so that a call under no limit asks
    nothing.
    """

    def __init__(self, store: Store, *, on_wait: Callable[[float], None] = lambda _delay_s: None) -> None:
        """Args:
        on_wait: Called with the seconds that a call is told to wait.
        """
        self._store = store
        self._on_wait = on_wait
        self._limited = Announced(store, keys.BUDGETS, keys.budgets)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[RedisBudgets]:
        """Hear of what others learn until the block ends."""
        async with self._limited.heard():
            yield self

    def limited(self, name: str) -> bool:
        """See Budgets.limited."""
        return name in self._limited

    async def reserve(
        self, name: str, caller: Caller, asked: int, *, tokens: float | None, requests: float | None, window_s: float
    ) -> float | None:
        """See Budgets.reserve."""
        limits = ("" if tokens is None else str(tokens), "" if requests is None else str(requests))
        window_ms = max(1, round(window_s * 1000))
        try:
            amount = min(max(1, asked), TOKENS_MAX)
            reply = self._call("budget_reserve", name, *caller, amount, *limits, window_ms)
            status, *delay_ms = await reply
        except (RedisError, StoreUnavailable) as error:
            raise ConnectionError(f"the budgets do not answer: {error}") from error
        if status == b"free":
            return None
        if status != b"wait":
            return 0.0
        delay_s = int(delay_ms[0]) / 1000
        self._on_wait(delay_s)
        return delay_s

    def settle(self, name: str, caller: Caller, *, tokens: int | None = None, requests: int = 1) -> None:
        """See Budgets.settle."""
        used: Argument = "" if tokens is None else min(tokens, TOKENS_MAX)
        reply = self._call("budget_settle", name, caller.call, caller.attempt, used, requests)
        reply.add_done_callback(_told)

    def learn(
        self, name: str, *, refused: bool, after_s: float | None, tokens: Limit | None, requests: Limit | None
    ) -> None:
        """See Budgets.learn."""
        self._limited.add(name, LEARNED_S)
        after: Argument = "" if after_s is None else round(after_s * 1000)
        ttl_ms = round(LEARNED_S * 1000)
        reply = self._call("budget_learn", name, int(refused), after, *_said(tokens), *_said(requests), ttl_ms)
        reply.add_done_callback(_told)

    def _call(self, function: str, name: str, *arguments: Argument) -> asyncio.Future[Any]:
        base = keys.base(keys.partition_of(name, self._store.partitions))
        return self._store.call(function, base, name, *arguments, patience_s=float("inf"))


def _said(limit: Limit | None) -> tuple[Argument, Argument, Argument]:
    if limit is None:
        return "", "", ""
    left = "" if limit.left is None else str(limit.left)
    return str(limit.amount), max(1, round(limit.window_s * 1000)), left


def _told(reply: asyncio.Future[Any]) -> None:
    if not reply.cancelled() and (error := reply.exception()) is not None:
        logger.warning("a budget was not told what was used: %s", error)
