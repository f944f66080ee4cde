"""The console's reading of a log is the SDK's: random logs, folded in both."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.async_api import Page, Route
from tests.unit.test_fold import components, log, shown, started, text
from tests.unit.test_patch import APPLIES, FAILS
from tests.web.browser import browsing, needs_chromium, page_of

from onward.patch import Document, PatchError
from onward.payload import Blob, encode
from onward.v1.event_pb2 import (
    CHANGE_PATCH,
    CHANGE_SET,
    CHANNEL_REASONING,
    CHANNEL_TOOL,
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    AttemptStarted,
    Channel,
    ChildStarted,
    ComponentFinished,
    ComponentRetrying,
    Event,
    InputRequested,
    OutputDelta,
    Published,
    Rollback,
    RunStateChanged,
    RunWaiting,
    SignalReceived,
    StatusUpdated,
    WaitKind,
)
from onward.v1.run_pb2 import Payload, RunError, RunState
from onward.views import Component, Status, View, fold
from onward_gateway.http.console import FILES
from onward_gateway.http.documents import document_of, event_document

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("view")]

RUN_ID = "r"

FOLD = """async (text) => {
    const { View, decode, Blob, Bytes } = await import("/view.js");
    const view = new View();
    for (const event of JSON.parse(text)) view.apply(event);
    const value = (one) =>
        one instanceof Blob ? { blob: one.url, size: one.size }
        : one instanceof Bytes ? { base64: one.base64 }
        : one === undefined ? "undefined" : one;
    const error = (one) => one && { retryable: false, ...one };
    const component = (one) => ({
        id: one.id, name: one.name, parent_id: one.parentId, state: one.state, tries: one.tries, retrying: one.retrying,
        error: error(one.error), started: one.startedTime, finished: one.finishedTime, due: one.dueTime,
        input: value(decode(one.input)), output: value(decode(one.output)), cached: one.cached,
        statuses: one.statuses,
        parts: one.ordered.map((part) => [part.number, part.channel, part.texts, part.values.map(value)]),
        text: one.text, reasoning: one.reasoning, items: one.items.map(value), tools: one.tools.map(value),
        children: view.children(one.id).map((child) => child.id),
    });
    const map = (entries, as) => Object.fromEntries([...entries].map(([name, one]) => [name, as(one)]));
    return JSON.stringify({
        offset: view.offset, state: view.state, done: view.done, attempt: view.attempt, deployment: view.deployment,
        output: value(decode(view.output)), error: error(view.error), reason: view.reason, waiting: view.waiting,
        continued_as: view.continuedAs,
        components: [...view.instances()].map(component), child_runs: view.childRuns,
        requests: view.requests.map((one) => ({ ...one, schema: value(one.schema) })),
        events: map(view.events, (list) => list.map(value)), states: map(view.states, value),
        statuses: view.statuses, status: view.status, text: view.text,
    });
}"""


def told(view: View) -> dict[str, Any]:
    """The same of a View in Python."""

    def time(at: datetime | None) -> str | None:
        return None if at is None else f"{at:%Y-%m-%dT%H:%M:%S.%f}Z"

    def value(one: Any) -> Any:
        if isinstance(one, Blob):
            return {"blob": f"/v1/runs/{RUN_ID}/blobs/{one.uri.removeprefix('blob:')}", "size": one.size}
        return {"base64": base64.b64encode(one).decode()} if isinstance(one, bytes) else one

    def error(one: RunError | None) -> Any:
        return None if one is None else {"retryable": False, **document_of(one, RUN_ID)}

    def status(one: Status | None) -> Any:
        return one and {
            "offset": one.offset,
            "componentId": one.component_id,
            "message": one.message,
            "done": one.done,
            "total": one.total,
            "time": time(one.time),
        }

    def component(one: Component) -> dict[str, Any]:
        return {
            "id": one.id,
            "name": one.name,
            "parent_id": one.parent_id,
            "state": one.state,
            "tries": one.tries,
            "retrying": one.retrying,
            "error": error(one.error),
            "started": time(one.started_time),
            "finished": time(one.finished_time),
            "due": time(one.due_time),
            "input": value(one.input),
            "output": value(one.output),
            "cached": one.cached,
            "statuses": list(map(status, one.statuses)),
            "parts": [
                [number, Channel.Name(part.channel).removeprefix("CHANNEL_"), part.texts, list(map(value, part.values))]
                for number, part in sorted(one.parts.items())
            ],
            "text": one.text,
            "reasoning": one.reasoning,
            "items": list(map(value, one.items)),
            "tools": list(map(value, one.tools)),
            "children": [child.id for child in view.children(one.id)],
        }

    waiting = view.waiting
    return {
        "offset": view.offset,
        "state": view.state,
        "done": view.done,
        "attempt": view.attempt,
        "deployment": view.deployment,
        "output": value(view.output),
        "error": error(view.error),
        "reason": view.reason,
        "continued_as": view.continued_as,
        "waiting": waiting
        and {
            "reason": waiting.reason,
            "kinds": list(waiting.kinds),
            "signals": list(waiting.signals),
            "wakeTime": time(waiting.wake_time),
        },
        "components": [component(one) for one in (view.body, *view.components.values())],
        "child_runs": [
            {"runId": one.run_id, "workflow": one.workflow, "componentId": one.component_id, "detached": one.detached}
            for one in view.child_runs
        ],
        "requests": [
            {
                "offset": one.offset,
                "componentId": one.component_id,
                "name": one.name,
                "prompt": one.prompt,
                "schema": value(one.schema),
                "expireTime": time(one.expire_time),
            }
            for one in view.requests
        ],
        "events": {name: list(map(value, values)) for name, values in view.events.items()},
        "states": {name: value(state) for name, state in view.states.items()},
        "statuses": list(map(status, view.statuses)),
        "status": status(view.status),
        "text": view.text,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page() -> AsyncIterator[Page]:
    """An empty page, and the console's files beside it."""

    async def give(route: Route) -> None:
        name = route.request.url.removeprefix("http://files.invalid/")
        if name:
            await route.fulfill(body=(FILES / name).read_bytes(), content_type="text/javascript")
        else:
            await route.fulfill(body="", content_type="text/html")

    async with browsing() as browser, page_of(browser) as page:
        await page.route("**/*", give)
        await page.goto("http://files.invalid/")
        yield page


