"""What a later attempt gets, in which order, and what a user sees of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

import onward
from onward import ComponentError, component, publish, status, testing, workflow
from onward.engine import Attempt
from onward.memory import MemoryRun
from onward.v1.event_pb2 import ATTEMPT_CAUSE_EXECUTOR_LOST, ATTEMPT_CAUSE_STARTED, OUTCOME_CANCELLED, Event
from onward.v1.run_pb2 import Payload, Run, RunLog


@pytest.fixture(autouse=True)
def count_each_run_once() -> Iterator[None]:
    """These tests count what runs."""
    with testing.no_replay():
        yield


async def attempt(flow: Any, memory: MemoryRun, *, dies_after: int = 0, key: bytes = b"", data: bytes = b"{}") -> None:
    log = memory.begin(dies_after=dies_after)
    with testing.no_backoff():
        await Attempt(
            flow,
            run=Run(
                run_id="r",
                namespace="n",
                workflow=flow.name,
                input=Payload(data=data),
                log=RunLog(last_offset=memory.last_offset),
            ),
            log=log,
            attempt=log.attempt,
            cause=ATTEMPT_CAUSE_STARTED if log.attempt == 1 else ATTEMPT_CAUSE_EXECUTOR_LOST,
            executor_id=f"e{log.attempt}",
            deployment="d",
            digest_key=key,
        ).run()


def kinds(events: list[Event]) -> list[str]:
    return [event.WhichOneof("kind") or "" for event in events]


def of(events: list[Event], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("kind") == kind]


def after_the(kind: str, number: int, events: list[Event]) -> int:
    """Return the offset of the event of that kind with this number, from 1."""
    return [event.offset for event in events if event.WhichOneof("kind") == kind][number - 1]


@component
async def stop() -> None:
    """Give a crash a place: it is begun, and whatever is before it is in the log."""
    await asyncio.sleep(0)


@contextmanager
def crash_at_stop(events: list[Event]) -> Iterator[None]:
    """Lose the executor where the undisturbed run began `stop`."""
    [offset] = [event.offset for event in events if event.component_started.name == "stop"]
    with testing.crash(offset):
        yield


# Values


@dataclass
class Point:
    x: int
    label: str | None = None


class Model(BaseModel):
    at: datetime
    points: list[Point] = []


class Color(Enum):
    RED = "red"


class Word(StrEnum):
    TEA = "tea"


VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (int, 0),
    (bool, False),
    (str, ""),
    (float, float("inf")),
    (bytes, b"\x00\xff"),
    (Point, Point(1)),
    (list[Point], [Point(1, "a"), Point(2)]),
    (Model, Model(at=datetime(2026, 1, 2, tzinfo=UTC), points=[Point(3)])),
    (set[int], {3, 1}),
    (frozenset[str], frozenset(("a",))),
    (tuple[int, str], (1, "a")),
    (dict[int, bytes], {1: b"a"}),
    (Color, Color.RED),
    (Word, Word.TEA),
    (datetime, datetime(2026, 1, 2, 3, tzinfo=UTC)),
    (timedelta, timedelta(days=2, microseconds=1)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=7)),
    (PurePosixPath, PurePosixPath("/a/b")),
    (int | str | None, "1"),
    (list[float], [1.0, 2.5]),
    (Any, {"a": [None, False, 0, 0.5, "", [], {}, "🍵"], "b": 2**70}),
    (str, "x" * 300_000),
]


@pytest.mark.parametrize(
    ("hint", "value"), VALUES, ids=[f"{place} {hint}"[:40] for place, (hint, _) in enumerate(VALUES)]
)
@pytest.mark.parametrize("private", [False, True])
async def test_a_result_comes_back_as_it_was(hint: Any, value: Any, private: bool) -> None:
    """To the type: short or long, shown or private, true or false; and it is not made again."""
    ran = Counter[str]()
    got = []

    async def make() -> Any:
        ran["make"] += 1
        return value

    make.__annotations__["return"] = hint
    made = component.private(private)(make)

    @workflow
    async def flow() -> None:
        got.append(await made())
        await stop()

    events = (await testing.run(flow)).events
    with crash_at_stop(events):
        result = await testing.run(flow)
    assert result.attempts == 2
    assert ran["make"] == 2  # One for each run.
    *_, first, again = got
    assert again == value
    assert type(again) is type(first) is type(value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Point(1), "Point"),
        ({1: "a"}, "dict"),
        ((1, 2), "tuple"),
        ({"a": {1}}, "dict"),
        (b"a", "bytes"),
        (Word.TEA, "Word"),
        ([datetime(2026, 1, 1, tzinfo=UTC)], "list"),
        (float("nan"), "float"),
        (object(), "object"),
    ],
)
async def test_without_an_annotation_what_would_come_back_as_junk_is_an_error_at_once(value: Any, what: str) -> None:
    """Of the component that gave it; not a surprise after a crash."""

    @component
    async def give():  # type: ignore[no-untyped-def]
        return value

    @workflow
    async def flow() -> list[str]:
        try:
            await give()
        except ComponentError as error:
            return [error.name, error.reason, error.message]
        return []

    name, reason, message = (await testing.run(flow)).output
    assert (name, reason) == ("give", "OUTPUT_INVALID")
    assert f"a {what} that" in message
    if what != "object":
        assert "Annotate the result of give" in message


async def test_an_annotation_that_does_not_fit_is_an_error() -> None:
    """What would be lost: the part of a subclass that its base does not have."""

    @dataclass
    class Named(Point):
        name: str = "n"

    @component
    async def give() -> list[Point]:
        return [Named(1)]

    @component
    async def lie() -> str:
        return 3  # type: ignore[return-value]

    @workflow
    async def flow() -> list[str]:
        reasons = []
        for one in (give, lie):
            try:
                await one()
            except ComponentError as error:
                reasons.append(error.reason)
        return reasons

    assert (await testing.run(flow)).output == ["OUTPUT_INVALID"] * 2


async def test_what_readers_see_is_not_kept_twice() -> None:
    """Long and private results alone are in the memo, and large ones beside the log."""

    @component
    async def give(size: int) -> str:
        return "x" * size

    @workflow
    async def flow() -> None:
        await give(10)
        await give(5_000)
        await give(300_000)
        await give.private()(10)

    memory = MemoryRun()
    await attempt(flow, memory)
    assert len(memory.memo) == 3
    assert len(memory.blobs) == 1
    assert not any(b"x" * 300_000 in value for value in memory.memo.values())


async def test_an_error_comes_back_as_the_same_error() -> None:
    """Never as a value, and what failed is not run again."""
    ran = Counter[str]()
    caught: list[ComponentError] = []

    class Refused(ConnectionError):
        details = {"code": 7}  # noqa: RUF012 - one for all

    @component
    async def refuse() -> str:
        ran["refuse"] += 1
        raise Refused("no")

    @workflow
    async def flow() -> str:
        try:
            await refuse()
        except ComponentError as error:
            caught.append(error)
        await stop()
        return "went on"

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=5)
    await attempt(flow, memory)
    assert fold_output(memory) == "went on"
    assert ran["refuse"] == 1
    first, again = caught
    assert vars(first) == vars(again)
    assert str(first) == str(again)
    assert again.details == {"code": 7}


def fold_output(memory: MemoryRun) -> Any:
    return onward.fold(memory.events).output


async def test_a_retry_names_errors_on_replay_too() -> None:
    """An error that was recorded below counts as the one it began with, by the name of its type."""
    tries = Counter[str]()

    class Flaky(ConnectionError):
        pass

    @component
    async def below() -> None:
        tries["below"] += 1
        if tries["below"] == 1:
            raise Flaky("once")

    @component.retry(3, 0, on=ConnectionError, never=TimeoutError)
    async def above() -> None:
        tries["above"] += 1
        await below()

    @workflow
    async def flow() -> None:
        await above()

    memory = MemoryRun()
    # 3 above began, 4 below began, 5 below failed: the executor dies before the try is told to have failed.
    await attempt(flow, memory, dies_after=5)
    await attempt(flow, memory)
    assert memory.events[-1].run_state_changed.error.message == ""
    assert tries == {"below": 2, "above": 3}
    (retrying,) = of(memory.events, "component_retrying")
    assert retrying.try_number == 1


# Identity


async def test_equal_calls_keep_their_own_results() -> None:
    """Same name, same input, another place: also when they arrive in another order."""
    draws = iter(range(100))
    turn = Counter[str]()

    @component
    async def draw(prompt: str) -> int:
        return next(draws)

    @component
    async def item(name: str) -> str:
        turn["items"] += 1
        for _ in range(turn["items"] * (1 if name == "a" else -1) % 7):
            await asyncio.sleep(0)
        return f"{name}{await draw('same')}"

    @workflow
    async def flow() -> list[Any]:
        pair = await asyncio.gather(item("a"), item("b"))
        one, two = await draw("p"), await draw("p")
        await stop()
        return [*pair, one, two]

    for dies_after in range(2, 14):
        memory = MemoryRun()
        await attempt(flow, memory, dies_after=dies_after)
        before = {
            event.component_id: event.component_finished.output.data
            for event in memory.events
            if event.HasField("component_finished")
        }
        await attempt(flow, memory)
        after = {
            event.component_id: event.component_finished.output.data
            for event in memory.events
            if event.HasField("component_finished")
        }
        assert before.items() <= after.items()
        assert len(set(fold_output(memory))) == 4


async def test_names_with_separators_and_keys() -> None:
    """Nothing in a name or a key is syntax."""
    ran: list[str] = []

    @component
    async def work(what: str) -> str:
        ran.append(what)
        return what

    names = ["a:b", "a", "a-1", "a/b?", "a\x1f".replace("\x1f", "é")]

    @workflow
    async def flow() -> list[str]:
        found = [await work.named(name)(name) for name in names]
        found += [await work.keyed(key)(key) for key in ("z", "a", "0 a")]
        await stop()
        return found

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=2 + 2 * 8 + 1)
    await attempt(flow, memory)
    assert fold_output(memory) == ran == [*names, "z", "a", "0 a"]


async def test_a_key_finds_its_call_in_any_order() -> None:
    """A set has another order in every process."""
    ran: list[str] = []
    order = ["b", "a", "c"]

    @component
    async def work(what: str) -> str:
        ran.append(what)
        return what.upper()

    @workflow
    async def flow() -> dict[str, str]:
        found = {what: await work.keyed(what)(what) for what in order}
        await stop()
        return found

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=9)
    order.reverse()
    await attempt(flow, memory)
    assert fold_output(memory) == {"a": "A", "b": "B", "c": "C"}
    assert ran == ["b", "a", "c"]


# Order


@pytest.mark.parametrize("quick", ["a", "b"])
async def test_a_race_ends_as_it_had_ended(quick: str) -> None:
    """The winner of the log wins, whoever is quicker now, and the loser does not run again."""
    ran: list[str] = []

    @component
    async def run(name: str) -> str:
        ran.append(name)
        await asyncio.sleep(0 if name == quick else 0.01)
        return name

    @workflow
    async def flow() -> str:
        runners = [asyncio.create_task(run(name)) for name in ("a", "b")]
        done, pending = await asyncio.wait(runners, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.wait(runners)
        (winner,) = done
        await stop()
        return winner.result()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=7)
    assert ran == ["a", "b"]
    first = quick
    quick = "b" if quick == "a" else "a"
    await attempt(flow, memory)
    assert fold_output(memory) == first
    assert ran == ["a", "b"]
    assert [one.state for one in onward.fold(memory.events).children()].count("cancelled") == 1


async def test_results_arrive_in_the_order_of_the_log() -> None:
    """as_completed, and both of a pair that finished in the same moment."""
    order: list[list[str]] = []
    delays = {"a": 3, "b": 1, "c": 2, "d": 1}

    @component
    async def work(name: str) -> str:
        for _ in range(delays[name]):
            await asyncio.sleep(0)
        return name

    @workflow
    async def flow() -> None:
        order.append([])
        for coming in asyncio.as_completed([work(name) for name in "abcd"]):
            order[-1].append(await coming)
        await stop()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=11)
    await attempt(flow, memory)
    first, again = order
    assert first == again
    assert set(first) == set("abcd")


async def test_what_was_begun_in_between_is_begun_in_between() -> None:
    """One branch reacts to the first result before the second comes: it does so again."""
    told: list[list[str]] = []
    gate = asyncio.Event()

    @component
    async def work(name: str) -> str:
        if name == "slow":
            await gate.wait()
        return name

    @workflow
    async def flow() -> None:
        mine: list[str] = []
        told.append(mine)

        async def one() -> None:
            mine.append(await work("quick"))
            for _ in range(50):
                await asyncio.sleep(0)
            mine.append(await work("next"))
            gate.set()

        async def other() -> None:
            mine.append(await work("slow"))

        await asyncio.gather(one(), other())
        await stop()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=9)
    await attempt(flow, memory)
    assert told == [["quick", "next", "slow"]] * 2


async def test_a_call_that_is_never_made_again_blocks_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A branch that depends on the time: after a while the others go on, and a warning says so."""
    monkeypatch.setattr("onward.replay.QUIET_S", 0.01)
    first = True

    @component
    async def work(name: str) -> str:
        await asyncio.sleep(0)
        return name

    @workflow
    async def flow() -> list[str]:
        async def branch() -> str:
            return await work.named("maybe")("x") if first else ""

        async def other() -> str:
            await asyncio.sleep(0)
            return await work("y")

        found = await asyncio.gather(branch(), other())
        await stop()
        return list(found)

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=7)
    first = False
    with caplog.at_level(logging.WARNING):
        await attempt(flow, memory)
    assert fold_output(memory) == ["", "y"]
    assert "maybe" in caplog.text


