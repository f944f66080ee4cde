"""One pipelined connection: whatever was asked in the same moment goes out, and is synced by the server, together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from hiredis import Reader, pack_command
from redis._parsers.base import BaseParser
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    DataError,
    InvalidResponse,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from onward_runlog.bell import Bell
from onward_runlog.errors import StoreUnavailable, StoreUrlInvalid

logger = logging.getLogger(__name__)

Argument = bytes | str | int

REPLY_TIMEOUT_S = 10.0
"""A store that is silent for longer is taken for gone. Well above a slow sync of its append-only file (2 s)."""

BATCH_MAX = 1_000
"""Commands in one pipeline."""

BACKOFF_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Pauses between attempts to connect; the last one repeats."""

DEFAULT_PATIENCE_S = 5.0
"""How long a call waits for a store that is away before it fails."""

_LOST = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError, asyncio.TimeoutError)

_REFUSED = (OutOfMemoryError, ClusterDownError, MasterDownError, TryAgainError)
_REFUSED_AS = ("MISCONF ", "BUSY ", "NOREPLICAS ")
"""Replies of a server that is there and takes nothing for now: out of memory, disk full, a script that hangs."""


def pool_for(url: str, **options: Any) -> ConnectionPool:
    """Return a pool for `url` whose connections never repeat a command by themselves.

    redis-py's own retry writes twice when a reply is lost after the server applied the command. Ours repeats only
    functions that are idempotent.

    Raises:
        StoreUrlInvalid: It is no URL of a store.
    """
    try:
        pool = ConnectionPool.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=None, socket_connect_timeout=2.0, protocol=2, **options
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # which opens nothing, and knows all that may be said
    except (ValueError, TypeError):
        # Neither the URL nor what redis-py says of it: its password may be in them.
        raise StoreUrlInvalid(
            "the URL of the store (--redis, ONWARD_REDIS_URL) is none: redis://HOST:PORT is wanted, rediss://HOST:PORT "
            "where it encrypts, or unix://PATH, with :PASSWORD@ before HOST where it asks for one"
        ) from None
    return pool


_NOT_ENOUGH = object()
"""What a parser says that has not got the whole of a reply."""


@dataclass(slots=True)
class _Call:
    command: tuple[Argument, ...]
    reply: asyncio.Future[Any]
    give_up: float
    """Loop time after which it fails when the store is away."""
    loaded: bool = False
    """Whether the library was loaded for it: a function that is missing even then does not exist."""


class _Wire(asyncio.Protocol):
    """A connection that redis-py has opened, taken over: replies go to who waits for them in the step that brings them.

    Through redis-py's stream, parser and time limits a reply takes a turn of the loop more, and half the time again.
    """

    def __init__(self, opened: AbstractConnection) -> None:
        """Args:
        opened: Has shaken hands, and nothing was asked since.
        """
        self._opened = opened
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_NOT_ENOUGH
        )
        self._answered: asyncio.Future[None] | None = None
        """Resolved with the last reply of what is under way."""
        self._take: Callable[[Any], None] = lambda _: None
        self._left = 0
        """Replies that are to come."""
        self._deadline = 0.0
        self._watch: asyncio.TimerHandle | None = None
        """One timer for many waits: made and cancelled for each, it would cost as much as the reply."""
        self._lost: Exception | None = None
        writer = opened._writer  # noqa: SLF001 - redis-py has no other way to it
        assert writer is not None
        self._transport: asyncio.WriteTransport = writer.transport
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self._lost = RedisConnectionError("the store closed the connection")

    async def ask(self, packed: bytes, count: int, take: Callable[[Any], None]) -> None:
        """Send commands and take their replies.

        Args:
            packed: The commands.
            count: How many.
            take: Called with each reply, an error of the server's as RedisError. What it raises ends the wait.

        Raises:
            RedisConnectionError: The connection is lost.
            TimeoutError: The store is silent for REPLY_TIMEOUT_S.
            InvalidResponse: What came is no reply.
        """
        if self._lost is not None:
            raise self._lost
        self._left, self._take = count, take
        answered = self._answered = self._loop.create_future()
        self._deadline = self._loop.time() + REPLY_TIMEOUT_S
        if self._watch is None:
            self._watch = self._loop.call_at(self._deadline, self._look)
        self._transport.write(packed)
        await answered

    async def close(self) -> None:
        """Let go of it."""
        if self._watch is not None:
            self._watch.cancel()
        await self._opened.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while self._left and (reply := self._reader.gets()) is not _NOT_ENOUGH:
                self._left -= 1
                self._take(reply)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
            self._end(error)
        else:
            if not self._left:
                self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = RedisConnectionError(str(exc or "the store closed the connection"))
        self._end(self._lost)

    def _look(self) -> None:
        """See whether the store has been silent for too long."""
        self._watch = None
        if self._answered is None:
            return  # the next wait sets it
        if self._loop.time() < self._deadline:
            self._watch = self._loop.call_at(self._deadline, self._look)
            return
        self._end(TimeoutError(f"no reply for {REPLY_TIMEOUT_S:g} s"))

    def _end(self, error: Exception | None = None) -> None:
        answered, self._answered = self._answered, None
        self._left = 0
        if answered is None or answered.done():
            return
        if error is None:
            answered.set_result(None)
        else:
            answered.set_exception(error)


