"""Who may be asked now: a provider that answers, within what all executors together may ask of it.

A call that cannot go waits, and costs no try. Inside a run a short wait is waited for in place, and for a long one the
run parks. Outside a run, and where neither budgets nor breakers answer, nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from onward.breakers import Entry
from onward.durations import text as duration_text
from onward.instance import Instance, leave
from onward.openai.budgets import Budget, Reservation, account
from onward.past import BEFORE_ASKING, BUDGET, PROVIDER
from onward.v1.event_pb2 import WAIT_KIND_BUDGET, WAIT_KIND_PROVIDER
from onward.v1.run_pb2 import Usage
from onward.waiting import What, wait

logger = logging.getLogger(__name__)

PLACE_S = 2.0
"""A shorter wait is waited for where the call is, and leaves no trace."""


class Late(Exception):
    """It would be the call's turn when its time is up."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way for a call to go.

    Attributes:
        provider: What it is called.
        model: The provider's name for what is asked for.
        request: What would go out.
        budget: What is declared for it.
    """

    provider: str
    model: str
    request: httpx2.Request
    budget: Budget | None


class Admission:
    """One try of one call: who is asked in it, and what the fleet hears of that."""

    def __init__(self, this: Instance, asked: dict[str, Any] | None, outage_s: float) -> None:
        """Begin.

        Args:
            this: The try.
            asked: The request's body.
            outage_s: How long an outage may have lasted for the call to wait for its end.
        """
        self._journal = this.journal
        self._breakers = this.journal.breakers
        self._this = this
        self._outage_s = outage_s
        self._call = f"{this.journal.namespace}/{this.journal.run_id}/{this.id}/{this.number}"
        self._budget = None if this.journal.budgets is None else Reservation(this, self._call, asked or {})
        self._breaker = ""
        """That of who is asked; empty where there is none, or it was told how that went."""

    async def enter(self, candidates: list[Candidate], deadline: float | None) -> int:
        """Wait until one of `candidates` may be asked, and return which. The first comes first.

        Args:
            candidates: One or more.
            deadline: When to give up, as time.monotonic() tells it.

        Raises:
            Late: It would be beyond the deadline, or the outage has lasted too long.
            CancelledError: The caller was cancelled, or the attempt is over.
        """
        await self._waited(candidates[0])
        try:
            while True:
                waits: list[tuple[float, str]] = []
                for index, one in enumerate(candidates):
                    delay_s, why = await self._delay_s(one)
                    if not delay_s:
                        return index
                    waits.append((delay_s, why))
                delay_s, why = first = min(waits)
                one = candidates[waits.index(first)]
                self._check_in_time(one, why, delay_s, deadline)
                if delay_s > PLACE_S:
                    if self._budget is not None:
                        self._budget.leave(but=self._budget_name(one) if why == BUDGET else "")
                    await self._wait(one, why, delay_s)
                elif why == BUDGET and delay_s >= 0.2:
                    # Others may have used less than they had reserved: half of it is looked at again.
                    await asyncio.sleep(delay_s / 2)
                else:
                    await asyncio.sleep(delay_s)
        except BaseException:
            self.left()
            raise
        finally:
            # Where the attempt is over, a later one takes the place.
            if self._budget is not None and not self._journal.closed:
                self._budget.leave()

    def heard(self, headers: httpx2.Headers, *, refused: bool = False, after_s: float = 0.0) -> None:
        """Take in what a provider said of its limits. See Reservation.heard."""
        if self._budget is not None:
            self._budget.heard(headers, refused=refused, after_s=after_s)

    def settle(self, usage: Usage | None, *, requests: int = 1) -> None:
        """Tell what the try used. See Reservation.settle."""
        if self._budget is not None:
            self._budget.settle(usage, requests=requests)

    def answered(self) -> None:
        """The provider answered, whatever it said."""
        if self._breakers is not None and self._breaker:
            name, self._breaker = self._breaker, ""
            self._breakers.answered(name, self._call)

    async def failed(self, candidate: Candidate, took_s: float) -> bool:
        """The provider did not answer, or not to the end. Returns whether nobody is answered: then it costs no try.

        Args:
            candidate: Who was asked.
            took_s: How long ago.
        """
        if self._breakers is None:
            return False
        self._breaker = ""
        try:
            down_s = await self._breakers.failed(self._breaker_name(candidate), self._call, took_s)
        except ConnectionError as error:
            logger.warning("%s failed, and nobody is told: %s", self._this.name, error)
            return False
        return down_s is not None and down_s < self._outage_s

    def left(self) -> None:
        """The try is over. Where nothing was said of its provider, nothing is known."""
        if self._breakers is not None and self._breaker:
            name, self._breaker = self._breaker, ""
            self._breakers.left(name, self._call)

    def _check_in_time(self, one: Candidate, why: str, delay_s: float, deadline: float | None) -> None:
        if delay_s == math.inf:
            outage = duration_text(self._outage_s)
            raise Late(f"{one.model or 'the model'} at {one.provider} has answered nobody for {outage} or more")
        if deadline is not None and time.monotonic() + delay_s >= deadline:
            raise Late(f"{_words(one, why)} lets it go in {delay_s:.0f} s at the earliest")

    async def _delay_s(self, one: Candidate) -> tuple[float, str]:
        """Return in how many seconds a candidate may be asked, and what for; 0 is now."""
        entry = await self._entered(one)
        if entry.delay_s:
            return (entry.delay_s if entry.down_s < self._outage_s else math.inf), PROVIDER
        if self._budget is not None:
            delay_s = await self._budget.enter(one.request, self._budget_name(one), one.budget)
            if delay_s:
                self.left()
                return delay_s, BUDGET
        return 0.0, ""

    async def _entered(self, one: Candidate) -> Entry:
        if self._breakers is None:
            return Entry()
        name = self._breaker_name(one)
        entry = Entry()
        if self._breakers.tripped(name):
            try:
                entry = await self._breakers.enter(name, self._call)
            except ConnectionError as error:
                logger.warning("%s goes without a breaker: %s", self._this.name, error)
        if not entry.delay_s:
            self._breaker = name
        return entry

    def _breaker_name(self, one: Candidate) -> str:
        return self._named(one, "breaker")

    def _budget_name(self, one: Candidate) -> str:
        return self._named(one, *account(one.request.headers))

    def _named(self, one: Candidate, *parts: str) -> str:
        url = one.request.url
        identity = "\0".join((url.scheme, url.netloc.decode(), one.model, *parts))
        return self._journal.digest(identity.encode(errors="surrogatepass")).hex()

    async def _waited(self, one: Candidate) -> None:
        """Wait again where an earlier attempt had."""
        record = self._this.record
        if record is None:
            return
        for below in [below for below in record.below.values() if below.name in BEFORE_ASKING and not below.met]:
            await self._wait(one, below.name, 0.0)

    async def _wait(self, one: Candidate, why: str, delay_s: float) -> None:
        token = self._this.enter()
        try:
            kind = WAIT_KIND_BUDGET if why == BUDGET else WAIT_KIND_PROVIDER
            told = {"provider": one.provider, "model": one.model}
            await wait(What(name=why, kind=kind, words=_words(one, why), told=told, for_s=delay_s))
        finally:
            leave(token)


def _words(one: Candidate, why: str) -> str:
    what = "rate limit" if why == BUDGET else "outage"
    return f"{what} of {one.model or 'the model'} at {one.provider}"
