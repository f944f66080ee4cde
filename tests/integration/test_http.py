"""The HTTP door: what is asked, how it is answered, and what it may cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from tests.eventsource import answered, asked
from tests.gateway import Door, Log, bare_redis, begun, delta, follow, gateway, serve_workflow
from tests.runlog import PAUSED, a_run, eventually, log_of

from onward.v1.run_pb2 import Payload
from onward_gateway.http import asking, door
from onward_gateway.http.routes import ROUTES
from onward_runlog import keys
from onward_runlog.runs import Runs
from onward_runlog.store import Store
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "words": {"type": "integer", "minimum": 1}},
    "required": ["topic"],
}
START = "/v1/workflows/blog/runs"
INVOKE = "/v1/workflows/blog/invoke"
TEA = {"topic": "tea"}
NDJSON = {"accept": "application/x-ndjson"}


@pytest.fixture
async def scheduler(redis_url: str, store: Store) -> AsyncIterator[str]:
    async with scheduler_app.opened(SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0")) as serving:
        yield serving.address


@pytest.fixture
async def gate(redis_url: str, store: Store, scheduler: str) -> AsyncIterator[Door]:
    await serve_workflow(store, schema=json.dumps(SCHEMA).encode())
    async with gateway(redis_url, schedulers=(scheduler,)) as door:
        yield door


@contextlib.asynccontextmanager
async def client(door: Door) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=f"http://{door.http}", trust_env=False, timeout=15) as http:
        yield http


@pytest.fixture
async def http(gate: Door) -> AsyncIterator[httpx2.AsyncClient]:
    async with client(gate) as http:
        yield http


def problem(response: httpx2.Response, status: int, reason: str) -> dict[str, Any]:
    """Check that a response is a problem, whole and in form, and return it."""
    told: dict[str, Any] = response.json()
    assert (response.status_code, told["reason"]) == (status, reason), told
    assert response.headers["content-type"] == "application/problem+json"
    assert (told["status"], told["type"]) == (status, f"urn:onward:{reason}")
    assert told["title"]
    assert told["detail"]
    return told


# Starting.


async def test_a_run_is_started_and_read(http: httpx2.AsyncClient) -> None:
    asked_for = {
        "label": ["user:ada", "url:http://x"],
        "run_id": "mine",
        "priority": "7",
        "fairness_key": "acme",
        "run_timeout_s": "90.5",
        "schedule_time": "2040-01-01T01:00:00+01:00",
    }
    started = await http.post(START, json=TEA, params=asked_for)
    assert started.status_code == 202
    run = started.json()
    assert (run["run_id"], run["state"], run["workflow"]) == ("mine", "QUEUED", "blog")
    assert run["labels"] == {"user": "ada", "url": "http://x"}
    assert (run["priority"], run["fairness_key"]) == (7, "acme")
    assert (run["schedule_time"], run["deadline"]) == ("2040-01-01T00:00:00.000000Z", "2040-01-01T00:01:30.500000Z")
    assert started.headers["location"] == "/v1/runs/mine"
    assert started.headers["onward-run-id"] == "mine"
    assert "input" not in run
    read = await http.get("/v1/runs/mine")
    assert (read.status_code, read.json()["input"]) == (200, TEA)
    assert "etag" not in read.headers, "it still changes"


async def test_the_longest_time_limit_is_taken(http: httpx2.AsyncClient) -> None:
    """It ends behind the last time that can be told: then it ends then."""
    for more in ({}, {"schedule_time": "9999-12-31T23:59:59Z"}):
        started = await http.post(START, json=TEA, params={"run_timeout_s": "315576000000", **more})
        assert (started.status_code, started.json()["deadline"]) == (202, "9999-12-31T23:59:59.000000Z")
    for value in ("315576000000.000000001", "315576000001", "0"):
        refused = await http.post(START, json=TEA, params={"run_timeout_s": value})
        [violation] = problem(refused, 400, "REQUEST_INVALID")["violations"]
        assert violation["description"] == "from 1e-09 s to 315576000000 s"


async def test_a_repeat_is_answered_as_the_first_and_says_so(http: httpx2.AsyncClient) -> None:
    for key in ("once", "x" * 65, "ümläut", "with space"):
        headers = {b"idempotency-key": key.encode()}
        first, second = [await http.post(START, json=TEA, headers=headers) for _ in range(2)]
        assert first.json()["run_id"] == second.json()["run_id"]
        assert "idempotency-replayed" not in first.headers
        assert second.headers["idempotency-replayed"] == "true"
        other = await http.post(START, json={"topic": "coffee"}, headers=headers)
        assert problem(other, 409, "REQUEST_ID_REUSED")["metadata"]["run_id"] == first.json()["run_id"]
    assert len({(await http.post(START, json=TEA)).json()["run_id"] for _ in range(2)}) == 2
    for wrong in (b"", b"a\tb", b"\x7f"):
        problem(await http.post(START, json=TEA, headers={b"idempotency-key": wrong}), 400, "REQUEST_INVALID")
    assert len((await http.get("/v1/runs")).json()["runs"]) == 6


async def test_everything_that_is_wrong_is_told_at_once(http: httpx2.AsyncClient) -> None:
    told = problem(await http.post(START, json={"words": 0}), 400, "INPUT_INVALID")
    assert {(each["field"], each["description"]) for each in told["violations"]} == {
        ("", '"topic" is a required property'),
        ("/words", "0 is less than the minimum of 1"),
    }
    wrong = "?priority=x&run_timeout_s=-1&schedule_time=soon&label=none&other=1&run_id=a&run_id=b"
    told = problem(await http.post(START + wrong, json=TEA), 400, "REQUEST_INVALID")
    assert [each["field"] for each in told["violations"]] == [
        "run_id",
        "label",
        "priority",
        "run_timeout_s",
        "schedule_time",
        "other",
    ]
    told = problem(await http.post(f"{START}?priority=101&run_id=%20", json=TEA), 400, "REQUEST_INVALID")
    assert {each["field"] for each in told["violations"]} == {"priority", "run_id"}
    assert (await http.get("/v1/runs")).json() == {"runs": []}


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"topic=tea", {"content-type": "application/x-www-form-urlencoded"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b'{"topic": "tea"}', {"content-type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b'{"topic": "tea"}', {"content-type": ""}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b"x", {"content-type": "application/json", "content-encoding": "gzip"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b"{", {"content-type": "application/json"}, 400, "INPUT_INVALID"),
        (b'{"topic": NaN}', {"content-type": "application/json"}, 400, "INPUT_INVALID"),
        (b"\xff", {"content-type": "application/json"}, 400, "INPUT_INVALID"),
        (b"[" * 100_000, {"content-type": "application/json"}, 400, "INPUT_INVALID"),
        (b"", {}, 400, "INPUT_INVALID"),
        (b" " * 3_145_729, {"content-type": "application/json"}, 413, "TOO_LARGE"),
    ],
)
async def test_what_is_no_input(
    http: httpx2.AsyncClient, body: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    problem(await http.post(START, content=body, headers=headers), status, reason)
    for media_type in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json"):
        taken = await http.post(START, content=b'{"topic": "tea"}', headers={"content-type": media_type})
        assert taken.status_code == 202


async def test_a_body_without_a_length_is_bounded_too(http: httpx2.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 65_536

    headers = {"content-type": "application/json"}
    problem(await http.post(START, content=pieces(), headers=headers), 413, "TOO_LARGE")


async def test_what_is_not_there(http: httpx2.AsyncClient) -> None:
    for method, path in ROUTES:
        if "{run_id}" in path:
            path = path.replace("{run_id}", "nobody").replace("{name:path}", "x")
            problem(await http.request(method, path), 404, "RUN_NOT_FOUND")
    problem(await http.post("/v1/workflows/other/runs", json={}), 404, "WORKFLOW_NOT_FOUND")
    problem(await http.post(f"{START}?deployment=other", json=TEA), 404, "DEPLOYMENT_NOT_FOUND")
    problem(await http.get("/v1/nothing"), 404, "NOT_FOUND")
    problem(await http.get("/v1/runs/"), 404, "NOT_FOUND")
    wrong = await http.delete("/v1/runs/nobody")
    problem(wrong, 405, "METHOD_NOT_ALLOWED")
    assert wrong.headers["allow"] == "GET, HEAD"
    for run_id in ("a%20b", "x" * 65, "%00"):
        problem(await http.get(f"/v1/runs/{run_id}"), 400, "REQUEST_INVALID")


# Invoking.


async def invoked(gate: Door, store: Store, *, fail: bool = False, pause: bool = False) -> httpx2.Response:
    """Invoke with a run_id whose run is ended by hand."""
    run = a_run("run", data=json.dumps(TEA, separators=(",", ":")).encode())
    run.input.media_type = "application/json"
    run, _, taken = await Runs(store).submit(run, holder="hand", ttl_s=600)
    assert taken is not None
    log = Log(store, run, taken.attempt)
    async with client(gate) as http:
        waiting = asyncio.create_task(http.post(f"{INVOKE}?run_id=run", json=TEA))
        await asyncio.sleep(0)
        await (log.fail(PAUSED) if pause else log.fail() if fail else log.close())
        return await waiting


async def test_invoke_gives_the_output(gate: Door, store: Store) -> None:
    response = await invoked(gate, store)
    assert (response.status_code, response.json()) == (200, "done")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["onward-run-id"] == "run"
    assert response.headers["location"] == "/v1/runs/run"
    assert response.headers["idempotency-replayed"] == "true"


async def test_invoke_of_a_run_that_fails(gate: Door, store: Store) -> None:
    response = await invoked(gate, store, fail=True)
    told = problem(response, 422, "COMPONENT_FAILED")
    assert (told["run_id"], told["error"]["reason"]) == ("run", "COMPONENT_FAILED")
    assert response.headers["onward-run-id"] == "run"


async def test_invoke_of_a_run_that_is_paused(gate: Door, store: Store) -> None:
    """It is told at once, and where to look: it does not end by itself."""
    response = await invoked(gate, store, pause=True)
    told = response.json()
    assert (response.status_code, told["state"], told["error"]["reason"]) == (202, "PAUSED", "LOG_LIMIT")
    assert response.headers["location"] == "/v1/runs/run"


async def test_invoke_of_a_run_that_is_cancelled(http: httpx2.AsyncClient) -> None:
    invoking = asyncio.create_task(http.post(f"{INVOKE}?run_id=run", json=TEA))

    async def cancelled() -> bool:
        return (await http.post("/v1/runs/run/cancel", json={"reason": "enough"})).status_code == 202

    await eventually(cancelled)
    problem(await invoking, 422, "CANCELLED")


async def test_invoke_returns_when_its_wait_has_passed(http: httpx2.AsyncClient, store: Store) -> None:
    for wait in ("wait=0", "respond-async, wait=0", 'wait="0"'):
        response = await http.post(INVOKE, json=TEA, headers={"prefer": wait})
        assert (response.status_code, response.json()["state"]) == (202, "QUEUED")
        assert response.headers["preference-applied"] == "wait=0"
        assert response.headers["location"] == f"/v1/runs/{response.json()['run_id']}"


async def test_whoever_stops_waiting_costs_nothing_and_the_run_goes_on(gate: Door, store: Store) -> None:
    async with client(gate) as http:
        await http.get("/healthz")
    before = len(asyncio.all_tasks())
    headers = {"content-type": "application/json"}
    async with asyncio.TaskGroup() as group:
        for i in range(5):
            group.create_task(_leave(gate.http, f"{INVOKE}?run_id=run{i}", headers))

    async def as_before() -> bool:
        return len(asyncio.all_tasks()) <= before

    await eventually(as_before)
    async with client(gate) as http:
        runs = (await http.get("/v1/runs")).json()["runs"]
    assert {(run["run_id"], run["state"]) for run in runs} == {(f"run{i}", "QUEUED") for i in range(5)}


async def _leave(address: str, path: str, headers: dict[str, str]) -> None:
    """Ask, and leave when the run is there."""
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(TEA).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
    writer.write(head.encode() + body)
    run_id = path.rpartition("=")[2]

    async def accepted() -> bool:
        async with asked(address, f"/v1/runs/{run_id}") as response:
            return response.status == 200

    await eventually(accepted)
    writer.close()


async def test_a_gateway_that_drains_says_that_an_invoked_run_goes_on(
    store: Store, redis_url: str, scheduler: str
) -> None:
    await serve_workflow(store)
    async with contextlib.AsyncExitStack() as clients:
        async with gateway(redis_url, schedulers=(scheduler,)) as gate:
            http = await clients.enter_async_context(client(gate))
            invoking = asyncio.create_task(http.post(f"{INVOKE}?run_id=run", json={}))

            async def accepted() -> bool:
                return (await http.get("/v1/runs/run")).status_code == 200

            await eventually(accepted)
        response = await invoking
        assert (response.status_code, response.headers["location"]) == (202, "/v1/runs/run")


# Reading.


async def test_a_run_that_has_ended_has_an_etag(http: httpx2.AsyncClient, store: Store) -> None:
    log = await begun(store)
    await log.close()
    first = await http.get("/v1/runs/run")
    assert first.json()["output"] == "done"
    again = await http.get("/v1/runs/run", headers={"if-none-match": f'"x", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    head = await http.head("/v1/runs/run")
    assert (head.status_code, head.headers["etag"], head.content) == (200, first.headers["etag"], b"")


async def test_reading_waits_for_the_end(http: httpx2.AsyncClient, store: Store) -> None:
    log = await begun(store)
    waiting = [
        asyncio.create_task(http.get("/v1/runs/run?wait_s=30")),
        asyncio.create_task(http.get("/v1/runs/run", headers={"prefer": "wait=30"})),
        asyncio.create_task(
            http.get("/v1/runs/run/output", headers={"prefer": "wait=30", "accept": "application/json"})
        ),
    ]
    await log.append(delta())
    await log.close()
    run, preferred, output = [await each for each in waiting]
    assert run.json()["state"] == preferred.json()["state"] == "SUCCEEDED"
    assert output.json() == "done"
    problem(await http.get("/v1/runs/run?wait_s=61"), 400, "REQUEST_INVALID")


async def test_output_as_json_before_the_end_is_the_run(http: httpx2.AsyncClient, store: Store) -> None:
    await begun(store)
    response = await http.get("/v1/runs/run/output", headers={"accept": "application/json"})
    assert (response.status_code, response.json()["run_id"]) == (202, "run")
    assert response.headers["retry-after"]
    problem(await http.get("/v1/runs/run/output", headers={"accept": "image/png"}), 406, "NOT_ACCEPTABLE")
    problem(await http.get("/v1/runs/run/events", headers={"accept": "text/html"}), 406, "NOT_ACCEPTABLE")


async def test_values_that_are_not_json_are_told_as_what_they_are(
    http: httpx2.AsyncClient, store: Store, redis_url: str
) -> None:
    """Nothing that user code made runs in a browser that is pointed at it."""
    log = await begun(store)
    await log.close()
    base, ref = store.place("default", "run")
    for payload, media_type, body in (
        (Payload(media_type="text/html", data=b"<script>"), "application/octet-stream", b"<script>"),
        (Payload(media_type="text/plain", data=b"a"), "text/plain", b"a"),
        (Payload(data=b'{"a":  1e400}'), "application/json", b'{"a":  1e400}'),
        (Payload(media_type="application/json", blob_uri="blob:1-1", size=9), "application/json", b'"aaaaaaa"'),
        (Payload(), "application/json", b"null"),
    ):
        async with bare_redis(redis_url) as redis:
            await redis.hset(keys.run(base, ref), "output", payload.SerializeToString())
            await redis.set(keys.blob(base, ref, "1-1"), b'"aaaaaaa"')
        response = await http.get("/v1/runs/run/output")
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == media_type
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in response.headers["content-security-policy"]
        assert response.content == body
        run = (await http.get("/v1/runs/run")).json()
        if payload.blob_uri:
            url = run["output_blob"]["url"]
            assert (await http.get(url)).content == body
        elif payload.WhichOneof("value"):
            assert run["output_blob"]["base64"]


async def test_a_blob_is_read_whole_and_in_ranges(http: httpx2.AsyncClient, store: Store, redis_url: str) -> None:
    await begun(store)
    base, ref = store.place("default", "run")
    data = bytes(i * 7 % 251 for i in range(3_000_000))
    name = "1-a b/ü"
    async with bare_redis(redis_url) as redis:
        await redis.set(keys.blob(base, ref, name), data)
    url = "/v1/runs/run/blobs/1-a%20b%2F%C3%BC"
    whole = await http.get(url)
    assert (whole.status_code, whole.content == data) == (200, True)
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["accept-ranges"] == "bytes"
    for asked_for, begin, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=1048575-1048577", 1_048_575, 1_048_578),
        ("bytes=2999999-", 2_999_999, 3_000_000),
        ("bytes=-5", 2_999_995, 3_000_000),
        ("bytes=-9999999", 0, 3_000_000),
        ("bytes=5-99999999", 5, 3_000_000),
    ):
        part = await http.get(url, headers={"range": asked_for})
        assert (part.status_code, part.headers["content-range"]) == (206, f"bytes {begin}-{end - 1}/3000000")
        assert part.content == data[begin:end]
    for ignored in ("bytes=0-1,5-6", "lines=1-2", "bytes=-", "bytes=5-1"):
        assert (await http.get(url, headers={"range": ignored})).status_code == 200
    behind = await http.get(url, headers={"range": "bytes=3000000-"})
    problem(behind, 416, "RANGE_NOT_SATISFIABLE")
    assert behind.headers["content-range"] == "bytes */3000000"
    known = await http.get(url, headers={"if-none-match": whole.headers["etag"]})
    assert known.status_code == 304
    problem(await http.get("/v1/runs/run/blobs/9-9"), 404, "BLOB_NOT_FOUND")


async def test_runs_are_listed_by_filters_and_pages(http: httpx2.AsyncClient) -> None:
    for i in range(5):
        await http.post(f"{START}?run_id=run{i}&label=parity:{i % 2}", json=TEA)
    await http.post("/v1/runs/run0/cancel")
    seen: list[str] = []
    token = ""
    while True:
        page = (await http.get(f"/v1/runs?page_size=2{f'&page_token={token}' if token else ''}")).json()
        seen += [run["run_id"] for run in page["runs"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert seen == ["run4", "run3", "run2", "run1", "run0"]

    async def listed(query: str) -> list[str]:
        return [run["run_id"] for run in (await http.get(f"/v1/runs?{query}")).json()["runs"]]

    assert await listed("state=cancelled") == ["run0"]
    assert await listed("state=queued,CANCELLED&label=parity:0") == ["run4", "run2", "run0"]
    assert await listed("workflow=other") == []
    for wrong in ("state=odd", "label=x", "page_size=1001", "page_size=", "page_token=x", "workfow=blog"):
        problem(await http.get(f"/v1/runs?{wrong}"), 400, "REQUEST_INVALID")


async def test_what_is_served_and_by_whom(http: httpx2.AsyncClient) -> None:
    served = (await http.get("/v1/workflows")).json()["workflows"]
    assert [(each["name"], each["input_schema"], each["output_schema"]) for each in served] == [("blog", SCHEMA, {})]
    there = (await http.get("/v1/executors")).json()["executors"]
    assert [each["workflows"] for each in there] in ([["blog"]], [])  # its address refuses: the Scheduler notices
    assert (await http.get("/healthz")).json() == {"status": "ready"}


# Acting.


async def test_a_run_is_cancelled(http: httpx2.AsyncClient, store: Store) -> None:
    await http.post(f"{START}?run_id=run", json=TEA)
    first, again = [await http.post("/v1/runs/run/cancel", json={"reason": "enough"}) for _ in range(2)]
    assert (first.status_code, first.json()["state"]) == (202, "CANCELLED")
    assert again.status_code == 202
    problem(await http.post("/v1/runs/run/cancel", json={"reson": "x"}), 400, "REQUEST_INVALID")
    problem(await http.post("/v1/runs/run/cancel", json={"reason": 1}), 400, "REQUEST_INVALID")
    problem(await http.post("/v1/runs/run/cancel", json=[]), 400, "REQUEST_INVALID")


async def test_a_run_is_signalled(http: httpx2.AsyncClient, store: Store) -> None:
    log = await begun(store)
    for name, path in (("go", "go"), ("a/b c", "a%2Fb%20c")):
        for value in (None, False, {"by": "ada"}):
            key = {"idempotency-key": f"{name}{value}"}
            first, again = [await http.post(f"/v1/runs/run/signals/{path}", json=value, headers=key) for _ in range(2)]
            assert (first.status_code, again.status_code) == (202, 202)
            assert first.json()["offset"] == again.json()["offset"]
            assert again.headers["idempotency-replayed"] == "true"
    empty = await http.post("/v1/runs/run/signals/go")
    assert empty.status_code == 202
    signals = [event.signal_received for event in await log_of(store, log.run) if event.HasField("signal_received")]
    assert [signal.name for signal in signals] == ["go"] * 3 + ["a/b c"] * 3 + ["go"]
    assert [signal.value.data for signal in signals[:3]] == [b"null", b"false", b'{"by":"ada"}']
    too_large = b'"' + b"x" * 800_000 + b'"'
    headers = {"content-type": "application/json"}
    problem(await http.post("/v1/runs/run/signals/go", content=too_large, headers=headers), 413, "TOO_LARGE")


async def test_a_run_that_is_not_paused_is_not_resumed(http: httpx2.AsyncClient, store: Store) -> None:
    await begun(store)
    told = problem(await http.post("/v1/runs/run/resume"), 409, "RUN_STATE")
    assert told["metadata"]["state"] in ("RUNNING", "QUEUED")  # nobody is there to hold it


async def test_a_paused_run_is_read(http: httpx2.AsyncClient, store: Store) -> None:
    log = await begun(store)
    await log.fail(PAUSED)
    run = (await http.get("/v1/runs/run")).json()
    assert (run["state"], run["error"]["reason"]) == ("PAUSED", "LOG_LIMIT")


# Failures of others, and bugs.


async def test_no_scheduler_answers(store: Store, redis_url: str) -> None:
    await serve_workflow(store)
    async with gateway(redis_url, schedulers=("127.0.0.1:1",)) as gate, client(gate) as http:
        response = await http.post(START, json={})
        problem(response, 503, "SCHEDULER_UNAVAILABLE")
        assert int(response.headers["retry-after"]) >= 1


async def test_a_bug_is_told_by_an_id_that_is_logged(
    http: httpx2.AsyncClient, store: Store, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await begun(store)
    base, ref = store.place("default", "run")
    async with bare_redis(redis_url) as redis:
        await redis.hset(keys.run(base, ref), "run", b"\xff\xff not a Run")
    told = problem(await http.get("/v1/runs/run"), 500, "INTERNAL")
    assert told["metadata"]["id"] in caplog.text


async def test_streams_are_limited_in_all_and_for_each_namespace(store: Store, redis_url: str) -> None:
    await begun(store)
    for limit in ({"streams_max": 1}, {"namespace_streams_max": 1}):
        async with gateway(redis_url, **limit) as gate, client(gate) as http:
            async with asked(gate.http, "/v1/runs/run/events", NDJSON) as response:
                await anext(response.pieces())
                refused = await http.get("/v1/runs/run/events", headers=NDJSON)
                problem(refused, 429, "LIMIT_REACHED")
                assert refused.headers["retry-after"]

            async def free(gate: Door = gate) -> bool:
                async with asked(gate.http, "/v1/runs/run/events", NDJSON) as response:
                    return response.status == 200

            await eventually(free)
            assert (await follow(gate, until=1)).offsets == [1]


# Browsers.


async def test_pages_of_others_can_do_nothing_without_a_key(gate: Door, http: httpx2.AsyncClient) -> None:
    port = gate.http.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:80", ""):
        problem(await http.get("/v1/runs", headers={"host": host}), 421, "MISDIRECTED")
    for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", f"[::1]:{port}", "[::1]"):
        assert (await http.get("/v1/runs", headers={"host": host})).status_code == 200
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{int(port) + 1}"):
        problem(await http.post(START, json=TEA, headers={"origin": origin}), 403, "FORBIDDEN")
    own = await http.post(START, json=TEA, headers={"origin": f"http://{gate.http}"})
    assert own.status_code == 202
    assert "access-control-allow-origin" not in own.headers
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert (await http.options(START, headers=preflight)).status_code == 405


async def test_pages_of_named_origins_may_do_everything(store: Store, redis_url: str, scheduler: str) -> None:
    await serve_workflow(store)
    origin = "https://app.example"
    async with (
        gateway(redis_url, schedulers=(scheduler,), cors_origins=(origin,), http_hosts=("door.example",)) as gate,
        client(gate) as http,
    ):
        asked_first = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type, idempotency-key, last-event-id",
        }
        preflight = await http.options(START, headers=asked_first)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, origin)
        started = await http.post(START, json={}, headers={"origin": origin, "host": "door.example:80"})
        assert (started.status_code, started.headers["access-control-allow-origin"]) == (202, origin)
        assert "onward-run-id" in started.headers["access-control-expose-headers"].lower()
        assert "access-control-allow-credentials" not in started.headers
        refused = await http.options(START, headers={**asked_first, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("path", ["/docs", "/docs/docs.js", "/docs/docs.css"])
async def test_the_page_runs_only_what_is_ours(http: httpx2.AsyncClient, path: str) -> None:
    page = await http.get(path)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"https?://(?!www\.w3\.org)", page.text), "it works offline"
    again = await http.get(path, headers={"if-none-match": page.headers["etag"]})
    assert again.status_code == 304
    problem(await http.get("/docs/..%2fdescribing.py"), 404, "NOT_FOUND")
    problem(await http.get("/docs/docs.html"), 404, "NOT_FOUND")


# What a client may cost.


async def raw(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_a_head_that_never_ends_is_given_up(gate: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a first request and of a later one, with and without a byte of it."""
    monkeypatch.setattr(door, "HEAD_S", 0.3)
    whole = f"GET /healthz HTTP/1.1\r\nhost: {gate.http}\r\n\r\n".encode()
    for sent in (b"", b"GET /healthz HTTP/1.1\r\nhost:", whole + b"GET /"):
        reader, writer = await raw(gate.http)
        writer.write(sent)
        async with asyncio.timeout(5):
            if sent.startswith(whole):
                response = await answered(reader)
                assert (response.status, await response.body()) == (200, b'{"status":"ready"}')
            late = await answered(reader)
            assert (late.status, json.loads(await late.body())["reason"]) == (408, "TIMEOUT")
            assert await reader.read() == b""
        writer.close()