async def _at_every_offset(flow: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Run it with an executor lost after every event, and then another, and hold it to the order of the log."""
    calm = await testing.run(flow)
    with caplog.at_level(logging.WARNING, "onward.replay"):
        for offset in range(2, len(calm.events)):
            for gap in (2, 3, 6):
                with testing.crash(offset, offset + gap):
                    result = await testing.run(flow)
                assert result.output == calm.output
                assert not caplog.messages, (offset, gap)


@component
async def note(what: str) -> str:
    return what


async def test_of_a_stream_that_is_left_again_nobody_says_that_it_did_not_make_its_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its items are given again, and its code does not even run: a warning would have somebody look for a mistake."""

    @component
    async def numbers() -> AsyncIterator[int]:
        for number in range(4):
            await note(f"made {number}")
            yield number

    @workflow
    async def flow() -> list[str]:
        used = []
        async for number in numbers():
            used.append(await note(f"used {number}"))
            if number == 2:
                break
        return [*used, await note("after")]

    await _at_every_offset(flow, caplog)


@pytest.mark.parametrize("fails", [False, True])
async def test_items_that_the_log_does_not_show_come_again_between_the_calls(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each where it came, and not all of them where the stream ended: their reader called something in between."""

    @component
    async def words() -> AsyncIterator[str]:
        for word in ("a", "b", "c"):
            yield word
            await note(f"after {word}")
        if fails:
            raise ValueError("no more")

    @component
    async def story() -> AsyncIterator[str]:
        try:
            async for word in words():
                yield await note(word)
        except ComponentError:
            yield "."
        await stop()

    @workflow
    async def flow() -> str:
        return await story()

    await _at_every_offset(flow, caplog)


async def test_what_a_stream_called_between_items_that_are_given_again_is_not_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its code begins when all of them are given and its reader asks for more."""

    @component
    async def inner() -> AsyncIterator[str]:
        for word in ("x", "y"):
            yield await note(f"inner {word}")

    @component
    async def words() -> AsyncIterator[str]:
        yield "a"
        await note("between")
        yield "b"
        async for word in inner():
            yield await note(word)
        await note("last")

    @workflow
    async def flow() -> list[str]:
        found = []
        async for word in words():
            found.append(await note(word))
            await stop()
        return found

    await _at_every_offset(flow, caplog)


async def test_an_item_that_stands_in_the_log_does_not_wait_for_what_came_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stream whose reader calls nothing runs again from its first line, and shows nothing twice."""

    @component
    async def words() -> AsyncIterator[str]:
        for word in ("a", "b"):
            yield word
            await note(word)

    @workflow
    async def flow() -> list[str]:
        return [word async for word in words()]

    await _at_every_offset(flow, caplog)


# Changed code


async def test_another_input_pauses_the_run() -> None:
    """The message names the component, what was expected and what came, and says what to use instead."""
    topic = "tea"
    cleaned = []

    @component
    async def write(topic: str) -> str:
        return topic

    @component
    async def outer() -> str:
        try:
            written = await write(topic)
            await stop()
            return written
        finally:
            cleaned.append(topic)

    @workflow
    async def flow() -> str:
        try:
            return await outer()
        except ComponentError:
            return "went on"

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=6)
    topic = "coffee"
    length = memory.last_offset
    await attempt(flow, memory)
    end = memory.events[-1].run_state_changed
    view = onward.fold(memory.events)
    assert view.state == "PAUSED"
    assert end.error.reason == "NON_DETERMINISTIC"
    for part in ("write", '{"topic":"tea"}', '{"topic":"coffee"}', "onward.now()", "onward.uuid()", "onward.random()"):
        assert part in end.error.message
    assert not of(memory.events[length:], "component_finished")
    assert cleaned[-1] == "coffee"
    # On code that fits it is resumed, and goes on where it was.
    topic = "tea"
    await attempt(flow, memory)
    assert fold_output(memory) == "tea"


async def test_another_component_pauses_the_run() -> None:
    """A new call where the log has another one, and nobody else could make that one."""
    changed = False

    @component
    async def one() -> str:
        return "one"

    @component
    async def two() -> str:
        return "two"

    @workflow
    async def flow() -> list[str]:
        found = [await (two if changed else one)()]
        await stop()
        return found

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=5)
    changed = True
    await attempt(flow, memory)
    end = memory.events[-1].run_state_changed.error
    assert end.reason == "NON_DETERMINISTIC"
    assert "the log has one({}) at offset 3, and now two({}) was called" in end.message


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize(
    ("places", "told"),
    [(1_000, ("0: Input should be a valid integer", "and 990 more")), (50_000, ("50000 places do not fit",))],
)
async def test_a_result_that_the_code_does_not_read_any_more_pauses_the_run(
    private: bool, places: int, told: tuple[str, ...]
) -> None:
    """Wrong in however many places, it tells some of them, or how many; and not what it is, which may be private."""
    many = ["hush"] * places

    @component.private(private)
    async def old() -> list[str]:
        return many

    @component.private(private)
    async def new() -> list[int]:
        return []

    changed = False

    @workflow
    async def flow() -> int:
        given = await (new if changed else old).named("give")()
        await stop()
        return len(given)

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=5)
    changed = True
    await attempt(flow, memory)
    error = memory.events[-1].run_state_changed.error
    assert error.reason == "NON_DETERMINISTIC"
    assert f"give does not read the result it has in the log: {told[0]}" in error.message
    assert all(words in error.message for words in told)
    assert "hush" not in error.message


async def test_a_private_input_is_not_told() -> None:
    """Not even when it differs."""
    word = "hush-1"

    @component.private()
    async def login(password: str) -> None: ...

    @workflow
    async def flow() -> None:
        await login(word)
        await stop()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=5)
    word = "hush-2"
    await attempt(flow, memory)
    assert memory.events[-1].run_state_changed.error.reason == "NON_DETERMINISTIC"
    assert not any("hush" in str(event) for event in memory.events)


async def test_a_new_call_at_the_end_is_no_change() -> None:
    """What the log ends with is what goes on."""
    more = False
    ran = Counter[str]()

    @component
    async def work(x: int) -> int:
        ran[str(x)] += 1
        return x

    @workflow
    async def flow() -> list[int]:
        found = [await work(0), await work(1)]
        if more:
            found.append(await work(2))
        return found

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=6)
    more = True
    await attempt(flow, memory)
    assert fold_output(memory) == [0, 1, 2]
    assert set(ran.values()) == {1}


async def test_a_set_is_the_same_input_in_any_order() -> None:
    """Its order is another in every process; that of a list or a dictionary is the caller's."""

    class Order(set[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(sorted(super().__iter__(), reverse=backwards))

    backwards = False

    @component
    async def take(items: Any) -> None: ...

    @workflow
    async def flow() -> None:
        await take({"a": [Order("abc")], "b": Order("xy")})

    def digest(memory: MemoryRun) -> bytes:
        (started,) = of(memory.events, "component_started")
        found: bytes = started.input_digest
        return found

    one, two = MemoryRun(), MemoryRun()
    await attempt(flow, one)
    backwards = True
    await attempt(flow, two)
    assert of(one.events, "component_started")[0].input != of(two.events, "component_started")[0].input
    assert digest(one) == digest(two)


# Chance


async def test_time_and_chance_are_remembered() -> None:
    """In bodies, components, threads and tries; in a later attempt they are what they were."""
    told: list[list[Any]] = []

    @component
    def thread() -> str:
        return str(onward.uuid())

    @component
    async def below(uuid: UUID) -> list[Any]:
        return [onward.random(), onward.random(), str(onward.now())]

    @workflow
    async def flow() -> list[Any]:
        mine: list[Any] = [onward.now(), onward.uuid(), onward.uuid(), onward.random()]
        told.append(mine)
        mine += await below(mine[1])
        mine.append(await thread())
        await stop()
        mine.append(onward.uuid())
        return [str(one) for one in mine]

    undisturbed = await testing.run(flow)
    told.clear()
    with crash_at_stop(undisturbed.events):
        result = await testing.run(flow)
    first, again = told
    assert result.attempts == 2
    assert first[:8] == again[:8]
    assert len(set(map(str, again))) == 9
    assert isinstance(again[0], datetime)
    assert again[0].tzinfo is UTC
    assert again[1].version == 4
    assert 0 <= again[3] < 1
    assert [one.name for one in result.view.children()].count("onward.uuid") == 3


async def test_chance_that_was_lost_falls_the_same_way_again() -> None:
    """An idempotency key that went out must not become another; a further try has its own."""
    sent: list[UUID] = []

    @component.retry(2, 0)
    async def pay() -> None:
        sent.append(onward.uuid())
        if len(sent) == 2:
            raise ConnectionError

    @workflow
    async def flow() -> None:
        await pay()

    with testing.crash(3):
        await testing.run(flow)
    lost, again, next_try = sent
    assert lost == again != next_try


def test_outside_a_run_they_are_just_the_functions() -> None:
    """Nothing is kept."""
    assert onward.uuid() != onward.uuid()
    assert onward.random() != onward.random()
    assert abs(datetime.now(UTC) - onward.now()) < timedelta(minutes=1)


# What is shown


async def test_a_body_shows_nothing_twice() -> None:
    """Statuses and published values that stand in the log are not shown again; any other is."""
    attempts = Counter[str]()

    @workflow
    async def flow() -> None:
        attempts["n"] += 1
        status("same")
        status("same")
        publish("event", 1)
        status(f"attempt {attempts['n']}")
        await stop()
        status("end")

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=7)
    await attempt(flow, memory)
    shown = [event.status_updated.message for event in memory.events if event.HasField("status_updated")]
    assert shown == ["same", "same", "attempt 1", "attempt 2", "end"]
    assert not of(memory.events, "rollback")
    assert len(of(memory.events, "published")) == 1


async def test_text_of_a_body_goes_on_in_mid_sentence() -> None:
    """What matches stands; the first piece that does not voids the rest, and only that."""
    ending = "a b X Y Z"

    @workflow
    async def flow() -> AsyncIterator[str]:
        for word in ending.split():
            yield word
            status(f"after {word}")
        await stop()
        yield "."

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=13)
    assert onward.fold(memory.events).text == "abXYZ"
    ending = "a b c d Z"
    length = memory.last_offset
    await attempt(flow, memory)
    view = onward.fold(memory.events)
    assert view.text == "abcdZ."
    assert [one.message for one in view.statuses] == ["after a", "after b", "after c", "after d", "after Z"]
    (rollback,) = of(memory.events[length:], "rollback")
    assert list(rollback.component_ids) == [""]
    assert rollback.after_offset == 5
    assert [delta.text for delta in of(memory.events[length:], "output_delta")] == ["c", "d", "Z", "."]


async def test_text_that_does_not_come_again_is_void_at_the_end() -> None:
    """The view is that of the attempt that ended."""
    short = False

    @workflow
    async def flow() -> AsyncIterator[str]:
        yield "a"
        if not short:
            yield "b"
        await stop()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=5)
    short = True
    await attempt(flow, memory)
    assert onward.fold(memory.events).text == fold_output(memory) == "a"


async def test_a_try_that_went_on_in_another_attempt_is_void_as_a_whole() -> None:
    """Also what it had shown before the crash, and what finished work below it had."""
    tries = Counter[str]()

    @component
    async def leaf(text: str) -> None:
        status(f"leaf {text}")

    @component
    async def middle(text: str) -> None:
        status(f"middle {text}")
        await leaf(text)

    @component.retry(3, 0)
    async def top() -> None:
        tries["n"] += 1
        status("top")
        await middle("one")
        await stop()
        await leaf("two")
        if tries["n"] < 3:
            raise ConnectionError

    @workflow
    async def flow() -> None:
        await top()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=11)
    assert tries["n"] == 1
    assert memory.events[-1].component_started.name == "stop"
    await attempt(flow, memory)
    view = onward.fold(memory.events)
    assert tries["n"] == 3
    assert sorted(one.message for one in view.statuses) == ["leaf one", "leaf two", "middle one", "top"]
    assert [one.try_number for one in of(memory.events, "component_retrying")] == [1]


