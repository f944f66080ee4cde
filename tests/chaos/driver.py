"""The driver: a seed makes runs, clients and faults; they share a fleet; the checker looks at all that is left.

A run has a family: what it and its children start, and what any of them goes on as. All of it is followed, and checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from redis.asyncio import Redis
from tests.chaos import workload
from tests.chaos.fleet import Fault, Fleet

from onward import Client, OnwardError, RunNotFound, View, WrongState, testing
from onward.log import ACCEPTED
from onward.testing import Finding, Relative, Result, Seen, check, check_relatives
from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import RUN_STATE_PAUSED, Run
from onward.views import TERMINAL

ROUND_RUNS = 50
"""Runs that share a round: they begin together, and its faults are done to all of them."""

FAULTS_PER_RUN = 0.3

CANCELLED = 0.08
"""How many of the runs are cancelled on their way."""

END_S = 120.0
"""A run that has not ended so long after it began, with all that it started, is lost."""

LOOK_S = 0.05
"""How often is looked for a run that is to come."""

Say = Callable[[str], None]


@dataclass
class Calm:
    """What a run shows undisturbed.

    Attributes:
        view: Of its end.
        length: Events of its log, and of those of its family.
        children: The runs that it started, by the instance that did.
        following: What it goes on as.
    """

    view: View
    length: int
    children: dict[str, Calm] = field(default_factory=dict)
    following: Calm | None = None

    @classmethod
    def of(cls, result: Result[Any]) -> Calm:
        """Make it of a run under test."""
        calm = cls(result.view, len(result.events))
        by_name = {each.record.run_id: cls.of(each) for each in result.children}
        for event in result.events:
            if event.HasField("child_started"):
                child = calm.children[event.component_id] = by_name[event.child_started.run_id]
                calm.length += child.length
        for each in result.children:
            if (named := each.view.continued_as) in by_name:
                by_name[each.record.run_id].following = by_name[named]
        return calm


@dataclass
class Spec:
    """One run as the seed makes it.

    Attributes:
        name: Its run_id too.
        flow: The workflow.
        races: Whether its result depends on who is first.
        arguments: What it is started with.
        calm: What it shows undisturbed; of one that is cancelled only what its family does counts, of one with races
            nothing.
        length: Events of its log, undisturbed.
        cancel_after: The offset after which it is cancelled; 0 is never.
        early: Offsets after which it is sent a signal that it, or what it goes on as, waits for later.
    """

    name: str
    flow: Any
    races: bool
    arguments: dict[str, Any]
    calm: Calm
    length: int = 0
    cancel_after: int = 0
    early: list[int] = field(default_factory=list)

    @property
    def signal(self) -> str:
        """The name of the signals that are sent early."""
        return f"early-{self.name}"

    @classmethod
    async def of(cls, name: str, chance: random.Random) -> Spec:
        """Make one, and run it once undisturbed, in process."""
        kind = chance.random()
        races = 0.15 < kind < 0.4
        spoken = chance.random() < 0.25
        if kind <= 0.15:
            flow: Any = workload.chained
            arguments: dict[str, Any] = {"scripts": workload.links(name, f"early-{name}")}
        else:
            flow = workload.spoken if spoken else workload.scripted
            arguments = {"steps": workload.script(name, races=races)}
        early = iter(map(str, range(workload.EARLY)))
        asked: dict[str, Any] = workload.signals([*arguments.values()])
        answers = testing.signals({**asked, f"early-{name}": lambda _: next(early)})
        with workload.undisturbed(), testing.no_replay(), answers, _quiet():
            result = await testing.run(flow, **arguments)
            spec = cls(name, flow, races, arguments, Calm.of(result), len(result.events))
            link = spec.calm
            while result.continued_with is not None:
                result = await testing.run(flow, **result.continued_with)
                link.following = link = Calm.of(result)
                spec.calm.length += link.length
        if flow is workload.chained:
            spec.early = sorted(chance.randint(2, spec.length) for _ in range(workload.EARLY))
        return spec


@dataclass
class Round:
    """The runs and faults of one seed."""

    seed: int
    runs: list[Spec]
    faults: list[Fault]

    @classmethod
    async def of(cls, seed: int, count: int) -> Round:
        """Make it, and run everything once undisturbed, in process."""
        chance = random.Random(seed)
        runs = [await Spec.of(f"{seed}-{number}", chance) for number in range(count)]
        for spec in runs:
            if chance.random() < CANCELLED:
                spec.cancel_after = chance.randint(2, spec.length)
        some = chance.sample(runs, max(1, round(count * FAULTS_PER_RUN)))
        return cls(seed, runs, [Fault(chance, spec.name, spec.calm.length) for spec in some])


@dataclass
class Tally:
    """What rounds have come to."""

    runs: int = 0
    children: int = 0
    links: int = 0
    hits: int = 0
    attempts: int = 0
    events: int = 0
    paused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


class Driver:
    """Does rounds on a fleet.

    Args:
        fleet: The fleet.
        clients: One for each order of the Gateways.
        say: Told what happens.
    """

    def __init__(self, fleet: Fleet, clients: list[Client], say: Say) -> None:
        self._fleet = fleet
        self._clients = clients
        self._say = say
        self._known: set[str] = set()
        self.tally = Tally()

    async def do(self, this: Round) -> None:
        """Do a round and check it."""
        faults = {fault.run: fault for fault in this.faults}
        starting = asyncio.Semaphore(8)
        tally = self.tally
        async with asyncio.TaskGroup() as healing:

            async def one(number: int, spec: Spec) -> _Family:
                family = _Family(self._fleet, spec, faults.get(spec.name), self._turned(number), healing, self._say)
                async with starting:
                    client = self._turned(number)[0]
                    await client.start(spec.flow, spec.arguments, run_id=spec.name, request_id=spec.name)
                await family.follow(random.Random(f"{this.seed}/{number}"))
                return family

            families = await asyncio.gather(*(one(number, spec) for number, spec in enumerate(this.runs)))
        tally.faults.update(fault.kind for fault in this.faults if fault.done)
        tally.findings += await self._at_rest()
        made = workload.all_made()
        for family in families:
            tally.findings += await family.check(tally, made)
        tally.findings += await self._leftovers({name for family in families for name in family.members})
        tally.findings += of_all_runs()

    def _turned(self, number: int) -> list[Client]:
        """Return the clients, beginning with another one for each number."""
        first = number % len(self._clients)
        return self._clients[first:] + self._clients[:first]

    async def _at_rest(self) -> list[Finding]:
        """Wait until everything that runs asked of each other was done."""
        async with Redis.from_url(self._fleet.valkey.url, decode_responses=True) as redis:
            try:
                async with asyncio.timeout(END_S):
                    while keys := await redis.keys("onward:{*}:outbox"):
                        await _later()
            except TimeoutError:
                left = [str(entry) for key in keys for entry in await redis.zrange(str(key), 0, -1)]
                return [Finding("accepted is kept", f"after {END_S:g} s there is in the outbox: {', '.join(left)}")]
        return []

    async def _leftovers(self, names: set[str]) -> list[Finding]:
        """All that was accepted is listed, nothing else is, and nothing of it is held, waits or is due."""
        listed = Counter([run.run_id async for run in self._clients[0].list_runs(page_size=1000)])
        found = [
            Finding("accepted is kept", f"it is listed {listed[name]} times", name)
            for name in names
            if listed[name] != 1
        ]
        self._known |= names
        found += [Finding("done once", "nobody started it", name) for name in listed if name not in self._known]
        async with Redis.from_url(self._fleet.valkey.url, decode_responses=True) as redis:
            for pattern in ("onward:{*}:leases", "onward:{*}:queue:*"):
                for key in await redis.keys(pattern):
                    for ref in await redis.zrange(str(key), 0, -1):
                        what = f"it has ended and is still in {key!s}"
                        found.append(Finding("accepted is kept", what, str(ref).partition("/")[2]))
        return found


def of_all_runs() -> list[Finding]:
    """Return what should not be of what all runs have in common."""
    most = workload.most_held()
    if most <= workload.AT_ONCE:
        return []
    return [Finding("nothing is unbounded", f"{most} of scarce ran at once, and {workload.AT_ONCE} may")]


@dataclass
class _Member:
    """One run of a family.

    Attributes:
        calm: What it shows undisturbed, where that is known.
        seen: What clients saw.
    """

    calm: Calm | None
    seen: list[Seen] = field(default_factory=list)


class _Family:
    """Follows a run and all that comes of it live; does its fault when the place in the logs has come, and what else
    the runs wait for.

    Attributes:
        members: The runs by name, in the order in which they were met.
    """

    def __init__(
        self,
        fleet: Fleet,
        spec: Spec,
        fault: Fault | None,
        clients: list[Client],
        tasks: asyncio.TaskGroup,
        say: Say,
    ) -> None:
        self.members: dict[str, _Member] = {}
        self._fleet = fleet
        self._spec = spec
        self._fault = fault
        self._clients = clients
        self._tasks = tasks
        self._say = say
        self._holder = ""
        self._events = 0
        self._early = list(spec.early)
        self._sending = asyncio.Lock()
        self._calm: dict[str, Calm | None] = {}
        """What children show undisturbed, by name."""
        self._following: set[asyncio.Task[None]] = set()
        self._found: list[Finding] = []

    async def follow(self, chance: random.Random) -> None:
        """Follow all of them to their ends."""
        leaves_after = chance.randint(1, max(2, self._spec.length))
        self._meet(self._spec.name, self._spec.calm, leaves_after)
        try:
            async with asyncio.timeout(END_S):
                while self._following:
                    await asyncio.wait(self._following)
        except TimeoutError:
            for task in self._following:
                task.cancel()
            await asyncio.gather(*self._following, return_exceptions=True)

    def _meet(self, name: str, calm: Calm | None, leaves_after: int = 0) -> None:
        if name not in self.members:
            member = self.members[name] = _Member(calm)
            task = asyncio.create_task(self._follow(name, member, leaves_after), name=f"follow {name}")
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    async def _follow(self, name: str, member: _Member, leaves_after: int) -> None:
        """Follow a run from one side, or where clients come and go from several, to its end."""
        try:
            sides = [self._see(0, name, "the witness", witness=True)]
            if leaves_after:
                sides += [
                    self._see(1, name, "one on another Gateway", view="settled"),
                    self._come_and_go(name, leaves_after),
                ]
            member.seen += [one for several in await asyncio.gather(*sides) for one in several]
        except asyncio.CancelledError:
            what = f"{END_S:g} s after all began it is not there"
            with contextlib.suppress(RunNotFound):
                record = await self._clients[0].get(name)
                what = f"{END_S:g} s after all began it is {_state(record)} with {record.log.last_offset} events"
            self._found.append(Finding("accepted is kept", what, name))
        except OnwardError as error:
            self._found.append(Finding("accepted is kept", f"a client was told {error!r}", name))

    async def _see(
        self,
        number: int,
        name: str,
        who: str,
        *,
        view: Literal["raw", "settled"] = "raw",
        after: int = 0,
        leaves_after: int = 0,
        witness: bool = False,
    ) -> list[Seen]:
        events: list[Event] = []
        while not await self._is_there(name):
            await _later()
        following = self._clients[number % len(self._clients)].follow(name, after=after, view=view)
        async with contextlib.aclosing(following):
            async for event in following:
                events.append(event)
                if witness:
                    self._sees(name, event)
                if event.offset == leaves_after or _is_stuck(event):
                    break
        return [Seen(who, events, after, view, to_end=leaves_after not in [event.offset for event in events])]

    async def _is_there(self, name: str) -> bool:
        try:
            await self._clients[0].get(name)
        except RunNotFound:
            return False
        return True

    async def _come_and_go(self, name: str, leaves_after: int) -> list[Seen]:
        """Leave after an event, and come back at another Gateway."""
        [first] = await self._see(0, name, "who left early", leaves_after=leaves_after)
        if first.to_end:
            return [first]
        return [first, *await self._see(1, name, "who came back", after=leaves_after)]

    # What the witness does

    def _sees(self, name: str, event: Event) -> None:
        spec, fault, client = self._spec, self._fault, self._clients[0]
        is_root = name == spec.name
        self._events += 1
        if event.HasField("attempt_started"):
            self._holder = event.attempt_started.executor_id
        if fault is not None and not fault.done and self._events >= fault.after:
            fault.done = True
            self._tasks.create_task(self._do(fault), name=str(fault))
        if is_root and event.offset == spec.cancel_after:
            self._tasks.create_task(_told(client.cancel(name, "chaos")))
        ended = event.run_state_changed.state in TERMINAL
        while is_root and self._early and (event.offset >= self._early[0] or ended):
            del self._early[0]
            self._tasks.create_task(_told(self._send_early(str(len(spec.early) - len(self._early) - 1))))
        if (said := event.status_updated.message).startswith(workload.WAITS):
            # A status that is said again means one signal more, which nobody takes or the next wait of that name does.
            signal = said.removeprefix(workload.WAITS)
            sending = client.signal(name, signal, signal, request_id=f"{signal}-{event.offset}")
            self._tasks.create_task(_told(sending))
        if _is_paused(event) and not _is_stuck(event):
            self._tasks.create_task(_told(client.resume(name)))
        self._relative(name, event)

    def _relative(self, name: str, event: Event) -> None:
        """Meet who comes of an event."""
        calm = self.members[name].calm
        if following := event.run_state_changed.continued_as_run_id:
            self._meet(following, calm and calm.following)
        if event.HasField("child_started") and calm is not None:
            self._calm[event.child_started.run_id] = calm.children.get(event.component_id)
            if event.child_started.detached:
                # Accepted in any case. A parent that has ended meanwhile is not told, and somebody has to answer it.
                self._meet(event.child_started.run_id, self._calm[event.child_started.run_id])
        signal = event.signal_received
        if signal.name.startswith(ACCEPTED) and not (told := Run.FromString(signal.value.data)).HasField("error"):
            self._meet(told.run_id, self._calm.get(told.run_id))

    async def _send_early(self, value: str) -> None:
        async with self._sending:  # One after the other, as somebody does who waits for each to be taken in.
            await self._clients[1].signal(self._spec.name, self._spec.signal, value, request_id=f"early-{value}")

    async def _do(self, fault: Fault) -> None:
        began = time.monotonic()
        target = await fault.do(self._fleet, self._holder)
        self._say(f"{fault}: {target}, healed in {time.monotonic() - began:.1f} s")

    # Afterwards

    async def check(self, tally: Tally, made: Mapping[str, str]) -> list[Finding]:
        """Check all of them, when everything has come to rest.

        Args:
            tally: Is added to.
            made: Of what each mark was made that was made for all runs.
        """
        client = self._clients[0]
        found, relatives = self._found, []
        names = list(self.members)
        for name in names:
            try:
                record = await self._ended(name)
            except RunNotFound:
                found.append(Finding("accepted is kept", "it is not there", name))
                continue
            events = [event async for event in client.events(name)]
            relatives.append(Relative(events, record))
            kin = [run.run_id async for run in client.list_runs(parent_run_id=name)]
            new = [each for each in (*kin, record.continued_as_run_id) if each and each not in self.members]
            names += new
            self.members.update((each, _Member(self._calm.get(each))) for each in new)
            found += await self._check(name, events, record)
            tally.runs += name == self._spec.name
            tally.children += bool(record.parent_run_id)
            tally.links += bool(record.continued_as_run_id)
            tally.events += len(events)
            tally.attempts += record.attempt
            tally.paused += sum(map(_is_paused, events))
            tally.hits += sum(event.component_finished.cached for event in events)
            found += of_cache(name, events, made)
        return found + check_relatives(relatives, marks=workload.MARKS)

    async def _ended(self, name: str) -> Run:
        """Return a run, of which nobody has been told before where it was to end at once, when it has ended."""
        record = await self._clients[0].get(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._found else END_S):
                while record.state not in TERMINAL | {RUN_STATE_PAUSED}:
                    await _later()
                    record = await self._clients[0].get(name)
        return record

    async def _check(self, name: str, events: list[Event], record: Run) -> list[Finding]:
        member, spec = self.members[name], self._spec
        settled = [event async for event in self._clients[0].events(name, view="settled")]
        reference = None if spec.races or member.calm is None else member.calm.view
        cancelled: bool | None = bool(spec.cancel_after)
        if record.detached:
            cancelled = False
        elif record.parent_run_id:
            cancelled = None
        if cancelled or (cancelled is None and "CANCELLED" in (_state(record), reference and reference.state)):
            reference = None
        found = []
        if record.state == RUN_STATE_PAUSED:
            found.append(Finding("accepted is kept", f"it is PAUSED: {record.error}", name))
            reference = None
        return found + check(
            events,
            run_id=name,
            record=record,
            settled=settled,
            seen=member.seen,
            reference=reference,
            effects=workload.effects(name),
            marks=workload.MARKS,
            cancelled=cancelled,
        )


def of_cache(name: str, events: list[Event], made: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what should not be of what a run had from the cache: a failure, a fallback's answer, what nobody made.

    Args:
        name: The run.
        events: Its log.
        made: Of what each mark was made that was made for all runs.
    """
    names = {
        event.component_id: event.component_started.name for event in events if event.HasField("component_started")
    }
    for event in events:
        if not event.component_finished.cached:
            continue
        if (which := names[event.component_id]) not in ("shared", "told"):
            yield Finding("done once", f"{which} has a fallback's answer from the cache at {event.offset}", name)
        for mark in re.finditer(workload.MARKS, event.component_finished.output.data.decode()):
            if mark.group() not in made:
                what = f"{mark.group()}, from the cache at {event.offset}, was made by nobody"
                yield Finding("acknowledged before used", what, name)


def _state(record: Run) -> str:
    return testing.running.state_name(record.state)


async def _later() -> None:
    """Wait until something that nobody tells of is worth another look."""
    await asyncio.sleep(LOOK_S)


async def _told(call: Awaitable[object]) -> None:
    """Make a call that may come too late."""
    with contextlib.suppress(WrongState):
        await call


def _is_paused(event: Event) -> bool:
    return event.run_state_changed.state == RUN_STATE_PAUSED


def _is_stuck(event: Event) -> bool:
    """Whether a run is PAUSED for another reason than that its executors died too often, and so stays it."""
    return _is_paused(event) and event.run_state_changed.error.reason != "EXECUTOR_LOST"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log no warnings: what a random workflow leaves behind is not worth one."""
    logger = logging.getLogger("onward")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
