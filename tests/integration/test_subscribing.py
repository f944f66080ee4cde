"""SubscribeRun and ListRunEvents: everything in order, once, from any position, whatever fails beneath."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.gateway import (
    Door,
    Followed,
    Reading,
    bare_redis,
    begun,
    client,
    delta,
    follow,
    gateway,
    refused,
    told,
    whole_log,
)
from tests.runlog import eventually, log_of

from onward.v1.event_pb2 import Event
from onward.v1.gateway_service_pb2 import (
    GapPolicy,
    GetRunRequest,
    HandoffReason,
    ListRunEventsRequest,
    ListRunsRequest,
    ListWorkflowsRequest,
    Position,
    SubscribeRunRequest,
    View,
)
from onward.v1.run_pb2 import RunState
from onward.v1.wake_pb2 import Appended, Wake
from onward_cli.valkey import embedded_valkey
from onward_gateway.following import AS_PROTOBUF, Limits, Stream
from onward_runlog import keys
from onward_runlog.feed import Feed
from onward_runlog.reader import Reader
from onward_runlog.settled import Settling
from onward_runlog.store import Store, open_store

SKIP = GapPolicy.GAP_POLICY_SKIP


@pytest.fixture
async def door(redis_url: str, store: Store) -> AsyncIterator[Door]:
    async with gateway(redis_url) as door:
        yield door


async def trim(redis_url: str, store: Store, first: int, run_id: str = "run") -> None:
    """Drop what a store that trims would drop."""
    base, ref = store.place("default", run_id)
    async with bare_redis(redis_url) as redis:
        await redis.xtrim(keys.log(base, ref), minid=f"{first}-0", approximate=False)


# Positions.


async def test_a_finished_log_is_read_from_every_position(door: Door, store: Store) -> None:
    log = await begun(store)
    last = await log.close(*(delta(f"{i}") for i in range(10)))
    events, cursors = await whole_log(door)
    assert [event.offset for event in events] == list(range(1, last + 1))
    for after in range(last + 1):
        expected = events[after:]
        by_offset = await follow(door, after_offset=after)
        by_cursor = await follow(door, after_cursor=cursors[after])
        newest = await follow(door, last=last - after)
        for followed in (by_offset, by_cursor, newest):
            assert followed.events == expected
            assert followed.opened is not None
            assert followed.opened.opened.after_offset == after
            assert followed.opened.cursor == cursors[after], "a cut before the first event is resumable"
            assert followed.end is not None
            assert followed.end.completed.run.state == RunState.RUN_STATE_SUCCEEDED
            assert followed.end.completed.run.output.data == b'"done"'
            assert not followed.end.completed.run.HasField("input")
            assert followed.cursors[-1] == (last, cursors[last])
    assert (await follow(door)).events == events, "an unset position is the start"
    assert (await follow(door, last=1_000)).events == events


async def test_a_live_log_is_followed_from_every_position(door: Door, store: Store, redis_url: str) -> None:
    log = await begun(store)
    await log.append(*(delta(f"{i}") for i in range(5)))
    _, cursors = await whole_log(door)
    async with asyncio.TaskGroup() as group, gateway(redis_url) as other:
        readers = [
            group.create_task(follow(at, **{kind: position}))
            for at in (door, other)
            for after in range(7)
            for kind, position in _positions(after, cursors[after], 6 - after)
        ]
        await follow(door, until=6)  # all of them are under way, or will begin meanwhile
        for i in range(5):
            await log.append(delta(f"more {i}"), delta("and more"))
        last = await log.close()
        assert last == 17
        for reader in readers:
            followed = await reader
            assert followed.opened is not None
            assert followed.offsets == list(range(followed.opened.opened.after_offset + 1, 18))


def _positions(after: int, cursor: str, newest: int) -> list[tuple[str, Any]]:
    return [("after_offset", after), ("after_cursor", cursor), ("last", newest)]


async def test_only_what_comes_from_now_on(door: Door, store: Store) -> None:
    log = await begun(store)
    await log.append(delta())
    request = SubscribeRunRequest(run_id="run", start=Position(last=0))
    reading = Reading(door, request)
    await reading.next()
    assert reading.followed.through == 2
    await log.append(delta("new"))
    await reading.next()
    assert [event.output_delta.text for event in reading.followed.events] == ["new"]
    reading.cancel()


async def test_positions_that_cannot_be_read_are_loud(door: Door, store: Store) -> None:
    log = await begun(store)
    await log.append(delta(), delta())
    await begun(store, "other")
    _, cursors = await whole_log(door)
    _, others = await whole_log(door, "other")

    async def both(code: grpc.StatusCode, reason: str, metadata: dict[str, str], **position: Any) -> None:
        for failure in (
            await refused(follow(door, **position)),
            await refused(door.stub.ListRunEvents(ListRunEventsRequest(run_id="run", start=Position(**position)))),
        ):
            assert (failure.code, failure.reason, failure.metadata) == (code, reason, metadata)

    invalid, ahead = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE
    await both(ahead, "OFFSET_AHEAD", {"last_offset": "3"}, after_offset=4)
    await both(invalid, "CURSOR_INVALID", {}, after_cursor="nonsense")
    await both(invalid, "CURSOR_INVALID", {}, after_cursor=cursors[2][:-1])
    await both(invalid, "CURSOR_INVALID", {}, after_cursor="é")
    await both(invalid, "CURSOR_INVALID", {}, after_cursor="")
    await both(invalid, "CURSOR_INVALID", {}, after_cursor=others[1])
    base, ref = store.place("default", "run")
    log_id = (await store.command("HGET", keys.run(base, ref), "log_id")).decode()
    assert (await follow(door, after_offset=1, log_id=log_id, until=3)).offsets == [2, 3]
    rebuilt = grpc.StatusCode.FAILED_PRECONDITION
    await both(rebuilt, "LOG_REBUILT", {"log_id": log_id}, after_offset=1, log_id="another")
    missing = await refused(follow(door, "nobody"))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
    assert missing.metadata == {"run_id": "nobody"}


async def test_a_rebuilt_log_is_told_by_its_id_and_by_the_event_at_the_cursor(
    door: Door, store: Store, redis_url: str
) -> None:
    log = await begun(store)
    await log.append(delta("as it was"), delta())
    _, cursors = await whole_log(door)
    base, ref = store.place("default", "run")
    async with bare_redis(redis_url) as redis:
        # An older replica took over, and other events got the same offsets.
        entries = await redis.xrange(keys.log(base, ref))
        await redis.delete(keys.log(base, ref))
        for entry_id, fields in entries:
            event = fields[b"e"].replace(b"as it was", b"otherwise")
            await redis.xadd(keys.log(base, ref), {"e": event}, id=entry_id)
        assert (await refused(follow(door, after_cursor=cursors[2]))).reason == "LOG_REBUILT"
        assert (await follow(door, after_cursor=cursors[3], until=3)).offsets == []
        assert (await follow(door, after_offset=2, until=3)).offsets == [3]
        await redis.hset(keys.run(base, ref), "log_id", "new")
        failure = await refused(follow(door, after_cursor=cursors[3]))
        assert (failure.reason, failure.metadata) == ("LOG_REBUILT", {"log_id": "new"})


async def test_followers_of_a_log_that_is_rebuilt_are_told(door: Door, store: Store, redis_url: str) -> None:
    log = await begun(store)
    await log.append(delta())
    base, ref = store.place("default", "run")
    reading = Reading(door, SubscribeRunRequest(run_id="run"))
    await reading.next()
    async with bare_redis(redis_url) as redis:
        await redis.hset(keys.run(base, ref), "log_id", "new")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await reading.rest()
    assert told(raised.value).reason == "LOG_REBUILT"


async def test_followers_of_a_run_that_is_deleted_are_told(door: Door, store: Store, redis_url: str) -> None:
    await begun(store)
    base, ref = store.place("default", "run")
    reading = Reading(door, SubscribeRunRequest(run_id="run"))
    await reading.next()
    async with bare_redis(redis_url) as redis:
        await redis.delete(keys.run(base, ref), keys.log(base, ref))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await reading.rest()
    assert told(raised.value).reason == "RUN_NOT_FOUND"


# Trimmed logs.


async def test_trimmed_events_are_an_error_or_a_gap(door: Door, store: Store, redis_url: str) -> None:
    log = await begun(store)
    last = await log.close(*(delta() for _ in range(8)))
    _, cursors = await whole_log(door)
    await trim(redis_url, store, 6)
    positions: list[dict[str, Any]] = [{"after_offset": 2}, {"after_cursor": cursors[2]}]
    for position in positions:
        failure = await refused(follow(door, **position))
        assert (failure.code, failure.reason) == (grpc.StatusCode.OUT_OF_RANGE, "EVENTS_TRIMMED")
        assert failure.metadata == {"first_offset": "6"}
        skipped = await follow(door, **position, on_gap=SKIP)
        assert skipped.gaps == [(3, 5)]
        assert skipped.offsets == list(range(6, last + 1))
        assert skipped.opened is not None
        assert skipped.opened.opened.run.log.first_offset == 6
        page = await door.stub.ListRunEvents(
            ListRunEventsRequest(run_id="run", start=Position(**position, on_gap=SKIP), page_size=2)
        )
        assert (page.after_offset, page.through_offset) == (5, 7), "a page shows the gap by where it begins"
    retained: list[dict[str, Any]] = [{}, {"after_offset": 5}, {"after_cursor": cursors[5]}, {"last": 1_000}]
    for whole in retained:
        assert (await follow(door, **whole)).offsets == list(range(6, last + 1)), whole


async def test_a_log_of_which_nothing_is_retained(door: Door, store: Store, redis_url: str) -> None:
    log = await begun(store)
    last = await log.close(delta())
    await trim(redis_url, store, last + 1)
    run = (await door.stub.GetRun(GetRunRequest(run_id="run"))).run
    assert (run.log.first_offset, run.log.last_offset) == (last + 1, last)
    assert (await refused(follow(door, after_offset=0))).metadata == {"first_offset": str(last + 1)}
    assert (await follow(door, after_offset=0, on_gap=SKIP)).gaps == [(1, last)]
    assert (await follow(door)).offsets == []


async def test_events_that_are_trimmed_while_they_are_read(door: Door, store: Store, redis_url: str) -> None:
    log = await begun(store)
    big = "x" * 100_000
    for _ in range(10):
        await log.append(*(delta(big) for _ in range(10)))
    last = await log.close()

    async def read(on_gap: GapPolicy.ValueType) -> Followed:
        call = door.stub.SubscribeRun(SubscribeRunRequest(run_id="run", start=Position(after_offset=0, on_gap=on_gap)))
        followed = Followed()
        try:
            async for response in call:
                followed.take(response)
                if followed.through >= 10:
                    await trim(redis_url, store, last)
        finally:
            call.cancel()
        return followed

    skipped = await read(SKIP)
    assert [first for first, _ in skipped.gaps] == [skipped.gaps[0][0]], "one gap"
    assert skipped.gaps[0][1] == last - 1
    assert skipped.offsets == [*range(1, skipped.gaps[0][0]), last]


# Batches.


async def test_batches_hold_a_mebibyte_or_one_event(door: Door, store: Store) -> None:
    log = await begun(store)
    for size in (400_000, 400_000, 400_000, 1_000_000, 900_000, 10, 10):
        await log.append(delta("x" * size))
    last = await log.close()
    live = await follow(door)
    assert live.offsets == list(range(1, last + 1))
    position, seen = Position(), 0
    while seen < last:
        page = await door.stub.ListRunEvents(ListRunEventsRequest(run_id="run", start=position, page_size=1_000))
        assert len(page.events) == 1 or sum(event.ByteSize() for event in page.events) <= 1024 * 1024
        assert [event.offset for event in page.events] == list(range(seen + 1, page.through_offset + 1))
        seen = page.through_offset
        position = Position(after_cursor=page.next_cursor)


async def test_a_page_that_ends_where_a_stream_begins(door: Door, store: Store) -> None:
    log = await begun(store)
    await log.append(*(delta() for _ in range(250)))
    page = await door.stub.ListRunEvents(ListRunEventsRequest(run_id="run"))
    assert (len(page.events), page.after_offset, page.through_offset) == (100, 0, 100)
    assert page.log.last_offset == 251
    rest = asyncio.create_task(follow(door, after_cursor=page.next_cursor))
    last = await log.close()
    assert (await rest).offsets == list(range(101, last + 1))
    at_end = await door.stub.ListRunEvents(ListRunEventsRequest(run_id="run", start=Position(after_offset=last)))
    assert (list(at_end.events), at_end.after_offset, at_end.through_offset) == ([], last, last)
    assert at_end.log.closed


async def test_unknown_fields_pass_through(door: Door, store: Store) -> None:
    """What a newer executor writes reaches a newer client through an older Gateway."""
    log = await begun(store)
    event = Event.FromString(delta("x").SerializeToString() + b"\xfa\x3f\x03new")  # field 1023
    await log.append(event)
    followed = await follow(door, until=2)
    assert b"\xfa\x3f\x03new" in followed.events[-1].SerializeToString()


# Hints.


async def test_many_followers_of_one_run_get_all(door: Door, store: Store) -> None:
    log = await begun(store)
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(follow(door)) for _ in range(100)]
        for i in range(100):
            await log.append(delta(f"{i}"))
        last = await log.close()
    assert all(reader.result().offsets == list(range(1, last + 1)) for reader in readers)


async def test_a_follower_that_falls_behind_the_ring(door: Door, store: Store) -> None:
    log = await begun(store)
    reading = Reading(door, SubscribeRunRequest(run_id="run"))
    await reading.next()
    for _ in range(30):
        await log.append(*(delta("x" * 10_000) for _ in range(100)))
    last = await log.close()
    assert (await reading.rest()).offsets == list(range(1, last + 1))


async def test_nothing_is_missing_when_hints_are_lost(door: Door, store: Store, redis_url: str) -> None:
    log = await begun(store)
    reader = asyncio.create_task(follow(door))
    async with bare_redis(redis_url) as redis:
        for i in range(200):
            if i % 10 == 0:
                await redis.client_kill_filter(_type="pubsub")
            await log.append(delta(f"{i}"))
    last = await log.close()
    async with asyncio.timeout(10):
        assert (await reader).offsets == list(range(1, last + 1))


async def test_a_gateway_that_may_not_subscribe_still_follows(store: Store, redis_url: str) -> None:
    """Hints are hints: without any, events come a little later."""
    async with (
        bare_redis(redis_url) as redis,
        user(redis, "deaf", "resetchannels", "+@all", "~*") as deaf,
        gateway(f"{redis_url}{deaf}") as door,
    ):
        log = await begun(store)
        reader = asyncio.create_task(follow(door))
        await follow(door, until=1)
        await log.append(delta(), delta())
        last = await log.close(delta())
        async with asyncio.timeout(10):
            assert (await reader).offsets == list(range(1, last + 1))


async def test_duplicate_and_reordered_hints_change_nothing(door: Door, store: Store, redis_url: str) -> None:
    log = await begun(store)
    reader = asyncio.create_task(follow(door))
    await follow(door, until=1)
    base, ref = store.place("default", "run")

    def hint(after: int, *stored: bytes, through: int = 0) -> bytes:
        appended = Appended(ref=ref, after_offset=after, through_offset=through or after + len(stored), events=stored)
        return Wake(appended=[appended]).SerializeToString()

    async with bare_redis(redis_url) as redis:
        for i in range(20):
            last = await log.append(delta(f"{i}"), delta(f"{i}"))
            stored = [fields[b"e"] for _, fields in await redis.xrange(keys.log(base, ref))]
            for message in (
                hint(last - 2, *stored[-2:]),
                hint(last - 1, stored[-1]),
                hint(0, *stored),
                hint(last - 2, stored[-2]),
                hint(last - 2, through=last),
            ):
                await redis.publish(keys.wake_channel(base), message)
    last = await log.close()
    assert (await reader).offsets == list(range(1, last + 1))


# The store fails.


async def test_a_stream_outlives_the_store(tmp_path: Path) -> None:
    """Valkey is killed and comes back while streams are open: they stay silent but for bookmarks, and miss nothing."""
    async with embedded_valkey(tmp_path) as valkey, open_store(valkey.url) as store, gateway(valkey.url) as door:
        log = await begun(store)
        await log.append(delta())
        readings = [Reading(door, _every_second("run")) for _ in range(2)]
        for reading in readings:
            await reading.next()
        await valkey.kill()
        async with asyncio.timeout(10):
            while not readings[0].followed.bookmarks:
                await readings[0].next()
        failure = await refused(follow(door))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        await valkey.start()
        await log.append(delta())
        last = await log.close()
        async with asyncio.timeout(15):
            for reading in readings:
                assert (await reading.rest()).offsets == list(range(1, last + 1))


# The ends of a stream.


async def test_silence_is_broken_by_bookmarks(door: Door, store: Store) -> None:
    log = await begun(store)
    reading = Reading(door, _every_second("run"))
    followed = reading.followed
    loop = asyncio.get_running_loop()
    before = loop.time()
    while len(followed.bookmarks) < 2:
        await reading.next()
    assert 1.9 < loop.time() - before < 4
    assert followed.bookmarks == [1, 1]
    await log.append(delta())
    await reading.next()
    assert followed.offsets == [1, 2]
    reading.cancel()
    resumed = asyncio.create_task(follow(door, after_cursor=followed.cursors[-1][1]))
    last = await log.close()
    assert (await resumed).offsets == list(range(3, last + 1))


def _every_second(run_id: str) -> SubscribeRunRequest:
    request = SubscribeRunRequest(run_id=run_id)
    request.heartbeat.FromSeconds(1)
    return request


async def test_an_old_stream_is_handed_off(store: Store, redis_url: str) -> None:
    log = await begun(store)
    async with gateway(redis_url, stream_age_s=0.5) as door:
        first = await follow(door)
        assert first.end is not None
        assert first.end.handoff.reason == HandoffReason.HANDOFF_REASON_REBALANCE
        last = await log.close()
        second = await follow(door, after_cursor=first.end.cursor)
    assert first.offsets + second.offsets == list(range(1, last + 1))


async def test_a_gateway_that_drains_hands_its_streams_over(store: Store, redis_url: str) -> None:
    log = await begun(store)
    async with contextlib.AsyncExitStack() as clients, gateway(redis_url) as other:
        async with gateway(redis_url) as door:
            reading = Reading(
                Door(await clients.enter_async_context(client(door.grpc)), door.grpc, door.http),
                SubscribeRunRequest(run_id="run"),
            )
            await reading.next()
            reader = asyncio.create_task(reading.rest())
        first = await reader
        assert first.end is not None
        assert first.end.handoff.reason == HandoffReason.HANDOFF_REASON_REBALANCE
        assert first.end.handoff.retry_delay.ToMilliseconds() > 0
        last = await log.close()
        second = await follow(other, after_cursor=first.end.cursor)
    assert first.offsets + second.offsets == list(range(1, last + 1))


async def test_a_reader_that_never_reads_costs_others_nothing(
    store: Store, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its stream holds one message, and is cut when it does not even take a handoff."""
    caplog.set_level("INFO", logger="onward_gateway.following")
    log = await begun(store)
    for _ in range(40):
        await log.append(*(delta("x" * 50_000) for _ in range(20)))
    async with (
        gateway(redis_url, slow_reader_s=0.2, slow_reader_grace_s=1.0) as door,
        client(door.grpc) as stub,
    ):
        silent = stub.SubscribeRun(_every_second("run"))
        live = asyncio.create_task(follow(door))
        last = await log.close()
        assert (await live).offsets == list(range(1, last + 1))

        async def cut() -> bool:
            return "stopped reading" in caplog.text

        await eventually(cut, within_s=15)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in silent:
                pass
        failure = told(raised.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "READER_STALLED")
        assert failure.retry_s is not None


