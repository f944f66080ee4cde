"""Child runs: each exactly one, ended with their parent, and what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

import onward
from onward import ComponentError, component, testing, workflow
from onward.children import CHILDREN_MAX, DEPTH_MAX
from onward.engine import Attempt
from onward.instance import CURRENT
from onward.log import ACCEPTED
from onward.memory import MemoryLog, MemoryRun
from onward.turns import SETTLE_TURNS
from onward.v1.errand_pb2 import Errand
from onward.v1.event_pb2 import ATTEMPT_CAUSE_STARTED, ATTEMPT_CAUSE_WOKEN, Event
from onward.v1.run_pb2 import Payload, Run


@dataclass
class Report:
    text: str
    pages: int


DONE: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    DONE.clear()


@component
async def effect(what: str) -> str:
    DONE.append(what)
    return what


@workflow
async def write(topic: str, pages: int = 1) -> Report:
    return Report(await effect(topic), pages)


@workflow
async def fail(topic: str) -> Report:
    raise ValueError(f"no {topic}")


@workflow
async def wait_for_ever() -> str:
    try:
        return await onward.signal("never", str)
    except asyncio.CancelledError:
        await effect("cleaned up")
        raise


def kinds(events: list[Event], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("kind") == kind]


def try_number() -> int:
    instance = CURRENT.get()
    assert instance is not None
    return instance.number


async def test_a_workflow_called_inside_a_workflow_runs_inline() -> None:
    """As a component of the same run."""

    @workflow
    async def outer() -> Report:
        return await write("tea")

    result = await testing.run(outer)
    assert result.output == Report("tea", 1)
    assert result.children == []
    assert [started.name for started in kinds(result.events, "component_started")] == ["write", "effect"]


async def test_a_child_is_a_run_of_its_own() -> None:
    """With a log of its own; its parent parks meanwhile, and gets its output in the type that it has."""

    @workflow
    async def parent() -> Report:
        child = await onward.start_child(write, "tea", pages=3)
        onward.publish("child", child.run_id)
        return await child.result()

    result = await testing.run(parent)
    assert result.output == Report("tea", 3)
    [started] = kinds(result.events, "child_started")
    assert (started.workflow, started.detached) == ("write", False)
    [child] = result.children
    assert child.output == Report("tea", 3)
    assert kinds(result.events, "run_waiting")[-1].reason == "child write"
    assert DONE == ["tea"]
    assert [run.run_id for run in result.view.child_runs] == [started.run_id]


async def test_there_is_one_child_wherever_its_parent_dies() -> None:
    """After each event of the parent's log, and then again soon after."""

    @component
    async def tell() -> None: ...

    @workflow
    async def parent() -> list[str]:
        await tell()
        one, two = await onward.start_child(write, "one"), await onward.start_child(write, "two")
        return [report.text for report in await asyncio.gather(two.result(), one.result())]

    undisturbed = await testing.run(parent)
    started = [child.run_id for child in kinds(undisturbed.events, "child_started")]
    for offset in range(2, len(undisturbed.events) + 1):
        DONE.clear()
        with testing.crash(offset, offset + 2), testing.no_replay():
            result = await testing.run(parent)
        assert result.output == ["two", "one"], offset
        assert sorted(DONE) == ["one", "two"], offset
        assert [child.run_id for child in kinds(result.events, "child_started")] == started, offset
        assert len(result.children) == 2


@pytest.mark.parametrize("again", [False, True], ids=["the first time", "on replay"])
async def test_a_childs_failure_is_a_component_error(again: bool) -> None:
    """With the reason, type and message that the child ended with."""
    seen: list[str] = []

    @workflow
    async def parent() -> str:
        child = await onward.start_child(fail, "tea")
        try:
            await child.result()
        except ComponentError as error:
            seen.append(f"{error!r} {error.component_id}")
            return f"{error.name} {error.reason} {error.type} {error.message}"
        return "?"

    with testing.crash(*([testing.before_end()] if again else [])):
        result = await testing.run(parent)
    assert result.output == "fail WORKFLOW_FAILED ValueError no tea"
    assert len(seen) > 1
    assert set(seen) == {seen[0]}


async def test_what_is_refused_is_an_error_of_the_start() -> None:
    """A workflow that nobody serves, and an input that does not fit; the same on replay."""

    @workflow
    async def parent() -> list[str]:
        reasons = []
        for name in ("nobody", "write"):
            try:
                await onward.start_child(name, topic=3)
            except ComponentError as error:
                reasons.append(f"{error.reason} {error.retryable}")
        return reasons

    with testing.serving(write), testing.crash(testing.before_end()):
        result = await testing.run(parent)
    assert result.output == ["WORKFLOW_NOT_FOUND True", "INPUT_INVALID False"]
    assert result.children == []


async def test_a_child_by_name_gives_plain_values() -> None:
    """Nothing is known of its types here."""

    @workflow
    async def parent() -> dict[str, Any]:
        output: dict[str, Any] = await (await onward.start_child("write", topic="tea")).result()
        return output

    with testing.serving(write):
        assert (await testing.run(parent)).output == {"text": "tea", "pages": 1}


