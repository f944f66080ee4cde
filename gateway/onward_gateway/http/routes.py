"""The routes: each translates a request to a call of `Calls`, and its answer to a response."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from onward.v1.error_reason_pb2 import ErrorReason
from onward.v1.gateway_service_pb2 import (
    CancelRunRequest,
    ForkRunRequest,
    GetRunRequest,
    InvokeWorkflowRequest,
    ListRunEventsRequest,
    ListRunsRequest,
    ReadBlobRequest,
    ResumeRunRequest,
    SignalRunRequest,
    StartRunRequest,
    SubscribeRunRequest,
    View,
)
from onward.v1.run_pb2 import Payload, Run, RunState
from onward_gateway.access import Access, Caller
from onward_gateway.calls import Calls
from onward_gateway.checking import (
    GET_WAIT_MAX_S,
    HEARTBEAT_MAX_S,
    HEARTBEAT_MIN_S,
    INPUT_BYTES_MAX,
    PAGE_SIZE_MAX,
    SIGNAL_BYTES_MAX,
    is_json,
)
from onward_gateway.http import asking, media
from onward_gateway.http.asking import Query, while_connected
from onward_gateway.http.documents import (
    BLOB_PREFIX,
    document_of,
    dump,
    event_document,
    executor_document,
    run_document,
    workflow_document,
)
from onward_gateway.http.problems import Problem, failed
from onward_gateway.http.streaming import EventStream, TextStream
from onward_gateway.submitting import trace_parent
from onward_runlog.record import TERMINAL
from onward_serving.errors import Refused

RETRY_S = 1.0
"""How soon it makes sense to ask again for what is not there yet."""

_STATES = {name.removeprefix("RUN_STATE_"): state for name, state in RunState.items() if state}

_RANGE = re.compile(r"bytes=(\d{1,15})?-(\d{1,15})?", re.ASCII)


@dataclass(frozen=True)
class Door:
    """What routes work with."""

    calls: Calls
    access: Access

    def caller(self, request: Request) -> Caller:
        """Return who sent a request.

        Raises:
            Refused: No valid key.
        """
        return self.access.caller(request.headers.get("authorization"))


Handler = Callable[[Door, Request], Awaitable[ASGIApp | None]]

ROUTES: dict[tuple[str, str], Handler] = {}
"""By method and path."""


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        ROUTES[method, path] = handler
        return handler

    return register


@route("GET", "/healthz")
async def healthz(door: Door, _: Request) -> Response:
    """Tell whether this Gateway is ready; to everybody."""
    ready = door.calls.ready
    return _json({"status": "ready" if ready else "not ready"}, 200 if ready else 503)


@route("GET", "/v1/workflows")
async def workflows(door: Door, request: Request) -> Response:
    """List what can be started."""
    caller = door.caller(request)
    Query(request).done()
    served = await door.calls.workflows(caller)
    return _json({"workflows": [workflow_document(each) for each in served]})


@route("GET", "/v1/executors")
async def executors(door: Door, request: Request) -> Response:
    """List who runs workflows."""
    caller = door.caller(request)
    Query(request).done()
    there = await door.calls.executors(caller)
    served: dict[str, list[str]] = {}
    for workflow in await door.calls.workflows(caller):
        for deployment in workflow.deployments:
            served.setdefault(deployment, []).append(workflow.name)
    return _json({"executors": [executor_document(each, served.get(each.deployment, [])) for each in there]})


@route("POST", "/v1/workflows/{workflow}/runs")
async def start(door: Door, request: Request) -> Response:
    """Start a run and return at once."""
    caller = door.caller(request)
    asked = await _start_request(request)
    run, replayed = await door.calls.start(caller, asked, _trace(request))
    return _accepted(run, replayed=replayed)


@route("POST", "/v1/workflows/{workflow}/invoke")
async def invoke(door: Door, request: Request) -> ASGIApp:
    """Start a run, wait for its end and return its output."""
    caller = door.caller(request)
    asked = InvokeWorkflowRequest(start=await _start_request(request))
    wait_s = asking.wait_s(request)
    if wait_s is not None:
        asked.wait.FromSeconds(wait_s)
    known: list[tuple[Run, bool]] = []

    async def accepted(run: Run, replayed: bool) -> None:
        known.append((run, replayed))

    try:
        run = await while_connected(request, door.calls.invoke(caller, asked, _trace(request), accepted))
    except Refused as refused:
        if not known or refused.reason != ErrorReason.ERROR_REASON_DRAINING:
            raise
        run = known[0][0]  # accepted: it goes on, and another Gateway tells how it ends
    _, replayed = known[0]
    waited = {} if wait_s is None else {"preference-applied": f"wait={wait_s}"}
    if run.state not in TERMINAL:
        return _accepted(run, replayed=replayed, more=waited)
    headers = {**_told(run, replayed=replayed), **waited}
    if run.state != RunState.RUN_STATE_SUCCEEDED:
        problem = failed(run)
        problem.headers = headers
        raise problem
    return _output(door, caller, run, headers)


@route("GET", "/v1/runs")
async def runs(door: Door, request: Request) -> Response:
    """List runs, newest first."""
    caller = door.caller(request)
    query = Query(request)
    asked = ListRunsRequest(
        workflow=query.text("workflow"),
        labels=query.labels(),
        page_size=query.whole("page_size"),
        page_token=query.text("page_token"),
        parent_run_id=query.text("parent_run_id"),
    )
    for text in query.texts("state"):
        for name in text.split(","):
            if (known := name.strip().upper()) in _STATES:
                asked.states.append(_STATES[known])
            else:
                query.checks.that(False, "state", f"one of {', '.join(_STATES)}")
    query.done()
    page = await door.calls.runs(caller, asked)
    document: dict[str, Any] = {"runs": [run_document(run) for run in page.runs]}
    if page.next_page_token:
        document["next_page_token"] = page.next_page_token
    return _json(document)


@route("GET", "/v1/runs/{run_id}")
async def get(door: Door, request: Request) -> Response:
    """Return a run, at its end or after a wait."""
    caller = door.caller(request)
    query = Query(request)
    asked = GetRunRequest(run_id=request.path_params["run_id"])
    wait = query.seconds("wait_s")
    query.done()
    if wait is not None:
        asked.wait.CopyFrom(wait)
    elif (preferred := asking.wait_s(request)) is not None:
        asked.wait.FromSeconds(min(preferred, int(GET_WAIT_MAX_S)))
    run = await while_connected(request, door.calls.get(caller, asked))
    headers = {"onward-run-id": run.run_id}
    if run.state in TERMINAL:
        headers["etag"] = f'"{run.log.log_id}-{run.log.last_offset}"'
        if matches(request, headers["etag"]):
            return Response(None, 304, headers)
    return _json(run_document(run), headers=headers)


@route("GET", "/v1/runs/{run_id}/output")
async def output(door: Door, request: Request) -> ASGIApp:
    """Return a run's output; before its end, its text as it is made."""
    caller = door.caller(request)
    query = Query(request)
    asked = GetRunRequest(run_id=request.path_params["run_id"])
    query.done()
    form = media.chosen(request.headers.getlist("accept"), ("*/*", media.JSON, media.TEXT))
    if form == media.JSON and (preferred := asking.wait_s(request)) is not None:
        asked.wait.FromSeconds(min(preferred, int(GET_WAIT_MAX_S)))
    run = await while_connected(request, door.calls.get(caller, asked))
    headers = {"onward-run-id": run.run_id, "vary": "accept"}
    if form == media.TEXT or (form != media.JSON and run.state not in TERMINAL):
        subscription = SubscribeRunRequest(run_id=run.run_id, view=View.VIEW_SETTLED)
        return TextStream(door.calls, caller, subscription, headers, head=request.method == "HEAD")
    if run.state not in TERMINAL:
        return _accepted(run, more={**headers, "retry-after": str(int(RETRY_S))})
    if run.state != RunState.RUN_STATE_SUCCEEDED:
        problem = failed(run)
        problem.headers = headers
        raise problem
    return _output(door, caller, run, headers)


