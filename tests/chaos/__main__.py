"""`python -m tests.chaos`: seeded chaos, round by round. The exit status tells whether anything was found."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from tests.chaos import workload
from tests.chaos.driver import ROUND_RUNS, Driver, Round, Tally
from tests.chaos.fleet import serving

from onward import Client


async def chaos(seed: int, runs: int, *, folder: Path, say: bool = True, details: bool = False) -> Tally:
    """Do `runs` runs in rounds, and return what they came to.

    Args:
        seed: Of the first round; the next one has the next.
        runs: How many.
        folder: For the store, the servers' logs and the ledgers.
        say: Whether to tell about each round.
        details: Whether to tell about each fault.
    """
    ledgers = folder / "ledgers"
    ledgers.mkdir()
    began = time.monotonic()

    def tell(line: str) -> None:
        if say:
            print(f"[{time.monotonic() - began:6.1f} s] {line}", flush=True)

    def tell_fault(line: str) -> None:
        if details:
            tell(f"  {line}")

    with workload.keeping(ledgers):
        async with serving(folder, {workload.LEDGER: str(ledgers)}) as fleet, AsyncExitStack() as opened:
            clients = [
                await opened.enter_async_context(Client(fleet.addresses("gateway", first=first), heartbeat=2))
                for first in range(len(fleet.of("gateway")))
            ]
            driver = Driver(fleet, clients, tell_fault)
            left = runs
            while left > 0:
                this = await Round.of(seed, min(left, ROUND_RUNS))
                before = len(driver.tally.findings)
                await driver.do(this)
                tally = driver.tally
                done = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.faults.items()))
                tell(
                    f"seed {seed}: {tally.runs} runs, {tally.children} children, {tally.links} links, "
                    f"{tally.attempts} attempts, {tally.events:,} events, {tally.hits} from the cache, "
                    f"{tally.faults.total()} faults, {tally.paused} paused, {len(tally.findings)} findings"
                )
                for finding in tally.findings[before:]:
                    tell(f"  FOUND {finding}")
                if len(tally.findings) > before:
                    tell(f"  to see it again: make chaos SEED={seed} RUNS={len(this.runs)}")
                seed += 1
                left -= len(this.runs)
            tell(f"faults: {done}")
            return driver.tally


def main() -> int:
    """Run as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the first round; by default another each time")
    parser.add_argument("--runs", type=int, default=1000, help=f"how many, {ROUND_RUNS} a round")
    parser.add_argument("--details", action="store_true", help="tell about each fault")
    given = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="onward-chaos-"))
    print(f"seed {seed}, {given.runs} runs; logs in {folder}", flush=True)
    tally = asyncio.run(chaos(seed, given.runs, folder=folder, details=given.details))
    if tally.findings:
        print(f"{len(tally.findings)} findings; logs and ledgers are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    print(f"nothing found in {tally.runs} runs: no lost run, no hole, no duplicate, no zombie byte, one view")
    return 0


if __name__ == "__main__":
    sys.exit(main())
