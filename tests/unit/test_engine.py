"""One attempt at a run: what it writes, and how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel

from onward import ComponentError, component, publish, status, testing, workflow
from onward.engine import Attempt
from onward.log import INLINE_BYTES_MAX, LogClosed
from onward.memory import MemoryLog, MemoryRun
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_CANCELLED,
    ATTEMPT_CAUSE_EXECUTOR_LOST,
    ATTEMPT_CAUSE_STARTED,
    OUTCOME_CANCELLED,
    OUTCOME_ERROR,
    OUTCOME_OK,
    ROLLBACK_CAUSE_ATTEMPT_LOST,
    ROLLBACK_CAUSE_RETRY,
    AttemptCause,
    Event,
)
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_CANCELLING,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_SUCCEEDED,
    Payload,
    Run,
    RunState,
)
from onward.workflows import Workflow


class Holding:
    """An attempt that runs, as an executor holds it."""

    def __init__(
        self,
        workflow: Workflow[..., Any, Any],
        memory: MemoryRun | None = None,
        *,
        input: Payload | None = None,
        cause: AttemptCause.ValueType = ATTEMPT_CAUSE_STARTED,
        state: RunState.ValueType = RUN_STATE_CANCELLED,
        log: MemoryLog | None = None,
        digest_key: bytes = b"",
    ) -> None:
        self.memory = memory or MemoryRun()
        self.log = log or self.memory.begin()
        self.attempt = Attempt(
            workflow,
            run=Run(run_id="r", namespace="n", workflow=workflow.name, input=input, state=state),
            log=self.log,
            attempt=self.log.attempt,
            cause=cause,
            executor_id="executor",
            deployment="build",
            digest_key=digest_key,
        )

    async def run(self) -> list[Event]:
        async with asyncio.timeout(10):
            await self.attempt.run()
        return self.memory.events

    async def run_and(self, meanwhile: Callable[[], Awaitable[None]]) -> list[Event]:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            running = group.create_task(self.attempt.run())
            await meanwhile()
            await running
        return self.memory.events


def kinds(events: list[Event]) -> list[str]:
    return [event.WhichOneof("kind") or "" for event in events]


def of(events: list[Event], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.HasField(kind)]  # type: ignore[arg-type]


def named(events: list[Event], name: str) -> list[str]:
    return [event.component_id for event in events if event.component_started.name == name]


@component
async def double(x: int) -> int:
    return x * 2


@component
def add(x: int, y: int) -> int:
    return x + y


@component
async def fail(message: str) -> None:
    raise ConnectionError(message)


# The journal


async def test_the_log_of_a_run_of_two_components() -> None:
    """Seven events, as the design draws them."""

    @workflow
    async def flow(x: int) -> int:
        return await add(await double(x), 1)

    result = await testing.run(flow, 2)
    assert kinds(result.events) == [
        "run_state_changed",
        "attempt_started",
        "component_started",
        "component_finished",
        "component_started",
        "component_finished",
        "run_state_changed",
    ]
    assert [event.offset for event in result.events] == list(range(1, 8))
    assert result.output == 5
    first, second = of(result.events, "component_started")
    assert (first.name, json.loads(first.input.data)) == ("double", {"x": 2})
    assert (second.name, json.loads(second.input.data)) == ("add", {"x": 4, "y": 1})
    assert [finished.output.data for finished in of(result.events, "component_finished")] == [b"4", b"5"]


async def test_an_attempt_says_who_runs_it() -> None:
    """Executor, build and cause come from the request."""

    @workflow
    async def flow() -> None: ...

    events = await Holding(flow).run()
    started = events[1].attempt_started
    assert (started.executor_id, started.deployment, started.cause) == ("executor", "build", ATTEMPT_CAUSE_STARTED)


@pytest.mark.parametrize("value", [None, "", 0, 0.0, False, [], {}, "🍵", "\x00"])
async def test_falsy_and_odd_values_travel_whole(value: Any) -> None:
    """In, through a component, and out."""

    @component
    async def echo(value: Any) -> Any:
        return value

    @workflow
    async def flow(value: Any) -> Any:
        return [await echo(value), value]

    result = await testing.run(flow, value)
    assert result.output == [value, value]
    (finished,) = of(result.events, "component_finished")
    assert json.loads(finished.output.data) == value


async def test_a_result_is_in_the_log_before_the_caller_has_it() -> None:
    """While the store is away, nobody goes on with a result."""
    seen = []

    @workflow
    async def flow() -> None:
        seen.append(await double(1))

    holding = Holding(flow)

    async def meanwhile() -> None:
        with holding.memory.offline():
            for _ in range(20):
                await asyncio.sleep(0)
            assert seen == []

    await holding.run_and(meanwhile)
    assert seen == [2]


async def test_an_error_is_in_the_log_before_the_caller_has_it() -> None:
    """As a result is."""
    seen = []

    @workflow
    async def flow() -> None:
        try:
            await fail("x")
        except ComponentError as error:
            seen.append(error.type)

    holding = Holding(flow)

    async def meanwhile() -> None:
        with holding.memory.offline():
            for _ in range(20):
                await asyncio.sleep(0)
            assert seen == []

    await holding.run_and(meanwhile)
    assert seen == ["ConnectionError"]


async def test_readers_see_short_values_and_the_size_of_long_ones() -> None:
    """4 KiB is where it is cut; the caller gets all of it."""

    @component
    async def grow(text: str) -> str:
        return text * 2

    @workflow
    async def flow() -> int:
        return len(await grow("x" * 5_000))

    result = await testing.run(flow)
    (started,), (finished,) = of(result.events, "component_started"), of(result.events, "component_finished")
    assert started.input.WhichOneof("value") is None
    assert (started.input.size, finished.output.size) == (len('{"text":""}') + 5_000, 10_002)
    assert result.output == 10_000


async def test_a_private_component_shows_neither_input_nor_result() -> None:
    """Its digest is there all the same, to detect changed code."""

    @component.private()
    async def login(password: str) -> str:
        return "token"

    @workflow
    async def flow() -> str:
        return await login("secret")

    result = await testing.run(flow)
    (started,), (finished,) = of(result.events, "component_started"), of(result.events, "component_finished")
    assert not started.HasField("input")
    assert len(started.input_digest) == 16
    assert not finished.HasField("output")
    assert not any(b"secret" in event.SerializeToString() for event in result.events)


async def test_a_digest_is_keyed() -> None:
    """Without the store's secret it tells nothing about the input; with it, the same input gives the same."""

    @workflow
    async def flow() -> None:
        await double(1)
        await double(1)
        await double(2)

    def digests(events: list[Event]) -> list[bytes]:
        return [started.input_digest for started in of(events, "component_started")]

    one = digests(await Holding(flow, digest_key=b"one").run())
    two = digests(await Holding(flow, digest_key=b"two" * 50).run())
    assert one[0] == one[1] != one[2]
    assert not set(one) & set(two)


