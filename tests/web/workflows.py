"""Workflows that tests look at in a browser. Whoever is given a gate goes on when that file exists."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from onward import component, continue_as, publish, request_input, signal, status, workflow

BEFORE = "What was said before the gate. "
AFTER = "What was said after it."


@component
async def tell(gate: str) -> AsyncIterator[str]:
    """Say something, wait, and say the rest."""
    for word in BEFORE.split():
        yield f"{word} "
    while not Path(gate).exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.02)
    yield AFTER


@component
async def read(page: int) -> int:
    """Give a number."""
    return page


@workflow
async def story(gate: str, pages: int = 2) -> str:
    """Tell a story in two halves."""
    status(f"pid {os.getpid()}", done=1, total=4)
    for page in range(pages):
        await read(page)
    publish.state("notes", {"pages": pages})
    publish.patch("notes", [{"op": "add", "path": "/teller", "value": "Ann"}])
    return await tell(gate)


@workflow
async def unsure(gate: str) -> AsyncIterator[str]:
    """Say something else in each process, after words that are the same in all."""
    yield "This is certain. "
    yield f"Process {os.getpid()} says so. "
    while not Path(gate).exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.02)
    yield "The end."


tries = itertools.count(1)


@component.retry(attempts=3, backoff="10ms..20ms")
async def shaky() -> AsyncIterator[str]:
    """Fail twice, after having said something."""
    number = next(tries)
    yield f"try {number} "
    if number % 3:
        raise ConnectionError(f"cut off in try {number}")


@component
async def around() -> str:
    """Call the shaky one."""
    return await shaky()


@workflow
async def retried() -> str:
    """Get it at the third try."""
    return await around()


@workflow
async def failing(text: str) -> str:
    """Fail with <b>these</b> words, and show them everywhere."""
    status(text)
    publish("said", text)
    publish.state("state", {text: text})
    await echo(text)
    raise ValueError(text)


@component
async def echo(text: str) -> AsyncIterator[str]:
    """Stream it."""
    yield text


class Tone(Enum):
    """How it should sound."""

    PLAIN = "plain"
    WARM = "warm"


class Author(BaseModel):
    """Who signs."""

    name: Annotated[str, Field(min_length=2)]
    mail: str | None = None


class Cat(BaseModel):
    """Has lives."""

    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    """Barks."""

    kind: Literal["dog"] = "dog"
    barks: bool = True


@workflow
async def fields(
    topic: Annotated[str, Field(description="What it is about", min_length=3)],
    pages: Annotated[int, Field(ge=1, le=9)],
    author: Author,
    counts: dict[str, int],
    ratio: float = 0.5,
    draft: bool = True,
    tone: Tone = Tone.PLAIN,
    tags: Sequence[str] = (),
    authors: Sequence[Author] = (),
    note: str | None = None,
    pet: Cat | Dog | None = None,
) -> None:
    """Take one of each kind of field."""


class Decision(BaseModel):
    """What an editor says."""

    publish: bool
    comment: Annotated[str, Field(min_length=3)]


@workflow
async def asking(text: str) -> list[str]:
    """Ask an editor, and then wait for a word."""
    decision = await request_input("decision", Decision, prompt=f"Shall {text} be published?", timeout="1h")
    word = await signal("word", str)
    return [f"{decision.publish} {decision.comment}", word]


@workflow
async def long(components: int = 3_000, tokens: int = 13_995) -> int:
    """Leave a long log."""
    for number in range(components):
        await read(number)
    await speak(tokens, 0.0)
    return components


@workflow
async def chain(left: int = 1) -> int:
    """Go on as another run, and give nothing but at the end."""
    if left:
        continue_as(chain, left - 1)
    return left


@component
async def speak(tokens: int, pause_s: float) -> AsyncIterator[str]:
    """Stream numbers."""
    for number in range(tokens):
        if pause_s or number % 50 == 0:
            await asyncio.sleep(pause_s)
        yield f"token {number}\n" if number % 20 == 0 else f"token {number} "


@workflow
async def talk(tokens: int, pause_s: float) -> None:
    """Stream for a while."""
    await speak(tokens, pause_s)
