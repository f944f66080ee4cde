"""A run's log as a response that goes on: for EventSource, for programs line by line, and as plain text."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from onward.v1.event_pb2 import Channel, Event
from onward.v1.gateway_service_pb2 import SubscribeRunRequest, SubscribeRunResponse
from onward.v1.run_pb2 import RunState
from onward_gateway.access import Caller
from onward_gateway.calls import Calls
from onward_gateway.http import media
from onward_gateway.http.asking import ENDED, broken_off, gone
from onward_gateway.http.documents import document_of, dump, event_document, run_document
from onward_gateway.http.problems import Problem, problem_of
from onward_runlog.cursor import Cursors, event_hash
from onward_runlog.reader import Chunk, unframed
from onward_runlog.settled import Voids

logger = logging.getLogger(__name__)

RECONNECT_S = 1.0
"""How long an EventSource waits before it comes back from a cut."""

_STREAMING = {
    "cache-control": "no-store, no-transform",  # no-transform: compression would hold events back
    "x-accel-buffering": "no",
    "vary": "accept",
}

_END = {"type": "http.response.body", "body": b"", "more_body": False}


class _AsEvents:
    """Server-sent events. Each event of the log is one, and its id is the cursor behind it."""

    name = "sse"

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def message(self, response: SubscribeRunResponse) -> bytes:
        """See Form.message."""
        cursor = response.cursor
        match response.WhichOneof("message"):
            case "opened":
                retry = b"retry: %d\n" % int(RECONNECT_S * 1_000)
                return retry + _event("opened", cursor, _said(response, self._run_id))
            case "bookmark":  # a comment: the cursor has not moved
                return b": bookmark %d\n\n" % response.bookmark.offset
            case "handoff":
                delay_s = response.handoff.retry_delay.ToNanoseconds() / 1e9
                retry = b"retry: %d\n" % int((delay_s + random.random() * RECONNECT_S) * 1_000)
                return retry + _event("handoff", cursor, _said(response, self._run_id))
            case "completed":
                return _event("completed", cursor + ENDED, _said(response, self._run_id))
            case "gap":
                return _event("gap", cursor, _said(response, self._run_id))
        return b""

    def batch(self, cursors: Cursors, cursor: bytes, chunk: Chunk, voids: Voids) -> bytes:
        """See Form.batch."""
        pieces: list[bytes] = []
        last = 0
        for framed in voids.settle(chunk):
            event = Event.FromString(unframed(framed))
            last = event.offset
            pieces += (b"id: ", cursors.at(last, event_hash(framed)), b"\ndata: ")
            pieces += (dump(event_document(event, self._run_id)), b"\n\n")
        if last != chunk.through:  # the rest is void, and a reader who comes back need not read past it again
            pieces.append(_event("bookmark", cursor.decode(), {"offset": chunk.through}))
        return b"".join(pieces)

    def problem(self, problem: Problem) -> bytes:
        """Tell what has gone wrong."""
        return b"event: problem\ndata: %b\n\n" % dump(problem.document())


class _AsLines:
    """JSON, one message a line, each with the cursor behind it."""

    name = "ndjson"

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def message(self, response: SubscribeRunResponse) -> bytes:
        """See Form.message."""
        kind = response.WhichOneof("message")
        if kind is None:
            return b""
        return _line({kind: _said(response, self._run_id), "cursor": response.cursor})

    def batch(self, cursors: Cursors, cursor: bytes, chunk: Chunk, voids: Voids) -> bytes:
        """See Form.batch."""
        lines = []
        last = 0
        for framed in voids.settle(chunk):
            event = Event.FromString(unframed(framed))
            last = event.offset
            after = cursors.at(last, event_hash(framed)).decode()
            lines.append(_line({"event": event_document(event, self._run_id), "cursor": after}))
        if last != chunk.through:
            lines.append(_line({"bookmark": {"offset": chunk.through}, "cursor": cursor.decode()}))
        return b"".join(lines)

    def problem(self, problem: Problem) -> bytes:
        """Tell what has gone wrong."""
        return _line({"problem": problem.document()})


class EventStream:
    """A response that is a run's log, up to its end or a handoff."""

    def __init__(
        self, calls: Calls, caller: Caller, request: SubscribeRunRequest, media_type: str, *, ended: bool, head: bool
    ) -> None:
        """Args:
        calls: Gives the log.
        caller: Who asks for it.
        request: From where.
        media_type: SSE or NDJSON.
        ended: The client comes back from the end: there is nothing more for it, ever.
        head: Only the headers are asked for.
        """
        self._calls = calls
        self._caller = caller
        self._request = request
        self._media_type = media_type
        self._form = _AsEvents(request.run_id) if media_type == media.SSE else _AsLines(request.run_id)
        self._ended = ended
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False
        # Each event is a piece of its own. The long way costs as much as to make it.
        connection = scope["state"]["connection"] if scope["http_version"] == "1.1" else None

        async def begin(status: int = 200) -> None:
            nonlocal began
            began = True
            headers = {**_STREAMING, "onward-run-id": self._request.run_id}
            if status == 200:
                headers["content-type"] = f"{self._media_type}; charset=utf-8"
            await send({"type": "http.response.start", "status": status, "headers": _raw(headers)})

        async def write(message: bytes) -> None:
            if not began:
                # The first message: the run is there, and the position can be read.
                await begin(204 if self._ended else 200)
                if self._ended or self._head:
                    raise _Enough
            if message and connection is not None:
                await connection.stream(message)
            elif message:
                await send(_piece(message))

        async def follow() -> None:
            try:
                await self._calls.subscribe(self._caller, self._request, self._form, write)
            except _Enough:
                pass
            except Exception as error:
                problem = problem_of(error)
                if not began:
                    if self._media_type != media.SSE or not problem.temporary:
                        raise
                    # An EventSource gives up for good on any status but 200. It shall come back.
                    await begin()
                    await send(_piece(b"retry: %d\n" % int((problem.retry_s or RECONNECT_S) * 1_000)))
                elif problem.reason == "READER_STALLED":
                    raise
                await send(_piece(self._form.problem(problem)))
            await send(_END)

        await while_read(Request(scope, receive, send), follow())


