"""The transitions of a run that are not its executor's: each is one atomic step, whatever state it meets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.proxy import proxy_to
from tests.runlog import (
    CANCELLED,
    CANCELLING,
    FAILED,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    a_run,
    all_keys,
    append,
    ended,
    eventually,
    listed_in,
    log_of,
    places,
    record_of,
    status,
    told,
)

from onward.v1.event_pb2 import AttemptCause
from onward.v1.gateway_service_pb2 import SignalRunRequest
from onward.v1.run_pb2 import Payload, Run, RunState
from onward_runlog import keys
from onward_runlog.errors import LogAtLimit, QueueFull, RequestReused, RunNotFound, WrongState
from onward_runlog.runs import Holder, Lease, Runs, Taken, new_run_id
from onward_runlog.store import Store, open_store

pytestmark = pytest.mark.usefixtures("one_partition")

BASE = keys.base(0)


async def claim(runs: Runs, limit: int = 1, *, ttl_s: float = 60, holder: str = "e1") -> list[Taken]:
    return await runs.claim(BASE, "build", holder=holder, ttl_s=ttl_s, limit=limit)


async def claimed_ids(runs: Runs, limit: int = 1) -> list[str]:
    return [taken.run.run_id for taken in await claim(runs, limit)]


async def running(store: Store, runs: Runs, run: Run | None = None, *, ttl_s: float = 60) -> Run:
    """A run that executor e1 holds and has begun."""
    run = run or a_run()
    await runs.submit(run, holder="e1", ttl_s=ttl_s)
    assert (await append(store, run, 1, 1, status("began"))).status == "ok"
    return run


async def die(store: Store, runs: Runs, run: Run, why: str = "lost", *, alone: bool = False) -> None:
    """Claim the run, begin, and be lost."""
    queue = keys.alone("build") if alone else "build"
    [taken] = await runs.claim(BASE, queue, holder="e1", ttl_s=60, limit=1)
    assert taken.alone == alone
    await append(store, run, taken.attempt, 1, status(f"attempt {taken.attempt}"))
    assert await runs.lose(run.namespace, run.run_id, taken.attempt, why)


def after(seconds: float) -> Timestamp:
    then = Timestamp()
    then.GetCurrentTime()
    then.FromNanoseconds(then.ToNanoseconds() + int(seconds * 1e9))
    return then


async def state_of(runs: Runs, run: Run) -> RunState.ValueType:
    return (await runs.get(run.namespace, run.run_id)).state


async def passes(store: Store, member: str) -> None:
    """Let the time of a timer come."""
    assert await store.command("ZADD", f"{BASE}:timers", "XX", "CH", 1, member) == 1


# Submit


async def test_a_submitted_run_is_queued_and_its_log_says_so(store: Store, runs: Runs) -> None:
    """One step: record, first event, place in the queue, indexes."""
    run = a_run(labels={"team": "a=b"}, parent_run_id="mother", priority=3, fairness_key="tenant")
    kept, replayed, taken = await runs.submit(run, trace_parent="00-aa-bb-01")
    assert (kept.state, kept.attempt, kept.log.last_offset, replayed, taken) == (QUEUED, 0, 1, False, None)
    assert (kept.HasField("input"), kept.labels, kept.priority) == (False, run.labels, 3)
    assert kept.log.log_id
    assert told(await log_of(store, run)) == ["QUEUED"]
    assert await places(store, run) == {"queue"}
    assert await listed_in(store, run) == {"all", "w=blog", "l=4=team=a=b", "p=mother", "s=1"}
    kept.input.CopyFrom(run.input)
    assert await runs.get("default", "run") == kept


async def test_a_repeat_returns_the_first_run_and_changes_nothing(store: Store, runs: Runs) -> None:
    """Also after the run has gone on."""
    first, _, _ = await runs.submit(a_run())
    again, replayed, _ = await runs.submit(a_run())
    assert (again, replayed) == (first, True)
    await claim(runs)
    await append(store, first, 1, 1, ended(), end=SUCCEEDED)
    last, replayed, taken = await runs.submit(a_run(), holder="e1", ttl_s=60)
    assert (last.state, replayed, taken) == (SUCCEEDED, True, None)
    assert told(await log_of(store, first)) == ["QUEUED", "SUCCEEDED"]


@pytest.mark.parametrize("other", [a_run(data=b"[]"), a_run(workflow="other")], ids=["input", "workflow"])
async def test_an_id_stands_for_one_workflow_and_input(store: Store, runs: Runs, other: Run) -> None:
    """The second use is refused and leaves no trace."""
    first, _, _ = await runs.submit(a_run())
    before = await all_keys(store)
    with pytest.raises(RequestReused):
        await runs.submit(other)
    again, _, _ = await runs.submit(a_run())
    assert again == first
    assert await all_keys(store) == before


async def test_tenants_may_use_the_same_id(store: Store, runs: Runs) -> None:
    """Neither sees, lists or cancels the other's run."""
    mine, theirs = a_run(namespace="mine"), a_run(namespace="theirs", data=b"[]")
    await runs.submit(mine)
    await runs.submit(theirs)
    await runs.cancel("mine", "run", "")
    assert await state_of(runs, mine) == CANCELLED
    assert await state_of(runs, theirs) == QUEUED
    assert await listed_in(store, theirs) == {"all", "w=blog", "s=1"}


