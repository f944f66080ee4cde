"""What a user sees of a run's log, against the plainest possible reading of the contract."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from onward.patch import Document, PatchError
from onward.payload import Blob, encode
from onward.v1.event_pb2 import (
    CHANGE_EVENT,
    CHANGE_PATCH,
    CHANGE_SET,
    CHANGE_UNSPECIFIED,
    CHANNEL_ITEM,
    CHANNEL_REASONING,
    CHANNEL_TEXT,
    CHANNEL_TOOL,
    CHANNEL_UNSPECIFIED,
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    WAIT_KIND_SIGNAL,
    AttemptStarted,
    ChildStarted,
    ComponentFinished,
    ComponentRetrying,
    ComponentStarted,
    Event,
    InputRequested,
    OutputDelta,
    Published,
    Rollback,
    RunStateChanged,
    RunWaiting,
    SignalReceived,
    StatusUpdated,
)
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_CANCELLING,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RUN_STATE_SUCCEEDED,
    Payload,
    RunError,
)
from onward.views import View, fold


def log(*events: Event) -> list[Event]:
    """Number events as the log does."""
    return [
        Event.FromString(event.SerializeToString() + Event(offset=offset).SerializeToString())
        for offset, event in enumerate(events, 1)
    ]


def queued() -> Event:
    return Event(run_state_changed=RunStateChanged(state=RUN_STATE_QUEUED))


def attempt(number: int) -> Event:
    return Event(attempt=number, attempt_started=AttemptStarted(deployment="v1"))


def started(component: str, parent: str = "", **fields: Any) -> Event:
    return Event(
        component_id=component,
        create_time=Timestamp(seconds=1),
        component_started=ComponentStarted(name=component.upper(), parent_id=parent, **fields),
    )


def finished(component: str, output: Any = None) -> Event:
    return Event(
        component_id=component,
        create_time=Timestamp(seconds=2),
        component_finished=ComponentFinished(outcome=OUTCOME_OK, output=encode(output)),
    )


def text(component: str, piece: str, part: int = 0) -> Event:
    return Event(component_id=component, output_delta=OutputDelta(part=part, text=piece))


def status(component: str, message: str) -> Event:
    return Event(component_id=component, status_updated=StatusUpdated(message=message))


def publish(component: str, name: str, value: Any, change: Any = CHANGE_EVENT) -> Event:
    return Event(component_id=component, published=Published(name=name, change=change, value=encode(value)))


def rollback(*components: str, after: int = 0) -> Event:
    return Event(rollback=Rollback(component_ids=components, after_offset=after))


def test_a_run_is_shown_as_it_went() -> None:
    """A run of two components, from acceptance to its output."""
    view = fold(
        log(
            queued(),
            attempt(1),
            status("", "Outlining"),
            started("a", input=encode({"topic": "tea"})),
            status("a", "Reading"),
            text("a", "one "),
            text("a", "two"),
            finished("a", ["x"]),
            Event(status_updated=StatusUpdated(message="Writing", done=0, total=2)),
            started("b"),
            started("c", "b"),
            text("", "The end"),
            Event(run_state_changed=RunStateChanged(state=RUN_STATE_SUCCEEDED, output=encode({"title": "Tea"}))),
        )
    )
    assert (view.state, view.done, view.attempt, view.deployment, view.offset) == ("SUCCEEDED", True, 1, "v1", 13)
    assert view.output == {"title": "Tea"}
    assert view.text == "The end"
    assert [component.id for component in view.children()] == ["a", "b"]
    assert [component.id for component in view.children("b")] == ["c"]
    a = view.components["a"]
    assert (a.name, a.state, a.tries, a.text, a.input, a.output) == ("A", "ok", 1, "one two", {"topic": "tea"}, ["x"])
    assert a.status is not None
    assert a.status.message == "Reading"
    assert a.started_time is not None
    assert a.finished_time is not None
    assert (a.finished_time - a.started_time).total_seconds() == 1
    assert [status.message for status in view.statuses] == ["Outlining", "Reading", "Writing"]
    assert view.status is not None
    assert (view.status.message, view.status.done, view.status.total) == ("Writing", 0, 2)
    assert view.components["b"].state == "cancelled", "nothing runs in a run that ended"


def test_every_kind_of_event_has_its_place() -> None:
    """Adding a kind to the contract without saying what a user sees of it is noticed here."""
    for kind in Event.DESCRIPTOR.oneofs_by_name["kind"].fields:
        event = Event(offset=1)
        getattr(event, kind.name).SetInParent()
        fold([event])


def test_a_kind_newer_than_the_reader_is_skipped_and_counted() -> None:
    """An unset kind changes nothing but the position."""
    event = Event.FromString(Event(offset=1).SerializeToString() + bytes([0xFA, 0x3F, 0]))  # field 127
    view = fold([event])
    assert view.offset == 1
    assert view.state == "UNSPECIFIED"


def test_an_event_that_comes_twice_counts_once() -> None:
    """Applying a log again changes nothing."""
    events = log(queued(), text("", "a"), status("", "b"))
    assert fold(events * 2) == fold(events)


def test_output_is_kept_by_part_and_channel() -> None:
    """Texts are joined in the order of their parts; items, tools and reasoning stand apart."""
    view = fold(
        log(
            text("", "B", part=3),
            Event(output_delta=OutputDelta(part=1, channel=CHANNEL_REASONING, text="hm")),
            Event(output_delta=OutputDelta(part=2, channel=CHANNEL_TOOL, value=encode({"call": 1}))),
            Event(output_delta=OutputDelta(part=4, channel=CHANNEL_ITEM, value=encode(1))),
            Event(output_delta=OutputDelta(part=4, channel=CHANNEL_ITEM, value=encode(None))),
            Event(output_delta=OutputDelta(part=0, channel=CHANNEL_UNSPECIFIED, text="A")),
            text("", "b", part=3),
        )
    )
    assert view.text == "ABb"
    assert view.body.reasoning == "hm"
    assert view.body.tools == [{"call": 1}]
    assert view.body.items == [1, None]
    assert view.body.parts[0].channel == CHANNEL_TEXT


def test_a_failed_try_is_shown_until_the_next_one_ends() -> None:
    """Tries are counted, the error of the last one stays visible, and success clears it."""
    failed = Event(
        component_id="a",
        component_retrying=ComponentRetrying(try_number=1, error=RunError(reason="COMPONENT_FAILED", message="no")),
    )
    view = fold(log(started("a"), failed))
    a = view.components["a"]
    assert (a.state, a.tries, a.retrying) == ("running", 2, True)
    assert a.error is not None
    assert a.error.message == "no"
    view = fold(log(started("a"), failed, started("a"), finished("a", 1)))
    a = view.components["a"]
    assert (a.state, a.tries, a.retrying, a.error, a.output) == ("ok", 2, False, None, 1)
    assert view.children() == [a]


def test_a_later_attempt_counts_tries_on() -> None:
    """A crash gives no new tries."""
    failed = Event(component_id="a", component_retrying=ComponentRetrying(try_number=3))
    view = fold(log(attempt(1), started("a"), failed, started("a"), attempt(2), started("a")))
    assert view.components["a"].tries == 4


def test_an_error_and_a_cancellation_are_told_apart() -> None:
    """A component's outcome is its state."""
    error = ComponentFinished(outcome=OUTCOME_ERROR, error=RunError(reason="TIMEOUT"))
    view = fold(
        log(
            started("a"),
            Event(component_id="a", component_finished=error),
            started("b"),
            Event(component_id="b", component_finished=ComponentFinished(outcome=OUTCOME_CANCELLED)),
        )
    )
    assert [component.state for component in view.children()] == ["error", "cancelled"]
    assert view.components["a"].error == RunError(reason="TIMEOUT")
    assert view.components["b"].error is None