errors = st.builds(
    RunError,
    reason=st.sampled_from(["", "COMPONENT_FAILED"]),
    message=st.sampled_from(["", "no"]),
    retryable=st.booleans(),
)
payloads = st.one_of(
    st.builds(encode, st.sampled_from([None, 0, "", "x", {"a": [1]}, [], False, {"__proto__": 1}])),
    st.just(Payload()),
    st.just(Payload(size=5_000)),
    st.just(Payload(blob_uri="blob:1-1", size=9)),
    st.just(Payload(media_type="text/plain", data="grüß".encode())),
    st.just(Payload(media_type="image/png", data=b"\x89PNG")),
    st.just(Payload(data=b"{broken")),
)
tokens = st.sampled_from(["", "n", "t", "0", "1", "00", "-", "-1", "a/b", "~", "__proto__", "constructor", "é"])
pointers = st.lists(tokens, max_size=3).map(
    lambda path: "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in path)
) | st.sampled_from(["n", "/~", "/~2", None, 7])
inside = st.recursive(
    st.sampled_from([0, 1, 1.0, -1, True, False, None, "", "x", "10"]),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(tokens, deeper, max_size=3),
    max_leaves=6,
)
operations = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "test", "append", "move", "copy", "else"]), "path": pointers},
    optional={"value": inside, "from": pointers},
)
patches: st.SearchStrategy[Any] = st.lists(operations | st.just({}), max_size=3) | st.sampled_from([None, {}, "x"])
changes = st.builds(
    lambda component, name, value, change: Event(
        component_id=component, published=Published(name=name, change=change, value=encode(value))
    ),
    components,
    st.sampled_from(["doc", "", "__proto__"]),
    patches,
    st.just(CHANGE_PATCH),
) | st.builds(
    lambda component, name, value: Event(
        component_id=component, published=Published(name=name, change=CHANGE_SET, value=value)
    ),
    components,
    st.sampled_from(["doc", "", "__proto__"]),
    payloads | inside.map(encode),
)
lives = st.one_of(
    st.builds(started, components, components, input=payloads),
    st.builds(
        lambda component, outcome, output, error, cached: Event(
            component_id=component,
            component_finished=ComponentFinished(outcome=outcome, output=output, error=error, cached=cached),
        ),
        components,
        st.sampled_from([0, OUTCOME_OK, OUTCOME_ERROR, OUTCOME_CANCELLED]),
        payloads,
        errors | st.none(),
        st.booleans(),
    ),
    st.builds(
        lambda component, number, error: Event(
            component_id=component, component_retrying=ComponentRetrying(try_number=number, error=error)
        ),
        components,
        st.integers(0, 3),
        errors | st.none(),
    ),
    st.builds(
        lambda state, output, error, reason, successor: Event(
            run_state_changed=RunStateChanged(
                state=state, output=output, error=error, reason=reason, continued_as_run_id=successor
            )
        ),
        st.sampled_from(list(RunState.values())),
        payloads | st.none(),
        errors | st.none(),
        st.sampled_from(["", "by Ann"]),
        st.sampled_from(["", "next"]),
    ),
    st.builds(
        lambda number: Event(attempt=number, attempt_started=AttemptStarted(deployment=f"v{number}")), st.integers(1, 4)
    ),
    st.builds(
        lambda component, name, schema: Event(
            component_id=component, input_requested=InputRequested(name=name, prompt="Ok?", schema=schema)
        ),
        components,
        st.sampled_from(["ok", ""]),
        payloads,
    ),
    st.builds(lambda name: Event(signal_received=SignalReceived(name=name)), st.sampled_from(["ok", "", "other"])),
    st.builds(
        lambda kinds, signals: Event(run_waiting=RunWaiting(reason="why", kinds=kinds, signals=signals)),
        st.lists(st.sampled_from(list(WaitKind.values())), max_size=2, unique=True),
        st.lists(st.just("ok"), max_size=1),
    ),
    st.builds(lambda component: Event(component_id=component, child_started=ChildStarted(run_id="c")), components),
    st.builds(
        lambda component, channel, value, piece: Event(
            component_id=component, output_delta=OutputDelta(channel=channel, value=value, text=piece)
        ),
        components,
        st.sampled_from([CHANNEL_TOOL, CHANNEL_REASONING]),
        payloads | st.none(),
        st.sampled_from(["", "hm"]),
    ),
    st.builds(
        lambda component, done, total: Event(
            component_id=component, status_updated=StatusUpdated(message="m", done=done, total=total)
        ),
        components,
        st.sampled_from([None, 0, 3]),
        st.sampled_from([None, 0, 9]),
    ),
    st.just(Event()),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Every kind of event, in any order; rollbacks go back to anywhere, often to an event of what they void."""
    events: list[Event] = []
    for item in draw(st.lists(shown | shown | changes | lives | st.none(), max_size=40)):
        if item is None:
            ids = draw(st.lists(components, min_size=1, max_size=3))
            own = [offset for offset, event in enumerate(events, 1) if event.component_id in ids]
            after = draw(st.sampled_from([0, *own]) | st.integers(0, len(events) + 2))
            item = Event(rollback=Rollback(component_ids=ids, after_offset=after))
        events.append(item)
    return log(*events)


async def folded(page: Page, events: list[Event]) -> Any:
    """What the console makes of these events as the door tells them."""
    # As text: what Playwright hands over itself loses members called "__proto__".
    return json.loads(await page.evaluate(FOLD, json.dumps([event_document(event, RUN_ID) for event in events])))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(events=logs())
async def test_the_console_shows_what_the_sdk_shows(page: Page, events: list[Event]) -> None:
    """Whatever a log holds, both folds give the same."""
    assert await folded(page, events) == told(fold(events))


async def test_the_console_knows_every_kind_of_event() -> None:
    """Adding a kind to the contract without saying what the console shows of it is noticed here."""
    table = (FILES / "view.js").read_text().partition("const ON = {")[2].partition("}")[0]
    known = {line.partition(":")[0].strip() for line in table.splitlines() if ":" in line}
    assert known == {kind.name for kind in Event.DESCRIPTOR.oneofs_by_name["kind"].fields}


async def test_an_event_that_comes_twice_counts_once_in_the_console(page: Page) -> None:
    """After a reconnect nothing is shown twice."""
    events = log(started("a"), text("a", "x"))
    assert await folded(page, events * 2) == told(fold(events))


async def test_the_console_patches_as_the_sdk_does(page: Page) -> None:
    """The SDK's own table of patches, those that apply and those that do not."""
    cases = [(document, patch) for _, document, patch, _ in APPLIES] + [
        (document, patch) for _, document, patch in FAILS
    ]
    # A name that JavaScript has another use for is a member like any other.
    cases += [
        (json.loads(document), [{"op": op, "path": path, "value": "x"}])
        for op in ("add", "replace", "remove", "test", "append")
        for document in ("{}", '{"__proto__": "x"}', '{"a": {"__proto__": {"b": "x"}}}')
        for path in ("/__proto__", "/__proto__/b", "/a/__proto__", "/a/__proto__/b", "/constructor")
    ]
    expected = []
    for document, patch in json.loads(json.dumps(cases)):
        held = Document(document)
        try:
            held.patch(patch)
            expected.append(["applies", held.value])
        except PatchError:
            expected.append(["fails", held.value])
    script = """async (text) => {
        const { Document, PatchError } = await import("/patch.js");
        return JSON.stringify(JSON.parse(text).map(([value, patch]) => {
            const held = new Document(value);
            try {
                held.patch(patch);
                return ["applies", held.value];
            } catch (error) {
                if (!(error instanceof PatchError)) throw error;
                return ["fails", held.value];
            }
        }));
    }"""
    assert json.loads(await page.evaluate(script, json.dumps(cases))) == expected