class Connection:
    """Commands to one server, in the order of the calls, each batch in one pipeline while the one before is under way.

    Every command is repeated after a lost connection until its patience ends: callers send idempotent ones only, or
    ones whose loss they can live with.
    """

    def __init__(self, url: str, *, library: str | None = None) -> None:
        """Args:
        library: Source of the functions to load when the server does not know one. None never loads.
        """
        self._pool = pool_for(url)
        self._library = library
        self._wire: _Wire | None = None
        self._waiting: deque[_Call] = deque()
        self._loop = asyncio.get_running_loop()
        self._wanted = Bell()
        self.lost = 0
        """How many times the store was lost. Whoever judges by time asks whether this has grown."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Connection]:
        """Serve calls until the block ends; what is still unanswered then fails with StoreUnavailable."""
        task = asyncio.create_task(self._serve(), name="store connection")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for call in self._waiting:
                _fail(call, StoreUnavailable("the connection to the store was closed"))
            self._waiting.clear()
            if self._wire is not None:
                await self._wire.close()

    def call(self, *command: Argument, patience_s: float = DEFAULT_PATIENCE_S) -> asyncio.Future[Any]:
        """Send a command and return its reply to be awaited.

        Args:
            command: Name and arguments.
            patience_s: How long to wait for a store that is away, in seconds.

        Raises (when awaited):
            StoreUnavailable: The store was away for longer, and whether the command was applied is unknown; or it takes
                nothing for now.
            redis.exceptions.ResponseError: The server refused this command.
        """
        reply: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(_Call(command, reply, self._loop.time() + patience_s))
        self._wanted.ring()
        return reply

    async def _serve(self) -> None:
        failures = 0
        while True:
            while not self._waiting:
                await self._wanted.answer()
            batch, packed = self._next_batch()
            try:
                await self._exchange(batch, packed)
                failures = 0
            except _LOST as error:
                self.lost += 1
                if failures == 0:
                    logger.warning("the store does not answer: %s", error)
                await self._disconnect()
                self._waiting.extendleft(reversed([call for call in batch if not call.reply.done()]))
                await self._back_off(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed([call for call in batch if not call.reply.done()]))
                raise
            except Exception as error:
                # A reply that is none: who waits for one is told, the others go on.
                logger.exception("a batch of %d commands failed", len(batch))
                await self._disconnect()
                for call in batch:
                    _fail(call, error)

    def _next_batch(self) -> tuple[list[_Call], bytes]:
        """Take what goes out next, and return it with its bytes. What cannot be sent is its caller's error alone."""
        batch: list[_Call] = []
        packed: list[bytes] = []
        for _ in range(min(len(self._waiting), BATCH_MAX)):
            call = self._waiting.popleft()
            try:
                # Packed here: the same bytes as from the connection's own packing, which takes five times as long.
                packed.append(pack_command(call.command))  # type: ignore[arg-type]  # its stub knows tuples of one
            except (TypeError, UnicodeError) as error:
                _fail(call, DataError(str(error)))
            else:
                batch.append(call)
        return batch, b"".join(packed)

    async def _exchange(self, batch: list[_Call], packed: bytes) -> None:
        wire = self._wire
        if wire is None:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                opened = self._pool.make_connection()  # type: ignore[no-untyped-call]
                await opened.connect()
            wire = self._wire = _Wire(opened)
        calls = iter(batch)
        unknown: list[_Call] = []

        def take(reply: Any) -> None:
            call = next(calls)
            if not isinstance(reply, RedisError):
                if not call.reply.done():
                    call.reply.set_result(reply)
            elif isinstance(reply, _LOST):
                raise reply
            elif self._library is not None and not call.loaded and "Function not found" in str(reply):
                call.loaded = True
                unknown.append(call)
            else:
                _fail(call, reply)

        await wire.ask(packed, len(batch), take)
        if unknown:
            await self._load(wire, unknown)

    async def _load(self, wire: _Wire, unknown: list[_Call]) -> None:
        """Load the library for calls of functions that the server does not know, and have them made again."""

        def take(reply: Any) -> None:
            if isinstance(reply, _LOST):
                raise reply
            if not isinstance(reply, RedisError):
                self._waiting.extendleft(reversed(unknown))
                return
            for call in unknown:
                _fail(call, reply)  # out of memory, not allowed, too old

        assert self._library is not None
        await wire.ask(pack_command(("FUNCTION", "LOAD", "REPLACE", self._library)), 1, take)  # type: ignore[arg-type]

    async def _back_off(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        patient: deque[_Call] = deque()
        for call in self._waiting:
            if call.give_up < self._loop.time():
                _fail(call, StoreUnavailable("Redis does not answer"))
            elif not call.reply.done():
                patient.append(call)
        self._waiting = patient

    async def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(RedisError, OSError):
                await wire.close()


def _fail(call: _Call, error: Exception) -> None:
    if isinstance(error, _REFUSED) or str(error).startswith(_REFUSED_AS):
        error = StoreUnavailable(f"Redis takes nothing for now: {error}")
    if not call.reply.done():
        call.reply.set_exception(error)
