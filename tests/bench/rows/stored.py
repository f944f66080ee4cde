"""Rows 5 and 8: what is stored already, a long log and a long list."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from typing import TYPE_CHECKING

from tests.bench.client import Undelivered, connected, follow
from tests.bench.figures import Figure, Rounds, percentile
from tests.bench.floor.pipe import Pipe, log_key, pipe

from onward.v1.event_pb2 import CHANNEL_TEXT, Event, OutputDelta, RunStateChanged
from onward.v1.gateway_service_pb2 import ListRunsRequest
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_QUEUED, RUN_STATE_SUCCEEDED, Payload, Run
from onward_runlog.runs import Runs
from onward_runlog.store import Store, open_store
from onward_runlog.writer import LogWriter

if TYPE_CHECKING:
    from tests.bench.setting import Setting

NAMESPACE = "default"

AT_ONCE = 1_000
"""Runs stored at the same time."""

PAGE = 50
LABELS = 20


async def history(setting: Setting) -> list[Figure]:
    """Row 5: reading a finished log."""
    count, turns = (5_000, 3) if setting.quick else (100_000, 5)
    began = time.perf_counter()
    async with open_store(setting.engine.valkey.url) as store, pipe(setting.floor.valkey.url) as floor_store:
        run_ids = {"engine": await _write_log(store, count), "floor": await _write_floor_log(floor_store, count)}
    setting.say(f"row 5: wrote two logs of {count:,} events in {time.perf_counter() - began:.1f} s")
    rates: dict[str, list[float]] = {"engine": [], "floor": []}
    for turn in range(turns):
        for suite in setting.both(turn):
            async with connected(suite.gateway) as stub:
                began = time.perf_counter()
                got = await follow(stub, run_ids[suite.name])
                rates[suite.name].append(got.events / (time.perf_counter() - began))
                if got.events != count:
                    raise Undelivered(f"{suite.name}: {got.events} events of {count}")
        setting.say(
            f"row 5, round {turn + 1} of {turns}: {rates['engine'][-1]:,.0f} events/s, floor {rates['floor'][-1]:,.0f}"
        )
    rounds = Rounds(rates["engine"], rates["floor"])
    met = statistics.median(rounds.engine) >= 200_000
    return [rounds.figure(5, f"reading a finished log of {count:,} events", "/s", target="≥ 200,000/s", met=met)]


async def listing(setting: Setting) -> list[Figure]:
    """Row 8: a page of a long list."""
    count, calls = (2_000, 20) if setting.quick else (100_000, 100)
    began = time.perf_counter()
    async with open_store(setting.engine.valkey.url) as store, pipe(setting.floor.valkey.url) as floor_store:
        await _fill(store, count)
        await _fill_floor(floor_store, count)
    setting.say(f"row 8: stored {count:,} runs twice in {time.perf_counter() - began:.1f} s")
    figures = []
    async with connected(setting.engine.gateway) as engine, connected(setting.floor.gateway) as floor:
        newest = ListRunsRequest(page_size=PAGE)
        token = (await engine.ListRuns(ListRunsRequest(page_size=1000))).next_page_token
        requests = {
            "the newest": newest,
            "a later page": ListRunsRequest(page_size=PAGE, page_token=token),
            "one label, of 5 %": ListRunsRequest(page_size=PAGE, labels={"team": "t7"}),
            "a workflow, a state and a label": ListRunsRequest(
                page_size=PAGE, workflow="listed", states=[RUN_STATE_CANCELLED], labels={"team": "t7"}
            ),
        }
        taken: dict[str, list[float]] = {name: [] for name in requests}
        beside: list[float] = []
        for _ in range(calls):
            for name, request in requests.items():
                began = time.perf_counter()
                response = await engine.ListRuns(request)
                taken[name].append((time.perf_counter() - began) * 1000)
                if not response.runs or (name == "the newest" and len(response.runs) != PAGE):
                    raise Undelivered(f"a page of {name} holds {len(response.runs)} runs")
            began = time.perf_counter()
            if len((await floor.ListRuns(newest)).runs) != PAGE:
                raise Undelivered("a page of the floor is not full")
            beside.append((time.perf_counter() - began) * 1000)
    theirs = percentile(beside, 50)
    for name, times in taken.items():
        mine = percentile(times, 50)
        setting.say(f"row 8, {name}: p50 {mine:.2f} ms, p99 {percentile(times, 99):.2f} ms; floor p50 {theirs:.2f} ms")
        figures.append(
            Figure(
                row=8,
                what=f"a page of {PAGE} of {count:,} runs, {name}, p50",
                value=mine,
                unit="ms",
                floor=theirs,
                ratio=mine / theirs,
                target="≤ 10 ms",
                met=mine <= 10,
            )
        )
    return figures


async def _write_log(store: Store, count: int) -> str:
    run = Run(run_id=secrets.token_hex(13), namespace=NAMESPACE, workflow="deltas", deployment="stored")
    _, _, taken = await Runs(store).submit(run, holder="bench", ttl_s=60.0)
    assert taken is not None
    async with LogWriter(store).opened() as writer:
        log = writer.log(NAMESPACE, run.run_id, taken.attempt)
        for number in range(count - 2):  # the first is QUEUED
            log.post(_delta(number))
            await log.room()
        await log.finish(_succeeded())
    return run.run_id


async def _write_floor_log(store: Pipe, count: int) -> str:
    run_id = secrets.token_hex(13)
    for number in range(1, count + 1):
        event = _succeeded() if number == count else _delta(number)
        event.offset = number
        event.attempt = 1
        written = store.call("XADD", log_key(run_id), f"{number}-0", "e", event.SerializeToString())
        if number % AT_ONCE == 0 or number == count:
            await written
    return run_id


def _delta(number: int) -> Event:
    event = Event(output_delta=OutputDelta(channel=CHANNEL_TEXT, text=f"token {number % 1000} "))
    event.create_time.FromNanoseconds(time.time_ns())
    return event


def _succeeded() -> Event:
    data = b'"the end"'
    changed = RunStateChanged(state=RUN_STATE_SUCCEEDED, output=Payload(data=data, size=len(data)))
    event = Event(run_state_changed=changed)
    event.create_time.FromNanoseconds(time.time_ns())
    return event


def _listed(number: int) -> Run:
    run = Run(
        run_id=secrets.token_hex(13),
        namespace=NAMESPACE,
        workflow="listed" if number % 2 else "other",
        deployment="stored",
        state=RUN_STATE_QUEUED,
        labels={"team": f"t{number // 2 % LABELS}"},
    )
    run.input.data = b'{"topic": "tea"}'
    run.schedule_time.FromSeconds(int(time.time()) + 24 * 3600)
    return run


async def _fill(store: Store, count: int) -> None:
    """Store runs: a quarter was cancelled, the others wait for tomorrow."""
    runs = Runs(store)

    async def one(number: int) -> None:
        run = _listed(number)
        await runs.submit(run)
        if number // (2 * LABELS) % 4 == 0:
            await runs.cancel(NAMESPACE, run.run_id, "")

    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def _fill_floor(store: Pipe, count: int) -> None:
    for number in range(count):
        run = _listed(number)
        run.create_time.FromNanoseconds(time.time_ns())
        run.ClearField("input")
        store.send("SET", f"run:{run.run_id}", run.SerializeToString())
        stored = store.call("ZADD", "runs", run.create_time.ToMicroseconds(), run.run_id)
        if number % AT_ONCE == AT_ONCE - 1 or number == count - 1:
            await stored
