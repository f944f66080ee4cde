"""Every error that Onward raises to its users. gRPC's own exceptions never leave the SDK.

OnwardError
├── ComponentError          a component failed inside a run; the same the first time as on replay
│   └── WaitTimeout         what was waited for did not come in time; a TimeoutError, too
├── RunFailed               a run that was waited for did not succeed
└── RequestError            a request that the Gateway refused, or that nobody answered
    ├── NotFound            no such thing: a blob, a deployment, or
    │   ├── RunNotFound     … run in the namespace
    │   └── WorkflowNotFound … workflow that a deployment serves
    ├── InvalidRequest      the request itself is malformed: a name, an id, a cursor, a value over its limit, or
    │   └── InvalidInput    … the input does not satisfy the workflow's schema
    ├── RequestReused       the request_id or run_id was used for something else
    ├── WrongState          the run is not in a state that allows this
    ├── PositionLost        the log cannot be read from there: trimmed, ahead of the newest event, or rebuilt
    ├── Denied              no credentials, or not for this
    ├── Untrusted           what answers shows no certificate that is believed; nothing was sent to it
    ├── LimitReached        a limit of the namespace was reached
    ├── Unavailable         nobody answers, even after retries; the outcome of a write is unknown
    └── InternalError       a bug in the server; the message holds an id that its log holds too
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any


class OnwardError(Exception):
    """Base of all errors of Onward."""


class ComponentError(OnwardError):
    """A component failed inside a run.

    Attributes:
        component_id: The instance that failed.
        name: The component's name.
        reason: Stable upper-case word: COMPONENT_FAILED, TIMEOUT, ATTEMPTS_EXHAUSTED.
        type: The original exception's qualified name.
        message: The original exception's message.
        retryable: Whether the same call may succeed later.
        details: The original exception's own data, if it had any (JSON-compatible).
    """

    def __init__(
        self,
        *,
        component_id: str,
        name: str,
        reason: str,
        type: str,
        message: str,
        retryable: bool = False,
        details: Any = None,
    ) -> None:
        super().__init__(f"{name}: {type}: {message}" if type else f"{name}: {message}")
        self.component_id = component_id
        self.name = name
        self.reason = reason
        self.type = type
        self.message = message
        self.retryable = retryable
        self.details = details

    def __reduce__(self) -> tuple[Callable[[], ComponentError], tuple[()]]:
        fields = {name: value for name, value in vars(self).items() if name != "__notes__"}
        return partial(type(self), **fields), ()


class WaitTimeout(ComponentError, TimeoutError):
    """A signal that was waited for did not come in time."""


class RunFailed(OnwardError):
    """A run that was waited for ended FAILED or CANCELLED, or is PAUSED.

    Attributes:
        run_id: The run.
        state: Its state without the prefix, e.g. "FAILED".
        reason: RunError.reason, e.g. COMPONENT_FAILED; empty when cancelled.
    """

    def __init__(self, run_id: str, state: str, reason: str, message: str) -> None:
        super().__init__(f"run {run_id} {state.lower()}" + (f": {message}" if message else ""))
        self.run_id = run_id
        self.state = state
        self.reason = reason


class RequestError(OnwardError):
    """A request that the Gateway refused, or that nobody answered.

    Attributes:
        reason: ErrorReason without its prefix, e.g. "RUN_NOT_FOUND"; empty where the server gave none.
        metadata: What the reason carries, e.g. {"run_id": …}.
        violations: One "path: what is wrong" for everything that is wrong with the request or the input.
        retry_after_s: Seconds to wait before another try makes sense; 0 when unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[str] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = list(violations)
        self.retry_after_s = retry_after_s


class NotFound(RequestError):
    """There is no such thing."""


class RunNotFound(NotFound):
    """No such run in the namespace."""


class WorkflowNotFound(NotFound):
    """No deployment serves the workflow."""


class InvalidRequest(RequestError):
    """The request itself is malformed, or a value in it is over its limit."""


class InvalidInput(InvalidRequest):
    """The input does not satisfy the workflow's schema."""


class RequestReused(RequestError):
    """The request_id or run_id was used for something else."""


class WrongState(RequestError):
    """The run is not in a state that allows this."""


class PositionLost(RequestError):
    """The log cannot be read from the position asked for: trimmed, ahead of the newest event, or rebuilt."""


class Denied(RequestError):
    """No credentials, or not for this."""


class Untrusted(RequestError):
    """What answers at a Gateway's address shows no certificate that is believed: nothing was sent to it."""


class LimitReached(RequestError):
    """A limit was reached."""


class Unavailable(RequestError):
    """Nobody answers, even after retries. The outcome of a write is unknown: repeat it with the same request_id."""


class InternalError(RequestError):
    """A bug in the server. The message holds an id that the server's log holds too."""
