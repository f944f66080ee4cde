"""The floor's executor: runs the same functions and writes the same events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tests.bench import workflows
from tests.bench.floor.pipe import Pipe

from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_STARTED,
    CHANNEL_TEXT,
    OUTCOME_OK,
    AttemptStarted,
    ComponentFinished,
    ComponentStarted,
    Event,
    OutputDelta,
    RunStateChanged,
)
from onward.v1.executor_service_pb2 import ExecuteRequest, ExecuteResponse
from onward.v1.executor_service_pb2_grpc import ExecutorServiceServicer
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED, Payload

COMPONENTS = (workflows.first.fn, workflows.second.fn, workflows.third.fn)


def now() -> Timestamp:
    """Return the time as events carry it."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def payload(value: Any) -> Payload:
    """Return a value as events carry it."""
    data = json.dumps(value).encode()
    return Payload(data=data, size=len(data))


class Log:
    """A run's log, for who writes it alone."""

    def __init__(self, pipe: Pipe, run_id: str) -> None:
        self._pipe = pipe
        self._run_id = run_id
        self._offset = 1  # the Scheduler wrote that one

    def post(self, *events: Event) -> None:
        """Write events without waiting for it."""
        _ = self._write(events)

    async def append(self, *events: Event) -> None:
        """Write events; they are there when this returns."""
        await self._write(events)

    def _write(self, events: Sequence[Event]) -> asyncio.Future[Any]:
        after = self._offset
        for event in events:
            self._offset += 1
            event.offset = self._offset
            event.attempt = 1
        return self._pipe.append(self._run_id, after, [event.SerializeToString() for event in events])


class FloorExecutor(ExecutorServiceServicer):
    """Takes every run."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._tasks: set[asyncio.Task[None]] = set()
        self._executor_id = f"floor-host-{secrets.token_hex(4)}"

    async def Execute(self, request: ExecuteRequest, context: grpc.aio.ServicerContext[Any, Any]) -> ExecuteResponse:
        """Begin the run."""
        run = self._three if request.run.workflow == "three" else self._deltas
        log = Log(self._pipe, request.run.run_id)
        task = asyncio.create_task(run(log, **json.loads(request.run.input.data)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ExecuteResponse(running=len(self._tasks))

    def _began(self) -> Event:
        started = AttemptStarted(executor_id=self._executor_id, deployment="floor-0000", cause=ATTEMPT_CAUSE_STARTED)
        return Event(create_time=now(), attempt_started=started)

    async def _three(self, log: Log, topic: str) -> None:
        value = topic
        unsent = [self._began()]
        for component in COMPONENTS:
            component_id = secrets.token_hex(8)
            started = ComponentStarted(name=component.__name__, input=payload({"topic": value}), input_digest=b"d" * 16)
            unsent.append(Event(create_time=now(), component_id=component_id, component_started=started))
            value = await component(value)
            finished = ComponentFinished(outcome=OUTCOME_OK, output=payload(value))
            unsent.append(Event(create_time=now(), component_id=component_id, component_finished=finished))
            await log.append(*unsent)
            unsent.clear()
        await log.append(self._ended(value))

    async def _deltas(self, log: Log, begin: float, count: int, period_ms: int) -> None:
        log.post(self._began())
        texts = []
        async for text in workflows.stamps(begin, count, period_ms):
            texts.append(text)
            delta = OutputDelta(channel=CHANNEL_TEXT, text=text)
            log.post(Event(create_time=now(), output_delta=delta))
        await log.append(self._ended("".join(texts)))

    def _ended(self, output: str) -> Event:
        changed = RunStateChanged(state=RUN_STATE_SUCCEEDED, output=payload(output))
        return Event(create_time=now(), run_state_changed=changed)
