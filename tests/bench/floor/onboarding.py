"""The same site, pages and questions as the onboarding example, without an engine, a log or an index.

    python -m tests.bench.floor.onboarding URL

It prints how long it took, in seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

import model
import onboarding
from website.errors import Refused, Unreachable
from website.fetching import Web
from website.finding import Robots, find
from website.reading import Passage, read


async def _links(_: str, __: Robots) -> list[str]:
    return []


async def _page(web: Web, url: str) -> None:
    try:
        got = await web.fetch(url)
        reading = read(got.text, got.url, got.kind)
    except (Refused, Unreachable):
        return

    async def learn(passage: Passage) -> None:
        shown = f"Page: {passage.page}\n{onboarding.numbered(passage.lines)}"
        await model.fill(shown, onboarding.Facts, rules=onboarding.LEARNING)

    await asyncio.gather(*map(learn, reading.passages))


async def main(url: str) -> None:
    """Do it once to be warm, and once for the figure."""
    for turn in range(2):
        began = time.perf_counter()
        async with Web(onboarding.manners()) as web, model.connected():
            found = await find(web, url, _links, at_most=100)
            choice = await model.fill(onboarding.numbered(found.pages), onboarding.Choice, rules=onboarding.CHOOSING)
            places = asyncio.Semaphore(max(4, model.in_use().at_once // 2))

            async def one(url: str, web: Web = web, places: asyncio.Semaphore = places) -> None:
                async with places:
                    await _page(web, url)

            await asyncio.gather(*(one(found.pages[number - 1]) for number in choice.pages))
        if turn:
            print(time.perf_counter() - began)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
