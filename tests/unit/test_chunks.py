"""Stored events become messages without being parsed, and never with a hole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onward.v1.event_pb2 import Event, OutputDelta
from onward.v1.gateway_service_pb2 import EventBatch, ListRunEventsResponse
from onward_runlog.reader import Chunk, Sizing, chunk_from, cut, framed, unframed, varint

EVENTS = st.lists(st.integers(0, 20_000).map(lambda size: Event(output_delta=OutputDelta(text="x" * size))), max_size=5)


def reply(*offsets: int) -> list[list[object]]:
    return [[b"%d-0" % offset, [b"e", Event(offset=offset).SerializeToString()]] for offset in offsets]


@given(EVENTS)
def test_framed_events_are_the_field_as_it_is_on_the_wire(events: list[Event]) -> None:
    field = b"".join(framed(event.SerializeToString()) for event in events)
    assert list(EventBatch.FromString(field).events) == events
    assert list(ListRunEventsResponse.FromString(field).events) == events


@given(st.binary(max_size=300) | st.integers(100, 3_000_000).map(bytes))
def test_unframed_undoes_framed(event: bytes) -> None:
    assert unframed(framed(event)) == event


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_written_as_protobuf_does(number: int) -> None:
    assert EventBatch.FromString(b"\x10" + varint(number)).after_offset == number


def test_a_reply_without_a_hole_is_one_chunk() -> None:
    chunk = chunk_from(reply(4, 5, 6), 3)
    assert (chunk.after, chunk.through, len(chunk.events)) == (3, 6, 3)


def test_a_chunk_begins_after_what_is_gone_and_ends_before_a_hole() -> None:
    assert chunk_from(reply(7, 8), 3).after == 6
    chunk = chunk_from(reply(4, 5, 8, 9), 3)
    assert (chunk.after, chunk.through) == (3, 5)
    assert chunk_from(reply(4, 6), 3).through == 4


def test_an_empty_reply_is_an_empty_chunk() -> None:
    chunk = chunk_from([], 3)
    assert (chunk.after, chunk.through) == (3, 3)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 100))
def test_a_chunk_is_cut_to_a_batch_within_the_limit(sizes: list[int], limit: int) -> None:
    whole = Chunk(10, [b"x" * size for size in sizes])
    batch = cut(whole, limit)
    count = len(batch.events)
    assert batch == Chunk(10, whole.events[:count])
    assert count == 1 or sum(sizes[:count]) <= limit
    assert count == len(sizes) or sum(sizes[: count + 1]) > limit, "no less than would do"


def test_reads_grow_with_small_events_and_shrink_with_large_ones() -> None:
    sizing = Sizing(100)
    counts = []
    for _ in range(6):
        counts.append(sizing.count)
        sizing.saw(Chunk(0, [b"x" * 100] * sizing.count))
    assert counts == [128, 512, 2048, 4096, 4096, 4096]
    sizing.saw(Chunk(0, [b"x" * 500_000] * 4))
    assert sizing.count == 2
    assert Sizing(3_000_000).count == 1