def test_a_request_id_names_the_same_run_in_its_namespace_alone() -> None:
    assert new_run_id("a", "request") == new_run_id("a", "request") != new_run_id("b", "request")
    assert new_run_id("a", "") != new_run_id("a", "")


async def test_a_full_queue_refuses_and_keeps_nothing(
    store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each deployment has a queue of its own."""
    monkeypatch.setattr("onward_runlog.runs.QUEUE_MAX", 2)
    for run_id in ("a", "b"):
        await runs.submit(a_run(run_id))
    before = await all_keys(store)
    with pytest.raises(QueueFull):
        await runs.submit(a_run("c"))
    assert await all_keys(store) == before
    await runs.submit(a_run("c", deployment="other"))


async def test_a_run_is_handed_out_at_once_where_nobody_waits(store: Store, runs: Runs) -> None:
    """It is leased in the step that accepts it, with all that the executor has to know."""
    _, _, taken = await runs.submit(a_run(deadline=after(60)), trace_parent="trace", holder="e1", ttl_s=60)
    assert taken is not None
    assert (taken.attempt, taken.trace_parent, taken.log_key) == (1, "trace", "onward:{0}:default/run:log")
    assert taken.cause == AttemptCause.ATTEMPT_CAUSE_STARTED
    assert (taken.run.executor_id, taken.run.input.data, taken.run.state) == ("e1", b"{}", QUEUED)
    assert await places(store, taken.run) == {"lease", "deadline"}


async def test_a_run_does_not_overtake_those_that_wait(store: Store, runs: Runs) -> None:
    """Who comes with room at hand queues behind them all the same."""
    await runs.submit(a_run("first"))
    _, _, taken = await runs.submit(a_run("second"), holder="e1", ttl_s=60)
    assert taken is None
    assert await claimed_ids(runs, 9) == ["first", "second"]


async def test_a_submit_whose_reply_was_lost_is_not_a_replay(store: Store, runs: Runs) -> None:
    """The connection repeats the same call: it gets the first answer, and the run to hand out if it has not begun."""
    arguments = (
        *("default/run", b"digest", b"", b"", "build", 0, "", 0, 0, 1, "log", "", b"", 9, "e1", 60_000),
        *(0, "", 0, "", 0, 0, 0),
    )
    first = await store.call("submit", BASE, *arguments)
    assert await store.call("submit", BASE, *arguments) == first
    assert first == [b"new", 1, b"1"]
    await append(store, a_run(), 1, 1, status())
    again = await store.call("submit", BASE, *arguments)
    assert again == [b"new", 0, b"1"]


async def test_a_delayed_run_waits_for_its_time(store: Store, runs: Runs) -> None:
    """Until then nobody can claim it, and cancelling takes it off the clock."""
    run, cancelled = a_run(schedule_time=after(60)), a_run("cancelled", schedule_time=after(60))
    for each in (run, cancelled):
        _, _, taken = await runs.submit(each, holder="e1", ttl_s=60)
        assert taken is None
        assert await places(store, each) == {"start"}
    await runs.cancel("default", "cancelled", "")
    assert await places(store, cancelled) == {"expiry"}
    assert await claim(runs, 9) == []
    swept = (await runs.sweep())[BASE]
    assert swept.next_timer_s is not None
    assert 0 < swept.next_timer_s <= 60
    await passes(store, "s:default/run")
    assert (await runs.sweep())[BASE].queued == {"build": 1}
    assert await claimed_ids(runs, 9) == ["run"]


async def test_a_delay_is_over_by_the_servers_clock(store: Store, runs: Runs) -> None:
    await runs.submit(a_run(schedule_time=after(0.03)))

    async def is_queued() -> bool:
        return (await runs.sweep())[BASE].queued == {"build": 1}

    await eventually(is_queued)


async def test_a_start_in_the_past_is_now(runs: Runs) -> None:
    await runs.submit(a_run(schedule_time=after(-60)))
    assert await claimed_ids(runs) == ["run"]


# Claim


async def test_a_claimed_run_has_a_lease_and_a_higher_attempt(store: Store, runs: Runs) -> None:
    """Its state changes with the first append only, so that who never begins leaves no trace."""
    run = a_run()
    await runs.submit(run)
    [taken] = await claim(runs)
    assert (taken.attempt, taken.run.executor_id, taken.run.state) == (1, "e1", QUEUED)
    assert taken.run.input == run.input
    assert await places(store, run) == {"lease"}
    await append(store, run, 1, 1, status())
    begun = await runs.get("default", "run")
    assert (begun.state, begun.HasField("start_time")) == (RUNNING, True)
    assert await listed_in(store, run) == {"all", "w=blog", "s=2"}


async def test_claim_takes_no_more_than_asked_for(runs: Runs) -> None:
    for number in range(5):
        await runs.submit(a_run(str(number)))
    assert await claimed_ids(runs, 0) == []
    assert await claimed_ids(runs, 2) == ["0", "1"]
    assert await claimed_ids(runs, 9) == ["2", "3", "4"]
    assert await claimed_ids(runs, 9) == []


async def test_two_that_claim_at_once_never_get_the_same_run(runs: Runs) -> None:
    for number in range(20):
        await runs.submit(a_run(str(number)))
    claims = await asyncio.gather(*(claimed_ids(runs, 1) for _ in range(30)))
    taken = [run_id for ids in claims for run_id in ids]
    assert sorted(taken, key=int) == [str(number) for number in range(20)]


async def test_higher_priority_goes_first_and_equals_in_order(runs: Runs) -> None:
    """From -100 to 100, negative ones included."""
    priorities = [0, -100, 5, -1, 100, 0, -1, 5, -100]
    for number, priority in enumerate(priorities):
        await runs.submit(a_run(str(number), priority=priority))
    expected = sorted(range(len(priorities)), key=lambda number: (-priorities[number], number))
    assert await claimed_ids(runs, 99) == [str(number) for number in expected]


async def test_tenants_take_turns_whatever_one_of_them_floods(runs: Runs) -> None:
    """Who comes late with one run waits for one round, not for the flood."""
    for number in range(50):
        await runs.submit(a_run(f"flood-{number}", fairness_key="flood"))
    assert await claimed_ids(runs, 2) == ["flood-0", "flood-1"]
    for number in range(3):
        await runs.submit(a_run(f"late-{number}", fairness_key="late"))
    await runs.submit(a_run("other-0", fairness_key="other"))
    taken = await claimed_ids(runs, 7)
    assert sorted(taken[:3]) == ["flood-2", "late-0", "other-0"]
    assert sorted(taken[3:5]) == ["flood-3", "late-1"]
    assert sorted(taken[5:7]) == ["flood-4", "late-2"]
    assert await claimed_ids(runs, 99) == [f"flood-{number}" for number in range(5, 50)]


async def test_priority_is_above_fairness(runs: Runs) -> None:
    for run_id, priority, tenant in (("a", 0, "x"), ("b", 1, "y"), ("c", 1, "y"), ("d", 0, "z")):
        await runs.submit(a_run(run_id, priority=priority, fairness_key=tenant))
    taken = await claimed_ids(runs, 9)
    assert taken[:2] == ["b", "c"]
    assert sorted(taken[2:]) == ["a", "d"]


async def test_what_fairness_remembers_is_bounded_by_the_queue(store: Store, runs: Runs) -> None:
    """Tenants come and go, by claim, by cancel, in any order: only those that wait are remembered."""
    fair = f"{BASE}:fair:build"
    await runs.submit(a_run("stays", priority=-50, fairness_key="stays"))
    for number in range(30):
        tenant = f"tenant-{number}"
        for run_id in ("a", "b"):
            await runs.submit(a_run(f"{run_id}{number}", fairness_key=tenant))
        if number % 3 == 0:
            await claim(runs, 2)
        elif number % 3 == 1:
            for run_id in ("a", "b"):
                await runs.cancel("default", f"{run_id}{number}", "")
        else:
            await runs.cancel("default", f"a{number}", "")
            await claim(runs)
    assert await store.command("HLEN", fair) <= 3, "one tenant that waits, and the place served of a priority"
    await runs.cancel("default", "stays", "")
    assert await store.command("EXISTS", fair, f"{BASE}:queues", f"{BASE}:queue:build") == 0


async def test_cancelling_a_waiting_run_keeps_the_order_of_the_others(runs: Runs) -> None:
    for number in range(4):
        await runs.submit(a_run(str(number)))
    await runs.cancel("default", "3", "")
    await runs.cancel("default", "1", "")
    await runs.submit(a_run("4"))
    assert await claimed_ids(runs, 9) == ["0", "2", "4"]


async def test_a_requeued_run_goes_before_all_of_its_priority(store: Store, runs: Runs) -> None:
    """It was first once already; a higher priority still goes before it."""
    for run_id, priority in (("lost", 0), ("waits", 0)):
        await runs.submit(a_run(run_id, priority=priority))
    await die(store, runs, a_run("lost"))
    await runs.submit(a_run("urgent", priority=1))
    await runs.submit(a_run("refused", priority=-100))
    assert await claimed_ids(runs, 3) == ["urgent", "lost", "waits"]
    [taken] = await claim(runs)
    await runs.lose("default", "refused", taken.attempt, "refused")
    await runs.submit(a_run("other", priority=-100))
    assert await claimed_ids(runs, 2) == ["refused", "other"]


# Cancel


async def held(store: Store, runs: Runs) -> Run:
    run = a_run()
    await runs.submit(run, holder="e1", ttl_s=60)
    return run


async def queued(store: Store, runs: Runs) -> Run:
    run = a_run()
    await runs.submit(run)
    return run


async def lost(store: Store, runs: Runs) -> Run:
    run = await queued(store, runs)
    await die(store, runs, run)
    return run


async def paused(store: Store, runs: Runs) -> Run:
    run = await held(store, runs)
    await append(store, run, 1, 1, ended(PAUSED), end=PAUSED, error=b"\x0a\x01x")
    return run


Made = Callable[[Store, Runs], Awaitable[Run]]


@pytest.mark.parametrize("made", [queued, paused])
async def test_cancelling_a_run_that_has_nothing_to_clean_up_ends_it(store: Store, runs: Runs, made: Made) -> None:
    run = await made(store, runs)
    cancelled, holder = await runs.cancel("default", "run", "enough")
    assert (cancelled.state, holder.executor_id) == (CANCELLED, "")
    assert cancelled.log.closed
    assert cancelled.HasField("end_time")
    assert cancelled.HasField("expire_time")
    assert not cancelled.HasField("error")
    last = (await log_of(store, run))[-1]
    assert (last.run_state_changed.state, last.run_state_changed.reason, last.attempt) == (CANCELLED, "enough", 0)
    assert await places(store, run) == {"expiry"}
    assert await listed_in(store, run) == {"all", "w=blog", "s=8"}
    assert await claim(runs, 9) == []


async def test_cancelling_a_run_that_waits_for_another_attempt_lets_it_clean_up(
    store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its place in the line. A repeat changes nothing, but where nobody came within the grace it ends it."""
    run = await lost(store, runs)
    cancelling, holder = await runs.cancel("default", "run", "enough")
    assert (cancelling.state, holder) == (CANCELLING, Holder("", 1))
    assert await places(store, run) == {"queue"}
    assert await listed_in(store, run) == {"all", "w=blog", "s=4"}
    assert (await runs.cancel("default", "run", "again"))[0] == cancelling
    [taken] = await claim(runs)
    assert (taken.run.state, taken.cause) == (CANCELLING, AttemptCause.ATTEMPT_CAUSE_CANCELLED)
    at_once = Runs(store, cancel_grace_s=0)
    assert (await at_once.cancel("default", "run", "now"))[0].state == CANCELLING, "somebody has come"
    await runs.lose("default", "run", 2, "refused")
    assert (await at_once.cancel("default", "run", "now"))[0].state == CANCELLED
    assert told(await log_of(store, run))[-2:] == ["CANCELLING", "CANCELLED"]
    assert await places(store, run) == {"expiry"}


@pytest.mark.parametrize("made", [held, running])
async def test_cancelling_a_held_run_asks_its_executor(store: Store, runs: Runs, made: Made) -> None:
    """The run goes on as CANCELLING until the executor, which may still write, ends it."""
    run = await made(store, runs)
    first = len(await log_of(store, run))
    cancelling, holder = await runs.cancel("default", "run", "enough")
    assert (cancelling.state, holder) == (CANCELLING, Holder("e1", 1))
    assert await places(store, run) == {"lease"}
    again, holder = await runs.cancel("default", "run", "again")
    assert (again, holder) == (cancelling, Holder("e1", 1))
    sequence = first  # 1 where nothing was appended yet, else 2
    reply = await append(store, run, 1, sequence, status("cleaning up"))
    assert (reply.status, reply.state) == ("ok", CANCELLING)
    reply = await append(store, run, 1, sequence + 1, ended(CANCELLED), end=CANCELLED)
    assert (reply.status, reply.state) == ("ok", CANCELLED)
    assert told(await log_of(store, run))[first:] == ["CANCELLING", "cleaning up", "CANCELLED"]


async def test_cancelling_an_ended_run_changes_nothing(store: Store, runs: Runs) -> None:
    run = await running(store, runs)
    await append(store, run, 1, 2, ended(), end=SUCCEEDED)
    before = await record_of(store, run)
    unchanged, holder = await runs.cancel("default", "run", "late")
    assert (unchanged.state, holder.executor_id) == (SUCCEEDED, "")
    assert await record_of(store, run) == before
    assert told(await log_of(store, run))[-1] == "SUCCEEDED"


async def test_nothing_can_be_done_to_a_run_that_is_not_there(runs: Runs) -> None:
    """Each call says so, and none makes a key."""
    with pytest.raises(RunNotFound):
        await runs.get("default", "none")
    with pytest.raises(RunNotFound):
        await runs.cancel("default", "none", "")
    with pytest.raises(RunNotFound):
        await runs.signal("default", SignalRunRequest(run_id="none", name="go"))
    assert not await runs.lose("default", "none", 1, "lost")
    assert await runs.expel("default", "none") is None


# Lose


async def test_a_lost_run_is_queued_again_and_its_log_says_why(store: Store, runs: Runs) -> None:
    run = await running(store, runs)
    assert await runs.lose("default", "run", 1, "lost", reason="executor e1 died")
    again = await runs.get("default", "run")
    assert (again.state, again.executor_id, again.attempt) == (QUEUED, "", 1)
    last = (await log_of(store, run))[-1]
    assert (last.run_state_changed.state, last.run_state_changed.reason) == (QUEUED, "executor e1 died")
    assert last.attempt == 0
    assert await places(store, run) == {"queue"}
    assert await listed_in(store, run) == {"all", "w=blog", "s=1"}
    [taken] = await claim(runs)
    assert (taken.attempt, taken.cause) == (2, AttemptCause.ATTEMPT_CAUSE_EXECUTOR_LOST)
    assert await runs.lose("default", "run", 2, "lost"), "it had not begun, so nothing is told"
    await claim(runs)
    assert (await append(store, run, 3, 1, status("again"))).state == RUNNING
    assert await listed_in(store, run) == {"all", "w=blog", "s=2"}
    assert told(await log_of(store, run)) == ["QUEUED", "began", "QUEUED", "again"]


async def test_only_the_attempt_that_is_meant_is_lost_and_once(store: Store, runs: Runs) -> None:
    """Two Schedulers that see the same death do it once; who comes late does no harm."""
    run = await running(store, runs)
    assert not await runs.lose("default", "run", 2, "lost")
    done = await asyncio.gather(*(runs.lose("default", "run", 1, "lost") for _ in range(4)))
    assert sorted(done) == [False, False, False, True]
    await claim(runs)
    assert not await runs.lose("default", "run", 1, "expired")
    assert told(await log_of(store, run)) == ["QUEUED", "began", "QUEUED"]


async def test_an_attempt_expires_only_when_its_lease_has_run_out(store: Store, runs: Runs) -> None:
    """A renewal that comes in time is what decides, not who asks."""
    run = await running(store, runs)
    assert not await runs.lose("default", "run", 1, "expired")
    [[renewed, _, _]] = await store.call("renew", BASE, 20, "default/run", 1, "e1")
    assert renewed == 1

    async def expires() -> bool:
        await runs.lose("default", "run", 1, "expired")
        return await state_of(runs, run) == QUEUED

    await eventually(expires)
    assert (await record_of(store, run))["deaths"] == b"1"


async def test_a_handed_over_run_is_no_death(store: Store, runs: Runs) -> None:
    """It may be handed over any number of times."""
    run = await queued(store, runs)
    for _ in range(5):
        await die(store, runs, run, "handed_over")
    [taken] = await claim(runs)
    assert (taken.attempt, taken.cause) == (6, AttemptCause.ATTEMPT_CAUSE_HANDED_OVER)
    assert (await record_of(store, run))["deaths"] == b"0"


@pytest.mark.parametrize("why", ["lost", "refused", "handed_over"])
async def test_an_attempt_that_never_began_leaves_no_trace(store: Store, runs: Runs, why: str) -> None:
    """Only its number is spent, however often."""
    run = await queued(store, runs)
    for attempt in range(1, 6):
        [taken] = await claim(runs)
        assert taken.attempt == attempt
        assert taken.cause == AttemptCause.ATTEMPT_CAUSE_STARTED
        assert await runs.lose("default", "run", attempt, why)
    assert told(await log_of(store, run)) == ["QUEUED"]
    assert await places(store, run) == {"queue"}
    assert (await record_of(store, run))["deaths"] == b"0"


async def test_a_run_that_was_begun_and_then_refused_is_queued_again_in_the_open(store: Store, runs: Runs) -> None:
    """Its executor took it, but the answer was lost: state, index and log agree, and nobody died."""
    run = await running(store, runs)
    assert await runs.lose("default", "run", 1, "refused")
    assert await state_of(runs, run) == QUEUED
    assert told(await log_of(store, run)) == ["QUEUED", "began", "QUEUED"]
    assert await listed_in(store, run) == {"all", "w=blog", "s=1"}
    assert (await record_of(store, run))["deaths"] == b"0"


async def test_a_run_that_kills_its_executors_is_paused_at_the_third(store: Store, runs: Runs) -> None:
    run = await poisonous(store, runs)
    await die(store, runs, run, alone=True)
    stopped = await runs.get("default", "run")
    assert (stopped.state, stopped.error.reason, stopped.executor_id) == (PAUSED, "EXECUTOR_LOST", "")
    last = (await log_of(store, run))[-1]
    assert (last.run_state_changed.state, last.run_state_changed.error) == (PAUSED, stopped.error)
    assert await places(store, run) == set()
    assert await listed_in(store, run) == {"all", "w=blog", "s=5"}
    assert (await append(store, run, 3, 2, status("zombie"))).status == "fenced"


async def poisonous(store: Store, runs: Runs) -> Run:
    """A run under which two executors have died."""
    run = await queued(store, runs)
    for _ in range(2):
        await die(store, runs, run)
    return run


async def test_a_run_whose_executors_died_twice_is_given_out_alone(store: Store, runs: Runs) -> None:
    """It waits in a line of its own, and what is no death leaves it there."""
    run = await poisonous(store, runs)
    assert await places(store, run) == {"alone"}
    assert await claim(runs, 9) == []
    for why in ("handed_over", "refused"):
        await die(store, runs, run, why, alone=True)
        assert await places(store, run) == {"alone"}
    assert (await runs.sweep())[BASE].queued == {keys.alone("build"): 1}
    await runs.cancel("default", "run", "")
    assert await places(store, run) == {"alone"}, "what is cancelled may be what kills"


async def test_who_shares_executors_with_a_poisonous_run_is_not_paused(store: Store, runs: Runs) -> None:
    """An attempt that was not alone, begun before the count was known, counts no third death."""
    run = await poisonous(store, runs)
    [taken] = await runs.claim(BASE, keys.alone("build"), holder="e1", ttl_s=60, limit=1)
    await store.command("HSET", keys.run(BASE, "default/run"), "alone", 0)
    await append(store, run, taken.attempt, 1, status())
    await runs.lose("default", "run", taken.attempt, "lost")
    assert await state_of(runs, run) == QUEUED


@pytest.mark.parametrize("why", ["lost", "expired", "handed_over"])
async def test_a_lost_run_that_is_being_cancelled_is_given_out_to_clean_up(store: Store, runs: Runs, why: str) -> None:
    """Before all others of its priority, and told why."""
    run = await running(store, runs, ttl_s=0)
    await runs.cancel("default", "run", "enough")
    await runs.submit(a_run("other"))
    assert await runs.lose("default", "run", 1, why, reason="gone")
    assert not await runs.lose("default", "run", 1, why)
    assert await state_of(runs, run) == CANCELLING
    assert told(await log_of(store, run)) == ["QUEUED", "began", "CANCELLING", "CANCELLING"]
    assert await places(store, run) == {"queue"}
    assert await listed_in(store, run) == {"all", "w=blog", "s=4"}
    [taken] = await claim(runs)
    assert (taken.run.run_id, taken.run.state) == ("run", CANCELLING)
    assert taken.cause == AttemptCause.ATTEMPT_CAUSE_CANCELLED
    assert (await append(store, run, 2, 1, status("cleaning up"))).state == CANCELLING
    await append(store, run, 2, 2, ended(CANCELLED), end=CANCELLED)
    assert await places(store, run) == {"expiry"}


async def test_a_run_that_kills_whoever_cleans_up_after_it_ends(store: Store, runs: Runs) -> None:
    run = await running(store, runs)
    await runs.cancel("default", "run", "enough")
    await runs.lose("default", "run", 1, "lost")
    await die(store, runs, run)
    assert await state_of(runs, run) == CANCELLING
    await die(store, runs, run, alone=True)
    assert await state_of(runs, run) == CANCELLED
    assert await places(store, run) == {"expiry"}


async def test_a_cancelled_run_that_never_began_has_nothing_to_clean_up(store: Store, runs: Runs) -> None:
    run = await held(store, runs)
    await runs.cancel("default", "run", "enough")
    await runs.lose("default", "run", 1, "refused")
    assert told(await log_of(store, run)) == ["QUEUED", "CANCELLING", "CANCELLED"]


# Resume


@pytest.mark.parametrize("deployment", ["", "build", "fixed"])
async def test_a_resumed_run_is_queued_where_it_is_asked_for(store: Store, runs: Runs, deployment: str) -> None:
    """Its error is gone, its deaths count from the start, and its next attempt knows why it is there."""
    run = await poisonous(store, runs)
    await die(store, runs, run, alone=True)
    resumed = await runs.resume("default", "run", deployment=deployment)
    run.deployment = deployment or "build"
    assert (resumed.state, resumed.deployment, resumed.HasField("error")) == (QUEUED, run.deployment, False)
    assert told(await log_of(store, run))[-2:] == ["PAUSED", "QUEUED"]
    assert await places(store, run) == {"queue"}
    assert await listed_in(store, run) == {"all", "w=blog", "s=1"}
    again = await runs.resume("default", "run", deployment=deployment)
    assert again == resumed
    [taken] = await runs.claim(BASE, run.deployment, holder="e1", ttl_s=60, limit=1)
    assert (taken.attempt, taken.cause, taken.alone) == (4, AttemptCause.ATTEMPT_CAUSE_RESUMED, False)
    await append(store, run, 4, 1, status("again"))
    assert (await runs.resume("default", "run", deployment=deployment)).state == RUNNING, "its reply was lost"
    await runs.lose("default", "run", 4, "lost")
    assert await state_of(runs, run) == QUEUED
    assert await places(store, run) == {"queue"}, "one death since then: it may share an executor"


@pytest.mark.parametrize("made", [queued, held, running, lost])
async def test_only_a_paused_run_is_resumed(store: Store, runs: Runs, made: Made) -> None:
    """Also one that was resumed is not moved by a second call."""
    run = await made(store, runs)
    before = await record_of(store, run)
    with pytest.raises(WrongState):
        await runs.resume("default", "run")
    assert await record_of(store, run) == before
    await runs.cancel("default", "run", "")
    with pytest.raises(WrongState):
        await runs.resume("default", "run")


async def test_a_resumed_run_is_not_moved_by_a_second_call(store: Store, runs: Runs) -> None:
    await paused(store, runs)
    await runs.resume("default", "run")
    with pytest.raises(WrongState, match="QUEUED"):
        await runs.resume("default", "run", deployment="fixed")


async def test_a_run_whose_log_is_full_is_not_resumed(
    store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be paused again at once; it says so, and what to do."""
    run = await paused(store, runs)
    monkeypatch.setattr("onward_runlog.runs.LOG_EVENTS_MAX", 512 + 1)
    with pytest.raises(LogAtLimit, match="fork"):
        await runs.resume("default", "run")
    assert await state_of(runs, run) == PAUSED
    monkeypatch.setattr("onward_runlog.runs.LOG_EVENTS_MAX", 512 + 2)
    assert (await runs.resume("default", "run")).state == QUEUED


# Expel


@pytest.mark.parametrize("made", ["queued", "delayed", "running", "paused"])
async def test_a_run_fails_when_its_deadline_has_passed(store: Store, runs: Runs, made: str) -> None:
    """Wherever it is; who held it is told, and can write nothing more."""
    run = a_run(deadline=after(60))
    if made == "delayed":
        run.schedule_time.CopyFrom(after(30))
    await runs.submit(run, holder="e1" if made in ("running", "paused") else "", ttl_s=60)
    if made == "running":
        await append(store, run, 1, 1, status())
    if made == "paused":
        await append(store, run, 1, 1, ended(PAUSED), end=PAUSED)
    assert (await runs.sweep())[BASE].passed == []
    await store.command("HSET", keys.run(BASE, "default/run"), "deadline", 1)
    await passes(store, "d:default/run")
    assert (await runs.sweep())[BASE].passed == [("default", "run")]
    holder = await runs.expel("default", "run")
    assert holder == (Holder("e1", 1) if made == "running" else Holder("", 1 if made == "paused" else 0))
    failed = await runs.get("default", "run")
    assert (failed.state, failed.error.reason, failed.error.retryable) == (FAILED, "RUN_TIMEOUT", True)
    assert told(await log_of(store, run))[-1] == "FAILED"
    assert await places(store, run) == {"expiry"}
    assert (await append(store, run, 1, 2, status("late"))).status == "closed"
    assert await runs.expel("default", "run") is None


@pytest.mark.parametrize("wrong_s", [-86_400, 86_400], ids=["slow", "fast"])
async def test_the_time_limit_of_a_run_is_told_by_the_clock_that_judges_it(
    store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch, wrong_s: int
) -> None:
    """A Scheduler whose clock is wrong neither ends a run early nor lets it live longer."""
    before, right_ns = after(0), time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: right_ns() + wrong_s * 10**9)
        accepted, _, taken = await runs.submit(a_run(), timeout_s=60, holder="e1", ttl_s=60)
    assert taken is not None
    run = await runs.get("default", "run")
    for each in (accepted, taken.run, run):
        assert before.ToMicroseconds() <= each.create_time.ToMicroseconds() <= after(0).ToMicroseconds()
        # Exactly: a run that goes on as another one is given its limit again, however often.
        assert each.deadline.ToNanoseconds() - each.create_time.ToNanoseconds() == 60 * 10**9
        assert (each.create_time, each.deadline) == (run.create_time, run.deadline)
    assert await runs.expel("default", "run") is None
    [member, due_ms] = await store.command("ZRANGE", f"{BASE}:timers", 0, -1, "WITHSCORES")
    assert (member, int(due_ms)) == (b"d:default/run", run.deadline.ToMilliseconds())


async def test_the_time_limit_of_a_delayed_run_begins_with_it(runs: Runs) -> None:
    """And is where it was when its answer was lost, or the same is asked for again later."""
    delayed = a_run(schedule_time=after(3600))
    accepted, _, _ = await runs.submit(delayed, timeout_s=0.0015)
    assert accepted.deadline.ToMilliseconds() == delayed.schedule_time.ToMilliseconds() + 2
    again, replayed, _ = await runs.submit(delayed, timeout_s=0.0015)
    assert replayed
    assert again == accepted


async def test_a_submit_whose_reply_is_lost_tells_the_times_of_the_first(redis_url: str, store: Store) -> None:
    """The limit counts from when the run was accepted, not from when that was told."""
    async with proxy_to(redis_url) as proxy, open_store(proxy.url) as through:
        proxy.lose_reply(b"submit")
        accepted, replayed, _ = await Runs(through).submit(a_run(), timeout_s=60)
    assert (proxy.lost, replayed) == (1, False)
    accepted.input.CopyFrom(a_run().input)
    assert accepted == await Runs(store).get("default", "run")


async def test_a_scheduler_of_an_older_build_sets_times_itself(store: Store, runs: Runs) -> None:
    """It sends no time limit, and is told no more than it knows."""
    static = Run(run_id="run", namespace="default", workflow="blog", deadline=after(60))
    reply = await store.call(
        "submit",
        BASE,
        *("default/run", "digest", static.SerializeToString(), b"", "build", 0, "", 0, 12_345, 678_000_000),
        *("log", "", b"", 100, "", 0, 0, "", 0, b"", 0, 0, 1, "all"),
    )
    assert reply[:2] == [b"new", 0]
    kept = await store.command("HMGET", keys.run(BASE, "default/run"), "run", "deadline", "score")
    assert kept == [static.SerializeToString(), b"12345", b"678000000"]


async def test_nobody_is_expelled_before_the_time(store: Store, runs: Runs) -> None:
    """A run without a deadline never is, and one that was asked for too early keeps its timer."""
    await runs.submit(a_run("free"))
    early = a_run("early", deadline=after(60))
    await runs.submit(early)
    assert await runs.expel("default", "free") is None
    assert await runs.expel("default", "early") is None
    assert await places(store, early) == {"queue", "deadline"}


# Signal


def go(value: bytes = b"1", *, request_id: str = "", name: str = "go") -> SignalRunRequest:
    return SignalRunRequest(run_id="run", name=name, value=Payload(data=value), request_id=request_id)


async def test_a_signal_is_in_the_log_and_tells_who_holds_the_run(store: Store, runs: Runs) -> None:
    run = await running(store, runs)
    assert await runs.signal("default", go(request_id="r1")) == (3, False, Holder("e1", 1))
    last = (await log_of(store, run))[-1]
    assert (last.signal_received.name, last.signal_received.value.data, last.attempt) == ("go", b"1", 0)
    reply = await append(store, run, 1, 2, status())
    assert reply.last_offset == 4, "the executor's own sequence is not disturbed"


async def test_a_signal_is_taken_once_per_request_id(store: Store, runs: Runs) -> None:
    """A repeat gets the first offset, also after the run's end; the id stands for one name and value."""
    run = await queued(store, runs)
    assert await runs.signal("default", go(request_id="r1")) == (2, False, Holder("", 0))
    assert await runs.signal("default", go(request_id="r1")) == (2, True, Holder("", 0))
    assert await runs.signal("default", go(request_id="r2")) == (3, False, Holder("", 0))
    for other in (go(b"2", request_id="r1"), go(name="stop", request_id="r1")):
        with pytest.raises(RequestReused):
            await runs.signal("default", other)
    await runs.cancel("default", "run", "")
    assert await runs.signal("default", go(request_id="r1")) == (2, True, Holder("", 0))
    assert told(await log_of(store, run)) == ["QUEUED", "signal_received", "signal_received", "CANCELLED"]


async def test_signals_without_a_request_id_are_all_taken(runs: Runs, store: Store) -> None:
    await queued(store, runs)
    assert [(await runs.signal("default", go()))[0] for _ in range(3)] == [2, 3, 4]


async def test_an_ended_run_takes_no_signal(store: Store, runs: Runs) -> None:
    run = await queued(store, runs)
    await runs.cancel("default", "run", "")
    with pytest.raises(WrongState, match="CANCELLED"):
        await runs.signal("default", go(request_id="late"))
    assert told(await log_of(store, run)) == ["QUEUED", "CANCELLED"]


async def test_a_full_log_takes_no_signal(store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onward_runlog.runs.LOG_EVENTS_MAX", 2)
    run = await queued(store, runs)
    await runs.signal("default", go())
    with pytest.raises(QueueFull):
        await runs.signal("default", go())
    assert len(await log_of(store, run)) == 2


# Sweep and held


async def test_a_sweep_names_the_leases_that_have_run_out(store: Store, runs: Runs) -> None:
    """It takes nothing from anybody: that is a Scheduler's to decide."""
    await running(store, runs, a_run("out"), ttl_s=0)
    await running(store, runs, a_run("in"))
    assert (await runs.sweep())[BASE].expired == [Lease("default", "out", 1, "e1")]
    assert await state_of(runs, a_run("out")) == RUNNING


async def test_nothing_of_a_run_is_left_after_its_retention(store: Store, runs: Runs) -> None:
    """Record, log, memo, blobs, signals and every listing: the store is as before the run."""
    before = await all_keys(store)
    brief = Runs(store, retention_s=0, cancel_grace_s=0)
    run = a_run(labels={"a": "b"}, parent_run_id="mother", deadline=after(60), fairness_key="t")
    await brief.submit(run)
    [taken] = await claim(brief)
    await brief.signal("default", go(request_id="r1"))
    await store.call("blob", BASE, "default/run", 1, "1-1", b"large")
    await store.call("blob", BASE, "default/run", 1, "1-2", b"large")
    await append(store, run, taken.attempt, 1, status(), memo={"id": b"value"})
    assert len(await all_keys(store)) == len(before) + 14
    await brief.cancel("default", "run", "")
    await brief.lose("default", "run", 1, "lost")
    await brief.cancel("default", "run", "nobody came to clean up")
    for entry in await runs.take(BASE, busy_s=60):
        await runs.settle(entry)
    await runs.sweep()
    assert await all_keys(store) == before
    with pytest.raises(RunNotFound):
        await runs.get("default", "run")
    _, replayed, _ = await runs.submit(a_run(data=b"[]"))
    assert not replayed, "its id is free again"


async def test_a_finished_run_is_kept_for_its_retention(store: Store, runs: Runs) -> None:
    run = await running(store, runs)
    await append(store, run, 1, 2, ended(), end=SUCCEEDED)
    await runs.sweep()
    kept = await runs.get("default", "run")
    assert kept.expire_time.ToMilliseconds() == kept.end_time.ToMilliseconds() + 3_600_000


async def test_every_run_that_an_executor_holds_is_found(store: Store, runs: Runs) -> None:
    for run_id in ("a", "b"):
        await running(store, runs, a_run(run_id))
    await runs.submit(a_run("c"), holder="e2", ttl_s=60)
    assert await runs.held_by("e1") == [Lease("default", "a", 1, "e1"), Lease("default", "b", 1, "e1")]
    assert await runs.held_by("e3") == []
