"""Workflows that wait, for end-to-end tests."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

import onward
from onward import component, status, workflow


@component
async def note(text: str) -> str:
    """Run and be remembered."""
    return text


@workflow
async def approval() -> str:
    """Ask, and say what was answered."""
    await note("before")
    status("asking")
    answer = await onward.request_input("approval", bool, prompt="Go?", timeout="30d")
    status("answered")
    return await note(f"answered {answer}")


@workflow
async def nap(seconds: float) -> str:
    """Sleep."""
    await onward.sleep(seconds)
    return "slept"


@workflow
async def race(seconds: float) -> str:
    """Whichever comes first."""
    timer = asyncio.create_task(onward.sleep(seconds))
    answer = asyncio.create_task(onward.signal("answer", str))
    done, late = await asyncio.wait((timer, answer), return_when=asyncio.FIRST_COMPLETED)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    return answer.result() if answer in done else "nobody"


@workflow
async def tidy() -> None:
    """Wait, and clean up when that is cancelled."""
    try:
        await onward.signal("never")
    finally:
        status("cleaning")
        await note("cleaned")


class Form(BaseModel):
    """What somebody fills in."""

    name: str
    age: int


@workflow
async def form() -> str:
    """Ask for more than one thing."""
    answer = await onward.request_input("form", Form)
    return f"{answer.name} is {answer.age}"


class Busy(Exception):
    """What is asked is busy, and says for how long."""

    retry_after_s = 3.0


_asked: set[str] = set()


@component.retry(2, 0)
async def busy(who: str) -> str:
    """Answer the second time."""
    if who not in _asked:
        _asked.add(who)
        raise Busy
    return f"answered {who}"


@workflow
async def patient(who: str) -> str:
    """Ask what is busy."""
    return await busy(who)


@workflow
async def quick() -> str:
    """Go through."""
    return await note("through")
