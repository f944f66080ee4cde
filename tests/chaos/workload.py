"""Workflows that a seed makes, and that tell what they did: what chaos runs.

A script is a list of steps, made by `script`. `scripted` and `spoken` perform it with components of every kind, and
`chained` several, one after the other, each in a run of its own; `offspring` is what they start as children. Each
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
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onward import (
    ComponentError,
    component,
    continue_as,
    publish,
    request_input,
    signal,
    sleep,
    start_child,
    status,
    workflow,
)
from onward import map as omap
from onward.instance import CURRENT
from onward.testing import Effect

LONG_S = 2.6
"""A sleep so long is worth parking for."""

LEDGER = "ONWARD_CHAOS_LEDGER"
"""Names the folder of the ledgers, a file for each run, to executors."""

MARKS = r"\{\{[\w/.+!:@-]*(#[0-9a-f]{8})\}\}"
"""What a mark looks like. What its two braces hold is the path of the component, and what differs each time."""

WAITS = "waits for "
"""What a status says before the name of the signal that is waited for. Whoever sees it sends that name as its value."""

AT_ONCE = 2
"""How many of `scarce` run at a time, in all runs."""

PATIENCE_S = 0.2
"""How long a signal is waited for that nobody sends."""

KEYS = 6
"""Things that the runs of a round share."""

_KEPT, _HELD = "!kept", "!held"
"""Files of the ledger that are no run's."""

Step = list[Any]

_folder: ContextVar[Path | None] = ContextVar(
    "chaos_ledgers", default=Path(os.environ[LEDGER]) if LEDGER in os.environ else None
)

_calm: ContextVar[dict[tuple[str, str, str], int] | None] = ContextVar("chaos_calm", default=None)
"""In undisturbed runs: how often each component was begun. They keep no ledger and take no time."""


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

LEAVES = (
    *("status", "publish", "pause", "value", "fail", "big", "sleep", "signal", "ask", "nobody"),
    *("shared", "told", "unkept", "scarce"),
)
SELDOM = frozenset(("sleep", "signal", "ask", "nobody", "fail"))
"""Leaves that are a pause more often than not."""
INNER = (
    *("call", "call", "flaky", "stream", "read", "parallel", "map", "thread", "keyed", "late", "catch", "instead"),
    *("child", "chain", "detached", "left", "beside"),
)
WAITING_INNER = frozenset(("child", "chain", "detached", "left", "beside"))
"""What waits for other runs."""
RACES = ("race", "first")


def script(seed: str, *, races: bool, steps: int = 6) -> list[Step]:
    """Return the script that a seed makes.

    Args:
        seed: Names it. What is before its "-" names what it shares with others.
        races: Whether which of two branches is first may decide what it gives.
        steps: How many there are at the top.
    """
    chance = random.Random(seed)
    kinds = INNER + RACES * 2 if races else INNER
    return [_step(chance, kinds, 0, seed.partition("-")[0]) for _ in range(steps)]


def links(seed: str, early: str) -> list[list[Step]]:
    """Return the scripts of a chain, the last of which waits for EARLY signals of a name that it does not ask for."""
    chance = random.Random(seed)
    found = [script(f"{seed}.{link}", races=False, steps=2) for link in range(chance.randint(2, 3))]
    return [*found[:-1], [*found[-1], *[["early", early]] * EARLY]]


EARLY = 3
"""How many signals are sent to a chain before they are waited for."""


def signals(steps: list[Any]) -> dict[str, str]:
    """Return what a script waits for, by the name of the signal: each wants its name."""
    found: dict[str, str] = {}
    for step in steps:
        if isinstance(step, list):
            if step and step[0] in ("signal", "ask"):
                found[step[1]] = step[1]
            found |= signals(step)
    return found


def _step(chance: random.Random, kinds: tuple[str, ...], depth: int, shared: str) -> Step:
    if depth and (depth > 2 or chance.random() < 0.5):
        return _leaf(chance, shared)
    kind = chance.choice(kinds)
    if kind in WAITING_INNER and depth > 1:
        kind = "call"
    some = [_steps(chance, kinds, depth + 1, shared)]
    if kind in ("parallel", "chain", *RACES):
        some.append(_steps(chance, kinds, depth + 1, shared))
    return [kind, *some]


