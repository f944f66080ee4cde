"""How a model call is made inside a run: its tries, its limits, what of it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from onward.durations import Duration, seconds
from onward.retry import RetryPolicy


@dataclass(frozen=True)
class Stall:
    """How long a provider may be silent, and how often that is tried.

    Attributes:
        after: The limit.
        tries: Tries that may end so, the first included. They do not count among the policy's attempts.
    """

    after: Duration
    tries: int = 2

    def __post_init__(self) -> None:
        if seconds(self.after) <= 0:
            raise ValueError("a stall of 0 leaves no time for an answer")
        if self.tries < 1:
            raise ValueError(f"tries counts the first too: 1 or more, not {self.tries}")

    @cached_property
    def after_s(self) -> float:
        """The limit in seconds."""
        return seconds(self.after)


@dataclass(frozen=True, kw_only=True)
class ModelPolicy:
    """How a client's calls are made inside a run. Outside a run the client is the `openai` package's own.

    Attributes:
        attempts: Rounds of tries, the first included: in a round every provider is asked once. None is the client's
            `max_retries` and one.
        backoff: How long to wait at most before the second round, and before any. What the provider asks for
            (Retry-After) is waited for where it is longer.
        total: No further try begins when this much time has passed since the first did. None is without limit.
        first_token: How long a stream may take to its first token, counted from the request.
        between_tokens: How long it may be silent after that.
        outage: While a provider answers nobody in the whole fleet, calls wait for it, and none of their tries counts.
            That ends for an outage which has lasted so long: then they fail. 0 is not to wait at all.
        private: Hide request and answer from everybody who reads the log.
        count_tokens: Ask for the usage of streams that do not ask for it themselves. The chunk that tells it is not
            given to the caller.
    """

    attempts: int | None = None
    backoff: Duration | tuple[Duration, Duration] = "0.5s..30s"
    total: Duration | None = None
    first_token: Stall = Stall("5m")
    between_tokens: Stall = Stall("1m")
    outage: Duration = "1h"
    private: bool = False
    count_tokens: bool = True

    def __post_init__(self) -> None:
        self.retry(1)
        seconds(self.outage)

    @property
    def outage_s(self) -> float:
        """`outage` in seconds."""
        return seconds(self.outage)

    def retry(self, attempts: int) -> RetryPolicy:
        """Return the policy of tries, with `attempts` where this one does not say."""
        return RetryPolicy.of(self.attempts or attempts, self.backoff, total=self.total)


DEFAULT = ModelPolicy()
