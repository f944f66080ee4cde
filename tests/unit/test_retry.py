"""When a failed try is followed by another."""

from __future__ import annotations

import math
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from onward.errors import ComponentError
from onward.retry import NotRetryable, RetryPolicy, retry_after_s


def delay_s(policy: RetryPolicy, try_number: int, error: BaseException, elapsed_s: float = 0.0) -> float | None:
    return policy.delay_s(try_number, error, elapsed_s)


def test_without_a_policy_there_is_one_try() -> None:
    """Trying again is asked for, never assumed."""
    assert delay_s(RetryPolicy(), 1, OSError()) is None


def test_attempts_count_every_try() -> None:
    """Four attempts are one try and three more."""
    policy = RetryPolicy.of(4, 0)
    assert [delay_s(policy, number, OSError()) is not None for number in (1, 2, 3, 4)] == [True, True, True, False]


def test_the_wait_is_a_random_share_of_a_bound_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter, from the first bound to the cap."""
    monkeypatch.setattr("onward.retry.uniform", lambda low, high: high - low)
    policy = RetryPolicy.of(100, "1s..30s")
    bounds = [delay_s(policy, number, OSError()) for number in (1, 2, 3, 6, 99)]
    assert bounds == [1, 2, 4, 30, 30]


def test_the_wait_stays_within_its_bound() -> None:
    """No draw is above the cap or below nothing."""
    policy = RetryPolicy.of(1_000, ("10ms", "20ms"))
    assert all(0 <= (delay_s(policy, 999, OSError()) or 0) <= 0.02 for _ in range(100))


def test_no_try_begins_after_the_total_time() -> None:
    """The wait counts as time too."""
    policy = RetryPolicy.of(4, 0, total="10s")
    assert delay_s(policy, 1, OSError(), 9.0) is not None
    assert delay_s(policy, 1, OSError(), 10.0) is None


def test_only_the_named_errors_are_tried_again() -> None:
    """`never` wins over `on`."""
    policy = RetryPolicy.of(on=OSError, never=(FileNotFoundError,))
    assert policy.covers(ConnectionError())
    assert not policy.covers(FileNotFoundError())
    assert not policy.covers(ValueError())


def test_an_error_of_a_component_below_counts_as_its_cause() -> None:
    """A policy names what user code raised, however many components it came up through."""
    inner = ComponentError(component_id="a", name="a", reason="COMPONENT_FAILED", type="OSError", message="")
    inner.__cause__ = OSError()
    outer = ComponentError(component_id="b", name="b", reason="COMPONENT_FAILED", type="OSError", message="")
    outer.__cause__ = inner
    assert RetryPolicy.of(on=OSError).covers(outer)
    assert not RetryPolicy.of(never=OSError).covers(outer)


def test_mistakes_of_the_calling_code_are_not_tried_again() -> None:
    """A value without a JSON form has none the second time either."""
    assert not RetryPolicy.of().covers(NotRetryable())


def test_what_is_no_error_is_not_tried_again() -> None:
    """An exit stays one."""
    assert not RetryPolicy.of().covers(SystemExit())


class Refused(Exception):
    def __init__(self, retry_after_s: object) -> None:
        self.retry_after_s = retry_after_s


class HTTPError(Exception):
    def __init__(self, **headers: str) -> None:
        self.response = SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Refused(2.5), 2.5),
        (HTTPError(retry_after="3"), 3.0),
        (HTTPError(retry_after_ms="250", retry_after="3"), 0.25),
        (HTTPError(retry_after="Sun, 06 Nov 1994 08:49:37 GMT"), 0.0),
        (HTTPError(retry_after="soon"), 0.0),
        (Refused("soon"), 0.0),
        (Refused(-1), 0.0),
        (Refused(10**400), 0.0),
        (Refused(math.nan), 0.0),
        (OSError(), 0.0),
        (Refused(1e300), 86_400.0),
        (HTTPError(retry_after="1e999"), 86_400.0),
        (HTTPError(retry_after="Fri, 31 Dec 9999 23:59:59 GMT"), 86_400.0),
    ],
    ids=lambda one: str(vars(one)) if isinstance(one, Exception) else "",
)
def test_an_error_may_ask_for_a_wait(error: Exception, expected: float) -> None:
    """By attribute or by a header of its response, up to a day; what is no time asks for nothing."""
    assert retry_after_s(error) == expected


def test_an_error_may_ask_for_a_wait_until_a_time() -> None:
    """As HTTP has it."""
    assert 50 < retry_after_s(HTTPError(retry_after=formatdate(time.time() + 60, usegmt=True))) <= 60


def test_the_wait_is_at_least_what_the_error_asks_for() -> None:
    """A provider that says when to come back is believed."""
    assert delay_s(RetryPolicy.of(2, 0), 1, Refused(60)) == 60


@pytest.mark.parametrize("attempts", [0, -1, 1_001, 2.0, True])
def test_attempts_have_bounds(attempts: int) -> None:
    """There is no endless retry."""
    with pytest.raises(ValueError, match="1 to 1000"):
        RetryPolicy.of(attempts)


def test_a_backoff_does_not_end_below_where_it_begins() -> None:
    """The likely typing error is caught where it is made."""
    with pytest.raises(ValueError, match="ends below where it begins"):
        RetryPolicy.of(backoff="30s..1s")