@pytest.mark.parametrize("small", [0, 400])
async def test_a_reader_that_never_reads_holds_no_more_than_batches(store: Store, small: int) -> None:
    """Also where events grow: a read is so many events, whatever their size. It had held 23 MiB."""
    log = await begun(store)
    await log.append(*(delta() for _ in range(small)))
    large = delta("x" * 700_000)
    for _ in range(8):
        await log.append(*[large] * 5)
    reader = Reader(store)
    limits = Limits(heartbeat_s=10, age_s=60, slow_s=60, grace_s=60)
    request = SubscribeRunRequest(run_id="run", start=Position(after_offset=0))
    stalled = asyncio.Event()

    async def write(message: bytes) -> None:
        if len(message) > 700_000:
            stalled.set()
            await asyncio.Event().wait()

    async with Feed(store, reader).following() as feed:
        stream = Stream(reader, feed, Settling(reader), "default", request, limits, AS_PROTOBUF, write)
        tracemalloc.start()
        reading = asyncio.create_task(stream.serve())
        await stalled.wait()
        await asyncio.sleep(0.5)  # what is read ahead comes
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert held < 4 * 1024 * 1024, "a message, what it is made of, and what is read ahead"


async def test_a_slow_reader_is_handed_off(store: Store, redis_url: str) -> None:
    log = await begun(store)
    for _ in range(40):
        await log.append(*(delta("x" * 50_000) for _ in range(20)))
    last = await log.close()
    async with gateway(redis_url, slow_reader_s=0.2, slow_reader_grace_s=30.0) as door:
        reading = Reading(door, _every_second("run"))
        await reading.next()
        await asyncio.sleep(2.5)  # what the reader does meanwhile: not reading, beyond the limit and a tick
        followed = await reading.rest()
        assert followed.end is not None
        assert followed.end.handoff.reason == HandoffReason.HANDOFF_REASON_SLOW_READER
        rest = await follow(door, after_cursor=followed.end.cursor)
        assert followed.offsets + rest.offsets == list(range(1, last + 1))


