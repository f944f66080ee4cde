"""Rows 1 and 2: complete runs of a workflow of three components, started and followed to the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.bench.client import Undelivered, connected, follow, start
from tests.bench.figures import Figure, Rounds, percentile
from tests.bench.processes import cpu_by_process

from onward import Client

if TYPE_CHECKING:
    from tests.bench.setting import Setting

    from onward.v1.gateway_service_pb2_grpc import GatewayServiceAsyncStub

EVENTS = 9
"""QUEUED, AttemptStarted, three times ComponentStarted and ComponentFinished, SUCCEEDED."""

AT_A_TIME = 50


async def one(stub: GatewayServiceAsyncStub) -> float:
    """Start a run, follow it to its end, and return how long that took, in seconds."""
    began = time.perf_counter()
    run_id = await start(stub, "three", topic="tea")
    got = await follow(stub, run_id)
    if got.events != EVENTS:
        raise Undelivered(f"run {run_id} has {got.events} events, not {EVENTS}")
    return time.perf_counter() - began


async def one_by_client(client: Client) -> None:
    """The same through what a user imports."""
    run = await client.start("three", {"topic": "tea"})
    events = sum([len(some) async for some in run.follow_batches()])
    if events != EVENTS:
        raise Undelivered(f"run {run.run_id} has {events} events, not {EVENTS}")


async def many(setting: Setting) -> list[Figure]:
    """Row 1: 50 at a time."""
    count, turns = (100, 3) if setting.quick else (400, 7)
    rates: dict[str, list[float]] = {"engine": [], "floor": []}
    costs: dict[str, list[float]] = {"engine": [], "floor": []}
    parts: dict[str, str] = {}
    by_client: list[float] = []
    async with (
        connected(setting.engine.gateway) as engine,
        connected(setting.floor.gateway) as floor,
        Client(setting.engine.gateway) as client,
    ):
        stubs = {"engine": engine, "floor": floor}
        for name, stub in stubs.items():
            await _many(partial(one, stub), 2 * AT_A_TIME)  # warm
            got = await follow(stub, await start(stub, "three", topic="tea"))
            setting.say(f"row 1, {name}: {got.events} events of a run in {got.messages} messages, {got.bytes} bytes")
        for turn in range(turns):
            for suite in setting.both(turn):
                before = cpu_by_process(suite)
                rates[suite.name].append(await _many(partial(one, stubs[suite.name]), count))
                used = {name: value - before[name] for name, value in cpu_by_process(suite).items()}
                costs[suite.name].append(sum(used.values()) / count * 1000)
                parts[suite.name] = ", ".join(f"{name} {value / count * 1e6:.0f}" for name, value in used.items())
            by_client.append(await _many(partial(one_by_client, client), count))
            mine, theirs = rates["engine"][-1], rates["floor"][-1]
            setting.say(
                f"row 1, round {turn + 1} of {turns}: {mine:.0f} runs/s, floor {theirs:.0f}; "
                f"by onward.Client {by_client[-1]:.0f}"
            )
    for name, part in parts.items():
        setting.say(f"row 1, {name}, processor time of a run, in µs: {part}")
    rate, cost = Rounds(rates["engine"], rates["floor"]), Rounds(costs["engine"], costs["floor"])
    what = f"complete runs, {AT_A_TIME} at a time"
    return [
        rate.figure(1, what, "/s", target="≥ 0.7 times the floor", met=rate.ratio >= 0.7),
        cost.figure(1, "processor time of a run, in all processes", "ms"),
        Rounds(by_client, rates["floor"]).figure(1, "the same runs by onward.Client (the floor by its stubs)", "/s"),
    ]


async def single(setting: Setting) -> list[Figure]:
    """Row 2: one at a time."""
    count, turns = (20, 3) if setting.quick else (100, 5)
    middles: dict[str, list[float]] = {"engine": [], "floor": []}
    slowest: dict[str, list[float]] = {"engine": [], "floor": []}
    async with connected(setting.engine.gateway) as engine, connected(setting.floor.gateway) as floor:
        stubs = {"engine": engine, "floor": floor}
        for turn in range(turns):
            taken: dict[str, list[float]] = {"engine": [], "floor": []}
            for _ in range(count):
                for suite in setting.both(turn):
                    taken[suite.name].append(await one(stubs[suite.name]) * 1000)
            for name, times in taken.items():
                middles[name].append(percentile(times, 50))
                slowest[name].append(percentile(times, 99))
            mine, theirs = middles["engine"][-1], middles["floor"][-1]
            setting.say(f"row 2, round {turn + 1} of {turns}: p50 {mine:.1f} ms, floor {theirs:.1f}")
    p50, p99 = Rounds(middles["engine"], middles["floor"]), Rounds(slowest["engine"], slowest["floor"])
    return [
        p50.figure(2, "a complete run, one at a time, p50", "ms", target="≤ 2 times the floor", met=p50.ratio <= 2),
        p99.figure(2, "a complete run, one at a time, p99", "ms"),
    ]


async def _many(run: Callable[[], Awaitable[object]], count: int) -> float:
    """Return how many runs a second were complete."""
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await run()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(AT_A_TIME)))
    return count / (time.perf_counter() - began)