async def test_a_lost_rollback_is_made_up_for() -> None:
    """The executor died between the failed try and its Rollback: what that had shown is void all the same."""
    tries = Counter[str]()

    @component
    async def leaf() -> None:
        status("leaf")

    @component.retry(3, 0)
    async def top() -> None:
        tries["n"] += 1
        status(f"try {tries['n']}")
        await leaf()
        if tries["n"] == 1:
            raise ConnectionError

    @workflow
    async def flow() -> None:
        await top()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=8)
    assert memory.events[-1].HasField("component_retrying")
    await attempt(flow, memory)
    assert [one.message for one in onward.fold(memory.events).statuses] == [f"try {tries['n']}", "leaf"]
    (rollback,) = of(memory.events, "rollback")
    assert len(rollback.component_ids) == 2


# Tries


async def test_tries_are_counted_across_attempts() -> None:
    """A crash gives no new tries."""
    tries = Counter[str]()

    @component.retry(4, 0)
    async def refuse() -> None:
        tries["n"] += 1
        await asyncio.sleep(0)
        raise ConnectionError

    @workflow
    async def flow() -> None:
        await refuse()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=5)
    before = tries["n"]
    await attempt(flow, memory)
    assert [one.try_number for one in of(memory.events, "component_retrying")] == [1, 2, 3]
    assert tries["n"] - before == 2
    assert memory.events[-1].run_state_changed.error.reason == "COMPONENT_FAILED"


