"""Runs without end: a run goes on as another one of the same workflow, with an empty log."""

from __future__ import annotations

from collections.abc import Coroutine
from hashlib import blake2b
from typing import Any, Never, ParamSpec

from onward.failure import Leaves
from onward.journal import Journal, inline
from onward.v1.errand_pb2 import ContinueRun, Errand
from onward.v1.gateway_service_pb2 import StartRunRequest
from onward.v1.scheduler_service_pb2 import SubmitRunRequest
from onward.waiting import running
from onward.workflows import Workflow

P = ParamSpec("P")

INPUT_BYTES_MAX = 3 * 1024 * 1024

RUN_ID_CHARACTERS = 26


class Continued(Leaves):
    """Leaves the workflow's body.

    Attributes:
        data: The input of the run that follows, as JSON.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__("the run goes on as another one")
        self.data = data


def continue_as(workflow: Workflow[P, Coroutine[Any, Any, Any], Any], /, *args: P.args, **kwargs: P.kwargs) -> Never:
    """End this run, and go on as a new one of the same workflow with these arguments and an empty log.

        @workflow
        async def watch(cursor: int = 0) -> None:
            for _ in range(1_000):
                cursor = await poll(cursor)
                await onward.sleep("1m")
            onward.continue_as(watch, cursor)

    This run SUCCEEDED, and says as which one it goes on. That is accepted exactly once, on the build that takes new
    runs, with the same labels, priority, fairness_key and parent, and a run_timeout that begins anew. It gets the
    signals that nobody has taken. This run's children that are not detached end with it.

    Raises:
        RuntimeError: Called outside a run, or in a component.
        TypeError: It is not the workflow that runs; or it does not take the arguments, or they have no JSON form.
        ValueError: They are over 3 MiB.
    """
    caller = running()
    if caller is None:
        raise RuntimeError("continue_as is for the code of a run")
    if caller.parent is not None:
        raise RuntimeError(f"continue_as ends the run: call it in the workflow itself, not in {caller.name}")
    if workflow.name != caller.name:
        raise TypeError(f"a run of {caller.name} goes on as {caller.name}, not as {workflow.name}")
    data = workflow.signature.dump_input(workflow.signature.arguments(args, kwargs))
    if data is None:
        raise TypeError(f"the input of {workflow.name} has no JSON form")
    if len(data) > INPUT_BYTES_MAX:
        raise ValueError(f"the input of {workflow.name} has {len(data)} bytes; a run's has at most {INPUT_BYTES_MAX}")
    raise Continued(data)


def continued(error: BaseException | None) -> Continued | None:
    """Return what a body left by, also where it passed a TaskGroup."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, Continued) else None


def successor(journal: Journal, data: bytes) -> ContinueRun:
    """Return what makes the run that follows. Its run_id is the same in every attempt."""
    run = journal.run
    name = f"continue\0{run.log.log_id}".encode()
    start = StartRunRequest(
        workflow=run.workflow,
        input=inline(data),
        run_id=blake2b(name, digest_size=RUN_ID_CHARACTERS // 2, key=journal.secret).hexdigest(),
        labels=run.labels,
        priority=run.priority,
        fairness_key=run.fairness_key,
    )
    if run.HasField("deadline"):
        began_ns = max(run.create_time.ToNanoseconds(), run.schedule_time.ToNanoseconds())
        start.run_timeout.FromNanoseconds(max(1, run.deadline.ToNanoseconds() - began_ns))
    submit = SubmitRunRequest(
        namespace=run.namespace,
        start=start,
        parent_run_id=run.parent_run_id,
        parent_component_id=run.parent_component_id,
        detached=run.detached,
        trace_parent=journal.trace_parent,
        depth=run.depth,
        continued_from_run_id=run.run_id,
        first_run_id=run.first_run_id or run.run_id,
    )
    signals, through = journal.waits.untaken()
    return ContinueRun(submit=submit, signals=signals, through_offset=max(through, run.log.last_offset))


def errand(following: ContinueRun) -> bytes:
    """Return the errand that makes it."""
    return Errand(continue_run=following).SerializeToString()