async def test_a_result_without_a_json_form_is_an_error() -> None:
    """A later attempt could not have it. An argument need not be JSON: nobody has to give that again."""

    @component
    async def connect(handle: object) -> object:
        return handle

    @workflow
    async def flow() -> str:
        try:
            await connect(object())
        except ComponentError as error:
            return f"{error.reason} {error.message}"
        return ""

    result = await testing.run(flow)
    (started,), (finished,) = of(result.events, "component_started"), of(result.events, "component_finished")
    assert "OUTPUT_INVALID connect returned a object that has no JSON form" in result.output
    assert not started.HasField("input")
    assert started.input_digest == b""
    assert finished.outcome == OUTCOME_ERROR


# Identity


async def test_an_instance_is_named_by_its_place() -> None:
    """Parent, name, and how often the parent called the name before: the same in every run, whatever the input."""

    @component
    async def outer(x: int) -> int:
        return await double(x) + await double(x)

    @workflow
    async def flow(x: int) -> int:
        return await outer(x) + await outer(x) + await double(x)

    one, two = (await testing.run(flow, 1)).events, (await testing.run(flow, 2)).events
    ids = [event.component_id for event in one if event.HasField("component_started")]
    assert ids == [event.component_id for event in two if event.HasField("component_started")]
    assert len(set(ids)) == 7
    outers = named(one, "outer")
    parents = [started.parent_id for started in of(one, "component_started") if started.name == "double"]
    assert parents == [outers[0], outers[0], outers[1], outers[1], ""]


async def test_names_with_separators_do_not_collide() -> None:
    """A name is data, never a path."""

    @workflow
    async def flow() -> None:
        for name in ("a", "a\\0b", "a:b", "a/b", "a-b", "1", "0"):
            await double.named(name)(1)
            await double.named(name).keyed("b")(1)

    events = (await testing.run(flow)).events
    assert len({event.component_id for event in events if event.HasField("component_started")}) == 14


async def test_a_key_names_an_instance_whatever_the_order() -> None:
    """Two runs that call in different orders agree on who is who."""

    @workflow
    async def flow(order: list[str]) -> None:
        for key in order:
            await double.keyed(key)(1)

    one = (await testing.run(flow, ["a", "b"])).events
    two = (await testing.run(flow, ["b", "a"])).events
    assert named(one, "double") == list(reversed(named(two, "double")))


async def test_parallel_calls_keep_their_own_place() -> None:
    """By the order in which they were called, not in which they ran."""
    gates = [asyncio.Event() for _ in range(3)]

    @component
    async def wait(place: int) -> int:
        await gates[place].wait()
        if place:
            gates[place - 1].set()
        return place

    @workflow
    async def flow() -> list[int]:
        gates[2].set()
        return await asyncio.gather(*(wait(place) for place in range(3)))

    events = (await testing.run(flow)).events
    started = named(events, "wait")
    finished = [event.component_id for event in events if event.HasField("component_finished")]
    assert finished == list(reversed(started))
    assert [json.loads(one.input.data)["place"] for one in of(events, "component_started")] == [0, 1, 2]


async def test_tasks_and_task_groups_know_their_parent() -> None:
    """The current instance goes where the context goes."""

    @component
    async def parent(x: int) -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(double(x)), asyncio.create_task(add(x, x))]
        return sum(task.result() for task in tasks)

    @workflow
    async def flow() -> tuple[int, int]:
        return await asyncio.gather(parent(1), parent(2))

    events = (await testing.run(flow)).events
    parents = Counter(started.parent_id for started in of(events, "component_started"))
    one, two = named(events, "parent")
    assert parents == {"": 2, one: 2, two: 2}


