"""How a call's bytes travel: on the event loop, or in the thread that asked.

What a run remembers is decided on its event loop, for both alike. A thread that calls a model therefore hands the call
to the loop and serves it while it waits: the network is read in that thread, so that no other is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import httpx2

T = TypeVar("T")


class Chunkwise(Protocol):
    """What gives the chunks of a streamed answer."""

    async def read(self) -> bytes | None:
        """Return the next chunk, a whole event with its END; None at the end."""

    async def close(self) -> None:
        """End it where it is."""

    def close_soon(self) -> None:
        """`close`, from where nothing can be awaited."""


class Wire(Protocol):
    """Sends requests and reads what comes back."""

    interruptible: bool
    """Whether a read that takes too long can be given up. Where not, the request's own read timeout has to end it."""

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Return the response once its head is there."""

    async def whole(self, response: httpx2.Response) -> bytes:
        """Return its body."""

    def next(self, response: httpx2.Response) -> Awaitable[bytes | None]:
        """Return the next bytes of its body; None at the end."""

    async def close(self, response: httpx2.Response) -> None:
        """Let it go."""

    def body(self, chunks: Chunkwise) -> httpx2.AsyncByteStream | httpx2.SyncByteStream:
        """Return a body that gives these chunks."""


class LoopWire:
    """On the event loop."""

    interruptible = True

    def __init__(self, send: Callable[[httpx2.Request], Awaitable[httpx2.Response]]) -> None:
        self._send = send
        self._parts: AsyncIterator[bytes] | None = None

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        self._parts = None
        return await self._send(request)

    async def whole(self, response: httpx2.Response) -> bytes:
        return await response.aread()

    def next(self, response: httpx2.Response) -> Awaitable[bytes | None]:
        if self._parts is None:
            # What is not encoded need not go through what decodes; what a transport has read already is there whole.
            whole = response.is_stream_consumed or "content-encoding" in response.headers
            self._parts = response.aiter_bytes() if whole else response.aiter_raw()
        return anext(self._parts, None)

    async def close(self, response: httpx2.Response) -> None:
        await response.aclose()

    def body(self, chunks: Chunkwise) -> httpx2.AsyncByteStream:
        return AsyncBody(chunks)


class AsyncBody(httpx2.AsyncByteStream):
    """A streamed answer's body. It can be taken up again where it was left."""

    def __init__(self, chunks: Chunkwise) -> None:
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._read()

    async def _read(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.read()) is not None:
            yield chunk

    async def aclose(self) -> None:
        await self._chunks.close()

    def __del__(self) -> None:
        # The loop that read it was left: the connection, and the model's answer with it, is let go now.
        self._chunks.close_soon()


class Caller:
    """A thread that waits for something on the event loop, and meanwhile does what that asks of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, in the context of this thread, and return what it gives. Called in the thread.

        Raises:
            concurrent.futures.CancelledError: The attempt is over.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(lambda _: self._jobs.put(None))
        while (job := self._jobs.get()) is not None:
            job()
        return future.result()

    async def do(self, work: Callable[[], T]) -> T:
        """Do something in the thread that waits. Called on the loop, from within `run`."""
        done: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                self._loop.call_soon_threadsafe(_fail, done, error)
            else:
                self._loop.call_soon_threadsafe(_give, done, result)

        self._jobs.put(job)
        return await done


def _give(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


class ThreadWire:
    """In the thread that asked."""

    interruptible = False

    def __init__(self, caller: Caller, send: Callable[[httpx2.Request], httpx2.Response]) -> None:
        self._caller = caller
        self._send = send
        self._parts: Iterator[bytes] | None = None

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        self._parts = None
        return await self._caller.do(lambda: self._send(request))

    async def whole(self, response: httpx2.Response) -> bytes:
        return await self._caller.do(response.read)

    async def next(self, response: httpx2.Response) -> bytes | None:
        if self._parts is None:
            self._parts = response.iter_bytes()
        parts = self._parts
        return await self._caller.do(lambda: next(parts, None))

    async def close(self, response: httpx2.Response) -> None:
        # Where the attempt is over nobody serves the call any more, and closing needs no thread of its own.
        response.close()

    def body(self, chunks: Chunkwise) -> httpx2.SyncByteStream:
        return SyncBody(chunks, self._caller)


class SyncBody(httpx2.SyncByteStream):
    """A streamed answer's body for a thread."""

    def __init__(self, chunks: Chunkwise, caller: Caller) -> None:
        self._chunks = chunks
        self._caller = caller

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._caller.run(self._chunks.read())) is not None:
            yield chunk

    def close(self) -> None:
        self._caller.run(self._chunks.close())

    def __del__(self) -> None:
        self._chunks.close_soon()
