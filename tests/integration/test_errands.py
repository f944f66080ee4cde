"""What runs ask of each other, done twice or too late: it comes to the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.runlog import CANCELLED, FAILED, QUEUED, SUCCEEDED, a_run, append, ended, log_of

from onward.log import ACCEPTED, ENDED
from onward.v1.errand_pb2 import ContinueRun, Errand, TellEnd
from onward.v1.event_pb2 import Event, RunStateChanged
from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import SignalRunRequest, StartRunRequest, Workflow
from onward.v1.run_pb2 import Payload, Run
from onward.v1.scheduler_service_pb2 import StopRunRequest, SubmitRunRequest
from onward_runlog import keys, registry
from onward_runlog.deployments import Deployments
from onward_runlog.errors import RunNotFound
from onward_runlog.runs import Entry, Runs
from onward_runlog.store import Store
from onward_scheduler.accepting import Accepting
from onward_scheduler.dispatching import Dispatcher
from onward_scheduler.errands import UNSEEN_TRIES_MAX, Errands
from onward_scheduler.outbox import Later
from onward_serving.tls import Peers


@pytest.fixture
async def errands(store: Store, runs: Runs) -> AsyncIterator[Errands]:
    async with (
        Deployments(store).following() as deployments,
        Dispatcher(store, runs, Peers(), lease_ttl_s=60, cancel_grace_s=1).dispatching() as dispatcher,
    ):
        yield Errands(runs, dispatcher, Accepting(runs, dispatcher, deployments, Workflow()))


@pytest.fixture
async def parent(runs: Runs) -> Run:
    """A run that is held."""
    run, _, _ = await runs.submit(a_run("parent"), holder="hand", ttl_s=60)
    return run


async def serve(store: Store, name: str = "part", deployment: str = "build", schema: bytes = b"") -> None:
    executor = Executor(executor_id=deployment, deployment=deployment, address="127.0.0.1:1")
    executor.workflows.add(name=name, input_schema=Payload(data=schema))
    await registry.register(store, executor, ttl_s=60)


async def asked(store: Store, runs: Runs, parent: Run, errand: Errand, sequence: int = 1) -> Entry:
    """Have the parent ask, and return the entry."""
    await append(store, parent, 1, sequence, outbox=[errand.SerializeToString()])
    entries = [entry for base in store.bases() for entry in await runs.take(base, busy_s=60)]
    return next(entry for entry in entries if entry.kind == "errand")


def start_child(*, detached: bool = False, workflow: str = "part") -> Errand:
    start = StartRunRequest(workflow=workflow, run_id="child", input=Payload(data=b"{}", size=2))
    return Errand(start_child=SubmitRunRequest(start=start, detached=detached, depth=1))


def signals(events: list[Event]) -> list[tuple[str, Run]]:
    received = [event.signal_received for event in events if event.HasField("signal_received")]
    return [(signal.name, Run.FromString(signal.value.data)) for signal in received]


async def test_a_start_that_is_done_again_starts_nothing(
    store: Store, runs: Runs, errands: Errands, parent: Run
) -> None:
    """By one Scheduler after the other, or by two at once."""
    await serve(store)
    entry = await asked(store, runs, parent, start_child())
    await asyncio.gather(errands.do(entry), errands.do(entry))
    await errands.do(entry)
    [child] = await runs.children("default", "parent")
    assert (child.run_id, child.parent_run_id, child.depth, child.state) == ("child", "parent", 1, QUEUED)
    [(name, told)] = signals(await log_of(store, parent))
    assert (name, told.HasField("error")) == (ACCEPTED + "child", False)


@pytest.mark.parametrize(("seconds", "nanos"), [(1 << 62, 0), (-(1 << 62), 0), (0, -1)])
async def test_a_child_at_a_time_that_is_none_is_refused(
    store: Store, runs: Runs, errands: Errands, parent: Run, seconds: int, nanos: int
) -> None:
    """Else the errand would be done again for ever. The SDK asks for no such thing; others may."""
    await serve(store)
    errand = start_child()
    errand.start_child.start.schedule_time.CopyFrom(Timestamp(seconds=seconds, nanos=nanos))
    await errands.do(await asked(store, runs, parent, errand))
    [(_, told)] = signals(await log_of(store, parent))
    assert (told.error.reason, told.error.retryable) == ("REQUEST_INVALID", False)
    assert await runs.children("default", "parent") == []


@pytest.mark.parametrize(
    "labels",
    [{str(number): "" for number in range(33)}, {"k" * 65: ""}, {"key": "é" * 129}],
    ids=["many", "key", "value"],
)
async def test_a_child_with_too_large_labels_is_refused(
    store: Store, runs: Runs, errands: Errands, parent: Run, labels: dict[str, str]
) -> None:
    """Every label is an index, and stands on every page of runs. The SDK asks for no such thing; others may."""
    await serve(store)
    errand = start_child()
    errand.start_child.start.labels.update(labels)
    await errands.do(await asked(store, runs, parent, errand))
    [(_, told)] = signals(await log_of(store, parent))
    assert (told.error.reason, told.error.retryable) == ("TOO_LARGE", False)
    assert await runs.children("default", "parent") == []


async def test_what_was_refused_stays_refused(store: Store, runs: Runs, errands: Errands, parent: Run) -> None:
    """Also where somebody serves it when the errand comes again: its parent has been told."""
    entry = await asked(store, runs, parent, start_child())
    await errands.do(entry)
    await serve(store)
    await errands.do(entry)
    [(_, told)] = signals(await log_of(store, parent))
    assert (told.error.reason, told.error.retryable) == ("WORKFLOW_NOT_FOUND", True)
    assert await runs.children("default", "parent") == []


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000])
async def test_input_that_is_no_json_is_refused(
    store: Store, runs: Runs, errands: Errands, parent: Run, data: bytes
) -> None:
    """Its parent is told, like of any input that does not fit."""
    await serve(store, schema=b'{"type": "object"}')
    errand = start_child()
    errand.start_child.start.input.data = data
    await errands.do(await asked(store, runs, parent, errand))
    [(_, told)] = signals(await log_of(store, parent))
    assert (told.error.reason, told.error.retryable) == ("INPUT_INVALID", False)


async def test_a_parent_that_has_ended_gets_no_child_but_a_detached_one(
    store: Store, runs: Runs, errands: Errands, parent: Run
) -> None:
    """What it asked for while it lived is done after its end."""
    await serve(store)
    for detached in (False, True):
        run, _, _ = await runs.submit(a_run(f"parent-{detached}"), holder="hand", ttl_s=60)
        entry = await asked(store, runs, run, start_child(detached=detached))
        await append(store, run, 1, 2, ended(), end=SUCCEEDED)
        await errands.do(entry)
        assert len(await runs.children("default", run.run_id)) == detached


async def test_a_child_that_was_accepted_beside_its_parents_end_is_cancelled(
    store: Store, runs: Runs, errands: Errands, parent: Run
) -> None:
    """The Scheduler that accepted it died before it looked; the errand comes again."""
    await serve(store)
    entry = await asked(store, runs, parent, start_child())
    await runs.submit(a_run("child", workflow="part", parent_run_id="parent"))
    await append(store, parent, 1, 2, ended(), end=SUCCEEDED)
    await errands.do(entry)
    assert (await runs.get("default", "child")).state == CANCELLED


async def test_a_run_is_kept_until_everybody_has_been_told_of_it(
    store: Store, runs: Runs, errands: Errands, parent: Run
) -> None:
    """Past its retention, too: no Scheduler was there for so long, and its parent waits for it."""
    brief = Runs(store, retention_s=0)
    child = a_run("child", parent_run_id="parent")
    await brief.submit(child)
    await brief.cancel("default", "child", "enough")
    base, ref = store.place("default", "child")
    await brief.sweep()
    [entry] = await runs.take(base, busy_s=60)
    await errands.end(entry)
    [(name, told)] = signals(await log_of(store, parent))
    assert (name, told.state) == (ENDED + "child", CANCELLED)
    for _ in range(2):
        await runs.settle(entry)
    await store.command("ZADD", f"{base}:timers", 1, f"x:{ref}")
    await brief.sweep()
    with pytest.raises(RunNotFound):
        await runs.get("default", "child")
    await runs.settle(entry)
    assert await store.command("EXISTS", keys.run(base, ref)) == 0, "a repeat brings no record back"


async def test_an_end_is_told_once_and_ends_the_children(
    store: Store, runs: Runs, errands: Errands, parent: Run
) -> None:
    """Those that are not detached."""
    run, _, _ = await runs.submit(a_run("child", parent_run_id="parent"), holder="hand", ttl_s=60)
    for name, detached in (("own", False), ("detached", True)):
        await runs.submit(a_run(name, parent_run_id="child", detached=detached))
    await append(store, run, 1, 1, ended(), end=SUCCEEDED, output=Payload(data=b"7", size=1).SerializeToString())
    [entry] = [entry for base in store.bases() for entry in await runs.take(base, busy_s=60)]
    assert entry.kind == "ended"
    await asyncio.gather(errands.end(entry), errands.end(entry))
    [(name, told)] = signals(await log_of(store, parent))
    assert (name, told.state, told.output.data) == (ENDED + "child", SUCCEEDED, b"7")
    states = {child.run_id: child.state for child in await runs.children("default", "child")}
    assert states == {"own": CANCELLED, "detached": QUEUED}


async def test_who_is_to_be_stopped_and_is_not_there_yet_is_looked_for_again(
    store: Store, runs: Runs, errands: Errands, parent: Run
) -> None:
    """Its start may be under way; but not for ever."""
    entry = await asked(store, runs, parent, Errand(stop_child=StopRunRequest(run_id="child")))
    with pytest.raises(Later):
        await errands.do(entry)
    await runs.submit(a_run("child", parent_run_id="parent"))
    await errands.do(entry)
    assert (await runs.get("default", "child")).state == CANCELLED
    gone = Errand(stop_child=StopRunRequest(run_id="gone")).SerializeToString()
    await errands.do(Entry(entry.base, entry.id, gone, tries=9))


async def going_on(store: Store, runs: Runs, *, signals: int, cancelled: bool = False) -> Entry:
    """Return the errand of a run that goes on, and has taken the first of these signals and no other."""
    await serve(store)
    run, _, _ = await runs.submit(a_run("first", workflow="part"), holder="hand", ttl_s=60)
    for number in range(signals):  # offsets 2 and on
        value = Payload(data=b"%d" % number, size=1)
        request_id = "named" if number == 1 else ""
        signal = SignalRunRequest(run_id="first", name="say", value=value, request_id=request_id)
        await runs.signal("default", signal)
    start = StartRunRequest(workflow="part", run_id="second", input=Payload(data=b'{"n":1}', size=7))
    submit = SubmitRunRequest(start=start, continued_from_run_id="first", first_run_id="first")
    following = ContinueRun(submit=submit, signals=[3] if signals > 1 else [], through_offset=4)
    change = RunStateChanged(state=SUCCEEDED, continued_as_run_id="second")
    errand = Errand(continue_run=following).SerializeToString()
    if cancelled:
        await runs.cancel("default", "first", "enough")
    reply = await append(store, run, 1, 1, Event(run_state_changed=change), end=f"{SUCCEEDED} second", outbox=[errand])
    assert (reply.status, reply.state) == ("ok", SUCCEEDED)
    entries = [entry for base in store.bases() for entry in await runs.take(base, busy_s=60)]
    [entry] = [entry for entry in entries if entry.kind == "errand"]
    return entry


async def said(store: Store, run: Run) -> list[bytes]:
    received = [event.signal_received for event in await log_of(store, run) if event.HasField("signal_received")]
    return [signal.value.data for signal in received]


async def test_a_run_goes_on_once_with_the_signals_that_nobody_took(store: Store, runs: Runs, errands: Errands) -> None:
    """The record, the closing event and the errand are one step; GetRun says where it goes on."""
    entry = await going_on(store, runs, signals=4)
    first = await runs.get("default", "first")
    assert (first.continued_as_run_id, first.HasField("output")) == ("second", False)
    with pytest.raises(RunNotFound):
        await runs.get("default", "second")
    await errands.do(entry)
    await errands.do(entry)
    second = await runs.get("default", "second")
    assert (second.continued_from_run_id, second.first_run_id, second.state) == ("first", "first", QUEUED)
    assert await said(store, second) == [b"1", b"3"]
    assert [event.offset for event in await log_of(store, second)] == [1, 2, 3] == [1, 2, second.log.last_offset]
    again = SignalRunRequest(run_id="second", name="say", value=Payload(data=b"1", size=1), request_id="named")
    assert (await runs.signal("default", again))[:2] == (2, True), "it was sent before, to the first"
    for key in await store.command("KEYS", "*default/second:*"):
        assert await store.command("PTTL", key) == -1


async def test_what_is_sent_to_a_run_that_goes_on_comes_after_what_was_sent_before(
    store: Store, runs: Runs, errands: Errands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However early: who sends one after the other finds them taken in that order."""
    entry = await going_on(store, runs, signals=600)  # more than are read at a time
    submit = Accepting.submit

    async def and_send(self: Accepting, *args: Any, **kwargs: Any) -> Any:
        accepted = await submit(self, *args, **kwargs)
        value = Payload(data=b"last", size=4)
        await runs.signal("default", SignalRunRequest(run_id="second", name="say", value=value))
        return accepted

    monkeypatch.setattr(Accepting, "submit", and_send)
    await errands.do(entry)
    sent = [b"%d" % number for number in (1, *range(3, 600))]
    assert await said(store, await runs.get("default", "second")) == [*sent, b"last"]


