"""A Gateway knows when it is busy."""

from __future__ import annotations

import time

import pytest

from onward_gateway import pace
from onward_gateway.pace import LOOK_S, Pace


def work(seconds: float) -> None:
    """Use so much of a core."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_loop_that_works_is_busy() -> None:
    own = Pace()
    work(2 * LOOK_S)
    assert own.busy()


def test_a_loop_that_waits_is_not_busy_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did before does not count."""
    own = Pace()
    work(2 * LOOK_S)
    assert own.busy()
    until_now_s = pace.wanted_s()
    monkeypatch.setattr(pace, "wanted_s", lambda: until_now_s + 0.1 * LOOK_S)
    time.sleep(LOOK_S)
    assert not own.busy()


def test_where_nobody_tells_how_long_it_waited_its_own_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "SCHEDULED", pace.SCHEDULED.with_name("nothing"))
    before_s = pace.wanted_s()
    work(0.01)
    assert pace.wanted_s() - before_s >= 0.01
