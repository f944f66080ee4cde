"""A run's log over HTTP: the same events as over gRPC, from any place, through everything that cuts a stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.eventsource import EventSource, Fatal, asked
from tests.gateway import Door, Log, bare_redis, begun, delta, follow, gateway, whole_log
from tests.runlog import eventually, status

from onward.v1.event_pb2 import Event, Rollback
from onward_cli.valkey import embedded_valkey
from onward_runlog import keys
from onward_runlog.store import Store, open_store

SSE = {"accept": "text/event-stream"}
NDJSON = {"accept": "application/x-ndjson"}


@pytest.fixture
async def door(redis_url: str, store: Store) -> AsyncIterator[Door]:
    async with gateway(redis_url) as door:
        yield door


async def get(door: Door, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(15), asked(door.http, path, headers) as response:
        return response.status, response.headers, await response.body()


async def lines(door: Door, query: str = "", run_id: str = "run") -> list[Any]:
    """All messages of a log that is closed."""
    code, _, body = await get(door, f"/v1/runs/{run_id}/events{query}", NDJSON)
    assert code == 200, body
    return [json.loads(line) for line in body.splitlines()]


def offsets(messages: list[Any]) -> list[int]:
    return [message["event"]["offset"] for message in messages if "event" in message]


async def finished(store: Store, *events: Event) -> tuple[Log, int]:
    log = await begun(store)
    return log, await log.close(*events)


# Positions.


async def test_a_log_is_read_from_every_place_in_every_form(door: Door, store: Store) -> None:
    """From any offset and any cursor, each event's own included, and by each form: exactly what is behind it."""
    _, last = await finished(store, *(delta(f"word{i}") for i in range(5)))
    events, cursors = await whole_log(door)
    source = EventSource(door.http, "/v1/runs/run/events")
    seen = [message async for message in source.messages()]
    ids = [message.last_event_id for message in seen if message.name == "message"]
    assert [message.json["offset"] for message in seen if message.name == "message"] == list(range(1, last + 1))
    assert ids == cursors[1:], "the id of an event is the cursor that gRPC has for it"
    assert [event.offset for event in events] == list(range(1, last + 1))
    for after in range(last + 1):
        rest = list(range(after + 1, last + 1))
        for place in (str(after), cursors[after]):
            assert offsets(await lines(door, f"?after={place}")) == rest
            page = json.loads((await get(door, f"/v1/runs/run/events?after={place}"))[2])
            assert [event["offset"] for event in page["events"]] == rest
        _, _, body = await get(door, "/v1/runs/run/events?after=0", {**NDJSON, "last-event-id": cursors[after]})
        assert offsets([json.loads(line) for line in body.splitlines()]) == rest, (
            "where it was wins over where it began"
        )
        assert offsets(await lines(door, f"?last={after}")) == list(range(last + 1 - after, last + 1))


async def test_a_cursor_of_http_is_one_of_grpc(door: Door, store: Store) -> None:
    await finished(store, delta("a"), delta("b"))
    message = (await lines(door))[2]
    followed = await follow(door, after_cursor=message["cursor"])
    assert followed.offsets[0] == message["event"]["offset"] + 1


async def test_the_end_is_told_once_and_then_204(door: Door, store: Store) -> None:
    """The output comes with `completed`; who comes back from there stops, who was cut just before it gets it."""
    await finished(store)
    source = EventSource(door.http, "/v1/runs/run/events")
    seen = [message async for message in source.messages()]
    assert [message.name for message in seen][-1] == "completed"
    assert seen[-1].json["run"]["output"] == "done"
    assert source.statuses == [200, 204]
    again = EventSource(door.http, "/v1/runs/run/events", last_event_id=seen[-2].last_event_id)
    assert [message.name async for message in again.messages()] == ["opened", "completed"]
    by_url = await lines(door, f"?after={source.last_event_id}")
    assert [next(iter(message)) for message in by_url] == ["opened", "completed"]


