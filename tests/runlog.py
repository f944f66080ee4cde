"""What tests of the run log share: runs, events, the bare functions, and a look at what lies in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onward.v1.event_pb2 import Event, RunStateChanged, RunWaiting, StatusUpdated
from onward.v1.run_pb2 import Payload, Run, RunError, RunState
from onward_runlog import keys
from onward_runlog.connection import Argument
from onward_runlog.record import pairs
from onward_runlog.store import Store

QUEUED = RunState.RUN_STATE_QUEUED
RUNNING = RunState.RUN_STATE_RUNNING
WAITING = RunState.RUN_STATE_WAITING
CANCELLING = RunState.RUN_STATE_CANCELLING
PAUSED = RunState.RUN_STATE_PAUSED
SUCCEEDED = RunState.RUN_STATE_SUCCEEDED
FAILED = RunState.RUN_STATE_FAILED
CANCELLED = RunState.RUN_STATE_CANCELLED

RETENTION_MS = 3_600_000


def a_run(run_id: str = "run", *, namespace: str = "default", data: bytes = b"{}", **fields: Any) -> Run:
    """A run as a Scheduler submits it."""
    values = {"workflow": "blog", "deployment": "build", **fields}
    return Run(run_id=run_id, namespace=namespace, input=Payload(data=data, size=len(data)), **values)


def status(message: str = "x") -> Event:
    return Event(status_updated=StatusUpdated(message=message))


def ended(state: RunState.ValueType = SUCCEEDED) -> Event:
    """The closing event of an executor."""
    change = RunStateChanged(state=state)
    if state == SUCCEEDED:
        change.output.CopyFrom(Payload(data=b'"done"', size=6))
    else:
        change.error.CopyFrom(RunError(reason="LOG_LIMIT" if state == PAUSED else "COMPONENT_FAILED"))
    return Event(run_state_changed=change)


@dataclass(frozen=True)
class Reply:
    """What append says about one run."""

    status: str
    state: int
    attempt: int
    last_offset: int
    size: int


def part(
    ref: str,
    attempt: int,
    sequence: int,
    *events: Event | bytes,
    end: int | str | None = None,
    output: bytes = b"",
    error: bytes = b"",
    usage: str = "",
    memo: dict[str, bytes] | None = None,
    outbox: Sequence[bytes] = (),
) -> list[Argument]:
    """One run's part of a call of append."""
    encoded = [event if isinstance(event, bytes) else event.SerializeToString() for event in events]
    flat: list[Argument] = [argument for pair in (memo or {}).items() for argument in pair]
    ending = "" if end is None else str(end)
    counted: list[Argument] = [len(encoded), *encoded, len(memo or {}), *flat, len(outbox), *outbox]
    return [ref, attempt, sequence, ending, output, error, usage, *counted]


async def append_all(
    store: Store, base: str, *parts: list[Argument], events_max: int = 1_000, bytes_max: int = 1_000_000
) -> list[Reply]:
    """Call append as an executor in any language does."""
    arguments = [argument for each in parts for argument in each]
    replies = await store.call("append", base, events_max, bytes_max, RETENTION_MS, *arguments)
    return [Reply(reply[0].decode(), *reply[1:]) for reply in replies]


async def append(store: Store, run: Run, attempt: int, sequence: int, *events: Event | bytes, **more: Any) -> Reply:
    """Append to one run by the bare function."""
    base, ref = store.place(run.namespace, run.run_id)
    limits = {name: more.pop(name) for name in ("events_max", "bytes_max") if name in more}
    [reply] = await append_all(store, base, part(ref, attempt, sequence, *events, **more), **limits)
    return reply


async def park(
    store: Store, run: Run, attempt: int, sequence: int, last: int, *names: str, wake_ms: int | str = ""
) -> Reply:
    """Park a run by the bare function."""
    base, ref = store.place(run.namespace, run.run_id)
    event = Event(run_waiting=RunWaiting(reason="a reason", signals=names)).SerializeToString()
    arguments: list[Argument] = [ref, attempt, sequence, last, 1_000, 1_000_000, event, "a reason", wake_ms]
    reply = await store.call("park", base, *arguments, len(names), *names)
    return Reply(reply[0].decode(), *reply[1:])


async def log_of(store: Store, run: Run) -> list[Event]:
    """The run's log, whose entries' ids are checked against the offsets."""
    base, ref = store.place(run.namespace, run.run_id)
    entries = await store.command("XRANGE", keys.log(base, ref), "-", "+")
    events = [Event.FromString(fields[1]) for _, fields in entries]
    assert [entry_id.decode() for entry_id, _ in entries] == [f"{event.offset}-0" for event in events]
    assert [event.offset for event in events] == list(range(1, len(events) + 1))
    return events


def told(events: list[Event]) -> list[str]:
    """The log in words: statuses, and states without their prefix."""
    return [
        event.status_updated.message
        if event.HasField("status_updated")
        else RunState.Name(event.run_state_changed.state).removeprefix("RUN_STATE_")
        if event.HasField("run_state_changed")
        else str(event.WhichOneof("kind"))
        for event in events
    ]


async def record_of(store: Store, run: Run) -> dict[str, bytes]:
    base, ref = store.place(run.namespace, run.run_id)
    record = pairs(await store.command("HGETALL", keys.run(base, ref)))
    return {name.decode(): value for name, value in record.items()}


async def places(store: Store, run: Run) -> set[str]:
    """Which of queue, leases and timers name the run, and the indexes that list it."""
    base, ref = store.place(run.namespace, run.run_id)
    queue, alone, lease, start, deadline, expiry, wake = await asyncio.gather(
        store.command("ZSCORE", f"{base}:queue:{run.deployment}", ref),
        store.command("ZSCORE", f"{base}:queue:{keys.alone(run.deployment)}", ref),
        store.command("ZSCORE", f"{base}:leases", ref),
        store.command("ZSCORE", f"{base}:timers", f"s:{ref}"),
        store.command("ZSCORE", f"{base}:timers", f"d:{ref}"),
        store.command("ZSCORE", f"{base}:timers", f"x:{ref}"),
        store.command("ZSCORE", f"{base}:timers", f"w:{ref}"),
    )
    found = {"queue": queue, "alone": alone, "lease": lease, "start": start, "deadline": deadline, "expiry": expiry}
    found["wake"] = wake
    return {name for name, score in found.items() if score is not None}


async def listed_in(store: Store, run: Run) -> set[str]:
    """The names of the indexes that list the run."""
    base, _ = store.place(run.namespace, run.run_id)
    prefix = keys.index(base, run.namespace, "")
    indexes = [key.decode() for key in await store.command("KEYS", f"{base}:runs:*") if key.startswith(prefix.encode())]
    scores = await asyncio.gather(*(store.command("ZSCORE", key, run.run_id) for key in indexes))
    return {key.removeprefix(prefix) for key, score in zip(indexes, scores, strict=True) if score is not None}


async def all_keys(store: Store) -> list[str]:
    """Every key of the store but its set-up."""
    return sorted(key.decode() for key in await store.command("KEYS", "*") if key.decode() != keys.STORE)


async def eventually(check: Callable[[], Awaitable[bool]], *, within_s: float = 15.0) -> None:
    """Return when `check` answers yes; fail when it has not for so long."""
    async with asyncio.timeout(within_s):
        while not await check():  # noqa: ASYNC110 - what the store's clock brings about tells nobody
            await asyncio.sleep(0.005)
