"""status and publish inside a run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from onward import component, publish, status, testing, workflow
from onward.v1.event_pb2 import CHANGE_EVENT, CHANGE_PATCH, CHANGE_SET, Event, StatusUpdated


def statuses(events: list[Event]) -> list[StatusUpdated]:
    return [event.status_updated for event in events if event.HasField("status_updated")]


async def test_a_status_belongs_to_who_says_it() -> None:
    """The body's to the run, a component's to its instance."""

    @component
    async def work() -> None:
        status("component")

    @workflow
    async def flow() -> None:
        status("body")
        await work()

    events = (await testing.run(flow)).events
    shown = {event.status_updated.message: event.component_id for event in events if event.HasField("status_updated")}
    (work_id,) = [event.component_id for event in events if event.HasField("component_started")]
    assert shown == {"body": "", "component": work_id}


async def test_a_status_counts() -> None:
    """0 is a number, and None is none."""

    @workflow
    async def flow() -> None:
        status("a")
        status("b", done=0, total=0)
        status("c", done=3)

    told = statuses((await testing.run(flow)).events)
    assert [(one.HasField("done"), one.done, one.HasField("total")) for one in told] == [
        (False, 0, False),
        (True, 0, True),
        (True, 3, False),
    ]


async def test_a_status_is_one_line() -> None:
    """Line breaks become spaces, and a novel is cut."""

    @workflow
    async def flow() -> None:
        status("a\nb\r\nc")
        status("x" * 5_000)
        status("\ud83d")

    told = statuses((await testing.run(flow)).events)
    assert told[0].message == "a b c"
    assert len(told[1].message) == 1_000
    assert told[1].message.endswith("…")
    assert told[2].message == "\ufffd"


async def test_statuses_of_a_thread_arrive_in_order() -> None:
    """Before the component's end, and as its own."""

    @component
    def work() -> None:
        for number in range(1_000):
            status(str(number))

    @workflow
    async def flow() -> None:
        await asyncio.gather(work(), work())

    events = (await testing.run(flow)).events
    instances = [event.component_id for event in events if event.HasField("component_started")]
    assert len(instances) == 2
    for instance in instances:
        own = [event for event in events if event.component_id == instance]
        said = [event.status_updated.message for event in own if event.HasField("status_updated")]
        assert said == [str(number) for number in range(1_000)]
        assert own[-1].HasField("component_finished")


async def test_what_a_thread_says_after_its_time_is_dropped() -> None:
    """A thread cannot be stopped, but its words do not count any more."""
    loop = asyncio.get_running_loop()
    go, gone = asyncio.Event(), asyncio.Event()

    @component.timeout("5ms")
    def work() -> None:
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()
        status("too late")
        loop.call_soon_threadsafe(gone.set)

    @workflow
    async def flow() -> None:
        try:
            await work()
        finally:
            go.set()
            await gone.wait()

    result = await testing.run(flow)
    assert result.state == "FAILED"
    assert result.statuses == []


async def test_publish_says_how_to_apply_it() -> None:
    """Events, states and patches."""

    @workflow
    async def flow() -> None:
        publish("found", {"url": "x"})
        publish("found", None)
        publish.state("draft", {"text": "a"})
        publish.patch("draft", [{"op": "append", "path": "/text", "value": "b"}])

    result = await testing.run(flow)
    told = [event.published for event in result.events if event.HasField("published")]
    assert [(one.name, one.change) for one in told] == [
        ("found", CHANGE_EVENT),
        ("found", CHANGE_EVENT),
        ("draft", CHANGE_SET),
        ("draft", CHANGE_PATCH),
    ]
    assert result.view.events == {"found": [{"url": "x"}, None]}
    assert result.view.states == {"draft": {"text": "ab"}}


async def test_what_is_published_is_what_it_was_then() -> None:
    """Changing the object later changes nothing."""

    @workflow
    async def flow() -> None:
        items = [1]
        publish.state("items", items)
        items.append(2)
        publish("raw", b"\xff")

    result = await testing.run(flow)
    assert result.view.states == {"items": [1]}
    assert (
        json.loads([event.published for event in result.events if event.HasField("published")][1].value.data) == "_w=="
    )


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "ä", "a/b"])
def test_a_published_name_has_a_form(name: str) -> None:
    """It ends up in URLs."""
    with pytest.raises(ValueError, match="published name"):
        publish(name, 1)


def test_mistakes_are_told_where_they_are_made() -> None:
    """In a run and outside it."""
    wrong: Any = 1.5
    with pytest.raises(TypeError, match="a status is text, not float"):
        status(wrong)
    with pytest.raises(TypeError, match="done is a whole number, not float"):
        status("a", done=wrong)
    with pytest.raises(ValueError, match="total is 0 or more"):
        status("a", total=-1)
    with pytest.raises(TypeError, match="'x' is a object that has no JSON form"):
        publish("x", object())
    with pytest.raises(ValueError, match="at most 262144"):
        publish.state("x", "y" * 300_000)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"path": "/a", "value": 1}, "None is no patch operation"),
        ({"op": "set", "path": "/a", "value": 1}, "'set' is no patch operation"),
        ({"op": "add", "value": 1}, "lacks 'path'"),
        ({"op": "add", "path": "/a"}, "lacks 'value'"),
        ({"op": "move", "path": "/a"}, "lacks 'from'"),
        ({"op": "remove", "path": "a"}, "no JSON Pointer"),
    ],
)
def test_a_patch_that_can_never_apply_is_refused(operation: dict[str, Any], message: str) -> None:
    """Every reader would skip it in silence."""
    with pytest.raises(ValueError, match=message):
        publish.patch("x", [operation])
