"""A run under test and the runs that it starts, in one process: their errands are done as a Scheduler does them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onward.engine import Attempt
from onward.log import ACCEPTED, ENDED, RUN
from onward.memory import TERMINAL, MemoryRun
from onward.signature import InputInvalid
from onward.v1.errand_pb2 import Errand
from onward.v1.event_pb2 import (
    ATTEMPT_CAUSE_CANCELLED,
    ATTEMPT_CAUSE_STARTED,
    ATTEMPT_CAUSE_WOKEN,
    AttemptCause,
    RunWaiting,
)
from onward.v1.run_pb2 import RUN_STATE_CANCELLING, RUN_STATE_QUEUED, RUN_STATE_WAITING, Run, RunError
from onward.v1.scheduler_service_pb2 import SubmitRunRequest
from onward.workflows import Workflow

CONTINUATIONS_MAX = 1_000
"""How often a child may go on as another run: a test ends."""


class Member:
    """One of the runs.

    Attributes:
        workflow: What it runs.
        run: As an executor gets it, but its position.
        memory: Its log.
        cause: Why its next attempt begins.
        attempt: The one that runs; None while none does.
        in_place: What that waits for without parking, since it reads a stream; None where it goes on.
    """

    def __init__(self, workflow: Workflow[..., Any, Any], run: Run) -> None:
        self.workflow = workflow
        self.run = run
        self.memory = MemoryRun()
        self.cause: AttemptCause.ValueType = ATTEMPT_CAUSE_STARTED
        self.attempt: Attempt | None = None
        self.in_place: RunWaiting | None = None

    @property
    def data(self) -> bytes:
        """Its input."""
        return self.run.input.data

    @property
    def is_to_run(self) -> bool:
        """Whether an attempt of it is to begin."""
        return self.attempt is None and not self.memory.ended and self.memory.state != RUN_STATE_WAITING

    def record(self) -> Run:
        """Return what GetRun returns of it."""
        changed = self.memory.events[-1].run_state_changed
        record = Run(state=self.memory.state, attempt=self.memory.attempt)
        record.MergeFrom(self.run)
        record.continued_as_run_id = changed.continued_as_run_id
        if changed.HasField("output"):
            record.output.CopyFrom(changed.output)
        if changed.HasField("error"):
            record.error.CopyFrom(changed.error)
        record.log.last_offset = self.memory.last_offset
        return record

    def next_cause(self) -> AttemptCause.ValueType:
        """Return why an attempt begins now."""
        if self.memory.state == RUN_STATE_CANCELLING:
            return ATTEMPT_CAUSE_CANCELLED
        cause, self.cause = self.cause, ATTEMPT_CAUSE_WOKEN
        return cause


class Family:
    """The runs of one test, the first of which was started by it.

    Args:
        first: That one.
        workflows: What children can be started of, by name; it grows when one is started by the workflow itself.
    """

    def __init__(self, first: Member, workflows: Mapping[str, Workflow[..., Any, Any]]) -> None:
        self.first = first
        self.members: dict[str, Member] = {}
        self._workflows = workflows
        self._memories: dict[str, MemoryRun] = {}
        self._continuations = 0
        self._done: dict[str, int] = {}
        self._ended: set[str] = set()
        self._add(first)

    def _add(self, member: Member) -> None:
        member.memory.related = self._memories
        member.memory.on_errand = self._asked
        self.members[member.run.run_id] = member
        self._memories[member.run.run_id] = member.memory

    def settle(self) -> bool:
        """Do what is to be done by now. Return whether there was anything."""
        did, again = False, True
        while again:
            again = False
            for run_id, member in list(self.members.items()):
                for errand in member.memory.errands[self._done.get(run_id, 0) :]:
                    self._done[run_id] = self._done.get(run_id, 0) + 1
                    self._do(member, Errand.FromString(errand))
                    again = True
                if member.memory.state in TERMINAL and run_id not in self._ended:
                    self._ended.add(run_id)
                    self._end(member)
                    again = True
            did = did or again
        return did

    def _asked(self) -> None:
        self.settle()

    def _do(self, member: Member, errand: Errand) -> None:
        match errand.WhichOneof("kind"):
            case "start_child":
                self._start(member, errand.start_child)
            case "stop_child":
                if (child := self.members.get(errand.stop_child.run_id)) is not None:
                    self._cancel(self._last_of(child), errand.stop_child.reason)
            case "continue_run":
                submit = errand.continue_run.submit
                self._continuations += 1
                if member is self.first or self._continuations > CONTINUATIONS_MAX:
                    return  # It would have no end.
                successor = Member(member.workflow, _run(submit))
                self._add(successor)
                for event in member.memory.events:
                    if event.offset in errand.continue_run.signals or (
                        event.offset > errand.continue_run.through_offset and event.HasField("signal_received")
                    ):
                        signal = event.signal_received
                        request_id = signal.request_id or f"{member.run.run_id}.{event.offset}"
                        successor.memory.signal(signal.name, signal.value.data, signal.value.media_type, request_id)

    def _start(self, parent: Member, submit: SubmitRunRequest) -> None:
        workflow = self._workflows.get(submit.start.workflow)
        answer = Run(run_id=submit.start.run_id)
        if workflow is None:
            message = f"no deployment serves workflow {submit.start.workflow!r}"
            answer.error.CopyFrom(RunError(reason="WORKFLOW_NOT_FOUND", message=message, retryable=True))
        else:
            try:
                workflow.signature.load_input(submit.start.input.data)
            except InputInvalid as error:
                answer.error.CopyFrom(RunError(reason="INPUT_INVALID", message=str(error)))
            else:
                if submit.start.run_id not in self.members:
                    self._add(Member(workflow, _run(submit)))
        self._tell(parent.memory, ACCEPTED + submit.start.run_id, answer)

    def _end(self, member: Member) -> None:
        run, ended = member.run, member.memory.events[-1].run_state_changed
        for child in self.members.values():
            if child.run.parent_run_id == run.run_id and not child.run.detached:
                self._cancel(child, f"its parent, run {run.run_id}, has ended")
        parent = self.members.get(run.parent_run_id)
        if parent is not None and not ended.continued_as_run_id and parent.memory.state not in TERMINAL:
            told = Run(run_id=run.run_id, workflow=run.workflow, state=ended.state)
            if ended.HasField("output"):
                told.output.CopyFrom(ended.output)
            if ended.HasField("error"):
                told.error.CopyFrom(ended.error)
            self._tell(parent.memory, ENDED + (run.first_run_id or run.run_id), told)

    def _tell(self, memory: MemoryRun, name: str, run: Run) -> None:
        if memory.state not in TERMINAL:
            memory.signal(name, run.SerializeToString(), RUN)

    def _last_of(self, member: Member) -> Member:
        while following := member.memory.events[-1].run_state_changed.continued_as_run_id:
            if following not in self.members:
                return member
            member = self.members[following]
        return member

    def _cancel(self, member: Member, reason: str) -> None:
        if member.memory.ended:
            return
        if member.memory.state == RUN_STATE_QUEUED and not member.memory.attempt:
            member.memory.close(reason=reason)
        elif member.memory.state != RUN_STATE_CANCELLING:
            member.memory.cancel()


def _run(submit: SubmitRunRequest) -> Run:
    start = submit.start
    run = Run(
        run_id=start.run_id,
        namespace=submit.namespace,
        workflow=start.workflow,
        input=start.input,
        labels=start.labels,
        priority=start.priority,
        fairness_key=start.fairness_key,
        parent_run_id=submit.parent_run_id,
        parent_component_id=submit.parent_component_id,
        detached=submit.detached,
        depth=submit.depth,
        continued_from_run_id=submit.continued_from_run_id,
        first_run_id=submit.first_run_id,
    )
    run.log.log_id = "test"
    return run