async def test_the_total_time_counts_from_the_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that comes an hour later does not begin it anew."""

    @component.retry(10, 0, total="1m")
    async def refuse() -> None:
        raise ConnectionError

    @workflow
    async def flow() -> None:
        await refuse()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=3)
    started = memory.events[-1]
    started.create_time.seconds -= 3_600
    memory._log[-1] = started.SerializeToString()  # noqa: SLF001 - an hour passes
    await attempt(flow, memory)
    assert not of(memory.events, "component_retrying")
    (finished,) = of(memory.events, "component_finished")
    assert finished.error.reason == "ATTEMPTS_EXHAUSTED"


async def test_results_of_a_failed_try_are_not_used_again() -> None:
    """A try is a scope: the next one calls again what the one before had finished, also in a later attempt."""
    ran = Counter[str]()

    @component
    async def leaf() -> int:
        ran["leaf"] += 1
        return ran["leaf"]

    @component.retry(3, 0)
    async def top() -> int:
        ran["top"] += 1
        got = await leaf()
        if ran["top"] == 1:
            raise ConnectionError
        await stop()
        return got

    @workflow
    async def flow() -> int:
        return await top()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=9)
    assert memory.events[-1].component_started.name == "stop"
    await attempt(flow, memory)
    assert fold_output(memory) == 2
    assert ran == {"leaf": 2, "top": 3}


async def test_what_a_failed_try_left_running_is_cancelled_before_the_next_one() -> None:
    """asyncio.gather leaves the others running where one call fails, and the next try makes the same calls again."""
    ended: list[str] = []
    tries = 0

    @component
    async def fail_once() -> None:
        if tries == 1:
            raise ConnectionError

    @component
    async def work() -> int:
        mine = tries
        try:
            await asyncio.sleep(0 if mine > 1 else 60)
            return mine
        finally:
            ended.append(f"work of try {mine}")

    @component.retry(attempts=2)
    async def both() -> int:
        nonlocal tries
        tries += 1
        ended.append(f"before try {tries}")
        return (await asyncio.gather(fail_once(), work()))[1]

    @workflow
    async def flow() -> int:
        return await both()

    result = await testing.run(flow)
    assert result.output == 2
    assert ended == ["before try 1", "work of try 1", "before try 2", "work of try 2"]
    assert testing.check(result.events) == []


@pytest.mark.parametrize("fallback", [False, True])
async def test_what_goes_on_in_a_failed_try_is_void(fallback: bool) -> None:
    """Code that is not stopped: a task that comes by later, and a thread. None of it is taken for the next try's."""
    did: list[str] = []
    first = True
    blocks, next_try, late = asyncio.Event(), asyncio.Event(), asyncio.Event()
    in_thread = threading.Event()
    loop = asyncio.get_running_loop()

    @component
    async def note(who: str) -> str:
        did.append(who)
        return who

    async def later() -> None:
        try:
            await next_try.wait()
            await note("a task of the first try")
        finally:
            late.set()

    @component
    def blocking() -> str:
        loop.call_soon_threadsafe(blocks.set)
        in_thread.wait(30)
        status("from a thread of the first try")
        return "from a thread"

    async def again() -> str:
        next_try.set()
        await late.wait()
        in_thread.set()
        return await note("the next try")

    left: list[asyncio.Task[Any]] = []

    async def tried() -> str:
        nonlocal first
        if not first:
            return await again()
        first = False
        left.extend([asyncio.create_task(later()), asyncio.ensure_future(blocking())])
        await blocks.wait()
        raise ConnectionError

    made = component(tried)
    one = made.fallback(again) if fallback else made.retry(attempts=2)

    @workflow
    async def flow() -> str:
        return await one()

    result = await testing.run(flow)
    assert result.output == "the next try"
    assert did == ["the next try"]
    assert result.statuses == []
    assert testing.check(result.events) == []


