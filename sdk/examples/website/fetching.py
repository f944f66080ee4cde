"""Fetching one page: from a public address, politely, and never more than is wanted of it."""

import asyncio
import codecs
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Self
from urllib.parse import urljoin, urlsplit
from weakref import WeakKeyDictionary

import httpx2

from website.addresses import PORTS, normal, resolve
from website.errors import Refused, Unreachable

AGENT = "onward-onboarding-example"
"""What robots.txt may call us."""
REDIRECTS_MAX = 5
CONNECT_S = 5.0
HEADER_CHARS_MAX = 500
HOSTS_MAX = 1_000
"""How many hosts are remembered that nobody asks just now."""

HTML = ("text/html", "application/xhtml+xml", "text/plain")
LISTS = ("text/xml", "application/xml", "text/plain", "application/gzip", "application/x-gzip", "")
"""What robots.txt and sitemaps come as."""

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_CHARSETS = re.compile(
    r"utf-(8|16|16-le|16-be|8-sig)|ascii|iso8859-\d+|cp(125\d|874|932|949|866)|koi8-[ru]|mac-\w+|"
    r"shift_jis|euc_(jp|kr)|iso2022_jp|gb2312|gbk|gb18030|big5|tis-620"
)


@dataclass(frozen=True)
class Manners:
    """How a site is treated, and what is taken from it.

    Attributes:
        at_once: Requests to one host that may run at the same time.
        delay_s: Seconds between the beginnings of two of them, at least; robots.txt may ask for more.
        page_s: Seconds after which a page is given up.
        bytes_max: The largest page that is read.
        private: HOST:PORT of servers that may be called although they are not public.
    """

    at_once: int = 4
    delay_s: float = 0.1
    page_s: float = 15.0
    bytes_max: int = 2 * 1024 * 1024
    private: Collection[str] = ()


@dataclass(frozen=True)
class Fetched:
    """What a site answered.

    Attributes:
        url: Where it came from, after redirects.
        kind: Its media type, without parameters.
        body: Its bytes, no longer compressed.
        charset: What the header says that its text is written in; empty where it says nothing.
        etag: Names this version of it; empty where the site names none.
        modified: When it last changed, as the site says it; empty where it does not.
        unchanged: It is the version that was asked about, and has no body.
    """

    url: str
    kind: str = ""
    body: bytes = b""
    charset: str = ""
    etag: str = ""
    modified: str = ""
    unchanged: bool = False

    @property
    def text(self) -> str:
        """Its text: read as its first bytes, the header or the page itself says, else as UTF-8, else as browsers do."""
        for mark, name in (
            (codecs.BOM_UTF8, "utf-8"),
            (codecs.BOM_UTF16_LE, "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16"),
        ):
            if self.body.startswith(mark):
                return self.body.decode(name, "replace").removeprefix("\ufeff")
        said = _CHARSET.search(self.body[:2048])
        for name in (self.charset, said[1].decode() if said else ""):
            try:
                known = codecs.lookup(name).name if name else ""
            except LookupError:
                continue
            if _CHARSETS.fullmatch(known):  # Python has codecs that are none of a text's.
                return self.body.decode("cp1252" if known in ("iso8859-1", "ascii") else known, "replace")
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            return self.body.decode("cp1252", "replace")


