"""Rows 6 and 7: what it costs when nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from tests.bench.client import connected
from tests.bench.figures import Figure
from tests.bench.floor.pipe import log_key, pipe
from tests.bench.processes import another_gateway, cpu_s, resident_kib

from onward.v1.gateway_service_pb2 import SubscribeRunRequest
from onward.v1.run_pb2 import Run
from onward_runlog.runs import Runs
from onward_runlog.store import open_store

if TYPE_CHECKING:
    from tests.bench.setting import Setting

    from onward.v1.gateway_service_pb2_grpc import GatewayServiceAsyncStub

NAMESPACE = "default"

STREAMS_PER_CONNECTION = 100

SETTLE_S = 2.0


async def subscribers(setting: Setting) -> list[Figure]:
    """Row 6: memory of a Gateway for subscribers that hear nothing, each of a run of its own."""
    count = 200 if setting.quick else 5_000
    each: dict[str, float] = {}
    busy: dict[str, float] = {}
    for suite in setting.both(0):
        fill = idle_runs if suite.name == "engine" else _idle_floor_runs
        run_ids = await fill(suite.valkey.url, count + 1)
        # A Gateway of its own: memory that other rows have left free would hide what is used here.
        async with another_gateway(suite) as gateway:
            pid, address = gateway.pid, gateway.addresses["grpc"]
            async with connected(address) as stub, _subscribed(stub, run_ids[:1]):
                await asyncio.sleep(SETTLE_S / 2)
            before = resident_kib(pid)
            async with contextlib.AsyncExitStack() as stack:
                for first in range(1, count + 1, STREAMS_PER_CONNECTION):
                    stub = await stack.enter_async_context(connected(address))
                    some = run_ids[first : first + STREAMS_PER_CONNECTION]
                    await stack.enter_async_context(_subscribed(stub, some))
                await asyncio.sleep(SETTLE_S)
                used, began = cpu_s(pid), time.perf_counter()
                await asyncio.sleep(2 * SETTLE_S)
                each[suite.name] = (resident_kib(pid) - before) / count
                busy[suite.name] = (cpu_s(pid) - used) / (time.perf_counter() - began) * 100
        setting.say(f"row 6, {suite.name}: {each[suite.name]:.1f} KiB each, {busy[suite.name]:.1f} % of a core")
    return [
        Figure(
            row=6,
            what=f"{count:,} idle subscribers on a Gateway, each of its own run: memory each",
            value=each["engine"],
            unit="KiB",
            floor=each["floor"],
            ratio=each["engine"] / each["floor"],
            target="≤ 60 KiB",
            met=each["engine"] <= 60,
        ),
        Figure(row=6, what="the same: of a core, for them all", value=busy["engine"], unit="%", floor=busy["floor"]),
    ]


@contextlib.asynccontextmanager
async def _subscribed(stub: GatewayServiceAsyncStub, run_ids: list[str]) -> AsyncIterator[None]:
    """Hold a subscription of each run; each has got the one event that there is."""
    calls = []
    for run_id in run_ids:
        request = SubscribeRunRequest(run_id=run_id)
        request.heartbeat.FromSeconds(60)
        calls.append(stub.SubscribeRun(request))

    async def first(call: AsyncIterator[object]) -> None:
        async for response in call:
            if response.WhichOneof("message") == "batch":  # type: ignore[attr-defined]
                return

    try:
        await asyncio.gather(*(first(aiter(call)) for call in calls))
        yield
    finally:
        for call in calls:
            call.cancel()


async def idle_runs(url: str, count: int) -> list[str]:
    """Make runs that wait for tomorrow, and return their ids."""
    async with open_store(url) as store:
        runs = Runs(store)

        async def one() -> str:
            run = Run(run_id=secrets.token_hex(13), namespace=NAMESPACE, workflow="three", deployment="idle")
            run.schedule_time.FromSeconds(int(time.time()) + 24 * 3600)
            await runs.submit(run)
            return run.run_id

        return await asyncio.gather(*(one() for _ in range(count)))


async def _idle_floor_runs(url: str, count: int) -> list[str]:
    run_ids = [secrets.token_hex(13) for _ in range(count)]
    async with pipe(url) as store:
        await asyncio.gather(*(store.call("XADD", log_key(run_id), "1-0", "e", b"\x08\x01") for run_id in run_ids))
    return run_ids


async def processes_idle(setting: Setting) -> list[Figure]:
    """Row 7: a suite that nobody uses. Measured before anything else was."""
    seconds = 2.0 if setting.quick else 10.0
    await asyncio.sleep(SETTLE_S)
    suites = setting.both(0)
    before = {suite.name: {name: cpu_s(pid) for name, pid in suite.pids.items()} for suite in suites}
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    passed = time.perf_counter() - began
    used = {
        suite.name: {name: (cpu_s(pid) - before[suite.name][name]) / passed * 100 for name, pid in suite.pids.items()}
        for suite in suites
    }
    total = {name: sum(parts.values()) for name, parts in used.items()}
    parts = ", ".join(f"{name} {value:.1f}" for name, value in used["engine"].items())
    setting.say(f"row 7: {total['engine']:.1f} % of a core ({parts}), floor {total['floor']:.1f} %")
    return [
        Figure(
            row=7,
            what="an idle suite, all processes: of a core",
            value=total["engine"],
            unit="%",
            floor=total["floor"],
            target="≤ 3 %",
            met=total["engine"] <= 3,
        ),
        *memory(setting, "idle"),
    ]


def memory(setting: Setting, when: str) -> list[Figure]:
    """Return the memory of each process as it is now."""
    return [
        Figure(
            row=7,
            what=f"memory of the {name}, {when}",
            value=resident_kib(pid) / 1024,
            unit="MiB",
            floor=resident_kib(setting.floor.pids[name]) / 1024,
        )
        for name, pid in setting.engine.pids.items()
    ]
