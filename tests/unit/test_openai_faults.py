"""What providers do to model calls, on real sockets: each fault is healed by another try, or told the same for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from email.utils import formatdate
from typing import Any

import openai as bare
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.provider import Provider, Reply, serving

from onward import ComponentError, component, testing, workflow
from onward.openai import AsyncOpenAI, DefaultAioHttpClient, ModelPolicy, Providers, Stall
from onward.openai import Provider as Named
from onward.v1.event_pb2 import (
    OUTCOME_ERROR,
    ROLLBACK_CAUSE_FALLBACK,
    ROLLBACK_CAUSE_RETRY,
    Event,
)

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving() as provider:
        yield provider


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[AsyncOpenAI]:
    policy = ModelPolicy(first_token=Stall("0.8s"), between_tokens=Stall("0.8s"))
    async with AsyncOpenAI(base_url=provider.url, api_key="key", max_retries=2, timeout=0.8, policy=policy) as client:
        yield client


async def run(body: Callable[[], Coroutine[Any, Any, Any]]) -> testing.Result[Any]:
    """Run `body` as a workflow, and replay it."""

    @workflow
    async def under_test() -> Any:
        return await body()

    return await testing.run(under_test)


async def whole(client: AsyncOpenAI) -> str:
    made = await client.chat.completions.create(model="m", messages=HI)
    return made.choices[0].message.content or ""


async def stream(client: AsyncOpenAI) -> str:
    chunks = await client.chat.completions.create(model="m", messages=HI, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


async def responses(client: AsyncOpenAI) -> str:
    said = ""
    async for event in await client.responses.create(model="m", input="hi", stream=True):
        said += event.delta if event.type == "response.output_text.delta" else ""
    return said


Ask = Callable[[AsyncOpenAI], Coroutine[Any, Any, str]]


async def outcome(ask: Ask, client: AsyncOpenAI) -> list[str]:
    """What the caller sees: the answer, or the package's error."""
    try:
        return [await ask(client)]
    except bare.OpenAIError as error:
        return [type(error).__name__, str(error), repr(error.__cause__)[:0]]


def retrying(events: list[Event]) -> list[str]:
    return [event.component_retrying.error.type for event in events if event.HasField("component_retrying")]


FAULTS = {
    "rate limit": (Reply(status=429), "openai.RateLimitError"),
    "server error": (Reply(status=500), "openai.InternalServerError"),
    "overloaded": (Reply(status=503), "openai.InternalServerError"),
    "conflict": (Reply(status=409), "openai.ConflictError"),
    "request timeout": (Reply(status=408), "openai.APIStatusError"),
    "told to try again": (Reply(status=400, headers={"x-should-retry": "true"}), "openai.BadRequestError"),
    "reset before the answer": (Reply(fault="reset", after=-1), "openai.APIConnectionError"),
    "reset in the answer": (Reply(fault="reset"), "openai.APIConnectionError"),
    "an early end": (Reply(fault="truncate"), "openai.APIConnectionError"),
    "silence before the answer": (Reply(fault="stall", after=-1), "openai.APITimeoutError"),
    "silence in the answer": (Reply(fault="stall"), "openai.APITimeoutError"),
    "no JSON": (Reply(fault="garbage"), "openai.APIConnectionError"),
}


@pytest.mark.parametrize("ask", [whole, stream, responses])
@pytest.mark.parametrize(("reply", "kind"), FAULTS.values(), ids=FAULTS)
async def test_a_fault_before_the_first_token_is_healed_by_another_try(
    provider: Provider, client: AsyncOpenAI, ask: Ask, reply: Reply, kind: str
) -> None:
    """The caller does not see it; the log does. Replay sends nothing."""
    provider.script(reply)
    result = await run(lambda: outcome(ask, client))
    assert result.output == ["Hello dear world"]
    assert retrying(result.events) == [kind]
    assert len(provider.requests) == 2


@pytest.mark.parametrize("ask", [whole, stream, responses])
@pytest.mark.parametrize(("reply", "kind"), FAULTS.values(), ids=FAULTS)
async def test_what_no_try_heals_is_the_packages_error_the_first_time_as_on_replay(
    provider: Provider, client: AsyncOpenAI, ask: Ask, reply: Reply, kind: str
) -> None:
    """Type and message; the tries of a silence are its own."""
    provider.default = reply
    result = await run(lambda: outcome(ask, client))
    assert result.output[0] == kind.removeprefix("openai.")
    assert result.view.text == ""
    [finished] = [event.component_finished for event in result.events if event.HasField("component_finished")]
    assert (finished.outcome, finished.error.type) == (OUTCOME_ERROR, kind)
    assert finished.error.reason == "ATTEMPTS_EXHAUSTED"
    assert finished.error.retryable
    stalls = reply.fault == "stall" and ask is not whole
    assert finished.usage.calls == len(provider.requests) == (2 if stalls else 3)


