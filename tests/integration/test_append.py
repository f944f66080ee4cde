"""The fenced append, called as an executor in any language calls it: what gets into a log, and what never does."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ResponseError
from tests.runlog import (
    CANCELLED,
    FAILED,
    PAUSED,
    RUNNING,
    SUCCEEDED,
    Reply,
    a_run,
    append,
    append_all,
    ended,
    listed_in,
    log_of,
    part,
    places,
    record_of,
    status,
    told,
)

from onward.v1.event_pb2 import Event, RunWaiting, StatusUpdated
from onward.v1.run_pb2 import Payload, Run, RunError, RunState
from onward.v1.wake_pb2 import Wake
from onward_runlog import keys
from onward_runlog.connection import Argument
from onward_runlog.runs import Runs
from onward_runlog.store import Store
from onward_runlog.subscription import Message, messages

pytestmark = pytest.mark.usefixtures("one_partition")

BASE = keys.base(0)


@pytest.fixture
async def run(runs: Runs) -> Run:
    """A run that executor e1 holds as attempt 1."""
    kept, _, _ = await runs.submit(a_run(), holder="e1", ttl_s=60)
    return kept


async def take_over(runs: Runs) -> None:
    """Give the run to attempt 2, which has not begun."""
    await runs.lose("default", "run", 1, "lost")
    [taken] = await runs.claim(BASE, "build", holder="e2", ttl_s=60, limit=1)
    assert taken.attempt == 2


async def test_offsets_go_on_by_one_whoever_writes(store: Store, runs: Runs, run: Run) -> None:
    """The reply tells state, attempt, newest offset and the size of the log."""
    first = await append(store, run, 1, 1, status("a"), status("b"))
    second = await append(store, run, 1, 2, status("c"))
    assert (first.status, first.state, first.attempt, first.last_offset) == ("ok", RUNNING, 1, 3)
    assert second.last_offset == 4
    events = await log_of(store, run)
    assert told(events) == ["QUEUED", "a", "b", "c"]
    assert [event.attempt for event in events] == [0, 1, 1, 1]
    entries = await store.command("XRANGE", keys.log(BASE, "default/run"), "-", "+")
    assert second.size == sum(len(fields[1]) for _, fields in entries)
    assert (await record_of(store, run))["bytes"] == str(second.size).encode()


async def test_a_writer_cannot_lie_about_offset_and_attempt(store: Store, run: Run) -> None:
    """Whatever it put there, once or twice, the log has the last word."""
    liar = Event(offset=99, attempt=7, status_updated=StatusUpdated(message="a")).SerializeToString()
    await append(store, run, 1, 1, liar, liar + liar)
    events = await log_of(store, run)
    assert [(event.offset, event.attempt) for event in events] == [(1, 0), (2, 1), (3, 1)]


async def test_what_the_log_does_not_know_it_keeps(store: Store, run: Run) -> None:
    """A newer writer's fields reach a newer reader."""
    await append(store, run, 1, 1, status("a").SerializeToString() + b"\xfa\x7f\x03new")
    assert b"\xfa\x7f\x03new" in (await log_of(store, run))[1].SerializeToString()


async def test_the_last_sequence_again_returns_the_stored_reply(store: Store, runs: Runs, run: Run) -> None:
    """However often, and also when a signal came between or the attempt is over: it was committed."""
    first = await append(store, run, 1, 1, status("a"))
    assert await append(store, run, 1, 1, status("a")) == first
    await runs.lose("default", "run", 1, "lost")
    again = await append(store, run, 1, 1, status("a"))
    assert (again.status, again.last_offset) == ("ok", 2)
    assert told(await log_of(store, run)) == ["QUEUED", "a", "QUEUED"]


async def test_a_repeated_finish_is_ok(store: Store, run: Run) -> None:
    """Its reply may have been lost."""
    first = await append(store, run, 1, 1, ended(), end=SUCCEEDED)
    again = await append(store, run, 1, 1, ended(), end=SUCCEEDED)
    assert (first.status, first.state) == (again.status, again.state) == ("ok", SUCCEEDED)
    assert told(await log_of(store, run)) == ["QUEUED", "SUCCEEDED"]


