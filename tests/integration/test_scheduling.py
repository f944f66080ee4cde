"""A Scheduler among what goes wrong around it: a run that is broken, a store that is full, executors that are odd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from tests.proxy import proxy_to
from tests.runlog import FAILED, QUEUED, a_run, append, eventually, log_of, record_of, status, told

from onward.v1.executor_service_pb2 import (
    CancelRequest,
    CancelResponse,
    DrainRequest,
    DrainResponse,
    ExecuteRequest,
    ExecuteResponse,
    Executor,
    NotifyRequest,
    NotifyResponse,
    WatchRequest,
    WatchResponse,
)
from onward.v1.executor_service_pb2_grpc import (
    ExecutorServiceServicer,
    ExecutorServiceStub,
    add_ExecutorServiceServicer_to_server,
)
from onward.v1.gateway_service_pb2 import Workflow
from onward.v1.run_pb2 import Run
from onward.v1.scheduler_service_pb2 import WakeRunRequest
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from onward_runlog import keys, registry
from onward_runlog.runs import Runs
from onward_runlog.store import Store
from onward_scheduler import app
from onward_scheduler.dispatching import Dispatcher
from onward_scheduler.settings import Settings
from onward_serving.tls import Peers

pytestmark = pytest.mark.usefixtures("one_partition")

BASE = keys.base(0)


class Hand(ExecutorServiceServicer):
    """An executor that takes what it is given and does nothing with it."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.watched = 0
        self.me = Executor(executor_id="hand", deployment="build", slots=10)

    async def Execute(self, request: ExecuteRequest, context: Any) -> ExecuteResponse:
        self.taken.append(request.run.run_id)
        return ExecuteResponse(running=len(self.taken))

    async def Cancel(self, request: CancelRequest, context: Any) -> CancelResponse:
        return CancelResponse()

    async def Notify(self, request: NotifyRequest, context: Any) -> NotifyResponse:
        return NotifyResponse()

    async def Drain(self, request: DrainRequest, context: Any) -> DrainResponse:
        return DrainResponse()

    async def Watch(self, request: WatchRequest, context: Any) -> AsyncIterator[WatchResponse]:
        self.watched += 1
        yield WatchResponse(executor=self.me)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(hand: Hand) -> AsyncIterator[Executor]:
    server = grpc.aio.server()
    add_ExecutorServiceServicer_to_server(hand, server)
    hand.me.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield hand.me
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def dispatching(store: Store, runs: Runs, executor: Executor) -> AsyncIterator[Dispatcher]:
    """A Dispatcher that knows of an executor with room."""
    async with Dispatcher(store, runs, Peers(), lease_ttl_s=60, cancel_grace_s=1).dispatching() as dispatcher:
        dispatcher.fleet.meet(executor)

        async def there() -> bool:
            link = dispatcher.fleet.link(executor.executor_id)
            return link is not None and link.present

        await eventually(there)
        yield dispatcher


@contextlib.asynccontextmanager
async def full(store: Store) -> AsyncIterator[None]:
    """The store is out of memory."""
    await store.command("CONFIG", "SET", "maxmemory", "1")
    try:
        yield
    finally:
        await store.command("CONFIG", "SET", "maxmemory", "0")


async def break_log(store: Store, run: Run) -> None:
    """Somebody else writes to a log: it takes no further event."""
    base, ref = store.place(run.namespace, run.run_id)
    await store.command("XADD", keys.log(base, ref), "99-0", "e", b"")


async def test_a_run_that_is_broken_is_in_nobodys_way(redis_url: str, store: Store, runs: Runs) -> None:
    """It can be neither taken back nor ended; the others are, by the same sweeps."""
    for name in ("broken", "late", "sound"):
        run, _, _ = await runs.submit(a_run(name), holder="gone", ttl_s=0.001)
        await append(store, run, 1, 1, status())
        if name != "sound":
            await break_log(store, run)
    _, ref = store.place("default", "late")
    await store.command("HSET", keys.run(BASE, ref), "deadline", 1)
    await store.command("ZADD", f"{BASE}:timers", 1, f"d:{ref}")

    async def taken_back() -> bool:
        return int((await record_of(store, a_run("sound")))["state"]) == QUEUED

    async with app.opened(Settings(redis_url=redis_url, listen="127.0.0.1:0", lease_ttl_s=0.1)):
        await eventually(taken_back)
        await runs.submit(a_run("later"), holder="gone", ttl_s=0.001)

        async def queued() -> bool:
            return (await record_of(store, a_run("later")))["holder"] == b""

        await eventually(queued)


