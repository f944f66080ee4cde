"""The model that writes in these examples: the OpenAI API, else a toy on this machine, else a script that says so.

All three answer through `onward.openai`, so what uses them is written once, and a run remembers every answer.
`ONWARD_EXAMPLE_MODEL` (`openai`, `local`, `scripted`) overrides the order. `ONWARD_EXAMPLE_SMALL=yes` says of a server
of your own that its model is a small one.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from openai.types.shared_params import ResponseFormatJSONSchema
from pydantic import BaseModel

import local_model
import scripted_model
from onward import Component
from onward.openai import (
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    DefaultAioHttpClient,
    NotFoundError,
    PermissionDeniedError,
)

# A line of log for each request would cut through what the demo streams to the same terminal.
logging.getLogger("httpx2").setLevel(logging.WARNING)

REFUSED = (AuthenticationError, BadRequestError, NotFoundError, PermissionDeniedError)
"""Errors of the request itself (its key, its model's name): asking again does not heal them."""

Shape = TypeVar("Shape", bound=BaseModel)


@dataclass(frozen=True)
class Model:
    """Who answers."""

    name: str
    """What a request asks for."""
    note: str
    """What a reader is told."""
    connect: Callable[[], AsyncOpenAI]
    """Gives a client of its own to each caller, who closes it. May block."""
    small: bool = False
    """It calls no tools, and repeats what it is shown: the less of that, the better."""
    at_once: int = 50
    """Questions that it is asked at the same time; who comes later waits. `ONWARD_EXAMPLE_AT_ONCE` overrides it."""


@dataclass(frozen=True)
class ToolCall:
    """What a model asks to have done."""

    id: str
    name: str
    arguments: str
    """JSON, as far as the model got it right."""


@dataclass(frozen=True)
class Said:
    """A model's turn in a conversation: it calls tools, or it has come to its answer."""

    text: str
    calls: list[ToolCall]

    @property
    def message(self) -> dict[str, Any]:
        """The turn as the next request has it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ]
        return message


@dataclass(frozen=True)
class Connection:
    """A client of the model, and the places at it."""

    client: AsyncOpenAI
    places: asyncio.Semaphore


_open: ContextVar[Connection | None] = ContextVar("model_connection", default=None)


def in_use() -> Model:
    """Choose, from the environment and what is installed. Quick: nothing is loaded before the first question."""
    model = _in_use()
    at_once = os.environ.get("ONWARD_EXAMPLE_AT_ONCE")
    return replace(model, at_once=int(at_once)) if at_once else model


def _in_use() -> Model:
    match os.environ.get("ONWARD_EXAMPLE_MODEL") or _best():
        case "openai":
            name = os.environ.get("OPENAI_MODEL") or "gpt-5.4-mini"
            small = os.environ.get("ONWARD_EXAMPLE_SMALL") == "yes"
            return Model(name, f"{name} through the OpenAI API", _connect_openai, small)
        case "local":
            note = "SmolLM2 135M on this machine, a toy; set OPENAI_API_KEY for a real one"
            return Model("SmolLM2-135M-Instruct", note, local_model.connect, True, local_model.SLOTS)
        case "scripted":
            note = "none, a script answers; set OPENAI_API_KEY for a real one"
            return Model("scripted", note, scripted_model.connect)
        case other:
            raise ValueError(f"ONWARD_EXAMPLE_MODEL is openai, local or scripted, not {other!r}")


async def write(prompt: str, *, rules: str = "") -> AsyncIterator[str]:
    """Yield the answer as it comes.

    Args:
        prompt: What is asked.
        rules: How to go about it, told apart from `prompt`: in there may be what somebody else wrote.
    """
    async with _connection() as connection, connection.places:
        completion = await connection.client.chat.completions.create(
            model=in_use().name, messages=_said(prompt, rules), stream=True
        )
        finished = False
        async with completion:
            async for chunk in completion:
                for choice in chunk.choices[:1]:
                    if choice.delta.content:
                        yield choice.delta.content
                    if choice.finish_reason == "length":
                        yield "…"  # it had no room for more, and a reader should know
                    finished = finished or choice.finish_reason is not None
    if not finished:  # the package raises nothing when the connection ends early: half an answer would pass for one
        raise ConnectionError("the model's answer broke off before its end")


async def fill(prompt: str, shape: type[Shape], *, rules: str = "") -> Shape:
    """Give an answer of this shape; arguments as `write` takes them.

    Raises:
        ValueError: It has another one: ask again.
    """
    async with _connection() as connection, connection.places:
        completion = await connection.client.chat.completions.create(
            model=in_use().name,
            messages=_said(prompt, rules),
            response_format=_form(shape),
        )
    return shape.model_validate_json(completion.choices[0].message.content or "")


def tool(component: Component[..., Any, Any]) -> ChatCompletionFunctionToolParam:
    """Describe a component to a model: its name, what it says of itself and its parameters are what a tool is."""
    return {
        "type": "function",
        "function": {
            "name": component.name,
            "description": component.__doc__ or "",
            "parameters": component.signature.input_schema(),
        },
    }


async def converse(
    messages: Sequence[dict[str, Any]], tools: Sequence[Component[..., Any, Any]] = (), *, may_call: bool = True
) -> Said:
    """Take the next turn of a conversation. In a run its text and its tool calls are shown as they come.

    Args:
        messages: What was said before.
        tools: What the model may ask for. It is the caller who does it and answers.
        may_call: Whether it may ask now; else it has to answer.
    """
    asked: dict[str, Any] = {"model": in_use().name, "messages": messages, "stream": True}
    if tools:
        asked |= {"tools": [tool(each) for each in tools], "tool_choice": "auto" if may_call else "none"}
    texts: list[str] = []
    calls: dict[int, ToolCall] = {}
    finished = False
    async with _connection() as connection, connection.places:
        completion = await connection.client.chat.completions.create(**asked)
        async with completion:
            async for chunk in completion:
                for choice in chunk.choices[:1]:
                    texts.append(choice.delta.content or "")
                    for part in choice.delta.tool_calls or ():
                        call = calls.get(part.index, ToolCall("", "", ""))
                        said = part.function
                        calls[part.index] = ToolCall(
                            part.id or call.id,
                            (said and said.name) or call.name,
                            call.arguments + ((said and said.arguments) or ""),
                        )
                    finished = finished or choice.finish_reason is not None
    if not finished:
        raise ConnectionError("the model's answer broke off before its end")
    return Said("".join(texts), [call for _, call in sorted(calls.items())])


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Keep one connection for all that is asked in the block: a workflow with hundreds of questions wants that."""
    async with _connection() as connection:
        token = _open.set(connection)
        try:
            yield
        finally:
            _open.reset(token)


@asynccontextmanager
async def _connection() -> AsyncIterator[Connection]:
    known = _open.get()
    if known is not None:
        yield known
        return
    model = in_use()
    async with await asyncio.to_thread(model.connect) as client:
        yield Connection(client, asyncio.Semaphore(model.at_once))


def _best() -> str:
    if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        return "openai"
    return "local" if local_model.installed() else "scripted"


def _connect_openai() -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1",
        api_key=os.environ.get("OPENAI_API_KEY") or "none",  # a server of one's own wants none, but the package does
        max_retries=0,  # the component that asks has a policy, and the two would multiply
        http_client=DefaultAioHttpClient(),  # there may be dozens of questions at once
    )


@cache
def _form(shape: type[BaseModel]) -> ResponseFormatJSONSchema:
    return {
        "type": "json_schema",
        # Not strict: that takes a subset of JSON Schema, without lengths. The answer is checked here anyway.
        "json_schema": {"name": shape.__name__, "schema": shape.model_json_schema(), "strict": False},
    }


def _said(prompt: str, rules: str) -> list[ChatCompletionMessageParam]:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]
    return [{"role": "system", "content": rules}, *asked] if rules else asked
