"""An OpenAI-compatible provider on a real socket, which does to each request what a script says: also the worst.

    async with serving() as provider:
        provider.script(Reply(status=429, headers={"retry-after": "0"}), Reply("Hello there"))
        client = AsyncOpenAI(base_url=provider.url, api_key="key")

Requests take the script's replies in the order in which they come; without one they get `provider.default`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Fault = Literal["", "reset", "truncate", "stall", "garbage", "error"]
"""What happens to an answer: a reset, an early end, silence, what is no JSON, an error chunk."""


@dataclass(frozen=True)
class Reply:
    """What one request gets.

    Attributes:
        text: The answer; a stream gives it word by word.
        status: 400 and more is an error, with `error` as its message.
        fault: What goes wrong.
        after: After how many words of the answer. -1: before the head of the response.
        reasoning: What the model thinks before.
        tool: A tool call instead of text: name and arguments.
        finish: finish_reason.
        gate: Waited for before the word `after`, or before the answer.
        answer: Makes the text from the request's body.
    """

    text: str = "Hello dear world"
    status: int = 200
    error: str = "no"
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    fault: Fault = ""
    after: int = 0
    reasoning: str = ""
    tool: tuple[str, str] | None = None
    finish: str = "stop"
    gate: asyncio.Event | None = None
    pause_s: float = 0.0
    delay_s: float = 0.0
    answer: Callable[[dict[str, Any]], str] | None = None
    done: bool = True
    """A stream ends with [DONE]."""


@dataclass
class Seen:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float = field(default=0.0, compare=False)
    refused: bool = False


class Limit:
    """A limit of tokens, as a bucket: what does not fit gets 429, with when to come again."""

    def __init__(self, tokens: float, per_s: float) -> None:
        self.tokens = tokens
        self.rate = tokens / per_s
        self._level = tokens
        self._at = time.monotonic()

    def refusal(self, used: int) -> Reply | None:
        """Take what a request uses; or return why not."""
        now = time.monotonic()
        self._level = min(self.tokens, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level >= used:
            self._level -= used
            return None
        return Reply(
            status=429, error="too many", headers={"retry-after-ms": str((used - self._level) * 1000 / self.rate)}
        )


class _Cut(Exception):
    """The connection ends here."""


class Reader(asyncio.StreamReader):
    """A connection's incoming side, which tells when the client has closed it, without reading from it."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.ended.set()