async def test_a_workflow_inside_a_workflow_is_a_component() -> None:
    """It runs there, with its place in the log."""

    @workflow
    async def inner(x: int) -> int:
        return await double(x)

    @workflow
    async def flow() -> int:
        return await inner(1)

    result = await testing.run(flow)
    assert result.output == 2
    assert [started.name for started in of(result.events, "component_started")] == ["inner", "double"]


# Errors


async def test_an_error_arrives_as_a_component_error() -> None:
    """From the original, with what the log keeps of it."""
    caught: list[ComponentError] = []

    class Refused(Exception):
        retryable = True
        details = {"code": 7}  # noqa: RUF012 - one for all

    @component
    async def refuse() -> None:
        raise Refused("no")

    @workflow
    async def flow() -> None:
        try:
            await refuse()
        except ComponentError as error:
            caught.append(error)

    result = await testing.run(flow)
    error, again = caught  # The first time, and on the replay of the tested run.
    assert vars(error) == vars(again)
    assert error.args == again.args
    assert (error.name, error.reason, error.message) == ("refuse", "COMPONENT_FAILED", "no")
    assert error.type.endswith("Refused")
    assert (error.retryable, error.details) == (True, {"code": 7})
    assert isinstance(error.__cause__, Refused)
    (finished,) = of(result.events, "component_finished")
    assert finished.outcome == OUTCOME_ERROR
    assert (finished.error.component_id, error.component_id) == (named(result.events, "refuse")[0],) * 2
    assert "raise Refused" in finished.error.traceback
    assert "onward/calls.py" not in finished.error.traceback
    assert result.state == "SUCCEEDED"


async def test_an_error_that_nobody_caught_fails_the_run() -> None:
    """The run's error says where it began, through however many components it came."""

    @component
    async def outer() -> None:
        await fail("refused")

    @workflow
    async def flow() -> None:
        await outer()

    result = await testing.run(flow)
    error = result.error
    assert result.state == "FAILED"
    assert error is not None
    assert (error.reason, error.type, error.message) == ("COMPONENT_FAILED", "ConnectionError", "fail: refused")
    assert error.component_id == named(result.events, "fail")[0]
    assert error.retryable
    inner_told, outer_told = [finished.error for finished in of(result.events, "component_finished")]
    assert inner_told.type == outer_told.type == "ConnectionError"
    assert json.loads(outer_told.details.data)["caused_by"]["component_id"] == error.component_id
    assert outer_told.component_id == named(result.events, "outer")[0]


async def test_an_error_of_the_body_is_the_workflows() -> None:
    """With its type and where it was raised."""

    @workflow
    async def flow() -> None:
        raise ValueError("wrong")

    result = await testing.run(flow)
    assert result.error is not None
    assert (result.error.reason, result.error.type, result.error.message) == ("WORKFLOW_FAILED", "ValueError", "wrong")
    assert result.error.component_id == ""
    assert 'raise ValueError("wrong")' in result.error.traceback


async def test_an_error_in_a_task_group_is_found() -> None:
    """A group of one is its one error."""

    @workflow
    async def flow() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail("refused"))

    result = await testing.run(flow)
    assert result.error is not None
    assert (result.error.reason, result.error.message) == ("COMPONENT_FAILED", "fail: refused")


@pytest.mark.parametrize("synchronous", [True, False])
async def test_an_exit_fails_the_component_and_not_the_executor(synchronous: bool) -> None:
    """User code cannot take the process with it."""

    def leave() -> None:
        raise SystemExit(3)

    async def leave_soon() -> None:
        raise SystemExit(3)

    step = component(leave) if synchronous else component(leave_soon)

    @workflow
    async def flow() -> str:
        try:
            await step()
        except ComponentError as error:
            return error.type
        return ""

    @workflow
    async def exiting() -> None:
        raise SystemExit(3)

    assert (await testing.run(flow)).output == "SystemExit"
    error = (await testing.run(exiting)).error
    assert error is not None
    assert error.message == "the workflow called sys.exit(3)"


class Panic(BaseException):
    """As native code raises it."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Panic])
@pytest.mark.parametrize("kind", ["in a thread", "on the loop", "a stream", "a stream that is read"])
async def test_what_is_no_exception_is_an_error_of_its_component(error: type[BaseException], kind: str) -> None:
    """With tries and a fallback. Through a task it would leave the event loop, and end the executor."""
    tried = []

    def leave() -> str:
        tried.append(1)
        raise error("at once")

    async def leave_soon() -> str:
        return leave()

    async def leave_later() -> AsyncIterator[str]:
        yield leave()

    step = {"in a thread": leave, "on the loop": leave_soon}.get(kind, leave_later)
    retried: Any = component(step).retry(2, 0).fallback("fell back")

    @workflow
    async def flow() -> str:
        if kind == "a stream that is read":
            return "".join([item async for item in retried()])
        return str(await retried())

    @workflow
    async def body() -> None:
        raise error("of the body")

    assert (await testing.run(flow)).output == "fell back"
    assert len(tried) == 2
    failed = (await testing.run(body)).error
    assert failed is not None
    assert (failed.type, failed.message) == (
        "RuntimeError",
        f"body raised {error('of the body')!r}, which is no Exception",
    )


async def test_an_output_is_what_is_annotated() -> None:
    """Who reads it goes by the schema: the run says so, and not its caller's decoder."""

    @workflow
    async def liar() -> int:
        return "abc"  # type: ignore[return-value]

    @workflow
    async def alike() -> list[int]:
        return (1, 2)  # type: ignore[return-value]

    error = (await testing.run(liar)).error
    assert error is not None
    assert error.reason == "OUTPUT_INVALID"
    assert "liar" in error.message
    assert (await testing.run(alike)).output == [1, 2]