def test_a_paused_run_says_why_until_it_goes_on() -> None:
    """The error of PAUSED goes away with the next attempt."""
    paused = Event(
        run_state_changed=RunStateChanged(
            state=RUN_STATE_PAUSED, error=RunError(reason="NON_DETERMINISTIC"), reason="code"
        )
    )
    view = fold(log(queued(), attempt(1), paused))
    assert view.state == "PAUSED"
    assert view.error is not None
    assert (view.error.reason, view.reason, view.done) == ("NON_DETERMINISTIC", "code", False)
    view = fold(log(queued(), attempt(1), paused, queued(), attempt(2)))
    assert (view.state, view.error, view.reason) == ("RUNNING", None, "")


def test_a_run_that_cleans_up_is_cancelling() -> None:
    """An attempt that only lets user code clean up does not make the run look alive."""
    cancelling = Event(run_state_changed=RunStateChanged(state=RUN_STATE_CANCELLING, reason="by Ann"))
    events = log(queued(), attempt(1), cancelling, attempt(2))
    assert (fold(events).state, fold(events).reason) == ("CANCELLING", "by Ann")
    end = Event(offset=9, run_state_changed=RunStateChanged(state=RUN_STATE_CANCELLED))
    assert fold([*events, end]).done


def test_waiting_and_questions() -> None:
    """A question is open until a signal of its name came, the oldest first, or its instance ended."""

    def ask(component: str, name: str) -> Event:
        schema = encode({"type": "boolean"})
        return Event(component_id=component, input_requested=InputRequested(name=name, prompt="Ok?", schema=schema))

    waiting = RunWaiting(reason="signal ok", kinds=[WAIT_KIND_SIGNAL, 99], signals=["ok"])  # type: ignore[list-item]
    events = log(ask("a", "ok"), ask("b", "ok"), ask("c", "other"), ask("d", "ok"), Event(run_waiting=waiting))
    view = fold(events)
    assert view.state == "WAITING"
    assert view.waiting is not None
    assert (view.waiting.kinds, view.waiting.signals, view.waiting.wake_time) == (("SIGNAL", "99"), ("ok",), None)
    assert [request.component_id for request in view.requests] == ["a", "b", "c", "d"]
    assert view.requests[0].schema == {"type": "boolean"}

    view.apply(Event(offset=6, signal_received=SignalReceived(name="ok")))
    view.apply(Event(offset=7, signal_received=SignalReceived(name="nobody")))
    view.apply(Event(offset=8, component_id="d", component_finished=ComponentFinished(outcome=OUTCOME_OK)))
    view.apply(Event(offset=9, attempt=2, attempt_started=AttemptStarted()))
    assert [request.component_id for request in view.requests] == ["b", "c"]
    assert view.waiting is None


