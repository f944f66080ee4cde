"""Which pages a site has: what its sitemaps list, else what its links lead to, without what its robots.txt excludes."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from html import unescape
from urllib.parse import urljoin, urlsplit

from protego import Protego

from website.addresses import normal, same_host
from website.errors import Refused, Unreachable
from website.fetching import AGENT, LISTS, Fetched, Web, unpacked

ROBOTS_CHARS_MAX = 500_000
"""More of a robots.txt is not read (RFC 9309 asks for at least 500 KiB)."""
CRAWL_DELAY_S_MAX = 10.0
SITEMAPS_MAX = 50
CONSIDERED_MAX = 5_000
"""URLs that are looked at, wanted or not."""
CRAWLED_MAX = 100
"""Pages that are looked through for links, where there is no sitemap."""

_LOC = re.compile(r"<(?:\w+:)?loc>\s*(?:<!\[CDATA\[)?\s*([^<>\]]{1,2000}?)\s*(?:\]\]>)?\s*</(?:\w+:)?loc>")
"""Not an XML parser: of a sitemap nothing else is wanted, and one without entities has none that explode."""
_NO_PAGE = re.compile(
    r"\.(pdf|png|jpe?g|gif|webp|svg|ico|css|js|mjs|json|xml|rss|zip|gz|tgz|exe|dmg|mp[34]|webm|woff2?)$"
)


@dataclass(frozen=True)
class Robots:
    """What a site asks of robots.

    Attributes:
        text: Its robots.txt; empty where there is none, and then everything is allowed.
    """

    text: str = ""

    def allow(self, url: str) -> bool:
        """Say whether a page may be fetched."""
        return _rules(self.text).can_fetch(url, AGENT)

    @property
    def delay_s(self) -> float:
        """Seconds that it asks to leave between requests."""
        return min(CRAWL_DELAY_S_MAX, max(0.0, _rules(self.text).crawl_delay(AGENT) or 0.0))

    @property
    def sitemaps(self) -> list[str]:
        """Where it says that its sitemaps are."""
        return list(_rules(self.text).sitemaps)


@lru_cache(maxsize=100)
def _rules(text: str) -> Protego:
    return Protego.parse(text)


@dataclass(frozen=True)
class Found:
    """The pages of a site.

    Attributes:
        start: The page that was asked for, after redirects.
        pages: URLs, the start first, no two the same.
        robots: What the site asks of robots.
        by: How they were found: "sitemap" or "links".
        excluded: How many were left out since robots.txt asks for it.
    """

    start: str
    pages: list[str]
    robots: str
    by: str
    excluded: int = 0


@dataclass
class _Pages:
    """URLs of one site that robots may have, up to a number of them."""

    start: str
    robots: Robots
    at_most: int
    found: dict[str, None] = field(default_factory=dict)
    excluded: dict[str, None] = field(default_factory=dict)
    considered: int = 0

    @property
    def full(self) -> bool:
        return len(self.found) >= self.at_most or self.considered >= CONSIDERED_MAX

    def take(self, url: str) -> None:
        if self.full:
            return
        self.considered += 1
        try:
            url = normal(url, self.start)
        except Refused:
            return
        if same_host(url, self.start) and not _NO_PAGE.search(urlsplit(url).path):
            (self.found if self.robots.allow(url) else self.excluded).setdefault(url)


async def find(web: Web, url: str, links: Callable[[str, Robots], Awaitable[list[str]]], *, at_most: int) -> Found:
    """Find a site's pages.

    Args:
        web: Fetches.
        url: Any page of it.
        links: Gives the links of a page, for a site without a sitemap.
        at_most: How many pages are wanted.

    Raises:
        Refused: The site is not for us.
        Unreachable: It does not answer now.
    """
    start = normal(url)
    robots = await _robots(web, start)
    if not robots.allow(start):
        raise Refused("its robots.txt asks robots to stay away")
    pages = _Pages(start, robots, at_most)
    pages.take(start)
    await _from_sitemaps(web, pages)
    by = "sitemap"
    if len(pages.found) == 1:
        by = "links"
        await _from_links(pages, links)
    return Found(start, list(pages.found), robots.text, by, len(pages.excluded))


async def _robots(web: Web, start: str) -> Robots:
    try:
        got = await web.fetch(urljoin(start, "/robots.txt"), kinds=(*LISTS, "text/html"))
    except Refused:
        return Robots()  # There is none. (One that does not come now is waited for: it may exclude everything.)
    return Robots() if got.kind == "text/html" else Robots(got.text[:ROBOTS_CHARS_MAX])


async def _from_sitemaps(web: Web, pages: _Pages) -> None:
    todo = [*pages.robots.sitemaps, "/sitemap.xml"]
    seen: set[str] = set()
    while todo and len(seen) < SITEMAPS_MAX and not pages.full:
        try:
            url = normal(todo.pop(0), pages.start)
            if url in seen or not same_host(url, pages.start):
                continue
            seen.add(url)
            got = await web.fetch(url, kinds=LISTS, delay_s=pages.robots.delay_s)
            text = _listing(got, web.manners.bytes_max)
        except (Refused, Unreachable):
            continue  # It is an offer, not a promise.
        located = [unescape(found) for found in _LOC.findall(text)]
        if "<sitemapindex" in text[:2000]:
            todo.extend(located)
        else:
            for page in located:
                pages.take(page)


def _listing(got: Fetched, bytes_max: int) -> str:
    if got.body.startswith(b"\x1f\x8b"):
        return unpacked(got.body, bytes_max).decode("utf-8", "replace")
    return got.text


async def _from_links(pages: _Pages, links: Callable[[str, Robots], Awaitable[list[str]]]) -> None:
    """Go from page to page, nearest first."""
    looked = 0
    while looked < min(len(pages.found), CRAWLED_MAX) and not pages.full:
        page = list(pages.found)[looked]
        looked += 1
        try:
            leads_to = await links(page, pages.robots)
        except (Refused, Unreachable):
            if looked == 1:
                raise  # the page that was asked for
            continue
        for url in leads_to:
            pages.take(url)