async def test_odd_errors_can_be_told() -> None:
    """Surrogates, novels, and details that are no JSON."""

    class Odd(Exception):
        details = object()

    @component
    async def odd() -> None:
        raise Odd("\ud83d\ude00 \ud83d " + "x" * 100_000)

    @workflow
    async def flow() -> None:
        await odd()

    error = (await testing.run(flow)).error
    assert error is not None
    assert error.message.startswith("odd: 😀 \ufffd x")
    assert len(error.message) <= 8 * 1024
    assert not error.HasField("details")


async def test_an_input_that_does_not_fit_fails_the_run() -> None:
    """A Gateway checks before, but not everybody comes through one."""

    @workflow
    async def flow(x: int) -> int:
        return x

    events = await Holding(flow, input=Payload(data=b'{"x":"?","y":1}')).run()
    error = events[-1].run_state_changed.error
    assert error.reason == "INPUT_INVALID"
    assert "x: " in error.message
    assert "y: " in error.message
    events = await Holding(flow, input=Payload(media_type="text/plain", data=b"1")).run()
    assert events[-1].run_state_changed.error.reason == "INPUT_INVALID"
    events = await Holding(flow, input=Payload(blob_uri="gone")).run()
    assert events[-1].run_state_changed.error.reason == "INPUT_INVALID"


@pytest.mark.parametrize(("places", "told"), [(1_000, "numbers.0: "), (50_000, "50000 places do not fit")])
async def test_an_input_that_is_wrong_in_too_many_places_to_tell_fails_the_run(places: int, told: str) -> None:
    """An error that the log does not take would leave the run to one executor after another."""

    @workflow
    async def flow(numbers: list[int]) -> int:
        return len(numbers)

    data = b'{"numbers":[%b]}' % b",".join([b'"?"'] * places)
    events = await Holding(flow, input=Payload(data=data)).run()
    error = events[-1].run_state_changed.error
    assert error.reason == "INPUT_INVALID"
    assert error.message.startswith(told)
    assert len(error.message) <= 8 * 1024


async def test_a_validator_that_fails_says_that_an_input_or_a_result_does_not_fit() -> None:
    """Whatever it raises: nobody who calls can have a run go from executor to executor, and a result has its check."""

    def known(name: str) -> str:
        if name != "tea":
            raise KeyError(name)
        return name

    class Choice(BaseModel):
        name: Annotated[str, AfterValidator(known)]

    @component
    async def give() -> Choice:
        return Choice.model_construct(name="coffee")

    @workflow
    async def flow(choice: Choice) -> str:
        try:
            await give()
        except ComponentError as error:
            return error.reason
        return "nothing"

    refused = await Holding(flow, input=Payload(data=b'{"choice":{"name":"coffee"}}')).run()
    error = refused[-1].run_state_changed.error
    assert (error.reason, error.message) == ("INPUT_INVALID", "a validator raised KeyError: 'coffee'")
    events = await Holding(flow, input=Payload(data=b'{"choice":{"name":"tea"}}')).run()
    assert events[-1].run_state_changed.output.data == b'"OUTPUT_INVALID"'


async def test_no_input_is_an_empty_object() -> None:
    """A workflow without required parameters can be started with nothing."""

    @workflow
    async def flow(x: int = 3) -> int:
        return x

    events = await Holding(flow).run()
    assert events[-1].run_state_changed.output.data == b"3"


async def test_an_output_without_a_json_form_fails_the_run() -> None:
    """The message says what to look for."""

    @workflow
    async def flow() -> Any:
        return {"socket": object()}

    error = (await testing.run(flow)).error
    assert error is not None
    assert error.reason == "OUTPUT_INVALID"
    assert "flow returned a dict that has no JSON form" in error.message


async def test_large_inputs_and_outputs_are_kept_beside_the_log() -> None:
    """Over 256 KiB the events carry a name, and the value comes back whole."""

    @workflow
    async def flow(text: str) -> str:
        return text

    text = "é" * INLINE_BYTES_MAX
    result = await testing.run(flow, text)
    assert result.output == text
    payload = result.events[-1].run_state_changed.output
    assert payload.WhichOneof("value") == "blob_uri"
    assert payload.size == len(json.dumps(text, ensure_ascii=False).encode())
    memory = MemoryRun()
    log = memory.begin()
    uri = await log.put_blob(json.dumps({"text": text}).encode())
    await Holding(flow, memory, log=log, input=Payload(blob_uri=uri)).run()
    assert memory.state == RUN_STATE_SUCCEEDED


# Retries and timeouts inside a run


async def test_a_failed_try_is_in_the_log_and_what_it_showed_is_void() -> None:
    """Also what the components below it had shown; nothing else is."""
    tries = []

    @component
    async def below() -> None:
        status("below")

    @component.retry(3, 0)
    async def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            status("trying")
            await below()
            raise ConnectionError("refused")
        status("done")
        return len(tries)

    @workflow
    async def flow() -> int:
        status("before")
        return await flaky()

    result = await testing.run(flow)
    assert result.output == 3
    assert result.statuses == ["before", "done"]
    retrying = of(result.events, "component_retrying")
    assert [(one.try_number, one.error.message) for one in retrying] == [(1, "refused"), (2, "refused")]
    rollbacks = of(result.events, "rollback")
    assert [rollback.cause for rollback in rollbacks] == [ROLLBACK_CAUSE_RETRY] * 2
    flaky_id, below_id = named(result.events, "flaky")[0], named(result.events, "below")[0]
    assert [set(rollback.component_ids) for rollback in rollbacks] == [{flaky_id, below_id}] * 2