@pytest.mark.parametrize("sequence", [0, -1, 2, 7])
async def test_a_jump_in_the_sequence_is_refused(store: Store, run: Run, sequence: int) -> None:
    """Something is missing before it."""
    assert (await append(store, run, 1, sequence, status("a"))).status == "jump"
    assert told(await log_of(store, run)) == ["QUEUED"]


async def test_an_older_sequence_is_refused(store: Store, run: Run) -> None:
    for sequence in (1, 2, 3):
        await append(store, run, 1, sequence, status(str(sequence)))
    assert (await append(store, run, 1, 2, status("again"))).status == "jump"
    assert told(await log_of(store, run)) == ["QUEUED", "1", "2", "3"]


async def test_a_later_attempt_fences_every_earlier_one(store: Store, runs: Runs, run: Run) -> None:
    """From the moment it is claimed, before it has written anything; with any sequence, to any end."""
    await append(store, run, 1, 1, status("mine"))
    await take_over(runs)
    before = await record_of(store, run)
    for sequence in (1, 2, 3):
        for more in ({}, {"end": SUCCEEDED}, {"end": PAUSED}):
            reply = await append(store, run, 1, sequence, ended(), memo={"id": b"zombie"}, **more)
            assert (reply.status, reply.attempt) == ("fenced", 2)
    assert await record_of(store, run) == before
    assert await store.command("EXISTS", keys.memo(BASE, "default/run")) == 0
    assert (await append(store, run, 2, 1, status("yours"))).status == "ok"
    assert (await append(store, run, 1, 1, status("mine"))).status == "fenced"
    assert told(await log_of(store, run)) == ["QUEUED", "mine", "QUEUED", "yours"]


async def test_nobody_writes_while_nobody_holds_the_run(store: Store, runs: Runs, run: Run) -> None:
    """Neither the attempt that lost it nor one that is still to come."""
    await runs.lose("default", "run", 1, "refused")
    for attempt in (0, 1, 2):
        assert (await append(store, run, attempt, 1, status("zombie"))).status == "fenced"
    assert told(await log_of(store, run)) == ["QUEUED"]


async def test_nothing_is_written_for_a_run_that_is_not_there(store: Store) -> None:
    """It is past its retention, or never was: no key appears."""
    assert await append(store, a_run("none"), 1, 1, status()) == Reply("fenced", 0, 0, 0, 0)
    assert await store.command("EXISTS", keys.log(BASE, "default/none"), keys.run(BASE, "default/none")) == 0


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, CANCELLED])
async def test_the_end_is_one_step_and_nothing_follows_it(
    store: Store, runs: Runs, run: Run, state: RunState.ValueType
) -> None:
    """State, output or error, closing event and the end of the lease; after that every write is refused."""
    output, error = Payload(data=b'"done"'), RunError(reason="COMPONENT_FAILED")
    payload = {"output": output.SerializeToString()} if state == SUCCEEDED else {"error": error.SerializeToString()}
    reply = await append(store, run, 1, 1, status("a"), ended(state), end=state, **payload)
    assert (reply.status, reply.state, reply.last_offset) == ("ok", state, 3)
    done = await runs.get("default", "run")
    assert (done.state, done.executor_id, done.log.closed, done.log.last_offset) == (state, "", True, 3)
    assert done.output == (output if state == SUCCEEDED else Payload())
    assert done.error == (error if state == FAILED else RunError())
    assert await places(store, run) == {"expiry"}
    assert await listed_in(store, run) == {"all", "w=blog", f"s={state}"}
    for sequence in (2, 3):
        for more in ({}, {"end": FAILED}):
            assert (await append(store, run, 1, sequence, ended(FAILED), **more)).status == "closed"
    assert (await store.call("blob", BASE, "default/run", 1, "1-1", b"late"))[0] == b"closed"
    assert [event.run_state_changed.state for event in await log_of(store, run)][-1] == state
    assert len(await log_of(store, run)) == 3


