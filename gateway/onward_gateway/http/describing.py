"""`/openapi.json`, and `/docs`, which shows it to people: a page of our own, small, offline, under a strict policy."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from onward_gateway.http import media
from onward_gateway.http.asking import Query
from onward_gateway.http.documents import dump
from onward_gateway.http.openapi import openapi
from onward_gateway.http.problems import Problem
from onward_gateway.http.routes import Door, matches, route

ASSETS = {"docs.css": "text/css; charset=utf-8", "docs.js": "text/javascript; charset=utf-8"}

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "font-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Of pages: what is not a file of ours does not run, also where something was shown unescaped."""


@route("GET", "/openapi.json")
async def describe(door: Door, request: Request) -> Response:
    """Describe what is served now."""
    caller = door.caller(request)
    Query(request).done()
    served = await door.calls.workflows(caller)
    data = dump(openapi(served, version=version("onward"), keys=not door.access.anonymous))
    headers = {"cache-control": "no-cache", "etag": f'"{hashlib.sha256(data).hexdigest()[:32]}"'}
    if matches(request, headers["etag"]):
        return Response(None, 304, headers)
    return Response(data, 200, headers, media.JSON)


@route("GET", "/docs")
async def docs(_: Door, request: Request) -> Response:
    """Show the description. Without a key: the page asks for one, and holds nothing itself."""
    return _asset(request, "docs.html", "text/html; charset=utf-8")


@route("GET", "/docs/{name}")
async def docs_asset(_: Door, request: Request) -> Response:
    """Return a part of the page."""
    name = request.path_params["name"]
    if name not in ASSETS:
        raise Problem(404, "NOT_FOUND", "Not found", f"there is nothing at {request.url.path}")
    return _asset(request, name, ASSETS[name])


def _asset(request: Request, name: str, media_type: str) -> Response:
    data = _read(name)
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": PAGE_POLICY,
        "etag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
    }
    if matches(request, headers["etag"]):
        return Response(None, 304, headers)
    return Response(data, 200, headers, media_type)


@lru_cache
def _read(name: str) -> bytes:
    return files("onward_gateway.http").joinpath("assets", name).read_bytes()