class _Enough(Exception):
    """There is nothing to send but the headers."""


class _Broken(Exception):
    """What was sent turns out not to be what the run says."""


class _AsText:
    """The text that the workflow's own body has put out, and nothing else."""

    name = ""  # it has a memory, so nothing is shared

    def __init__(self) -> None:
        self.cursor = ""
        """Behind what was sent."""
        self.ended = False
        self._text_through = 0
        """Offset of the last event whose text was sent."""

    def message(self, response: SubscribeRunResponse) -> bytes:
        """See Form.message."""
        self.cursor = response.cursor
        if response.WhichOneof("message") != "completed":
            return b""
        run = response.completed.run
        if run.state != RunState.RUN_STATE_SUCCEEDED:
            raise _Broken(f"run {run.run_id} has not succeeded")
        self.ended = True
        return b"" if self._text_through else _text_of(run_document(run))

    def batch(self, cursors: Cursors, cursor: bytes, chunk: Chunk, voids: Voids) -> bytes:
        """See Form.batch."""
        text = []
        for framed in voids.settle(chunk):
            event = Event.FromString(unframed(framed))
            if event.component_id == "" and event.output_delta.text and event.output_delta.channel in _TEXT:
                text.append(event.output_delta.text)
                self._text_through = event.offset
            elif "" in event.rollback.component_ids and event.rollback.after_offset < self._text_through:
                raise _Broken("what was sent is void")
        self.cursor = cursor.decode()
        return "".join(text).encode()


class TextStream:
    """A response that is the text of a run's output, as it is made.

    Plain text cannot take back what it has said, nor say that a run has failed. So a response that turns out wrong is
    broken off, which its client can tell from an end: `curl` exits with 18. Asked again, it is whole and right.
    Where the body puts out no text the output itself is sent, at the end.
    """

    def __init__(
        self, calls: Calls, caller: Caller, request: SubscribeRunRequest, headers: Mapping[str, str], *, head: bool
    ) -> None:
        self._calls = calls
        self._caller = caller
        self._request = request
        self._headers = headers
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {**_STREAMING, **self._headers, "content-type": f"{media.TEXT}; charset=utf-8"}
        form = _AsText()

        async def write(text: bytes) -> None:
            if text:
                await send(_piece(text))

        async def follow() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": _raw(headers)})
            while not (form.ended or self._head):
                # Again after each handoff: whoever reads plain text cannot come back for the rest.
                if form.cursor:
                    self._request.start.after_cursor = form.cursor
                await self._calls.subscribe(self._caller, self._request, form, write)
            await send(_END)

        request = Request(scope, receive, send)
        try:
            await while_read(request, follow())
        except _Broken as why:
            logger.info("the text of run %s is broken off: %s", self._request.run_id, why)
            await broken_off(request)


async def while_read(request: Request, work: Any) -> None:
    """Do `work`, which ends the response, until it is done or the client has left."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(working, leaving, return_exceptions=True)


_TEXT = frozenset({Channel.CHANNEL_UNSPECIFIED, Channel.CHANNEL_TEXT})


def _said(response: SubscribeRunResponse, run_id: str) -> Any:
    match response.WhichOneof("message"):
        case "opened":
            return {"run": run_document(response.opened.run), "after_offset": response.opened.after_offset}
        case "completed":
            return {"run": run_document(response.completed.run)}
        case None:
            return {}
        case kind:
            return document_of(getattr(response, kind), run_id)


def _event(name: str, cursor: str, data: Any) -> bytes:
    return b"event: %b\nid: %b\ndata: %b\n\n" % (name.encode(), cursor.encode(), dump(data))


def _line(document: Any) -> bytes:
    return dump(document) + b"\n"


def _piece(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _text_of(document: Mapping[str, Any]) -> bytes:
    output = document.get("output")
    if isinstance(output, str):
        return output.encode(errors="replace")
    if "output_blob" in document:
        return dump(document["output_blob"]) + b"\n"
    return b"" if output is None else dump(output) + b"\n"
