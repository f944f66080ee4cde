"""`python -m onward_serving.health HOST:PORT`: ask a server whether it serves; exit code 0 if it does, else 1.

For the health checks of containers, whose image holds no other tool that could ask. A gRPC server is asked as its peers
ask it, encrypted where ONWARD_PEER_CERT and its like say so; http://HOST:PORT or https://HOST:PORT is an HTTP door.
"""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from onward_serving.tls import NAMED, Peers, TlsInvalid

TIMEOUT_S = 3.0
"""Shorter than the time that compose gives a check, so that the reason is told."""

# A proxy in the environment is meant for model providers, not for a server on this machine.
_DIRECT = ("grpc.enable_http_proxy", 0)


def status(address: str, peers: Peers) -> str:
    """Return SERVING, or what the server says instead, or why it says nothing."""
    if "://" in address:
        return _of_http(address)
    try:
        credentials = peers.client()
    except TlsInvalid as error:
        return str(error)
    with (
        grpc.insecure_channel(address, options=[_DIRECT])
        if credentials is None
        else grpc.secure_channel(address, credentials, options=[_DIRECT, NAMED])
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            # Its types leave out its methods.
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def _of_http(address: str) -> str:
    # Its certificate is for the name that others know it by, and this asks on its own machine.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(f"{address.rstrip('/')}/healthz", timeout=TIMEOUT_S) as response:
            return "SERVING" if response.status == 200 else f"{response.status}"
    except (OSError, ValueError) as error:  # HTTPError and URLError are of the first
        return str(error)


def main(arguments: Sequence[str]) -> int:
    """Check the one server named, say what it answers, and return the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m onward_serving.health HOST:PORT\n")
        return 2
    answer = status(arguments[0], Peers.from_env())
    sys.stdout.write(f"{answer}\n")
    return 0 if answer == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
