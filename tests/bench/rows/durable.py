"""Rows 9 to 12: what it takes to survive. They have servers of their own, which they kill."""

from __future__ import annotations

import asyncio
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import durable
from tests.bench.client import PATIENCE_S, Undelivered
from tests.bench.figures import Figure
from tests.bench.processes import resident_kib
from tests.chaos.fleet import Fleet, Member, kill, serving

from onward import Client

if TYPE_CHECKING:
    from tests.bench.setting import Setting

    from onward.v1.event_pb2 import Event

TARGET = Path(str(durable.__file__))

LEASE_S = 5.0
"""The default."""

Harm = Callable[[Member], Awaitable[None]]


async def failover(setting: Setting) -> list[Figure]:
    """Row 9: how long a stream is silent when its executor goes, with another one free."""
    kills, others = (2, 1) if setting.quick else (20, 3)
    with tempfile.TemporaryDirectory(prefix="onward-bench-") as folder:
        async with (
            serving(
                Path(folder), {}, target=TARGET, schedulers=1, gateways=1, slots=100, lease_s=LEASE_S, proxied=False
            ) as fleet,
            Client(fleet.addresses("gateway")) as client,
        ):
            killed = [await _silence(fleet, client, _kill) for _ in range(kills)]
            setting.say(f"row 9: kill -9, silent for {_ms(killed)} ms")
            stopped = [await _silence(fleet, client, _stop) for _ in range(others)]
            setting.say(f"row 9: SIGSTOP, silent for {_ms(stopped)} ms")
            deaf = [await _deaf(client) for _ in range(others)]
            setting.say(f"row 9: a loop that stands still, silent for {_ms(deaf)} ms")
    limit_s = LEASE_S + 1
    return [
        _figure(9, f"kill -9 in mid-stream, until the text goes on, p50 of {kills}", statistics.median(killed), 0.3),
        _figure(9, "the same, the worst", max(killed), 1.0),
        _figure(9, f"SIGSTOP in mid-stream, lease {LEASE_S:g} s, the worst of {others}", max(stopped), limit_s),
        _figure(9, f"a blocked event loop, lease {LEASE_S:g} s, the worst of {others}", max(deaf), limit_s),
    ]


async def replay(setting: Setting) -> list[Figure]:
    """Row 10: a run with many finished components loses its executor."""
    count = 200 if setting.quick else 10_000
    with tempfile.TemporaryDirectory(prefix="onward-bench-") as folder:
        async with (
            serving(Path(folder), {}, target=TARGET, schedulers=1, gateways=1, executors=1, proxied=False) as fleet,
            Client(fleet.addresses("gateway")) as client,
        ):
            [executor] = fleet.of("executor")
            run = await client.start(durable.many, {"count": count, "seconds": 3600})
            began = 0.0
            took = 0.0
            async with asyncio.timeout(2 * PATIENCE_S), aclosing(run.follow()) as events:
                async for event in events:
                    if event.attempt == 1 and event.component_started.name == "hold":
                        await kill(executor)
                    elif event.HasField("attempt_started"):
                        began = _time(event)
                    elif event.attempt == 2 and event.HasField("component_started"):
                        if event.component_started.name != "hold":
                            raise Undelivered(f"{event.component_started.name} ran again")
                        took = _time(event) - began
                        break
            await run.cancel()
    setting.say(f"row 10: {took:.2f} s")
    return [_figure(10, f"replay of {count:,} finished components, until new work begins", took, 2.0, unit="s")]


