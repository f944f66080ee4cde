"""What a component keeps across runs: who makes it, who gets it, and what the log tells."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest

from onward import ComponentError, component, testing, workflow
from onward import flights as caching
from onward.testing import Result
from onward.v1.event_pb2 import ComponentFinished


@pytest.fixture(autouse=True)
def shared() -> Iterator[None]:
    """The runs of a test share a cache."""
    with testing.one_cache():
        yield


@pytest.fixture
def ran() -> Counter[str]:
    return Counter()


def finished(result: Result[Any], name: str) -> list[ComponentFinished]:
    ids = {event.component_id for event in result.events if event.component_started.name == name}
    return [
        event.component_finished
        for event in result.events
        if event.component_id in ids and event.HasField("component_finished")
    ]


def text_of(result: Result[Any], name: str) -> str:
    (one,) = [one for one in result.view.components.values() if one.name == name]
    return "".join(part.text for part in one.parts.values())


async def soon(awaited: Any) -> Any:
    async with asyncio.timeout(15):
        return await awaited


@dataclass
class Page:
    title: str
    on: date


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (None, None),
        (int, 0),
        (str, ""),
        (list[str], []),
        (bool, False),
        (Page, Page("a", date(2026, 1, 2))),
        (set[date], {date(2026, 1, 2)}),
        (str, "x" * 300_000),
    ],
    ids=lambda one: str(one)[:20],
)
async def test_another_run_gets_what_one_made(ran: Counter[str], hint: Any, value: Any) -> None:
    """To its type, falsy or long. The log shows the same result, and that it came from the cache."""

    async def make() -> Any:
        ran["make"] += 1
        return value

    make.__annotations__ = {"return": hint}
    made = component(make).cache()
    got = []

    @workflow
    async def flow() -> None:
        got.append(await made())

    first, second = await testing.run(flow), await testing.run(flow)
    assert ran["make"] == 1
    assert got == [value] * 4
    assert {type(one) for one in got} == {type(value)}
    (one,), (other,) = finished(first, "make"), finished(second, "make")
    assert (one.cached, other.cached) == (False, True)
    assert one.output == other.output
    (shown,) = (
        second.view.components.values()
        if len(second.view.components) == 1
        else [one for one in second.view.components.values() if one.name == "make"]
    )
    assert shown.cached


async def test_a_hit_is_remembered_by_the_run(ran: Counter[str]) -> None:
    """A later attempt asks nobody: it gets it from its own log, even when the cache has something else by then."""

    @component.cache()
    async def make() -> int:
        ran["make"] += 1
        return ran["make"]

    @component
    async def stop() -> None: ...

    @workflow
    async def flow() -> int:
        got = await make()
        await stop()
        return got

    with testing.no_replay():
        await testing.run(flow)
        with testing.crash(testing.after_start(stop)):
            hit = await testing.run(flow)
        assert (hit.attempts, hit.output, len(finished(hit, "make"))) == (2, 1, 1)
    assert ran["make"] == 1


async def test_the_input_the_version_and_the_name_tell_calls_apart(ran: Counter[str]) -> None:
    """Nothing else does: not the caller, not the order of a set."""

    async def make(x: Any, y: int = 1) -> str:
        ran["make"] += 1
        return f"{ran['make']}"

    one = component(make).cache()

    @workflow
    async def flow() -> list[str]:
        return [
            await one({"c", "a", "b"}),
            await one({"b", "c", "a"}, 1),
            await one({"b", "c", "a"}, y=2),
            await one.cache(version="2")({"a", "b", "c"}),
            await one.named("other")({"a", "b", "c"}),
            await one.retry(3).timeout("1m").private()({"a", "b", "c"}),
        ]

    with testing.no_replay():
        assert (await testing.run(flow)).output == ["1", "2", "3", "4", "5", "1"]
        assert (await testing.run(flow)).output == ["1", "2", "3", "4", "5", "1"]


async def test_a_key_says_what_counts(ran: Counter[str]) -> None:
    """A function of the arguments: what it leaves out may be anything."""

    def by_url(url: str, client: object = None) -> str:
        return url

    @component.cache(key=by_url)
    async def fetch(url: str, client: object = None) -> int:
        ran[url] += 1
        return ran[url]

    @workflow
    async def flow() -> list[int]:
        return [await fetch("a", object()), await fetch("a"), await fetch("b", client=object())]

    assert (await testing.run(flow)).output == [1, 1, 1]


async def test_what_cannot_be_known_by_its_input_is_made_each_time(ran: Counter[str]) -> None:
    """No JSON form, no cache."""

    @component.cache()
    async def make(client: object) -> int:
        ran["make"] += 1
        return ran["make"]

    @workflow
    async def flow() -> list[int]:
        return [await make(object()), await make(object())]

    assert (await testing.run(flow)).output == [1, 2]


async def test_a_key_that_fails_fails_the_call() -> None:
    """With its own error."""

    @component.cache(key=lambda x: x.nothing)
    async def make(x: int) -> int:
        return x

    @workflow
    async def flow() -> str:
        try:
            await make(1)
        except ComponentError as error:
            return error.type
        return ""

    assert (await testing.run(flow)).output == "AttributeError"


@pytest.mark.parametrize("how", ["error", "fallback", "no JSON", "stream", "stream fallback"])
async def test_a_failure_is_never_kept(ran: Counter[str], how: str) -> None:
    """Nor what a fallback answered for one: the next call makes it."""

    async def value() -> Any:
        ran["made"] += 1
        if ran["made"] == 1:
            if how == "no JSON":
                return object()
            raise ConnectionError
        return "good"

    async def items() -> AsyncIterator[str]:
        ran["made"] += 1
        if ran["made"] == 1:
            raise ConnectionError
        yield "good"

    made: Any = component(items if how.startswith("stream") else value).cache()
    if how.endswith("fallback"):
        made = made.fallback("bad")

    @workflow
    async def flow() -> str:
        try:
            if how.startswith("stream"):
                return "".join([item async for item in made()])
            return str(await made())
        except ComponentError:
            return "failed"

    with testing.no_replay():
        bad = "bad" if how.endswith("fallback") else "failed"
        assert [(await testing.run(flow)).output for _ in range(3)] == [bad, "good", "good"]
    assert ran["made"] == 2


async def test_a_private_result_stays_private() -> None:
    """A hit shows as little as the run that made it."""

    @component.cache().private()
    async def secret(x: str) -> str:
        return f"hidden {x}"

    @workflow
    async def flow() -> int:
        return len(await secret("word"))

    for _ in range(2):
        result = await testing.run(flow)
        assert result.output == 11
        assert b"hidden" not in b"".join(event.SerializeToString() for event in result.events)


async def test_runs_that_want_the_same_at_once_make_it_once(ran: Counter[str]) -> None:
    """The others wait, and say that they got it."""
    go = asyncio.Event()

    @component.cache()
    async def make() -> int:
        ran["make"] += 1
        await go.wait()
        return ran["make"]

    @workflow
    async def flow() -> int:
        ran["runs"] += 1
        if ran["runs"] == 10:
            asyncio.get_running_loop().call_later(0.05, go.set)
        return await make()

    with testing.no_replay():
        results = await soon(asyncio.gather(*(testing.run(flow) for _ in range(10))))
    assert [result.output for result in results] == [1] * 10
    assert ran["make"] == 1
    assert sorted(finished(result, "make")[0].cached for result in results) == [False] + [True] * 9


async def test_in_one_run_too(ran: Counter[str]) -> None:
    """Calls side by side."""

    @component.cache()
    async def make() -> int:
        ran["make"] += 1
        await asyncio.sleep(0)
        return ran["make"]

    @workflow
    async def flow() -> list[int]:
        return list(await asyncio.gather(*(make() for _ in range(10))))

    with testing.no_replay():
        assert (await testing.run(flow)).output == [1] * 10


@pytest.mark.parametrize("dies", ["cancelled", "crashed", "failed"])
async def test_where_the_one_that_made_it_is_gone_another_makes_it(ran: Counter[str], dies: str) -> None:
    """Cancelled by its caller, failed, or lost with its executor: who waits goes on."""
    begun = asyncio.Event()
    go = asyncio.Event()

    @component.cache()
    async def make() -> int:
        ran["make"] += 1
        if ran["make"] == 1:
            begun.set()
            await go.wait()
            raise ConnectionError
        return ran["make"]

    @component
    async def learn() -> None:
        """Where its executor dies."""

    @workflow
    async def first() -> int:
        task = asyncio.ensure_future(make())
        await begun.wait()
        if dies == "cancelled":
            task.cancel()
        elif dies == "failed":
            go.set()
        else:
            await learn()
        try:
            return await task
        except (asyncio.CancelledError, ComponentError):
            return await make()

    @workflow
    async def second() -> int:
        await begun.wait()
        return await make()

    with testing.no_replay():
        if dies == "crashed":
            with testing.crash(testing.after_start(learn)):
                one = asyncio.create_task(testing.run(first))
        else:
            one = asyncio.create_task(testing.run(first))
        two = asyncio.create_task(testing.run(second))
        results = await soon(asyncio.gather(one, two))
    assert [result.output for result in results] == [2, 2]
    assert ran["make"] == 2


async def test_a_component_that_calls_itself_waits_for_nobody(ran: Counter[str]) -> None:
    """Its own making is above it: it runs."""

    @component.cache(key=lambda x: "the same")
    async def down(x: int) -> int:
        ran["down"] += 1
        return x if x == 0 else await down(x - 1)

    @workflow
    async def flow() -> int:
        return await down(3)

    with testing.no_replay():
        assert (await soon(testing.run(flow))).output == 0
    assert ran["down"] == 4


async def test_runs_that_wait_for_each_other_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each makes what the other wants: after a while one of them runs without the cache."""
    monkeypatch.setattr(caching, "HOLDER_WAITS_S", 0.05)
    both = asyncio.Barrier(2)

    @component.cache()
    async def outer(x: int) -> int:
        if depth["n"] < 2:
            depth["n"] += 1
            await both.wait()
            return await outer(1 - x)
        return x

    depth = Counter[str]()

    @workflow
    async def flow(x: int) -> int:
        return await outer(x)

    with testing.no_replay():
        results = await soon(asyncio.gather(testing.run(flow, 0), testing.run(flow, 1)))
    assert [result.state for result in results] == ["SUCCEEDED"] * 2


