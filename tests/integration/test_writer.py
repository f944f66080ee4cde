"""Group commit: many runs, one pipeline; in order, exactly once, and never without a bound."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from tests.proxy import Proxy, proxy_to
from tests.runlog import CANCELLING, FAILED, PAUSED, QUEUED, a_run, ended, eventually, log_of, status, told

from onward.log import (
    EVENT_BYTES_MAX,
    UNSENT_BYTES_MAX,
    UNSENT_EVENTS_MAX,
    AttemptFenced,
    EventTooLarge,
    LogClosed,
    LogFull,
)
from onward.v1.event_pb2 import Event, RunWaiting
from onward.v1.gateway_service_pb2 import SignalRunRequest
from onward.v1.run_pb2 import Run
from onward_cli.valkey import Valkey, embedded_valkey
from onward_runlog import keys
from onward_runlog.connection import Argument
from onward_runlog.errors import StoreUnavailable
from onward_runlog.runs import Runs
from onward_runlog.store import Store, open_store
from onward_runlog.writer import BATCH_EVENTS_MAX, LogWriter, RedisAttemptLog


async def begin(writer: LogWriter, run: Run | None = None, **more: Any) -> RedisAttemptLog:
    """The log of a new run's first attempt."""
    run = run or a_run()
    _, _, taken = await Runs(writer.store).submit(run, holder="e1", ttl_s=60)
    assert taken is not None
    return writer.log(run.namespace, run.run_id, taken.attempt, **more)


@pytest.fixture
async def log(writer: LogWriter) -> RedisAttemptLog:
    return await begin(writer)


@pytest.fixture
def calls(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Argument, ...]]:
    """The arguments of every call of append."""
    seen: list[tuple[Argument, ...]] = []
    call = store.call

    def recorded(function: str, base: str, *arguments: Argument, **more: Any) -> Any:
        if function == "append":
            seen.append((base, *arguments))
        return call(function, base, *arguments, **more)

    monkeypatch.setattr(store, "call", recorded)
    return seen


async def test_hundreds_of_runs_share_the_calls_and_keep_their_order(
    store: Store, writer: LogWriter, calls: list[tuple[Argument, ...]]
) -> None:
    """Each log is what its run wrote, and what came in one moment went out in one call per partition."""
    runs = [a_run(f"run-{number}") for number in range(300)]
    logs = await asyncio.gather(*(begin(writer, run) for run in runs))

    async def write(log: RedisAttemptLog) -> None:
        for number in range(5):
            log.post(status(f"posted {number}"))
            await log.append(status(f"appended {number}"))

    await asyncio.gather(*map(write, logs))
    expected = [f"{verb} {number}" for number in range(5) for verb in ("posted", "appended")]
    for run in runs:
        assert told(await log_of(store, run)) == ["QUEUED", *expected]
    assert len(calls) < len(runs) * 5 / 4


async def test_an_append_returns_where_the_log_ends(log: RedisAttemptLog) -> None:
    assert await log.append(status("a"), status("b")) == 3
    log.post(status("c"))
    assert await log.append() == 4
    assert await log.append() == 4


async def test_posted_events_go_out_by_themselves(store: Store, log: RedisAttemptLog) -> None:
    """Nobody has to wait for them."""
    log.post(status("a"))

    async def arrived() -> bool:
        return told(await log_of(store, a_run())) == ["QUEUED", "a"]

    await eventually(arrived)


async def test_a_run_that_is_far_ahead_goes_out_in_several_calls(
    store: Store, log: RedisAttemptLog, calls: list[tuple[Argument, ...]]
) -> None:
    """In order; the end is with the last."""
    for number in range(2 * BATCH_EVENTS_MAX):
        log.post(status(str(number)))
    await log.finish(ended())
    assert len(calls) == 3
    expected = [str(number) for number in range(2 * BATCH_EVENTS_MAX)]
    assert told(await log_of(store, a_run())) == ["QUEUED", *expected, "SUCCEEDED"]


