"""What every row gets."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import processes
from tests.bench.processes import Suite

SLOTS = 2_000
"""More than any row has runs at a time: nothing here waits for a slot."""


@dataclass(frozen=True)
class Setting:
    """The engine and the floor, both serving.

    Attributes:
        engine: The suite.
        floor: The same without an engine.
        loop: The event loop of all of them.
        quick: Whether small numbers will do: to see that it works, not how fast.
    """

    engine: Suite
    floor: Suite
    loop: str
    quick: bool
    began: float = dataclasses.field(default_factory=time.monotonic)

    def both(self, turn: int) -> tuple[Suite, Suite]:
        """Return both, in turns the one and the other first."""
        return (self.engine, self.floor) if turn % 2 == 0 else (self.floor, self.engine)

    def say(self, line: str) -> None:
        """Tell how far it is."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {line}", flush=True)


@contextlib.asynccontextmanager
async def serving(*, quick: bool) -> AsyncIterator[Setting]:
    """Start everything, and end it with the block."""
    with tempfile.TemporaryDirectory(prefix="onward-bench-") as folder:
        data = Path(folder)
        async with processes.engine(data / "engine", slots=SLOTS) as engine:
            loop = processes.loop_of(engine.servers["gateway"].pid)
            async with processes.floor(data / "floor", loop=loop) as floor:
                yield Setting(engine, floor, loop, quick)