async def test_positions_that_cannot_be_read_are_loud(door: Door, store: Store, redis_url: str) -> None:
    log, last = await finished(store, delta())
    cursor = (await lines(door))[1]["cursor"]
    base, ref = store.place("default", "run")
    for headers in (SSE, NDJSON, {}):
        for query, code, reason in [
            (f"?after={last + 1}", 416, "OFFSET_AHEAD"),
            ("?after=nonsense", 400, "CURSOR_INVALID"),
            (f"?after={last}&log_id=other", 410, "LOG_REBUILT"),
            ("?log_id=other", 410, "LOG_REBUILT"),
            ("?last=1&log_id=other", 410, "LOG_REBUILT"),
            (f"?after={cursor}&log_id=other", 410, "LOG_REBUILT"),
            ("?log_id=%C3%97", 400, "REQUEST_INVALID"),
            ("?heartbeat_s=61", 400, "REQUEST_INVALID"),
            ("?page_size=1001", 400, "REQUEST_INVALID"),
        ]:
            status_code, _, body = await get(door, f"/v1/runs/run/events{query}", headers)
            assert (status_code, json.loads(body)["reason"]) == (code, reason)
    async with bare_redis(redis_url) as redis:
        await redis.xtrim(keys.log(base, ref), minid="3-0", approximate=False)
        code, _, body = await get(door, "/v1/runs/run/events?after=1", SSE)
        assert (code, json.loads(body)["reason"]) == (410, "EVENTS_TRIMMED")
        assert json.loads(body)["metadata"] == {"first_offset": "3"}
        skipped = await lines(door, "?after=1&on_gap=skip")
        assert skipped[1]["gap"] == {"first_missing": 2, "last_missing": 2}
        await redis.hset(keys.run(base, ref), "log_id", "new")
    code, _, body = await get(door, f"/v1/runs/run/events?after={cursor}", SSE)
    assert (code, json.loads(body)["reason"]) == (410, "LOG_REBUILT")
    with pytest.raises(Fatal) as fatal:
        async for _ in EventSource(door.http, "/v1/runs/nobody/events").messages():
            pass
    assert fatal.value.status == 404, "an EventSource stops for good"
    assert log.run_id == "run"


async def test_a_settled_view_leaves_out_what_is_void_and_its_cursors_go_past_it(door: Door, store: Store) -> None:
    log = await begun(store)
    await log.append(delta("void", "c"), delta("void", "c"))
    await log.append(Event(rollback=Rollback(component_ids=["c"])), delta("kept", "c"))
    await log.append(delta("void", "c"))
    last = await log.append(Event(rollback=Rollback(component_ids=["c"], after_offset=5)))
    await log.append(delta("void", "d"))
    end = await log.close(Event(rollback=Rollback(component_ids=["d"])))
    raw, settled = await lines(door), await lines(door, "?view=settled")
    texts = [m["event"]["output_delta"]["text"] for m in settled if m.get("event", {}).get("kind") == "output_delta"]
    assert texts == ["kept"]
    assert offsets(raw) == list(range(1, end + 1))
    assert set(offsets(settled)) < set(offsets(raw))
    middle = next(m for m in raw if m.get("event", {}).get("offset") == last)
    assert offsets(await lines(door, f"?view=settled&after={middle['cursor']}"))[-1] == end
    page = json.loads((await get(door, "/v1/runs/run/events?view=settled&page_size=2"))[2])
    assert (page["events"][0]["offset"], page["through_offset"]) == (1, 2)


async def test_line_breaks_and_markup_stay_data(door: Door, store: Store) -> None:
    hostile = "a\nb\r\nc\rd\n\ndata: e\nid: f\n\u2028\u2029<script>alert(1)</script>\x00 \ud83d\ude00".encode(
        "utf-16", "surrogatepass"
    ).decode("utf-16")
    await finished(store, delta(hostile), status("x\n\ny"))
    source = EventSource(door.http, "/v1/runs/run/events")
    seen = [message.json async for message in source.messages() if message.name == "message"]
    assert [event["output_delta"]["text"] for event in seen if event["kind"] == "output_delta"] == [hostile]
    assert [m["event"]["output_delta"]["text"] for m in await lines(door) if "output_delta" in m.get("event", {})] == [
        hostile
    ]