async def test_memo_goes_with_its_event_and_not_with_a_later_call(
    writer: LogWriter, log: RedisAttemptLog, calls: list[tuple[Argument, ...]]
) -> None:
    """Else a crash between the two would leave a finished component whose result is gone."""
    first = asyncio.ensure_future(log.append(status("finished"), memo={"id": b"result"}))
    await asyncio.sleep(0)
    for number in range(BATCH_EVENTS_MAX):
        log.post(status(str(number)))
    await first
    await log.append()
    assert [b"result" in call for call in calls] == [True, False]


async def test_memo_alone_is_there_when_append_returns(log: RedisAttemptLog, calls: list[tuple[Argument, ...]]) -> None:
    """Also while events are under way before it."""
    appending = asyncio.ensure_future(log.append(status("a")))
    while not calls:  # noqa: ASYNC110 - a turn of the loop at a time, so that the reply is not there yet
        await asyncio.sleep(0)
    assert await log.append(memo={"id": b"value"}) == 2
    assert dict(await log.read_memo()) == {"id": b"value"}
    await appending


async def test_a_call_carries_only_so_many_bytes(
    writer: LogWriter, calls: list[tuple[Argument, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does nothing else while it runs one."""
    monkeypatch.setattr("onward_runlog.writer.CALL_BYTES_MAX", 2_500)
    monkeypatch.setattr("onward_runlog.keys.partition_of", lambda ref, partitions: 0)
    logs = [await begin(writer, a_run(str(number))) for number in range(5)]
    assert await asyncio.gather(*(log.append(status("x" * 1_000)) for log in logs)) == [2] * 5
    assert [sum(len(word) for word in call if isinstance(word, bytes)) // 1_000 for call in calls] == [2, 2, 1]


async def test_an_event_over_the_limit_is_refused_to_its_writer(store: Store, log: RedisAttemptLog) -> None:
    """Nothing of its call is taken, and the attempt goes on."""
    with pytest.raises(EventTooLarge) as refused:
        await log.append(status("a"), status("x" * EVENT_BYTES_MAX), memo={"id": b""})
    assert refused.value.size > EVENT_BYTES_MAX
    with pytest.raises(EventTooLarge):
        log.post(status("x" * EVENT_BYTES_MAX))
    with pytest.raises(EventTooLarge):
        await log.finish(Event(status_updated=status("x" * EVENT_BYTES_MAX).status_updated))
    assert await log.append(status("b")) == 2
    await log.finish(ended())
    assert told(await log_of(store, a_run())) == ["QUEUED", "b", "SUCCEEDED"]


async def test_nothing_that_comes_after_finish_is_taken(store: Store, log: RedisAttemptLog) -> None:
    """Not even before the closing event is on its way."""
    finishing = asyncio.ensure_future(log.finish(ended()))
    await asyncio.sleep(0)
    log.post(status("late"))
    with pytest.raises(LogClosed):
        await log.append(status("late"))
    with pytest.raises(LogClosed):
        await log.finish(ended(FAILED))
    await finishing
    log.post(status("late"))
    with pytest.raises(LogClosed):
        await log.append()
    assert told(await log_of(store, a_run())) == ["QUEUED", "SUCCEEDED"]


async def test_a_zombie_learns_that_it_was_replaced(store: Store, writer: LogWriter, log: RedisAttemptLog) -> None:
    """Everything it tries says so, except what waits for nothing; none of it is in the log."""
    runs = Runs(store)
    await log.append(status("mine"))
    await runs.lose("default", "run", 1, "lost")
    log.post(status("zombie"))
    with pytest.raises(AttemptFenced):
        await log.append(status("zombie"), memo={"id": b"zombie"})
    log.post(status("zombie"))
    for refused in (log.append(), log.room(), log.finish(ended()), log.put_blob(b"zombie")):
        with pytest.raises(AttemptFenced):
            await refused
    assert told(await log_of(store, a_run())) == ["QUEUED", "mine", "QUEUED"]
    assert dict(await log.read_memo()) == {}


async def test_all_who_wait_learn_of_a_refusal(store: Store, log: RedisAttemptLog) -> None:
    await Runs(store).lose("default", "run", 1, "refused")
    for number in range(UNSENT_EVENTS_MAX):
        log.post(status(str(number)))
    outcomes = await asyncio.gather(log.append(status()), log.room(), log.append(), log.room(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [AttemptFenced] * 4


async def test_the_end_from_outside_is_told_as_an_end(store: Store, log: RedisAttemptLog) -> None:
    await store.command("HSET", keys.run(*store.place("default", "run")), "deadline", 1)
    assert await Runs(store).expel("default", "run")
    with pytest.raises(LogClosed):
        await log.put_blob(b"late")
    with pytest.raises(LogClosed):
        await log.append(status("late"))


async def test_a_full_log_is_paused_by_the_attempt_that_filled_it(store: Store) -> None:
    """It cannot be finished any more: what it could not write would be missing."""
    async with LogWriter(store, log_events_max=3).opened() as writer:
        log = await begin(writer)
        await log.append(status("a"), status("b"))
        log.post(status("c"))
        with pytest.raises(LogFull):
            await log.append()
        with pytest.raises(LogFull):
            await log.finish(ended())
        await log.finish(ended(PAUSED))
        with pytest.raises(AttemptFenced):
            await log.append(status("late"))
    assert told(await log_of(store, a_run())) == ["QUEUED", "a", "b", "PAUSED"]


async def test_the_end_fits_into_a_log_that_is_exactly_full(store: Store) -> None:
    async with LogWriter(store, log_events_max=3).opened() as writer:
        log = await begin(writer)
        await log.append(status("a"), status("b"))
        await log.finish(ended())
    assert told(await log_of(store, a_run())) == ["QUEUED", "a", "b", "SUCCEEDED"]


async def test_a_log_that_is_nearly_full_is_announced_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    async with LogWriter(store, log_events_max=10).opened() as writer:
        log = await begin(writer)
        await log.append(*(status(f"{i}") for i in range(8)))
        assert "nine tenths" not in caplog.text
        await log.append(status("the tenth"))
        await log.finish(ended())
    assert caplog.text.count("nine tenths of its limit") == 1


async def test_a_reply_tells_of_a_cancellation(store: Store, writer: LogWriter) -> None:
    """So that it takes effect also where the call that says so was lost."""
    asked = asyncio.Event()
    log = await begin(writer, on_cancelling=asked.set)
    await log.append(status("a"))
    assert not asked.is_set()
    run, _ = await Runs(store).cancel("default", "run", "")
    assert run.state == CANCELLING
    await log.append(status("b"))
    assert asked.is_set()


async def test_reading_goes_from_an_offset_to_the_end(log: RedisAttemptLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over several reads."""
    monkeypatch.setattr("onward_runlog.writer.READ_EVENTS", 3)
    await log.append(*(status(str(number)) for number in range(7)))
    assert [event.offset async for event in log.read()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.offset async for event in log.read(after=5)] == [6, 7, 8]
    assert [event.offset async for event in log.read(after=8)] == []


async def test_blobs_are_read_back_by_a_later_attempt(store: Store, writer: LogWriter, log: RedisAttemptLog) -> None:
    uri = await log.put_blob(b"\x00" * 300_000)
    await Runs(store).lose("default", "run", 1, "refused")
    later = writer.log("default", "run", 2)
    assert await later.get_blob(uri) == b"\x00" * 300_000
    with pytest.raises(KeyError):
        await later.get_blob("blob:2-1")


# Backpressure


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def far_writer(proxy: Proxy) -> AsyncIterator[LogWriter]:
    """A writer whose wire to the store can break."""
    async with open_store(proxy.url) as store, LogWriter(store).opened() as writer:
        yield writer


@pytest.mark.parametrize(("size", "number"), [(1, UNSENT_EVENTS_MAX), (UNSENT_BYTES_MAX // 8, 9)])
async def test_user_code_may_be_ahead_of_the_store_only_so_far(
    far_writer: LogWriter, proxy: Proxy, size: int, number: int
) -> None:
    """By events or by bytes; when the store takes them again everybody goes on."""
    log = await begin(far_writer)
    proxy.stall()
    for _ in range(number - 1):
        log.post(status("x" * size))
        if size == 1:
            assert not log.crowded
            await log.room()
    log.post(status("x" * size))
    assert log.crowded
    waiting = [asyncio.ensure_future(log.room()) for _ in range(3)]
    appending = asyncio.ensure_future(log.append(status("last")))
    await asyncio.wait([*waiting, appending], timeout=0.01)
    assert not any(task.done() for task in [*waiting, appending])
    proxy.flow()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)
        assert await appending == number + 2
        await log.room()


# Faults


async def test_a_lost_reply_makes_no_second_event(store: Store, far_writer: LogWriter, proxy: Proxy) -> None:
    """The store had applied the append; the repeat is answered from the record."""
    log = await begin(far_writer)
    for number in range(20):
        if number % 4 == 1:
            proxy.lose_reply(b"onward1_append")
        assert await log.append(status(str(number)), memo={"id": b"%d" % number}) == number + 2
    proxy.lose_reply(b"onward1_append")
    await log.finish(ended())
    assert proxy.lost == 6
    assert told(await log_of(store, a_run())) == ["QUEUED", *map(str, range(20)), "SUCCEEDED"]


async def test_a_lost_reply_makes_no_second_run(store: Store, far_writer: LogWriter, proxy: Proxy) -> None:
    """And the run is handed out as if nothing had been lost."""
    proxy.lose_reply(b"onward1_submit")
    run, replayed, taken = await Runs(far_writer.store).submit(a_run(), holder="e1", ttl_s=60)
    assert (proxy.lost, replayed, run.state) == (1, False, QUEUED)
    assert taken is not None
    assert (taken.attempt, taken.run.executor_id) == (1, "e1")
    assert told(await log_of(store, a_run())) == ["QUEUED"]


async def test_a_run_is_not_parked_on_what_it_has_just_heard_of(store: Store, writer: LogWriter) -> None:
    """A signal that comes while the run is being parked is being read by then: it would wake nobody."""
    log = await begin(writer)
    await log.append(status("a"))
    await log.others()
    reading: list[asyncio.Task[Sequence[Event]]] = []
    log.on_others = lambda: reading.append(asyncio.create_task(log.others()))
    await Runs(store).signal("default", SignalRunRequest(run_id="run", name="go"))
    appending = asyncio.create_task(log.append(status("b")))
    await asyncio.sleep(0)  # it is under way, and its reply tells of the signal
    assert not await log.park(Event(run_waiting=RunWaiting(reason="go", signals=["go"])), wake_s=None)
    await appending
    [others] = await asyncio.gather(*reading)
    assert [event.signal_received.name for event in others] == ["go"]
    assert await log.park(Event(run_waiting=RunWaiting(reason="else", signals=["else"])), wake_s=None)


async def test_an_offset_that_is_not_there_is_asked_for_once(store: Store, writer: LogWriter) -> None:
    """The store has lost it, or whoever told of it was wrong: the run goes on, and parks."""
    log = await begin(writer)
    await log.append(status("a"))
    await log.others()
    log.on_others = lambda: None
    await store.command("CONFIG", "RESETSTAT")
    log.told(1_000)
    for _ in range(50):
        await store.command("PING")
    stats = await store.command("INFO", "commandstats")
    assert b"cmdstat_fcall:calls=1," in stats
    await log.append(status("b"))
    assert await log.park(Event(run_waiting=RunWaiting(reason="go", signals=["go"])), wake_s=None)


async def test_a_run_whose_parking_lost_its_reply_is_parked_once(
    store: Store, far_writer: LogWriter, proxy: Proxy
) -> None:
    """The repeat is answered from the record."""
    waiting = Event(run_waiting=RunWaiting(reason="go", signals=["go"]))
    log = await begin(far_writer)
    await log.append(status("a"))
    await log.others()
    proxy.lose_reply(b"onward1_park")
    assert await log.park(waiting, wake_s=60)
    assert told(await log_of(store, a_run())) == ["QUEUED", "a", "run_waiting"]
    assert proxy.lost == 1
    with pytest.raises(AttemptFenced):
        await log.append(status("late"))


@pytest.mark.parametrize("function", ["cancel", "lose", "blob"])
async def test_a_transition_whose_reply_was_lost_happens_once(
    store: Store, far_writer: LogWriter, proxy: Proxy, function: str
) -> None:
    log = await begin(far_writer)
    runs = Runs(far_writer.store)
    await log.append(status("a"))
    proxy.lose_reply(f"onward1_{function}".encode())
    match function:
        case "cancel":
            await runs.cancel("default", "run", "")
        case "lose":
            await runs.lose("default", "run", 1, "lost")
        case _:
            assert await log.get_blob(await log.put_blob(b"large")) == b"large"
    assert proxy.lost == 1
    expected = {"cancel": ["CANCELLING"], "lose": ["QUEUED"], "blob": []}[function]
    assert told(await log_of(store, a_run())) == ["QUEUED", "a", *expected]


@pytest.mark.usefixtures("one_partition")
async def test_a_claim_whose_reply_was_lost_costs_a_lease_and_no_run(
    store: Store, far_writer: LogWriter, proxy: Proxy
) -> None:
    """Nobody was told of the run, so nobody began it: it is queued again when its lease runs out, without a trace."""
    far, near = Runs(far_writer.store), Runs(store)
    for run_id in ("a", "b"):
        await near.submit(a_run(run_id))
    proxy.lose_reply(b"onward1_claim")
    claimed = await far.claim(keys.base(0), "build", holder="e1", ttl_s=0, limit=1)
    assert [taken.run.run_id for taken in claimed] == ["b"]
    assert await near.lose("default", "a", 1, "expired")
    [again] = await near.claim(keys.base(0), "build", holder="e1", ttl_s=60, limit=9)
    assert (again.run.run_id, again.attempt) == ("a", 2)
    assert told(await log_of(store, a_run("a"))) == ["QUEUED"]


async def test_many_runs_go_on_across_cut_connections(store: Store, far_writer: LogWriter, proxy: Proxy) -> None:
    """Each event once, in order, whatever was under way when the wire was cut."""
    logs = [await begin(far_writer, a_run(str(number))) for number in range(20)]
    written = 0

    async def write(log: RedisAttemptLog) -> None:
        nonlocal written
        for number in range(20):
            await log.append(status(str(number)))
            written += 1
            if written % 97 == 0:
                proxy.cut()

    await asyncio.gather(*map(write, logs))
    assert far_writer.store.connection.lost >= 3
    for number in range(20):
        assert told(await log_of(store, a_run(str(number)))) == ["QUEUED", *map(str, range(20))]


async def test_a_call_fails_when_its_patience_is_over(far_writer: LogWriter, proxy: Proxy) -> None:
    """It does not wait for ever, and the next one after the store is back succeeds."""
    proxy.stall()
    proxy.cut()
    reading = asyncio.ensure_future(far_writer.store.command("PING", patience_s=0.05))

    async def given_up() -> bool:
        proxy.cut()
        return bool(reading.done())

    await eventually(given_up)
    with pytest.raises(StoreUnavailable):
        await reading
    proxy.flow()
    assert await far_writer.store.command("PING") == b"PONG"


async def test_what_is_wrong_with_one_run_does_not_hold_up_the_others(
    store: Store, writer: LogWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody broke its log; the writer says so and tries on until it is repaired."""
    monkeypatch.setattr("onward_runlog.writer.PAUSE_S", 0.01)
    monkeypatch.setattr("onward_runlog.keys.partition_of", lambda ref, partitions: 0)
    broken, *others = [await begin(writer, a_run(str(number))) for number in range(4)]
    key = keys.log(broken.base, broken.ref)
    await store.command("RENAME", key, "kept")
    await store.command("SET", key, "not a stream")
    appending = asyncio.ensure_future(broken.append(status("a")))
    for number in range(3):
        assert await asyncio.gather(*(log.append(status(str(number))) for log in others)) == [number + 2] * 3
    assert not appending.done()
    assert "the store refuses to write for 4 runs" in caplog.text
    await store.command("DEL", key)
    await store.command("RENAME", "kept", key)
    assert await appending == 2


async def test_a_store_out_of_memory_stops_events_and_not_leases(
    store: Store, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is half written, leases live on, retention frees memory, and then the runs go on."""
    monkeypatch.setattr("onward_runlog.writer.PAUSE_S", 0.01)
    monkeypatch.setattr("onward_runlog.keys.partition_of", lambda ref, partitions: 0)
    log = await begin(writer)
    brief = Runs(store, retention_s=0)
    await brief.submit(a_run("old"))
    await brief.cancel("default", "old", "")
    await store.command("CONFIG", "SET", "maxmemory", "1")
    try:
        appending = asyncio.ensure_future(log.append(status("a"), status("b")))
        keeping = asyncio.ensure_future(log.put_blob(b"large"))
        with pytest.raises(StoreUnavailable, match="takes nothing for now"):
            await brief.submit(a_run("new"))
        assert [list(reply) for reply in await store.call("renew", log.base, 60_000, log.ref, 1, "e1")] == [[1, 1, 1]]
        await brief.sweep()
        assert await store.command("EXISTS", keys.run(log.base, "default/old")) == 0
        assert not appending.done()
        assert not keeping.done()
    finally:
        await store.command("CONFIG", "SET", "maxmemory", "0")
    assert await appending == 3
    assert await log.get_blob(await keeping) == b"large"
    assert told(await log_of(store, a_run())) == ["QUEUED", "a", "b"]


async def test_a_server_that_forgot_the_functions_is_taught_again(
    store: Store, writer: LogWriter, log: RedisAttemptLog
) -> None:
    await store.command("FUNCTION", "FLUSH")
    assert list(await asyncio.gather(log.append(status("a")), log.append(status("b")))) == [3, 3]


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A server that may be killed."""
    async with embedded_valkey(tmp_path) as server:
        yield server


async def test_every_acknowledged_event_outlives_the_server(own_server: Valkey) -> None:
    """Killed twice in the middle of it, it comes back with all of them, and the writer goes on by itself."""
    acknowledged = asyncio.Semaphore(0)

    async def write(log: RedisAttemptLog) -> None:
        for number in range(60):
            assert await log.append(status(str(number)), memo={str(number): b""}) == number + 2
            acknowledged.release()
        await log.finish(ended())

    async with open_store(own_server.url) as store, LogWriter(store).opened() as writer:
        logs = [await begin(writer, a_run(str(number))) for number in range(10)]
        writing = asyncio.gather(*map(write, logs))
        for _ in range(2):
            for _ in range(150):
                await acknowledged.acquire()
            await own_server.kill()
            acknowledged = asyncio.Semaphore(0)
            await own_server.start()
        async with asyncio.timeout(20):
            await writing
        for number, log in enumerate(logs):
            events = told(await log_of(store, a_run(str(number))))
            assert events == ["QUEUED", *map(str, range(60)), "SUCCEEDED"]
            assert len(await log.read_memo()) == 60


async def test_a_frozen_server_gets_repeats_and_keeps_each_event_once(
    own_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds several copies of one append in its sockets when it thaws."""
    async with open_store(own_server.url) as store, LogWriter(store).opened() as writer:
        log = await begin(writer)
        await log.append(status("before"))
        monkeypatch.setattr("onward_runlog.connection.REPLY_TIMEOUT_S", 0.05)
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            appending = asyncio.ensure_future(log.append(status("frozen")))

            async def repeated() -> bool:
                return store.connection.lost >= 3

            await eventually(repeated)
            assert not appending.done()
        finally:
            monkeypatch.undo()
            os.kill(own_server.pid, signal.SIGCONT)
        async with asyncio.timeout(5):
            assert await appending == 3
        await log.finish(ended())
        assert told(await log_of(store, a_run())) == ["QUEUED", "before", "frozen", "SUCCEEDED"]


async def test_acknowledged_means_durable(own_server: Valkey) -> None:
    """It was in the server's file before the reply, and nothing later is needed to keep it."""
    async with open_store(own_server.url) as store, LogWriter(store).opened() as writer:
        log = await begin(writer)
        for number in range(50):
            await log.append(status(str(number)))
        os.kill(own_server.pid, signal.SIGSTOP)  # so that it can write nothing more
        await own_server.kill()
    await own_server.start()
    async with Redis.from_url(own_server.url) as redis:
        assert await redis.xlen(keys.log(log.base, log.ref)) == 51
