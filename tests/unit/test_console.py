"""The console's files: small, whole, cached for ever, and locked in by their policy."""

from __future__ import annotations

import gzip
import re
from pathlib import PurePosixPath
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from onward_gateway.http.console import FILES, console, give_asset, give_page
from onward_gateway.http.problems import Problem

GZIPPED_BYTES_MAX = 150 * 1024
NOBODY: Any = None  # the door: no file needs it


def asking(path: str = "", version: str = "", **headers: str) -> Request:
    """A request."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    params = {"path": path, "version": version}
    return Request({"type": "http", "method": "GET", "headers": raw, "path_params": params})


async def asset(path: str, version: str | None = None, **headers: str) -> Response:
    """Ask for a file."""
    response = await give_asset(NOBODY, asking(path, console().version if version is None else version, **headers))
    assert isinstance(response, Response)
    return response


async def page(**headers: str) -> Response:
    """Ask for the page."""
    response = await give_page(NOBODY, asking(**headers))
    assert isinstance(response, Response)
    return response


def test_all_of_it_is_small() -> None:
    """Everything that a browser ever loads, gzipped."""
    size = len(console().page.packed) + sum(len(asset.packed) for asset in console().assets.values())
    assert size <= GZIPPED_BYTES_MAX


def test_every_module_is_loaded_at_once() -> None:
    """What modules import is there, and the page names it, so that none is found only by the one that needs it."""
    told = console().page.plain.decode()
    at = f"/console/assets/{console().version}/"
    preloaded = set(re.findall(rf'modulepreload" href="{at}([^"]+)"', told))
    libraries = dict(re.findall(rf'"([^"]+)": "{at}(vendor/[^"]+)"', told))
    imported = {"main.js"}
    for name, module in console().assets.items():
        if name.endswith((".js", ".mjs")):
            for path in re.findall(r'^(?:im|ex)port\b[^;]*?from ?"([^"]+)"', module.plain.decode(), re.MULTILINE):
                found = libraries.get(path) or str(PurePosixPath(name).parent / path)
                assert found in console().assets, f"{name} imports {path}"
                imported.add(found)
    assert imported == preloaded
    for address in re.findall(r'(?:src|href)="([^"]+)"', told):
        assert address.removeprefix(at) in console().assets


def test_nothing_is_from_elsewhere() -> None:
    """It works offline: no address of another host is ever asked for."""
    for name, file in console().assets.items():
        if not name.startswith("vendor/"):
            addresses = re.findall(r"https?://[^\s\"'`$]+", file.plain.decode())
            assert addresses in ([], ["http://www.w3.org/2000/svg"]), name


def test_libraries_stand_beside_their_licences() -> None:
    """Vendored code is named, with its version and its licence."""
    told = (FILES / "vendor" / "README.md").read_text()
    for path in (FILES / "vendor").glob("*.mjs"):
        [licence] = re.findall(rf"`{path.name}` \| .* \| .*, (LICENSE\.\w+) \|", told)
        assert (FILES / "vendor" / licence).exists()


async def test_the_policy_allows_no_inline_script_and_no_markup_made_of_text() -> None:
    """Even a hole in the escaping could not run anything."""
    response = await page()
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "frame-ancestors 'none'" in policy
    scripts = re.findall(r"<script([^>]*)>([^<]*)</script>", bytes(response.body).decode())
    assert [said for attributes, said in scripts if said and "importmap" not in attributes] == []


async def test_the_page_is_asked_for_again_and_its_files_never() -> None:
    """A new version is seen at once, and nothing else is loaded twice."""
    first = await page()
    assert first.headers["cache-control"] == "no-cache"
    again = await page(if_none_match=first.headers["etag"])
    assert (again.status_code, again.body) == (304, b"")
    assert "immutable" in (await asset("main.js")).headers["cache-control"]
    assert (await asset("main.js", "another")).headers["cache-control"] == "no-store"


async def test_files_are_sent_packed_to_who_takes_them_so() -> None:
    """Packed once, not for each request."""
    plain = await asset("main.js")
    packed = await asset("main.js", accept_encoding="gzip, br")
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(bytes(packed.body)) == plain.body
    assert plain.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("path", ["", "none.js", "../http/console.py", "index.html", "vendor/README.md", "/etc/passwd"])
async def test_nothing_else_is_given_out(path: str) -> None:
    """Only what is in the list, which is made of the console's folder."""
    with pytest.raises(Problem) as refused:
        await asset(path)
    assert refused.value.status == 404
