"""Workflows that a seed makes, and that tell what they did: what chaos runs.

A script is a list of steps, made by `script`. `scripted` and `spoken` perform it with components of every kind. Each
component's body notes first that it was begun, in a ledger outside the run, and its result carries a mark that only
this execution of it can have made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onward import ComponentError, component, publish, request_input, signal, sleep, status, workflow
from onward import map as omap
from onward.testing import Effect

LONG_S = 2.6
"""A sleep so long is worth parking for."""

LEDGER = "ONWARD_CHAOS_LEDGER"
"""Names the folder of the ledgers, a file for each run, to executors."""

MARKS = r"\{\{[\w/.+!:-]*(#[0-9a-f]{8})\}\}"
"""What a mark looks like. What its two braces hold is the path of the component, and what differs each time."""

WAITS = "waits for "
"""What a status says before the name of the signal that is waited for. Whoever sees it sends that name as its value."""

Step = list[Any]

_folder: ContextVar[Path | None] = ContextVar(
    "chaos_ledgers", default=Path(os.environ[LEDGER]) if LEDGER in os.environ else None
)

_calm: ContextVar[dict[tuple[str, str], int] | None] = ContextVar("chaos_calm", default=None)
"""In an undisturbed run: how often each component was begun. It keeps no ledger and takes no time."""


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[None]:
    """Know in the block where the ledgers are."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Run workflows in the block as fast as it goes, without a trace."""
    token = _calm.set({})
    try:
        yield
    finally:
        _calm.reset(token)


# Making scripts

LEAVES = ("status", "publish", "pause", "value", "fail", "big", "sleep", "signal", "ask")
INNER = ("call", "call", "flaky", "stream", "read", "parallel", "map", "thread", "keyed", "late", "catch", "instead")
RACES = ("race", "first")


def script(seed: str, *, races: bool, waits: bool = True, steps: int = 6) -> list[Step]:
    """Return the script that a seed makes.

    Args:
        seed: Names it.
        races: Whether which of two branches is first may decide what it gives.
        waits: Whether it may sleep, and wait for signals.
        steps: How many there are at the top.
    """
    chance = random.Random(seed)
    kinds = INNER + RACES * 2 if races else INNER
    return [_step(chance, kinds, 0, waits) for _ in range(steps)]


def signals(steps: list[Any]) -> dict[str, str]:
    """Return what a script waits for, by the name of the signal: each wants its name."""
    found: dict[str, str] = {}
    for step in steps:
        if isinstance(step, list):
            if step and step[0] in ("signal", "ask"):
                found[step[1]] = step[1]
            found |= signals(step)
    return found


def _step(chance: random.Random, kinds: tuple[str, ...], depth: int, waits: bool) -> Step:
    if depth and (depth > 2 or chance.random() < 0.5):
        kind = chance.choice(LEAVES)
        if kind in ("sleep", "signal", "ask") and (not waits or chance.random() < 0.6):
            kind = "pause"
        if kind == "fail" and chance.random() < 0.6:
            kind = "pause"
        match kind:
            case "pause":
                return [kind, chance.randint(1, 30)]
            case "sleep":
                return [kind, chance.choice((0.02, 0.3, LONG_S))]
            case "signal" | "ask":
                return [kind, f"s{chance.randrange(10**9)}"]
        return [kind, chance.choice("abc")]
    kind = chance.choice(kinds)
    # While a stream is read by `async for` a run waits in place, and in process nobody would send it a signal.
    waits = waits and kind != "read"
    some = [_steps(chance, kinds, depth + 1, waits)]
    if kind in ("parallel", *RACES):
        some.append(_steps(chance, kinds, depth + 1, waits))
    return [kind, *some]


def _steps(chance: random.Random, kinds: tuple[str, ...], depth: int, waits: bool) -> list[Step]:
    return [_step(chance, kinds, depth, waits) for _ in range(chance.randint(1, 3))]


# What they leave behind


def begun(run: str, name: str, path: str, used: Iterable[str] = ()) -> int:
    """Note that a component was begun, and return how often it had been before."""
    if (counts := _calm.get()) is not None:
        count = counts.get((name, path), 0)
        counts[name, path] = count + 1
        return count
    file = _file(run)
    before = [(effect.component, effect.argument) for effect in effects(run)].count((name, path))
    line = json.dumps([name, path, list(used)]) + "\n"
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
    return before


def effects(run: str) -> list[Effect]:
    """Return what the components of a run noted."""
    file = _file(run)
    if not file.exists():
        return []
    return [Effect(name, path, used) for name, path, used in map(json.loads, file.read_text().splitlines())]


def _file(run: str) -> Path:
    folder = _folder.get()
    if folder is None:
        raise RuntimeError(f"{LEDGER} names no folder")
    return folder / run


def mark(path: str) -> str:
    """Return what only this execution can have made."""
    return f"{{{{{path}#{secrets.token_hex(4)}}}}}"


async def pause(milliseconds: float) -> None:
    """Take a little time, where others are there to be in the way meanwhile."""
    await asyncio.sleep(milliseconds / 1000 if _calm.get() is None else 0)


# Components. `given` is what the caller had by then, so that the log tells what was used.


@component
async def call(path: str, run: str, given: list[str], steps: list[Step]) -> list[str]:
    """Perform steps."""
    begun(run, "call", path, given)
    return [*await perform(path, run, steps), mark(path)]


@component.retry(4, 0)
async def flaky(path: str, run: str, given: list[str], steps: list[Step]) -> list[str]:
    """Perform steps, and fail the first time for all that."""
    before = begun(run, "flaky", path, given)
    results = await perform(path, run, steps)
    if not before:
        raise ConnectionError(path)
    return [*results, mark(path)]


