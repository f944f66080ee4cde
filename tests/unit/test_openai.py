"""`onward.openai`: the `openai` package outside a run, and inside one the same, remembered and shown."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import openai as bare
import pytest
from openai.types.chat import ChatCompletionMessageParam
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pydantic import BaseModel
from tests.provider import Provider, Reply, serving

from onward import component, secrets, testing, tracing, workflow
from onward.log import EVENT_BYTES_MAX
from onward.openai import AsyncOpenAI, AuthenticationError, BadRequestError, OpenAI, RateLimitError
from onward.v1.event_pb2 import (
    CHANNEL_REASONING,
    CHANNEL_TEXT,
    CHANNEL_TOOL,
    Event,
    OutputDelta,
)
from onward.v1.run_pb2 import Usage
from onward.views import fold

KEY = "sk-canary-0123456789"
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


class Sum(BaseModel):
    total: int


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving() as provider:
        yield provider


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=provider.url, api_key=KEY) as client:
        yield client


async def run(body: Callable[[], Coroutine[Any, Any, Any]]) -> testing.Result[Any]:
    """Run `body` as a workflow, and replay it."""

    @workflow
    async def under_test() -> Any:
        return await body()

    return await testing.run(under_test)


def deltas(events: list[Event]) -> list[OutputDelta]:
    return [event.output_delta for event in events if event.HasField("output_delta")]


def used(events: list[Event]) -> list[Usage]:
    return [event.component_finished.usage for event in events if event.component_finished.HasField("usage")]


# The package's surface: what each of these gives has to come back on replay, from no request at all.


async def chat(client: bare.AsyncOpenAI) -> Any:
    completion = await client.chat.completions.create(model="gpt-5-mini", messages=HI, extra_query={"q": "1"})
    return completion.model_dump(mode="json")


async def chat_stream(client: bare.AsyncOpenAI) -> Any:
    stream = await client.chat.completions.create(model="gpt-5-mini", messages=HI, stream=True)
    return [chunk.model_dump(mode="json") async for chunk in stream]


async def chat_stream_with_usage(client: bare.AsyncOpenAI) -> Any:
    stream = await client.chat.completions.create(
        model="gpt-5-mini", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    return [chunk.model_dump(mode="json") async for chunk in stream]


async def chat_helper(client: bare.AsyncOpenAI) -> Any:
    async with client.chat.completions.stream(model="gpt-5-mini", messages=HI) as stream:
        kinds = [event.type async for event in stream]
        return kinds, (await stream.get_final_completion()).model_dump(mode="json")


async def chat_parse(client: bare.AsyncOpenAI) -> Any:
    completion = await client.chat.completions.parse(model="gpt-5-mini", messages=HI, response_format=Sum)
    parsed = completion.choices[0].message.parsed
    assert isinstance(parsed, Sum)
    return parsed.total


async def responses(client: bare.AsyncOpenAI) -> Any:
    response = await client.responses.create(model="gpt-5-mini", input="hi")
    return response.output_text


async def responses_stream(client: bare.AsyncOpenAI) -> Any:
    stream = await client.responses.create(model="gpt-5-mini", input="hi", stream=True)
    return [event.model_dump(mode="json") async for event in stream]


async def responses_helper(client: bare.AsyncOpenAI) -> Any:
    async with client.responses.stream(model="gpt-5-mini", input="hi", text_format=Sum) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Sum)
    return kinds, final.output_parsed.total


async def responses_parse(client: bare.AsyncOpenAI) -> Any:
    response = await client.responses.parse(model="gpt-5-mini", input="hi", text_format=Sum)
    assert isinstance(response.output_parsed, Sum)
    return response.output_parsed.total


async def embeddings(client: bare.AsyncOpenAI) -> Any:
    made = await client.embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float")
    return [one.embedding for one in made.data]


async def raw(client: bare.AsyncOpenAI) -> Any:
    response = await client.chat.completions.with_raw_response.create(model="gpt-5-mini", messages=HI)
    completion = response.parse()
    return response.status_code, response.headers["x-request-id"], response.text, completion.choices[0].message.content


async def raw_stream(client: bare.AsyncOpenAI) -> Any:
    async with client.chat.completions.with_streaming_response.create(
        model="gpt-5-mini", messages=HI, stream=True, extra_headers={"x-mine": "1"}
    ) as response:
        return response.headers["content-type"], [
            line async for line in response.iter_lines() if line and line[0] != ":"
        ]


async def raw_body(client: bare.AsyncOpenAI) -> Any:
    async with client.chat.completions.with_streaming_response.create(model="gpt-5-mini", messages=HI) as response:
        return b"".join([part async for part in response.iter_bytes()]).decode()


async def options(client: bare.AsyncOpenAI) -> Any:
    client = client.with_options(max_retries=1, timeout=5.0, default_headers={"x-mine": "1"})
    return (await client.chat.completions.create(model="gpt-5-mini", messages=HI, extra_body={"more": 1})).id


async def models(client: bare.AsyncOpenAI) -> Any:
    return [model.id async for model in client.models.list()]


async def refused(client: bare.AsyncOpenAI) -> Any:
    with pytest.raises(bare.BadRequestError) as caught:
        await client.chat.completions.create(model="gpt-5-mini", messages=HI)
    error = caught.value
    return error.status_code, error.code, error.message, error.body, error.request_id, str(error)


SURFACE: list[tuple[Callable[[bare.AsyncOpenAI], Coroutine[Any, Any, Any]], Reply]] = [
    (chat, Reply()),
    (chat_stream, Reply(reasoning="let me see")),
    (chat_stream_with_usage, Reply()),
    (chat_helper, Reply()),
    (chat_parse, Reply('{"total": 3}')),
    (responses, Reply()),
    (responses_stream, Reply(reasoning="let me see")),
    (responses_helper, Reply('{"total": 3}')),
    (responses_parse, Reply('{"total": 3}')),
    (embeddings, Reply()),
    (raw, Reply()),
    (raw_stream, Reply()),
    (raw_body, Reply()),
    (options, Reply()),
    (models, Reply()),
    (refused, Reply(status=400, error="bad", code="content_filter")),
]


@pytest.mark.parametrize(("call", "reply"), SURFACE, ids=lambda one: getattr(one, "__name__", ""))
async def test_it_gives_what_the_package_gives_outside_a_run_in_one_and_on_replay(
    provider: Provider, client: AsyncOpenAI, call: Callable[[bare.AsyncOpenAI], Coroutine[Any, Any, Any]], reply: Reply
) -> None:
    """And the provider sees the same requests, one for each call: replay sends none."""
    provider.default = reply
    async with bare.AsyncOpenAI(base_url=provider.url, api_key=KEY) as package:
        expected = await call(package)
    assert await call(client) == expected

    async def body() -> str:
        return json.dumps(await call(client))

    result = await run(body)
    assert json.loads(result.output) == json.loads(json.dumps(expected))
    first, second, third = provider.requests
    assert first == second
    third.headers.pop("cookie", None)
    if third.body.get("stream") and "messages" in third.body:
        third.body.pop("stream_options")
        first.body.pop("stream_options", None)
        del first.headers["content-length"], third.headers["content-length"]
    assert first == third
    started = [event.component_started for event in result.events if event.HasField("component_started")]
    assert len(started) == 1


async def test_bytes_come_back_as_they_came(provider: Provider, client: AsyncOpenAI) -> None:
    """Audio, files: whatever the content is."""
    provider.default = Reply(headers={"content-type": "audio/mpeg"})

    async def body() -> str:
        response = await client.audio.speech.create(model="tts-1", voice="alloy", input="hi")
        return base64.b64encode(response.content).decode()

    result = await run(body)
    assert len(base64.b64decode(result.output)) > 20
    assert len(provider.requests) == 1


async def test_uploads_pass_through(provider: Provider, client: AsyncOpenAI) -> None:
    """They are not remembered, and the log does not hold them."""

    async def body() -> None:
        await client.files.create(file=("a.txt", b"content"), purpose="user_data")

    with testing.no_replay():
        result = await run(body)
    assert len(provider.requests) == 1
    assert not [event for event in result.events if event.HasField("component_started")]


async def test_a_synchronous_client_works_in_the_threads_of_components(provider: Provider) -> None:
    """Each call is an instance, its stream is shown, and many more threads may call than the pool has."""
    provider.default = Reply(answer=lambda body: f"to {body['messages'][0]['content']}")

    with OpenAI(base_url=provider.url, api_key=KEY) as client:

        @component
        def ask(name: str) -> str:
            whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": name}])
            stream = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": name}], stream=True
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            with client.chat.completions.with_streaming_response.create(model="m", messages=HI) as response:
                assert len(list(response.iter_lines())) == 1
            return f"{whole.choices[0].message.content} {text}"

        outside = await asyncio.to_thread(client.chat.completions.create, model="m", messages=HI)
        assert outside.choices[0].message.content == "to hi"

        async def body() -> list[str]:
            return list(await asyncio.gather(*(ask(f"n{number}") for number in range(40))))

        result = await run(body)
        assert result.output == [f"to n{number} to n{number}" for number in range(40)]
        assert len(provider.requests) == 1 + 3 * 40
        texts = sorted(one.text for one in result.view.components.values() if one.text)
        assert texts == sorted(f"to n{number}" for number in range(40))

        async def blocks() -> str:
            with pytest.raises(RuntimeError, match="would block the event loop"):
                client.chat.completions.create(model="m", messages=HI)
            return "told"

        assert (await run(blocks)).output == "told"


async def test_a_failing_synchronous_stream_raises_the_packages_error(provider: Provider) -> None:
    with OpenAI(base_url=provider.url, api_key=KEY, max_retries=1) as client:
        provider.script(Reply(status=500), Reply(fault="reset", after=2))

        @component
        def ask() -> list[str]:
            said: list[str] = []
            stream = client.chat.completions.create(model="m", messages=HI, stream=True)
            try:
                said += (chunk.choices[0].delta.content or "" for chunk in stream)
            except bare.APIConnectionError as error:
                said.append(type(error).__name__)
            return said

        async def body() -> list[str]:
            return await ask()

        assert (await run(body)).output == ["", "Hello", " dear", "APIConnectionError"]


async def test_calls_of_a_new_client_that_begin_together_are_told_apart_on_replay(provider: Provider) -> None:
    """The package looks at its platform in a thread before its first request: their order is not up to that."""
    provider.default = Reply(answer=lambda body: body["messages"][0]["content"])
    for _ in range(5):
        client = AsyncOpenAI(base_url=provider.url, api_key=KEY)

        async def say(client: AsyncOpenAI, text: str) -> str:
            made = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
            return made.choices[0].message.content or ""

        async def body(client: AsyncOpenAI = client) -> list[str]:
            return list(await asyncio.gather(*(say(client, str(number)) for number in range(8))))

        assert (await run(body)).output == [str(number) for number in range(8)]
        await client.close()


# What is shown


async def test_text_reasoning_and_tool_calls_are_shown_on_their_channels(
    provider: Provider, client: AsyncOpenAI
) -> None:
    provider.script(
        Reply("Hello dear", reasoning="let me see"), Reply(tool=("add", '{"a": 1, "b": 2}'), finish="tool_calls")
    )

    async def body() -> None:
        await chat_stream(client)
        await chat_stream(client)

    result = await run(body)
    first, second = (one for one in result.view.components.values() if one.name == "chat gpt-5-mini")
    assert (first.text, first.reasoning, first.tools) == ("Hello dear", "let me see", [])
    assert (second.text, second.tools) == ("", [{"id": "call-1", "name": "add", "arguments": {"a": 1, "b": 2}}])
    assert {one.channel for one in deltas(result.events)} == {CHANNEL_TEXT, CHANNEL_REASONING, CHANNEL_TOOL}


async def test_a_tool_call_that_is_too_long_for_the_log_is_shown_by_its_size(
    provider: Provider, client: AsyncOpenAI
) -> None:
    """Its caller has all of it, the first time as on replay."""
    arguments = json.dumps({"text": "x" * EVENT_BYTES_MAX})
    provider.default = Reply(tool=("write", arguments), finish="tool_calls")

    async def body() -> bool:
        stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
        calls = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
        return "".join(call.function.arguments or "" for call in calls if call.function) == arguments

    result = await run(body)
    assert result.output is True
    [shown] = [one.value for one in deltas(result.events) if one.channel == CHANNEL_TOOL]
    assert (shown.data, shown.size > EVENT_BYTES_MAX) == (b"", True)


async def test_a_response_shows_the_same(provider: Provider, client: AsyncOpenAI) -> None:
    provider.default = Reply("Hello dear", reasoning="let me see")

    async def body() -> None:
        await responses_stream(client)

    result = await run(body)
    [shown] = (one for one in result.view.components.values() if one.name == "chat gpt-5-mini")
    assert (shown.text, shown.reasoning) == ("Hello dear", "let me see")


async def test_several_choices_are_parts_of_their_own(provider: Provider, client: AsyncOpenAI) -> None:
    async def body() -> None:
        stream = await client.chat.completions.create(model="m", messages=HI, n=2, stream=True)
        async for _ in stream:
            pass

    result = await run(body)
    parts: dict[int, str] = {}
    for delta in deltas(result.events):
        parts[delta.part] = parts.get(delta.part, "") + delta.text
    assert parts == {0: "Hello dear world", 1: "Hello dear world"}


async def test_a_streaming_component_speaks_for_the_model(provider: Provider, client: AsyncOpenAI) -> None:
    """One voice per path."""

    @component
    async def shout() -> AsyncIterator[str]:
        async for chunk in await client.chat.completions.create(model="m", messages=HI, stream=True):
            if text := chunk.choices[0].delta.content:
                yield text.upper()

    async def body() -> str:
        return await shout()

    result = await run(body)
    assert result.output == "HELLO DEAR WORLD"
    assert "".join(delta.text for delta in deltas(result.events)) == "HELLO DEAR WORLD"
    assert len(provider.requests) == 1


async def test_each_chunk_reaches_its_caller_when_it_is_in_the_log(provider: Provider, client: AsyncOpenAI) -> None:
    """Whoever reads the log has seen what the workflow acts on."""
    gate = asyncio.Event()
    provider.default = Reply(gate=gate, after=2)
    reached: list[str] = []

    async def body() -> None:
        async for chunk in await client.chat.completions.create(model="m", messages=HI, stream=True):
            reached.append(chunk.choices[0].delta.content or "")
            if reached[-1] == " dear":
                gate.set()

    result = await run(body)
    assert reached[:4] == ["", "Hello", " dear", " world"]
    assert [delta.text for delta in deltas(result.events)] == ["Hello", " dear", " world"]


async def test_a_reader_that_leaves_after_the_answers_end_has_the_whole_of_it(
    provider: Provider, client: AsyncOpenAI
) -> None:
    """Its usage counts, and it is remembered also where a streaming component speaks."""

    @component
    async def says() -> AsyncIterator[str]:
        async for chunk in await client.chat.completions.create(model="gpt-5-mini", messages=HI, stream=True):
            yield chunk.choices[0].delta.content or ""
            if chunk.choices[0].finish_reason:
                break

    async def body() -> str:
        return await says()

    result = await run(body)
    assert result.output == "Hello dear world"
    assert used(result.events)[0].output_tokens == 3
    assert len(provider.requests) == 1


async def test_a_reader_that_leaves_early_leaves_early_again(provider: Provider, client: AsyncOpenAI) -> None:
    """The chunks that it had are in the log; the provider is not asked again, and learns that nobody listens."""
    provider.default = Reply(gate=asyncio.Event(), after=2)

    async def body() -> list[str]:
        said = []
        stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content or "")
            if len(said) == 3:
                break
        await stream.close()
        return said

    result = await run(body)
    assert result.output == ["", "Hello", " dear"]
    assert len(provider.requests) == 1
    await provider.until(lambda provider: not provider.open)


@pytest.mark.parametrize("call", [chat_stream, responses_stream])
async def test_streams_that_come_to_their_end_share_a_connection(
    provider: Provider, client: AsyncOpenAI, call: Callable[[bare.AsyncOpenAI], Coroutine[Any, Any, Any]]
) -> None:
    async def body() -> None:
        for _ in range(4):
            await call(client)

    await run(body)
    assert (len(provider.requests), provider.connections) == (4, 1)


# Usage and cost


@pytest.mark.parametrize("call", [chat, chat_stream, chat_stream_with_usage, responses, responses_stream])
async def test_what_was_used_is_counted(
    provider: Provider, client: AsyncOpenAI, call: Callable[[bare.AsyncOpenAI], Coroutine[Any, Any, Any]]
) -> None:
    """Whether a stream was asked for its usage or not. GPT-5 mini: 0.25, 0.025 and 2 dollars a million."""
    provider.script(Reply(status=500))

    async def body() -> None:
        await call(client)

    [usage] = used((await run(body)).events)
    cost = round((6 * 0.25 + 4 * 0.025 + 3 * 2) * 1)
    assert usage == Usage(input_tokens=10, output_tokens=3, cached_input_tokens=4, calls=2, cost_usd_micros=cost)


async def test_a_stream_may_be_left_as_it_is(provider: Provider, client: AsyncOpenAI) -> None:
    """There are providers that do not know stream_options."""

    async def body() -> None:
        await chat_stream(client.with_policy(count_tokens=False))

    [usage] = used((await run(body)).events)
    assert usage == Usage(calls=1)
    assert "stream_options" not in provider.requests[0].body


async def test_a_model_without_a_price_costs_nothing(provider: Provider, client: AsyncOpenAI) -> None:
    async def body() -> None:
        await client.embeddings.create(model="nobody-knows", input="a")

    assert used((await run(body)).events) == [Usage(input_tokens=3, calls=1)]


# Secrets and spans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


async def test_keys_are_nowhere(
    provider: Provider, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in inputs and answers, where somebody put them, nor in errors, their tracebacks, spans and log lines."""
    caplog.set_level("DEBUG", "onward")
    keys = ["canary-one-0123456789", "canary-two-0123456789", "canary-three-0123456789"]
    client = AsyncOpenAI(base_url=provider.url, api_key=keys[0], webhook_secret=keys[1])
    client = client.with_options(default_headers={"Authorization": f"Bearer {keys[2]}"}, max_retries=1)
    said = " ".join(keys)
    broken = Reply(fault="error", error=said)
    provider.script(
        Reply(said), Reply(said), Reply(status=500, error=said), Reply(status=401, error=said), broken, broken
    )

    async def body() -> None:
        message: list[ChatCompletionMessageParam] = [{"role": "user", "content": said}]
        whole = await client.chat.completions.create(model="m", messages=message, user=keys[0])
        assert whole.choices[0].message.content == said, "the caller gets what the provider said"
        await client.responses.create(model="m", input=said)
        with pytest.raises(AuthenticationError):
            await client.chat.completions.create(model="m", messages=message)
        with pytest.raises(bare.APIError):
            await chat_stream(client)

    result = await run(body)
    assert result.state == "SUCCEEDED", result.error
    await client.close()
    for text in (*map(str, result.events), caplog.text, *(span.to_json() for span in spans.get_finished_spans())):
        assert "canary" not in text
    assert secrets.MASK in str(result.events)


