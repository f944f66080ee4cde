"""Child runs: workflows that a run starts as runs of their own, each with a log that can be followed by itself.

What a parent asks of another run is an errand: it is committed in the same step as the event that says so, and a
Scheduler does it. The child's run_id is made from the place of the call, so however often the parent is replayed there
is one child. That it was accepted, and how it ended, comes back as signals of the suite's own.

A run's end is its children's end, however it ends: what is to outlive it is started detached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, ParamSpec, TypeVar, overload

from google.protobuf.message import DecodeError
from pydantic_core import from_json

from onward.calls import DEFAULT
from onward.durations import Duration, seconds
from onward.errors import ComponentError
from onward.failure import component_error, told
from onward.instance import Instance
from onward.journal import inline, now, seen
from onward.limits import above_0
from onward.log import ACCEPTED, CHILD, ENDED
from onward.past import Record
from onward.replay import Diverged
from onward.signature import dump_any
from onward.streams import Stream
from onward.tracing import trace_parent_of
from onward.turns import NEVER
from onward.v1.errand_pb2 import Errand
from onward.v1.event_pb2 import WAIT_KIND_CHILD, ChildStarted, Event
from onward.v1.gateway_service_pb2 import StartRunRequest
from onward.v1.run_pb2 import RUN_STATE_CANCELLED, RUN_STATE_SUCCEEDED, Payload, Run, RunError
from onward.v1.scheduler_service_pb2 import SubmitRunRequest
from onward.waiting import What, running, wait, wait_as
from onward.workflows import Workflow

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

CHILDREN_MAX = 1_000
"""Runs that one run starts, however they end. Its log has a few events of each, and its end cancels them one by one."""

DEPTH_MAX = 16
"""Runs above one that is started: a workflow that starts itself ends somewhere."""

INPUT_BYTES_MAX = 3 * 1024 * 1024
"""The input of a run, as Gateways take it."""

LABELS_MAX = 32
LABEL_KEY_BYTES_MAX = 64
LABEL_VALUE_BYTES_MAX = 256
"""Labels of a run, as Gateways take them."""

RUN_ID_CHARACTERS = 26

LIMIT_REACHED = "LIMIT_REACHED"

OUTPUT_INVALID = "OUTPUT_INVALID"

CANCELLED = "CANCELLED"

STARTED: ContextVar[dict[str, Workflow[..., Any, Any]] | None] = ContextVar("onward_started", default=None)
"""Collects the workflows that children were started of, by name, for who runs them in process."""


class Child(Generic[T]):
    """A child run, to wait for.

    Attributes:
        run_id: Names it: whoever is told of it can follow its log.
        workflow: The name of what it runs.
    """

    __slots__ = ("_again", "_cancelled", "_instead", "_load", "_private", "_starting", "run_id", "workflow")

    def __init__(
        self,
        run_id: str,
        workflow: str,
        load: Callable[[bytes], T],
        *,
        private: bool,
        again: Callable[[], Awaitable[Child[T]]] | None = None,
    ) -> None:
        self.run_id = run_id
        self.workflow = workflow
        self._load = load
        self._private = private
        self._again = again
        """In a fork: starts the child again that its source had started."""
        self._instead: Child[T] | None = None
        """What was started so."""
        self._starting: asyncio.Future[Child[T]] | None = None
        self._cancelled = False

    def __repr__(self) -> str:
        return f"<Child {self.workflow} {self.run_id}>"

    async def result(self) -> T:
        """Wait for the child's end, and return its output, in the type that the workflow says.

        The run parks meanwhile. May be asked again, and by several at a time. Of a child that goes on as another run
        (`continue_as`) it is the output of the last. In a fork, a child of the fork's source that was cancelled, as it
        is when that ends, is started again: as everything that has no result.

        Raises:
            ComponentError: It failed, with its reason, type and message; was cancelled (CANCELLED); or its output is
                gone or not what the workflow says (OUTPUT_INVALID).
            RuntimeError: Called outside the run that started it.
        """
        try:
            return await self._end()
        except ComponentError as error:
            if self._again is None or self._cancelled or error.reason != CANCELLED:
                raise
            if self._starting is None:
                self._starting = asyncio.ensure_future(self._again())
        # Several may ask: none of them takes it from the others when it is cancelled.
        self._instead = await asyncio.shield(self._starting)
        return await self._instead.result()

    async def _end(self) -> T:
        value: T = await wait(
            _End(
                name=CHILD,
                called=self.workflow,
                kind=WAIT_KIND_CHILD,
                words=f"child {self.workflow}",
                signal=ENDED + self.run_id,
                fits=_run,
                told={"workflow": self.workflow, "run_id": self.run_id},
                run_id=self.run_id,
                load=self._load,
                private=self._private,
            )
        )
        return value

    async def cancel(self, reason: str = "") -> None:
        """Ask for the child's cancellation; `result` then tells how it ended. On one that has ended nothing happens.

        Args:
            reason: Goes into the child's log.

        Raises:
            RuntimeError: Called outside the run that started it.
        """
        if self._instead is not None:
            await self._instead.cancel(reason)
            return
        self._cancelled = True
        caller = _caller("Child.cancel")
        journal = caller.journal
        instance = caller.child("onward.cancel_child", streams=False, key=self.run_id)
        journal.came_by()
        instance.check()
        if journal.replay is not None:
            try:
                record = journal.replay.meet(instance, b"")
            except Diverged as error:
                await journal.diverged(instance, error.record, None, private=True)
            if record is not None and record.outcome:
                await journal.turns.turn(record.finished_offset, yields=True)
                return
            if record is None and not journal.replay.over:
                await journal.turns.turn(NEVER)
        if journal.before_live is not None:
            await journal.cancelled_first()
        errand = journal.stop_child(self.run_id, reason or "its parent asked for that")
        journal.told(instance, inline(b"null"), outbox=[errand])
        await journal.turns.turn(await journal.append())


class Starter:
    """Starts children: `child = await onward.start_child(workflow, …)`."""

    __slots__ = ("_detached", "_labels", "_run_timeout_s")

    def __init__(
        self, *, detached: bool = False, labels: Mapping[str, str] | None = None, run_timeout_s: float | None = None
    ) -> None:
        self._detached = detached
        self._labels = dict(labels or {})
        self._run_timeout_s = run_timeout_s

    def options(
        self,
        *,
        detached: bool = False,
        labels: Mapping[str, str] | None = None,
        run_timeout: Duration | None = None,
    ) -> Starter:
        """Return a starter of children that are not as usual: `await onward.start_child.options(detached=True)(…)`.

        Args:
            detached: The child outlives this run. Else it is cancelled when this run ends, however that is.
            labels: Kept on the child, for listing. At most 32; keys up to 64 bytes, values up to 256.
            run_timeout: Bounds the child, queueing and waiting included. By default the workflow's own, or none.

        Raises:
            ValueError: There are more labels, a key or a value is longer, or the run_timeout is not above 0.
        """
        _check_labels(labels or {})
        return Starter(
            detached=detached,
            labels=labels,
            run_timeout_s=None if run_timeout is None else above_0(seconds(run_timeout)),
        )

    # What a stream yields is awaited as a whole: its items together, or one text.
    @overload
    async def __call__(
        self, workflow: Workflow[P, Stream[Any, R], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Child[R]: ...
    @overload
    async def __call__(
        self, workflow: Workflow[P, Coroutine[Any, Any, T], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Child[T]: ...
    @overload
    async def __call__(self, workflow: str, /, **kwargs: Any) -> Child[Any]: ...
    async def __call__(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Child[Any]:
        """Start a workflow as a run of its own, below this one, and return when it is accepted.

        It runs on this run's build where that serves the workflow, else on the one that takes new runs, with this run's
        priority and fairness_key. Its retries and limits are those that it has there.

        Args:
            workflow: What to start, or the name of what another deployment serves.
            args: Its arguments.
            kwargs: Its arguments by name.

        Raises:
            ComponentError: It was refused: WORKFLOW_NOT_FOUND, where no deployment serves it; INPUT_INVALID, with the
                violations; LIMIT_REACHED, where this run has started 1,000 or is 16 runs deep.
            RuntimeError: Called outside a run.
            TypeError: The workflow does not take the arguments, or they have no JSON form.
            ValueError: They are over 3 MiB.
        """
        caller, timeout_s = _caller("start_child"), self._run_timeout_s
        load: Callable[[bytes], Any]
        if isinstance(workflow, str):
            name, load, policy = workflow, from_json, DEFAULT
            data = canonical = dump_any(kwargs, f"the input of {name}")
        else:
            name, load, policy = workflow.name, workflow.signature.load_output, workflow.policy
            arguments = workflow.signature.arguments(args, kwargs)
            data = workflow.signature.dump_input(arguments) or b""
            canonical = workflow.signature.canonical(arguments, data) or b""
            timeout_s = workflow.run_timeout_s if timeout_s is None else timeout_s
            if (started := STARTED.get()) is not None:
                started[name] = workflow
        if not data:
            raise TypeError(f"the input of {name} has no JSON form")
        if len(data) > INPUT_BYTES_MAX:
            raise ValueError(f"the input of {name} has {len(data)} bytes; a run's has at most {INPUT_BYTES_MAX}")
        asked = _Asked(name, data, canonical, timeout_s, load, policy.private)
        return await self._start(asked, caller, f"{len(name)}\0{name}{policy.key}")

    async def _start(self, asked: _Asked, caller: Instance, key: str) -> Child[Any]:
        journal, name = caller.journal, asked.name
        instance = caller.child("onward.start_child", streams=False, key=key)
        run_id = _run_id(instance)
        start = StartRunRequest(
            workflow=name,
            input=inline(asked.data),
            run_id=run_id,
            labels=self._labels,
            priority=journal.run.priority,
            fairness_key=journal.run.fairness_key,
            deployment=journal.run.deployment,
        )
        if asked.timeout_s is not None:
            start.run_timeout.FromNanoseconds(round(asked.timeout_s * 1e9))
        accepted: Run | None = await wait_as(
            _Start(
                name="onward.start_child",
                kind=WAIT_KIND_CHILD,
                words=f"child {name}, to be accepted",
                signal=ACCEPTED + run_id,
                fits=_run,
                told={"workflow": name, "run_id": run_id},
                input=name.encode() + b"\0" + asked.canonical,
                acts=True,
                start=start,
                detached=self._detached,
            ),
            instance,
        )
        if accepted is None or accepted.run_id == run_id:
            return Child(run_id, name, asked.load, private=asked.private)

        # In a fork it is the child that the run started from which the fork was made.
        async def again() -> Child[Any]:
            return await self._start(asked, _caller("Child.result"), f"{accepted.run_id}\0again")

        return Child(accepted.run_id, name, asked.load, private=asked.private, again=again)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be started."""

    name: str
    data: bytes
    canonical: bytes
    timeout_s: float | None
    load: Callable[[bytes], Any]
    private: bool


