"""An EventSource as browsers have it, by hand: what the specification says of ids, names, retries and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

RETRY_S = 0.05
"""Before the server says otherwise."""

RETRY_MAX_S = 0.3
"""A browser would wait as long as the server says. A test waits less."""


class Fatal(Exception):
    """A status on which an EventSource gives up for good."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {body.decode()}")
        self.status = status
        self.body = body


@dataclass
class Response:
    """The head of a response, and its body as it comes."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body to its proper end.

        Raises:
            EOFError: The connection was cut before.
        """
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(await self._line(), 16):
                yield await self.reader.readexactly(size)
                await self._line()
            await self._line()
        else:
            yield await self.reader.readexactly(int(self.headers.get("content-length", "0")))

    async def body(self) -> bytes:
        """Return all of it."""
        return b"".join([piece async for piece in self.pieces()])

    async def _line(self) -> bytes:
        line = await self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("cut off")
        return line[:-2]


@contextlib.asynccontextmanager
async def asked(
    address: str, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: bytes = b""
) -> AsyncIterator[Response]:
    """Ask on a connection of its own, which ends with the block."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    try:
        given = {"host": address, **({"content-length": str(len(body))} if body else {}), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        yield await answered(reader)
    finally:
        writer.close()


async def answered(reader: asyncio.StreamReader) -> Response:
    """Read the head of a response."""
    line = await reader.readline()
    if not line:
        raise EOFError("no answer")
    headers = {}
    while (header := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Response(int(line.split()[1]), headers, reader)


@dataclass
class Message:
    """What an EventSource hands to its page."""

    name: str
    data: str
    last_event_id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


@dataclass
class EventSource:
    """Reads a stream of events, and comes back whenever it ends but with a status that says not to.

    Attributes:
        connections: How often it has connected.
        statuses: Of the responses.
        comments: Lines that only keep the stream alive.
    """

    address: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    last_event_id: str = ""
    connections: int = 0
    statuses: list[int] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    retry_s: float = RETRY_S

    async def messages(self) -> AsyncIterator[Message]:
        """Yield what comes until a response says that there is no more.

        Raises:
            Fatal: It has given up.
        """
        while True:
            headers = {"accept": "text/event-stream", "cache-control": "no-store", **self.headers}
            if self.last_event_id:
                headers["last-event-id"] = self.last_event_id
            try:
                self.connections += 1
                async with asked(self.address, self.path, headers) as response:
                    self.statuses.append(response.status)
                    if response.status == 204:
                        return
                    if response.status != 200 or not response.headers["content-type"].startswith("text/event-stream"):
                        raise Fatal(response.status, await response.body())
                    async for message in self._parsed(response):
                        yield message
            except (OSError, EOFError):
                pass
            await asyncio.sleep(min(self.retry_s, RETRY_MAX_S))

    async def _parsed(self, response: Response) -> AsyncIterator[Message]:
        data: list[str] = []
        name, last_id, rest = "", self.last_event_id, b""
        async for piece in response.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for raw in lines:
                line = raw.removesuffix(b"\r").decode()
                if not line:
                    self.last_event_id = last_id
                    if data:
                        yield Message(name or "message", "\n".join(data), last_id)
                    name, data = "", []
                    continue
                key, _, value = line.partition(":")
                value = value.removeprefix(" ")
                match key:
                    case "":
                        self.comments.append(value)
                    case "event":
                        name = value
                    case "data":
                        data.append(value)
                    case "id":
                        last_id = value
                    case "retry":
                        self.retry_s = int(value) / 1_000
