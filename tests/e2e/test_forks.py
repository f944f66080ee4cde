"""A fork is made in two steps, the copy and its acceptance, by processes that can die between them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from redis.asyncio import Redis
from tests.e2e.suite import running_suite
from tests.e2e.test_children import CHILDREN, ledger, lines  # noqa: F401 - a fixture
from tests.e2e.test_faults import check_log
from tests.proxy import proxy_to

from onward import Client, RunFailed

SIZE = 5_000_000
"""Characters that the source keeps: so much is copied in several pieces."""


@pytest.mark.parametrize("before", ["the first piece", "the acceptance"])
async def test_a_fork_is_made_once_and_whole_whoever_dies_while_it_is(
    tmp_path: Path,
    ledger: Path,  # noqa: F811
    before: str,
) -> None:
    """Kill -9 of the Scheduler that copies: another makes the fork, and what the first had copied goes by itself."""
    async with (
        running_suite(tmp_path, target=CHILDREN) as suite,
        proxy_to(suite.redis) as proxy,
    ):
        [other] = suite.schedulers
        copying = await suite.add_scheduler(redis=proxy.url)
        await suite.add_gateway(schedulers=f"{copying.addresses['grpc']},{other.addresses['grpc']}")
        async with Client(suite.gateways[1].addresses["grpc"]) as client:
            run = await client.start("tale", {"size": SIZE})
            with pytest.raises(RunFailed, match="no luck"):
                await run.result()
            proxy.hold(b"onward1_stage" if before == "the first piece" else b"onward1_submit")
            retrying = asyncio.create_task(client.retry(run.run_id))
            async with asyncio.timeout(20):
                await proxy.holds.wait()
            await suite.kill(copying)
            suite.schedulers.remove(copying)
            retried = await retrying
            assert await retried.result(40) == SIZE + len("long")
            check_log([event async for event in retried.follow()])
            assert len([each async for each in client.list_runs()]) == 2
            assert Counter(lines(ledger)) == {"long": 1, "tale tries its luck": 2}
        async with Redis.from_url(suite.redis) as redis:
            left = await redis.keys("*:fork:*")
            assert bool(left) == (before == "the acceptance")
            for key in left:
                assert await redis.pttl(key) > 0