# Streams


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("values", [False, True])
async def test_a_finished_stream_is_given_again(silent: bool, reads: bool, values: bool) -> None:
    """Whole where it is awaited, in the same pieces where it is read; nothing is shown again, nothing runs again."""
    ran = Counter[str]()
    told: list[Any] = []

    @component
    async def words() -> AsyncIterator[str]:
        ran["words"] += 1
        for word in ("a ", "", "b", "ü" * 5_000):
            yield word

    @component
    async def points() -> AsyncIterator[Point]:
        ran["points"] += 1
        for x in range(3):
            yield Point(x)

    async def consume() -> Any:
        source: Any = points if values else words
        return [item async for item in source()] if reads else await source()

    @component
    async def speaks() -> AsyncIterator[str]:
        told.append(await consume())
        await stop()
        yield "."

    @workflow
    async def flow() -> None:
        if silent:
            await speaks()
        else:
            told.append(await consume())
            await stop()

    events = (await testing.run(flow)).events
    ran.clear()
    told.clear()
    with crash_at_stop(events):
        result = await testing.run(flow)
    first, again = told
    assert first == again
    assert [type(one) for one in first] == [type(one) for one in again]
    assert sum(ran.values()) == 1
    assert len(of(result.events, "output_delta")) == len(of(events, "output_delta"))
    assert not of(result.events, "rollback")