def test_child_runs_are_listed() -> None:
    """A run says what it started."""
    event = Event(component_id="a", child_started=ChildStarted(run_id="r", workflow="w", detached=True))
    [child] = fold(log(event)).child_runs
    assert (child.run_id, child.workflow, child.component_id, child.detached) == ("r", "w", "a", True)


def test_published_states_follow_their_patches() -> None:
    """Sets replace, patches patch, what does not apply is skipped whole."""
    append = [{"op": "append", "path": "/text", "value": "lo"}, {"op": "add", "path": "/n", "value": 1}]
    half = [{"op": "replace", "path": "/text", "value": "!"}, {"op": "remove", "path": "/nothing"}]
    view = fold(
        log(
            publish("", "doc", append, CHANGE_PATCH),  # nothing to patch yet
            publish("", "doc", {"text": "hel"}, CHANGE_SET),
            publish("", "doc", append, CHANGE_PATCH),
            publish("", "doc", half, CHANGE_PATCH),
            publish("", "doc", "an event of the same name", CHANGE_UNSPECIFIED),
            Event(published=Published(name="doc", change=CHANGE_PATCH, value=Payload(data=b"[broken"))),
        )
    )
    assert view.states == {"doc": {"text": "hello", "n": 1}}
    assert view.events == {"doc": ["an event of the same name"]}


