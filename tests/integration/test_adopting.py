"""Runs whose deployment is gone: moved to one that lives where Schedulers are told to, and known in any case."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.runlog import CANCELLED, CANCELLING, QUEUED, a_run, append, log_of, places, record_of, status, told

from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import Workflow
from onward.v1.run_pb2 import Run
from onward_runlog import keys, registry
from onward_runlog.deployments import Deployments
from onward_runlog.runs import Runs
from onward_runlog.store import Store
from onward_scheduler import adopting
from onward_scheduler.adopting import Adopting

pytestmark = pytest.mark.usefixtures("one_partition")

BASE = keys.base(0)
LONG_AGO = float("-inf")


@pytest.fixture
async def deployments(store: Store) -> AsyncIterator[Deployments]:
    async with Deployments(store).following() as deployments:
        yield deployments


async def serve(store: Store, deployment: str, *workflows: str, ttl_s: float = 60) -> None:
    served = [Workflow(name=name) for name in workflows]
    executor = Executor(executor_id=f"of-{deployment}", deployment=deployment, workflows=served)
    await registry.register(store, executor, ttl_s=ttl_s)


async def look_after(adopting: Adopting, store: Store, runs: Runs, *, seeing_since: float = LONG_AGO) -> None:
    """What a sweep does."""
    swept = await runs.sweep()
    staffed = {executor.deployment for executor in await registry.executors(store)}
    queued = {base: partition.queued for base, partition in swept.items()}
    await adopting.look_after(queued, staffed, seeing_since=seeing_since)


async def submit(runs: Runs, run_id: str, **fields: Any) -> Run:
    run, _, _ = await runs.submit(a_run(run_id, deployment="old", **fields))
    return run


async def begin(store: Store, runs: Runs, run: Run) -> None:
    """An executor takes a run and begins."""
    [taken] = await runs.claim(BASE, run.deployment, holder="e1", ttl_s=60, limit=1)
    assert taken.run.run_id == run.run_id
    await append(store, run, taken.attempt, 1, status())


async def test_what_waits_is_moved_to_the_newest_that_lives_and_serves_it(
    store: Store, runs: Runs, deployments: Deployments
) -> None:
    """In its order, with the reason in its log; who is served by nobody stays, and so does what is in flight."""
    await serve(store, "old", "blog", "poem", ttl_s=0.001)
    await serve(store, "wide", "blog", "poem")
    await asyncio.sleep(0.002)  # Two deployments of one millisecond have no order.
    await serve(store, "new", "blog")
    held = await submit(runs, "held")
    await begin(store, runs, held)
    moved = [await submit(runs, f"r{number}") for number in range(3)]
    poem = await submit(runs, "poem", workflow="poem")
    lone = await submit(runs, "lone", workflow="gone")
    await look_after(Adopting(runs, deployments, after_s=0), store, runs)
    assert [run.run_id for run in await runs.in_line(BASE, "new", start=0, limit=9)] == ["r0", "r1", "r2"]
    assert [run.run_id for run in await runs.in_line(BASE, "wide", start=0, limit=9)] == [poem.run_id]
    assert [run.run_id for run in await runs.in_line(BASE, "old", start=0, limit=9)] == [lone.run_id]
    assert (await runs.get("default", "held")).deployment == "old"
    events = await log_of(store, moved[0])
    assert told(events) == ["QUEUED", "QUEUED"]
    assert events[-1].run_state_changed.reason == "deployment old has no executor: it goes on in new"
    [taken, *_] = await runs.claim(BASE, "new", holder="e2", ttl_s=60, limit=9)
    assert (taken.run.run_id, taken.run.deployment, taken.attempt) == ("r0", "new", 1)


async def test_who_has_to_be_alone_or_to_clean_up_stays_so(store: Store, runs: Runs, deployments: Deployments) -> None:
    """The queue of runs that are given out alone is adopted, too, and a cancelled run keeps its place in front."""
    await serve(store, "new", "blog")
    deadly = await submit(runs, "deadly")
    for attempt in (1, 2):
        await begin(store, runs, deadly)
        await runs.lose("default", "deadly", attempt, "lost")
    cancelled = await submit(runs, "cancelled")
    await begin(store, runs, cancelled)
    await runs.lose("default", "cancelled", 1, "handed_over")
    await runs.cancel("default", "cancelled", "enough")
    await runs.submit(a_run("earlier", deployment="new"))
    await look_after(Adopting(runs, deployments, after_s=0), store, runs)
    deadly.deployment = cancelled.deployment = "new"
    assert await places(store, deadly) == {"alone"}
    assert await places(store, cancelled) == {"queue"}
    assert int((await record_of(store, cancelled))["state"]) == CANCELLING
    assert told(await log_of(store, cancelled))[-2:] == ["CANCELLING", "CANCELLING"]
    [first] = await runs.claim(BASE, "new", holder="e2", ttl_s=60, limit=1)
    assert first.run.run_id == "cancelled"


async def test_two_schedulers_adopt_a_run_once(store: Store, runs: Runs, deployments: Deployments) -> None:
    """And a claim that comes between finds it in one queue or the other."""
    await serve(store, "new", "blog")
    run = await submit(runs, "run")
    both = [Adopting(runs, deployments, after_s=0) for _ in range(2)]
    await asyncio.gather(*(look_after(each, store, runs) for each in both))
    assert told(await log_of(store, run)) == ["QUEUED", "QUEUED"]
    assert not await runs.adopt("default", "run", "old", "new")
    assert not await runs.adopt("default", "run", "new", "new")
    assert not await runs.adopt("default", "nobody", "old", "new")
    [_] = await runs.claim(BASE, "new", holder="e2", ttl_s=60, limit=9)
    assert not await runs.adopt("default", "run", "new", "old")


async def test_nobody_is_moved_before_the_time_has_passed(store: Store, runs: Runs, deployments: Deployments) -> None:
    """Nor while an executor is there, nor by a Scheduler that has just begun to look, nor where it is not wanted."""
    await serve(store, "new", "blog")
    run = await submit(runs, "run")
    patient = Adopting(runs, deployments, after_s=60)
    await look_after(patient, store, runs, seeing_since=time.monotonic())
    await look_after(Adopting(runs, deployments, after_s=None), store, runs)
    await serve(store, "old", "blog")
    await look_after(patient, store, runs)
    await registry.unregister(store, "of-old")
    await look_after(patient, store, runs)  # It was here a moment ago.
    assert told(await log_of(store, run)) == ["QUEUED"]
    await look_after(Adopting(runs, deployments, after_s=60), store, runs)
    assert told(await log_of(store, run)) == ["QUEUED", "QUEUED"]


async def test_a_head_of_the_queue_that_stays_holds_up_nobody(
    store: Store, runs: Runs, deployments: Deployments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look goes on where the last one ended, and begins again at the end."""
    monkeypatch.setattr(adopting, "LOOKED_AT_MAX", 2)
    await serve(store, "new", "blog")
    for number in range(5):
        await submit(runs, f"gone{number}", workflow="gone")
    await submit(runs, "run")
    adopts = Adopting(runs, deployments, after_s=0)
    for _ in range(3):
        await look_after(adopts, store, runs)
    assert (await runs.get("default", "run")).deployment == "new"
    await serve(store, "new", "blog", "gone")
    for _ in range(4):
        await look_after(adopts, store, runs)
    assert await runs.in_line(BASE, "old", start=0, limit=9) == []


