"""What end-to-end tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.suite import Suite, running_suite


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Suite]:
    """One of everything, and a lease of 2 s."""
    async with running_suite(tmp_path / "store") as suite:
        yield suite
