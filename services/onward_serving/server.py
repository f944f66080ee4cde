"""A gRPC server that is ready when it says so and ends in order."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"""Larger than any message of the contract: batches are 1 MiB, inputs 3 MiB."""

OPTIONS = [
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a second server on it
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 60_000),  # finds dead peers that would keep streams open
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),  # clients may ping idle streams (gRFC A8)
    ("grpc.max_concurrent_streams", 100_000),
    ("grpc.server_handshake_timeout_ms", 10_000),  # who connects says so, and does not only hold a connection
]
"""See gRFC A8 and A9. Streams end by Handoff, so there is no maximum connection age."""

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),  # repeating is decided where it is known to be safe
    # A new channel to an address knows nothing of the back-off that one to a process that died there is in.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # a proxy in the environment is for what leaves the house
]
"""For channels between the services."""


class Serving:
    """A server that runs.

    Attributes:
        address: HOST:PORT it listens on, the port resolved.
    """

    def __init__(self, address: str, health_servicer: health.aio.HealthServicer, services: Sequence[str]) -> None:
        self.address = address
        self._health = health_servicer
        self._services = services

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.address.rpartition(":")[2])

    async def set_ready(self, ready: bool) -> None:
        """Tell health checkers whether to send requests here. Not ready until told."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._services):
            await self._health.set(name, status)


@contextlib.asynccontextmanager
async def serving(
    add: Callable[[grpc.aio.Server], None],
    listen: str,
    *,
    services: Sequence[str],
    grace_s: float,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[Serving]:
    """Serve until the block ends; RPCs under way then have `grace_s` seconds before they are cancelled.

    Args:
        add: Adds the servicers.
        listen: HOST:PORT; port 0 picks a free one.
        services: Full names of the services, for health checks and reflection.
        grace_s: Seconds.
        credentials: What it encrypts with; None does not.

    Raises:
        OSError: Nothing can listen there.
    """
    server = grpc.aio.server(options=OPTIONS)
    add(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        if credentials is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}: is it in use? Port 0 picks a free one") from error
    await server.start()
    running = Serving(f"{listen.rpartition(':')[0]}:{port}", health_servicer, services)
    await running.set_ready(False)
    try:
        yield running
    finally:
        await running.set_ready(False)
        await server.stop(grace_s)