def test_labels_that_no_run_may_have_are_an_error() -> None:
    onward.start_child.options(labels={**{str(number): "" for number in range(31)}, "k" * 64: "é" * 128})
    for wrong in ({str(number): "" for number in range(33)}, {"": "v"}, {"k" * 65: "v"}, {"k": "é" * 129}):
        with pytest.raises(ValueError, match="label"):
            onward.start_child.options(labels=wrong)


async def test_arguments_that_do_not_fit_are_an_error_before_anything_is_asked() -> None:
    """As of any call."""

    @workflow
    async def parent() -> str:
        with pytest.raises(TypeError):
            await onward.start_child(write)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="3145728"):
            await onward.start_child(write, "x" * 3_200_000)
        return "refused"

    result = await testing.run(parent)
    assert result.output == "refused"
    assert not kinds(result.events, "component_started")


async def test_outside_a_run_there_are_no_children() -> None:
    """The message says what to do."""
    with pytest.raises(RuntimeError, match="Client"):
        await onward.start_child(write, "tea")


async def test_a_stream_gives_its_whole() -> None:
    """Text, or a list of the items."""

    @workflow
    async def tell() -> AsyncIterator[str]:
        yield "once "
        yield "more"

    @workflow
    async def count() -> AsyncIterator[int]:
        yield 1
        yield 2

    @workflow
    async def parent() -> tuple[str, list[int]]:
        text, numbers = await onward.start_child(tell), await onward.start_child(count)
        return await text.result(), await numbers.result()

    assert (await testing.run(parent)).output == ("once more", [1, 2])


@pytest.mark.parametrize("size", [10, 100_000, 400_000])
async def test_a_large_output_becomes_the_parents_own(size: int) -> None:
    """Also where it is kept beside the child's log: the child may be gone when the parent is replayed."""

    @workflow
    async def large() -> str:
        return "x" * size

    @component
    async def later() -> None: ...

    @workflow
    async def parent() -> int:
        text = await (await onward.start_child(large)).result()
        await later()
        return len(text)

    with testing.crash(testing.after_finish(later)):
        result = await testing.run(parent)
    assert result.output == size


async def test_a_result_may_be_asked_for_by_several_and_again() -> None:
    """An end is a fact: nobody takes it away."""

    @workflow
    async def parent() -> list[str]:
        child = await onward.start_child(write, "tea")
        reports = [*await asyncio.gather(child.result(), child.result()), await child.result()]
        return [report.text for report in reports]

    with testing.crash(testing.before_end()):
        assert (await testing.run(parent)).output == ["tea"] * 3


@pytest.mark.parametrize("fails", [False, True], ids=["SUCCEEDED", "FAILED"])
async def test_children_end_with_their_parent_but_those_that_are_detached(fails: bool) -> None:
    """However it ends; and clean up."""

    @workflow
    async def parent() -> str:
        await onward.start_child(wait_for_ever)
        await onward.start_child.options(detached=True)(write, "later")
        await onward.sleep("1d")
        if fails:
            raise ValueError
        return "done"

    result = await testing.run(parent)
    assert result.state == ("FAILED" if fails else "SUCCEEDED")
    assert [child.state for child in result.children] == ["CANCELLED", "SUCCEEDED"]
    assert sorted(DONE) == ["cleaned up", "later"]


async def test_a_child_that_never_began_ends_with_its_parent() -> None:
    """Nothing of it runs."""

    @workflow
    async def parent() -> None:
        await onward.start_child(write, "tea")
        raise ValueError

    result = await testing.run(parent)
    assert [child.state for child in result.children] in (["CANCELLED"], ["SUCCEEDED"])


async def test_a_child_can_be_cancelled() -> None:
    """Its end then says so."""

    @workflow
    async def parent() -> str:
        child = await onward.start_child(wait_for_ever)
        await onward.sleep("1h")
        await child.cancel("enough")
        try:
            return await child.result()
        except ComponentError as error:
            return error.reason

    with testing.crash(testing.before_end()):
        result = await testing.run(parent)
    assert result.output == "CANCELLED"
    assert DONE == ["cleaned up"]


