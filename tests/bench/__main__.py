"""`python -m tests.bench`: measure everything, or some rows, and print the table.

The exit status tells whether everything was delivered, never how fast.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
from redis.asyncio import Redis
from tests.bench.client import Undelivered
from tests.bench.figures import Figure, machine, table
from tests.bench.processes import cpu_s, machine_cpu_s
from tests.bench.rows import browsers, console, durable, idle, live, models, onboarding, outage, parked, runs, stored
from tests.bench.setting import Setting, serving

from onward_runlog.errors import RunLogError

Row = Callable[[Setting], Awaitable[list[Figure]]]

ROWS: dict[int, Row] = {
    7: idle.processes_idle,  # before anything has run
    2: runs.single,
    1: runs.many,
    3: live.deltas,
    4: live.audience,
    5: stored.history,
    6: idle.subscribers,
    9: durable.failover,
    10: durable.replay,
    11: durable.long,
    12: durable.component,
    13: parked.memory,
    14: browsers.live,
    15: browsers.idle,
    16: browsers.invoked,
    17: browsers.restarts,
    20: console.looked_at,
    21: onboarding.ingestion,
    22: models.wrapper,
    23: outage.outage,
    8: stored.listing,  # last: it leaves 100,000 runs behind
}
"""In the order in which they are measured."""


class Others:
    """How much of the machine processes that are none of ours use from here on."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._began = time.monotonic()
        self._before = self._used_s()

    def share(self) -> float:
        """Return the part of all cores, 0 to 1."""
        passed = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, (self._used_s() - self._before) / passed)

    def _used_s(self) -> float:
        pids = [*self._setting.engine.pids.values(), *self._setting.floor.pids.values()]
        ours = sum(map(cpu_s, pids)) + sum(os.times()[:4])
        return machine_cpu_s() - ours


README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->"


async def measure(rows: list[int], *, quick: bool, write: bool) -> int:
    """Return the exit status."""
    figures: list[Figure] = []
    broken = []
    async with serving(quick=quick) as setting:
        async with Redis.from_url(setting.engine.valkey.url) as redis:
            version = (await redis.info("server")).get("valkey_version", "")
        conditions = machine(setting.loop, version)
        setting.say(conditions)
        others = Others(setting)
        for number, row in ROWS.items():
            if number in rows:
                try:
                    figures += await row(setting)
                except Undelivered as problem:
                    broken.append(f"row {number}: {problem}")
                    setting.say(broken[-1])
                except (grpc.aio.AioRpcError, RunLogError) as error:
                    broken.append(f"row {number}: {error!r}")
                    traceback.print_exc()
        if 7 in rows:
            figures += idle.memory(setting, "after all rows")
        figures.sort(key=lambda figure: figure.row)
        conditions += f"; other processes used {others.share():.0%} of the machine meanwhile"
        setting.say("done")
    text = f"{table(figures)}\n\nTaken {conditions}.\n"
    print(f"\n{text}")
    if write and not broken:
        _write(text)
    for line in broken:
        print(f"not delivered: {line}", file=sys.stderr)
    return 1 if broken else 0


def _write(text: str) -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> int:
    """Run as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", default=",".join(map(str, sorted(ROWS))), help="which rows, e.g. 1,3")
    parser.add_argument("--quick", action="store_true", help="small numbers: to see that it works, not how fast")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    given = parser.parse_args()
    rows = [int(number) for number in given.rows.split(",")]
    if unknown := set(rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(map(str, unknown))}")
    return asyncio.run(measure(rows, quick=given.quick, write=given.write))


if __name__ == "__main__":
    sys.exit(main())
