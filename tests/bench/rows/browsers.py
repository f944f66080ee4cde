"""Rows 14 to 17: the HTTP door. It has no floor of its own; gRPC beside it is one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING

from tests.bench.client import Undelivered, connected, start
from tests.bench.figures import Figure, percentile
from tests.bench.processes import another_gateway, cpu_by_process, cpu_s, resident_kib
from tests.bench.rows.idle import SETTLE_S, idle_runs
from tests.bench.rows.live import LEAD_S, OTHER_EVENTS, SETTLE_NS, STARTING, STARTS_PER_S
from tests.eventsource import EventSource, answered, asked
from tests.restarts import Gateway, restarted

from onward.v1.gateway_service_pb2 import InvokeWorkflowRequest, StartRunRequest
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED, Payload

if TYPE_CHECKING:
    from tests.bench.setting import Setting

    from onward.v1.gateway_service_pb2_grpc import GatewayServiceAsyncStub

PERIOD_MS = 50
"""20 deltas a second."""

CONNECTING = 50
"""Connections made at the same time."""


async def live(setting: Setting) -> list[Figure]:
    """Row 14: many live runs, each with one EventSource."""
    runs, length_s = (20, 2.0) if setting.quick else (300, 10.0)
    count = int(length_s * 1000 / PERIOD_MS)
    starting = asyncio.Semaphore(STARTING)
    begin_s = time.time() + LEAD_S + runs / STARTS_PER_S
    http = setting.engine.servers["gateway"].addresses["http"]
    before = cpu_by_process(setting.engine)
    async with connected(setting.engine.gateway) as stub:

        async def one(number: int) -> list[tuple[int, int]]:
            begin = begin_s + PERIOD_MS / 1000 * number / runs
            async with starting:
                run_id = await start(stub, "deltas", begin=begin, count=count, period_ms=PERIOD_MS)
            source = EventSource(http, f"/v1/runs/{run_id}/events")
            offsets, stamps = [], []
            async for message in source.messages():
                if message.name != "message":
                    continue
                arrived = time.time_ns()
                event = message.json
                offsets.append(event["offset"])
                if event["kind"] == "output_delta":
                    stamp = int(event["output_delta"]["text"])
                    stamps.append((stamp, arrived - stamp))
            if offsets != list(range(1, count + OTHER_EVENTS + 1)) or len(stamps) != count:
                raise Undelivered(f"run {run_id}: {len(stamps)} deltas of {count} in {len(offsets)} events")
            return stamps

        got = await asyncio.gather(*(one(number) for number in range(runs)))
    costs = {name: value - before[name] for name, value in cpu_by_process(setting.engine).items()}
    begin, end = max(some[0][0] for some in got) + SETTLE_NS, min(some[-1][0] for some in got)
    lags = [lag / 1e6 for some in got for stamp, lag in some if begin <= stamp < end]
    cost = ", ".join(f"{name} {value / runs / count * 1e6:.0f}" for name, value in costs.items())
    p50, p99 = percentile(lags, 50), percentile(lags, 99)
    setting.say(
        f"row 14: p50 {p50:.1f} ms, p99 {p99:.1f} ms of {len(lags):,}; processor time of a delta, in µs: {cost}"
    )
    what = f"{runs} live runs at {1000 // PERIOD_MS} events/s, an EventSource each, append to client"
    return [
        Figure(row=14, what=f"{what}, p50", value=p50, unit="ms"),
        Figure(row=14, what=f"{what}, p99", value=p99, unit="ms", target="≤ 150 ms", met=p99 <= 150),
    ]


async def idle(setting: Setting) -> list[Figure]:
    """Row 15: memory of a Gateway for EventSources that hear nothing, each of a run of its own."""
    count = 100 if setting.quick else 2_000
    run_ids = await idle_runs(setting.engine.valkey.url, count + 1)
    connecting = asyncio.Semaphore(CONNECTING)
    async with another_gateway(setting.engine) as gateway, contextlib.AsyncExitStack() as stack:
        http = gateway.addresses["http"]

        async def one(run_id: str) -> None:
            path = f"/v1/runs/{run_id}/events?heartbeat_s=60"
            async with connecting:
                response = await stack.enter_async_context(asked(http, path, {"accept": "text/event-stream"}))
                pieces = response.pieces()
                while b'"kind"' not in await anext(pieces):
                    pass

        await one(run_ids[0])
        await asyncio.sleep(SETTLE_S / 2)
        before = resident_kib(gateway.pid)
        await asyncio.gather(*(one(run_id) for run_id in run_ids[1:]))
        await asyncio.sleep(SETTLE_S)
        used, began = cpu_s(gateway.pid), time.perf_counter()
        await asyncio.sleep(2 * SETTLE_S)
        each = (resident_kib(gateway.pid) - before) / count
        busy = (cpu_s(gateway.pid) - used) / (time.perf_counter() - began) * 100
    setting.say(f"row 15: {each:.1f} KiB each, {busy:.1f} % of a core")
    what = f"{count:,} idle EventSources on a Gateway, each of its own run: memory each"
    return [
        Figure(row=15, what=what, value=each, unit="KiB", target="≤ 80 KiB", met=each <= 80),
        Figure(row=15, what="the same: of a core, for them all", value=busy, unit="%"),
    ]


async def invoked(setting: Setting) -> list[Figure]:
    """Row 16: a run invoked over HTTP and over gRPC, in turns."""
    count = 20 if setting.quick else 300
    http = setting.engine.servers["gateway"].addresses["http"]
    host, _, port = http.rpartition(":")
    took: dict[str, list[float]] = {"http": [], "grpc": []}
    body = json.dumps({"topic": "tea"}).encode()
    head = f"POST /v1/workflows/three/invoke HTTP/1.1\r\nhost: {http}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection(host, int(port))

    async def by_http() -> None:
        writer.write(request)
        response = await answered(reader)
        if response.status != 200:
            raise Undelivered(f"status {response.status}: {await response.body()!r}")
        await response.body()

    async def by_grpc(stub: GatewayServiceAsyncStub) -> None:
        asked_for = StartRunRequest(workflow="three", input=Payload(media_type="application/json", data=body))
        run = (await stub.InvokeWorkflow(InvokeWorkflowRequest(start=asked_for))).run
        if run.state != RUN_STATE_SUCCEEDED:
            raise Undelivered(f"run {run.run_id} ended in state {run.state}")

    async with connected(setting.engine.gateway) as stub:
        try:
            for _ in range(count):
                for name, one in (("http", by_http), ("grpc", lambda: by_grpc(stub))):
                    began = time.perf_counter()
                    await one()
                    took[name].append((time.perf_counter() - began) * 1_000)
        finally:
            writer.close()
    mine, beside = percentile(took["http"], 50), percentile(took["grpc"], 50)
    setting.say(f"row 16: p50 {mine:.2f} ms, over gRPC {beside:.2f} ms")
    return [
        Figure(row=16, what="a run invoked over HTTP, p50", value=mine, unit="ms"),
        Figure(row=16, what="the same over gRPC", value=beside, unit="ms"),
        Figure(
            row=16,
            what="what HTTP adds",
            value=mine - beside,
            unit="ms",
            target="≤ 3 ms",
            met=mine - beside <= 3,
        ),
    ]


async def restarts(setting: Setting) -> list[Figure]:
    """Row 17: a Gateway restarted ten times under EventSources and gRPC clients."""
    readers, runs, times, length_s = (10, 2, 2, 6.0) if setting.quick else (200, 40, 10, 60.0)
    scheduler = setting.engine.servers["scheduler"].addresses["grpc"]
    gateway = Gateway(setting.engine.valkey.url, scheduler)
    await gateway.start()
    try:
        async with connected(setting.engine.gateway) as stub:
            run_ids = [
                await start(stub, "deltas", begin=0, count=int(length_s * 1000 / PERIOD_MS), period_ms=PERIOD_MS)
                for _ in range(runs)
            ]
        outcome = await restarted(gateway, run_ids, readers=readers, restarts=times, pause_s=1.0)
    finally:
        await gateway.end(kill=False)
    setting.say(
        f"row 17: {outcome.readers} readers, {outcome.events:,} events, {outcome.connections} connections over HTTP"
    )
    if outcome.lost or outcome.doubled or len(outcome.seen) != outcome.readers:
        raise Undelivered(f"{outcome.lost} events lost and {outcome.doubled} doubled, of {outcome.events}")
    what = f"a Gateway restarted {times} times under {readers} EventSources and {readers} gRPC clients: events lost"
    return [Figure(row=17, what=what, value=0, unit="", target="0, and none twice", met=True)]
