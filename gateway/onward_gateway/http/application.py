"""The ASGI application: who is let in, from where, and how it is told what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import onward_gateway.http.describing  # noqa: F401 - its routes
from onward_gateway.access import Access
from onward_gateway.calls import Calls
from onward_gateway.http import console  # noqa: F401 - its routes
from onward_gateway.http.asking import broken_off
from onward_gateway.http.problems import Problem, problem_of
from onward_gateway.http.routes import ROUTES, Door, Handler
from onward_gateway.settings import Settings

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

HEAD_BYTES_MAX = 16 * 1024
"""A request's line and headers together."""

READING = frozenset({"GET", "HEAD", "OPTIONS"})

# What an API's answer needs when a browser is pointed at it: nothing.
_NOTHING = b"default-src 'none'; frame-ancestors 'none'; sandbox"

_TOLD_TO_PAGES = ("Location", "Onward-Run-Id", "Idempotency-Replayed", "Preference-Applied", "Retry-After", "ETag")
_TAKEN_FROM_PAGES = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "traceparent",
)


def application(settings: Settings, calls: Calls, access: Access) -> Starlette:
    """Return the ASGI application."""
    door = Door(calls, access)
    middleware = [Middleware(_Safe)]
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=("GET", "POST"),
                allow_headers=_TAKEN_FROM_PAGES,
                expose_headers=_TOLD_TO_PAGES,
            )
        )
    guard = _Guard(access, hosts=(*LOOPBACK, *settings.http_hosts), origins=settings.cors_origins)
    app = Starlette(
        routes=[
            Route(path, _Endpoint(door, guard, handler), methods=[method], name=f"{method} {path}")
            for (method, path), handler in ROUTES.items()
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _of_http},
    )
    app.router.redirect_slashes = False
    return app


class _Guard:
    """Keeps web pages of others from using a door that asks for no key, with the rights of whoever looks at them.

    With keys there is nothing to keep: a page does not know them, and browsers do not add them by themselves.
    """

    def __init__(self, access: Access, *, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._access = access
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    def check(self, request: Request) -> None:
        """Raises:
        Problem: The request is not for this door, or from a page that may not send it.
        """
        if not self._access.anonymous:
            return
        host = request.headers.get("host", "").lower()
        name, _, port = host.rpartition(":")
        if (name if port.isdigit() else host) not in self._hosts:
            # A page whose name was made to point here (DNS rebinding) is of the same origin, but says its own name.
            raise Problem(
                421,
                "MISDIRECTED",
                "Not the name of this Gateway",
                f"{host or 'no name'} is not among the names that callers without a key may use; "
                "--http-host (ONWARD_HTTP_HOSTS) allows more",
            )
        origin = request.headers.get("origin")
        if request.method in READING or origin is None or origin in self._origins:
            return
        if origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Problem(
                403, "FORBIDDEN", "Not allowed", f"pages of {origin} may not do this; --cors-origin allows some"
            )


class _Endpoint:
    """A route: lets callers in, and tells whatever goes wrong as a problem."""

    def __init__(self, door: Door, guard: _Guard, handler: Handler) -> None:
        self._door = door
        self._guard = guard
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        request = Request(scope, receive, noting)
        try:
            self._guard.check(request)
            response = await self._handler(self._door, request)
            if response is not None:
                await response(scope, receive, noting)
        except ClientDisconnect:
            return  # nobody is there to be told, and what was begun goes on
        except Exception as error:  # noqa: BLE001 - all of them are told, and bugs are logged
            problem = problem_of(error)
            if started:
                await broken_off(request)
                return
            await problem.response()(scope, receive, send)


class _Safe:
    """Bounds what is asked, and adds to every answer what keeps a browser from making more of it than it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                headers.append((b"x-content-type-options", b"nosniff"))
                headers.append((b"referrer-policy", b"no-referrer"))
                if not any(name == b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", _NOTHING))
            await send(message)

        size = len(scope["raw_path"]) + sum(len(name) + len(value) for name, value in scope["headers"])
        if size > HEAD_BYTES_MAX:  # what comes in one piece is not bounded by the parser
            told = Problem(431, "TOO_LARGE", "Too large", f"a request's head has at most {HEAD_BYTES_MAX} bytes")
            await told.response()(scope, receive, safe)
        else:
            await self._app(scope, receive, safe)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return Problem(
            405,
            "METHOD_NOT_ALLOWED",
            "Not this method",
            f"{request.method} is not for {request.url.path}",
            headers={"allow": ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))},
        ).response()
    return Problem(404, "NOT_FOUND", "Not found", f"there is nothing at {request.url.path}").response()
