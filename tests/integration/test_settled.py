"""VIEW_SETTLED: what a rollback voids is left out, and folding what is left gives the same as the whole log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from tests.gateway import Door, Reading, begun, delta, follow, gateway
from tests.unit.test_settled import plainly_settled

from onward.v1.event_pb2 import Change, ComponentStarted, Event, OutputDelta, Published, Rollback, StatusUpdated
from onward.v1.gateway_service_pb2 import ListRunEventsRequest, Position, SubscribeRunRequest, View
from onward.v1.run_pb2 import Payload
from onward.views import fold
from onward_runlog.store import Store

SETTLED = View.VIEW_SETTLED
COMPONENTS = ("", "a", "b")


@pytest.fixture
async def door(redis_url: str, store: Store) -> AsyncIterator[Door]:
    async with gateway(redis_url) as door:
        yield door


def an_event(chance: random.Random, offset: int) -> Event:
    event = Event(component_id=chance.choice(COMPONENTS))
    kind = chance.choice("dddspkR")
    if kind == "d":
        event.output_delta.CopyFrom(OutputDelta(text=f"{offset} ", part=chance.randrange(2)))
    elif kind == "s":
        event.status_updated.CopyFrom(StatusUpdated(message=f"at {offset}"))
    elif kind == "p":
        value = Payload(data=f"{offset}".encode())
        event.published.CopyFrom(Published(name=chance.choice("xy"), change=Change.CHANGE_SET, value=value))
    elif kind == "k":
        event.component_started.CopyFrom(ComponentStarted(name="k"))
    else:
        chosen = [component_id for component_id in COMPONENTS if chance.random() < 0.5]
        event.rollback.CopyFrom(Rollback(component_ids=chosen, after_offset=chance.randrange(offset)))
    return event


async def test_a_settled_log_is_the_whole_one_without_what_is_void(door: Door, store: Store) -> None:
    for seed in range(8):
        chance = random.Random(seed)
        log = await begun(store, f"run{seed}")
        for _ in range(4):
            await log.append(*(an_event(chance, chance.randrange(2, 100)) for _ in range(25)))
        last = await log.close()
        whole = (await follow(door, f"run{seed}")).events
        kept = plainly_settled(whole, last)
        assert len(kept) < last, "nothing was void: the test tells nothing"
        settled = await follow(door, f"run{seed}", view=SETTLED)
        assert settled.offsets == kept
        assert settled.through == last
        assert fold(settled.events) == fold(whole)
        for after in (0, 1, last // 2, last - 1, last):
            resumed = await follow(door, f"run{seed}", view=SETTLED, after_offset=after)
            assert resumed.offsets == [offset for offset in kept if offset > after]
        seen: list[int] = []
        position = Position()
        while True:
            request = ListRunEventsRequest(run_id=f"run{seed}", start=position, view=SETTLED, page_size=7)
            page = await door.stub.ListRunEvents(request)
            seen += [event.offset for event in page.events]
            if page.through_offset == page.log.last_offset:
                break
            position = Position(after_cursor=page.next_cursor)
        assert seen == kept


async def test_what_is_committed_later_is_as_in_the_log(door: Door, store: Store) -> None:
    """A live reader is settled up to where its read began; a Rollback after that is its own to apply."""
    log = await begun(store)
    await log.append(delta("void"), Event(rollback=Rollback(component_ids=[""], after_offset=1)), delta("kept"))
    reading = Reading(door, SubscribeRunRequest(run_id="run", view=SETTLED), SETTLED)
    await reading.next()
    await log.append(Event(rollback=Rollback(component_ids=[""], after_offset=1)), delta("new"))
    last = await log.close()
    live = await reading.rest()
    assert live.offsets == [1, 3, 4, 5, 6, last]
    again = await follow(door, view=SETTLED)
    assert again.offsets == [1, 3, 5, 6, last]
    assert fold(live.events) == fold(again.events) == fold((await follow(door)).events)


async def test_rollbacks_beyond_one_read(door: Door, store: Store) -> None:
    """The index of rollbacks is read in pieces, and carried on by the next reader."""
    log = await begun(store)
    for _ in range(3):
        await log.append(*(delta("x" * 2_000, "a") for _ in range(400)))
    through = await log.append(Event(rollback=Rollback(component_ids=["a"])), delta("kept", "a"))
    first = asyncio.create_task(follow(door, view=SETTLED, until=through))
    second = asyncio.create_task(follow(door, view=SETTLED, until=through))
    assert (await first).offsets == (await second).offsets == [1, through - 1, through]
    last = await log.close(Event(rollback=Rollback(component_ids=["a"], after_offset=through - 1)))
    assert (await follow(door, view=SETTLED)).offsets == [1, through - 1, last - 1, last]
