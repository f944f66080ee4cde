"""Runs that wait, as the store sees them: parked, woken by a time or a signal, ended by others; each in one step."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.runlog import (
    CANCELLING,
    FAILED,
    QUEUED,
    RUNNING,
    WAITING,
    a_run,
    append,
    log_of,
    park,
    places,
    record_of,
    status,
    told,
)

from onward.v1.event_pb2 import AttemptCause
from onward.v1.gateway_service_pb2 import SignalRunRequest
from onward.v1.run_pb2 import Run
from onward_runlog import keys
from onward_runlog.errors import WrongState
from onward_runlog.listing import Filter, Listing
from onward_runlog.runs import SWEEP_MAX, Runs
from onward_runlog.store import Store

pytestmark = pytest.mark.usefixtures("one_partition")

BASE = keys.base(0)
WOKEN = AttemptCause.ATTEMPT_CAUSE_WOKEN


async def parked(store: Store, runs: Runs, *names: str, run: Run | None = None, wake_ms: int | str = "") -> Run:
    """A run that waits."""
    run = run or a_run()
    await runs.submit(run, holder="e1", ttl_s=60)
    await append(store, run, 1, 1, status())
    assert (await park(store, run, 1, 2, 2, *names, wake_ms=wake_ms)).status == "ok"
    return run


def signal(run: Run, name: str = "go") -> SignalRunRequest:
    return SignalRunRequest(run_id=run.run_id, name=name)


async def test_a_parked_run_is_held_by_nobody_and_says_what_it_waits_for(store: Store, runs: Runs) -> None:
    """In its record, in listings, and by the timer."""
    run = await parked(store, runs, "go", wake_ms=3_600_000)
    kept = await runs.get("default", "run")
    assert (kept.state, kept.executor_id, kept.waiting_for) == (WAITING, "", "a reason")
    assert kept.HasField("wake_time")
    assert await places(store, run) == {"wake"}
    page = await Listing(store).page(
        Filter(namespace="default", states=frozenset({WAITING}), labels={}), size=10, token=""
    )
    assert [listed.waiting_for for listed in page.runs] == ["a reason"]
    assert told(await log_of(store, run)) == ["QUEUED", "x", "run_waiting"]


async def test_what_an_attempt_has_not_read_keeps_it_from_parking(store: Store, runs: Runs) -> None:
    """A signal that came before keeps it running; one that comes after wakes it. Neither is lost."""
    run = a_run()
    await runs.submit(run, holder="e1", ttl_s=60)
    await append(store, run, 1, 1, status())
    await runs.signal("default", signal(run))
    refused = await park(store, run, 1, 2, 2, "go")
    assert (refused.status, refused.state, refused.last_offset) == ("stale", RUNNING, 3)
    assert (await park(store, run, 1, 2, 3, "go")).status == "ok"
    await runs.signal("default", signal(run))
    assert (await runs.get("default", "run")).state == QUEUED


async def test_parking_and_a_signal_at_once(store: Store, runs: Runs) -> None:
    """A hundred times: afterwards the run is either not parked or queued again."""
    for number in range(100):
        run = a_run(f"run-{number}", deployment=f"build-{number}")
        await runs.submit(run, holder="e1", ttl_s=60)
        await append(store, run, 1, 1, status())
        signalling = asyncio.create_task(runs.signal("default", signal(run)))
        if number % 2:
            await asyncio.sleep(0)
        reply = await park(store, run, 1, 2, 2, "go")
        await signalling
        state = (await runs.get("default", run.run_id)).state
        assert (reply.status, state) in (("stale", RUNNING), ("ok", QUEUED))


async def test_a_woken_run_is_queued_with_its_cause(store: Store, runs: Runs) -> None:
    """Nothing of its waiting is left."""
    run = await parked(store, runs, "go", wake_ms=3_600_000)
    await runs.signal("default", signal(run, "other"))
    assert (await runs.get("default", "run")).state == WAITING
    await runs.signal("default", signal(run))
    assert await places(store, run) == {"queue"}
    assert {"waiting", "wake", "awaited"}.isdisjoint(await record_of(store, run))
    [taken] = await runs.claim(BASE, "build", holder="e2", ttl_s=60, limit=1)
    assert (taken.attempt, taken.cause, taken.run.log.last_offset) == (2, WOKEN, 6)


async def test_a_timer_wakes_by_the_clock_of_the_store(store: Store, runs: Runs) -> None:
    """Once, though every Scheduler sweeps."""
    run = await parked(store, runs, wake_ms=0)
    await asyncio.gather(*(runs.sweep() for _ in range(5)))
    assert await places(store, run) == {"queue"}
    assert told(await log_of(store, run)) == ["QUEUED", "x", "run_waiting", "QUEUED"]


async def test_thousands_that_wake_at_once_are_queued_bit_by_bit(store: Store, runs: Runs) -> None:
    """A sweep takes so many; a run of somebody else that came before most of them is not kept waiting by them."""
    count = 2 * SWEEP_MAX + 200
    for first in range(0, count, 200):
        batch = [a_run(f"run-{number}", fairness_key="crowd") for number in range(first, first + 200)]
        await asyncio.gather(*(parked(store, runs, run=run, wake_ms=0) for run in batch))
    queued = []
    for _ in range(3):
        swept = (await runs.sweep())[BASE]
        queued.append(swept.queued["build"])
        await runs.submit(a_run(f"other-{len(queued)}", fairness_key="others"))
    assert queued == [SWEEP_MAX, 2 * SWEEP_MAX + 1, count + 2]
    taken = await runs.claim(BASE, "build", holder="e2", ttl_s=60, limit=8)
    assert {each.run.run_id for each in taken} >= {"other-1", "other-2", "other-3"}


async def test_a_parked_run_has_not_lost_an_executor(store: Store, runs: Runs) -> None:
    """What is said of the attempt that parked it changes nothing."""
    run = await parked(store, runs, "go")
    assert not await runs.lose("default", "run", 1, "lost")
    assert (await append(store, run, 1, 3, status())).status == "fenced"
    assert (await record_of(store, run))["deaths"] == b"0"


async def test_cancelling_a_parked_run_lets_its_code_clean_up(store: Store, runs: Runs) -> None:
    """In an attempt of its own; its timer does not wake it any more."""
    run = await parked(store, runs, "go", wake_ms=0)
    kept, _ = await runs.cancel("default", "run", "enough")
    assert kept.state == CANCELLING
    await runs.sweep()
    await runs.signal("default", signal(run))
    assert await places(store, run) == {"queue"}
    [taken] = await runs.claim(BASE, "build", holder="e2", ttl_s=60, limit=1)
    assert (taken.cause, taken.run.state) == (AttemptCause.ATTEMPT_CAUSE_CANCELLED, CANCELLING)


async def test_a_deadline_ends_a_parked_run(store: Store, runs: Runs) -> None:
    """Its timer goes with it."""
    run = await parked(store, runs, "go", run=a_run(deadline=Timestamp(seconds=1)), wake_ms=3_600_000)
    assert await runs.expel("default", "run") is not None
    assert (await runs.get("default", "run")).state == FAILED
    assert await places(store, run) == {"expiry"}


async def test_a_resumption_whose_reply_was_lost_finds_the_parked_run_awake(store: Store, runs: Runs) -> None:
    """The repeat changes nothing, and is no error; to another build it is none."""
    run = await parked(store, runs, "go", wake_ms=3_600_000)
    first = await runs.resume("default", "run")
    assert await runs.resume("default", "run") == first
    assert told(await log_of(store, run))[-1:] == ["QUEUED"]
    assert first.log.last_offset == len(await log_of(store, run))
    with pytest.raises(WrongState):
        await runs.resume("default", "run", deployment="new")


async def test_a_parked_run_can_be_moved_to_another_build(store: Store, runs: Runs) -> None:
    """By resuming it, which also wakes it."""
    run = await parked(store, runs, "go", wake_ms=3_600_000)
    assert (await runs.resume("default", "run", deployment="new")).deployment == "new"
    assert "queue" not in await places(store, run)
    [taken] = await runs.claim(BASE, "new", holder="e2", ttl_s=60, limit=1)
    assert (taken.run.run_id, taken.cause) == ("run", WOKEN)
