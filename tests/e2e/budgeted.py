"""Workflows whose model calls share a budget, at the URL that the environment names."""

from __future__ import annotations

import os

import onward
from onward import component, workflow
from onward.openai import AsyncOpenAI, Budget

URL = os.environ.get("TEST_MODEL_URL", "http://127.0.0.1:1/v1")

free = AsyncOpenAI(base_url=URL, api_key="free", max_retries=0)
twice = AsyncOpenAI(base_url=URL, api_key="twice", max_retries=1)
budgeted = AsyncOpenAI(
    base_url=URL,
    api_key="budgeted",
    max_retries=0,
    budget={
        "fleet": Budget(tokens=1000, per="2s"),
        "two": Budget(requests=2, per="5s"),
    },
)


@component
async def ask(client: str, model: str, content: str) -> str:
    """Ask once."""
    clients = {"free": free, "twice": twice, "budgeted": budgeted}
    made = await clients[client].chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], max_tokens=30
    )
    return made.choices[0].message.content or ""


@workflow
async def asks(model: str, content: str, calls: int = 1, at_once: int = 8, client: str = "budgeted") -> int:
    """Ask so often."""
    return len(await onward.map(lambda number: ask(client, model, content), range(calls), concurrency=at_once))


@workflow
async def tells(model: str) -> str:
    """Ask for a stream, without a component."""
    said = ""
    async for chunk in await budgeted.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "tell"}], stream=True
    ):
        said += chunk.choices[0].delta.content or "" if chunk.choices else ""
    return said
