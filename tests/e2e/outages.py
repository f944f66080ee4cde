"""Workflows whose model calls have two providers, or one, at the URLs that the environment names."""

from __future__ import annotations

import os

from onward import component, workflow
from onward.openai import AsyncOpenAI, ModelPolicy, Provider, Providers

NOWHERE = "http://127.0.0.1:1/v1"
URL, OTHER_URL = os.environ.get("TEST_MODEL_URL", NOWHERE), os.environ.get("TEST_OTHER_MODEL_URL", NOWHERE)

one = AsyncOpenAI(base_url=URL, api_key="one")
two = AsyncOpenAI(
    base_url=URL,
    api_key="one",
    providers=Providers([Provider("first", URL), Provider("second", OTHER_URL, models={"m": "n"})]),
)
impatient = AsyncOpenAI(base_url=URL, api_key="one", max_retries=1, policy=ModelPolicy(outage=0, backoff="10ms"))
CLIENTS = {"one": one, "two": two, "impatient": impatient}


@component
async def ask(client: str, content: str) -> str:
    """Ask once."""
    made = await CLIENTS[client].chat.completions.create(model="m", messages=[{"role": "user", "content": content}])
    return made.choices[0].message.content or ""


@workflow
async def asks(client: str = "one", calls: int = 1) -> list[str]:
    """Ask so often, one after another."""
    return [await ask(client, f"question {number}") for number in range(calls)]


@workflow
async def tells(client: str = "one") -> str:
    """Ask for a stream, without a component."""
    said = ""
    async for chunk in await CLIENTS[client].chat.completions.create(
        model="m", messages=[{"role": "user", "content": "tell"}], stream=True
    ):
        said += chunk.choices[0].delta.content or "" if chunk.choices else ""
    return said
