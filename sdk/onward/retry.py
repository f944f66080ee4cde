"""When a failed try is followed by another, and after how long."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import uniform
from typing import Any

from onward.durations import Duration, seconds
from onward.errors import ComponentError

ATTEMPTS_DEFAULT = 4
ATTEMPTS_MAX = 1_000
BACKOFF_DEFAULT = "1s..30s"

RETRY_AFTER_S_MAX = 86_400.0
"""Who asks to be left alone for longer is asked again after a day."""

Errors = type[Exception] | tuple[type[Exception], ...]

sleep: ContextVar[Callable[[float], Awaitable[None]] | None] = ContextVar("onward_sleep", default=None)
"""What is done instead of waiting between tries. Tests put something quicker here."""


class TryTimeout(TimeoutError):
    """A try took longer than its component allows."""


class TotalTimeout(TryTimeout):
    """A component took longer than it may in all: no further try follows."""


class NotRetryable(TypeError):
    """A mistake in the calling code, which no further try can heal."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a component is tried. The default is once.

    Attributes:
        attempts: Tries in all, 1 to 1,000.
        backoff_s: Shortest and longest upper bound of the wait between tries, in seconds. The bound doubles from the
            one to the other; the wait is a random share of it ("full jitter"), so that those who failed together do not
            return together.
        total_s: No further try begins once this much time has passed since the first did. None is no such limit.
        on: Errors that are worth another try.
        never: Errors that are not, even where `on` names them.
    """

    attempts: int = 1
    backoff_s: tuple[float, float] = (0.0, 0.0)
    total_s: float | None = None
    on: Errors = Exception
    never: Errors = ()

    @classmethod
    def of(
        cls,
        attempts: int = ATTEMPTS_DEFAULT,
        backoff: Duration | tuple[Duration, Duration] = BACKOFF_DEFAULT,
        *,
        total: Duration | None = None,
        on: Errors = Exception,
        never: Errors = (),
    ) -> RetryPolicy:
        """Return the policy as `Component.retry` takes it.

        Raises:
            ValueError: A bound or a duration makes no sense.
        """
        if type(attempts) is not int or not 1 <= attempts <= ATTEMPTS_MAX:
            raise ValueError(f"attempts counts every try, the first included: 1 to {ATTEMPTS_MAX}, not {attempts!r}")
        if isinstance(backoff, str) and ".." in backoff:
            low, _, high = backoff.partition("..")
            backoff = (low, high)
        first, last = backoff if isinstance(backoff, tuple) else (backoff, backoff)
        backoff_s = (seconds(first), seconds(last))
        if backoff_s[0] > backoff_s[1]:
            raise ValueError(f"backoff {backoff!r} ends below where it begins")
        return cls(attempts, backoff_s, None if total is None else seconds(total), on, never)

    def covers(self, error: BaseException) -> bool:
        """Tell whether `error` is of a kind that is tried again, where tries are left."""
        if self.attempts == 1 or not isinstance(error, Exception) or isinstance(error, NotRetryable | TotalTimeout):
            return False
        return is_one(error, self.on) and not is_one(error, self.never)

    def delay_s(self, try_number: int, error: BaseException, elapsed_s: float) -> float | None:
        """Return how long to wait before the try after `try_number` (from 1), or None where none follows."""
        if try_number >= self.attempts or not self.covers(error):
            return None
        first, last = self.backoff_s
        # 2 ** 64 is beyond any cap, and a float.
        delay = uniform(0, min(last, first * 2 ** min(try_number - 1, 64)))
        delay = max(delay, retry_after_s(error))
        if self.total_s is not None and elapsed_s + delay >= self.total_s:
            return None
        return delay


ONCE = RetryPolicy()


def is_one(error: BaseException, kinds: Errors) -> bool:
    """Tell whether `error` is of one of these kinds, or is the ComponentError of one that began below."""
    # What a component below raised arrives wrapped: a policy names the error that the user's code raised.
    cause: BaseException | None = error
    while isinstance(cause, ComponentError) and cause.__cause__ is not None:
        cause = cause.__cause__
    return _is_one(error, kinds) or _is_one(cause, kinds)


def _is_one(error: BaseException | None, kinds: Errors) -> bool:
    if isinstance(error, kinds):
        return True
    if not isinstance(error, ComponentError):
        return False
    # One that an earlier attempt recorded comes without its cause: of that there is the name of its type.
    seen = list(kinds) if isinstance(kinds, tuple) else [kinds]
    for kind in seen:  # It grows meanwhile.
        if type_name(kind) == error.type:
            return True
        seen.extend(one for one in kind.__subclasses__() if one not in seen)
    return False


def type_name(kind: type[BaseException]) -> str:
    """Return how the type of an error is told."""
    if issubclass(kind, TryTimeout):
        return TimeoutError.__qualname__
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def asked(error: Any, name: str) -> Any:
    """Return what an error says of itself by an attribute; None where it has none, or has a property that fails."""
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - whatever a user's property raises
        return None


def retry_after_s(error: BaseException) -> float:
    """Return how many seconds `error` itself asks to wait, by attribute or by header of its HTTP response; else 0."""
    after = asked(error, "retry_after_s")
    if after is not None:
        return _wait_s(after, 1.0)
    headers = asked(asked(error, "response"), "headers")
    if not hasattr(headers, "get"):
        return 0.0
    return _wait_s(headers.get("retry-after-ms"), 0.001) or _wait_s(headers.get("retry-after"), 1.0)


def _wait_s(value: Any, unit_s: float) -> float:
    """Return the seconds that a number, or a date, stands for; 0 where it makes no sense."""
    try:
        wait_s = float(value) * unit_s
    except (TypeError, ValueError, OverflowError):
        try:
            wait_s = parsedate_to_datetime(str(value)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    # NaN is not above 0.
    return min(wait_s, RETRY_AFTER_S_MAX) if wait_s > 0 else 0.0
