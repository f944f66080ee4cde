"""The runs that an executor holds: whose code is stopped as soon as somebody else has the run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.proxy import proxy_to
from tests.runlog import CANCELLED, PAUSED, SUCCEEDED, a_run, append, ended, park, status

import onward
from onward import workflow
from onward.v1.executor_service_pb2 import ExecuteRequest, Executor
from onward.workflows import Workflow
from onward_executor.holding import Holding
from onward_runlog import keys
from onward_runlog.breakers import RedisBreakers
from onward_runlog.budgets import RedisBudgets
from onward_runlog.permits import RedisPermits
from onward_runlog.runs import Runs
from onward_runlog.store import Store, open_store
from onward_runlog.writer import LogWriter

pytestmark = pytest.mark.usefixtures("one_partition")

BASE = keys.base(0)


@contextlib.asynccontextmanager
async def holding(store: Store, writer: LogWriter, served: Workflow[..., Any, Any]) -> AsyncIterator[Holding]:
    """An executor's runs, without the executor."""
    executor = Executor(executor_id="e1", deployment="build", slots=10)
    async with (
        RedisPermits(store).opened() as permits,
        RedisBudgets(store).opened() as budgets,
        RedisBreakers(store).opened() as breakers,
    ):
        made = Holding(store, writer, permits, budgets, breakers, {served.name: served}, executor, lease_ttl_s=0.25)
        async with made.heartbeat.beating():
            yield made
            await made.hand_over()


async def given(runs: Runs, run_id: str = "run", *, attempt: int = 1) -> ExecuteRequest:
    """What gives this executor a run."""
    _, _, taken = await runs.submit(a_run(run_id), holder="e1", ttl_s=60)
    assert taken is not None
    return ExecuteRequest(run=taken.run, attempt=attempt, log_key=taken.log_key, cause=taken.cause)


@pytest.mark.parametrize("becomes", ["running", "parked", "paused", "ended"])
async def test_code_is_stopped_whatever_became_of_the_run_elsewhere(
    store: Store, runs: Runs, writer: LogWriter, becomes: str
) -> None:
    """It says nothing and would not find out by itself: the next renewals tell."""
    begun, stopped = asyncio.Event(), asyncio.Event()

    @workflow
    async def blog() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with holding(store, writer, blog) as held, asyncio.timeout(10):
        run, request = a_run(), await given(runs)
        held.take(request)
        await begun.wait()
        assert await runs.lose("default", "run", 1, "lost")
        [taken] = await runs.claim(BASE, "build", holder="e2", ttl_s=60, limit=1)
        reply = await append(store, run, taken.attempt, 1, status())
        match becomes:
            case "parked":
                assert (await park(store, run, taken.attempt, 2, reply.last_offset, "go")).status == "ok"
            case "paused":
                await append(store, run, taken.attempt, 2, ended(PAUSED), end=PAUSED)
            case "ended":
                await append(store, run, taken.attempt, 2, ended(), end=SUCCEEDED)
        await stopped.wait()
        await held.emptied(10)
        assert held.running == 0


@pytest.mark.parametrize("learns", ["append", "renewal"])
async def test_the_operators_grace_holds_however_a_cancellation_is_learned_of(
    store: Store, runs: Runs, writer: LogWriter, learns: str
) -> None:
    """Not only where the Scheduler's call comes first: code that cleans up for too long is left alone after it."""
    begun, cancelled, enough = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @workflow
    async def blog() -> None:
        begun.set()
        try:
            await cancelled.wait()
            onward.status("a word")
            await asyncio.Event().wait()
        finally:
            await enough.wait()

    async with holding(store, writer, blog) as held, asyncio.timeout(8):
        request = await given(runs)
        request.cancel_grace.FromMilliseconds(50)
        request.lease_ttl.FromMilliseconds(250 if learns == "renewal" else 60_000)
        held.take(request)
        await begun.wait()
        await runs.cancel("default", "run", "enough")
        if learns == "append":
            cancelled.set()
        await held.emptied(8)
        assert held.running == 0
        assert (await runs.get("default", "run")).state == CANCELLED
        enough.set()


async def test_handing_over_ends_also_while_the_store_is_away(
    redis_url: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may never come back: attempts that wait for it, one to begin and one to end, are left to their leases."""
    monkeypatch.setattr("onward_executor.holding.STOP_S", 0.2)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    @workflow
    async def blog() -> None:
        begun.set()
        await goes_on.wait()

    async with contextlib.AsyncExitStack() as wire:
        proxy = await wire.enter_async_context(proxy_to(redis_url))
        async with (
            open_store(proxy.url) as far,
            LogWriter(far).opened() as writer,
            asyncio.timeout(20),
            holding(far, writer, blog) as held,
        ):
            ends, begins = await given(runs), await given(runs, "begins", attempt=2)
            held.take(ends)
            await begun.wait()
            await wire.aclose()
            goes_on.set()
            held.take(begins)
            await held.hand_over()
            assert held.running == 0
