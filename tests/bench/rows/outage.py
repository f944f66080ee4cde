"""Row 23: both providers of a thousand runs are down for a while. Nothing is lost but time, and nobody storms them."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import Figure
from tests.bench.processes import ROOT
from tests.chaos.fleet import serving

from onward import Client, RunFailed

if TYPE_CHECKING:
    from tests.bench.setting import Setting

    from onward.client import RunHandle

TARGET = ROOT / "tests" / "e2e" / "outages.py"
OUTAGE_S = 60.0
INTERVAL_S = 0.8
"""The shortest time between two probes."""
RATE, DOUBLED_S = 5.0, 2.0
"""How many calls go in a second when an outage ends, and how long that takes to double after one of 20 s or more."""


async def outage(setting: Setting) -> list[Figure]:
    """Every run asks twice; most are parked when the first provider comes back."""
    from tests import provider

    runs, outage_s = (60, 10.0) if setting.quick else (1_000, OUTAGE_S)
    async with AsyncExitStack() as stack:
        providers = [await stack.enter_async_context(provider.serving()) for _ in range(2)]
        env = {"TEST_MODEL_URL": providers[0].url, "TEST_OTHER_MODEL_URL": providers[1].url}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onward-bench-")))
        fleet = await stack.enter_async_context(
            serving(folder, env, target=TARGET, schedulers=1, gateways=1, executors=2, proxied=False)
        )
        client = await stack.enter_async_context(Client(fleet.addresses("gateway")))
        await client.invoke("asks", {"client": "two"})  # warm
        down = provider.Reply(status=503, error="we are down")
        for one in providers:
            one.default = down
        began = time.monotonic()
        started = [await client.start("asks", {"client": "two", "calls": 2}) for _ in range(runs)]
        setting.say(f"row 23: {runs} runs accepted after {time.monotonic() - began:.1f} s")
        await asyncio.sleep(max(0.0, began + outage_s - time.monotonic()))
        back_at = time.monotonic()
        providers[1].default = replace(down, status=200)
        failed = sum(await asyncio.gather(*map(_failed, started)))
        ended_at = time.monotonic()
    probes = [gap for one in providers for gap in _gaps(seen.at for seen in one.requests if seen.at < back_at)]
    after = [seen.at for seen in providers[1].requests if seen.at >= back_at]
    requests = sum(len(one.requests) for one in providers)
    shortest_s = min(probes)
    beyond = _beyond(after, min(DOUBLED_S, 0.09 * (after[0] - began)))
    return [
        _figure(f"{runs:,} runs, two providers down for {outage_s:.0f} s: failed runs", failed, "", "0", failed == 0),
        _figure("the same: the shortest time between two probes of one", shortest_s, "s", "≥ 0.8 s", shortest_s >= 0.8),
        _figure("the same: calls beyond the ramp when one is back", beyond, "", "0", beyond == 0),
        _figure("the same: from then until all had ended", ended_at - back_at, "s"),
        _figure("the same: requests that came to a provider, for each run of 2 calls", requests / runs, ""),
    ]


async def _failed(run: RunHandle) -> bool:
    try:
        await run.result()
    except RunFailed:
        return True
    return False


def _gaps(times: Iterable[float]) -> list[float]:
    """Return the times between requests, from when the first wave of failures is over."""
    times = list(times)
    # What was under way when it went down is told apart by its crowd: probes are INTERVAL_S apart.
    first = next(
        (place for place, (one, two) in enumerate(pairwise(times)) if two - one >= INTERVAL_S / 2), len(times) - 1
    )
    return [two - one for one, two in pairwise(times[first:])]


def _beyond(times: list[float], doubled_s: float) -> int:
    """Return by how many calls the ramp was exceeded at most."""
    beyond = 0.0
    for number, at in enumerate(times):
        passed_s = at - times[0]
        # The probe and the first of the ramp come at once; a fifth is for a network and a clock that are not exact.
        allowed = 2 + 1.2 * RATE * doubled_s / math.log(2) * (2 ** (passed_s / doubled_s) - 1)
        beyond = max(beyond, number + 1 - allowed)
    return math.ceil(beyond)


def _figure(what: str, value: float, unit: str, target: str = "", met: bool | None = None) -> Figure:
    return Figure(row=23, what=what, value=value, unit=unit, target=target, met=met)
