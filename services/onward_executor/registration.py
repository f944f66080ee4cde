"""Keeps this executor known to Schedulers: a registration lives by repetition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc

from onward.v1.executor_service_pb2 import Executor
from onward.v1.scheduler_service_pb2 import RegisterExecutorRequest
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from onward_serving.tls import Peers

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
RETRY_S = 0.2


async def register_for_ever(
    executor: Executor, schedulers: Sequence[str], peers: Peers, *, registered: Callable[[float], None]
) -> None:
    """Register every third of the lease time with the first Scheduler that answers, until cancelled.

    Args:
        executor: Who this is, with its workflows.
        schedulers: HOST:PORT of each Scheduler.
        peers: How they know this one.
        registered: Called after each success with the lease time in seconds.
    """
    channels = [peers.channel(address) for address in schedulers]
    stubs = [SchedulerServiceStub(channel) for channel in channels]
    request = RegisterExecutorRequest(executor=executor)
    missing = False
    try:
        while True:
            for stub in stubs:
                try:
                    response = await stub.RegisterExecutor(request, timeout=TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    problem = error.details()
                    continue
                ttl_s = response.lease_ttl.ToMilliseconds() / 1000
                registered(ttl_s)
                if missing:
                    logger.info("registered again")
                    missing = False
                await asyncio.sleep(ttl_s / 3)
                break
            else:
                if not missing:
                    logger.warning("waiting for a Scheduler at %s: %s", ", ".join(schedulers), problem)
                    missing = True
                await asyncio.sleep(RETRY_S)
    finally:
        for channel in channels:
            await channel.close()