async def test_headers_keep_proxies_from_holding_events_back(door: Door, store: Store) -> None:
    await finished(store)
    for headers in (SSE, NDJSON):
        code, told, _ = await get(door, "/v1/runs/run/events", {**headers, "accept-encoding": "gzip, br"})
        assert code == 200
        assert told["content-type"].startswith(headers["accept"])
        assert told["x-accel-buffering"] == "no"
        assert told["cache-control"] == "no-store, no-transform"
        assert "content-encoding" not in told
        assert told["onward-run-id"] == "run"
    async with asked(door.http, "/v1/runs/run/events", SSE, method="HEAD") as response:
        assert (response.status, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


# Life.


async def test_a_live_log_is_followed(door: Door, store: Store) -> None:
    log = await begun(store)
    source = EventSource(door.http, "/v1/runs/run/events")
    seen: list[Any] = []
    first = asyncio.Event()

    async def read() -> None:
        async for message in source.messages():
            seen.append(message)
            first.set()

    reading = asyncio.create_task(read())
    await first.wait()
    for i in range(20):
        await log.append(delta(str(i)))
    last = await log.close()
    async with asyncio.timeout(10):
        await reading
    assert [m.json["offset"] for m in seen if m.name == "message"] == list(range(1, last + 1))
    assert source.statuses == [200, 204]


async def test_silence_is_broken_by_comments(door: Door, store: Store) -> None:
    log = await begun(store)
    source = EventSource(door.http, "/v1/runs/run/events?heartbeat_s=1")
    reading = asyncio.create_task(_names(source))

    async def heard() -> bool:
        return len(source.comments) >= 2

    await eventually(heard)
    assert source.comments[0] == "bookmark 1"
    await log.close()
    assert (await reading)[-1] == "completed"


async def _names(source: EventSource) -> list[str]:
    return [message.name async for message in source.messages()]


async def test_an_old_stream_is_handed_off_and_resumed(store: Store, redis_url: str) -> None:
    log = await begun(store)
    async with gateway(redis_url, stream_age_s=0.3) as door:
        source = EventSource(door.http, "/v1/runs/run/events")
        seen: list[Any] = []

        async def read() -> None:
            seen.extend([message async for message in source.messages()])

        reading = asyncio.create_task(read())

        async def came_back() -> bool:
            return source.connections >= 3

        await eventually(came_back)
        last = await log.close(delta())
        async with asyncio.timeout(10):
            await reading
        assert [m.json["offset"] for m in seen if m.name == "message"] == list(range(1, last + 1))
        assert "handoff" in {m.name for m in seen}


async def test_a_gateway_that_drains_hands_browsers_over_and_refuses_new_ones_in_a_way_they_survive(
    store: Store, redis_url: str
) -> None:
    log = await begun(store)
    async with gateway(redis_url) as other:
        async with gateway(redis_url) as door:
            source = EventSource(door.http, "/v1/runs/run/events")
            seen = []
            messages = source.messages()
            seen.append(await anext(messages))
            source.address = other.http  # where it comes back to
            rest = asyncio.create_task(_all(messages))
        last = await log.close(delta())
        seen += await rest
    assert [m.json["offset"] for m in seen if m.name == "message"] == list(range(1, last + 1))
    handoff = next(m for m in seen if m.name == "handoff")
    assert handoff.json["reason"] == "REBALANCE"
    assert handoff.json["retry_delay_s"] > 0


async def _all(messages: AsyncIterator[Any]) -> list[Any]:
    return [message async for message in messages]


async def test_a_browser_outlives_the_store(tmp_path: Any) -> None:
    """While the store is away a new EventSource is told to come back, and one that follows stays silent."""
    async with embedded_valkey(tmp_path) as valkey, open_store(valkey.url) as store, gateway(valkey.url) as door:
        log = await begun(store)
        follower, late = (EventSource(door.http, "/v1/runs/run/events") for _ in range(2))
        messages = follower.messages()
        first = [await anext(messages), await anext(messages)]
        await valkey.kill()
        late_messages = late.messages()
        problem = await anext(late_messages)
        assert (problem.name, problem.json["reason"]) == ("problem", "STORE_UNAVAILABLE")
        assert late.statuses == [200]
        code, headers, _ = await get(door, "/v1/runs/run/events", NDJSON)
        assert (code, "retry-after" in headers) == (503, True)
        await valkey.start()
        last = await log.close(delta())
        for begun_with, rest in ((first, messages), ([], late_messages)):
            seen = [*begun_with, *await _all(rest)]
            assert [m.json["offset"] for m in seen if m.name == "message"] == list(range(1, last + 1))


async def test_followers_of_a_log_that_is_gone_are_told(door: Door, store: Store, redis_url: str) -> None:
    await begun(store)
    base, ref = store.place("default", "run")
    source = EventSource(door.http, "/v1/runs/run/events")
    messages = source.messages()
    await anext(messages)
    await anext(messages)
    async with bare_redis(redis_url) as redis:
        await redis.delete(keys.run(base, ref), keys.log(base, ref))
    problem = await anext(messages)
    assert (problem.name, problem.json["reason"]) == ("problem", "RUN_NOT_FOUND")
    with pytest.raises(Fatal) as fatal:
        await anext(messages)
    assert fatal.value.status == 404


async def test_readers_that_vanish_leave_nothing_behind(door: Door, store: Store, redis_url: str) -> None:
    """Not the stream, not a task, not a connection to the store; and the run does not notice."""
    log = await begun(store)
    await get(door, "/v1/runs/run/events")
    before = len(asyncio.all_tasks())
    async with bare_redis(redis_url) as redis:
        connections = len(await redis.client_list())
        async with contextlib.AsyncExitStack() as readers:
            for headers in (SSE, NDJSON):
                for _ in range(15):
                    response = await readers.enter_async_context(asked(door.http, "/v1/runs/run/events", headers))
                    await anext(response.pieces())
            for _ in range(5):
                response = await readers.enter_async_context(asked(door.http, "/v1/runs/run/output"))
                assert response.headers["content-type"].startswith("text/plain")
            assert len(asyncio.all_tasks()) > before
            assert len(await redis.client_list()) == connections

        async def as_before() -> bool:
            return len(asyncio.all_tasks()) <= before

        await eventually(as_before)
    last = await log.close()
    assert offsets(await lines(door)) == list(range(1, last + 1))


async def test_a_reader_that_never_reads_is_cut_and_costs_others_nothing(
    store: Store, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="onward_gateway")
    log = await begun(store)
    for _ in range(40):
        await log.append(*(delta("x" * 50_000) for _ in range(20)))
    async with (
        gateway(redis_url, slow_reader_s=0.2, slow_reader_grace_s=0.5) as door,
        asked(door.http, "/v1/runs/run/events", SSE) as silent,
    ):
        live = asyncio.create_task(follow(door))
        last = await log.close()
        assert (await live).offsets == list(range(1, last + 1))

        async def cut() -> bool:
            return "stopped reading" in caplog.text

        await eventually(cut)
        with pytest.raises((EOFError, OSError)):
            async for _ in silent.pieces():
                pass


async def test_a_client_of_http_1_0_gets_no_chunks(door: Door, store: Store) -> None:
    """It knows of none: the end of the connection is the end of the body."""
    log = await begun(store)
    last = await log.close(delta("tea"))
    host, _, port = door.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /v1/runs/run/events HTTP/1.0\r\nhost: {door.http}\r\naccept: {NDJSON['accept']}\r\n\r\n".encode()
    )
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"transfer-encoding" not in head.lower()
    events = [line["event"]["offset"] for line in map(json.loads, body.splitlines()) if "event" in line]
    assert events == list(range(1, last + 1))


