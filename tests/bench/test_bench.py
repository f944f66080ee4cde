"""The bench itself works, and what it starts ends with it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


async def test_small_numbers_of_one_row() -> None:
    """Runs of both the engine and the floor are delivered in whole, and the table says so."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.bench", "--quick", "--rows=2"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert "| 2   | a complete run, one at a time, p50" in output.decode()