start_child = Starter()


def _caller(what: str) -> Instance:
    caller = running()
    if caller is None:
        raise RuntimeError(f"{what} is for code of a run: outside of one call the workflow, or use a Client")
    if asyncio.get_running_loop() is not caller.journal.loop:
        raise RuntimeError(f"{what} was called on another event loop than its run's: call it from an `async def`")
    return caller


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise ValueError(f"{len(labels)} labels are over the limit of {LABELS_MAX}")
    for key, value in labels.items():
        if not 0 < len(key.encode()) <= LABEL_KEY_BYTES_MAX:
            raise ValueError(f"a label's key has 1 to {LABEL_KEY_BYTES_MAX} bytes: {key!r}")
        if len(value.encode()) > LABEL_VALUE_BYTES_MAX:
            raise ValueError(f"label {key} is over the limit of {LABEL_VALUE_BYTES_MAX} bytes")


def _run_id(instance: Instance) -> str:
    """Return the run_id of the child that this call starts: the same in every attempt, another in every try."""
    journal = instance.journal
    digest = blake2b(digest_size=RUN_ID_CHARACTERS // 2, key=journal.secret)
    digest.update(f"child\0{journal.run.log.log_id}\0{instance.id}\0".encode())
    for number in instance.tries():
        digest.update(b"%d " % number)
    return digest.hexdigest()


def _run(value: Payload) -> Run:
    try:
        return Run.FromString(value.data)
    except DecodeError as error:
        raise ValueError(f"it holds no Run: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start(What):
    """Asks for a child, and waits until it is accepted or refused."""

    start: StartRunRequest
    detached: bool

    def refusal(self, instance: Instance) -> RunError | None:
        """See What.refusal: a child too many."""
        journal = instance.journal
        if len(journal.children_started) >= CHILDREN_MAX:
            message = f"the run has started {CHILDREN_MAX} children: start more from children, or continue_as a new run"
        elif journal.run.depth >= DEPTH_MAX:
            message = f"there are {DEPTH_MAX} runs above this one: it starts no more"
        else:
            return None
        return RunError(reason=LIMIT_REACHED, type="onward.LimitReached", message=message, component_id=instance.id)

    def began(self, instance: Instance) -> None:
        """See What.began. The event and the errand are one step: where the one is, there was the other."""
        journal, start = instance.journal, self.start
        if start.run_id in journal.children_started:
            return
        submit = SubmitRunRequest(
            namespace=journal.run.namespace,
            start=start,
            parent_run_id=journal.run.run_id,
            parent_component_id=instance.id,
            detached=self.detached,
            trace_parent=trace_parent_of(instance.span) or journal.trace_parent,
            depth=journal.run.depth + 1,
        )
        child = ChildStarted(run_id=start.run_id, workflow=start.workflow, detached=self.detached)
        event = Event(create_time=now(), component_id=instance.id, child_started=child)
        journal.post(event, outbox=[Errand(start_child=submit).SerializeToString()])
        journal.children_started.add(start.run_id)
        if not self.detached:
            journal.children[start.run_id] = tuple(above.id for above in instance.path())

    async def end(self, instance: Instance, offset: int, value: Run, beside: Mapping[str, bytes]) -> Run:
        """See What.end."""
        if not value.HasField("error"):
            await instance.journal.finished(instance, None, signal_offset=offset, beside=beside)
            return value
        refused = RunError()
        refused.CopyFrom(value.error)
        refused.component_id = instance.id
        await instance.journal.failed(instance, refused, beside=beside)
        raise component_error(self.name, refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class _End(What):
    """Waits for a child's end. What it gave becomes the parent's own: the child may be gone when that is replayed."""

    run_id: str
    load: Callable[[bytes], Any]
    private: bool

    async def end(self, instance: Instance, offset: int, value: Run, beside: Mapping[str, bytes]) -> Any:
        """See What.end."""
        journal = instance.journal
        error = None if value.state == RUN_STATE_SUCCEEDED else self._error(value)
        data, output = b"null", None
        if error is None:
            try:
                data = await self._output(instance, value)
                output = self.load(data)
            except (ValueError, KeyError) as failure:
                message = told(f"the output of child {self.run_id} cannot be had: {failure}")
                error = RunError(reason=OUTPUT_INVALID, type="onward.OutputInvalid", message=message)
        if error is not None:
            error.component_id = instance.id
            await journal.failed(instance, error, beside=beside)
            raise component_error(self.called, error)
        shown = None if self.private else seen(data)
        memo = None if shown is not None and shown.data == data else await journal.stored(data)
        await journal.finished(instance, shown, memo, beside=beside)
        return output

    async def again(self, instance: Instance, record: Record) -> Any:
        """See What.again."""
        value = record.memo or record.output
        assert value is not None
        try:
            return self.load(await instance.journal.kept(value))
        except ValueError as error:
            await instance.journal.unreadable(instance, error)

    async def _output(self, instance: Instance, run: Run) -> bytes:
        """Return the child's output.

        Raises:
            KeyError: It is gone.
            CancelledError: The attempt is over.
        """
        match run.output.WhichOneof("value"):
            case "data":
                return run.output.data
            case "blob_uri":
                return await instance.journal.of_another(run.run_id, run.output.blob_uri)
        return b"null"

    def _error(self, run: Run) -> RunError:
        if run.state == RUN_STATE_CANCELLED:
            return RunError(
                reason=CANCELLED, type="CancelledError", message=f"child {run.run_id} was cancelled", retryable=False
            )
        error = RunError()
        error.CopyFrom(run.error)
        error.ClearField("traceback")
        error.reason = error.reason or "FAILED"
        return error