async def test_a_pause_ends_the_attempt_and_not_the_run(store: Store, runs: Runs, run: Run) -> None:
    error = RunError(reason="NON_DETERMINISTIC")
    await append(store, run, 1, 1, ended(PAUSED), end=PAUSED, error=error.SerializeToString())
    stopped = await runs.get("default", "run")
    assert (stopped.state, stopped.error, stopped.executor_id, stopped.log.closed) == (PAUSED, error, "", False)
    assert await places(store, run) == set()
    assert (await append(store, run, 1, 2, status("zombie"))).status == "fenced"


async def test_a_log_is_full_at_its_number_of_events(store: Store, run: Run) -> None:
    """What does not fit is refused whole, and a pause is taken."""
    assert (await append(store, run, 1, 1, status(), events_max=3)).status == "ok"
    assert (await append(store, run, 1, 2, status(), status(), events_max=3)).status == "full"
    assert (await append(store, run, 1, 2, status(), events_max=3)).status == "ok"
    assert (await append(store, run, 1, 3, status(), events_max=3)).status == "full"
    assert (await append(store, run, 1, 3, ended(PAUSED), end=PAUSED, events_max=3)).status == "ok"
    assert told(await log_of(store, run)) == ["QUEUED", "x", "x", "PAUSED"]


async def test_a_log_is_full_at_its_bytes(store: Store, run: Run) -> None:
    assert (await append(store, run, 1, 1, status("x" * 500), bytes_max=500)).status == "ok"
    assert (await append(store, run, 1, 2, status(), bytes_max=500)).status == "full"
    assert (await append(store, run, 1, 2, ended(PAUSED), end=PAUSED, bytes_max=500)).status == "ok"


async def test_what_lies_beside_a_log_is_in_its_bytes_once(store: Store, run: Run) -> None:
    """Also where a reply is lost, and the same is sent again."""
    size = (await append(store, run, 1, 1, status())).size
    for _ in range(2):
        await store.call("blob", BASE, "default/run", 1, "1-1", b"x" * 300)
        after = await append(store, run, 1, 2, memo={"id": b"y" * 200})
        assert after.size == size + 300 + 202
    assert (await append(store, run, 1, 3, memo={"id": b"z"})).size == size + 300 + 3


async def test_memo_is_written_in_the_same_step(store: Store, run: Run) -> None:
    """More of it than one command could take, and none of what was refused."""
    memo = {f"id-{number}": b"v" for number in range(9_000)}
    assert (await append(store, run, 1, 1, status(), memo=memo)).status == "ok"
    assert (await append(store, run, 1, 1, status(), memo={"again": b""})).status == "ok"
    assert (await append(store, run, 1, 3, status(), memo={"jump": b""})).status == "jump"
    assert (await append(store, run, 1, 2, status(), memo={"full": b""}, events_max=2)).status == "full"
    assert await store.command("HLEN", keys.memo(BASE, "default/run")) == 9_000


async def test_one_call_serves_many_runs_and_each_has_its_own_answer(store: Store, runs: Runs) -> None:
    """One that is fenced and one that is unknown do not disturb the others."""
    for run_id in ("a", "b", "c"):
        await runs.submit(a_run(run_id), holder="e1", ttl_s=60)
    await runs.lose("default", "b", 1, "refused")
    replies = await append_all(
        store,
        BASE,
        part("default/a", 1, 1, status("1"), status("2"), memo={"x": b"1"}),
        part("default/b", 1, 1, status("zombie")),
        part("default/none", 1, 1),
        part("default/c", 1, 1, ended(), end=SUCCEEDED),
        part("default/a", 1, 2, status("3")),
    )
    assert [reply.status for reply in replies] == ["ok", "fenced", "fenced", "ok", "ok"]
    assert told(await log_of(store, a_run("a"))) == ["QUEUED", "1", "2", "3"]
    assert told(await log_of(store, a_run("b"))) == ["QUEUED"]
    assert told(await log_of(store, a_run("c"))) == ["QUEUED", "SUCCEEDED"]


GOOD = part("default/run", 1, 1, b"", b"")


