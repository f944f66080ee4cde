"""Model calls and executors that die: nothing is shown twice, what was given comes again, and little is paid twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import openai as bare
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.provider import Provider, Reply, serving

from onward import component, testing, workflow
from onward.openai import AsyncOpenAI, OpenAI
from onward.v1.event_pb2 import Event


def asking(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def echo(body: dict[str, Any]) -> str:
    said = body["messages"][0]["content"] if "messages" in body else body["input"]
    return f"You said {said} and that is fine"


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving() as provider:
        provider.default = Reply(answer=echo, reasoning="let me see")
        yield provider


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=provider.url, api_key="key") as client:
        yield client


@component
async def tool(argument: str) -> str:
    return argument.upper()


async def reads_on(client: AsyncOpenAI) -> list[str]:
    """Calls a component while it reads: what it has read by then has to come again."""
    said: list[str] = []
    async for chunk in await client.chat.completions.create(model="m", messages=asking("a"), stream=True):
        text = chunk.choices[0].delta.content or ""
        said.append(await tool(text) if len(said) == 3 else text)
    return ["".join(said)]


async def reads_events(client: AsyncOpenAI) -> list[str]:
    said: list[str] = []
    async for event in await client.responses.create(model="m", input="b", stream=True):
        if event.type == "response.output_text.delta":
            said += [await tool(event.delta) if "said" in event.delta else event.delta]
    return ["".join(said)]


async def leaves(client: AsyncOpenAI) -> list[str]:
    """Leaves the stream in the middle, and goes on."""
    said = []
    stream = await client.chat.completions.create(model="m", messages=asking("c"), stream=True)
    async with stream:
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content or "")
            if "said" in said[-1]:
                break
    return [await tool("".join(said))]


async def speaks(client: AsyncOpenAI) -> list[str]:
    """A streaming component speaks for the model."""

    @component
    async def says(text: str) -> AsyncIterator[str]:
        async for chunk in await client.chat.completions.create(model="m", messages=asking(text), stream=True):
            yield chunk.choices[0].delta.content or ""

    first = await says("d")
    second = [one async for one in says("e")]
    return [first, await tool("".join(second))]


async def at_once(client: AsyncOpenAI) -> list[str]:
    async def read(text: str) -> str:
        stream = await client.chat.completions.create(model="m", messages=asking(text), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask(text: str) -> str:
        made = await client.chat.completions.create(model="m", messages=asking(text))
        return made.choices[0].message.content or ""

    return list(await asyncio.gather(read("f"), ask("g"), read("h"), ask("i")))


async def in_threads(client: AsyncOpenAI) -> list[str]:
    with OpenAI(base_url=client.base_url, api_key="key") as blocking:

        @component
        def read(text: str) -> str:
            stream = blocking.chat.completions.create(model="m", messages=asking(text), stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        return [await read("j"), await read("k")]


CASES = {one.__name__: one for one in (reads_on, reads_events, leaves, speaks, at_once, in_threads)}


def under(body: Callable[[], Coroutine[Any, Any, list[str]]]) -> Any:
    @workflow
    async def under_test() -> list[str]:
        return await body()

    return under_test


def shown(result: testing.Result[Any]) -> dict[str, tuple[str, str]]:
    return {one.id: (one.text, one.reasoning) for one in result.view.components.values() if one.text or one.reasoning}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_wherever_an_executor_dies_the_run_ends_as_if_it_had_not(
    provider: Provider, client: AsyncOpenAI, case: Callable[[AsyncOpenAI], Coroutine[Any, Any, list[str]]]
) -> None:
    """Same output, same view; what is asked again is what was under way, and no more."""
    body = under(lambda: case(client))
    whole = await testing.run(body)
    assert whole.state == "SUCCEEDED", whole.error
    asked = len(provider.requests)
    width = 4 if case is at_once else 1
    for offset in range(2, len(whole.events)):
        provider.requests.clear()
        with testing.crash(offset):
            result = await testing.run(body)
        assert result.state == "SUCCEEDED", (offset, result.error)
        assert result.output == whole.output, offset
        assert sorted(shown(result).values()) == sorted(shown(whole).values()), offset
        assert asked <= len(provider.requests) <= asked + width, offset


async def test_two_deaths_in_one_stream_are_like_none(provider: Provider, client: AsyncOpenAI) -> None:
    """What the second attempt got of a new answer is given again by the third."""
    body = under(lambda: reads_on(client))
    whole = await testing.run(body)
    last = len(whole.events)
    for first in range(4, last, 4):
        for second in range(first + 2, last + 4, 5):
            with testing.crash(first, second):
                result = await testing.run(body)
            assert result.output == whole.output, (first, second, result.error)
            assert sorted(shown(result).values()) == sorted(shown(whole).values()), (first, second)


async def test_an_answer_that_differs_the_second_time_is_spliced(provider: Provider, client: AsyncOpenAI) -> None:
    """What reached the caller stands; of the new answer comes what is longer, part by part."""
    provider.script(Reply("one two three four"))

    async def body() -> list[str]:
        said = []
        async for chunk in await client.chat.completions.create(model="m", messages=asking("a"), stream=True):
            said.append(chunk.choices[0].delta.content or "")
            if len(said) == 3:
                await tool("x")
        return ["".join(said)]

    places = [n for n, event in enumerate((await testing.run(under(body))).events, 1) if is_text(event, " four")]
    assert places
    provider.requests.clear()
    provider.script(Reply("one two three four"), Reply("ONE TWO THREE FOUR FIVE"))
    with testing.crash(places[0] - 1):
        result = await testing.run(under(body))
    assert result.output == ["one two three FOUR FIVE"]
    [text] = (text for text, _ in shown(result).values())
    assert text == "one two three FOUR FIVE"


async def test_what_a_longer_reading_before_had_left_is_not_given(provider: Provider, client: AsyncOpenAI) -> None:
    """The first was void, since its reader had called nothing; the second was shorter, and its reader went on."""
    provider.script(Reply("one two three four"), Reply("ONE TWO THREE FOUR"), Reply("1.. 2.. 3.... FIVE"))

    async def body() -> list[str]:
        said = []
        async for chunk in await client.chat.completions.create(model="m", messages=asking("a"), stream=True):
            said.append(chunk.choices[0].delta.content or "")
            if said[-1] == " TWO":
                await tool("x")
        return ["".join(said)]

    # QUEUED, AttemptStarted, ComponentStarted, four words; AttemptStarted, Rollback, ComponentStarted, two words, tool.
    with testing.crash(7, 14):
        result = await testing.run(under(body))
    assert result.attempts == 3
    assert result.output == ["ONE TWO 3.... FIVE"]


def is_text(event: Event, text: str) -> bool:
    return event.HasField("output_delta") and event.output_delta.text == text


async def test_tries_and_their_wait_go_on_in_the_next_attempt(provider: Provider, client: AsyncOpenAI) -> None:
    """A death does not give a call its tries again."""
    provider.default = Reply(status=500)

    async def body() -> list[str]:
        with pytest.raises(bare.InternalServerError):
            await client.chat.completions.create(model="m", messages=asking("a"))
        return []

    with testing.crash(5):
        result = await testing.run(under(body))
    tries = [event.component_retrying.try_number for event in result.events if event.HasField("component_retrying")]
    assert tries == [1, 2]
    assert len(provider.requests) <= 4, "one may have been under way"


async def test_a_stream_that_cannot_be_taken_up_again_breaks(provider: Provider, client: AsyncOpenAI) -> None:
    """What reached the caller stands, and then it is an error, the same on replay."""
    provider.default = Reply("one two three four")

    async def body() -> list[str]:
        said = []
        try:
            async for chunk in await client.chat.completions.create(model="m", messages=asking("a"), stream=True):
                said.append(chunk.choices[0].delta.content or "")
                if len(said) == 3:
                    await tool("x")
                    provider.default = Reply(status=401)
        except bare.OpenAIError as error:
            said.append(type(error).__name__)
        return said

    with testing.crash(8):
        result = await testing.run(under(body))
    assert result.output == ["", "one", " two", " three", "APIConnectionError"]
