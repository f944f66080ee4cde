"""The HTTP door. For now it tells whether this Gateway is ready."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

BACKLOG = 1_024


class _Server(uvicorn.Server):
    """A server that leaves signals to its process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def application(ready: Callable[[], bool]) -> Starlette:
    """Return the ASGI application."""

    async def healthz(_: Request) -> JSONResponse:
        if ready():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, status_code=503)

    return Starlette(routes=[Route("/healthz", healthz)])


@contextlib.asynccontextmanager
async def http_door(listen: str, ready: Callable[[], bool], *, grace_s: float) -> AsyncIterator[str]:
    """Serve HTTP until the block ends, and yield HOST:PORT; requests under way then have `grace_s` seconds.

    Raises:
        OSError: Nothing can listen there.
    """
    host, _, port = listen.rpartition(":")
    try:
        listening = socket.create_server((host.strip("[]"), int(port)), family=_family(host), backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {listen}: {error.strerror}; port 0 picks a free one") from error
    with contextlib.closing(listening):
        config = uvicorn.Config(
            application(ready),
            loop="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, int(grace_s)),
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]), name="http door")
        try:
            yield f"{host}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
