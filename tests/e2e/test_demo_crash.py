"""`make demo-crash` does what it says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "sdk" / "examples"


@pytest.mark.xdist_group("demo")
async def test_the_crash_demo_kills_and_tells() -> None:
    """Who writes is killed in mid-sentence; the text goes on on another process; and the check finds nothing."""
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / "_demo_crash.py"), "tea"),
        env={**os.environ, "ONWARD_EXAMPLE_MODEL": "scripted", "ONWARD_EXAMPLE_SPEED": "200", "COLUMNS": "120"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await demo.communicate()
    told = " ".join(output.decode().split())
    assert demo.returncode == 0, told
    victim, after, began = re.search(
        r"kill -9 of process (\d+), after event (\d+).*?at event (\d+)", told, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    assert int(began) > int(after)
    assert not Path("/proc", victim).exists()
    assert re.search(r"the text goes on, at event \d+, on process (\d+)", told)[1] != victim  # type: ignore[index]
    assert "SUCCEEDED after 2 attempts" in told
    assert "are the same: so says onward.testing.check." in told
