"""onward.testing, as users of it see it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import onward
from onward import RunFailed, component, status, testing, workflow
from onward.v1.event_pb2 import ATTEMPT_CAUSE_EXECUTOR_LOST, Event


@component
async def greet(name: str) -> str:
    status(f"greeting {name}")
    return f"Hello, {name}!"


@workflow
async def flow(name: str) -> str:
    if not name:
        raise ValueError("nobody")
    return await greet(name)


async def test_a_run_is_looked_at_when_it_has_ended() -> None:
    """Output, state, statuses, view and log."""
    result = await testing.run(flow, "Ada")
    assert result.output == "Hello, Ada!"
    assert result.state == "SUCCEEDED"
    assert result.error is None
    assert result.statuses == ["greeting Ada"]
    assert [instance.name for instance in result.view.children()] == ["greet"]
    assert len(result.events) == 6
    assert result.attempts == 1


async def test_a_run_that_failed_has_no_output() -> None:
    """Asking for it says why."""
    result = await testing.run(flow, name="")
    assert result.state == "FAILED"
    with pytest.raises(RunFailed, match="nobody"):
        _ = result.output


async def test_a_run_survives_its_executors() -> None:
    """Each crash is one attempt more."""
    with testing.crash(2, 6):
        result = await testing.run(flow, "Ada")
    assert result.attempts == 3
    assert result.output == "Hello, Ada!"
    assert result.statuses == ["greeting Ada"]
    causes = [event.attempt_started.cause for event in result.events if event.HasField("attempt_started")]
    assert causes[1:] == [ATTEMPT_CAUSE_EXECUTOR_LOST] * (len(causes) - 1)


async def test_a_crash_after_the_end_does_not_happen() -> None:
    """The run was over by then."""
    with testing.crash(100):
        result = await testing.run(flow, "Ada")
    assert result.attempts == 1


async def test_an_input_that_is_no_json_is_refused() -> None:
    """It could not be sent to a Gateway either."""

    @workflow
    async def takes(thing: object) -> None: ...

    with pytest.raises(TypeError, match="no JSON form"):
        await testing.run(takes, object())


@component
async def tell(name: str) -> AsyncIterator[str]:
    for word in ("Once ", "upon ", "a ", "time"):
        yield word


@workflow
async def tale(name: str) -> str:
    first = await greet(name)
    second = await greet(name)
    return first + second + await tell(name)


def lost_after(result: testing.Result[str]) -> list[Event]:
    """Return the event before each attempt but the first."""
    begun = [event.offset for event in result.events if event.HasField("attempt_started")]
    return [result.events[offset - 2] for offset in begun[1:]]


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        (testing.after_start(greet), "component_started"),
        (testing.after_start("greet", 2), "component_started"),
        (testing.after_finish(greet, 2), "component_finished"),
        (testing.after_text("upon a"), "output_delta"),
        (testing.after_text("ce up", of=tell), "output_delta"),
        (testing.before_end(), "component_finished"),
    ],
    ids=str,
)
async def test_a_run_crashes_where_the_log_says(point: testing.Point, kind: str) -> None:
    """At the named place and nowhere else, and nobody sees it."""
    calm = await testing.run(tale, "Ada")
    with testing.crash(point):
        result = await testing.run(tale, "Ada")
    assert result.attempts == 2
    [last] = lost_after(result)
    assert last.WhichOneof("kind") == kind
    if point.name.endswith("2 of greet"):
        count = sum(event.HasField(kind) for event in result.events[: last.offset])
        assert count == 2
    if kind == "output_delta":
        assert last.output_delta.text == ("a " if "upon a" in str(point) else "upon ")
    assert result.output == calm.output
    assert result.statuses == calm.statuses


async def test_points_follow_each_other() -> None:
    """Each attempt dies at its own, counted from its own beginning."""
    point = testing.after_start(tell)
    with testing.crash(point, point, testing.before_end(), testing.before_end()):
        result = await testing.run(tale, "Ada")
    assert result.attempts == 5
    kinds = [event.WhichOneof("kind") for event in lost_after(result)]
    assert kinds[:2] == ["component_started"] * 2
    assert result.output == "Hello, Ada!Hello, Ada!Once upon a time"


async def test_a_point_that_is_not_reached_is_told() -> None:
    """A test that crashes nowhere shows nothing."""
    for point in (testing.after_start("gret"), testing.after_text("never"), testing.after_finish(greet, 3)):
        with testing.crash(point), pytest.raises(testing.PointNotReached, match=str(point)):
            await testing.run(tale, "Ada")


async def test_a_workflow_is_run_through_chaos() -> None:
    """Many runs, each with crashes of its own, which a seed repeats; all show the same."""
    results = await testing.Chaos(runs=15, seed=1).run(tale, "Ada")
    assert len(results) == 15
    assert {result.output for result in results} == {"Hello, Ada!Hello, Ada!Once upon a time"}
    assert sum(result.attempts for result in results) > 20
    again = await testing.Chaos(runs=15, seed=1).run(tale, "Ada")
    assert [len(result.events) for result in again] == [len(result.events) for result in results]


async def test_chaos_tells_what_broke_and_how_to_see_it_again() -> None:
    """A workflow that gives another result after a crash."""
    attempts = 0

    @workflow
    async def fickle() -> int:
        nonlocal attempts
        attempts += 1
        await greet("Ada")
        return attempts

    with pytest.raises(testing.Broken, match=r"fickle under testing.crash\(\d+[^:]*:\n.*one view: .* differ in output"):
        await testing.Chaos().run(fickle)
    attempts = 0
    assert await testing.Chaos(alike=False, runs=3).run(fickle)


# Waits


@workflow
async def nap() -> str:
    await onward.sleep("2d")
    return await onward.signal("word", str)


@component
async def pieces() -> AsyncIterator[str]:
    for piece in "abcd":
        yield piece


@workflow
async def reader() -> list[str]:
    said: list[str] = []
    async for piece in pieces():
        match piece:
            case "a":
                await onward.sleep("1d")
            case "b":
                said.append(await onward.signal("word", str))
            case "c":
                said.append(await (await onward.start_child(nap)).result())
        said.append(piece)
    return said


async def test_a_wait_while_a_stream_is_half_read_is_brought_about() -> None:
    """It does not park; time passes, signals come and children run all the same, wherever the run is lost."""
    with testing.signals({"word": "said"}):
        result = await testing.run(reader)
        assert result.output == ["a", "said", "b", "said", "c", "d"]
        assert [child.state for child in result.children] == ["SUCCEEDED"]
        assert not any(event.HasField("run_waiting") for event in result.events)
        for offset in range(2, len(result.events) + 1):
            with testing.crash(offset), testing.no_replay():
                assert (await testing.run(reader)).output == result.output, offset


async def test_a_wait_while_a_stream_is_half_read_that_nobody_answers_fails_the_test() -> None:
    """With what is waited for, also where it is a child that waits."""

    @workflow
    async def lonely(what: str) -> str:
        async for _ in pieces():
            if what == "asks":
                return await onward.signal("never", str)
            return await (await onward.start_child(nap)).result()
        return ""

    for what, words in (("asks", "signal never"), ("starts", "child nap")):
        with pytest.raises(testing.WaitsForEver, match=words):
            await testing.run(lonely, what)


@workflow
async def counts(patience: str | None = None) -> int:
    return await onward.signal("number", int, timeout=patience)


async def test_an_answer_that_is_not_what_a_run_waits_for_fails_the_test() -> None:
    """It would be passed over again and again. A function may give another the next time."""
    for answer in ("one", lambda _: "one"):
        with testing.signals({"number": answer}), pytest.raises(testing.WaitsForEver, match=r"passes over.* number"):
            await testing.run(counts)
    words = iter(["one", "two", 3])
    with testing.signals({"number": lambda _: next(words)}):
        assert (await testing.run(counts)).output == 3


async def test_a_wait_whose_answer_is_passed_over_ends_when_its_time_is_up() -> None:
    """As where nobody answers."""
    with testing.signals({"number": "one"}):
        result = await testing.run(counts, "1h")
    assert result.error is not None
    assert result.error.message == "onward.signal: no signal 'number' within 1h"
