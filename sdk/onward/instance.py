"""Instances: who is calling, in a run. The tree of them is how a call finds its run without being told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar, Token
from hashlib import blake2b
from typing import TYPE_CHECKING

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, set_span_in_context

if TYPE_CHECKING:
    from onward.journal import Journal
    from onward.past import Record
    from onward.streams import Flow

CURRENT: ContextVar[Instance | None] = ContextVar("onward_instance", default=None)
"""The instance whose code runs; None outside a run."""

Scope = dict[str, None]
"""The ids of instances that have shown something since a try began, in the order in which they first did."""


class Instance:
    """One try of one call of a component in a run, or of the run itself.

    Attributes:
        id: Opaque, and the same in every try and attempt: made from the caller, the name, and how often the caller had
            called it before.
        name: The component's name.
        voice: Whether what it yields is written to the log: it is the outermost streaming instance on its path.
        number: The try, from 1.
        record: What earlier attempts left of it; None where this attempt is the first to call it.
        ended: Its try is over: nothing it does any more counts.
        failed: Its try failed, and another one or its fallback follows.
        flights: Keys of results for the cache that it and its callers are making.
        permits: Names of the permits that it and its callers hold.
    """

    __slots__ = (
        "_calls",
        "ended",
        "failed",
        "flights",
        "flows",
        "id",
        "journal",
        "name",
        "number",
        "parent",
        "permits",
        "record",
        "scopes",
        "silent",
        "span",
        "streams",
    )

    def __init__(self, journal: Journal, parent: Instance | None, id: str, name: str, *, streams: bool) -> None:
        self.journal = journal
        self.parent = parent
        self.id = id
        self.name = name
        self.streams = streams
        self.number = 1
        self.record: Record | None = None
        self.ended = False
        self.failed = False
        self.flows: set[Flow] | None = None
        """Streams that its code reads by `async for` and has not read to the end."""
        self.span: Span | None = None
        self._calls: dict[tuple[str, str], int] | None = None
        if parent is None:
            self.silent = False
            self.scopes: tuple[Scope, ...] = ()
            self.flights: tuple[str, ...] = ()
            self.permits: tuple[str, ...] = ()
        else:
            self.silent = parent.streams or parent.silent
            self.scopes = parent.scopes
            self.flights = parent.flights
            self.permits = parent.permits

    @property
    def voice(self) -> bool:
        return self.streams and not self.silent

    def child(self, name: str, *, streams: bool, key: str = "") -> Instance:
        """Return the instance for the next call of the component `name`, or for the next with this `key`."""
        number = self.count(name, key)
        identity = f"{self.id}\0{len(name)}\0{name}\0{number}\0{key}"
        digest = blake2b(identity.encode(errors="surrogatepass"), digest_size=8)
        return Instance(self.journal, self, digest.hexdigest(), name, streams=streams)

    def count(self, name: str, key: str = "") -> int:
        """Return how often this was asked before for the same name and key in this try."""
        calls = self._calls
        if calls is None:
            calls = self._calls = {}
        number = calls.get((name, key), 0)
        calls[name, key] = number + 1
        return number

    def new_try(self, number: int) -> tuple[Instance, Scope]:
        """Return a twin for the next try, its counters at the start, and the scope that holds what is shown in it."""
        twin = Instance(self.journal, self.parent, self.id, self.name, streams=self.streams)
        twin.span = self.span
        twin.number = number
        twin.record = self.record
        # A try that a lost attempt began goes on: what it had shown below is the try's too.
        replay = self.journal.replay
        scope: Scope = {} if self.record is None or replay is None else dict.fromkeys(replay.past.shown_by(self.record))
        twin.scopes = (*self.scopes, scope)
        return twin, scope

    def path(self) -> Iterator[Instance]:
        """Yield it and those above it."""
        above: Instance | None = self
        while above is not None:
            yield above
            above = above.parent

    def tries(self) -> Iterator[int]:
        """Return the number of the try of each instance above it, the nearest first."""
        return (above.number for above in self.path() if above is not self)

    @property
    def void(self) -> bool:
        """Whether it belongs to a try that failed. The next one makes the same calls: they are not to be confused."""
        above: Instance | None = self
        while above is not None:
            if above.failed:
                return True
            above = above.parent
        return False

    def check(self) -> None:
        """Stop whoever goes on in a try that failed.

        Raises:
            CancelledError: It is void.
        """
        if self.void:
            raise asyncio.CancelledError("the try has failed")

    def shows(self) -> bool:
        """Note that it is about to show something. False where nothing that it shows counts any more."""
        if self.ended or self.void:
            return False
        for scope in self.scopes:
            scope[self.id] = None
        return True

    def enter(self) -> Entered:
        """Make it the current one, and its span the current span, until `leave`."""
        token = CURRENT.set(self)
        return token, None if self.span is None else attach(set_span_in_context(self.span))


Entered = tuple[Token[Instance | None], Token[Context] | None]


def leave(entered: Entered) -> None:
    """Make the instance before `Instance.enter` the current one again."""
    token, span_token = entered
    try:
        CURRENT.reset(token)
    except ValueError:
        return  # The coroutine is being closed from elsewhere (a dying loop): there is no context to restore.
    if span_token is not None:
        detach(span_token)