async def long(setting: Setting) -> list[Figure]:
    """Row 11: a run with a long log."""
    chapters, count, turns = (20, 98, 1) if setting.quick else (1_000, 98, 5)
    length = chapters * (count + 2)
    ratios: list[float] = []
    grown: list[float] = []
    with tempfile.TemporaryDirectory(prefix="onward-bench-") as folder:
        async with (
            serving(Path(folder), {}, target=TARGET, schedulers=1, gateways=1, executors=1, proxied=False) as fleet,
            Client(fleet.addresses("gateway")) as client,
        ):
            [executor] = fleet.of("executor")
            await (await client.start(durable.book, {"chapters": 10, "count": count})).result()
            for _ in range(turns):
                run = await client.start(durable.book, {"chapters": chapters, "count": count})
                times: list[float] = []
                memory: list[int] = []
                async with asyncio.timeout(2 * PATIENCE_S), aclosing(run.follow()) as events:
                    async for event in events:
                        if event.offset % (length // 10) == 0:
                            times.append(_time(event))
                            memory.append(resident_kib(executor.pid))
                pace = [later - earlier for earlier, later in pairwise(times)]
                ratios.append(statistics.median(pace[-3:]) / statistics.median(pace[:3]))
                grown.append((memory[-1] - memory[0]) / 1024)
                setting.say(f"row 11: tenths of the log in {_ms(pace)} ms, memory {memory} KiB")
    ratio, growth = statistics.median(ratios), max(grown)
    return [
        Figure(
            row=11,
            what=f"a run of {length:,} events: the time of an event at the end to that at the beginning",
            value=ratio,
            unit="",
            target="≤ 1.2",
            met=ratio <= 1.2,
        ),
        Figure(
            row=11,
            what="the same: by how much the executor's memory grows from its first tenth to its end",
            value=growth,
            unit="MiB",
            target="≤ 2 MiB",
            met=growth <= 2,
        ),
    ]


async def component(setting: Setting) -> list[Figure]:
    """Row 12: what remembering costs."""
    count, turns = (50, 1) if setting.quick else (1_000, 5)
    with tempfile.TemporaryDirectory(prefix="onward-bench-") as folder:
        async with (
            serving(Path(folder), {}, target=TARGET, schedulers=1, gateways=1, executors=1, proxied=False) as fleet,
            Client(fleet.addresses("gateway")) as client,
        ):
            costs = []
            for _ in range(turns):
                bare_s, component_s = await (await client.start(durable.cost, {"count": count})).result()
                costs.append(component_s - bare_s)
    cost_s = statistics.median(costs)
    setting.say(f"row 12: {_ms(costs)} ms")
    return [_figure(12, "a remembered, traced component over a bare call, one at a time", cost_s, 0.0005)]


async def _silence(fleet: Fleet, client: Client, harm: Harm) -> float:
    """Return how long a run's text stands still when something is done to its executor, in seconds."""
    run = await client.start(durable.talk, {"count": 2000, "pause_s": 0.02})
    harmed = 0.0
    healing: asyncio.Task[None] | None = None
    async with asyncio.timeout(PATIENCE_S), aclosing(run.follow()) as events:
        async for event in events:
            if event.offset == 20:
                holder = fleet.holder((await run.get()).executor_id)
                assert holder is not None
                healing = asyncio.create_task(_harm(holder, harm))
                harmed = time.monotonic()
            if event.attempt == 2 and event.HasField("output_delta"):
                silent = time.monotonic() - harmed
                break
    await run.cancel()
    assert healing is not None
    await healing
    return silent


async def _harm(member: Member, harm: Harm) -> None:
    await harm(member)
    if harm is _kill:
        await member.start()


async def _kill(member: Member) -> None:
    await member.kill()


async def _stop(member: Member) -> None:
    member.signal(signal.SIGSTOP)
    await asyncio.sleep(LEASE_S + 2)
    member.signal(signal.SIGCONT)


async def _deaf(client: Client) -> float:
    """Return how long after its last word a run goes on elsewhere when it blocks its executor, in seconds."""
    run = await client.start(durable.deaf, {"seconds": LEASE_S + 3})
    last = 0.0
    async with asyncio.timeout(PATIENCE_S), aclosing(run.follow()) as events:
        async for event in events:
            if event.attempt == 1:
                last = time.monotonic()
            elif event.attempt == 2:
                break
    took = time.monotonic() - last
    await run.cancel()
    await asyncio.sleep(LEASE_S + 3)  # the blocked one has to come back, or the next run has nowhere to go
    return took


def _figure(row: int, what: str, value_s: float, limit_s: float, *, unit: str = "ms") -> Figure:
    by = {"ms": 1000, "s": 1}[unit]
    target = f"≤ {limit_s * by:g} {unit}"
    return Figure(row=row, what=what, value=value_s * by, unit=unit, target=target, met=value_s <= limit_s)


def _time(event: Event) -> float:
    return event.create_time.seconds + event.create_time.nanos / 1e9


def _ms(times_s: list[float]) -> str:
    return ", ".join(f"{1000 * time_s:.3g}" if time_s < 0.01 else f"{1000 * time_s:.0f}" for time_s in times_s)
