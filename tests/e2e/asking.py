"""Workflows that ask a model, at the URL that the environment names."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator

from onward import component, workflow
from onward.openai import AsyncOpenAI, OpenAI

KEY = "canary-of-the-suite-0123456789"

client = AsyncOpenAI(base_url=os.environ.get("TEST_MODEL_URL", "http://127.0.0.1:1/v1"), api_key=KEY)
blocking = OpenAI(base_url=client.base_url, api_key=KEY)
logger = logging.getLogger("onward.test")


@component
async def outline(topic: str) -> str:
    """Ask for all at once."""
    made = await client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": topic}])
    return made.choices[0].message.content or ""


@component
async def section(topic: str) -> AsyncIterator[str]:
    """Speak for the model."""
    async for chunk in await client.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": topic}], stream=True
    ):
        yield chunk.choices[0].delta.content or ""


@component
def summary(topic: str) -> str:
    """Ask in a thread."""
    stream = blocking.responses.create(model="gpt-5-mini", input=topic, stream=True)
    return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


@workflow
async def writes(topic: str) -> list[str]:
    """Ask four times, one of them by itself."""
    logger.warning("with %s", KEY)
    said = [await outline(topic), await section(topic)]
    async for event in await client.responses.create(model="gpt-5-mini", input=topic, stream=True):
        if event.type == "response.output_text.done":
            said += [event.text]
    return [*said, await summary(topic)]