async def test_a_failed_try_that_showed_nothing_needs_no_rollback() -> None:
    """The log stays short."""
    tries = []

    @component.retry(2, 0)
    async def flaky() -> None:
        tries.append(1)
        if len(tries) < 2:
            raise ConnectionError

    @workflow
    async def flow() -> None:
        await flaky()

    assert not of((await testing.run(flow)).events, "rollback")


async def test_a_try_counts_its_calls_from_the_start() -> None:
    """The same call in the next try is the same instance."""
    tries = []

    @component.retry(2, 0)
    async def flaky() -> None:
        await double(1)
        tries.append(1)
        if len(tries) < 2:
            raise ConnectionError

    @workflow
    async def flow() -> None:
        await flaky()

    first, second = named((await testing.run(flow)).events, "double")
    assert first == second


async def test_a_retry_takes_back_what_a_retry_below_had_shown() -> None:
    """Scopes nest: the outer try voids the inner component's shown tries too."""
    outer_tries, inner_tries = [], []

    @component.retry(2, 0)
    async def inner() -> None:
        inner_tries.append(1)
        status(f"inner {len(inner_tries)}")
        if len(inner_tries) == 1:
            raise ConnectionError

    @component.retry(2, 0)
    async def outer() -> None:
        outer_tries.append(1)
        await inner()
        if len(outer_tries) == 1:
            raise ConnectionError

    @workflow
    async def flow() -> None:
        await outer()

    result = await testing.run(flow)
    assert result.statuses == ["inner 3"]


async def test_exhausted_attempts_say_so() -> None:
    """The last error, with the reason; a try that is not worth repeating keeps its own."""

    @component.retry(2, 0, never=KeyError)
    async def flaky(hopeless: bool) -> None:
        raise KeyError("k") if hopeless else ConnectionError("refused")

    @workflow
    async def flow() -> list[str]:
        reasons = []
        for hopeless in (False, True):
            try:
                await flaky(hopeless)
            except ComponentError as error:
                reasons.append(f"{error.reason} {error.type}")
        return reasons

    assert (await testing.run(flow)).output == ["ATTEMPTS_EXHAUSTED ConnectionError", "COMPONENT_FAILED KeyError"]


async def test_a_timeout_has_a_reason_of_its_own() -> None:
    """TIMEOUT, retryable, and the type that users know."""

    @component.timeout("5ms")
    async def wait() -> None:
        await asyncio.Event().wait()

    @workflow
    async def flow() -> list[Any]:
        try:
            await wait()
        except ComponentError as error:
            return [error.reason, error.type, error.message, error.retryable]
        return []

    assert (await testing.run(flow)).output == ["TIMEOUT", "TimeoutError", "no result within 5ms", True]


async def test_a_workflow_can_be_tried_again_as_a_whole() -> None:
    """It is a component: its body's try is void with all that it showed."""
    tries = []

    @workflow.retry(2, 0)
    async def flow() -> int:
        tries.append(1)
        status(f"try {len(tries)}")
        await double(1)
        if len(tries) == 1:
            raise ConnectionError("refused")
        return len(tries)

    with testing.no_replay():
        result = await testing.run(flow)
    assert result.output == 2
    assert result.statuses == ["try 2"]


# Cancellation and the end by other means


async def test_a_cancelled_run_cleans_up_and_ends_cancelled() -> None:
    """With the reason; components can be called in the cleanup."""
    ready = asyncio.Event()
    cleaned = []

    @component
    async def wait() -> None:
        try:
            ready.set()
            await asyncio.Event().wait()
        finally:
            cleaned.append(await double(1))

    @workflow
    async def flow() -> None:
        try:
            await wait()
        finally:
            cleaned.append(await add(1, 1))

    holding = Holding(flow)

    async def meanwhile() -> None:
        await ready.wait()
        holding.attempt.cancel("the user left")

    events = await holding.run_and(meanwhile)
    assert cleaned == [2, 2]
    assert holding.attempt.state == RUN_STATE_CANCELLED
    assert events[-1].run_state_changed.state == RUN_STATE_CANCELLED
    assert events[-1].run_state_changed.reason == "the user left"
    outcomes = {
        event.component_id: event.component_finished.outcome for event in events if event.HasField("component_finished")
    }
    assert outcomes[named(events, "wait")[0]] == OUTCOME_CANCELLED


async def test_swallowing_a_cancellation_does_not_undo_it() -> None:
    """What user code returns after it was cancelled does not count, nor what it raises."""
    for ending in ("returns", "raises"):
        ready = asyncio.Event()

        @workflow
        async def flow(ready: Any = ready, ending: str = ending) -> str:
            try:
                ready.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if ending == "raises":
                    raise ValueError("too late") from None
            return "done"

        holding = Holding(flow)

        async def meanwhile(ready: asyncio.Event = ready, holding: Holding = holding) -> None:
            await ready.wait()
            holding.attempt.cancel("enough")

        events = await holding.run_and(meanwhile)
        assert events[-1].run_state_changed.state == RUN_STATE_CANCELLED