class Web:
    """Connections to websites, kept for as long as a run needs them.

    Use `Web.open()`: it gives the one that is open around the caller, so that a workflow keeps connections and a
    component that is called alone has its own.
    """

    def __init__(self, manners: Manners) -> None:
        self.manners = manners
        self._transports: dict[tuple[str, str, int], httpx2.AsyncHTTPTransport] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for transport in self._transports.values():
            await transport.aclose()

    async def fetch(
        self,
        url: str,
        *,
        kinds: Collection[str] = HTML,
        may: Callable[[str], bool] = lambda _: True,
        etag: str = "",
        modified: str = "",
        delay_s: float = 0.0,
    ) -> Fetched:
        """Get a page.

        Args:
            url: Its URL.
            kinds: The media types that are wanted. What comes as another is not read.
            may: Whether a redirect to a URL is followed.
            etag: The version that is known.
            modified: When that had changed.
            delay_s: Seconds that the site asks to leave between requests.

        Raises:
            Refused: It is no page for us.
            Unreachable: It did not come this time.
        """
        known = {"if-none-match": etag, "if-modified-since": modified}
        asked = {
            "user-agent": AGENT,
            "accept": ", ".join(kind for kind in kinds if kind) + ", */*;q=0.1",
            "accept-encoding": "gzip",
        } | {name: value for name, value in known.items() if value}
        for _ in range(REDIRECTS_MAX + 1):
            parts = urlsplit(url)
            async with _turn(f"{parts.hostname}:{parts.port}", self.manners, delay_s):
                try:
                    async with asyncio.timeout(self.manners.page_s):
                        got = await self._once(url, asked, kinds)
                except TimeoutError:
                    raise Unreachable(f"no answer within {self.manners.page_s:g} s") from None
                except httpx2.HTTPError as error:
                    raise Unreachable(f"{type(error).__name__}: {error}".removesuffix(": ")) from None
            if isinstance(got, Fetched):
                return got
            if not may(got):
                raise Refused(f"it leads to {got}, which is not to be read")
            url = got
        raise Refused(f"more than {REDIRECTS_MAX} redirects, or a circle of them")

    async def _once(self, url: str, asked: Mapping[str, str], kinds: Collection[str]) -> Fetched | str:
        """Make one request; return the page, or where it has gone."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or PORTS[parts.scheme]
        address = await resolve(host, port, self.manners.private)
        request = httpx2.Request(
            "GET",
            httpx2.URL(url).copy_with(host=address),
            headers={"host": parts.netloc, **asked},
            extensions={
                "sni_hostname": host,
                "timeout": {"connect": CONNECT_S, "read": None, "write": None, "pool": None},  # page_s bounds it all
            },
        )
        transport = await self._transport(parts.scheme, host, port)
        response = await transport.handle_async_request(request)
        try:
            return await self._read(url, response, kinds)
        finally:
            await response.aclose()

    async def _read(self, url: str, response: httpx2.Response, kinds: Collection[str]) -> Fetched | str:
        headers = response.headers
        etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
        if len(etag) + len(modified) > HEADER_CHARS_MAX:
            etag = modified = ""
        status = response.status_code
        if status == 304:
            return Fetched(url, etag=etag, modified=modified, unchanged=True)
        if status in (301, 302, 303, 307, 308) and "location" in headers:
            return normal(urljoin(url, headers["location"]))
        if status == 429 or status >= 500:
            after = headers.get("retry-after", "")
            raise Unreachable(f"HTTP status {status}", retry_after_s=float(after) if after.isdecimal() else 0.0)
        if status != 200:
            raise Refused(f"HTTP status {status}", gone=status in (404, 410))
        kind, _, rest = headers.get("content-type", "").partition(";")
        kind = kind.strip().lower()
        if kind not in kinds and not (kind.endswith("+xml") and "application/xml" in kinds):
            raise Refused(f"it is {kind or 'of no known type'}, not text")
        charset = re.search(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", rest, re.IGNORECASE)
        body = await self._body(response)
        return Fetched(url, kind, body, charset[1] if charset else "", etag, modified)

    async def _body(self, response: httpx2.Response) -> bytes:
        packed = response.headers.get("content-encoding", "").strip().lower()
        if packed not in ("", "identity", "gzip", "x-gzip"):
            raise Refused(f"it is packed as {packed}, which was not asked for")
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.manners.bytes_max:
            raise Refused(f"it is larger than {self.manners.bytes_max} bytes")
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > self.manners.bytes_max:
                raise Refused(f"it is larger than {self.manners.bytes_max} bytes")
        return unpacked(bytes(body), self.manners.bytes_max) if packed.endswith("gzip") else bytes(body)

    async def _transport(self, scheme: str, host: str, port: int) -> httpx2.AsyncHTTPTransport:
        # One for each host, though it connects to addresses: a connection was made to one host's certificate.
        key = (scheme, host, port)
        if key not in self._transports:
            tls = await asyncio.to_thread(_tls) if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            limits = httpx2.Limits(max_connections=self.manners.at_once)
            new = httpx2.AsyncHTTPTransport(tls, trust_env=False, limits=limits)
            self._transports.setdefault(key, new)  # it has no connection yet: one that is not used needs no end
        return self._transports[key]

    @classmethod
    @asynccontextmanager
    async def open(cls, manners: Manners) -> AsyncIterator[Self]:
        """Give the one that is open around the caller, else a new one, which is closed at the end of the block."""
        known = _open.get()
        if isinstance(known, cls):
            yield known
            return
        async with cls(manners) as web:
            token = _open.set(web)
            try:
                yield web
            finally:
                _open.reset(token)


_open: ContextVar[Web | None] = ContextVar("website_web", default=None)


def unpacked(data: bytes, bytes_max: int) -> bytes:
    """Return what a gzip file holds, of a size that the file does not choose.

    Raises:
        Refused: It is none, or holds more.
    """
    inflating = zlib.decompressobj(wbits=31)
    try:
        body = inflating.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise Refused(f"it cannot be unpacked: {error}") from None
    if len(body) > bytes_max:
        raise Refused(f"unpacked it is larger than {bytes_max} bytes")
    return body


class _Queue:
    """Who may ask a host next, and when."""

    def __init__(self, at_once: int) -> None:
        self.places = asyncio.Semaphore(at_once)
        self.asking = 0
        self.next_s = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is to be remembered of it."""
        return not self.asking and time.monotonic() >= self.next_s


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Queue]] = WeakKeyDictionary()
"""For each host, whichever run asks: two runs on one site are not twice as rude."""


@asynccontextmanager
async def _turn(host: str, manners: Manners, delay_s: float) -> AsyncIterator[None]:
    queues = _queues.setdefault(asyncio.get_running_loop(), {})
    if len(queues) > HOSTS_MAX:
        for name in [name for name, queue in queues.items() if queue.idle]:
            del queues[name]
    queue = queues.setdefault(host, _Queue(manners.at_once))
    queue.asking += 1
    try:
        async with queue.places:
            now = time.monotonic()
            mine = max(now, queue.next_s)
            queue.next_s = mine + max(manners.delay_s, delay_s)
            await asyncio.sleep(mine - now)
            yield
    finally:
        queue.asking -= 1


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)  # slow to make, and the same for all
