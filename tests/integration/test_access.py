"""API keys: who is let in, and that nobody sees, guesses or touches what is another tenant's, by any door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.eventsource import EventSource, Fatal, asked
from tests.gateway import Door, Log, bare_redis, begun, delta, gateway, serve_workflow, told
from tests.runlog import eventually, log_of

from onward import Client, errors
from onward.v1.gateway_service_pb2 import (
    DESCRIPTOR,
    CancelRunRequest,
    ForkRunRequest,
    GetRunRequest,
    InvokeWorkflowRequest,
    ListRunEventsRequest,
    ListRunsRequest,
    ListWorkflowsRequest,
    Position,
    ReadBlobRequest,
    ResumeRunRequest,
    SignalRunRequest,
    StartRunRequest,
    SubscribeRunRequest,
)
from onward.v1.run_pb2 import Payload
from onward_gateway.access import Scope, hash_of, line_of, new_key
from onward_gateway.app import Unprotected, opened
from onward_gateway.http.routes import ROUTES
from onward_gateway.settings import Settings
from onward_runlog import keys as redis_keys
from onward_runlog.store import Store
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
HIDDEN = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
THEIRS = "theirs"

REQUESTS: dict[str, Any] = {
    "StartRun": StartRunRequest(workflow="blog", run_id=THEIRS),
    "InvokeWorkflow": InvokeWorkflowRequest(start=StartRunRequest(workflow="blog", run_id=THEIRS), wait=Duration()),
    "GetRun": GetRunRequest(run_id=THEIRS),
    "ListRuns": ListRunsRequest(),
    "CancelRun": CancelRunRequest(run_id=THEIRS),
    "SignalRun": SignalRunRequest(run_id=THEIRS, name="go", value=Payload(data=b"1")),
    "ResumeRun": ResumeRunRequest(run_id=THEIRS),
    "ForkRun": ForkRunRequest(run_id=THEIRS),
    "ReadBlob": ReadBlobRequest(run_id=THEIRS, blob_uri="blob:1-1"),
    "SubscribeRun": SubscribeRunRequest(run_id=THEIRS, start=Position(last=0)),
    "ListRunEvents": ListRunEventsRequest(run_id=THEIRS),
    "ListWorkflows": ListWorkflowsRequest(),
}
"""One for each RPC, about a run of another tenant where it is about a run."""

CREATES = {"StartRun", "InvokeWorkflow"}
SHARED = {"ListRuns", "ListWorkflows"}
"""They are not about one run."""

WRITES = {"StartRun", "InvokeWorkflow", "CancelRun", "SignalRun", "ResumeRun", "ForkRun"}

CLOSED = [
    (method, path)
    for method, path in ROUTES
    if path not in ("/", "/healthz", "/docs", "/docs/{name}") and not path.startswith("/console")
]
"""Routes that need a key. The others tell of nobody's runs: pages that are the same for everybody, and health."""


@dataclass(frozen=True)
class Tenants:
    """A Gateway and a key of each kind."""

    door: Door
    file: Path
    ours: str
    theirs: str
    reader: str
    writer: str
    log: Log


