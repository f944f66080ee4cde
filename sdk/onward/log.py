"""The seam between the engine and the run log: what one attempt may do to the log of its run.

Implemented on Redis by `onward_runlog` and in memory by `onward.memory`; both pass one test suite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import Usage

EVENT_BYTES_MAX = 1024 * 1024
"""One event is at most this long, serialized."""

UNSENT_EVENTS_MAX = 1_000
UNSENT_BYTES_MAX = 1024 * 1024
"""What user code may be ahead of the store before `AttemptLog.room` makes it wait."""

INLINE_BYTES_MAX = 256 * 1024
"""A value over this size is kept beside the log, and its Payload carries a blob_uri."""


RESERVED = "onward."
"""Signals whose names begin so are the suite's own: Gateways refuse them. They tell facts, and nobody takes them away:
every wait of the name gets the same."""

ACCEPTED = f"{RESERVED}accepted."
"""Before a child's run_id: the signal that tells its parent whether it was accepted."""

ENDED = f"{RESERVED}ended."
"""Before a child's run_id: the signal that tells its parent how it ended."""

RUN = "application/vnd.onward.run"
"""Media type of the value of both: a serialized Run, with what there is to tell."""

CHILD = "onward.child"
"""What a wait for a child's end is called. Readers see the child in its input, as `run_id`."""

ASKED = "asked:"
"""Before a signal's name: where the memo has the schema of what is asked for; empty where nothing is."""

PLACES = "/after"
"""Follows an instance's id in the name of a memo value that holds offsets of the log: after which one each item of a
stream was given, `[[offset, how many], …]` as JSON. Where a log is copied they move with its events."""


class LogError(Exception):
    """The log refused an attempt's write. The attempt is over: nothing it writes later can succeed."""


class AttemptFenced(LogError):
    """Another attempt took the run, or nobody holds it: user code has to stop and nothing more may be written."""


class LogClosed(LogError):
    """The run reached its end by other means (cancelled, timed out): no event will ever follow."""


class LogFull(LogError):
    """The log is at its limit of events or bytes. Only a `finish` into PAUSED or CANCELLED is taken."""


class RunCancelling(LogError):
    """The run does not pause: its cancellation was asked for. A `finish` into CANCELLED is taken."""


class EventTooLarge(ValueError):
    """One event is over `EVENT_BYTES_MAX`. Raised to the writer of that event; the attempt goes on.

    Attributes:
        size: Length of the serialized event in bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"an event of {size} bytes is over the limit of {EVENT_BYTES_MAX}")
        self.size = size


def usage_of(event: Event) -> Usage | None:
    """Return what an event adds to the run's usage, None where that is nothing."""
    if event.HasField("component_finished") and event.component_finished.HasField("usage"):
        return event.component_finished.usage
    return None


def add_usage(total: Usage, usage: Usage) -> None:
    """Add `usage` to `total`."""
    total.input_tokens += usage.input_tokens
    total.output_tokens += usage.output_tokens
    total.cached_input_tokens += usage.cached_input_tokens
    total.cost_usd_micros += usage.cost_usd_micros
    total.calls += usage.calls


class AttemptLog(Protocol):
    """A run's log as the attempt that holds the run sees it. Events are committed in the order of the calls.

    `offset` and `attempt` of an Event are set by the log, which also adds what a ComponentFinished says was used to the
    run's usage, in the same atomic step. Not thread-safe: one event loop uses it.

    Attributes:
        on_others: Called when somebody else (who signals, who cancels) has written to the log; `others` tells what.
            None: nobody wants to know at once.
    """

    on_others: Callable[[], None] | None

    def post(self, event: Event, memo: Mapping[str, bytes] | None = None, *, outbox: Sequence[bytes] = ()) -> None:
        """Hand over an event without waiting for it. A refusal surfaces in the next call that waits.

        Args:
            event: Goes in after everything before it.
            memo: As in `append`.
            outbox: Serialized Errands, committed in the same atomic step and done, at least once, by a Scheduler.

        Raises:
            EventTooLarge: The event was not taken.
        """

    async def append(self, *events: Event, memo: Mapping[str, bytes] | None = None) -> int:
        """Commit `events` after everything posted before, and return the newest offset once they are durable.

        Args:
            events: May be empty: then it waits for what was posted.
            memo: Values for a later attempt, by component_id, written in the same atomic step. Readers never see them.

        Raises:
            LogError: The attempt is over.
            EventTooLarge: None of `events` was taken.
        """

    @property
    def crowded(self) -> bool:
        """Whether `room` would do anything but return at once."""

    async def room(self) -> None:
        """Return at once while less than UNSENT_EVENTS_MAX and UNSENT_BYTES_MAX are unsent, else when there is room.

        Raises:
            LogError: The attempt is over.
        """

    async def finish(self, event: Event, *, outbox: Sequence[bytes] = ()) -> None:
        """Commit a RunStateChanged into a terminal state or PAUSED: state, output or error, event, lease at once.

        Args:
            event: Goes in last.
            outbox: As in `post`.

        Raises:
            LogFull: There is no room for this end.
            RunCancelling: The run is to be cancelled, and this is no end of that.
            LogError: The attempt is over.
        """

    async def park(self, event: Event, *, wake_s: float | None) -> bool:
        """Commit a RunWaiting: event, state, timer and the end of the lease at once. The attempt is over then.

        Args:
            event: Says what the run waits for; a signal of one of its names wakes it.
            wake_s: Seconds after which it is woken in any case; None is never.

        Returns:
            False where others have written what `others` has not told yet: nothing was taken, and the attempt goes on.

        Raises:
            LogError: The attempt is over.
            EventTooLarge: The event was not taken.
        """

    async def others(self) -> Sequence[Event]:
        """Return what others wrote since the run was claimed, and that was not returned before, oldest first."""

    def read(self, *, after: int = 0) -> AsyncIterator[Event]:
        """Yield the events committed so far with an offset above `after`, in order, and end."""

    async def read_memo(self) -> Mapping[str, bytes]:
        """Return everything that earlier appends of the run put into its memo."""

    async def put_blob(self, data: bytes) -> str:
        """Keep `data` beside the log and return its blob_uri.

        Raises:
            LogError: The attempt is over.
        """

    async def get_blob(self, blob_uri: str, run_id: str = "") -> bytes:
        """Return a value kept by `put_blob` of any attempt of this run, or of another one in its namespace.

        Raises:
            KeyError: The run has no such blob, or is there no more.
        """