async def test_readers_that_vanish_leave_nothing_behind(door: Door, store: Store, redis_url: str) -> None:
    await begun(store)
    await follow(door, until=1)
    async with bare_redis(redis_url) as redis:

        async def census() -> tuple[int, int]:
            return len(asyncio.all_tasks()), len(await redis.client_list())

        before = await census()
        async with client(door.grpc) as stub:
            calls = [stub.SubscribeRun(SubscribeRunRequest(run_id="run")) for _ in range(50)]
            for call in calls:
                await call.read()
            waits = [stub.GetRun(a_long_wait()) for _ in range(10)]
            assert (await census())[0] > before[0]
            assert (await census())[1] == before[1], "readers share what reads the store"
            del calls, call, waits

        async def as_before() -> bool:
            return (await census())[0] <= before[0]

        await eventually(as_before, within_s=10)


def a_long_wait() -> GetRunRequest:
    request = GetRunRequest(run_id="run")
    request.wait.FromSeconds(30)
    return request


# Tenants and rights.


async def test_two_tenants_runs_of_the_same_id_are_two_runs(store: Store, redis_url: str) -> None:
    ours, theirs = await begun(store, namespace="a"), await begun(store, namespace="b")
    await ours.append(delta("ours"))
    await ours.close()
    await theirs.close(delta("theirs"), delta("theirs"))
    async with gateway(redis_url, namespace="a") as door_a, gateway(redis_url, namespace="b") as door_b:
        first, second = await follow(door_a), await follow(door_b)
        assert [event.output_delta.text for event in first.events if event.HasField("output_delta")] == ["ours"]
        assert [event.output_delta.text for event in second.events if event.HasField("output_delta")] == ["theirs"] * 2
        failure = await refused(follow(door_b, after_cursor=first.cursors[0][1]))
        assert failure.reason == "CURSOR_INVALID", "a cursor names its tenant too"


