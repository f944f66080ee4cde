"""The console: pages from the wheel, which ask the door's own routes. Nothing is built: what is served can be read."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from onward_gateway.http.problems import Problem
from onward_gateway.http.routes import Door, route

FILES = Path(__file__).parent.parent / "console"

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_LIBRARIES = {"preact": "preact.mjs", "preact/hooks": "hooks.mjs", "htm": "htm.mjs"}
"""What modules call them, and where they are in vendor/."""

_YEAR_S = 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent.

    Attributes:
        media_type: What it is.
        plain: Its bytes.
        packed: Its bytes, gzipped.
    """

    media_type: str
    plain: bytes
    packed: bytes

    def response(self, request: Request, headers: dict[str, str]) -> Response:
        """Return it in the shorter form that the caller takes."""
        headers = {"vary": "accept-encoding", **headers}
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.plain, headers=headers, media_type=self.media_type)
        return Response(self.packed, headers={**headers, "content-encoding": "gzip"}, media_type=self.media_type)


@dataclass(frozen=True, slots=True)
class Console:
    """All of it, read once.

    Attributes:
        version: Changes with every change of a file. Addresses of assets hold it, so that they can be cached for ever.
        page: The one page; its script decides by the address what to show.
        policy: Content-Security-Policy of the page.
        assets: Everything that the page loads, by path.
    """

    version: str
    page: Asset
    policy: str
    assets: dict[str, Asset]


@cache
def console() -> Console:
    """Read the console's files."""
    paths = sorted(path for path in FILES.rglob("*") if path.suffix in _MEDIA_TYPES)
    files = {path.relative_to(FILES).as_posix(): path.read_bytes() for path in paths}
    whole = hashlib.sha256()
    for name, data in files.items():
        whole.update(f"{name} {len(data)}\n".encode() + data)
    version = whole.hexdigest()[:16]
    at = f"/console/assets/{version}"
    imports = json.dumps({"imports": {name: f"{at}/vendor/{file}" for name, file in _LIBRARIES.items()}})
    modules = [name for name in files if name.endswith((".js", ".mjs")) and name != "theme.js"]
    page = (
        files.pop("index.html")
        .decode()
        .replace("{assets}", at)
        .replace("{importmap}", imports)
        # Without it a browser learns of each module only from the one that imports it.
        .replace("{preloads}", "\n    ".join(f'<link rel="modulepreload" href="{at}/{name}" />' for name in modules))
    )
    return Console(
        version=version,
        page=_asset("index.html", page.encode()),
        policy=_policy(imports),
        assets={name: _asset(name, data) for name, data in files.items()},
    )


def _asset(name: str, data: bytes) -> Asset:
    return Asset(_MEDIA_TYPES[Path(name).suffix], data, gzip.compress(data, 9, mtime=0))


def _policy(imports: str) -> str:
    """What a browser lets the page do: its own files and its own door, no markup made of text, in nobody's frame."""
    import_map = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'sha256-{import_map}'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


@route("GET", "/console/assets/{version}/{path:path}")
async def give_asset(_: Door, request: Request) -> Response:
    """Return a file of the console; to everybody, as all of it."""
    asset = console().assets.get(request.path_params["path"])
    if asset is None:
        raise Problem(404, "NOT_FOUND", "Not found", f"the console has no {request.path_params['path']}")
    # Another version asks while a new one is rolled out: it gets what is here, but must not keep it under that name.
    current = request.path_params["version"] == console().version
    keep = f"public, max-age={_YEAR_S}, immutable" if current else "no-store"
    return asset.response(request, {"cache-control": keep})


@route("GET", "/")
async def lead_there(_: Door, request: Request) -> Response:
    """Show who looks at the door's bare address where there is something to see."""
    return Response(status_code=307, headers={"location": "/console", "cache-control": "no-store"})


@route("GET", "/console")
@route("GET", "/console/{path:path}")
async def give_page(_: Door, request: Request) -> Response:
    """Return the page, for deep links too: its script reads the address."""
    tag = f'"{console().version}"'
    headers = {
        "cache-control": "no-cache",
        "etag": tag,
        "content-security-policy": console().policy,
        "cross-origin-opener-policy": "same-origin",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return console().page.response(request, headers)