async def test_user_code_that_does_not_end_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    """After the grace the run ends without it, and what it still does is not written."""
    ready, release = asyncio.Event(), asyncio.Event()

    @workflow
    async def stubborn() -> None:
        ready.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass
        status("still here")

    holding = Holding(stubborn)

    async def meanwhile() -> None:
        await ready.wait()
        holding.attempt.cancel("enough", grace_s=0.01)

    with caplog.at_level(logging.WARNING):
        await holding.run_and(meanwhile)
    assert "left behind" in caplog.text
    release.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert kinds(holding.memory.events)[-1] == "run_state_changed"
    assert holding.memory.state == RUN_STATE_CANCELLED


async def test_a_run_that_is_cancelled_before_its_body_runs_nothing() -> None:
    """Whether the request or the run says so."""
    ran = []

    @workflow
    async def flow() -> None:
        ran.append(True)

    for holding in (
        Holding(flow, cause=ATTEMPT_CAUSE_CANCELLED),
        Holding(flow, state=RUN_STATE_CANCELLING),
    ):
        await holding.run()
        assert holding.memory.state == RUN_STATE_CANCELLED
    holding = Holding(flow)
    holding.attempt.cancel("never mind")
    events = await holding.run()
    assert events[-1].run_state_changed.reason == "never mind"
    assert ran == []


async def test_a_second_cancellation_does_not_disturb_the_cleanup() -> None:
    """Whoever asks again, with whatever reason."""
    ready = asyncio.Event()
    cleaned: list[int] = []

    @workflow
    async def flow() -> None:
        try:
            ready.set()
            await asyncio.Event().wait()
        finally:
            holding.attempt.cancel("again")
            await asyncio.sleep(0)
            cleaned.append(True)

    holding = Holding(flow)

    async def meanwhile() -> None:
        await ready.wait()
        holding.attempt.cancel("")

    events = await holding.run_and(meanwhile)
    assert cleaned == [True]
    assert events[-1].run_state_changed.reason == "again"


async def test_an_attempt_that_is_abandoned_before_it_runs_does_nothing() -> None:
    """A drain may be quicker than the start."""

    @workflow
    async def flow() -> None: ...

    holding = Holding(flow)
    holding.attempt.abandon()
    assert kinds(await holding.run()) == ["run_state_changed"]


async def test_code_that_cancels_itself_fails_the_run() -> None:
    """Nobody asked for it, so it is no cancellation of the run."""

    @workflow
    async def flow() -> None:
        raise asyncio.CancelledError

    result = await testing.run(flow)
    assert result.state == "FAILED"
    assert result.error is not None
    assert "cancelled by its own code" in result.error.message


async def test_a_component_cancelled_by_its_caller_is_told_as_cancelled() -> None:
    """A caller's own time limit reaches the component, and the run goes on."""

    @component
    async def wait() -> None:
        await asyncio.Event().wait()

    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(0.001):
                await wait()
        except TimeoutError:
            return "gave up"
        return ""

    result = await testing.run(flow)
    assert result.output == "gave up"
    (finished,) = of(result.events, "component_finished")
    assert finished.outcome == OUTCOME_CANCELLED


async def test_an_abandoned_attempt_writes_nothing_more() -> None:
    """User code is cancelled, its cleanup runs, and the log stays as it is."""
    ready = asyncio.Event()
    cleaned = []

    @workflow
    async def flow() -> None:
        try:
            await double(1)
            ready.set()
            await asyncio.Event().wait()
        finally:
            status("cleaning")
            cleaned.append(True)

    holding = Holding(flow)

    async def meanwhile() -> None:
        await ready.wait()
        before = len(holding.memory.events)
        holding.attempt.abandon()
        ready.clear()
        assert len(holding.memory.events) == before

    events = await holding.run_and(meanwhile)
    assert cleaned == [True]
    assert kinds(events)[-1] == "component_finished"
    assert holding.attempt.state is None


async def test_a_fenced_attempt_stops_its_user_code() -> None:
    """It learns at its next write, cannot be talked out of it, and says nothing more."""
    swallowed = []

    @workflow
    async def flow() -> None:
        for _ in range(3):
            try:
                await double(1)
            except asyncio.CancelledError:
                swallowed.append(True)

    holding = Holding(flow)
    other = holding.memory.begin()
    events = await holding.run()
    assert swallowed == [True, True, True]
    assert kinds(events) == ["run_state_changed"]
    assert holding.attempt.state is None
    assert await other.append() == 1


async def test_a_component_in_a_task_stops_the_whole_body_when_it_is_fenced() -> None:
    """A task group would not tell the body."""
    holding: list[Holding] = []

    @workflow
    async def flow() -> None:
        async def work() -> None:
            holding[0].memory.lose()
            await double(1)

        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            await asyncio.Event().wait()

    holding.append(Holding(flow))
    await holding[0].run()
    assert holding[0].attempt.state is None


async def test_a_run_that_was_ended_from_outside_is_left_alone() -> None:
    """Its user code stops, and there is one end in the log."""

    @workflow
    async def flow() -> None:
        holding[0].memory.close(reason="run timeout")
        await double(1)

    holding: list[Holding] = []
    holding.append(Holding(flow))
    events = await holding[0].run()
    assert events[-1].run_state_changed.reason == "run timeout"
    with pytest.raises(LogClosed):
        holding[0].memory.begin()


