"""`python -m tests.bench.floor gateway|scheduler|executor --redis URL [--next HOST:PORT] [--loop asyncio|uvloop]`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib

import grpc
import uvloop
from tests.bench.floor.executor import FloorExecutor
from tests.bench.floor.gateway import FloorGateway
from tests.bench.floor.pipe import end_if_broken, pipe
from tests.bench.floor.scheduler import FloorScheduler

from onward.v1.executor_service_pb2_grpc import ExecutorServiceStub, add_ExecutorServiceServicer_to_server
from onward.v1.gateway_service_pb2_grpc import add_GatewayServiceServicer_to_server
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub, add_SchedulerServiceServicer_to_server
from onward_cli.children import die_with_parent
from onward_serving.process import announce, stop_on_signals


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(stop_on_signals(stop))
        connection = await stack.enter_async_context(pipe(arguments.redis))
        server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 100_000)])
        if arguments.next:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(arguments.next))
        tasks = []
        # Whatever else is asked of a floor it answers with UNIMPLEMENTED, as the generated servicers do.
        match arguments.service:
            case "gateway":
                gateway = FloorGateway(connection, SchedulerServiceStub(channel))  # type: ignore[abstract]
                add_GatewayServiceServicer_to_server(gateway, server)
                listening = asyncio.create_task(gateway.listen(connection.redis))
                listening.add_done_callback(end_if_broken)
                tasks.append(listening)
            case "scheduler":
                scheduler = FloorScheduler(connection, ExecutorServiceStub(channel))  # type: ignore[abstract]
                add_SchedulerServiceServicer_to_server(scheduler, server)
            case "executor":
                executor = FloorExecutor(connection)  # type: ignore[abstract]
                add_ExecutorServiceServicer_to_server(executor, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        announce(grpc=f"127.0.0.1:{port}")
        await stop.wait()
        await server.stop(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("service", choices=["gateway", "scheduler", "executor"])
    parser.add_argument("--redis", required=True)
    parser.add_argument("--next")
    parser.add_argument("--loop", default="asyncio")
    given = parser.parse_args()
    die_with_parent()
    (uvloop.run if given.loop == "uvloop" else asyncio.run)(serve(given))