@route("GET", "/v1/runs/{run_id}/blobs/{name:path}")
async def blob(door: Door, request: Request) -> ASGIApp:
    """Return a value that is kept apart, or a part of it."""
    caller = door.caller(request)
    Query(request).done()
    run_id, name = request.path_params["run_id"], request.path_params["name"]
    size = await door.calls.blob_size(caller, ReadBlobRequest(run_id=run_id, blob_uri=BLOB_PREFIX + name))
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=86400, immutable",  # a blob is never changed
        "content-disposition": "attachment",
        "etag": f'"{quote(name, safe="")}"',
        "vary": "authorization",
    }
    if matches(request, headers["etag"]):
        return Response(None, 304, headers)
    begin, end = 0, size
    asked = _range(request.headers.get("range"), size) if request.method == "GET" else None
    if asked is not None:
        begin, end = asked
        headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
    headers["content-length"] = str(end - begin)
    content = _pieces(door, caller, ReadBlobRequest(run_id=run_id, blob_uri=BLOB_PREFIX + name, start=begin), end)
    return StreamingResponse(content, 200 if asked is None else 206, headers, "application/octet-stream")


@route("GET", "/v1/runs/{run_id}/events")
async def events(door: Door, request: Request) -> ASGIApp:
    """Read a run's log: a page of it as JSON, or all of it and what is still to come as SSE or NDJSON."""
    caller = door.caller(request)
    form = media.chosen(request.headers.getlist("accept"), (media.JSON, media.SSE, media.NDJSON))
    run_id = request.path_params["run_id"]
    last_event_id = request.headers.get("last-event-id")
    query = Query(request)
    position = query.position(last_event_id)
    view, size, heartbeat = query.view(), query.whole("page_size"), query.seconds("heartbeat_s")
    # Each is for one form only, and checked in all: the same address may be asked for in another.
    query.checks.that(0 <= size <= PAGE_SIZE_MAX, "page_size", f"from 1 to {PAGE_SIZE_MAX}")
    if heartbeat is not None:
        query.checks.duration(heartbeat, "heartbeat_s", least_s=HEARTBEAT_MIN_S, most_s=HEARTBEAT_MAX_S)
    query.done()
    if form == media.JSON:
        page = await door.calls.events(
            caller, ListRunEventsRequest(run_id=run_id, start=position, view=view, page_size=size)
        )
        document = {
            "events": [event_document(event, run_id) for event in page.events],
            "next_cursor": page.next_cursor,
            "log": document_of(page.log),
            "after_offset": page.after_offset,
            "through_offset": page.through_offset,
        }
        return _json(document, headers={"vary": "accept", "onward-run-id": run_id})
    subscription = SubscribeRunRequest(run_id=run_id, start=position, view=view)
    if heartbeat is not None:
        subscription.heartbeat.CopyFrom(heartbeat)
    return EventStream(
        door.calls,
        caller,
        subscription,
        form,
        ended=last_event_id is not None and last_event_id.endswith(asking.ENDED),
        head=request.method == "HEAD",
    )


