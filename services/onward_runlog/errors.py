"""What the run log refuses, each a name of its own. onward_serving maps them to gRPC status once."""

from __future__ import annotations

from collections.abc import Sequence


class RunLogError(Exception):
    """Base of what the run log raises to Schedulers and Gateways. What an attempt meets is in onward.log."""


class StoreUnavailable(RunLogError):
    """Redis did not answer in time, or takes nothing for now. Whether a write was applied is unknown."""


class StoreUnfit(RunLogError):
    """The server cannot keep what it is given: no append-only file, or it evicts keys."""


class StoreUrlInvalid(RunLogError):
    """What names the store is no URL of one."""


class RunNotFound(RunLogError):
    """No such run in the namespace."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"no run {run_id!r}: it never was, or it is past its retention")
        self.run_id = run_id


class RequestReused(RunLogError):
    """The request_id or run_id was used for another workflow or input."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the request_id or run_id was already used, by run {run_id}, for another workflow or input")
        self.run_id = run_id


class QueueFull(RunLogError):
    """As many runs wait for one deployment as are allowed."""


class WrongState(RunLogError):
    """The run is not in a state that allows this."""

    def __init__(self, run_id: str, state: str) -> None:
        super().__init__(f"run {run_id} is {state}, which does not allow this")
        self.run_id = run_id
        self.state = state


class ComponentNotFound(RunLogError):
    """The run has called no such component."""

    def __init__(self, component_id: str, there_are: Sequence[str], count: int) -> None:
        more = f" and {count - len(there_are)} more" if count > len(there_are) else ""
        known = f"there are {', '.join(there_are)}{more}" if there_are else "it has called none"
        super().__init__(f"the run has no component {component_id!r}: {known}")
        self.component_id = component_id


class LogAtLimit(WrongState):
    """The run is PAUSED because its log is full, and would be again at once."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id, "PAUSED")
        self.args = (f"the log of run {run_id} is at its limit: fork it from a component that leaves room",)


class CursorInvalid(RunLogError):
    """The cursor is malformed or of another run."""


class EventsTrimmed(RunLogError):
    """Events after the position are gone."""

    def __init__(self, first_offset: int) -> None:
        super().__init__(f"events before offset {first_offset} are gone; read from there, or with GAP_POLICY_SKIP")
        self.first_offset = first_offset


class OffsetAhead(RunLogError):
    """The position is after the newest event."""

    def __init__(self, last_offset: int) -> None:
        super().__init__(f"the position is after the newest event, {last_offset}")
        self.last_offset = last_offset


class LogRebuilt(RunLogError):
    """The log is not the one that the cursor was made from."""

    def __init__(self, log_id: str) -> None:
        super().__init__("the log was rebuilt since the position was taken: read it again from the start")
        self.log_id = log_id


class BlobNotFound(RunLogError):
    """The run has no such blob."""

    def __init__(self, blob_uri: str) -> None:
        super().__init__(f"the run has no blob {blob_uri!r}")
        self.blob_uri = blob_uri