def test_a_state_outside_the_log_is_named_not_guessed() -> None:
    """A large value is a Blob; patches to it are for a reader that has it."""
    blob = Published(name="doc", change=CHANGE_SET, value=Payload(blob_uri="b:1", size=9))
    view = fold(log(Event(published=blob), publish("", "doc", [{"op": "remove", "path": "/a"}], CHANGE_PATCH)))
    assert view.states == {"doc": Blob("b:1", "application/json", 9)}


def test_a_void_patch_never_was() -> None:
    """What came after it is applied again, to what there would have been, also what did not apply before."""
    events = log(
        publish("", "doc", {"n": 0}, CHANGE_SET),
        publish("a", "doc", [{"op": "replace", "path": "/n", "value": 1}], CHANGE_PATCH),
        publish(
            "b",
            "doc",
            [{"op": "test", "path": "/n", "value": 0}, {"op": "add", "path": "/b", "value": 1}],
            CHANGE_PATCH,
        ),
        publish("b", "doc", [{"op": "add", "path": "/c", "value": 1}], CHANGE_PATCH),
        rollback("a"),
    )
    view = View()
    for event in events[:-1]:
        view.apply(event)
        assert isinstance(view.states, dict), "reading between events changes nothing"
    assert view.states == {"doc": {"n": 1, "c": 1}}
    view.apply(events[-1])
    assert view.states == {"doc": {"n": 0, "b": 1, "c": 1}}


def test_a_rollback_voids_what_it_names_and_nothing_else() -> None:
    """Deltas, statuses and published values of those ids after the offset; never results, never others."""
    view = fold(
        log(
            started("a"),
            started("b", "a"),
            text("a", "kept "),
            text("a", "void"),
            text("b", "child's"),
            status("a", "void"),
            publish("a", "name", "void"),
            publish("b", "name", "kept"),
            finished("a", 7),
            rollback("a", "never seen", after=3),
            text("a", "new"),
        )
    )
    assert view.components["a"].text == "kept new"
    assert view.components["b"].text == "child's"
    assert view.statuses == []
    assert view.events == {"name": ["kept"]}
    assert (view.components["a"].state, view.components["a"].output) == ("ok", 7)


def test_the_empty_id_is_the_body() -> None:
    """A Rollback that names it voids the run's own output."""
    view = fold(log(text("", "void"), text("a", "a"), rollback("")))
    assert view.text == ""
    assert view.components["a"].text == "a"


def test_a_large_run_with_many_rollbacks_folds_fast() -> None:
    """A hundred thousand events and a thousand rollbacks: no rollback reads the log again."""
    events = log(
        started("a"),
        publish("a", "doc", {"text": ""}, CHANGE_SET),
        *(
            rollback("a", "b", after=offset - 5)
            if offset % 100 == 0
            else publish("b", "doc", [{"op": "append", "path": "/text", "value": "word "}], CHANGE_PATCH)
            if offset % 10 == 0
            else text("a", "word ")
            for offset in range(3, 100_001)
        ),
    )
    begin = time.process_time()
    view = View()
    for event in events:
        view.apply(event)
        if event.offset % 100 == 50:
            assert view.states
    assert view.components["a"].text
    # About 0.4 s on a slow machine; reading the log again for each rollback would take minutes.
    assert time.process_time() - begin < 10


