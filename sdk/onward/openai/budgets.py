"""What may be asked of a provider, by all executors together.

Limits are declared by the user, or learned from what a provider says in its headers.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from onward.budgets import Caller, Limit
from onward.durations import Duration, seconds
from onward.instance import Instance
from onward.v1.run_pb2 import Usage

logger = logging.getLogger(__name__)

FULL = 0.75
"""From this share on of a limit that nobody declared, calls keep to it."""

ANSWER_TOKENS = 1_000
"""What an answer is taken for where the request sets no limit to it. What answers really are is learned."""

BYTES_PER_TOKEN = 4

_WINDOWS_S = (60.0, 3_600.0, 86_400.0)
ACCOUNT = ("authorization", "api-key", "x-api-key", "openai-organization", "openai-project")
"""Headers that tell whose limits hold."""
_BLOB = re.compile(rb";base64,[A-Za-z0-9+/=_-]*")
_PART = re.compile(r"([\d.]+)(ms|d|h|m|s)")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all executors together may ask of each model of a provider with one key. A limit that the provider tells
    holds where it is lower.

    Attributes:
        tokens: Tokens, of request and answer together; None is without limit.
        requests: Requests; None is without limit.
        per: In how long: a minute, or e.g. "1d".
    """

    tokens: float | None = None
    requests: float | None = None
    per: Duration = "1m"

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("requests", self.requests)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"a budget of {name} is above 0, not {value!r}")
        if not 0 < seconds(self.per) <= 31 * 86_400:
            raise ValueError(f"a budget is for more than no time and at most 31 days, not {self.per!r}")


Budgeted = Budget | Mapping[str, Budget] | None
"""A budget for each model, or those of some by the provider's name for them."""


def budget_of(budgeted: Budgeted, model: str) -> Budget | None:
    """Return the budget of a model; None where it has none."""
    return budgeted.get(model) if isinstance(budgeted, Mapping) else budgeted


class Reservation:
    """What one try of one call has reserved, or where it stands in line for that."""

    def __init__(self, this: Instance, call: str, asked: Mapping[str, Any]) -> None:
        """Begin with none.

        Args:
            this: The try.
            call: Names it.
            asked: The request's body.
        """
        journal = this.journal
        assert journal.budgets is not None
        self._budgets = journal.budgets
        self._this = this
        self._body = asked
        self._caller = Caller(call, journal.attempt, journal.tenant)
        self._name = ""
        self._reserved = False
        self._declared = False
        self._line: set[str] = set()
        """The budgets in which it has a place."""

    async def enter(self, request: httpx2.Request, name: str, budget: Budget | None) -> float:
        """Reserve what a request may use of a budget. Returns 0 where it may go, else in how many seconds to ask again.

        Args:
            request: What would go out.
            name: The budget's.
            budget: What is declared for it.
        """
        delay_s = await self._reserve(request, name, budget)
        if delay_s:
            self._line.add(name)
            return delay_s
        self._name, self._reserved, self._declared = name, delay_s is not None, budget is not None
        self._line.discard(name)
        return 0.0

    def leave(self, *, but: str = "") -> None:
        """Give up its places in line."""
        for name in self._line - {but}:
            self._line.discard(name)
            self._budgets.settle(name, self._caller, tokens=0, requests=0)

    def heard(self, headers: httpx2.Headers, *, refused: bool = False, after_s: float = 0.0) -> None:
        """Take in what a provider said of its limits.

        Args:
            headers: Those of its response.
            refused: It took the call for one too many.
            after_s: When to ask again; 0 where it did not say.
        """
        tokens, requests = _limit(headers, "tokens"), _limit(headers, "requests")
        # What is far from limits that nobody declared goes on without asking.
        matters = self._reserved or self._declared or _nearly_used(tokens) or _nearly_used(requests)
        if refused or (matters and (tokens or requests)):
            after = after_s or None
            self._budgets.learn(self._name, refused=refused, after_s=after, tokens=tokens, requests=requests)

    def settle(self, usage: Usage | None, *, requests: int = 1) -> None:
        """Tell what the try used.

        Args:
            usage: None is what was reserved: nobody knows.
            requests: 0 where the provider counted none.
        """
        if self._reserved:
            self._reserved = False
            tokens = None if usage is None else usage.input_tokens + usage.output_tokens
            self._budgets.settle(self._name, self._caller, tokens=tokens, requests=requests)

    async def _reserve(self, request: httpx2.Request, name: str, budget: Budget | None) -> float | None:
        if budget is None:
            if not self._budgets.limited(name):
                return None
            budget = _UNDECLARED
        try:
            return await self._budgets.reserve(
                name,
                self._caller,
                estimate(request, self._body),
                tokens=budget.tokens,
                requests=budget.requests,
                window_s=seconds(budget.per),
            )
        except ConnectionError as error:
            logger.warning("%s goes without a budget: %s", self._this.name, error)
            return None


_UNDECLARED = Budget()


def account(headers: httpx2.Headers) -> tuple[str, ...]:
    """Return what tells whose limits hold for a request."""
    return tuple(headers.get(name, "") for name in ACCOUNT)


def estimate(request: httpx2.Request, body: Mapping[str, Any]) -> int:
    """Return how many tokens a request may use: of its text, and of an answer as long as it may become."""
    content = request.content
    if b";base64," in content:
        content = _BLOB.sub(b"", content)  # A picture's price is not that of its bytes.
    answer = next(
        (
            body[name]
            for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")
            if isinstance(body.get(name), int) and body[name] > 0
        ),
        0 if "input" in body and "messages" not in body and request.url.path.endswith("/embeddings") else ANSWER_TOKENS,
    )
    choices = body.get("n")
    return len(content) // BYTES_PER_TOKEN + 1 + answer * (choices if isinstance(choices, int) and choices > 0 else 1)


def _limit(headers: httpx2.Headers, kind: str) -> Limit | None:
    """Return what the headers of a response say of a limit."""
    amount = _number(headers.get(f"x-ratelimit-limit-{kind}"))
    if not amount:
        return None
    left = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
    reset_s = duration_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
    window_s = _WINDOWS_S[0]
    if left is not None and left < amount and reset_s:
        # The time in which all of it flows back tells what it is a limit for.
        told = reset_s * amount / (amount - left)
        window_s = min(_WINDOWS_S, key=lambda one: abs(math.log(one / told)))
    return Limit(amount, window_s, left)


def _nearly_used(limit: Limit | None) -> bool:
    return limit is not None and limit.left is not None and limit.left <= limit.amount * (1 - FULL)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) and 0 <= number < 1e15 else None


def duration_s(value: str) -> float:
    """Return the seconds of a time as providers tell it, "6m0s", "120ms" or "1.5"; 0 where it is none."""
    parts = _PART.findall(value)
    if "".join(number + unit for number, unit in parts) != value.strip() or not parts:
        return _number(value) or 0.0
    try:
        return sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    except ValueError:
        return 0.0