def _leaf(chance: random.Random, shared: str) -> Step:
    kind = chance.choice(LEAVES)
    if kind in SELDOM and chance.random() < 0.6:
        kind = "pause"
    match kind:
        case "pause":
            return [kind, chance.randint(1, 30)]
        case "sleep":
            return [kind, chance.choice((0.02, 0.3, LONG_S))]
        case "signal" | "ask":
            return [kind, f"s{chance.randrange(10**9)}"]
        case "shared" | "told" | "unkept":
            return [kind, f"{shared}+{chance.randrange(KEYS)}"]
    return [kind, chance.choice("abc")]


def _steps(chance: random.Random, kinds: tuple[str, ...], depth: int, shared: str) -> list[Step]:
    return [_step(chance, kinds, depth, shared) for _ in range(chance.randint(1, 3))]


# What they leave behind


def here() -> str:
    """Return the run that this code runs in."""
    instance = CURRENT.get()
    assert instance is not None
    return instance.journal.run_id


def begun(name: str, path: str, used: Iterable[str] = ()) -> int:
    """Note that a component was begun, and return how often this run had begun it before."""
    run = here()
    if (counts := _calm.get()) is not None:
        count = counts.get((run, name, path), 0)
        counts[run, name, path] = count + 1
        return count
    before = [(effect.component, effect.argument) for effect in effects(run)].count((name, path))
    _note(run, [name, path, list(used)])
    return before


def effects(run: str) -> list[Effect]:
    """Return what the components of a run noted."""
    return [Effect(name, path, used) for name, path, used in _noted(run)]


def made(key: str, value: str) -> int:
    """Note what is made of a key, for all runs, and return how often something was before."""
    if (counts := _calm.get()) is not None:
        count = counts.get(("", _KEPT, key), 0)
        counts["", _KEPT, key] = count + 1
        return count
    before = [known for known, _ in _noted(_KEPT)].count(key)
    _note(_KEPT, [key, value])
    return before


def all_made() -> dict[str, str]:
    """Return of what key each mark was made that somebody made for all runs."""
    return {value: key for key, value in _noted(_KEPT)}


@contextlib.contextmanager
def holding() -> Iterator[None]:
    """Note how long the block takes."""
    began = time.monotonic()
    try:
        yield
    finally:
        if _calm.get() is None:
            _note(_HELD, [began, time.monotonic()])


def most_held() -> int:
    """Return how many blocks of `holding` ran at the same time at most. What was killed counts for nothing."""
    changes = sorted((at, by) for began, ended in _noted(_HELD) for at, by in ((began, 1), (ended, -1)))
    now = most = 0
    for _, by in changes:
        now += by
        most = max(most, now)
    return most