async def test_what_waits_in_vain_is_told_once(
    store: Store, runs: Runs, deployments: Deployments, caplog: pytest.LogCaptureFixture
) -> None:
    """Again only when somebody has been there meanwhile."""
    await submit(runs, "one")
    await submit(runs, "two")
    pinned = Adopting(runs, deployments, after_s=None)

    async def warnings() -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, adopting.__name__):
            await look_after(pinned, store, runs)
        return caplog.messages

    assert await warnings() == ["deployment old has no executor; runs that wait for one: 2"]
    assert await warnings() == []
    await serve(store, "old", "blog")
    assert await warnings() == []
    await registry.unregister(store, "of-old")
    assert await warnings() == []  # Not yet.
    assert told(await log_of(store, await runs.get("default", "one"))) == ["QUEUED"]


async def test_a_cancelled_run_does_not_wait_for_ever_for_somebody_to_clean_up_in(
    store: Store, deployments: Deployments
) -> None:
    """Its deployment has been gone for long, and so is its grace: it ends. What is not cancelled waits on."""
    runs = Runs(store, cancel_grace_s=0)
    begun = await submit(runs, "begun")
    await begin(store, runs, begun)
    await runs.lose("default", "begun", 1, "lost")
    await runs.cancel("default", "begun", "enough")
    waits = await submit(runs, "waits")
    await look_after(Adopting(runs, deployments, after_s=None), store, runs, seeing_since=time.monotonic())
    assert (await runs.get("default", "begun")).state == CANCELLING
    await look_after(Adopting(runs, deployments, after_s=None), store, runs)
    assert (await runs.get("default", "begun")).state == CANCELLED
    last = (await log_of(store, begun))[-1]
    assert last.run_state_changed.reason == "no executor of deployment old came to clean up"
    assert (await runs.get("default", waits.run_id)).state == QUEUED


async def test_a_run_says_that_it_waits_for_an_executor(store: Store, runs: Runs, deployments: Deployments) -> None:
    """Only while it does: not where one is there, not before its time, not while it is held, not when it has ended."""
    await serve(store, "there", "blog")
    await submit(runs, "held")
    await runs.claim(BASE, "old", holder="e1", ttl_s=60, limit=1)
    await submit(runs, "waits")
    await submit(runs, "later", schedule_time=Timestamp(seconds=4_000_000_000))
    await runs.submit(a_run("staffed", deployment="there"))
    await submit(runs, "ended")
    await runs.cancel("default", "ended", "enough")
    found = [await runs.get("default", run_id) for run_id in ("waits", "held", "later", "staffed", "ended")]
    await deployments.explain(found)
    assert [run.waiting_for for run in found] == ["an executor of deployment old", "", "", "", ""]