async def test_a_run_that_went_on_when_it_was_cancelled_is_cancelled_as_what_it_is_now(
    store: Store, runs: Runs, errands: Errands
) -> None:
    """Its executor had not heard of it by then."""
    entry = await going_on(store, runs, signals=0, cancelled=True)
    await errands.do(entry)
    second = await runs.get("default", "second")
    assert second.state == CANCELLED
    assert (await log_of(store, second))[-1].run_state_changed.reason == "run first was cancelled when it went on"


async def test_a_run_without_signals_goes_on_without_any(store: Store, runs: Runs, errands: Errands) -> None:
    await errands.do(await going_on(store, runs, signals=0))
    second = await runs.get("default", "second")
    assert (second.log.last_offset, second.state) == (1, QUEUED)


async def told_to_a_fork(store: Store, runs: Runs, errands: Errands, child: str = "child") -> list[tuple[str, Run]]:
    """Ask for a child's end on behalf of a fork that is held, and return what the fork is told."""
    run, _, _ = await runs.submit(a_run("fork", forked_from_run_id="parent"), holder="hand", ttl_s=60)
    base, ref = store.place("default", "fork")
    what = Errand(tell_end=TellEnd(run_id=child)).SerializeToString()
    await errands.do(Entry(base, f"errand.0.0.1:{ref}", what, tries=1))
    return signals(await log_of(store, run))