# Plain text.


async def test_text_is_streamed_as_it_is_made(door: Door, store: Store) -> None:
    log = await begun(store)
    async with asked(door.http, "/v1/runs/run/output") as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        pieces = response.pieces()
        await log.append(delta("tea "), delta("not the body's", "c"))
        assert await anext(pieces) == b"tea "
        await log.append(delta("is\n"))
        assert await anext(pieces) == b"is\n"
        await log.close(delta("good"))
        assert b"".join([piece async for piece in pieces]) == b"good"
    assert (await get(door, "/v1/runs/run/output", {"accept": "text/plain"}))[2] == b"tea is\ngood"
    code, headers, body = await get(door, "/v1/runs/run/output")
    assert (code, headers["content-type"], body) == (200, "application/json", b'"done"')


async def test_text_of_a_body_that_puts_none_out_is_its_output(door: Door, store: Store) -> None:
    log = await begun(store)
    async with asked(door.http, "/v1/runs/run/output") as response:
        await log.close(delta("not the body's", "c"))
        assert await response.body() == b"done"


async def test_text_goes_on_through_handoffs(store: Store, redis_url: str) -> None:
    log = await begun(store)
    async with gateway(redis_url, stream_age_s=0.2) as door, asked(door.http, "/v1/runs/run/output") as response:
        pieces = response.pieces()
        for i in range(3):
            await log.append(delta(f"{i} "))
            assert await anext(pieces) == f"{i} ".encode()
            await asyncio.sleep(0.3)  # longer than a stream lives here
        await log.close()
        assert [piece async for piece in pieces] == []


async def test_text_that_turns_out_void_is_broken_off_and_right_the_next_time(door: Door, store: Store) -> None:
    log = await begun(store)
    await log.append(delta("kept "))
    async with asked(door.http, "/v1/runs/run/output") as response:
        pieces = response.pieces()
        assert await anext(pieces) == b"kept "
        kept = 2
        await log.append(delta("void"))
        assert await anext(pieces) == b"void"
        await log.append(Event(rollback=Rollback(component_ids=[""], after_offset=kept)), delta("right"))
        with pytest.raises((EOFError, OSError)):
            await anext(pieces)
    async with asked(door.http, "/v1/runs/run/output") as response:
        await log.close()
        assert await response.body() == b"kept right", "a rollback of before voids nothing that was sent"


async def test_text_of_a_run_that_fails_is_broken_off(door: Door, store: Store) -> None:
    log = await begun(store)
    async with asked(door.http, "/v1/runs/run/output") as response:
        pieces = response.pieces()
        await log.append(delta("half"))
        assert await anext(pieces) == b"half"
        await log.fail()
        with pytest.raises((EOFError, OSError)):
            await anext(pieces)
    code, _, body = await get(door, "/v1/runs/run/output")
    assert (code, json.loads(body)["reason"]) == (422, "COMPONENT_FAILED")
