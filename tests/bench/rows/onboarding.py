"""Row 21: the onboarding example, as an application with hundreds of model calls, on servers of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.client import Undelivered
from tests.bench.figures import Figure, Rounds
from tests.bench.processes import ROOT
from tests.chaos.fleet import Fleet, kill, serving

from onward import Client

if TYPE_CHECKING:
    from tests.bench.setting import Setting
    from tests.scripted import Scripted

EXAMPLES = ROOT / "sdk" / "examples"
CALLS = 300
AT_ONCE = 50
ROUND_TRIPS = 1 + CALLS // AT_ONCE
"""The choice comes first and the others wait for it; then as many at a time as may be."""


@dataclass
class Place:
    """What an ingestion needs."""

    url: str
    sites: Path
    provider: Scripted
    fleet: Fleet
    client: Client
    env: dict[str, str]
    turns: Iterator[int] = field(default_factory=count)


async def ingestion(setting: Setting) -> list[Figure]:
    """A site of some 60 pages, 300 questions, 50 at a time."""
    turns = 1 if setting.quick else 5
    engine: list[float] = []
    floor: list[float] = []
    first: list[float] = []
    async with _place() as place:
        await _ingest(place)  # warm
        for turn in range(turns):
            for what in ("engine", "floor") if turn % 2 == 0 else ("floor", "engine"):
                if what == "floor":
                    floor.append(await _bare(place))
                else:
                    whole_s, first_s = await _ingest(place)
                    engine.append(whole_s)
                    first.append(first_s)
            setting.say(f"row 21, round {turn + 1} of {turns}: {engine[-1]:.2f} s, floor {floor[-1]:.2f}")
        place.provider.takes(1.0)
        slow_s, _ = await _ingest(place)
        setting.say(f"row 21, calls of 1 s: {slow_s:.2f} s")
        place.provider.takes(0.1)
        most = place.provider.most
        await _ingest(place, kill_at=CALLS // 2)
        paid_twice = place.provider.asked.total() - CALLS
    both = Rounds(engine, floor)
    ideal_s = 1.0 * ROUND_TRIPS
    what = f"onboarding: {CALLS} model calls of 100 ms, {most} at a time"
    return [
        both.figure(21, what, "s", target="≤ 1.3 times the floor", met=both.ratio <= 1.3),
        Figure(
            row=21,
            what="the same, calls of 1 s; the floor is arithmetic",
            value=slow_s,
            unit="s",
            floor=ideal_s,
            ratio=slow_s / ideal_s,
            target="≤ 1.3 times the floor",
            met=slow_s <= 1.3 * ideal_s,
        ),
        Figure(
            row=21,
            what="the same, from the start until the first page can be asked about",
            value=statistics.median(first),
            unit="s",
            target="≤ 1 s",
            met=statistics.median(first) <= 1,
        ),
        Figure(
            row=21,
            what="the same, its executor killed half way: calls paid twice",
            value=paid_twice,
            unit="",
            target=f"≤ {AT_ONCE}",
            met=paid_twice <= AT_ONCE,
        ),
    ]


@contextlib.asynccontextmanager
async def _place() -> AsyncIterator[Place]:
    sys.path.append(str(EXAMPLES))  # the examples are no package
    from tests.scripted import scripted

    import product_site

    async with contextlib.AsyncExitStack() as stack:
        site = await stack.enter_async_context(product_site.serving())
        for path in ("/slow", "/broken"):
            site.extra[path] = product_site.Answer(status=404)  # what is tried again for seconds is no figure
        provider = await stack.enter_async_context(scripted(0.1))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onward-bench-")))
        env = {
            "OPENAI_BASE_URL": provider.url,
            "OPENAI_MODEL": "scripted",
            "ONWARD_EXAMPLE_MODEL": "openai",
            "ONWARD_EXAMPLE_AT_ONCE": str(AT_ONCE),
            "ONWARD_EXAMPLE_DELAY_S": "0",
            "ONWARD_EXAMPLE_PRIVATE_HOSTS": site.host,
            "ONWARD_EXAMPLE_SITES": str(folder / "sites"),
        }
        target = EXAMPLES / "onboarding.py"
        fleet = await stack.enter_async_context(
            serving(folder, env, target=target, schedulers=1, gateways=1, executors=1, proxied=False)
        )
        client = await stack.enter_async_context(Client(fleet.addresses("gateway")))
        yield Place(f"{site.url}/", folder / "sites", provider, fleet, client, env)


async def _ingest(place: Place, *, kill_at: int = 0) -> tuple[float, float]:
    """Return how long it took, and when the first page could be found, in seconds."""
    for file in place.sites.glob("*"):
        file.unlink()
    place.provider.forget()
    began = time.perf_counter()
    first_s = 0.0
    # A question of its own for each turn: the choice from the same pages is kept.
    run = await place.client.start("ingest", {"url": f"{place.url}?turn={next(place.turns)}"})
    killing = asyncio.create_task(_kill(place, kill_at)) if kill_at else None
    async for view in run.watch():
        if not first_s and any(page["state"] == "learning" for page in view.states.get("pages", [])):
            first_s = time.perf_counter() - began
    whole_s = time.perf_counter() - began
    if killing is not None:
        await killing
    asked = len(place.provider.asked)
    if view.state != "SUCCEEDED" or asked != CALLS or not (kill_at or place.provider.asked.total() == CALLS):
        raise Undelivered(f"{view.state} after {place.provider.asked.total()} of {asked} questions, not {CALLS}")
    return whole_s, first_s


async def _kill(place: Place, kill_at: int) -> None:
    await place.provider.reached(kill_at)
    await kill(place.fleet.of("executor")[0])


async def _bare(place: Place) -> float:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.floor.onboarding", place.url),
        cwd=ROOT,
        env={**os.environ, **place.env, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path])},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return float(output)