async def test_a_body_that_never_ends_is_given_up(gate: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BODY_S", 0.3)
    reader, writer = await raw(gate.http)
    head = (
        f"POST {START} HTTP/1.1\r\nhost: {gate.http}\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
    )
    writer.write(head.encode())
    async with asyncio.timeout(5):
        late = await answered(reader)
        assert (late.status, json.loads(await late.body())["reason"]) == (408, "TIMEOUT")
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x-a: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20_000, 431),
        (b"not http at all\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    ],
)
async def test_what_is_not_http(gate: Door, sent: bytes, status: int) -> None:
    reader, writer = await raw(gate.http)
    writer.write(sent)
    async with asyncio.timeout(15):
        response = await answered(reader)
        assert response.status == status
        assert response.headers["content-type"] == "application/problem+json"
    writer.close()


async def test_one_connection_too_many_is_refused(store: Store, redis_url: str) -> None:
    async with gateway(redis_url, http_connections_max=2) as gate:
        held = [await raw(gate.http) for _ in range(2)]

        async def refused() -> bool:
            reader, writer = await raw(gate.http)
            try:
                response = await answered(reader)
                return response.status == 503
            finally:
                writer.close()

        async with asyncio.timeout(5):
            assert await refused()
        for _, writer in held:
            writer.close()

        async def served() -> bool:
            async with asked(gate.http, "/healthz") as response:
                return response.status == 200

        await eventually(served)


async def test_an_answer_that_is_never_taken_is_given_up(
    store: Store, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value of many megabytes, asked for many times on connections that nobody reads from."""
    await begun(store)
    base, ref = store.place("default", "run")
    async with bare_redis(redis_url) as redis:
        await redis.set(keys.blob(base, ref, "1-1"), bytes(20_000_000))
    async with gateway(redis_url, slow_reader_s=0.2, slow_reader_grace_s=0.2) as gate:
        async with asked(gate.http, "/healthz") as response:
            await response.body()
        before = len(asyncio.all_tasks())
        held = []
        for _ in range(5):
            reader, writer = await raw(gate.http)
            writer.write(f"GET /v1/runs/run/blobs/1-1 HTTP/1.1\r\nhost: {gate.http}\r\n\r\n".encode())
            held.append((reader, writer))

        async def busy() -> bool:
            return len(asyncio.all_tasks()) > before

        await eventually(busy)

        async def given_up() -> bool:
            return len(asyncio.all_tasks()) <= before

        await eventually(given_up)
        for _, writer in held:
            writer.close()