@pytest.mark.parametrize(
    "arguments",
    [
        GOOD[:-1],
        GOOD[:5],
        [*GOOD, "more"],
        [*GOOD[:6], "1 2 3 4", *GOOD[7:]],
        [*GOOD[:6], "1 2 3 4 -5", *GOOD[7:]],
        [*GOOD[:7], 3, *GOOD[8:]],
        [*GOOD[:7], 1, *GOOD[8:]],
        [*GOOD[:7], -1, *GOOD[8:]],
        [*GOOD[:7], "1.5", *GOOD[8:]],
        [*GOOD[:-2], 1, 0],
        [*GOOD[:-2], 1, "name", 0],
        [*GOOD[:-2], -1, 0],
        [*GOOD[:-2], "0.5", "name", 0],
        [*GOOD[:-2], "nan", 0],
        [*GOOD[:-1], 1],
        [*GOOD[:-1], -1],
        [*GOOD[:-1], "0.5", "entry"],
        [*GOOD[:-1], "nan"],
        part("default/run", 1, 1, b"", end=RUNNING),
        part("default/run", 1, 1, end=SUCCEEDED),
        [*part("default/run", 1, 1, b""), *GOOD[:-1]],
    ],
)
async def test_a_call_that_does_not_add_up_writes_nothing(store: Store, run: Run, arguments: list[Argument]) -> None:
    """Half of it would be in the log for good, and stand in the way of every later append."""
    with pytest.raises(ResponseError, match="do not add up"):
        await append_all(store, BASE, arguments)
    assert (await append(store, run, 1, 1, status("a"))).last_offset == 2


@pytest.mark.parametrize(
    "limits", [["", 9, 9], [9, "x", 9], [9, 1_000_000, ""], [9, 1_000_000, "nan"], [9, 1_000_000, "1.5"]]
)
async def test_limits_that_are_no_numbers_write_nothing(store: Store, run: Run, limits: list[Argument]) -> None:
    """Least of all an end without its state."""
    closing = part("default/run", 1, 1, ended(), end=SUCCEEDED)
    with pytest.raises(ResponseError, match="do not add up"):
        await store.call("append", BASE, *limits, *closing)
    assert told(await log_of(store, run)) == ["QUEUED"]
    assert (await append(store, run, 1, 1, status("a"))).last_offset == 2


@pytest.mark.parametrize(
    "ending", [["soon", 0], ["nan", 0], ["-1", 0], ["", ""], ["", "x"], ["", 2, "one"], ["", 1, "one", "two"], [""]]
)
async def test_a_parking_that_does_not_add_up_writes_nothing(store: Store, run: Run, ending: list[Argument]) -> None:
    """A run would wait for what never wakes it."""
    await append(store, run, 1, 1, status("a"))
    event = Event(run_waiting=RunWaiting(reason="a reason")).SerializeToString()
    with pytest.raises(ResponseError, match="do not add up"):
        await store.call("park", BASE, "default/run", 1, 2, 2, 1_000, 1_000_000, event, "a reason", *ending)
    assert told(await log_of(store, run)) == ["QUEUED", "a"]
    assert await places(store, run) == {"lease"}


@pytest.mark.parametrize("numbers", [["", 3], [9, "x"], ["nan", 3]])
async def test_a_hand_over_that_does_not_add_up_changes_nothing(
    store: Store, run: Run, numbers: list[Argument]
) -> None:
    await append(store, run, 1, 1, status("a"))
    with pytest.raises(ResponseError, match="do not add up"):
        await store.call("lose", BASE, "default/run", 1, "handed_over", *numbers, b"", b"", b"", b"", b"")
    assert await places(store, run) == {"lease"}
    assert (await record_of(store, run))["holder"] != b""


async def test_a_renewal_holds_for_the_holder_of_the_attempt_alone(store: Store, runs: Runs, run: Run) -> None:
    """Everybody else learns that the lease is not theirs, and what became of the run."""

    async def renew(attempt: int, holder: str) -> list[int]:
        [reply] = await store.call("renew", BASE, 60_000, "default/run", attempt, holder)
        return list(reply)

    assert await renew(1, "e1") == [1, 1, 1]
    assert await renew(1, "e2") == [0, 1, 1]
    assert await renew(2, "e1") == [0, 1, 1]
    await append(store, run, 1, 1, ended(), end=SUCCEEDED)
    assert await renew(1, "e1") == [0, SUCCEEDED, 2]
    assert await places(store, run) == {"expiry"}
    assert await store.call("renew", BASE, 60_000, "default/none", 1, "e1") == [[0, 0, 0]]