async def test_what_follows_a_childs_cancellation_has_its_place_in_the_order_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On replay nobody is told of it sooner than the first time: others may have gone on before."""
    appends = MemoryLog.append

    async def answer(memory: MemoryRun) -> None:
        for _ in range(3 * SETTLE_TURNS):
            await asyncio.sleep(0)
        memory.online.set()

    async def append(self: MemoryLog, *events: Event, **memo: Any) -> int:
        # As a store is: its answer takes longer than what was given before takes to have its effect.
        self.run.online.clear()
        answering = asyncio.create_task(answer(self.run))
        offset = await appends(self, *events, **memo)
        await answering
        return offset

    monkeypatch.setattr(MemoryLog, "append", append)

    @workflow
    async def parent() -> str:
        child = await onward.start_child(wait_for_ever)
        cancelled = False

        async def cancel() -> None:
            nonlocal cancelled
            await effect("first")
            await child.cancel()
            cancelled = True

        async def beside() -> str:
            await effect("second")
            return await effect("after" if cancelled else "before")

        _, order = await asyncio.gather(cancel(), beside())
        return order

    assert (await testing.run(parent)).output == "before"


async def test_a_child_of_a_failed_try_is_cancelled_and_the_next_try_starts_another() -> None:
    """What a failed try did does not count; wherever the run is lost meanwhile."""

    @component.retry(attempts=2)
    async def researched() -> str:
        await onward.start_child.options(detached=True)(write, "kept")
        child = await onward.start_child(write, "tea")
        if try_number() == 1:
            raise ConnectionError
        return (await child.result()).text + child.run_id

    @workflow
    async def parent() -> str:
        return await researched()

    undisturbed = await testing.run(parent)
    started = [child.run_id for child in kinds(undisturbed.events, "child_started")]
    assert len(set(started)) == 4
    for offset in range(3, len(undisturbed.events) + 1):
        with testing.crash(offset), testing.no_replay():
            result = await testing.run(parent)
        assert result.output == undisturbed.output, offset
        assert [child.run_id for child in kinds(result.events, "child_started")] == started


async def test_a_child_of_a_failed_try_is_stopped_at_once() -> None:
    """Not when its parent ends."""
    seen: list[str] = []

    @component.retry(attempts=2)
    async def asked() -> None:
        if try_number() == 1:
            await onward.start_child(wait_for_ever)
            await onward.sleep("1m")
            raise ConnectionError

    @workflow
    async def parent() -> str:
        await asked()
        await onward.sleep("1d")
        seen.extend(DONE)
        return "done"

    result = await testing.run(parent)
    assert seen[:1] == ["cleaned up"]
    assert result.children[0].state == "CANCELLED"


async def test_a_run_has_so_many_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then a clear error, the same on replay."""
    assert CHILDREN_MAX == 1_000
    monkeypatch.setattr("onward.children.CHILDREN_MAX", 3)

    @workflow
    async def many() -> str:
        for number in range(5):
            try:
                child = await onward.start_child(write, str(number))
            except ComponentError as error:
                return f"{error.reason} {number}"
            await child.result()
        return "?"

    with testing.crash(testing.before_end()):
        assert (await testing.run(many)).output == "LIMIT_REACHED 3"


@workflow
async def deep(depth: int) -> int:
    try:
        child = await onward.start_child(deep, depth + 1)
    except ComponentError:
        return depth
    return await child.result()


async def test_so_many_runs_are_above_a_child() -> None:
    """A workflow that starts itself ends."""
    assert (await testing.run(deep, 0)).output == DEPTH_MAX


async def test_a_changed_input_of_a_child_pauses_the_run() -> None:
    """The child was started with the other one."""
    inputs = iter("ab")

    @workflow
    async def parent() -> str:
        child = await onward.start_child(write, next(inputs))
        return (await child.result()).text

    with testing.crash(4):
        result = await testing.run(parent)
    assert (result.state, result.error and result.error.reason) == ("PAUSED", "NON_DETERMINISTIC")


async def test_no_child_is_started_while_cleaning_up() -> None:
    """It would be cancelled with its parent, before it began."""

    @workflow
    async def inner() -> str:
        try:
            await onward.sleep("1d")
        finally:
            await onward.start_child(write, "late")
        return "?"

    @workflow
    async def parent() -> str:
        child = await onward.start_child(inner)
        await onward.sleep("1m")
        await child.cancel()
        await onward.sleep("1m")
        return "done"

    [child] = (await testing.run(parent)).children
    assert child.state == "CANCELLED"
    assert all(each.state == "CANCELLED" for each in child.children)
    assert DONE == []


async def test_a_fork_keeps_the_children_that_its_source_had_started() -> None:
    """Its own name and log are others, and so would be the names of its children."""
    seen: list[str] = []

    @workflow
    async def parent() -> None:
        seen.append((await onward.start_child(write, "tea")).run_id)
        await onward.signal("go")

    memory = MemoryRun()

    def accept() -> None:
        [errand] = [Errand.FromString(errand) for errand in memory.errands]
        run = Run(run_id=errand.start_child.start.run_id)
        memory.signal(ACCEPTED + run.run_id, run.SerializeToString())

    memory.on_errand = accept
    for name in ("source", "fork"):
        log = memory.begin()
        run = Run(run_id=name, workflow="parent", input=Payload(data=b"{}"))
        run.log.log_id, run.log.last_offset = name, memory.last_offset
        cause = ATTEMPT_CAUSE_STARTED if name == "source" else ATTEMPT_CAUSE_WOKEN
        attempt = Attempt(
            parent, run=run, log=log, attempt=log.attempt, cause=cause, executor_id="e", deployment="test"
        )
        await attempt.run()
        memory.wake()
    assert len(seen) == 2
    assert len(set(seen)) == 1
