"""Getting a page from its site, or from the index where it is known well enough."""

import asyncio
import time

from website.addresses import same_host
from website.errors import Refused
from website.fetching import Web
from website.finding import Robots
from website.index import Index, Page
from website.reading import read


async def visit(web: Web, index: Index, url: str, robots: Robots, *, max_age_s: float) -> Page:
    """Return a page, and keep it.

    Args:
        web: Fetches.
        index: Keeps what was fetched.
        url: The page.
        robots: What the site asks of robots.
        max_age_s: The site is not asked about a page that it was asked about in the last so many seconds. Else it is
            asked for what is new.

    Raises:
        Refused: It is no page for us; until `max_age_s` have passed, again without asking.
        Unreachable: It did not come this time.
    """
    known = await asyncio.to_thread(index.page, url)
    if known is not None and 0 <= time.time() - known.fetched_s <= max_age_s:
        if known.refusal:
            raise Refused(known.refusal)
        return known
    etag, modified = (known.etag, known.modified) if known and not known.refusal else ("", "")
    try:
        got = await web.fetch(
            url,
            may=lambda other: same_host(other, url) and robots.allow(other),
            etag=etag,
            modified=modified,
            delay_s=robots.delay_s,
        )
        if got.unchanged and known is not None:
            await asyncio.to_thread(index.unchanged, url)
            return known
        reading = await asyncio.to_thread(read, got.text, got.url, got.kind)
    except Refused as refused:
        if refused.gone:
            await asyncio.to_thread(index.forget, url)
        await asyncio.to_thread(index.put, Page(url, "", [], [], refusal=str(refused)))
        raise
    page = Page(url, reading.title, reading.passages, reading.links, got.etag, got.modified)
    await asyncio.to_thread(index.put, page)
    return page
