"""The model that writes in these examples: the OpenAI API, else a toy on this machine, else a script that says so.

All three answer through the `openai` package, so what uses them is written once. `ONWARD_EXAMPLE_MODEL` (`openai`,
`local`, `scripted`) overrides the order.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError, PermissionDeniedError
from openai.types.chat import ChatCompletionUserMessageParam
from pydantic import BaseModel

import local_model
import scripted_model

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


def in_use() -> Model:
    """Choose, from the environment and what is installed. Quick: nothing is loaded before the first question."""
    match os.environ.get("ONWARD_EXAMPLE_MODEL") or _best():
        case "openai":
            name = os.environ.get("OPENAI_MODEL") or "gpt-5.4-mini"
            return Model(name, f"{name} through the OpenAI API", _connect_openai)
        case "local":
            note = "SmolLM2 135M on this machine, a toy; set OPENAI_API_KEY for a real one"
            return Model("SmolLM2-135M-Instruct", note, local_model.connect)
        case "scripted":
            note = "none, a script answers; set OPENAI_API_KEY for a real one"
            return Model("scripted", note, scripted_model.connect)
        case other:
            raise ValueError(f"ONWARD_EXAMPLE_MODEL is openai, local or scripted, not {other!r}")


async def write(prompt: str) -> AsyncIterator[str]:
    """Yield the answer as it comes."""
    model = in_use()
    async with await asyncio.to_thread(model.connect) as client:
        completion = await client.chat.completions.create(model=model.name, messages=[_said(prompt)], stream=True)
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


async def fill(prompt: str, shape: type[Shape]) -> Shape:
    """Give an answer of this shape. Raises ValueError where it has another one: ask again."""
    model = in_use()
    async with await asyncio.to_thread(model.connect) as client:
        completion = await client.chat.completions.create(
            model=model.name,
            messages=[_said(prompt)],
            response_format={
                "type": "json_schema",
                # Not strict: that takes a subset of JSON Schema, without lengths. The answer is checked here anyway.
                "json_schema": {"name": shape.__name__, "schema": shape.model_json_schema(), "strict": False},
            },
        )
    return shape.model_validate_json(completion.choices[0].message.content or "")


def _best() -> str:
    if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        return "openai"
    return "local" if local_model.installed() else "scripted"


def _connect_openai() -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1",
        api_key=os.environ.get("OPENAI_API_KEY") or "none",  # a server of one's own wants none, but the package does
        max_retries=0,  # the component that asks has a policy, and the two would multiply
    )


def _said(prompt: str) -> ChatCompletionUserMessageParam:
    return {"role": "user", "content": prompt}
