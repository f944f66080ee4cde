"""The checker finds what is planted between runs: in what they left, and in what starts and continues them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import onward
from onward import children, component, status, testing, workflow
from onward.instance import CURRENT
from onward.log import ENDED
from onward.past import Past
from onward.testing import Relative, Result
from onward.testing.family import Family
from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_RUNNING, Run
from onward.waits import Waits

MARKS = r"<\w+(#\w+)>"


@component
async def make(topic: str) -> str:
    return f"<{topic}#{secrets.token_hex(2)}>"


@workflow
async def write(source: str) -> str:
    status(f"from {source}")
    return await make("page")


@workflow
async def guard() -> None:
    await onward.signal("never")


@workflow
async def chat(number: int = 0) -> list[Any]:
    """Passes over words until it is told a number; what it goes on as takes the words."""
    if not number:
        onward.continue_as(chat, await onward.signal("say", int))
    return [number, await onward.signal("say", str), await onward.signal("say", str)]


@component.retry(2, 0)
async def unlucky(source: str) -> str:
    child = await onward.start_child(write, source)
    text = await child.result()
    instance = CURRENT.get()
    assert instance is not None
    if instance.number == 1:
        raise ConnectionError
    return text


@workflow
async def parent() -> list[Any]:
    source = await make("source")
    await onward.start_child(guard)
    talk = await onward.start_child(chat)
    pages = [await unlucky(source), *await asyncio.gather(*[_page(source) for _ in range(2)])]
    return [pages, await talk.result()]


async def _page(source: str) -> str:
    return await (await onward.start_child(write, source)).result()


def family(result: Result[Any]) -> Iterator[Result[Any]]:
    yield result
    for child in result.children:
        yield from family(child)


async def tell(*crashes: testing.Point | int) -> list[Relative]:
    """Return what is left of a run and its family: one child failed to be enough, one went on, one was never to end."""
    said = iter(["one", "two", 3])
    with testing.no_replay(), testing.crash(*crashes), testing.signals({"say": lambda _: next(said, "more")}):
        result = await testing.run(parent)
    return [Relative(one.events, one.record) for one in family(result)]


def found(relatives: list[Relative]) -> set[str]:
    return {str(one.invariant) for one in testing.check_relatives(relatives, marks=MARKS)}


async def test_nothing_is_found_where_nothing_is_wrong() -> None:
    """In a family whose first run lost its executor at four places."""
    relatives = await tell(4, 9, 20, 33)
    everything = testing.check_relatives(relatives, marks=MARKS)
    assert not everything, [str(one) for one in everything]
    assert len(relatives) == 8
    assert relatives[0].record.attempt >= 5
    words = [event.signal_received.value.data for event in of(relatives, "chat", 1).events if is_word(event)]
    assert words == [b'"one"', b'"two"'], "it was given what its predecessor had passed over"


def is_word(event: Event) -> bool:
    return event.signal_received.name == "say"


def of(relatives: list[Relative], name: str, nth: int = 0) -> Relative:
    return [one for one in relatives if one.record.workflow == name][nth]


def changed(events: Iterable[Event], kind: str, change: Callable[[Event], Event | None]) -> list[Event]:
    """Return a log whose first event of a kind (of a signal's name, where it has one) was changed, or left out."""
    kept: list[Event] = []
    done = False
    for event in events:
        name = event.signal_received.name
        if not done and (event.WhichOneof("kind") == kind or (name and name.startswith(kind))):
            done = True
            event = change(a_copy(event)) or event
            kept += [] if event.offset == GONE else [event]
        else:
            kept.append(event)
    assert done
    return kept


GONE = -1


def a_copy(event: Event) -> Event:
    copy = Event()
    copy.CopyFrom(event)
    return copy


def with_log(relatives: list[Relative], one: Relative, events: list[Event]) -> list[Relative]:
    return [Relative(events, one.record) if each is one else each for each in relatives]


# What is planted in what was left


def a_second_child(relatives: list[Relative]) -> list[Relative]:
    """Of one call."""
    events = [*relatives[0].events]
    place = next(index for index, event in enumerate(events) if event.HasField("child_started"))
    twin = a_copy(events[place])
    twin.child_started.run_id = "twin"
    return with_log(relatives, relatives[0], [*events[:place], twin, *events[place:]])


def a_child_that_is_started_again(relatives: list[Relative]) -> list[Relative]:
    events = [*relatives[0].events]
    place = next(index for index, event in enumerate(events) if event.HasField("child_started"))
    return with_log(relatives, relatives[0], [*events[:place], events[place], *events[place:]])


def a_child_that_nobody_started(relatives: list[Relative]) -> list[Relative]:
    record = Run(run_id="stranger", parent_run_id=relatives[0].record.run_id, state=RUN_STATE_CANCELLED)
    return [*relatives, Relative([], record)]


def a_child_that_is_not_there(relatives: list[Relative]) -> list[Relative]:
    return [one for one in relatives if one is not of(relatives, "guard")]


def a_child_of_another_kind(relatives: list[Relative]) -> list[Relative]:
    of(relatives, "guard").record.detached = True
    return relatives


def a_child_that_goes_on_alone(relatives: list[Relative]) -> list[Relative]:
    of(relatives, "guard").record.state = RUN_STATE_RUNNING
    return relatives


def a_gift_that_nobody_had(relatives: list[Relative]) -> list[Relative]:
    one = of(relatives, "write")
    one.record.input.data = one.record.input.data.replace(b"<source#", b"<source#f")
    return relatives


def another_end_than_is_told(relatives: list[Relative]) -> list[Relative]:
    of(relatives, "write").record.output.data = b'"else"'
    return relatives


def an_end_that_is_told_twice(relatives: list[Relative]) -> list[Relative]:
    events = relatives[0].events
    told = next(event for event in events if event.signal_received.name.startswith(ENDED))
    return with_log(relatives, relatives[0], [*events, told])


def an_end_of_a_stranger(relatives: list[Relative]) -> list[Relative]:
    def strange(event: Event) -> Event:
        event.signal_received.name = ENDED + "stranger"
        return event

    return with_log(relatives, relatives[0], changed(relatives[0].events, ENDED, strange))


def a_chain_without_its_end(relatives: list[Relative]) -> list[Relative]:
    return [one for one in relatives if one is not of(relatives, "chat", 1)]


def two_that_go_on(relatives: list[Relative]) -> list[Relative]:
    record = Run()
    record.CopyFrom(of(relatives, "chat", 1).record)
    record.run_id = "twin"
    return [*relatives, Relative(of(relatives, "chat", 1).events, record)]


def another_link(relatives: list[Relative]) -> list[Relative]:
    of(relatives, "chat", 1).record.first_run_id = "stranger"
    return relatives


def a_record_that_does_not_go_on(relatives: list[Relative]) -> list[Relative]:
    of(relatives, "chat").record.continued_as_run_id = ""
    return relatives


def a_signal_that_is_lost(relatives: list[Relative]) -> list[Relative]:
    one = of(relatives, "chat", 1)

    def left_out(event: Event) -> Event:
        event.offset = GONE
        return event

    return with_log(relatives, one, changed(one.events, "say", left_out))


def a_signal_that_comes_twice(relatives: list[Relative]) -> list[Relative]:
    one = of(relatives, "chat", 1)
    return with_log(relatives, one, [*one.events, next(filter(is_word, one.events))])


def signals_that_overtake(relatives: list[Relative]) -> list[Relative]:
    one = of(relatives, "chat", 1)
    first, second = filter(is_word, one.events)
    order = {first.offset: second, second.offset: first}
    return with_log(relatives, one, [order.get(event.offset, event) for event in one.events])


PLANTED: dict[Callable[[list[Relative]], list[Relative]], str] = {
    a_second_child: "done once",
    a_child_that_is_started_again: "done once",
    a_child_that_nobody_started: "done once",
    a_child_that_is_not_there: "accepted is kept",
    a_child_of_another_kind: "accepted is kept",
    a_child_that_goes_on_alone: "one end",
    a_gift_that_nobody_had: "acknowledged before used",
    another_end_than_is_told: "one end",
    an_end_that_is_told_twice: "done once",
    an_end_of_a_stranger: "one end",
    a_chain_without_its_end: "accepted is kept",
    two_that_go_on: "done once",
    another_link: "accepted is kept",
    a_record_that_does_not_go_on: "one end",
    a_signal_that_is_lost: "accepted is kept",
    a_signal_that_comes_twice: "done once",
    signals_that_overtake: "accepted is kept",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
async def test_what_is_planted_in_a_family_is_found(plant: Callable[[list[Relative]], list[Relative]]) -> None:
    """Each by its own invariant."""
    assert PLANTED[plant] in found(plant(await tell()))


# Bugs in the engine, and in who does what runs ask for


def children_with_names_by_chance(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(children, "_run_id", lambda instance: secrets.token_hex(13))


def children_that_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Past, "_child", lambda self, event: None)
    patch.setattr(children._Start, "began", began_again)  # noqa: SLF001


def began_again(self: Any, instance: Any) -> None:
    """Write that the child was started, whether or not an earlier attempt had."""
    instance.journal.children_started.discard(self.start.run_id)
    BEGAN(self, instance)


BEGAN = children._Start.began  # noqa: SLF001


def ends_that_are_nobody_elses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Family, "_cancel", lambda self, member, reason: None)


def signals_that_stay_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Waits, "untaken", lambda self: ([], 10**6))


WHERE_A_CHILD_IS_STARTED = testing.Point(
    "where a child is started", lambda: lambda event: event.HasField("child_started")
)

BUGS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    children_with_names_by_chance: "done once",
    children_that_are_forgotten: "done once",
    ends_that_are_nobody_elses: "one end",
    signals_that_stay_behind: "accepted is kept",
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
async def test_what_is_planted_in_the_engine_is_found(bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Nobody tells the checker where to look: it has what the runs left."""
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        relatives = await tell(WHERE_A_CHILD_IS_STARTED)
    assert BUGS[bug] in found(relatives)