def model_span(spans: InMemorySpanExporter) -> ReadableSpan:
    return next(one for one in spans.get_finished_spans() if one.name.startswith("chat "))


async def test_a_call_is_a_span_by_the_conventions(
    provider: Provider, client: AsyncOpenAI, spans: InMemorySpanExporter
) -> None:
    """A client's span, below the component that calls; nothing of what was said is on it."""

    @component
    async def asks() -> None:
        stream = await client.chat.completions.create(
            model="gpt-5-mini", messages=HI, stream=True, temperature=0.5, max_completion_tokens=9, stop=["x"], seed=1
        )
        async for _ in stream:
            pass

    async def body() -> None:
        await asks()

    with testing.no_replay():
        await run(body)
    span = model_span(spans)
    attributes = dict(span.attributes or {})
    assert (span.name, span.kind) == ("chat gpt-5-mini", SpanKind.CLIENT)
    parent = next(one for one in spans.get_finished_spans() if one.name == "asks")
    assert span.parent is not None
    assert parent.context is not None
    assert span.parent.span_id == parent.context.span_id
    assert attributes.pop("onward.component_id")
    took = attributes.pop("gen_ai.response.time_to_first_chunk")
    assert isinstance(took, float)
    assert 0 < took < 10
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "127.0.0.1",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 1,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.response.model": "gpt-5-mini-2026",
        "gen_ai.response.id": "cmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "onward.cost_usd_micros": 8,
        "server.address": "127.0.0.1",
        "server.port": int(provider.url.split(":")[2].partition("/")[0]),
    }


