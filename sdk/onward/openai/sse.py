"""Server-sent events: out of a provider's bytes, and on to the `openai` package, which need not parse them again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Protocol

from pydantic_core import to_json

END = b"\n\n"
"""What follows an event."""

DONE = b"data: [DONE]"


class Events:
    """Events out of bytes that come in any pieces. An event keeps its lines, as they came, without the blank one."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that are whole now."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            held = b"\r" if data.endswith(b"\r") else b""  # Its line feed may come with the next piece.
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *whole, self._rest = data.split(END)
        # Where there are more blank lines than one, an event has what is left of them in front.
        return [event for part in whole if (event := part.lstrip(b"\n")) and not _is_comment(event)]

    def end(self) -> list[bytes]:
        """Return what is left at the end. An event needs no blank line after it there."""
        rest, self._rest = self._rest.strip(b"\r\n"), b""
        return [rest] if rest and not _is_comment(rest) else []


def _is_comment(event: bytes) -> bool:
    return event.startswith(b":") and all(line.startswith(b":") for line in event.split(b"\n"))


def data_of(event: bytes) -> bytes:
    """Return the data of an event."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def with_data(event: bytes, body: Any) -> bytes:
    """Return an event with other data, given as what its JSON says."""
    lines = [line for line in event.split(b"\n") if not line.startswith(b"data:")]
    return b"\n".join((*lines, b"data: " + to_json(body)))


class Parsed(bytes):
    """An event and its END, as bytes that know what their data says.

    Attributes:
        body: The data, parsed.
    """

    body: Any

    @classmethod
    def of(cls, event: bytes, body: Any) -> Parsed:
        """Return an event without its END as such bytes."""
        made = cls(event + END)
        made.body = body
        return made


class Told:
    """What the package takes for an event."""

    __slots__ = ("_body", "data", "event", "id", "retry")

    def __init__(self, body: Any, data: str, event: str | None, id: str | None, retry: int | None) -> None:
        self._body = body
        self.data = data
        self.event = event
        self.id = id
        self.retry = retry

    def json(self) -> Any:
        """Return the data, parsed."""
        return self._body


class Decoding(Protocol):
    """The package's own decoder."""

    def iter_bytes(self, iterator: Iterator[bytes]) -> Iterator[Any]:
        """Yield the events in bytes."""


class Decoder:
    """What the package reads the chunks of an `Exchange` with: each is a whole event, and most are `Parsed`.

    To take such a one apart and parse its JSON a second time is a tenth of what the package does with a chunk.
    """

    def __init__(self, otherwise: Decoding) -> None:
        self._otherwise = otherwise

    def iter_bytes(self, iterator: Iterator[bytes]) -> Iterator[Any]:
        """Yield the events in bytes."""
        for chunk in iterator:
            yield from self._events(chunk)

    async def aiter_bytes(self, iterator: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Yield the events in bytes."""
        async for chunk in iterator:
            for event in self._events(chunk):
                yield event

    def _events(self, chunk: bytes) -> Iterable[Any]:
        if not isinstance(chunk, Parsed):
            return self._otherwise.iter_bytes(iter((chunk,)))
        if chunk.startswith(b"data: ") and chunk.find(b"\n") == len(chunk) - len(END):
            return (Told(chunk.body, chunk[6:-2].decode(), None, None, None),)
        return [
            Told(chunk.body, one.data, one.event, one.id, one.retry)
            for one in self._otherwise.iter_bytes(iter((chunk,)))
        ]