@route("POST", "/v1/runs/{run_id}/cancel")
async def cancel(door: Door, request: Request) -> Response:
    """Ask for a run's end."""
    caller = door.caller(request)
    Query(request).done()
    given = await asking.command(request, "reason")
    asked = CancelRunRequest(run_id=request.path_params["run_id"], reason=given.get("reason", ""))
    return _accepted(await door.calls.cancel(caller, asked))


@route("POST", "/v1/runs/{run_id}/resume")
async def resume(door: Door, request: Request) -> Response:
    """Continue a paused run."""
    caller = door.caller(request)
    Query(request).done()
    given = await asking.command(request, "deployment")
    asked = ResumeRunRequest(run_id=request.path_params["run_id"], deployment=given.get("deployment", ""))
    return _accepted(await door.calls.resume(caller, asked))


@route("POST", "/v1/runs/{run_id}/fork")
async def fork(door: Door, request: Request) -> Response:
    """Start a run with what another one has already got."""
    caller = door.caller(request)
    Query(request).done()
    given = await asking.command(request, "component_id", "deployment", "run_id")
    asked = ForkRunRequest(
        run_id=request.path_params["run_id"],
        component_id=given.get("component_id", ""),
        deployment=given.get("deployment", ""),
        new_run_id=given.get("run_id", ""),
        request_id=asking.request_id(request),
    )
    response = await door.calls.fork(caller, asked, _trace(request))
    return _accepted(response.run, replayed=response.replayed)


@route("POST", "/v1/runs/{run_id}/retry")
async def retry(door: Door, request: Request) -> Response:
    """Start a run that goes on from where another one failed."""
    caller = door.caller(request)
    Query(request).done()
    given = await asking.command(request, "deployment", "run_id")
    asked = ForkRunRequest(
        run_id=request.path_params["run_id"],
        from_failure=True,
        deployment=given.get("deployment", ""),
        new_run_id=given.get("run_id", ""),
        request_id=asking.request_id(request),
    )
    response = await door.calls.fork(caller, asked, _trace(request))
    return _accepted(response.run, replayed=response.replayed)