COMPONENTS = ["", "a", "b", "c"]
components = st.sampled_from(COMPONENTS)
names = st.sampled_from(["doc", "log"])
values = st.sampled_from([0, 1, "x", {"n": 0}, {"n": 1, "t": "x"}, [1], None])
patches = st.lists(
    st.fixed_dictionaries(
        {
            "op": st.sampled_from(["add", "remove", "replace", "test", "append"]),
            "path": st.sampled_from(["", "/n", "/t", "/0", "/-"]),
            "value": values,
        }
    ),
    max_size=3,
)
shown = st.one_of(
    st.builds(text, components, st.text("xyz", max_size=3), st.integers(0, 2)),
    st.builds(
        lambda component, value, part: Event(
            component_id=component, output_delta=OutputDelta(part=part, channel=CHANNEL_ITEM, value=encode(value))
        ),
        components,
        values,
        st.integers(0, 2),
    ),
    st.builds(status, components, st.text("xyz", max_size=3)),
    st.builds(publish, components, names, values, st.sampled_from([CHANGE_EVENT, CHANGE_SET])),
    st.builds(publish, components, names, patches, st.just(CHANGE_PATCH)),
)
others = st.one_of(
    st.builds(started, components, components),
    st.builds(finished, components, values),
    st.builds(attempt, st.integers(1, 4)),
    st.just(Event()),
)
rollbacks = st.tuples(st.lists(components, min_size=1, max_size=3), st.floats(0, 1.2))


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Random logs whose rollbacks go back to anywhere, even to after themselves."""
    events: list[Event] = []
    for item in draw(st.lists(shown | shown | others | rollbacks, max_size=40)):
        if isinstance(item, tuple):
            ids, share = item
            item = rollback(*ids, after=int(share * len(events)))
        events.append(item)
    return log(*events)


def settled(events: list[Event]) -> list[Event]:
    """The contract's VIEW_SETTLED, word for word."""

    def void(event: Event) -> bool:
        return event.WhichOneof("kind") in ("output_delta", "status_updated", "published") and any(
            event.component_id in each.rollback.component_ids
            and each.rollback.after_offset < event.offset < each.offset
            for each in events
            if each.HasField("rollback")
        )

    return [event for event in events if not void(event)]


def read(events: Iterable[Event]) -> dict[str, Any]:
    """What settled events show, read without any cleverness."""
    texts: dict[str, dict[int, str]] = {}
    items: dict[str, dict[int, list[Any]]] = {}
    statuses: list[tuple[str, str]] = []
    published: dict[str, list[Any]] = {}
    states: dict[str, Any] = {}
    for event in events:
        match event.WhichOneof("kind"):
            case "output_delta":
                delta = event.output_delta
                part = texts.setdefault(event.component_id, {})
                part[delta.part] = part.get(delta.part, "") + delta.text
                if delta.HasField("value"):
                    parts = items.setdefault(event.component_id, {})
                    parts.setdefault(delta.part, []).append(json.loads(delta.value.data))
            case "status_updated":
                statuses.append((event.component_id, event.status_updated.message))
            case "published":
                name, value = event.published.name, json.loads(event.published.value.data)
                if event.published.change == CHANGE_EVENT:
                    published.setdefault(name, []).append(value)
                elif event.published.change == CHANGE_SET:
                    states[name] = value
                elif name in states:
                    document = Document(deepcopy(states[name]))
                    try:
                        document.patch(value)
                    except PatchError:
                        continue
                    states[name] = document.value
    return {"texts": texts, "items": items, "statuses": statuses, "published": published, "states": states}


def summary(view: View) -> dict[str, Any]:
    """What a View shows, in the words of `read`."""
    by_id = {"": view.body} | view.components
    parts = {component.id: component.parts for component in by_id.values() if component.parts}
    return {
        "texts": {key: {number: part.text for number, part in each.items()} for key, each in parts.items()},
        "items": {
            key: kept
            for key, each in parts.items()
            if (kept := {number: part.values for number, part in each.items() if part.values})
        },
        "statuses": [(status.component_id, status.message) for status in view.statuses],
        "published": view.events,
        "states": view.states,
    }


@given(logs())
def test_folding_shows_what_the_contract_says(events: list[Event]) -> None:
    """Folding the raw log gives what filtering it first and reading it plainly gives."""
    assert summary(fold(events)) == read(settled(events))


@given(logs())
def test_raw_and_settled_give_the_same(events: list[Event]) -> None:
    """A client that joins next day sees what one that watched live sees."""
    assert fold(events) == fold(settled(events))


@given(logs(), st.data())
def test_reading_in_between_changes_nothing(events: list[Event], data: st.DataObject) -> None:
    """A view read after any event, or fed a settled beginning, shows what folding all at once shows."""
    view = View()
    for count, event in enumerate(events, 1):
        view.apply(event)
        if data.draw(st.booleans()):
            assert view == fold(events[:count])
    joined = data.draw(st.integers(0, len(events)))
    assert fold([*settled(events[:joined]), *events[joined:]]) == view
