"""What a rollback makes void, against the plainest reading of the contract."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onward.v1.event_pb2 import ComponentStarted, Event, OutputDelta, Published, Rollback, StatusUpdated
from onward_runlog.reader import Chunk, framed, unframed
from onward_runlog.settled import Voids

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