async def test_a_renewal_moves_the_lease_on(store: Store, run: Run) -> None:
    before = float(await store.command("ZSCORE", f"{BASE}:leases", "default/run"))
    await store.call("renew", BASE, 120_000, "default/run", 1, "e1")
    assert float(await store.command("ZSCORE", f"{BASE}:leases", "default/run")) >= before + 60_000


async def test_a_blob_is_kept_for_whoever_holds_the_run(store: Store, runs: Runs, run: Run) -> None:
    """What a zombie computes is nowhere."""
    assert await store.call("blob", BASE, "default/run", 1, "1-1", b"large") == [b"ok"]
    await runs.lose("default", "run", 1, "refused")
    for attempt in (1, 2):
        assert await store.call("blob", BASE, "default/run", attempt, "1-2", b"zombie") == [b"fenced"]
    assert await store.call("blob", BASE, "default/none", 1, "1-1", b"") == [b"fenced"]
    await runs.claim(BASE, "build", holder="e2", ttl_s=60, limit=1)
    assert await store.call("blob", BASE, "default/run", 1, "1-2", b"zombie") == [b"fenced"]
    assert await store.command("GET", keys.blob(BASE, "default/run", "1-1")) == b"large"
    assert await store.command("EXISTS", keys.blob(BASE, "default/run", "1-2")) == 0


# Wake


async def test_what_was_appended_is_published_as_it_is_stored(store: Store, runs: Runs) -> None:
    """One message a call, with the stored bytes of every run it appended to; large ones are to be read."""
    for run_id in ("a", "b"):
        await runs.submit(a_run(run_id), holder="e1", ttl_s=60)
    heard = messages(store.url, [keys.wake_channel(BASE)])
    assert await anext(heard) is None
    await append_all(
        store,
        BASE,
        part("default/a", 1, 1, status("1"), status("2")),
        part("default/none", 1, 1, status("zombie")),
        part("default/b", 1, 1, status("x" * 70_000)),
    )
    small, large = wake_of(await anext(heard)).appended
    assert (small.ref, small.after_offset, small.through_offset) == ("default/a", 1, 3)
    assert [Event.FromString(data) for data in small.events] == (await log_of(store, a_run("a")))[1:]
    assert (large.ref, large.after_offset, large.through_offset, len(large.events)) == ("default/b", 1, 2, 0)
    await heard.aclose()


async def test_every_transition_wakes_those_who_follow(store: Store, runs: Runs) -> None:
    """Submit, cancel and lose publish their events too, and what changes nothing publishes nothing."""
    heard = messages(store.url, [keys.wake_channel(BASE), keys.queued_channel(BASE)])
    assert await anext(heard) is None
    await runs.submit(a_run())
    await runs.submit(a_run())
    await runs.claim(BASE, "build", holder="e1", ttl_s=60, limit=1)
    await append(store, a_run(), 1, 1, status("a"))
    await append(store, a_run(), 1, 1, status("a"))
    await runs.lose("default", "run", 1, "lost")
    await runs.cancel("default", "run", "")
    await runs.cancel("default", "run", "")
    await store.command("PUBLISH", keys.queued_channel(BASE), "the end")
    told_of: list[Any] = []
    async for message in heard:
        assert message is not None
        if message.data == b"the end":
            break
        if message.channel == keys.queued_channel(BASE):
            told_of.append(message.data.decode())
        else:
            [appended] = wake_of(message).appended
            told_of += told([Event.FromString(data) for data in appended.events])
    assert told_of == ["build", "QUEUED", "a", "build", "QUEUED", "CANCELLING"]
    await heard.aclose()


def wake_of(message: Message | None) -> Wake:
    assert message is not None
    return Wake.FromString(message.data)
