"""Replay: whoever calls again what an earlier attempt had called gets what that left, in the order of the log.

The rule: what stands at an offset of the log is given when everything that began before that offset has been called
again, and what was given before it has had its effect. So whoever had reacted to one result before the next came does
it again before the next comes. Where the code (changed, or dependent on the time) does not call any more what the log
says, nobody may wait for ever: after a while without progress the rule is let go of for what is missing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable
from contextvars import Context
from typing import Any

from onward.instance import CURRENT, Instance
from onward.past import Past, Record
from onward.turns import Turns

logger = logging.getLogger(__name__)

QUIET_S = 1.0
"""How long to wait for a call that the log holds and nobody makes, while nothing runs that could lead to it."""

LIVE_S = 5.0
"""How long while something runs. Both are halved each time that it was in vain."""


class Diverged(Exception):
    """A call is made where the log has another.

    Attributes:
        record: What the log has.
    """

    def __init__(self, record: Record) -> None:
        super().__init__(record.name)
        self.record = record


class Replay:
    """The order in which one attempt follows its past.

    Attributes:
        past: What it follows.
        live: How many instances run that have nothing to follow.
        strict: Whether the code is held to what the log says. Once the run's cancellation has reached it, it is not: it
            may have come earlier this time.
        turns: The order of the log.
    """

    def __init__(self, past: Past) -> None:
        self.past = past
        self.live = 0
        self.strict = True
        self.turns = Turns(self._is_blocked)
        self._loop = asyncio.get_running_loop()
        self._expected = past.expected()
        self._next = 0
        self._patience: asyncio.TimerHandle | None = None
        self._in_vain = 0

    @property
    def progress(self) -> tuple[int, int]:
        """What changes as long as it goes on."""
        return self._next, self.turns.first

    @property
    def over(self) -> bool:
        """Whether everything that the log holds was called again."""
        return self._missing() is None

    def meet(self, instance: Instance, digest: bytes) -> Record | None:
        """Return what the past holds of a call that is being made; None where it is new.

        Raises:
            Diverged: It is certain that an earlier attempt made another call here.
        """
        record = self.past.records.get(instance.id)
        if record is None:
            self._check_place(instance)
            return None
        if record.digest != digest and not self.strict:
            record.met = True
            return None
        if record.digest != digest:
            raise Diverged(record)
        record.met = True
        instance.record = record
        self._wake()
        return record

    def _check_place(self, instance: Instance) -> None:
        """A call that no earlier attempt made comes after all that one did make, where there is but one task."""
        parent = instance.parent
        if parent is None or parent.record is None or self.over or not self.strict:
            return
        missing = next((one for one in parent.record.below.values() if not one.met and not one.cancelled), None)
        if missing is not None and not _others(parent):
            raise Diverged(missing)

    def ended(self, record: Record, *, ran: bool = True) -> None:
        """It ended in this attempt: what it has not called by now it will not call.

        Args:
            record: What the past holds of it.
            ran: Whether its code ran, and could have made calls.
        """
        missing = []
        for one in record.all_below():
            if not one.met:
                one.met = True
                if not one.cancelled:
                    missing.append(one.name)
            self.past.records.pop(one.id, None)
        if missing and self.strict and ran:
            logger.warning("%s did not call again: %s", record.name or "the workflow", ", ".join(missing[:10]))
        if missing:
            self._wake()

    def failed_try(self, record: Record) -> None:
        """A try of it failed in this attempt: what the past holds below it is void."""
        for name in list(self.past.shown_by(record)):
            del self.past.shown[name]
        self.past.forget(record)
        self._wake()

    # Whose turn it is

    def _missing(self) -> Record | None:
        """Return the first instance that was called and is not called yet."""
        expected = self._expected
        while self._next < len(expected):
            record = expected[self._next]
            if not record.met:
                return record
            self._next += 1
        return None

    def _is_blocked(self, offset: int) -> bool:
        missing = self._missing()
        if missing is None or missing.holds_offset > offset:
            return False
        if self._patience is None:
            patience_s = (LIVE_S if self.live else QUIET_S) / 2**self._in_vain
            self._patience = self._loop.call_later(patience_s, self._give_up)
        return True

    def _wake(self) -> None:
        """Something came that may have been waited for."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self.turns.look()

    def _give_up(self) -> None:
        """Go on without what is missing."""
        self._patience = None
        self._in_vain += 1
        given = self.turns.first
        skipped = []
        while (missing := self._missing()) is not None and missing.holds_offset <= given:
            missing.met = True
            skipped.append(missing.name)
        if skipped:
            logger.warning("%s began earlier the last time: the order of the log is not kept", ", ".join(skipped[:10]))
        self._wake()


def _others(parent: Instance) -> bool:
    """Tell whether another task is there in which code of `parent`, or of what it called, runs."""
    current = asyncio.current_task()
    return any(
        one.id == parent.id and one.journal is parent.journal
        for task in asyncio.all_tasks()
        if task is not current
        for one in _path_of(task)
    )


def runs_below(task: asyncio.Task[Any], instance: Instance) -> bool:
    """Tell whether code of `instance`, this try of it, or of what that called, runs in a task."""
    return any(one is instance for one in _path_of(task))


def _path_of(task: asyncio.Task[Any]) -> Iterable[Instance]:
    context = context_of(task)
    instance = None if context is None else context.get(CURRENT)
    return () if instance is None else instance.path()


def context_of(task: asyncio.Task[Any]) -> Context | None:
    """Return the context that a task runs in."""
    get_context = getattr(task, "get_context", None)
    if get_context is not None:  # Python 3.12
        found: Context = get_context()
        return found
    return next((one for one in gc.get_referents(task) if isinstance(one, Context)), None)