async def test_a_fork_is_told_of_the_end_of_a_child_that_is_not_its_own(
    store: Store, runs: Runs, errands: Errands
) -> None:
    """When it has ended, and once."""
    child, _, _ = await runs.submit(a_run("child", parent_run_id="parent"), holder="hand", ttl_s=60)
    with pytest.raises(Later):
        await told_to_a_fork(store, runs, errands)
    await append(
        store, child, 1, 1, ended(SUCCEEDED), end=SUCCEEDED, output=Payload(data=b"7", size=1).SerializeToString()
    )
    for _ in range(2):
        [(name, told)] = await told_to_a_fork(store, runs, errands)
    assert (name, told.state, told.output.data) == (f"{ENDED}child", SUCCEEDED, b"7")


async def test_a_fork_is_told_of_the_last_that_a_child_goes_on_as(store: Store, runs: Runs, errands: Errands) -> None:
    """By the name of the first, which is what it waits for."""
    child, _, _ = await runs.submit(a_run("child", parent_run_id="parent"), holder="hand", ttl_s=60)
    change = RunStateChanged(state=SUCCEEDED, continued_as_run_id="next")
    await append(store, child, 1, 1, Event(run_state_changed=change), end=f"{SUCCEEDED} next")
    with pytest.raises(Later, match="not there"):
        await told_to_a_fork(store, runs, errands)
    following = a_run("next", parent_run_id="parent", continued_from_run_id="child", first_run_id="child")
    await runs.submit(following)
    with pytest.raises(Later, match="next has not ended"):
        await told_to_a_fork(store, runs, errands)
    await runs.cancel("default", "next", "")
    [(name, told)] = await told_to_a_fork(store, runs, errands)
    assert (name, told.run_id, told.state) == (f"{ENDED}child", "next", CANCELLED)