def _note(name: str, line: list[Any]) -> None:
    handle = os.open(_file(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def _noted(name: str) -> list[list[Any]]:
    file = _file(name)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _file(name: str) -> Path:
    folder = _folder.get()
    if folder is None:
        raise RuntimeError(f"{LEDGER} names no folder")
    return folder / name


def mark(path: str) -> str:
    """Return what only this execution can have made."""
    return f"{{{{{path}#{secrets.token_hex(4)}}}}}"


async def pause(milliseconds: float) -> None:
    """Take a little time, where others are there to be in the way meanwhile."""
    await asyncio.sleep(milliseconds / 1000 if _calm.get() is None else 0)


# Components. `given` is what the caller had by then, so that the log tells what was used.


@component
async def call(path: str, given: list[str], steps: list[Step]) -> list[str]:
    """Perform steps."""
    begun("call", path, given)
    return [*await perform(path, steps), mark(path)]


@component.retry(4, 0)
async def flaky(path: str, given: list[str], steps: list[Step]) -> list[str]:
    """Perform steps, and fail the first time for all that."""
    before = begun("flaky", path, given)
    results = await perform(path, steps)
    if not before:
        raise ConnectionError(path)
    return [*results, mark(path)]


@component
async def stream(path: str, given: list[str], steps: list[Step]) -> AsyncIterator[str]:
    """Say something before, between and after the steps."""
    begun("stream", path, given)
    for number, step in enumerate(steps):
        yield f"{path}:{number} "
        await pause(15)
        yield "goes on "
        await perform(f"{path}.{number}", [step])
    yield "and ends. "


@component
def thread(path: str, given: list[str]) -> str:
    """Say something from a thread."""
    begun("thread", path, given)
    status(f"{path} in a thread")
    return mark(path)


@component
async def item(path: str, given: list[str] | None = None) -> dict[str, str]:
    """One of many."""
    begun("item", path, given or [])
    await pause(10)
    status(f"{path} is done")
    return {"mark": mark(path)}


@component.retry(2, 0).timeout(0.05)
async def late(path: str, given: list[str]) -> str:
    """Take too long. It shows nothing: a try that is lost may be out of time by then, and is not run again."""
    begun("late", path, given)
    await asyncio.sleep(60)
    return "never"


@component
async def big(path: str, given: list[str]) -> str:
    """Give more than the log shows."""
    begun("big", path, given)
    return path + "x" * 6_000


def _key(path: str, key: str) -> str:
    return key


@component.retry(2, 0).cache("1h", key=_key)
async def shared(path: str, key: str) -> str:
    """Make something that is the same in all runs. The first that is made of a key is thrown away by an error."""
    begun("shared", path)
    value = mark(key)
    before = made(key, value)
    await pause(20)
    if not before:
        raise ConnectionError(key)
    return value


@component.cache("1h", key=_key)
async def told(path: str, key: str) -> AsyncIterator[str]:
    """Say something that is the same in all runs."""
    begun("told", path)
    yield f"of {key} "
    await pause(20)
    yield "this is told. "


def _unkept(path: str, key: str) -> str:
    return f"{path} instead"


@component.cache("1h", key=_key).fallback(_unkept)
async def unkept(path: str, key: str) -> str:
    """Fail, so that the fallback answers: something of this run, which no other is to get."""
    begun("unkept", path)
    await pause(5)
    raise ConnectionError(key)


@component.concurrency(AT_ONCE)
async def scarce(path: str) -> str:
    """Be one of few at a time."""
    begun("scarce", path)
    with holding():
        await pause(15)
    return mark(path)


@workflow
async def offspring(path: str, given: list[str], steps: list[Step]) -> list[str]:
    """Perform a script for another run."""
    status(f"{path} begins")
    results = await perform(path, steps)
    return [*results, (await item(f"{path}.", [*given, *results[-1:]]))["mark"]]


async def perform(path: str, steps: list[Step]) -> list[str]:
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
            results.append(await _signalled(kind, rest[0]))
        elif kind == "early":
            results.append(await signal(rest[0], str))
        elif kind == "value":
            results.append(f"{below} {rest[0]}")
        elif kind == "fail":
            raise ValueError(below)
        else:
            results += await _caught(below, kind, results[-2:], rest)
    return results


async def _signalled(kind: str, name: str) -> str:
    status(f"{WAITS}{name}")
    return await (signal(name, str) if kind == "signal" else request_input(name, str, prompt="Well?"))


async def _caught(path: str, kind: str, given: list[str], rest: list[Any]) -> list[str]:
    try:
        return await _composed(path, kind, given, rest)
    except ComponentError as error:
        return [f"{error.name} {error.message}"]


async def _composed(path: str, kind: str, given: list[str], rest: list[Any]) -> list[str]:
    match kind:
        case "call":
            return (await call(path, given, rest[0]))[-1:]
        case "flaky":
            return (await flaky(path, given, rest[0]))[-1:]
        case "catch":
            return (await call.retry(attempts=1)(path, given, [*rest[0], ["fail"]]))[-1:]
        case "instead":
            answer = call.fallback([f"{path} instead"])
            return (await answer(path, given, [*rest[0], ["fail"]]))[-1:]
        case "keyed":
            pair = [call.keyed(key)(f"{path}{key}", given, rest[0]) for key in "ba"]
            return [_told(one) for one in await asyncio.gather(*pair, return_exceptions=True)]
        case "stream":
            return [await stream(path, given, rest[0])]
        case "read":
            said: list[str] = []
            async for piece in stream(path, given, rest[0]):
                said.append(piece)
                if len(said) % 3 == 1:
                    await item(f"{path}+{len(said)}")
            return ["".join(said)]
        case "thread":
            return [await thread(path, given)]
        case "map":
            paths = [f"{path}+{number}" for number in range(len(rest[0]) + 2)]
            return [one["mark"] for one in await omap(item, paths, concurrency=2)]
        case "late":
            return [await late(path, given)]
        case "big":
            return [(await big(path, given))[:20]]
        case "nobody":
            return [str(await signal(f"nobody{path}", str, timeout=PATIENCE_S))]
        case "shared":
            return [await shared(path, rest[0])]
        case "told":
            return [await told(path, rest[0])]
        case "unkept":
            return [await unkept(path, rest[0])]
        case "scarce":
            return [await scarce(path)]
        case "parallel" | "race" | "first":
            return await _branches(path, kind, given, rest)
    return await _elsewhere(path, kind, given, rest)


async def _elsewhere(path: str, kind: str, given: list[str], rest: list[Any]) -> list[str]:
    """Perform steps in runs of their own, or wait beside them."""
    match kind:
        case "child":
            child = await start_child(offspring, path, given, rest[0])
            return (await child.result())[-1:]
        case "chain":
            chain = await start_child(chained, rest)
            return (await chain.result())[-1:]
        case "detached":
            await start_child.options(detached=True)(offspring, path, given, rest[0])
            return []
        case "left":
            await start_child(offspring, path, given, rest[0])
            return []
        case "beside":
            working = call(path, given, rest[0])
            _, result = await asyncio.gather(sleep(LONG_S), working, return_exceptions=True)
            return [_told(result)]
    raise ValueError(f"there is no step {kind!r}")


async def _branches(path: str, kind: str, given: list[str], both: list[Any]) -> list[str]:
    branches = [
        asyncio.create_task(call(f"{path}{side}", given, steps)) for side, steps in zip("lr", both, strict=True)
    ]
    try:
        if kind == "parallel":
            return [_told(one) for one in await asyncio.gather(*branches, return_exceptions=True)]
        _, pending = await asyncio.wait(branches, return_when=asyncio.FIRST_COMPLETED)
        if kind == "race":
            for task in pending:
                task.cancel()
        first = [_told(branch.exception() or branch.result()) for branch in branches if branch not in pending]
        await item(f"{path}!", first)
        await asyncio.gather(*branches, return_exceptions=True)
        return first
    finally:
        for branch in branches:
            branch.cancel()
        await asyncio.gather(*branches, return_exceptions=True)


def _told(result: Any) -> str:
    return f"{result.name} {result.message}" if isinstance(result, ComponentError) else str(result[-1])


@workflow
async def scripted(steps: list[Step]) -> list[str]:
    """Perform a script."""
    status("begins", done=0, total=1)
    results = await perform("", steps)
    status("ends", done=1, total=1)
    return results


@workflow
async def spoken(steps: list[Step]) -> AsyncIterator[str]:
    """Perform a script, and say it as the run's own output."""
    async for piece in stream("", [], steps):
        yield piece
        status(f"said {piece}")


@workflow
async def chained(scripts: list[list[Step]], link: int = 0, given: list[str] | None = None) -> list[str]:
    """Perform scripts, one after the other, each in a run of its own."""
    status(f"link {link}")
    results = [*(given or []), *await perform(f"@{link}", scripts[link])]
    if link + 1 < len(scripts):
        continue_as(chained, scripts, link + 1, results[-2:])
    return results