@pytest.fixture
async def tenants(redis_url: str, store: Store, tmp_path: Path) -> AsyncIterator[Tenants]:
    """Two tenants, `a` and `b`, and a run of `a` that has a blob."""
    file = tmp_path / "keys"
    made = {
        ("a", frozenset(Scope)): new_key(),
        ("b", frozenset(Scope)): new_key(),
        ("b", frozenset({Scope.READ})): new_key(),
        ("b", frozenset({Scope.WRITE})): new_key(),
    }
    file.write_text("# keys\n\n" + "".join(f"{line_of(key, *what, 'name')}\n" for what, key in made.items()))
    theirs, ours, reader, writer = made.values()
    await serve_workflow(store)
    log = await begun(store, THEIRS, namespace="a")
    await log.append(delta("secret"))
    base, ref = store.place("a", THEIRS)
    async with bare_redis(redis_url) as redis:
        await redis.set(redis_keys.blob(base, ref, "1-1"), b"secret")
    async with (
        scheduler_app.opened(SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0")) as scheduler,
        gateway(redis_url, schedulers=(scheduler.address,), keys=file) as door,
    ):
        yield Tenants(door, file, ours, theirs, reader, writer, log)


async def rpc(door: Door, name: str, key: str | None) -> Any:
    """Call an RPC, and return its response, the first of a stream, or how it failed."""
    metadata = [("authorization", f"Bearer {key}")] if key is not None else []
    call = getattr(door.stub, name)(REQUESTS[name], metadata=metadata, timeout=10)
    try:
        if hasattr(call, "read"):
            response = await call.read()
            call.cancel()
            return response
        return await call
    except grpc.aio.AioRpcError as error:
        return told(error)


def rpcs() -> list[str]:
    return [method.name for method in DESCRIPTOR.services_by_name["GatewayService"].methods]


async def http(
    door: Door, method: str, path: str, key: str | None, *, accept: str = "*/*", body: bytes = b""
) -> tuple[int, bytes]:
    headers = {"accept": accept, "prefer": "wait=0", **({"content-type": "application/json"} if body else {})}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    if method == "POST" and not body:
        headers["content-length"] = "0"
    async with asyncio.timeout(10), asked(door.http, path, headers, method=method, body=body) as response:
        return response.status, await response.body()


def filled(path: str) -> str:
    values = {"run_id": THEIRS, "workflow": "blog", "name": "1-1", "name:path": "1-1", "path:path": ""}
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path, f"the test does not know how to fill {path}"
    return path


async def unchanged(tenants: Tenants, store: Store) -> bool:
    kinds = [event.WhichOneof("kind") for event in await log_of(store, tenants.log.run)]
    return kinds == ["run_state_changed", "output_delta"]


@pytest.mark.parametrize("name", rpcs())
async def test_no_rpc_without_a_key(tenants: Tenants, store: Store, name: str) -> None:
    for key in (None, "", "nonsense", new_key(), tenants.ours + "x", tenants.ours[:-1], hash_of(tenants.ours)):
        failure = await rpc(tenants.door, name, key)
        assert (failure.code, failure.reason) == (UNAUTHENTICATED, "FORBIDDEN")
    assert await unchanged(tenants, store)


@pytest.mark.parametrize("name", rpcs())
async def test_no_rpc_shows_or_touches_anothers_run(tenants: Tenants, store: Store, name: str) -> None:
    answer = await rpc(tenants.door, name, tenants.ours)
    if name in CREATES:
        assert (answer.run.namespace, answer.run.run_id) == ("b", THEIRS), "a run of the same id, and of its own"
    elif name in SHARED:
        assert b"theirs" not in answer.SerializeToString()
    else:
        assert answer.code in HIDDEN, "not even that there is one is told"
        assert answer.metadata.get("run_id", THEIRS) == THEIRS
    assert await unchanged(tenants, store)
    known = await rpc(tenants.door, "GetRun", tenants.theirs)
    assert known.run.namespace == "a"


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_no_route_without_a_key(tenants: Tenants, store: Store, method: str, path: str) -> None:
    for key in (None, "", new_key(), tenants.ours + "x"):
        for accept in ("*/*", "text/event-stream"):
            code, body = await http(tenants.door, method, filled(path), key, accept=accept)
            if code == 406:
                continue
            assert (code, json.loads(body)["reason"]) == (401, "FORBIDDEN")
    assert await unchanged(tenants, store)


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_no_route_shows_or_touches_anothers_run(tenants: Tenants, store: Store, method: str, path: str) -> None:
    for accept in ("*/*", "application/json", "text/event-stream", "application/x-ndjson", "text/plain"):
        code, body = await http(tenants.door, method, filled(path), tenants.ours, accept=accept)
        assert b"secret" not in body
        if "{run_id}" in path:
            assert code in (404, 406), "not even that there is one is told"
        else:
            assert code in (200, 202)
            assert b'"a"' not in body, "nor the name of its tenant"
    assert await unchanged(tenants, store)


async def test_a_key_is_good_for_its_scopes_only(tenants: Tenants) -> None:
    for name in rpcs():
        for key, allowed in ((tenants.reader, name not in WRITES), (tenants.writer, name in WRITES)):
            answer = await rpc(tenants.door, name, key)
            denied = getattr(answer, "code", None) == DENIED
            assert denied == (not allowed or name == "InvokeWorkflow"), (name, answer)  # invoking is both
    for path, codes in {"/v1/executors": (403, 403), "/v1/runs": (200, 403), "/openapi.json": (200, 403)}.items():
        for key, code in zip((tenants.reader, tenants.writer), codes, strict=True):
            assert (await http(tenants.door, "GET", path, key))[0] == code
    assert (await http(tenants.door, "GET", "/v1/executors", tenants.ours))[0] == 200


async def test_tokens_of_one_tenant_are_none_of_another(tenants: Tenants, store: Store) -> None:
    await begun(store, THEIRS, namespace="b")
    for i in range(2):
        await begun(store, f"more{i}", namespace="a")
    _, page = await http(tenants.door, "GET", "/v1/runs?page_size=1", tenants.theirs)
    token = json.loads(page)["next_page_token"]
    code, body = await http(tenants.door, "GET", f"/v1/runs?page_token={token}", tenants.ours)
    assert (code, json.loads(body)["reason"]) == (400, "REQUEST_INVALID")
    _, page = await http(tenants.door, "GET", f"/v1/runs/{THEIRS}/events", tenants.theirs)
    cursor = json.loads(page)["next_cursor"]
    code, body = await http(tenants.door, "GET", f"/v1/runs/{THEIRS}/events?after={cursor}", tenants.ours)
    assert (code, json.loads(body)["reason"]) == (400, "CURSOR_INVALID")


async def test_the_same_idempotency_key_of_two_tenants_starts_two_runs(tenants: Tenants) -> None:
    found = []
    for key in (tenants.ours, tenants.theirs, tenants.ours):
        headers = {"authorization": f"Bearer {key}", "idempotency-key": "once", "content-type": "application/json"}
        async with asked(tenants.door.http, "/v1/workflows/blog/runs", headers, method="POST", body=b"{}") as response:
            found.append((json.loads(await response.body())["run_id"], response.headers.get("idempotency-replayed")))
    assert found[0][0] != found[1][0]
    assert found[2] == (found[0][0], "true")


async def test_a_key_that_is_taken_back_ends_its_streams(tenants: Tenants, store: Store) -> None:
    """And one that is added is let in, without a restart."""
    door = tenants.door
    fresh = new_key()
    source = EventSource(door.http, f"/v1/runs/{THEIRS}/events", headers={"authorization": f"Bearer {tenants.theirs}"})
    messages = source.messages()
    await anext(messages)
    kept = [line for line in tenants.file.read_text().splitlines() if hash_of(tenants.theirs) not in line]
    tenants.file.write_text("\n".join([*kept, line_of(fresh, "a", frozenset({Scope.READ}), "")]))
    with pytest.raises(Fatal) as fatal:
        async for _ in messages:
            pass
    assert fatal.value.status == 401
    assert (await http(door, "GET", f"/v1/runs/{THEIRS}", fresh))[0] == 200
    tenants.file.write_text("nonsense")

    async def refused() -> bool:
        return (await http(door, "GET", "/v1/runs", tenants.ours))[0] != 200

    with pytest.raises(TimeoutError):
        await eventually(refused, within_s=2.5)  # a file that makes no sense changes nothing
    assert await unchanged(tenants, store)


async def take_back(tenants: Tenants, key: str) -> None:
    kept = [line for line in tenants.file.read_text().splitlines() if hash_of(key) not in line]
    tenants.file.write_text("\n".join(kept))

    async def refused() -> bool:
        return (await http(tenants.door, "GET", f"/v1/runs/{THEIRS}", key))[0] == 401

    await eventually(refused)


async def test_a_key_that_is_taken_back_reads_no_more_text(tenants: Tenants) -> None:
    """Plain text goes on behind a handoff within the same response."""
    headers = {"accept": "text/plain", "authorization": f"Bearer {tenants.theirs}"}
    async with asked(tenants.door.http, f"/v1/runs/{THEIRS}/output", headers) as response:
        pieces = response.pieces()
        assert await anext(pieces) == b"secret"
        await take_back(tenants, tenants.theirs)
        await tenants.log.append(delta("after that"))
        async with asyncio.timeout(5):
            with pytest.raises((EOFError, ConnectionError)):  # broken off
                await anext(pieces)


async def test_a_key_that_is_taken_back_waits_in_vain(tenants: Tenants) -> None:
    """Whoever waits for a run's end is told by then whose key it is."""
    metadata = [("authorization", f"Bearer {tenants.theirs}")]
    request = GetRunRequest(run_id=THEIRS, wait=Duration(seconds=30))
    waiting = asyncio.ensure_future(tenants.door.stub.GetRun(request, metadata=metadata, timeout=40))
    await asyncio.sleep(0.2)
    await take_back(tenants, tenants.theirs)
    await tenants.log.close()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await waiting
    assert failed.value.code() == UNAUTHENTICATED


async def test_health_needs_no_key(tenants: Tenants) -> None:
    async with grpc.aio.insecure_channel(tenants.door.grpc) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    assert (await http(tenants.door, "GET", "/healthz", None))[0] == 200


async def test_the_client_sends_its_key(tenants: Tenants, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Client(tenants.door.grpc, api_key=tenants.theirs) as client:
        assert (await client.get(THEIRS)).namespace == "a"
        assert [event.offset async for event in _some(client)] == [1, 2]
    async with Client(tenants.door.grpc) as client:
        with pytest.raises(errors.Denied):
            await client.get(THEIRS)
    monkeypatch.setenv("ONWARD_API_KEY", tenants.ours)
    async with Client(tenants.door.grpc) as client:
        with pytest.raises(errors.RunNotFound):
            await client.get(THEIRS)


async def _some(client: Client) -> AsyncIterator[Any]:
    async for event in client.run(THEIRS).follow():
        yield event
        if event.offset == 2:
            return


@pytest.mark.parametrize("door", ["grpc", "http"])
@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0"])
async def test_a_door_that_others_can_reach_asks_for_keys(redis_url: str, door: str, listen: str) -> None:
    settings = {"grpc": "127.0.0.1:0", "http": "localhost:0", door: listen}
    with pytest.raises(Unprotected, match="--keys"):
        async with opened(Settings(redis_url=redis_url, **settings)):  # type: ignore[arg-type]
            pass


async def test_it_may_be_told_to_let_everybody_in(redis_url: str, store: Store) -> None:
    async with gateway(redis_url, http="0.0.0.0:0", allow_anonymous=True) as door:
        port = door.http.rpartition(":")[2]
        assert (await http(Door(door.stub, door.grpc, f"127.0.0.1:{port}"), "GET", "/v1/runs", None))[0] == 200
