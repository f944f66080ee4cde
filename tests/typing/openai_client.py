"""`onward.openai` used as the `openai` package's documentation does, for mypy --strict: types are the package's own."""

from __future__ import annotations

from typing import assert_type

import openai
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ParsedChatCompletion
from openai.types.responses import ParsedResponse, Response, ResponseStreamEvent
from pydantic import BaseModel

from onward.openai import (
    APIConnectionError,
    AsyncOpenAI,
    AsyncStream,
    DefaultAsyncHttpxClient,
    ModelPolicy,
    OpenAI,
    Provider,
    Providers,
    RateLimitError,
    Stall,
    Stream,
    Timeout,
    pydantic_function_tool,
)


class Event(BaseModel):
    name: str
    participants: list[str]


client = AsyncOpenAI(api_key="key", timeout=20.0, max_retries=5, http_client=DefaultAsyncHttpxClient())
assert_type(client.with_options(max_retries=5), AsyncOpenAI)
assert_type(client.with_policy(first_token=Stall("30s")), AsyncOpenAI)
package: openai.AsyncOpenAI = client

several = AsyncOpenAI(
    providers=Providers([Provider("openai", "https://api.openai.com/v1"), Provider("mine", "http://localhost:1/v1")]),
    policy=ModelPolicy(attempts=3, backoff="1s..1m", between_tokens=Stall("20s", tries=3)),
)


async def of_chat() -> None:
    completion = await client.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "developer", "content": "Talk like a pirate."}]
    )
    assert_type(completion, ChatCompletion)
    assert_type(completion.choices[0].message.content, str | None)
    stream = await client.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert_type(stream, AsyncStream[ChatCompletionChunk])
    async for chunk in stream:
        assert_type(chunk.choices[0].delta.content, str | None)
    parsed = await client.chat.completions.parse(
        model="gpt-5-mini",
        messages=[{"role": "user", "content": "hi"}],
        response_format=Event,
        tools=[pydantic_function_tool(Event)],
    )
    assert_type(parsed, ParsedChatCompletion[Event])
    assert_type(parsed.choices[0].message.parsed, Event | None)
    async with client.chat.completions.stream(
        model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}]
    ) as events:
        async for event in events:
            if event.type == "content.delta":
                assert_type(event.delta, str)


async def of_responses() -> None:
    response = await client.responses.create(model="gpt-5-mini", instructions="Be brief.", input="hi")
    assert_type(response, Response)
    assert_type(response.output_text, str)
    stream = await client.responses.create(model="gpt-5-mini", input="hi", stream=True)
    assert_type(stream, AsyncStream[ResponseStreamEvent])
    parsed = await client.responses.parse(model="gpt-5-mini", input="hi", text_format=Event)
    assert_type(parsed, ParsedResponse[Event])


async def of_the_rest() -> None:
    assert_type(await client.embeddings.create(model="text-embedding-3-small", input="hi"), CreateEmbeddingResponse)
    async for model in client.models.list():
        assert_type(model, Model)
    raw = await client.chat.completions.with_raw_response.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}], extra_headers={"x-mine": "1"}
    )
    assert_type(raw.headers.get("x-request-id"), str | None)
    assert_type(raw.parse(), ChatCompletion)
    async with client.chat.completions.with_streaming_response.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}], timeout=Timeout(5.0)
    ) as response:
        async for line in response.iter_lines():
            assert_type(line, str)


async def of_errors() -> None:
    try:
        await client.responses.create(model="gpt-5-mini", input="hi")
    except RateLimitError as error:
        print(error.status_code, error.response.headers)
    except APIConnectionError as error:
        assert_type(error.message, str)


def in_a_thread() -> None:
    with OpenAI() as blocking:
        completion = blocking.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}])
        assert_type(completion, ChatCompletion)
        stream = blocking.responses.create(model="gpt-5-mini", input="hi", stream=True)
        assert_type(stream, Stream[ResponseStreamEvent])