async def test_an_error_in_mid_stream_comes_back_there() -> None:
    """The items before it are given again, and the error is the stream's own."""
    told: list[list[Any]] = []

    @component
    async def breaks() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ConnectionError("broken")

    @workflow
    async def flow() -> None:
        mine: list[Any] = []
        told.append(mine)
        try:
            async for item in breaks():
                mine.append(item)  # noqa: PERF401 - those before the error count
        except ComponentError as error:
            mine.append((error.name, error.type, error.message, error.component_id))
        await stop()

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=7)
    await attempt(flow, memory)
    assert told[0] == told[1]
    assert told[0][:2] == [1, 2]
    assert told[0][2][:3] == ("breaks", "ConnectionError", "broken")


async def test_a_crash_in_mid_stream_shows_no_word_twice() -> None:
    """The text begins anew, and the view holds it once."""

    @component
    async def words() -> AsyncIterator[str]:
        for word in ("a ", "b ", "c ", "d "):
            await asyncio.sleep(0)
            yield word

    @workflow
    async def flow() -> str:
        return await words()

    for offset in range(3, 8):
        with testing.crash(offset):
            result = await testing.run(flow)
        assert result.output == "a b c d "
        assert result.view.children()[0].text == "a b c d "


async def test_a_reader_that_went_on_gets_the_recorded_items_first() -> None:
    """It has called a component with them. What the generator gives after as many is new."""
    begun = Counter[str]()
    used: list[str] = []

    @component
    async def use(item: str) -> None:
        used.append(item)

    @component
    async def words() -> AsyncIterator[str]:
        begun["words"] += 1
        for word in ("one", "two", "three", "four"):
            yield word if begun["words"] == 1 else word.upper()

    @workflow
    async def flow() -> list[str]:
        found = []
        async for item in words():
            found.append(item)
            await use(item)
        return found

    memory = MemoryRun()
    # 3 words, 4 one, 5-6 use, 7 two, 8-9 use
    await attempt(flow, memory, dies_after=9)
    await attempt(flow, memory)
    assert fold_output(memory) == ["one", "two", "THREE", "FOUR"]
    assert used == ["one", "two", "THREE", "FOUR"]
    assert onward.fold(memory.events).children()[0].text == "onetwoTHREEFOUR"
    assert begun["words"] == 2


