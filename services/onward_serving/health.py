"""`python -m onward_serving.health HOST:PORT`: ask a gRPC server whether it serves; exit code 0 if it does, else 1.

For the health checks of containers, whose image holds no other tool that could ask.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0
"""Shorter than the time that compose gives a check, so that the reason is told."""


def status(address: str) -> str:
    """Return SERVING, or what the server says instead, or why it says nothing."""
    # A proxy in the environment is meant for model providers, not for a server on this machine.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            # Its types leave out its methods.
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def main(arguments: Sequence[str]) -> int:
    """Check the one server named, say what it answers, and return the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m onward_serving.health HOST:PORT\n")
        return 2
    answer = status(arguments[0])
    sys.stdout.write(f"{answer}\n")
    return 0 if answer == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