@component
async def stream(path: str, run: str, given: list[str], steps: list[Step]) -> AsyncIterator[str]:
    """Say something before, between and after the steps."""
    begun(run, "stream", path, given)
    for number, step in enumerate(steps):
        yield f"{path}:{number} "
        await pause(15)
        yield "goes on "
        await perform(f"{path}.{number}", run, [step])
    yield "and ends. "


@component
def thread(path: str, run: str, given: list[str]) -> str:
    """Say something from a thread."""
    begun(run, "thread", path, given)
    status(f"{path} in a thread")
    return mark(path)


@component
async def item(place: str, given: list[str] | None = None) -> dict[str, str]:
    """One of many. `place` is run:path, since a map has one argument."""
    run, _, path = place.partition(":")
    begun(run, "item", place, given or [])
    await pause(10)
    status(f"{path} is done")
    return {"mark": mark(path)}


@component.retry(2, 0).timeout(0.05)
async def late(path: str, run: str, given: list[str]) -> str:
    """Take too long. It shows nothing: a try that is lost may be out of time by then, and is not run again."""
    begun(run, "late", path, given)
    await asyncio.sleep(60)
    return "never"


@component
async def big(path: str, run: str, given: list[str]) -> str:
    """Give more than the log shows."""
    begun(run, "big", path, given)
    return path + "x" * 6_000


async def perform(path: str, run: str, steps: list[Step]) -> list[str]:
    """Perform steps, one after the other, and return what they gave."""
    results: list[str] = []
    for number, (kind, *rest) in enumerate(steps):
        below = f"{path}/{number}"
        if kind == "status":
            status(f"{below} {rest[0]}")
            status("again")
        elif kind == "publish":
            # Under a name of the path: in which order parallel branches come is nobody's promise.
            name = "p" + "".join(char if char.isalnum() else "_" for char in below)
            publish(name, below)
            publish.state(f"{name}.now", {"at": below, "n": 0})
            publish.patch(f"{name}.now", [{"op": "replace", "path": "/n", "value": 1}])
        elif kind == "pause":
            await pause(rest[0])
        elif kind == "sleep":
            await sleep(rest[0])
        elif kind in ("signal", "ask"):
            name = rest[0]
            status(f"{WAITS}{name}")
            value = await (signal(name, str) if kind == "signal" else request_input(name, str, prompt="Well?"))
            results.append(value)
        elif kind == "value":
            results.append(f"{below} {rest[0]}")
        elif kind == "fail":
            raise ValueError(below)
        else:
            results += await _caught(below, run, kind, results[-2:], rest)
    return results


async def _caught(path: str, run: str, kind: str, given: list[str], rest: list[Any]) -> list[str]:
    try:
        return await _composed(path, run, kind, given, rest)
    except ComponentError as error:
        return [f"{error.name} {error.message}"]


async def _composed(path: str, run: str, kind: str, given: list[str], rest: list[Any]) -> list[str]:
    match kind:
        case "call":
            return (await call(path, run, given, rest[0]))[-1:]
        case "flaky":
            return (await flaky(path, run, given, rest[0]))[-1:]
        case "catch":
            return (await call.retry(attempts=1)(path, run, given, [*rest[0], ["fail"]]))[-1:]
        case "instead":
            answer = call.fallback([f"{path} instead"])
            return (await answer(path, run, given, [*rest[0], ["fail"]]))[-1:]
        case "keyed":
            pair = [call.keyed(key)(f"{path}{key}", run, given, rest[0]) for key in "ba"]
            return [_told(one) for one in await asyncio.gather(*pair, return_exceptions=True)]
        case "stream":
            return [await stream(path, run, given, rest[0])]
        case "read":
            said: list[str] = []
            async for piece in stream(path, run, given, rest[0]):
                said.append(piece)
                if len(said) % 3 == 1:
                    await item(f"{run}:{path}+{len(said)}")
            return ["".join(said)]
        case "thread":
            return [await thread(path, run, given)]
        case "map":
            places = [f"{run}:{path}+{number}" for number in range(len(rest[0]) + 2)]
            return [one["mark"] for one in await omap(item, places, concurrency=2)]
        case "late":
            return [await late(path, run, given)]
        case "big":
            return [(await big(path, run, given))[:20]]
        case "parallel" | "race" | "first":
            return await _branches(path, run, kind, given, rest)
    raise ValueError(f"there is no step {kind!r}")


async def _branches(path: str, run: str, kind: str, given: list[str], both: list[Any]) -> list[str]:
    branches = [
        asyncio.create_task(call(f"{path}{side}", run, given, steps)) for side, steps in zip("lr", both, strict=True)
    ]
    try:
        if kind == "parallel":
            return [_told(one) for one in await asyncio.gather(*branches, return_exceptions=True)]
        _, pending = await asyncio.wait(branches, return_when=asyncio.FIRST_COMPLETED)
        if kind == "race":
            for task in pending:
                task.cancel()
        first = [_told(branch.exception() or branch.result()) for branch in branches if branch not in pending]
        await item(f"{run}:{path}!", first)
        await asyncio.gather(*branches, return_exceptions=True)
        return first
    finally:
        for branch in branches:
            branch.cancel()
        await asyncio.gather(*branches, return_exceptions=True)


def _told(result: Any) -> str:
    return f"{result.name} {result.message}" if isinstance(result, ComponentError) else str(result[-1])


@workflow
async def scripted(run: str, steps: list[Step]) -> list[str]:
    """Perform a script."""
    status("begins", done=0, total=1)
    results = await perform("", run, steps)
    status("ends", done=1, total=1)
    return results


@workflow
async def spoken(run: str, steps: list[Step]) -> AsyncIterator[str]:
    """Perform a script, and say it as the run's own output."""
    async for piece in stream("", run, [], steps):
        yield piece
        status(f"said {piece}")