async def test_a_stream_that_was_left_is_left_again() -> None:
    """It gives what it gave, and its generator does not even begin."""
    begun = Counter[str]()

    @component
    async def numbers() -> AsyncIterator[int]:
        begun["numbers"] += 1
        for number in range(100):
            yield number

    @workflow
    async def flow() -> int:
        stream = numbers()
        async for number in stream:
            if number == 2:
                break
        await stream.aclose()
        await stop()
        return number

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=8)
    assert of(memory.events, "component_finished")[0].outcome == OUTCOME_CANCELLED
    await attempt(flow, memory)
    assert fold_output(memory) == 2
    assert begun["numbers"] == 1
    assert onward.fold(memory.events).children()[0].state == "cancelled"


# Nested workflows, and the replay of every tested workflow


async def test_a_workflow_in_a_workflow_is_remembered_with_what_it_showed() -> None:
    """Its events are the run's, and once."""
    ran = Counter[str]()

    @workflow
    async def inner(x: int) -> int:
        ran["inner"] += 1
        status("inner")
        publish("inner", x)
        return x + 1

    @workflow
    async def flow() -> int:
        found = await inner(1)
        await stop()
        return found

    events = (await testing.run(flow)).events
    with crash_at_stop(events):
        result = await testing.run(flow)
    assert ran["inner"] == 2  # One for each run.
    assert result.statuses == ["inner"]
    assert result.view.events == {"inner": [1]}


