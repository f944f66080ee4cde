"""The client of every figure: one process, asyncio, and the generated stubs as they are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from onward.v1.gateway_service_pb2 import GetRunRequest, StartRunRequest, SubscribeRunRequest
from onward.v1.gateway_service_pb2_grpc import GatewayServiceStub
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED, Payload, Run, RunState

if TYPE_CHECKING:
    from onward.v1.gateway_service_pb2_grpc import GatewayServiceAsyncStub

OPTIONS = [("grpc.max_receive_message_length", 8 * 1024 * 1024), ("grpc.use_local_subchannel_pool", 1)]


PATIENCE_S = 60.0
"""Longer than any run here takes, also on a machine that has other things to do."""


class Undelivered(Exception):
    """A client did not get everything that a run said, once and in order."""


@contextlib.asynccontextmanager
async def connected(gateway: str) -> AsyncIterator[GatewayServiceAsyncStub]:
    """Connect to a gateway."""
    async with grpc.aio.insecure_channel(gateway, options=OPTIONS) as channel:
        async with asyncio.timeout(10):
            await channel.channel_ready()
        yield GatewayServiceStub(channel)


async def start(stub: GatewayServiceAsyncStub, workflow: str, **input: Any) -> str:
    """Start a run and return its id."""
    payload = Payload(data=json.dumps(input).encode())
    response = await stub.StartRun(StartRunRequest(workflow=workflow, input=payload))
    return response.run.run_id


@dataclass(slots=True)
class Followed:
    """What a subscriber got.

    Attributes:
        events: How many events.
        messages: How many messages they came in.
        bytes: Their size in messages, together; not counted where deltas are times.
        run: As it ended.
        stamps: Of each delta that is a time in nanoseconds, that time.
        lags: How much later it was here. Both are arrays: 90,000 tuples would have Python's garbage collector stop the
            client that measures.
    """

    events: int = 0
    messages: int = 0
    bytes: int = 0
    run: Run | None = None
    stamps: array[int] = field(default_factory=lambda: array("q"))
    lags: array[int] = field(default_factory=lambda: array("q"))


async def follow(stub: GatewayServiceAsyncStub, run_id: str, *, stamped: bool = False) -> Followed:
    """Follow a run from its beginning to its end.

    Args:
        stamped: Whether its deltas are times.

    Raises:
        Undelivered: Something is missing, doubled, or out of order, or the run did not succeed.
    """
    got = Followed()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await _follow(stub, run_id, got, stamped=stamped)
    except TimeoutError:
        run = (await stub.GetRun(GetRunRequest(run_id=run_id))).run
        raise Undelivered(
            f"run {run_id}: {PATIENCE_S:g} s after its subscriber began it has {got.events} events, and the run is "
            f"{RunState.Name(run.state)} with {run.log.last_offset}"
        ) from None
    if got.run is None:
        raise Undelivered(f"run {run_id}: the stream ended after offset {got.events} without its end")
    if got.run.state != RUN_STATE_SUCCEEDED:
        raise Undelivered(f"run {run_id} ended in state {got.run.state}: {got.run.error}")
    return got


async def _follow(stub: GatewayServiceAsyncStub, run_id: str, got: Followed, *, stamped: bool) -> None:
    after = 0
    async for response in stub.SubscribeRun(SubscribeRunRequest(run_id=run_id)):
        got.messages += 1
        if response.HasField("batch"):
            arrived = time.time_ns()
            batch = response.batch
            through = after
            for event in batch.events:
                through += 1
                if event.offset != through:
                    raise Undelivered(f"run {run_id}: what came after offset {after} is not what follows it")
                if stamped and (text := event.output_delta.text):
                    stamp = int(text)
                    got.stamps.append(stamp)
                    got.lags.append(arrived - stamp)
            if batch.after_offset != after or batch.through_offset != through:
                said = f"{batch.after_offset}..{batch.through_offset}"
                raise Undelivered(f"run {run_id}: {after}..{through} came as {said}")
            after = got.events = through
            if not stamped:
                got.bytes += batch.ByteSize()
        elif response.HasField("completed"):
            got.run = response.completed.run
