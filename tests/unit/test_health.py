"""What a container's health check runs."""

from __future__ import annotations

import asyncio
import socket
import sys

import grpc

from onward_serving.server import serving


async def check(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "onward_serving.health", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode().strip()


async def test_a_server_is_healthy_from_when_it_is_ready_until_it_ends() -> None:
    """Docker sees the exit code; a person sees what the server said."""

    def add(server: grpc.aio.Server) -> None:
        """Health is all that it serves."""

    async with serving(add, "127.0.0.1:0", services=[], grace_s=1.0) as server:
        assert await check(server.address) == (1, "NOT_SERVING")
        await server.set_ready(True)
        assert await check(server.address) == (0, "SERVING")


async def test_where_nothing_listens_the_check_fails_and_says_so() -> None:
    """A port that is bound but does not listen refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        code, answer = await check(f"127.0.0.1:{bound.getsockname()[1]}")
    assert code == 1
    assert answer.startswith("UNAVAILABLE: ")