class Provider:
    """The server's side of it, for a test to look at and to steer.

    Attributes:
        url: What a client takes as base_url.
        requests: What came in.
        default: What a request gets for which there is no script.
        open: Connections of answers under way.
        connections: How many there were.
        limit: What it takes.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Seen] = []
        self.default = Reply()
        self.limit: Limit | None = None
        self.open = 0
        self.connections = 0
        self._script: deque[Reply] = deque()
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def script(self, *replies: Reply) -> None:
        """Add replies for the next requests."""
        self._script.extend(replies)

    async def until(self, holds: Callable[[Provider], bool]) -> None:
        """Wait until something holds of it: after a request came, and after one was answered or given up."""
        async with self._changed:
            await self._changed.wait_for(lambda: holds(self))

    async def connected(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while (seen := await _request(reader)) is not None:
                await self._answer(seen, reader, writer)
        except (_Cut, ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # The server closes.
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, seen: Seen, reader: Reader, writer: asyncio.StreamWriter) -> None:
        reply = self._script.popleft() if self._script else self.default
        seen.at = time.monotonic()
        if self.limit is not None:
            refusal = self.limit.refusal(usage_of(reply.text)["total_tokens"])
            seen.refused, reply = refusal is not None, refusal or reply
        self.requests.append(seen)
        self.open += 1
        await self._tell()
        if reply.answer is not None:
            reply = replace(reply, text=reply.answer(seen.body))
        gone = asyncio.create_task(reader.ended.wait())
        work = asyncio.create_task(_reply(seen, reply, writer))
        try:
            await asyncio.wait((gone, work), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise _Cut  # The client went away.
            await work
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
            self.open -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[Provider]:
    """Serve on loopback while the block runs."""
    provider = Provider()

    def connection() -> asyncio.StreamReaderProtocol:
        reader = Reader()
        return asyncio.StreamReaderProtocol(reader, lambda _, writer: provider.connected(reader, writer))

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", port)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield provider
    finally:
        server.close()
        await provider.close()


async def _request(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, path.partition("?")[0], headers, _json(body))


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def _reply(seen: Seen, reply: Reply, writer: asyncio.StreamWriter) -> None:
    if reply.delay_s:
        await asyncio.sleep(reply.delay_s)
    if reply.fault and reply.after < 0:
        await _fault(reply, writer)
    if reply.gate is not None and reply.after <= 0:
        await reply.gate.wait()
    if reply.status >= 400:
        error = {"error": {"message": reply.error, "type": "test", "param": None, "code": reply.code}}
        await _whole(writer, reply, json.dumps(error).encode(), reply.status)
    elif seen.body.get("stream"):
        await _stream(seen, reply, writer)
    elif reply.fault == "garbage":
        await _whole(writer, reply, b'{"choices": [', 200)
    elif reply.fault:
        writer.write(_head(reply, 200, "application/json", "content-length: 1000"))
        await writer.drain()
        await _fault(reply, writer)
    else:
        await _whole(writer, reply, json.dumps(_answer(seen, reply)).encode(), 200)


async def _fault(reply: Reply, writer: asyncio.StreamWriter) -> None:
    await writer.drain()
    if reply.fault == "stall":
        await asyncio.Event().wait()
    if reply.fault == "reset":
        # With nothing to linger for, the kernel sends a reset.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    raise _Cut


def _head(reply: Reply, status: int, kind: str, *more: str) -> bytes:
    headers = {"x-request-id": "req-1", "set-cookie": "secret=1", **reply.headers}
    lines = [
        f"HTTP/1.1 {status} Said",
        f"content-type: {kind}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join((*lines, *more, "", "")).encode("latin-1")


async def _whole(writer: asyncio.StreamWriter, reply: Reply, body: bytes, status: int) -> None:
    writer.write(_head(reply, status, "application/json", f"content-length: {len(body)}") + body)
    await writer.drain()


def usage_of(text: str) -> dict[str, Any]:
    """What a chat completion of this text uses."""
    words = len(text.split())
    details = {"cached_tokens": 4}
    return {
        "prompt_tokens": 10,
        "completion_tokens": words,
        "total_tokens": 10 + words,
        "prompt_tokens_details": details,
    }


def _answer(seen: Seen, reply: Reply) -> dict[str, Any]:
    model = seen.body.get("model", "")
    if seen.path.endswith("/embeddings"):
        given = seen.body["input"]
        count = len(given) if isinstance(given, list) else 1
        data = [{"object": "embedding", "index": index, "embedding": [0.25, -1.0]} for index in range(count)]
        return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    if seen.path.endswith("/models"):
        return {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "test"}]}
    if seen.path.endswith("/responses"):
        return _response(seen, reply, "completed")
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.tool is not None:
        message = {"role": "assistant", "content": None, "tool_calls": [_tool(reply)]}
    count = seen.body.get("n") or 1
    choices = [{"index": index, "message": message, "finish_reason": reply.finish} for index in range(count)]
    return _completion(seen, "chat.completion", choices, usage=usage_of(reply.text))


def _tool(reply: Reply) -> dict[str, Any]:
    assert reply.tool is not None
    name, arguments = reply.tool
    return {"id": "call-1", "type": "function", "function": {"name": name, "arguments": arguments}}


def _completion(seen: Seen, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    model = f"{seen.body.get('model')}-2026"
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": model, "choices": choices, **more}


def _response(seen: Seen, reply: Reply, status: str) -> dict[str, Any]:
    words = len(reply.text.split())
    part = {"type": "output_text", "text": reply.text, "annotations": []}
    item = {"id": "msg-1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": words,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10 + words,
    }
    return {
        "id": "resp-1",
        "object": "response",
        "created_at": 1,
        "model": f"{seen.body.get('model')}-2026",
        "status": status,
        "output": [item] if status == "completed" else [],
        "usage": usage if status == "completed" else None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


async def _stream(seen: Seen, reply: Reply, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(reply, 200, "text/event-stream", "transfer-encoding: chunked"))
    responses = seen.path.endswith("/responses")
    events = _response_events(seen, reply) if responses else _chat_events(seen, reply)
    for words, event in events:
        if words == reply.after and words >= 0:
            if reply.gate is not None:
                await reply.gate.wait()
            if reply.fault == "garbage":
                _chunk(writer, b'data: {"id": \n\n')
                continue
            if reply.fault == "error":
                error = {"error": {"message": reply.error, "type": "server_error", "code": reply.code}}
                _chunk(writer, b"data: %b\n\n" % json.dumps(error).encode())
                _chunk(writer, b"")
                await writer.drain()
                return
            if reply.fault == "truncate":
                _chunk(writer, b"")
                await writer.drain()
                return
            if reply.fault:
                await _fault(reply, writer)
        kind = b"event: %b\n" % event["type"].encode() if responses else b""
        _chunk(writer, kind + b"data: %b\n\n" % json.dumps(event).encode())
        await writer.drain()
        if reply.pause_s and words >= 0:
            await asyncio.sleep(reply.pause_s)
    if not responses and reply.done:
        _chunk(writer, b": a comment\n\ndata: [DONE]\n\n")
    _chunk(writer, b"")
    await writer.drain()


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _chat_events(seen: Seen, reply: Reply) -> list[tuple[int, dict[str, Any]]]:
    """The chunks of a chat completion, each with the number of words said before it; -1 where it says none."""
    count = seen.body.get("n") or 1
    made: list[tuple[int, dict[str, Any]]] = []

    def add(words: int, delta: dict[str, Any], finish: str | None = None) -> None:
        for index in range(count):
            choices = [{"index": index, "delta": delta, "finish_reason": finish}]
            made.append((words if index == 0 else -1, _completion(seen, "chat.completion.chunk", choices)))

    add(-1, {"role": "assistant", "content": ""})
    for word in _pieces(reply.reasoning):
        add(-1, {"reasoning_content": word})
    said = 0
    if reply.tool is not None:
        name, arguments = reply.tool
        add(
            0,
            {
                "tool_calls": [
                    {"index": 0, "id": "call-1", "type": "function", "function": {"name": name, "arguments": ""}}
                ]
            },
        )
        size = max(5, len(arguments) // 200)
        for at in range(0, len(arguments), size):
            add(-1, {"tool_calls": [{"index": 0, "function": {"arguments": arguments[at : at + size]}}]})
    else:
        for said, word in enumerate(_pieces(reply.text)):
            add(said, {"content": word})
        said = len(_pieces(reply.text))
    add(said, {}, reply.finish)
    if (seen.body.get("stream_options") or {}).get("include_usage"):
        made.append((-1, _completion(seen, "chat.completion.chunk", [], usage=usage_of(reply.text))))
    return made


def _response_events(seen: Seen, reply: Reply) -> list[tuple[int, dict[str, Any]]]:
    made: list[tuple[int, dict[str, Any]]] = []
    place = {"output_index": 0, "content_index": 0, "item_id": "msg-1"}

    def add(words: int, kind: str, **more: Any) -> None:
        made.append((words, {"type": kind, "sequence_number": len(made), **more}))

    whole = _response(seen, reply, "completed")
    item = whole["output"][0]
    add(-1, "response.created", response=_response(seen, reply, "in_progress"))
    for word in _pieces(reply.reasoning):
        add(-1, "response.reasoning_summary_text.delta", output_index=0, summary_index=0, item_id="rs-1", delta=word)
    add(-1, "response.output_item.added", output_index=0, item={**item, "status": "in_progress", "content": []})
    add(-1, "response.content_part.added", **place, part={"type": "output_text", "text": "", "annotations": []})
    said = 0
    for said, word in enumerate(_pieces(reply.text)):
        add(said, "response.output_text.delta", **place, delta=word, logprobs=[])
    add(said + 1, "response.output_text.done", **place, text=reply.text, logprobs=[])
    add(-1, "response.content_part.done", **place, part=item["content"][0])
    add(-1, "response.output_item.done", output_index=0, item=item)
    add(-1, "response.completed", response=whole)
    return made


def _pieces(text: str) -> list[str]:
    words = text.split(" ") if text else []
    return [word if index == 0 else f" {word}" for index, word in enumerate(words)]