@contextlib.asynccontextmanager
async def user(redis: Any, name: str, *rules: str) -> AsyncIterator[str]:
    """A user of the store; yields what to add to its URL."""
    await redis.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *rules)
    try:
        yield f"?username={name}&password=secret"
    finally:
        await redis.execute_command("ACL", "DELUSER", name)


async def test_a_gateway_never_writes(store: Store, redis_url: str) -> None:
    """Everything it does is allowed to a user who may only read."""
    rules = ("+@read", "+@pubsub", "+@connection", "+config|get", "+time", "-@write", "-@scripting", "-publish")
    log = await begun(store)
    async with (
        bare_redis(redis_url) as redis,
        user(redis, "reader", "~*", "&*", *rules) as reader,
        gateway(f"{redis_url}{reader}") as door,
    ):
        await redis.execute_command("ACL", "LOG", "RESET")
        raw = asyncio.create_task(follow(door))
        settled = asyncio.create_task(follow(door, view=View.VIEW_SETTLED))
        await follow(door, until=1)
        last = await log.close(delta(), delta())
        assert (await raw).offsets == (await settled).offsets == list(range(1, last + 1))
        await whole_log(door)
        await door.stub.GetRun(a_long_wait())
        await door.stub.ListRuns(ListRunsRequest())
        await door.stub.ListWorkflows(ListWorkflowsRequest())
        assert await redis.execute_command("ACL", "LOG") == []
    assert [event.offset for event in await log_of(store, log.run)] == list(range(1, last + 1))