async def test_a_fork_does_not_wait_for_a_child_that_is_gone(store: Store, runs: Runs, errands: Errands) -> None:
    """It is told so. And nobody is told who has ended."""
    [(_, told)] = await told_to_a_fork(store, runs, errands, "gone")
    assert (told.state, told.error.reason) == (FAILED, "RUN_NOT_FOUND")
    await runs.submit(a_run("child", parent_run_id="parent"))
    base, ref = store.place("default", "over")
    what = Errand(tell_end=TellEnd(run_id="child")).SerializeToString()
    await errands.do(Entry(base, f"errand.0.0.1:{ref}", what, tries=1))


async def test_a_start_that_comes_through_after_its_stop_starts_nothing(
    store: Store, runs: Runs, errands: Errands, parent: Run
) -> None:
    """The queue was full for long: the try that asked for it has failed, and the next one has started another child."""
    await serve(store)
    start = await asked(store, runs, parent, start_child())
    stop = Errand(stop_child=StopRunRequest(run_id="child", reason="the try that started it failed"))
    await append(store, parent, 1, 2, outbox=[stop.SerializeToString()])
    for tries in range(1, UNSEEN_TRIES_MAX + 1):
        entries = [entry for base in store.bases() for entry in await runs.take(base, busy_s=0)]
        [entry] = [entry for entry in entries if entry.id != start.id]
        if tries < UNSEEN_TRIES_MAX:
            with pytest.raises(Later):
                await errands.do(entry)
    await errands.do(entry)
    await errands.do(start)
    assert await runs.children("default", "parent") == []
    await errands.do(entry)  # Done twice, as all of them may be.


async def test_nobody_stops_the_children_of_others(store: Store, runs: Runs, errands: Errands, parent: Run) -> None:
    """A fork knows their names."""
    await runs.submit(a_run("child", parent_run_id="other"))
    await errands.do(await asked(store, runs, parent, Errand(stop_child=StopRunRequest(run_id="child"))))
    assert (await runs.get("default", "child")).state == QUEUED