async def test_what_a_dead_executor_held_is_taken_back_but_for_what_is_broken(store: Store, runs: Runs) -> None:
    """The others do not wait for their leases because of it."""
    names = ["a", "b", "broken", "c", "d"]
    for name in names:
        run, _, _ = await runs.submit(a_run(name), holder="hand", ttl_s=600)
        await append(store, run, 1, 1, status())
        if name == "broken":
            await break_log(store, run)
    async with contextlib.AsyncExitStack() as alive:
        executor = await alive.enter_async_context(serving(Hand()))
        async with dispatching(store, runs, executor):
            await alive.aclose()

            async def are_queued() -> bool:
                records = [await record_of(store, a_run(name)) for name in names if name != "broken"]
                return all(int(record["state"]) == QUEUED for record in records)

            await eventually(are_queued)


async def test_a_run_whose_record_is_gone_is_in_nobodys_way(store: Store, runs: Runs) -> None:
    """Somebody deleted its keys by hand; who waits behind it is claimed."""
    for name in ("gone", "here"):
        await runs.submit(a_run(name))
    _, ref = store.place("default", "gone")
    async with Redis.from_url(store.url) as redis:
        await redis.delete(keys.run(BASE, ref))
    taken = await runs.claim(BASE, "build", holder="hand", ttl_s=60, limit=2)
    assert [each.run.run_id for each in taken] == ["here"]
    assert (await runs.sweep())[BASE].queued == {}


async def test_a_run_ends_at_its_deadline_also_in_a_full_store(store: Store, runs: Runs) -> None:
    """Else those that are late would fill each sweep, and what is past its retention would not be reached."""
    await runs.submit(a_run())
    _, ref = store.place("default", "run")
    await store.command("HSET", keys.run(BASE, ref), "deadline", 1)
    async with full(store):
        assert await runs.expel("default", "run") is not None
    assert int((await record_of(store, a_run()))["state"]) == FAILED