async def test_a_full_log_pauses_the_run() -> None:
    """With a reason that a person can act on."""

    @workflow
    async def flow() -> None:
        while True:
            await double(1)

    holding = Holding(flow, MemoryRun(events_max=20))
    events = await holding.run()
    assert events[-1].run_state_changed.state == RUN_STATE_PAUSED
    assert events[-1].run_state_changed.error.reason == "LOG_LIMIT"
    assert len(events) == 21
    assert holding.attempt.state == RUN_STATE_PAUSED


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "not heard"])
async def test_a_run_that_is_to_be_cancelled_is_not_paused_by_a_full_log(heard: bool) -> None:
    """Whether the attempt has heard of it yet or not: nobody is to be asked about a run that was to end."""

    @workflow
    async def flow() -> None:
        holding[0].memory.cancel()
        if heard:
            asyncio.get_running_loop().call_soon(holding[0].attempt.cancel, "enough")
        try:
            await asyncio.sleep(60 if heard else 0)
        finally:
            for number in range(50):
                status(f"cleaning up {number}")
            await double(1)

    holding = [Holding(flow, MemoryRun(events_max=20))]
    events = await holding[0].run()
    assert events[-1].run_state_changed.state == RUN_STATE_CANCELLED
    assert "limit" in events[-1].run_state_changed.reason
    assert holding[0].attempt.state == RUN_STATE_CANCELLED


async def test_a_log_that_is_full_at_the_very_end_pauses_the_run() -> None:
    """The closing event counts like any other."""

    @workflow
    async def flow() -> None:
        await double(1)

    holding = Holding(flow, MemoryRun(events_max=4))
    events = await holding.run()
    assert events[-1].run_state_changed.state == RUN_STATE_PAUSED


async def test_a_broken_log_is_raised_and_stops_user_code() -> None:
    """A bug below the engine is loud, and no user code can catch it."""

    class Broken(MemoryLog):
        async def append(self, *events: Event, memo: Any = None) -> int:
            raise RuntimeError("bug")

    caught = []

    @workflow
    async def flow() -> None:
        try:
            await double(1)
        except Exception as error:  # noqa: BLE001 - nothing may arrive here
            caught.append(error)

    memory = MemoryRun()
    memory.begin()
    with pytest.raises(RuntimeError, match="bug"):
        await Holding(flow, memory, log=Broken(memory, 1)).run()
    assert caught == []


async def test_whoever_awaits_the_attempt_can_give_it_up() -> None:
    """Cancelling run() cancels user code and writes no end."""
    ready = asyncio.Event()
    cleaned = []

    @workflow
    async def flow() -> None:
        try:
            ready.set()
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    holding = Holding(flow)
    running = asyncio.create_task(holding.attempt.run())
    await ready.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cleaned == [True]
    assert holding.memory.events[-1].HasField("attempt_started")


# Leaving nothing behind


async def test_forgotten_tasks_are_cancelled_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """With a warning that names them, before the log closes."""
    cancelled = []

    @component
    async def linger() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    tasks = []

    @workflow
    async def flow() -> str:
        tasks.append(asyncio.create_task(linger(), name="lingering"))
        await double(1)
        return "done"

    with caplog.at_level(logging.WARNING):
        result = await testing.run(flow)
    assert result.output == "done"
    assert cancelled == [True]
    assert tasks[0].cancelled()
    assert "lingering" in caplog.text
    assert [finished.outcome for finished in of(result.events, "component_finished")] == [OUTCOME_OK, OUTCOME_CANCELLED]


async def test_a_component_that_ended_shows_nothing_more() -> None:
    """What a task of it says after its result would not be there on replay."""
    gate = asyncio.Event()

    @component
    async def forgetful() -> None:
        async def later() -> None:
            await gate.wait()
            status("too late")

        tasks.append(asyncio.create_task(later()))

    tasks: list[asyncio.Task[None]] = []

    @workflow
    async def flow() -> None:
        await forgetful()
        gate.set()
        await tasks[0]

    assert (await testing.run(flow)).statuses == []


async def test_context_variables_of_user_code_are_its_own() -> None:
    """Components see what their caller set, and a run leaves nothing in its executor's context."""
    place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="")

    @component
    async def here() -> str:
        return place.get()

    @workflow
    async def flow() -> str:
        place.set("flow")
        return await here()

    assert (await testing.run(flow)).output == "flow"
    assert place.get() == ""


async def test_much_that_is_shown_waits_for_the_store() -> None:
    """User code goes on until so much is unsent, then it waits at its next component."""
    reached = []

    @workflow
    async def flow() -> None:
        for number in range(3_000):
            status(str(number))
        reached.append("shown")
        await double(1)
        reached.append("called")

    holding = Holding(flow)

    async def meanwhile() -> None:
        with holding.memory.offline():
            for _ in range(20):
                await asyncio.sleep(0)
            assert reached == ["shown"]

    await holding.run_and(meanwhile)
    assert reached == ["shown", "called"]


# Later attempts


@dataclass
class Post:
    title: str
    words: int