@pytest.mark.parametrize("ask", [whole, stream])
@pytest.mark.parametrize(("reply", "kind"), FAULTS.values(), ids=FAULTS)
async def test_it_is_the_same_over_aiohttp(provider: Provider, ask: Ask, reply: Reply, kind: str) -> None:
    """The package's other transport names some of them otherwise, which neither the caller nor the log sees."""
    provider.script(reply)
    policy = ModelPolicy(first_token=Stall("0.8s"), between_tokens=Stall("0.8s"))
    async with AsyncOpenAI(
        base_url=provider.url,
        api_key="key",
        max_retries=2,
        timeout=0.8,
        policy=policy,
        http_client=DefaultAioHttpClient(timeout=0.8),
    ) as client:
        result = await run(lambda: outcome(ask, client))
    assert result.output == ["Hello dear world"]
    assert retrying(result.events) == [kind]
    assert len(provider.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@pytest.mark.parametrize("ask", [whole, stream])
async def test_a_refusal_is_not_asked_again(provider: Provider, client: AsyncOpenAI, ask: Ask, status: int) -> None:
    provider.default = Reply(status=status, error="no such thing")
    result = await run(lambda: outcome(ask, client))
    assert "no such thing" in result.output[1]
    assert len(provider.requests) == 1
    [finished] = [event.component_finished for event in result.events if event.HasField("component_finished")]
    assert (finished.error.reason, finished.error.retryable) == ("COMPONENT_FAILED", False)


async def test_an_empty_account_is_not_asked_again(provider: Provider, client: AsyncOpenAI) -> None:
    """429 too, and no wait heals it."""
    provider.default = Reply(status=429, code="insufficient_quota")
    assert (await run(lambda: outcome(whole, client))).output[0] == "RateLimitError"
    assert len(provider.requests) == 1


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "7500", "retry-after": "9"}, 7.5),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "Sun, 06 Nov 99999999999999999999 08:49:37 GMT"}, 0.0),
        ({"retry-after": "inf"}, 86_400.0),
        ({"retry-after": "1e300"}, 86_400.0),
        ({}, 0.0),
    ],
)
async def test_retry_after_is_waited_for(
    provider: Provider, client: AsyncOpenAI, headers: dict[str, str], delay_s: float
) -> None:
    provider.script(Reply(status=429, headers=headers))
    result = await run(lambda: whole(client))
    [delay] = [event.component_retrying.delay for event in result.events if event.HasField("component_retrying")]
    assert delay_s <= delay.ToTimedelta().total_seconds() <= max(delay_s, 0.5)


async def test_a_date_is_waited_for_too(provider: Provider, client: AsyncOpenAI) -> None:
    provider.script(Reply(status=429, headers={"retry-after": formatdate(time.time() + 60, usegmt=True)}))
    result = await run(lambda: whole(client))
    [delay] = [event.component_retrying.delay for event in result.events if event.HasField("component_retrying")]
    assert 50 < delay.ToTimedelta().total_seconds() <= 60


LATE = {
    "reset": (Reply(fault="reset", after=2), "APIConnectionError"),
    "an early end": (Reply(fault="truncate", after=2), "APIConnectionError"),
    "silence": (Reply(fault="stall", after=2), "APITimeoutError"),
    "no JSON": (Reply(fault="garbage", after=2), "APIConnectionError"),
    "an error": (Reply(fault="error", after=2, error="overloaded"), "APIError"),
}


@pytest.mark.parametrize("voiced", [True, False], ids=["shown", "not shown"])
@pytest.mark.parametrize(("reply", "kind"), LATE.values(), ids=LATE)
async def test_a_stream_that_breaks_after_its_first_token_raises_after_what_it_gave(
    provider: Provider, client: AsyncOpenAI, reply: Reply, kind: str, voiced: bool
) -> None:
    """It is not an answer, and not asked again below its caller: on replay the same chunks come, and the same error."""

    async def read() -> list[str]:
        said = []
        try:
            async for chunk in await client.chat.completions.create(model="m", messages=HI, stream=True):
                said += [chunk.choices[0].delta.content or ""]
        except bare.APIError as error:
            said += [type(error).__name__, str(error)]
        return said

    @component
    async def streams() -> AsyncIterator[str]:
        for one in await read():
            yield f"{one}|"

    async def body() -> list[str]:
        return await read() if voiced else (await streams()).split("|")

    provider.script(reply)
    result = await run(body)
    assert result.output[:4] == ["", "Hello", " dear", kind]
    assert len(provider.requests) == 1