async def test_a_full_store_is_not_asked_again_and_again(
    store: Store, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits in it is left to the next sweep."""
    hand = Hand()
    await runs.submit(a_run())
    async with serving(hand) as executor, dispatching(store, runs, executor) as dispatcher:

        def warned() -> int:
            return sum("cannot claim" in record.message for record in caplog.records)

        async def is_warned() -> bool:
            return warned() > 0

        with caplog.at_level(logging.WARNING):
            async with full(store):
                dispatcher.note_queued(BASE, "build")
                await eventually(is_warned)
                for _ in range(50):
                    await store.command("PING")
                assert warned() == 1
        dispatcher.note_queued(BASE, "build")

        async def is_taken() -> bool:
            return hand.taken == ["run"]

        await eventually(is_taken)


@pytest.mark.parametrize("way", ["claimed", "submitted"])
async def test_a_run_that_is_given_out_while_a_scheduler_ends_is_handed_over(
    store: Store, runs: Runs, way: str
) -> None:
    """What it has asked the store for already is an executor's, which has to be told."""
    hand = Hand()
    async with serving(hand) as executor, Redis.from_url(store.url) as redis, contextlib.AsyncExitStack() as stack:
        dispatcher = await stack.enter_async_context(dispatching(store, runs, executor))
        link = dispatcher.fleet.link("hand")
        assert link is not None

        async def is_offered() -> bool:
            return link.offered == 1

        if way == "claimed":
            await runs.submit(a_run())
        await redis.client_pause(60_000, all=False)
        try:
            if way == "claimed":
                dispatcher.note_queued(BASE, "build")
                await eventually(is_offered)
            else:
                caller = asyncio.create_task(dispatcher.submit(a_run(), trace_parent=""))
                await eventually(is_offered)
                caller.cancel()
            ending = asyncio.create_task(stack.aclose())
            await asyncio.wait([ending], timeout=0.05)
        finally:
            await redis.client_unpause()
        await ending
        assert hand.taken == ["run"]


async def test_a_move_to_another_build_whose_reply_was_lost_is_no_error(
    redis_url: str, store: Store, runs: Runs
) -> None:
    """The Scheduler's own repeat finds it done."""
    await runs.submit(a_run(deployment="old"))
    await registry.register(
        store,
        Executor(executor_id="e", deployment="new", address="127.0.0.1:1", workflows=[Workflow(name="blog")]),
        ttl_s=60,
    )
    async with (
        proxy_to(redis_url) as proxy,
        app.opened(Settings(redis_url=proxy.url, listen="127.0.0.1:0")) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        proxy.lose_reply(b"onward1_adopt")
        stub: Any = SchedulerServiceStub(channel)
        woken = await stub.WakeRun(WakeRunRequest(namespace="default", run_id="run", deployment="new"))
        assert proxy.lost == 1
        assert (woken.run.state, woken.run.deployment) == (QUEUED, "new")
    assert told(await log_of(store, a_run())) == ["QUEUED", "QUEUED"]


class Mute(Hand):
    """An executor that can be watched and answers no Execute: somebody has cut the wire, or stopped its process."""

    def __init__(self) -> None:
        super().__init__()
        self.me.executor_id, self.me.slots = "mute", 100
        self.tell = asyncio.Event()

    async def Execute(self, request: ExecuteRequest, context: Any) -> ExecuteResponse:
        self.taken.append(request.run.run_id)
        await asyncio.Event().wait()
        raise AssertionError

    async def Watch(self, request: WatchRequest, context: Any) -> AsyncIterator[WatchResponse]:
        yield WatchResponse(executor=self.me)
        await self.tell.wait()
        yield WatchResponse(executor=self.me)
        await asyncio.Event().wait()


async def test_who_does_not_answer_gets_no_run_until_it_says_something(
    store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds nothing, so it would be the one with the most room for each new run."""
    monkeypatch.setattr("onward_scheduler.dispatching.EXECUTE_TIMEOUT_S", 0.05)
    mute, hand = Mute(), Hand()
    async with serving(mute) as silent, serving(hand) as sound, dispatching(store, runs, silent) as dispatcher:
        await dispatcher.submit(a_run("first"), trace_parent="")

        async def is_queued() -> bool:
            return (await record_of(store, a_run("first")))["holder"] == b""

        await eventually(is_queued)
        link = dispatcher.fleet.link("mute")
        assert link is not None
        link.rest_until = 0.0  # its rest is over
        dispatcher.fleet.meet(sound)
        for number in range(5):
            dispatcher.note_queued(BASE, "build")
            await dispatcher.submit(a_run(f"run-{number}"), trace_parent="")

        async def is_done() -> bool:
            return len(hand.taken) == 6

        await eventually(is_done)
        assert mute.taken == ["first"]
        mute.tell.set()

        async def is_back() -> bool:
            return link.free == 100

        await eventually(is_back)


class Curt(Hand):
    """An executor of another make, whose Watch says who it is and ends, or is refused."""

    def __init__(self, code: grpc.StatusCode | None) -> None:
        super().__init__()
        self._code = code

    async def Watch(self, request: WatchRequest, context: Any) -> AsyncIterator[WatchResponse]:
        self.watched += 1
        if self._code is not None:
            await context.abort(self._code, "no")
        yield WatchResponse(executor=self.me)


@pytest.mark.parametrize("code", [None, grpc.StatusCode.UNIMPLEMENTED])
async def test_an_executor_that_lets_nobody_watch_is_asked_now_and_then(
    store: Store, runs: Runs, code: grpc.StatusCode | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not dead, and not a reason to ask as fast as it answers."""
    monkeypatch.setattr("onward_scheduler.fleet.AGAIN_S", 600.0)
    curt = Curt(code)
    async with (
        serving(curt) as executor,
        Dispatcher(store, runs, Peers(), lease_ttl_s=60, cancel_grace_s=1).dispatching() as dispatcher,
    ):
        dispatcher.fleet.meet(executor)

        async def is_asked() -> bool:
            return curt.watched == 2

        await eventually(is_asked)
        async with grpc.aio.insecure_channel(executor.address) as channel:
            for _ in range(20):
                await ExecutorServiceStub(channel).Notify(NotifyRequest())
        assert curt.watched == 2, "once to watch, once to see whether it lives"
        assert dispatcher.fleet.link("hand") is not None