async def test_a_tested_workflow_is_replayed() -> None:
    """What depends on state, time or chance shows in its unit test, with the name of the component."""
    calls = Counter[str]()

    @component
    async def work(x: int) -> int:
        return x

    @workflow
    async def steady() -> int:
        status("once")
        return await work(1)

    @workflow
    async def drifting() -> int:
        calls["n"] += 1
        return await work(calls["n"])

    @workflow
    async def talking() -> None:
        calls["n"] += 1
        status(f"call {calls['n']}")

    @workflow
    async def ending() -> int:
        calls["n"] += 1
        return calls["n"]

    @workflow
    async def growing() -> None:
        calls["n"] += 1
        for _ in range(calls["n"]):
            await work(0)

    drift: Any
    for drift, message in (
        (drifting, "work: the log has work"),
        (talking, "showed something"),
        (ending, "ended another way: 1 then, 2 now"),
        (growing, "ran work"),
    ):
        calls.clear()
        assert (await testing.run(drift)).state == "SUCCEEDED"
        calls.clear()
        with testing.no_replay(False), pytest.raises(testing.NotRepeatable, match=message):
            await testing.run(drift)
    with testing.no_replay(False):
        assert (await testing.run(steady)).output == 1


async def test_ten_thousand_finished_components_are_replayed_quickly() -> None:
    """In turns of the loop, not in time that a test could measure: one each, and none runs again."""
    ran = Counter[str]()

    @component
    async def work(x: int) -> int:
        ran["work"] += 1
        return x

    @workflow
    async def flow() -> int:
        total = sum([await work(x) for x in range(10_000)])
        await stop()
        return total

    memory = MemoryRun()
    await attempt(flow, memory, dies_after=2 + 20_000 + 1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await attempt(flow, memory)
    assert fold_output(memory) == sum(range(10_000))
    assert ran["work"] == 10_000
    assert loop.time() - began < 20
