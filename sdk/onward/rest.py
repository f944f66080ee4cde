"""Whether a run is at rest: whether nothing of it can go on before one of its durable waits ends.

That is shown task by task, and what cannot be shown counts as work: a run that is taken for busy keeps its executor a
while longer, one that is taken for idle would be stopped in the middle of something.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from types import AsyncGeneratorType, CellType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any

from onward.instance import CURRENT, Instance
from onward.replay import context_of

if TYPE_CHECKING:
    from onward.journal import Journal

DEPTH_MAX = 200
"""Nested awaits of one task that are looked at; beyond that it counts as busy."""

Task = asyncio.Task[Any]
Future = asyncio.Future[Any]


def at_rest(journal: Journal, waits: AbstractSet[Future], *, in_streams: bool = False) -> bool:
    """Tell whether every task of a run waits for one of `waits`, alone or through other tasks of the run.

    A task counts that waits for a task, for asyncio.gather, asyncio.wait, asyncio.shield, asyncio.as_completed or the
    end of an asyncio.TaskGroup. One does not that waits with a time limit of asyncio's: that would not outlive the
    attempt. Nor does a run with a stream that was left between two items, unless `in_streams` says so: it may hold what
    would be asked for anew (a connection, a model's answer). One whose own code waits is as any component.
    """
    tasks: set[Task] = set()
    instances: set[Instance] = set()
    for task in asyncio.all_tasks():
        context = context_of(task)
        instance = None if context is None else context.get(CURRENT)
        if instance is not None and instance.journal is journal:
            tasks.add(task)
            while instance is not None:
                instances.add(instance)
                instance = instance.parent
    flows = (flow for instance in instances for flow in instance.flows or ())
    if not in_streams and any(not flow.ended and not flow.asked for flow in flows):
        return False
    ends: set[Future] | None = None
    for task in tasks:
        awaited: Future | None = getattr(task, "_fut_waiter", None)
        if awaited is None or awaited.done() or _is_limited(task):
            return False
        if awaited in waits or awaited in tasks:
            continue
        if _gathered(awaited, tasks, waits):
            continue
        if ends is None:
            ends = _ended_by(tasks)
        if awaited not in ends:
            return False
    return bool(tasks)


def _gathered(future: Future, tasks: AbstractSet[Task], waits: AbstractSet[Future]) -> bool:
    """Tell whether a future is that of asyncio.gather, over nothing but tasks of the run."""
    children: list[Future] | None = getattr(future, "_children", None)
    return children is not None and all(
        child.done() or child in tasks or child in waits or _gathered(child, tasks, waits) for child in children
    )


def _ended_by(tasks: AbstractSet[Task]) -> set[Future]:
    """Return the futures that asyncio itself resolves when tasks of the run end: it reaches them from its callbacks."""
    found: set[Future] = set()
    ending: list[Future] = list(tasks)
    while ending:
        for callback, _ in getattr(ending.pop(), "_callbacks", None) or ():
            futures = list(_reached(callback))
            new = [future for future in futures if future not in found and not isinstance(future, asyncio.Task)]
            found.update(new)
            ending.extend(new)
    return found


def _reached(callback: Any) -> Iterator[Future]:
    """Yield the futures in a callback of asyncio's own; none where there is a time limit, too."""
    function = callback
    bound: list[Any] = []
    while not isinstance(function, FunctionType):
        if isinstance(function, partial):
            bound += function.args
            function = function.func
        elif isinstance(function, MethodType):
            bound += gc.get_referents(function.__self__)
            function = function.__func__
        else:
            return
    if not function.__module__.startswith("asyncio."):
        return
    for cell in function.__closure__ or ():
        if isinstance(cell, CellType):
            bound += _contents(cell)
    for one in list(bound):
        if isinstance(one, asyncio.Queue):  # asyncio.as_completed
            bound += one._getters  # type: ignore[attr-defined]  # noqa: SLF001
    if not any(_is_timer(one) for one in bound):
        yield from (one for one in bound if asyncio.isfuture(one))


def _contents(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # empty
        return []


def _is_limited(task: Task) -> bool:
    """Tell whether something that a task awaits has a time limit of asyncio's: asyncio.timeout, wait_for, wait."""
    awaiting: Any = task.get_coro()
    for _ in range(DEPTH_MAX):
        match awaiting:
            case CoroutineType():
                inner = awaiting.cr_await
            case GeneratorType():
                inner = awaiting.gi_yieldfrom
            case AsyncGeneratorType():
                inner = awaiting.ag_await
            case None:
                return False
            case _ if asyncio.isfuture(awaiting):
                return False
            case _:
                # What `await` makes of an object, or `async for` of a generator: the coroutine is in it.
                kinds = (CoroutineType, GeneratorType, AsyncGeneratorType)
                awaiting = next((one for one in gc.get_referents(awaiting) if isinstance(one, kinds)), None)
                continue
        if any(_is_timer(one) for one in gc.get_referents(awaiting)):
            return True
        awaiting = inner
    return True


def _is_timer(one: Any) -> bool:
    if isinstance(one, MethodType):
        one = one.__self__
    if isinstance(one, asyncio.Timeout):
        return one.when() is not None
    # uvloop has a class of its own.
    return type(one).__name__ == "TimerHandle" and not one.cancelled()
