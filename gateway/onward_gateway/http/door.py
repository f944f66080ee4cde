"""Serves HTTP: connections, and what they may cost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from onward_gateway.access import Access
from onward_gateway.calls import Calls
from onward_gateway.http.application import HEAD_BYTES_MAX, application
from onward_gateway.http.problems import Problem
from onward_gateway.settings import Settings
from onward_serving.tls import Certificate

logger = logging.getLogger(__name__)

BACKLOG = 1_024

HEAD_S = 10.0
"""How long a client may take to send them."""

KEEP_ALIVE_S = 65
"""How long a connection may be idle between requests: a little longer than load balancers keep theirs."""

LINGER_S = 10.0
"""How long what was sent last may wait to be taken, once the connection is closed."""


class _Server(uvicorn.Server):
    """A server that leaves signals to its process, and bounds how long a client may take to agree on encryption."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server.startup, which leaves the handshake to a default of a minute."""
        await self.lifespan.startup()
        config, loop = self.config, asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            made: asyncio.Protocol = cast(Any, config.http_protocol_class)(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        self.servers = [
            await loop.create_server(
                connection,
                sock=one,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=HEAD_S if config.ssl else None,
            )
            for one in sockets or ()
        ]
        self.started = True


@contextlib.asynccontextmanager
async def http_door(
    settings: Settings, calls: Calls, access: Access, shown: Certificate | None = None
) -> AsyncIterator[str]:
    """Serve HTTP until the block ends, and yield HOST:PORT; requests under way then have the shutdown's grace.

    Args:
        settings: Where, and what it may cost.
        calls: Answers.
        access: Says who calls.
        shown: With what it encrypts; None does not.

    Raises:
        OSError: Nothing can listen there.
    """
    host, _, port = settings.http.rpartition(":")
    try:
        listening = socket.create_server((host.strip("[]"), int(port)), family=_family(host), backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {settings.http}: {error.strerror}; port 0 picks a free one") from error
    with contextlib.closing(listening):
        connection = functools.partial(
            Connection,
            connections_max=settings.http_connections_max,
            stalled_s=settings.slow_reader_s + settings.slow_reader_grace_s,
        )
        config = uvicorn.Config(
            application(settings, calls, access),
            loop="none",
            http=cast(type[asyncio.Protocol], connection),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here goes by a client's address
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, int(settings.shutdown_grace_s)),
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            ssl_context_factory=None if shown is None else lambda _config, _default: shown.context(),
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]), name="http door")
        try:
            yield f"{host}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


class Connection(H11Protocol):
    """A connection that costs little, whatever its client does, and does not last longer than it is used."""

    def __init__(self, *given: Any, connections_max: int, stalled_s: float, **options: Any) -> None:
        super().__init__(*given, **options)
        self.app_state = {"connection": self}
        self._connections_max = connections_max
        self._stalled_s = stalled_s
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._refused = False

    def abort(self) -> None:
        """Break the connection off: what was begun does not look finished to the client."""
        self.transport.abort()

    async def stream(self, piece: bytes) -> None:
        """Send a piece of a body of no known length over HTTP/1.1, as h11 would at several times the cost.

        It was begun by its head and is ended by the ASGI messages for that: what lies between has no state.
        """
        if self.flow.write_paused:
            await self.flow.drain()
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See Protocol.connection_made."""
        super().connection_made(transport)
        if len(self.connections) > self._connections_max:
            self._refused = True
            self._refuse(Problem(503, "LIMIT_REACHED", "Too many connections", "try again later", retry_s=1.0))
            return
        self._head = self.loop.call_later(HEAD_S, self._on_late)

    def data_received(self, data: bytes) -> None:
        """See Protocol.data_received."""
        if self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.SEND_BODY:
            self._forget_unread()
        self._mind_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See Protocol.connection_lost."""
        self._forget_head()
        self._forget_unread()
        self._forget_stalled()
        self.app_state = {}
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See Protocol.pause_writing."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._stalled_s, self._on_stalled)

    def resume_writing(self) -> None:
        """See Protocol.resume_writing."""
        super().resume_writing()
        self._forget_stalled()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has a head that is too large."""
        if len(self.conn.trailing_data[0]) > HEAD_BYTES_MAX:
            self._refuse(Problem(431, "TOO_LARGE", "Too large", f"a request's head has at most {HEAD_BYTES_MAX} bytes"))
        else:
            self._refuse(Problem(400, "REQUEST_INVALID", "The request is malformed", "it is not HTTP"))

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._close_for_good()

    def on_response_complete(self) -> None:
        """See H11Protocol."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._close_for_good()
        elif self.conn.their_state is h11.SEND_BODY and self._unread is None:
            # Who sends a body that nobody wants may finish, and read the answer; closing at once would destroy it.
            self._unread = self.loop.call_later(LINGER_S, self.abort)
        self._mind_head()

    def _mind_head(self) -> None:
        """Bound the time that the head of a request takes once it has begun."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head is None and not self.transport.is_closing() and self.conn.trailing_data[0]:
            self._head = self.loop.call_later(HEAD_S, self._on_late)

    def _close_for_good(self) -> None:
        """Do not wait for ever until a client has taken what was sent."""
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _on_stalled(self) -> None:
        logger.info("a client has stopped reading: its connection is cut")
        self.abort()

    def _on_late(self) -> None:
        self._head = None
        if self.conn.their_state is h11.IDLE:
            self._refuse(Problem(408, "TIMEOUT", "Too slow", f"a request's head takes at most {HEAD_S:g} s"))

    def _refuse(self, problem: Problem) -> None:
        response = problem.response()
        headers = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        line = f"HTTP/1.1 {problem.status} {problem.title}\r\nconnection: close\r\n".encode()
        self.transport.write(line + headers + b"\r\n" + bytes(response.body))
        self.transport.close()
        self._close_for_good()

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _forget_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
