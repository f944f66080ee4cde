"""The driver: a seed makes runs, clients and faults; they share a fleet; the checker looks at all that is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from redis.asyncio import Redis
from tests.chaos import workload
from tests.chaos.fleet import Fault, Fleet

from onward import Client, OnwardError, View, WrongState, testing
from onward.testing import Finding, Seen, check
from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import RUN_STATE_PAUSED, Run

ROUND_RUNS = 50
"""Runs that share a round: they begin together, and its faults are done to all of them."""

FAULTS_PER_RUN = 0.2

CANCELLED = 0.08
"""How many of the runs are cancelled on their way."""

END_S = 60.0
"""A run that has not ended so long after all others, with every fault healed, is lost."""

Say = Callable[[str], None]


@dataclass
class Spec:
    """One run as the seed makes it.

    Attributes:
        name: Its run_id too.
        flow: The workflow.
        races: Whether its result depends on who is first.
        steps: Its script.
        reference: What it shows undisturbed; None where that depends.
        length: Events of its log, undisturbed.
        cancel_after: The offset after which it is cancelled; 0 is never.
    """

    name: str
    flow: Any
    races: bool
    steps: list[Any]
    reference: View | None = None
    length: int = 0
    cancel_after: int = 0


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
        runs = []
        for number in range(count):
            races = chance.random() < 0.25
            flow = workload.spoken if chance.random() < 0.25 else workload.scripted
            name = f"{seed}-{number}"
            steps = workload.script(name, races=races, waits=flow is workload.scripted)
            runs.append(Spec(name, flow, races, steps))
        for spec in runs:
            answers = testing.signals(workload.signals(spec.steps))
            with workload.undisturbed(), testing.no_replay(), answers, _quiet():
                calm = await testing.run(spec.flow, spec.name, spec.steps)
            spec.length = len(calm.events)
            if chance.random() < CANCELLED:
                spec.cancel_after = chance.randint(2, spec.length)
            elif not spec.races:
                spec.reference = calm.view
        some = chance.sample(runs, max(1, round(count * FAULTS_PER_RUN)))
        return cls(seed, runs, [Fault(chance, spec.name, spec.length) for spec in some])


@dataclass
class Tally:
    """What rounds have come to."""

    runs: int = 0
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
        self.tally = Tally()

    async def do(self, this: Round) -> None:
        """Do a round and check it."""
        faults = {fault.run: fault for fault in this.faults}
        starting = asyncio.Semaphore(8)
        async with asyncio.TaskGroup() as healing:

            async def one(number: int, spec: Spec) -> list[Finding]:
                fault = faults.get(spec.name)
                witness = _Witness(self._fleet, spec, fault, self._client(number), healing, self._say)
                async with starting:
                    arguments = {"run": spec.name, "steps": spec.steps}
                    await self._client(number).start(spec.flow, arguments, run_id=spec.name, request_id=spec.name)
                return await self._follow(number, spec, witness, random.Random(f"{this.seed}/{number}"))

            found = await asyncio.gather(*(one(number, spec) for number, spec in enumerate(this.runs)))
        self.tally.faults.update(fault.kind for fault in this.faults if fault.done)
        self.tally.findings += [each for findings in found for each in findings]
        self.tally.findings += await self._leftovers({spec.name for spec in this.runs})

    def _client(self, number: int) -> Client:
        return self._clients[number % len(self._clients)]

    async def _follow(self, number: int, spec: Spec, witness: _Witness, chance: random.Random) -> list[Finding]:
        """Follow a run from several sides to its end, and check it."""
        leaves_after = chance.randint(1, max(2, spec.length))
        try:
            async with asyncio.timeout(END_S):
                seen = await asyncio.gather(
                    self._see(number, spec, "the witness", witness=witness),
                    self._see(number + 1, spec, "one on another Gateway", view="settled"),
                    self._come_and_go(number, spec, leaves_after),
                )
                record = await self._client(number).get(spec.name)
        except TimeoutError:
            record = await self._client(number).get(spec.name)
            state = testing.running.state_name(record.state)
            what = f"{END_S:g} s after it began it is {state} with {record.log.last_offset} events"
            return [Finding("accepted is kept", what, spec.name)]
        except OnwardError as error:
            return [Finding("accepted is kept", f"a client was told {error!r}", spec.name)]
        return await self._check(number, spec, record, [one for several in seen for one in several])

    async def _see(
        self,
        number: int,
        spec: Spec,
        who: str,
        *,
        view: Literal["raw", "settled"] = "raw",
        after: int = 0,
        leaves_after: int = 0,
        witness: _Witness | None = None,
    ) -> list[Seen]:
        events: list[Event] = []
        async with contextlib.aclosing(self._client(number).follow(spec.name, after=after, view=view)) as following:
            async for event in following:
                events.append(event)
                if witness is not None:
                    witness.sees(event)
                if event.offset == leaves_after or _is_stuck(event):
                    break
        return [Seen(who, events, after, view, to_end=leaves_after not in [event.offset for event in events])]

    async def _come_and_go(self, number: int, spec: Spec, leaves_after: int) -> list[Seen]:
        """Leave after an event, and come back at another Gateway."""
        [first] = await self._see(number, spec, "who left early", leaves_after=leaves_after)
        if first.to_end:
            return [first]
        return [first, *await self._see(number + 1, spec, "who came back", after=leaves_after)]

    async def _check(self, number: int, spec: Spec, record: Run, seen: list[Seen]) -> list[Finding]:
        client = self._client(number)
        events = [event async for event in client.events(spec.name)]
        settled = [event async for event in client.events(spec.name, view="settled")]
        self.tally.runs += 1
        self.tally.events += len(events)
        self.tally.attempts += record.attempt
        reference = spec.reference
        found = []
        self.tally.paused += sum(map(_is_paused, events))
        if record.state == RUN_STATE_PAUSED:
            found.append(Finding("accepted is kept", f"it is PAUSED: {record.error}", spec.name))
            reference = None
        return found + check(
            events,
            run_id=spec.name,
            record=record,
            settled=settled,
            seen=seen,
            reference=reference,
            effects=workload.effects(spec.name),
            marks=workload.MARKS,
            cancelled=bool(spec.cancel_after),
        )

    async def _leftovers(self, names: set[str]) -> list[Finding]:
        """All that was accepted is listed, and nothing of it is held, waits or is due."""
        listed = Counter([run.run_id async for run in self._clients[0].list_runs(page_size=1000)])
        found = [
            Finding("accepted is kept", f"it is listed {listed[name]} times", name)
            for name in names
            if listed[name] != 1
        ]
        async with Redis.from_url(self._fleet.valkey.url, decode_responses=True) as redis:
            for pattern in ("onward:{*}:leases", "onward:{*}:queue:*"):
                for key in await redis.keys(pattern):
                    for ref in await redis.zrange(str(key), 0, -1):
                        what = f"it has ended and is still in {key!s}"
                        found.append(Finding("accepted is kept", what, str(ref).partition("/")[2]))
        return found


class _Witness:
    """Follows a run live: does its fault when the place in the log has come, and what else the run waits for."""

    def __init__(
        self, fleet: Fleet, spec: Spec, fault: Fault | None, client: Client, tasks: asyncio.TaskGroup, say: Say
    ) -> None:
        self._fleet = fleet
        self._spec = spec
        self._fault = fault
        self._client = client
        self._tasks = tasks
        self._say = say
        self._holder = ""

    def sees(self, event: Event) -> None:
        name, spec, fault = self._spec.name, self._spec, self._fault
        if event.HasField("attempt_started"):
            self._holder = event.attempt_started.executor_id
        if fault is not None and not fault.done and event.offset >= fault.after:
            fault.done = True
            self._tasks.create_task(self._do(fault), name=str(fault))
        if event.offset == spec.cancel_after:
            self._tasks.create_task(_told(self._client.cancel(name, "chaos")))
        if (said := event.status_updated.message).startswith(workload.WAITS):
            # A status that is said again means one signal more, which nobody takes or the next wait of that name does.
            signal = said.removeprefix(workload.WAITS)
            sending = self._client.signal(name, signal, signal, request_id=f"{signal}-{event.offset}")
            self._tasks.create_task(_told(sending))
        if _is_paused(event) and not _is_stuck(event):
            self._tasks.create_task(_told(self._client.resume(name)))

    async def _do(self, fault: Fault) -> None:
        began = time.monotonic()
        target = await fault.do(self._fleet, self._holder)
        self._say(f"{fault}: {target}, healed in {time.monotonic() - began:.1f} s")


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
