"""A Gateway is nobody's single point of anything: it comes and goes, and its readers lose nothing."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.suite import running_suite
from tests.restarts import Gateway, restarted


async def test_a_gateway_restarted_under_its_readers_costs_them_nothing(tmp_path: Path) -> None:
    """SIGTERM and SIGKILL in turns, under browsers and gRPC clients: every event once. `make bench` does it larger."""
    async with running_suite(tmp_path) as suite, suite.client() as client:
        gateway = Gateway(suite.redis, suite.scheduler_addresses)
        await gateway.start()
        try:
            runs = [await client.start("talk", {"count": 100, "pause_s": 0.08}) for _ in range(4)]
            outcome = await restarted(gateway, [run.run_id for run in runs], readers=12, restarts=4, pause_s=0.3)
        finally:
            await gateway.end(kill=False)
    assert outcome.readers == len(outcome.seen) == 24
    assert outcome.connections > 12, "they were disturbed"
    assert (outcome.lost, outcome.doubled) == (0, 0), outcome
    assert outcome.events > 24 * 100