async def test_the_component_around_a_broken_stream_tries_again(provider: Provider, client: AsyncOpenAI) -> None:
    """What it had shown is rolled back; its policy names the package's errors."""

    @component.retry(attempts=2, on=bare.APIConnectionError)
    async def says() -> AsyncIterator[str]:
        async for chunk in await client.chat.completions.create(model="m", messages=HI, stream=True):
            yield chunk.choices[0].delta.content or ""

    @component.retry(attempts=2, on=bare.RateLimitError)
    async def asks() -> str:
        return await whole(client.with_options(max_retries=0))

    async def body() -> list[str]:
        return [await says(), await asks()]

    provider.script(Reply(fault="reset", after=2), Reply(), Reply(status=429))
    result = await run(body)
    assert result.output == ["Hello dear world"] * 2
    assert [event.rollback.cause for event in result.events if event.HasField("rollback")] == [ROLLBACK_CAUSE_RETRY]
    [shown] = [one.text for one in result.view.components.values() if one.name == "says"]
    assert shown == "Hello dear world"


async def test_a_connection_that_breaks_after_the_answer_does_no_harm(provider: Provider, client: AsyncOpenAI) -> None:
    """What counts is that the answer came to its end."""
    provider.script(Reply(fault="reset", after=99, done=False), Reply(done=False))
    result = await run(lambda: stream(client))
    assert result.output == "Hello dear world"
    assert len(provider.requests) == 1


async def test_an_answer_that_a_filter_cut_is_an_answer(provider: Provider, client: AsyncOpenAI) -> None:
    """It has a finish, and the caller sees which."""
    provider.default = Reply("Hello", finish="content_filter")

    async def body() -> list[str | None]:
        made = await client.chat.completions.create(model="m", messages=HI, stream=True)
        return [chunk.choices[0].finish_reason async for chunk in made]

    result = await run(body)
    assert result.output[-1] == "content_filter"
    assert len(provider.requests) == 1


async def test_a_slow_stream_that_never_stalls_is_not_cut(provider: Provider, client: AsyncOpenAI) -> None:
    """The limit is between tokens, not of the whole; nor does the client's own read timeout count for less."""
    provider.default = Reply("a b c d e f g h i j", pause_s=0.12)
    result = await run(lambda: stream(client))
    assert result.output == "a b c d e f g h i j"
    assert not retrying(result.events)


async def test_a_stall_is_seen_soon_and_has_tries_of_its_own(provider: Provider) -> None:
    """The first token and those after it have limits of their own; neither burns the policy's attempts."""
    policy = ModelPolicy(attempts=1, first_token=Stall("0.5s", tries=4), between_tokens=Stall("0.5s"))
    provider.script(*[Reply(fault="stall", after=-1)] * 3)
    async with AsyncOpenAI(base_url=provider.url, api_key="key", policy=policy) as client:
        began = time.monotonic()
        result = await run(lambda: stream(client))
        assert time.monotonic() - began < 6
        assert result.output == "Hello dear world"
        assert retrying(result.events) == ["openai.APITimeoutError"] * 3
        assert "no first token within 500ms" in str(result.events)
        provider.script(Reply(fault="stall", after=1))
        broken = await run(lambda: outcome(stream, client))
        assert broken.output[:2] == ["APITimeoutError", "no next token within 500ms"]
    await provider.until(lambda provider: not provider.open)


async def test_a_reader_that_takes_its_time_is_no_stall_of_the_provider(provider: Provider) -> None:
    """What it does between two chunks counts for nothing, also where the next chunk has not come by then."""
    policy = ModelPolicy(between_tokens=Stall("1s"))
    gate = asyncio.Event()
    provider.default = Reply("a b c d", gate=gate, after=2)
    async with AsyncOpenAI(base_url=provider.url, api_key="key", policy=policy) as client:

        async def body() -> str:
            chunks = await client.chat.completions.create(model="m", messages=HI, stream=True)
            told = ""
            async for chunk in chunks:
                told += chunk.choices[0].delta.content or ""
                if told.split() == ["a", "b"] and not gate.is_set():
                    await asyncio.sleep(1.2)  # longer than a provider may be silent
                    gate.set()
            return told

        assert (await run(body)).output == "a b c d"