async def test_content_is_on_the_span_where_it_is_asked_for(
    provider: Provider, client: AsyncOpenAI, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")

    async def body() -> None:
        await chat(client)

    with testing.no_replay():
        await run(body)
    attributes = model_span(spans).attributes or {}
    assert json.loads(str(attributes["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": "hi"}]}
    ]
    assert json.loads(str(attributes["gen_ai.output.messages"])) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Hello dear world"}],
            "finish_reason": "stop",
        }
    ]


async def test_a_private_client_shows_neither_request_nor_answer(provider: Provider, client: AsyncOpenAI) -> None:
    async def body() -> str:
        made = await client.with_policy(private=True).chat.completions.create(model="m", messages=HI)
        return made.choices[0].message.content or ""

    result = await run(body)
    assert result.output == "Hello dear world"
    [started] = [event.component_started for event in result.events if event.HasField("component_started")]
    [finished] = [event.component_finished for event in result.events if event.HasField("component_finished")]
    assert not started.input.data
    assert not finished.output.data


async def test_a_changed_request_pauses_the_run(provider: Provider, client: AsyncOpenAI) -> None:
    """What was asked is part of the code's identity; the key, headers and address are not."""
    said = iter(["one", "two"])

    async def body() -> None:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": next(said)}])
        await asyncio.sleep(0)

    with testing.crash(4):
        result = await run(body)
    assert result.state == "PAUSED"
    assert result.error is not None
    assert result.error.reason == "NON_DETERMINISTIC"


async def test_a_fold_of_the_log_gives_what_was_streamed(provider: Provider, client: AsyncOpenAI) -> None:
    async def body() -> None:
        await chat_stream(client)

    result = await run(body)
    assert [one.text for one in fold(result.events).components.values() if one.text] == ["Hello dear world"]


async def test_errors_are_the_packages_own(provider: Provider, client: AsyncOpenAI) -> None:
    assert RateLimitError is bare.RateLimitError
    assert BadRequestError is bare.BadRequestError
