"""The floor's scheduler: writes the first event and hands the run to the one executor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from tests.bench.floor.executor import now
from tests.bench.floor.pipe import Pipe, log_key

from onward.v1.event_pb2 import Event, RunStateChanged
from onward.v1.executor_service_pb2 import ExecuteRequest
from onward.v1.run_pb2 import RUN_STATE_QUEUED, Run, RunLog
from onward.v1.scheduler_service_pb2 import SubmitRunRequest, SubmitRunResponse
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceServicer

if TYPE_CHECKING:
    from onward.v1.executor_service_pb2_grpc import ExecutorServiceAsyncStub


class FloorScheduler(SchedulerServiceServicer):
    """Knows one executor."""

    def __init__(self, pipe: Pipe, executor: ExecutorServiceAsyncStub) -> None:
        self._pipe = pipe
        self._executor = executor
        self._tasks: set[asyncio.Future[Any]] = set()

    async def SubmitRun(
        self, request: SubmitRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> SubmitRunResponse:
        """Accept a run: it is in the log when this returns."""
        start = request.start
        run = Run(
            run_id=start.run_id,
            namespace=request.namespace,
            workflow=start.workflow,
            state=RUN_STATE_QUEUED,
            create_time=now(),
            log=RunLog(log_id=start.run_id, first_offset=1, last_offset=1),
        )
        event = Event(offset=1, create_time=run.create_time, run_state_changed=RunStateChanged(state=RUN_STATE_QUEUED))
        await self._pipe.append(run.run_id, 0, [event.SerializeToString()])
        execute = ExecuteRequest(run=run, attempt=1, log_key=log_key(run.run_id))
        execute.run.input.CopyFrom(start.input)
        task = asyncio.ensure_future(self._executor.Execute(execute))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return SubmitRunResponse(run=run)
