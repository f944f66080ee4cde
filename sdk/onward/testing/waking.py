"""What runs under test wait for is brought about: what the test answers, and when nobody goes on, the next time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onward.memory import MemoryRun
from onward.signature import dump_any
from onward.testing.family import Family, Member
from onward.testing.relatives import untaken
from onward.v1.event_pb2 import InputRequested, RunWaiting
from onward.v1.run_pb2 import RUN_STATE_WAITING

IN_VAIN_MAX = 100
"""So many answers of a function that a run passes over are enough."""


@dataclass
class Clock:
    """The time in runs under test: it passes as elsewhere, and whatever they sleep for passes at once."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Waker:
    """Brings it about.

    Args:
        family: The runs.
        given: The answers, by the signal's name.
        clock: Their time.
    """

    def __init__(self, family: Family, given: Mapping[str, Any], clock: Clock) -> None:
        self._family = family
        self._given = given
        self._clock = clock

    def wake(self) -> bool:
        """Bring about what runs wait for, parked or in place. Return whether there was anything."""
        waiting = [(each, what) for each in self._family.members.values() if (what := _waits_for(each)) is not None]
        answered = [self._answer(member.memory, what) for member, what in waiting]
        if not any(answered):
            timed = [(_wake_s(what), member) for member, what in waiting if what.HasField("wake_time")]
            if not timed:
                return False
            wake_s, first = min(timed, key=lambda each: each[0])
            self._clock.ahead_s += max(0.0, wake_s - self._clock())
            if first.memory.state == RUN_STATE_WAITING:
                first.memory.wake()
        for member, _ in waiting:
            member.in_place = None
        return True

    def unanswered(self) -> str:
        """Return what is waited for that nobody brings about; empty where nobody waits."""
        for member in self._family.members.values():
            what = _waits_for(member)
            if what is None or (member is not self._family.first and member.in_place is None):
                continue
            if passed := [name for name in what.signals if name in self._given]:
                return (
                    f"the run passes over the answer to {', '.join(passed)} that the test gives, and waits for ever: "
                    f"it is not of the type that the run waits for"
                )
            return f"the run waits for ever for {what.reason}: answer in a `with testing.signals({{…}})` block"
        return ""

    def _answer(self, memory: MemoryRun, waiting: RunWaiting) -> bool:
        answered = False
        for name in waiting.signals:
            if name not in self._given:
                continue
            value = self._given[name]
            passed = sum(event.signal_received.name == name for event in untaken(memory.events))
            if passed >= (IN_VAIN_MAX if callable(value) else 1):
                continue  # It was there when the run looked, and did not fit: it will not another time.
            if callable(value):
                value = value(_request(memory, name))
            memory.signal(name, dump_any(value, f"signal {name!r}"))
            answered = True
        return answered


def _waits_for(member: Member) -> RunWaiting | None:
    return member.memory.waiting if member.memory.state == RUN_STATE_WAITING else member.in_place


def _wake_s(waiting: RunWaiting) -> float:
    return waiting.wake_time.ToNanoseconds() / 1e9


def _request(memory: MemoryRun, name: str) -> InputRequested:
    asked = [event.input_requested for event in memory.events if event.input_requested.name == name]
    return asked[-1] if asked else InputRequested(name=name)
