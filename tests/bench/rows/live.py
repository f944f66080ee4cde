"""Rows 3 and 4: output as it is made.

`python -m tests.bench.rows.live LOOP GATEWAY RUNS COUNT` is the client of row 3, in a process of its own: on the event
loop of the services, which cannot start processes beside gRPC. It prints what it got as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tests.bench.client import Followed, Undelivered, connected, follow, start
from tests.bench.figures import Figure, Rounds, percentile
from tests.bench.processes import ROOT, cpu_by_process

if TYPE_CHECKING:
    from tests.bench.processes import Suite
    from tests.bench.setting import Setting

PERIOD_MS = 20
"""50 deltas a second."""

OTHER_EVENTS = 3
"""QUEUED, AttemptStarted, SUCCEEDED."""

LEAD_S = 2.0
STARTS_PER_S = 100
"""All runs begin at one time, when all have been started: LEAD_S later, and at this pace. Their deltas are spread."""

STARTING = 20
"""Runs started at the same time."""

SETTLE_NS = 500_000_000


@dataclass(frozen=True)
class Live:
    """What the client of many live runs got.

    Attributes:
        lags: Of each delta that was made while all runs were live, how late it was, in milliseconds.
        messages: How many messages all events came in.
        cpu_s: The processor time that it used.
    """

    lags: list[float]
    messages: int
    cpu_s: float


async def deltas(setting: Setting) -> list[Figure]:
    """Row 3: many live runs, each with one subscriber."""
    figures = []
    sizes = [(20, 2.0, 10, 60)] if setting.quick else [(300, 6.0, 10, 60), (500, 6.0, None, 200)]
    for runs, length_s, p50_max, p99_max in sizes:
        lags: dict[str, list[float]] = {}
        for suite in setting.both(0):
            count = int(length_s * 1000 / PERIOD_MS)
            before = cpu_by_process(suite)
            got = await _client(setting.loop, suite, runs, count)
            some = lags[suite.name] = got.lags
            costs = {name: value - before[name] for name, value in cpu_by_process(suite).items()}
            costs["client"] = got.cpu_s
            costs["all"] = sum(costs.values())
            cost = ", ".join(f"{name} {value / runs / count * 1e6:.0f}" for name, value in costs.items())
            setting.say(
                f"row 3, {suite.name}, {runs} runs: p50 {percentile(some, 50):.1f} ms, "
                f"p99 {percentile(some, 99):.1f} ms of {len(some):,} deltas, {runs * count / got.messages:.2f} in a "
                f"message; processor time of a delta, in µs: {cost}"
            )
        for percent, limit in ((50, p50_max), (99, p99_max)):
            mine, theirs = (percentile(lags[name], percent) for name in ("engine", "floor"))
            figures.append(
                Figure(
                    row=3,
                    what=f"{runs} live runs at {1000 // PERIOD_MS} deltas/s, append to client, p{percent}",
                    value=mine,
                    unit="ms",
                    floor=theirs,
                    ratio=mine / theirs,
                    target=f"≤ {limit} ms" if limit else "",
                    met=mine <= limit if limit else None,
                )
            )
    return figures


async def _client(loop: str, suite: Suite, runs: int, count: int) -> Live:
    """Have a client follow so many runs, each of so many deltas."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.rows.live", loop, suite.gateway, str(runs), str(count)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, told = await process.communicate()
    if process.returncode:
        raise Undelivered(f"{suite.name}: {told.decode().strip().splitlines()[-1]}")
    return Live(**json.loads(printed))


async def audience(setting: Setting) -> list[Figure]:
    """Row 4: one run with many subscribers."""
    subscribers, count, turns = (50, 25, 1) if setting.quick else (1_000, 100, 3)
    times: dict[str, list[float]] = {"engine": [], "floor": []}
    for turn in range(turns):
        for suite in setting.both(turn):
            times[suite.name].append(await _watched(suite, subscribers, count))
        setting.say(
            f"row 4, round {turn + 1} of {turns}: {times['engine'][-1]:.2f} s, floor {times['floor'][-1]:.2f} s"
        )
    what = f"one run of {count * PERIOD_MS / 1000:g} s with {subscribers:,} subscribers, until the last one has all"
    rounds = Rounds(times["engine"], times["floor"])
    delivered = subscribers * (count + OTHER_EVENTS)
    rates = Rounds([delivered / value for value in rounds.engine], [delivered / value for value in rounds.floor])
    return [
        rounds.figure(4, what, "s", target="all get all", met=True),
        rates.figure(4, "the same, events delivered", "/s"),
    ]


async def _watched(suite: Suite, subscribers: int, count: int) -> float:
    async with connected(suite.gateway) as stub:
        began = time.perf_counter()
        run_id = await start(stub, "deltas", begin=0, count=count, period_ms=PERIOD_MS)
        for got in await asyncio.gather(*(follow(stub, run_id) for _ in range(subscribers))):
            if got.events != count + OTHER_EVENTS:
                raise Undelivered(f"run {run_id} has {got.events} events, not {count + OTHER_EVENTS}")
        return time.perf_counter() - began


# In a process of its own


async def _live(gateway: str, runs: int, count: int) -> Live:
    before_s = sum(os.times()[:2])
    starting = asyncio.Semaphore(STARTING)
    begin_s = time.time() + LEAD_S + runs / STARTS_PER_S
    async with connected(gateway) as stub:

        async def one(number: int) -> Followed:
            begin = begin_s + PERIOD_MS / 1000 * number / runs
            async with starting:
                run_id = await start(stub, "deltas", begin=begin, count=count, period_ms=PERIOD_MS)
            got = await follow(stub, run_id, stamped=True)
            if got.events != count + OTHER_EVENTS or len(got.stamps) != count:
                raise Undelivered(f"run {run_id}: {len(got.stamps)} deltas of {count} in {got.events} events")
            return got

        followed = await asyncio.gather(*(one(number) for number in range(runs)))
    begin = max(got.stamps[0] for got in followed) + SETTLE_NS
    end = min(got.stamps[-1] for got in followed)
    lags = [
        lag / 1e6 for got in followed for stamp, lag in zip(got.stamps, got.lags, strict=True) if begin <= stamp < end
    ]
    if not lags:
        raise RuntimeError(f"the first of {runs} runs had ended before the last one began")
    return Live(lags, sum(got.messages for got in followed), sum(os.times()[:2]) - before_s)


def main() -> None:
    """Be the client of row 3."""
    loop, gateway, runs, count = sys.argv[1:]
    work = _live(gateway, int(runs), int(count))
    if loop == "uvloop":
        import uvloop  # only where it is there

        got = uvloop.run(work)
    else:
        got = asyncio.run(work)
    print(json.dumps(asdict(got)))


if __name__ == "__main__":
    main()