async def test_a_later_attempt_goes_on_as_if_nothing_had_happened() -> None:
    """Crash after any event: the user sees what an undisturbed run shows, and the output is the same."""

    @component
    async def write(title: str) -> AsyncIterator[str]:
        for word in ("one ", "two ", title):
            yield word

    @component
    async def draft(title: str) -> str:
        status(f"drafting {title}")
        return await write(title)

    @workflow
    async def flow(title: str) -> Post:
        status("begin")
        publish("step", 1)
        publish.state("post", {"title": title})
        text = await draft(title)
        status("end", done=1, total=1)
        return Post(title, len(text.split()))

    undisturbed = await testing.run(flow, "tea")
    assert undisturbed.output == Post("tea", 3)
    for offset in range(2, len(undisturbed.events)):
        with testing.crash(offset, offset + 7):
            result = await testing.run(flow, "tea")
        assert result.attempts in (2, 3)
        assert result.output == undisturbed.output
        assert result.statuses == undisturbed.statuses
        assert result.view.events == undisturbed.view.events
        assert result.view.states == undisturbed.view.states
        assert [event.offset for event in result.events] == list(range(1, len(result.events) + 1))
        attempts = [event.attempt for event in result.events[1:]]
        assert attempts == sorted(attempts)


async def test_one_rollback_names_unfinished_work_that_had_called_nothing() -> None:
    """Right after AttemptStarted; what is void already is not named again, and the body is never named."""

    @component
    async def show(text: str) -> None:
        status(text)
        if text == "b":
            await asyncio.sleep(0)

    @workflow
    async def flow() -> None:
        status("body")
        await show("a")
        await asyncio.gather(show("b"), show("b"))

    with testing.crash(10, 12):
        result = await testing.run(flow)
    started = [index for index, event in enumerate(result.events) if event.HasField("attempt_started")]
    assert [result.events[index].attempt_started.cause for index in started] == [
        ATTEMPT_CAUSE_STARTED,
        ATTEMPT_CAUSE_EXECUTOR_LOST,
        ATTEMPT_CAUSE_EXECUTOR_LOST,
    ]
    (rollback,) = of(result.events, "rollback")
    assert result.events[started[1] + 1].rollback == rollback
    assert list(rollback.component_ids) == list(dict.fromkeys(named(result.events, "show")))[1:]
    assert (rollback.cause, rollback.after_offset) == (ROLLBACK_CAUSE_ATTEMPT_LOST, 0)
    assert result.statuses == ["body", "a", "b", "b"]


async def test_nothing_shown_needs_no_rollback() -> None:
    """A run that died before it showed anything just starts over."""

    @workflow
    async def flow() -> int:
        return await double(1)

    with testing.crash(3):
        result = await testing.run(flow)
    assert result.output == 2
    assert not of(result.events, "rollback")


async def test_a_rollback_names_at_most_a_thousand() -> None:
    """More take several."""

    @component
    async def show(number: int) -> None:
        status(str(number))
        await asyncio.sleep(0)

    @workflow
    async def flow() -> None:
        await asyncio.gather(*(show(number) for number in range(1_500)))

    with testing.crash(2 + 2 * 1_500):
        result = await testing.run(flow)
    assert [len(rollback.component_ids) for rollback in of(result.events, "rollback")] == [1_000, 500]
    assert len(result.statuses) == 1_500


async def test_a_run_ends_failed_once() -> None:
    """The state in the log is the attempt's state."""

    @workflow
    async def flow() -> None:
        raise ValueError

    holding = Holding(flow)
    await holding.run()
    assert holding.attempt.state == holding.memory.state == RUN_STATE_FAILED


async def test_user_code_that_will_not_stop_does_not_block_the_loop() -> None:
    """Every call of a fenced attempt fails, and the others on the loop get their turn."""
    stop = asyncio.Event()

    @workflow
    async def deaf() -> None:
        while not stop.is_set():
            try:
                await double(1)
            except asyncio.CancelledError:
                pass

    holding = Holding(deaf)
    holding.memory.begin()

    async def meanwhile() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        stop.set()

    await holding.run_and(meanwhile)
    assert holding.attempt.state is None


async def test_a_component_stays_on_the_loop_of_its_run() -> None:
    """A thread that starts a loop of its own is told what to do instead."""

    @component
    def thread() -> int:
        return asyncio.run(double(1))

    @workflow
    async def flow() -> str:
        try:
            await thread()
        except ComponentError as error:
            return error.message
        return ""

    assert "call it from an `async def`" in (await testing.run(flow)).output


async def test_an_odd_exception_fails_the_run_and_not_the_attempt() -> None:
    """One that is no Exception would else be tried on executor after executor."""

    class Odd(BaseException):
        pass

    @workflow
    async def flow() -> None:
        raise Odd("odd")

    error = (await testing.run(flow)).error
    assert error is not None
    assert error.message == "flow raised Odd('odd'), which is no Exception"


async def test_what_fails_while_it_is_stopped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The run ends CANCELLED all the same."""
    ready = asyncio.Event()

    @workflow
    async def flow() -> None:
        try:
            ready.set()
            await asyncio.Event().wait()
        finally:
            raise ValueError("in cleanup")

    holding = Holding(flow)

    async def meanwhile() -> None:
        await ready.wait()
        holding.attempt.cancel("enough")

    await holding.run_and(meanwhile)
    assert holding.memory.state == RUN_STATE_CANCELLED
    assert "in cleanup" in caplog.text
