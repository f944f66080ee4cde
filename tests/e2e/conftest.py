"""What end-to-end tests share."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.suite import Suite, running_suite


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """What a shell runs in the background ignores Ctrl-C, and so does all that it starts, unless told otherwise."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Suite]:
    """One of everything, and a lease of 2 s."""
    async with running_suite(tmp_path / "store") as suite:
        yield suite