@pytest.mark.parametrize("reads", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("text", [True, False])
async def test_a_stream_that_was_kept_is_shown_again(ran: Counter[str], reads: tuple[bool, bool], text: bool) -> None:
    """Awaited or read, the first time and the next; a text comes in one piece, values one by one."""

    @component.cache()
    async def words() -> AsyncIterator[str]:
        ran["made"] += 1
        yield "a "
        yield ""
        yield 'b"\n'

    @component.cache()
    async def numbers() -> AsyncIterator[int]:
        ran["made"] += 1
        yield 0
        yield 1

    made: Any = words if text else numbers

    @workflow
    async def flow(reads: bool) -> Any:
        if not reads:
            return await made()
        items = [item async for item in made()]
        return "".join(items) if text else items

    first, second = [await testing.run(flow, one) for one in reads]
    assert ran["made"] == 1
    assert first.output == second.output == ('a b"\n' if text else [0, 1])
    (one,), (other,) = finished(first, made.name), finished(second, made.name)
    assert (one.cached, other.cached, one.output) == (False, True, other.output)
    if text:
        assert text_of(first, "words") == text_of(second, "words") == 'a b"\n'


async def test_a_crash_at_any_event_of_a_hit_changes_nothing(ran: Counter[str]) -> None:
    """Of a stream that is read, the worst case."""

    @component.cache()
    async def numbers() -> AsyncIterator[int]:
        ran["made"] += 1
        for number in range(3):
            yield number

    @component
    async def use(x: int) -> int:
        return x

    @workflow
    async def flow() -> list[int]:
        return [await use(number) async for number in numbers()]

    with testing.no_replay():
        await testing.run(flow)
        undisturbed = await testing.run(flow)
        for offset in range(2, len(undisturbed.events)):
            with testing.crash(offset):
                result = await testing.run(flow)
            assert result.output == [0, 1, 2]
            (shown,) = [one for one in result.view.components.values() if one.name == "numbers"]
            assert [value for part in shown.parts.values() for value in part.values] == [0, 1, 2]
    assert ran["made"] == 1


async def test_a_stream_that_was_left_is_not_kept(ran: Counter[str]) -> None:
    """It is not whole."""

    @component.cache()
    async def numbers() -> AsyncIterator[int]:
        ran["made"] += 1
        yield 0
        yield 1

    @workflow
    async def leaves() -> None:
        async for _ in numbers():
            break

    @workflow
    async def reads() -> list[int]:
        return await numbers()

    with testing.no_replay():
        await testing.run(leaves)
        assert (await soon(testing.run(reads))).output == [0, 1]
    assert ran["made"] == 2


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("read", [True, False])
async def test_a_stream_of_nothing_is_kept_as_that(ran: Counter[str], annotated: bool, read: bool) -> None:
    """Whether it was read by item or awaited: the next reader gets no item either."""

    async def nothing() -> AsyncIterator[str]:
        ran["nothing"] += 1
        return
        yield

    if not annotated:
        nothing.__annotations__ = {}
    kept: Any = component(nothing).cache()

    @workflow
    async def first() -> Any:
        return [item async for item in kept()] if read else await kept()

    @workflow
    async def second() -> list[Any]:
        return [[item async for item in kept()], await kept()]

    assert (await testing.run(first)).output == ([] if read else "")
    assert (await testing.run(second)).output == [[], ""]
    assert ran["nothing"] == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_too_long_is_not_kept(ran: Counter[str], streams: bool, caplog: pytest.LogCaptureFixture) -> None:
    """And nobody waits for it."""

    @component.cache()
    async def value() -> str:
        ran["made"] += 1
        return "x" * caching.VALUE_BYTES_MAX

    @component.cache()
    async def pieces() -> AsyncIterator[str]:
        ran["made"] += 1
        for _ in range(9):
            yield "x" * (caching.VALUE_BYTES_MAX // 8)

    @workflow
    async def flow() -> int:
        return len("".join([piece async for piece in pieces()]) if streams else await value())

    with testing.no_replay():
        await soon(testing.run(flow))
        await soon(testing.run(flow))
    assert ran["made"] == 2
    assert streams or "is not cached" in caplog.text


async def test_what_cannot_be_read_any_more_is_made_again(ran: Counter[str], caplog: pytest.LogCaptureFixture) -> None:
    """The result has another type by now; what is made then is kept instead."""

    async def make() -> str:
        return "no number"

    before = component(make).cache()

    async def make_number() -> int:
        ran["after"] += 1
        return 1

    after = component(make_number).cache().named("make")

    @workflow
    async def flow(old: bool) -> str:
        return str(await (before() if old else after()))

    with testing.no_replay():
        assert [(await testing.run(flow, old)).output for old in (True, False, False)] == ["no number", "1", "1"]
    assert ran["after"] == 1
    assert "does not read its cached result" in caplog.text


async def test_a_retry_belongs_to_the_making(ran: Counter[str]) -> None:
    """Failed tries are not kept, the result of the last one is."""

    @component.retry(3, 0).cache()
    async def make() -> int:
        ran["make"] += 1
        if ran["make"] < 3:
            raise ConnectionError
        return ran["make"]

    @workflow
    async def flow() -> int:
        return await make()

    with testing.no_replay():
        assert [(await testing.run(flow)).output for _ in range(2)] == [3, 3]


async def test_a_run_is_always_run(ran: Counter[str]) -> None:
    """A workflow keeps what it gives where another calls it, and not for whoever starts it."""

    @workflow.cache()
    async def inner() -> int:
        ran["inner"] += 1
        return ran["inner"]

    @workflow
    async def outer() -> int:
        return await inner()

    with testing.no_replay():
        assert [(await testing.run(inner)).output for _ in range(2)] == [1, 2]
        assert [(await testing.run(outer)).output for _ in range(2)] == [3, 3]
        assert await inner() == 4, "outside a run it is just the function"


@pytest.mark.parametrize("ttl", [0, "31d", -1])
def test_a_result_is_kept_for_a_while(ttl: Any) -> None:
    """Not for ever, not for nothing."""
    with pytest.raises(ValueError, match=r"30 days|a duration is"):
        component.cache(ttl)