@route("POST", "/v1/runs/{run_id}/signals/{name:path}")
async def signal(door: Door, request: Request) -> Response:
    """Send a value into a run."""
    caller = door.caller(request)
    Query(request).done()
    data = await asking.json_body(request, SIGNAL_BYTES_MAX) or b"null"
    asked = SignalRunRequest(
        run_id=request.path_params["run_id"],
        name=request.path_params["name"],
        value=Payload(media_type=media.JSON, data=data, size=len(data)),
        request_id=asking.request_id(request),
    )
    response = await door.calls.signal(caller, asked)
    headers = {"onward-run-id": asked.run_id, **({"idempotency-replayed": "true"} if response.replayed else {})}
    return _json({"offset": response.offset, "replayed": response.replayed}, 202, headers)


async def _start_request(request: Request) -> StartRunRequest:
    query = Query(request)
    asked = StartRunRequest(
        workflow=request.path_params["workflow"],
        run_id=query.text("run_id"),
        request_id=asking.request_id(request),
        labels=query.labels(),
        priority=query.whole("priority"),
        fairness_key=query.text("fairness_key"),
        deployment=query.text("deployment"),
    )
    run_timeout, schedule_time = query.seconds("run_timeout_s"), query.time("schedule_time")
    query.done()
    if run_timeout is not None:
        asked.run_timeout.CopyFrom(run_timeout)
    if schedule_time is not None:
        asked.schedule_time.CopyFrom(schedule_time)
    data = await asking.json_body(request, INPUT_BYTES_MAX)
    asked.input.CopyFrom(Payload(media_type=media.JSON, data=data, size=len(data)))
    return asked


def _trace(request: Request) -> str:
    return trace_parent(request.headers.items())


def _json(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dump(document), status, {"cache-control": "no-store", **(headers or {})}, media.JSON)


def _told(run: Run, *, replayed: bool = False) -> dict[str, str]:
    told = {"location": f"/v1/runs/{run.run_id}", "onward-run-id": run.run_id}
    return {**told, "idempotency-replayed": "true"} if replayed else told


def _accepted(run: Run, *, replayed: bool = False, more: Mapping[str, str] | None = None) -> Response:
    return _json(run_document(run), 202, {**_told(run, replayed=replayed), **(more or {})})


def _output(door: Door, caller: Caller, run: Run, headers: Mapping[str, str]) -> ASGIApp:
    """Return a run's output as it is: byte for byte, whatever its type."""
    payload = run.output
    media_type = payload.media_type or media.JSON
    if not is_json(media_type) and not _is_plain(media_type):
        media_type = "application/octet-stream"
    told = {"cache-control": "no-store", **headers}
    match payload.WhichOneof("value"):
        case "data":
            return Response(payload.data, 200, told, media_type)
        case "blob_uri":
            asked = ReadBlobRequest(run_id=run.run_id, blob_uri=payload.blob_uri)
            told["content-length"] = str(payload.size)
            return StreamingResponse(_pieces(door, caller, asked, payload.size), 200, told, media_type)
    return Response(b"null", 200, told, media.JSON)


def _is_plain(media_type: str) -> bool:
    """Say whether a browser only shows it: what user code names text/html must not run here."""
    return media_type.partition(";")[0].strip().lower() == media.TEXT


async def _pieces(door: Door, caller: Caller, asked: ReadBlobRequest, end: int) -> AsyncIterator[bytes]:
    left = end - asked.start
    if not left:
        return
    async with contextlib.aclosing(door.calls.blob(caller, asked)) as pieces:
        async for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one behind the last of a range that is asked for; None for all.

    Raises:
        Problem: 416: the range begins behind the end.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or not (found[1] or found[2]):
        return None  # several ranges, or none: everything is a right answer to both
    if not found[1]:
        begin, end = max(0, size - int(found[2])), size
    else:
        begin, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < begin:
            return None
    if begin >= size:
        raise Problem(
            416,
            "RANGE_NOT_SATISFIABLE",
            "The range is behind the end",
            f"the value has {size} bytes",
            metadata={"size": str(size)},
            headers={"content-range": f"bytes */{size}"},
        )
    return begin, end


def matches(request: Request, etag: str) -> bool:
    """Say whether the client has what has this ETag."""
    given = ",".join(request.headers.getlist("if-none-match"))
    return etag in {tag.strip().removeprefix("W/") for tag in given.split(",")}