async def test_nothing_else_of_the_callers_is_swallowed(provider: Provider, client: AsyncOpenAI) -> None:
    """An error that is none of the provider's arrives as any component's does."""

    async def refuse(_: Any) -> None:
        raise LookupError("a hook of the user's")

    client._client.event_hooks = {"request": [refuse]}  # noqa: SLF001

    async def body() -> str:
        with pytest.raises(ComponentError) as caught:
            await whole(client)
        return str(caught.value)

    assert (await run(body)).output == "chat m: LookupError: a hook of the user's"


async def test_cancelling_the_caller_ends_the_request(provider: Provider, client: AsyncOpenAI) -> None:
    """The connection is closed, and the log says that the call was cancelled."""
    provider.default = Reply(gate=asyncio.Event(), after=1)
    client = client.with_policy(first_token=Stall("1h"), between_tokens=Stall("1h"))

    async def body() -> str:
        task = asyncio.create_task(stream(client))
        await provider.until(lambda provider: provider.open == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await provider.until(lambda provider: provider.open == 0)
        return "cancelled"

    with testing.no_replay():
        result = await run(body)
    assert result.output == "cancelled"
    assert "OUTCOME_CANCELLED" in str(result.events)


# Providers


@pytest.fixture
async def two() -> AsyncIterator[tuple[Provider, Provider]]:
    async with serving() as first, serving() as second:
        first.default, second.default = Reply("from the first"), Reply("from the second")
        yield first, second


@pytest.fixture
def providers(two: tuple[Provider, Provider]) -> Providers:
    first, second = two
    return Providers(
        [
            Named("one", first.url, api_key="canary-first-key"),
            Named("two", second.url, api_key="canary-second-key", models={"m": "their-m"}, headers={"x-more": "1"}),
        ]
    )


@pytest.fixture
async def either(providers: Providers) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(providers=providers, max_retries=1, organization="org") as client:
        yield client


@pytest.mark.parametrize("ask", [whole, stream])
@pytest.mark.parametrize(
    "reply", [*(one for one, _ in list(FAULTS.values())[:8]), *(Reply(status=s) for s in (401, 403, 404))]
)
async def test_where_one_provider_fails_the_next_answers_at_once(
    two: tuple[Provider, Provider], either: AsyncOpenAI, ask: Ask, reply: Reply
) -> None:
    """Asked in its own words, with its own key, and named in the log."""
    first, second = two
    first.script(reply)
    result = await run(lambda: ask(either))
    assert result.output == "from the second"
    [request] = second.requests
    assert request.body["model"] == "their-m"
    assert request.headers["authorization"] == "Bearer canary-second-key"
    assert request.headers["x-more"] == "1"
    assert "openai-organization" not in request.headers
    assert first.requests[0].body["model"] == "m"
    assert first.requests[0].headers["authorization"] == "Bearer canary-first-key"
    [delay] = [event.component_retrying.delay for event in result.events if event.HasField("component_retrying")]
    assert delay.ToTimedelta().total_seconds() == 0
    [finished] = [event.component_finished for event in result.events if event.HasField("component_finished")]
    assert b'"provider":"two"' in finished.output.data


async def test_no_provider_hears_of_anothers_account(two: tuple[Provider, Provider], providers: Providers) -> None:
    """Not by a key in a header of any name, nor by a cookie that another one has set."""
    first, second = two
    async with AsyncOpenAI(providers=providers, default_headers={"x-api-key": "canary-third-key"}) as client:

        async def body() -> list[str]:
            answered = await whole(client)
            first.default = Reply(status=503)
            return [answered, await whole(client)]

        assert (await run(body)).output == ["from the first", "from the second"]
    assert "x-api-key" not in second.requests[0].headers
    assert "cookie" not in second.requests[0].headers


async def test_a_bad_request_is_nobody_elses(two: tuple[Provider, Provider], either: AsyncOpenAI) -> None:
    first, second = two
    first.script(Reply(status=400))
    assert (await run(lambda: outcome(whole, either))).output[0] == "BadRequestError"
    assert not second.requests


async def test_who_failed_just_now_comes_last(two: tuple[Provider, Provider], either: AsyncOpenAI) -> None:
    """The next calls do not pay for finding out again."""
    first, second = two
    first.script(Reply(status=500))

    async def body() -> list[str]:
        return [await whole(either) for _ in range(3)]

    assert (await run(body)).output == ["from the second"] * 3
    assert (len(first.requests), len(second.requests)) == (1, 3)


async def test_where_all_are_down_there_are_rounds(two: tuple[Provider, Provider], either: AsyncOpenAI) -> None:
    first, second = two
    for one in two:
        one.default = Reply(status=503)
    result = await run(lambda: outcome(whole, either))
    assert result.output[0] == "InternalServerError"
    assert (len(first.requests), len(second.requests)) == (2, 2)
    delays = [event.component_retrying.delay for event in result.events if event.HasField("component_retrying")]
    assert [delay.ToTimedelta().total_seconds() > 0 for delay in delays] == [False, True, False]


async def test_no_other_provider_is_asked_when_the_time_of_all_tries_is_up(
    two: tuple[Provider, Provider], either: AsyncOpenAI
) -> None:
    """As no further try of the same one is."""
    first, second = two
    first.default = Reply(status=503, delay_s=0.3)
    result = await run(lambda: outcome(whole, either.with_policy(total="0.2s")))
    assert result.output[0] == "InternalServerError"
    assert (len(first.requests), len(second.requests)) == (1, 0)


async def test_another_provider_takes_over_a_broken_stream(two: tuple[Provider, Provider], either: AsyncOpenAI) -> None:
    """In the next try of the component that was reading; what it had shown is rolled back, and the log says why."""
    first, _ = two
    first.script(Reply("half of it", fault="reset", after=2))

    @component.retry(attempts=2)
    async def says() -> AsyncIterator[str]:
        async for chunk in await either.chat.completions.create(model="m", messages=HI, stream=True):
            yield chunk.choices[0].delta.content or ""

    @component.retry(attempts=2)
    async def outer() -> str:
        return await says.retry(attempts=1)()

    async def body() -> list[str]:
        return [await says(), await outer()]

    result = await run(body)
    assert result.output == ["from the second"] * 2
    assert [event.rollback.cause for event in result.events if event.HasField("rollback")] == [ROLLBACK_CAUSE_FALLBACK]
    assert len(first.requests) == 1


async def test_the_boundary_further_up_tells_the_same_cause(
    two: tuple[Provider, Provider], either: AsyncOpenAI
) -> None:
    first, _ = two
    first.script(Reply("half of it", fault="reset", after=2))

    @component
    async def says() -> AsyncIterator[str]:
        async for chunk in await either.chat.completions.create(model="m", messages=HI, stream=True):
            yield chunk.choices[0].delta.content or ""

    @component.retry(attempts=2)
    async def outer() -> str:
        return await says()

    result = await run(outer)
    assert result.output == "from the second"
    assert [event.rollback.cause for event in result.events if event.HasField("rollback")] == [ROLLBACK_CAUSE_FALLBACK]


async def test_by_weight_each_has_its_share(two: tuple[Provider, Provider]) -> None:
    first, second = two
    named = [Named("one", first.url, weight=1), Named("two", second.url, weight=9)]
    async with AsyncOpenAI(providers=Providers(named, by="weight")) as client:

        async def body() -> None:
            for _ in range(60):
                await whole(client)

        await run(body)
    assert len(first.requests) + len(second.requests) == 60
    assert len(second.requests) > 40


async def test_outside_a_run_the_first_is_asked(two: tuple[Provider, Provider], providers: Providers) -> None:
    _, second = two
    reverse = Providers(reversed(providers.all))
    async with AsyncOpenAI(providers=reverse) as client:
        assert await whole(client) == "from the second"
    assert second.requests[0].body["model"] == "their-m"


def test_providers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="no provider"):
        Providers([])
    with pytest.raises(ValueError, match="same name"):
        Providers([Named("a", "http://a"), Named("a", "http://b")])
    with pytest.raises(ValueError, match="weight"):
        Named("a", "http://a", weight=0)
    with pytest.raises(ValueError, match="has a name"):
        Named("", "http://a")
    assert "secret" not in repr(Named("a", "http://a", api_key="secret-key"))


def test_policies_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="stall of 0"):
        Stall("0s")
    with pytest.raises(ValueError, match="tries"):
        Stall("1s", tries=0)
    with pytest.raises(ValueError, match="attempts"):
        ModelPolicy(attempts=-1)
    with pytest.raises(ValueError, match="backoff"):
        ModelPolicy(backoff="2s..1s")
