"""What a rollback makes void, against the plainest reading of the contract."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.v1.event_pb2 import ComponentStarted, Event, OutputDelta, Published, Rollback, StatusUpdated
from onward_runlog.reader import Chunk, framed, unframed
from onward_runlog.settled import Settling, Voids

COMPONENTS = ("", "a", "b")


def log(draw: st.DrawFn, length: int) -> list[Event]:
    events = []
    for offset in range(1, length + 1):
        event = Event(offset=offset, component_id=draw(st.sampled_from(COMPONENTS)))
        match draw(st.sampled_from("dspkR")):
            case "d":
                event.output_delta.CopyFrom(OutputDelta(text="x"))
            case "s":
                event.status_updated.CopyFrom(StatusUpdated(message="x"))
            case "p":
                event.published.CopyFrom(Published(name="x"))
            case "k":
                event.component_started.CopyFrom(ComponentStarted(name="\x92\x01"))  # holds the tag of a Rollback
            case "R":
                event.rollback.CopyFrom(
                    Rollback(
                        component_ids=draw(st.lists(st.sampled_from(COMPONENTS), unique=True)),
                        after_offset=draw(st.integers(0, offset)),
                    )
                )
        events.append(event)
    return events


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    return log(draw, draw(st.integers(0, 30)))


def plainly_settled(events: list[Event], through: int) -> list[int]:
    kept = []
    for event in events:
        shown = event.WhichOneof("kind") in ("output_delta", "status_updated", "published")
        void = any(
            event.component_id in other.rollback.component_ids
            and other.rollback.after_offset < event.offset < other.offset
            for other in events[:through]
            if other.HasField("rollback")
        )
        if not (shown and void):
            kept.append(event.offset)
    return kept


@given(logs(), st.integers(0, 30))
def test_a_settled_view_leaves_out_what_is_void_and_nothing_else(events: list[Event], through: int) -> None:
    rollbacks = [(event.offset, event.rollback) for event in events[:through] if event.HasField("rollback")]
    voids = Voids(rollbacks)
    chunk = Chunk(0, [framed(event.SerializeToString()) for event in events])
    settled = [Event.FromString(unframed(event)).offset for event in voids.settle(chunk)]
    assert settled == plainly_settled(events, through)


def test_without_rollbacks_nothing_is_parsed() -> None:
    chunk = Chunk(0, [framed(b"not an event")])
    assert Voids([]).settle(chunk) is chunk.events


class Log:
    """A reader of logs in which every event is a Rollback of two components."""

    def __init__(self) -> None:
        self.read: list[str] = []

    async def events(self, base: str, ref: str, after: int, count: int) -> list[Any]:
        self.read.append(ref)
        event = Event(rollback=Rollback(component_ids=["a", "b"])).SerializeToString()
        return [(b"%d-0" % offset, (b"e", event)) for offset in range(after + 1, after + count + 1)]


async def test_runs_that_others_have_read_cost_a_reader_nothing() -> None:
    """However many indexes are kept, opening a stream does not look at all of them."""
    settling = Settling(Log())  # type: ignore[arg-type]

    async def cost_s() -> float:
        began = time.process_time()
        for _ in range(300):
            await settling.voids("", "mine", "id", 0)
        return time.process_time() - began

    await cost_s()
    few = min([await cost_s() for _ in range(3)])
    for number in range(3_000):
        await settling.voids("", f"other-{number}", "id", 0)
    many = min([await cost_s() for _ in range(3)])
    assert many < 8 * few, (few, many)


async def test_the_indexes_of_runs_that_were_read_long_ago_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By how much is in them, which grows while they are used; what was dropped is read again."""
    monkeypatch.setattr("onward_runlog.settled.INDEX_ENTRIES_MAX", 30)
    log = Log()
    settling = Settling(log)  # type: ignore[arg-type]
    chance = random.Random(1)
    for _ in range(300):
        await settling.voids("", f"run-{chance.randrange(9)}", "id", chance.randrange(6))
    await settling.voids("", "large", "id", 20)
    log.read.clear()
    await settling.voids("", "large", "id", 20)
    assert log.read == [], "the newest is kept, however large"
    await settling.voids("", "run-0", "id", 5)
    await settling.voids("", "run-1", "id", 5)
    log.read.clear()
    await settling.voids("", "run-0", "id", 5)
    await settling.voids("", "run-1", "id", 5)
    assert log.read == []
    await settling.voids("", "large", "id", 20)
    assert log.read
