"""Processes that dev mode starts: they tell when they serve, and never outlive their parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PARENT = "ONWARD_PARENT_PID"
"""Set for a child that must end with its parent."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, if that asked for it (Linux only)."""
    parent = os.environ.pop(PARENT, "")
    if not parent or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the kernel was told
        os._exit(1)


class Child:
    """A server process of ours.

    Attributes:
        addresses: What its ready line said, e.g. {"grpc": "127.0.0.1:50060"}; empty until it is ready.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.addresses: dict[str, str] = {}
        self._reading = asyncio.create_task(self._read(), name=f"output of {process.pid}")

    @classmethod
    async def start(cls, arguments: Sequence[str]) -> Child:
        """Start `onward` with these arguments. Its log goes to our stderr, what it prints to our stdout."""
        environment = {**os.environ, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "onward_cli",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for dev mode, which then ends its children in order
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self) -> bool:
        """Wait until it serves; False if it ended before."""
        return await asyncio.shield(self._ready)

    async def ended(self) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        status = await self._process.wait()
        await asyncio.gather(self._reading, return_exceptions=True)
        return status

    def terminate(self) -> None:
        """Ask it to drain and end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def stop(self, grace_s: float) -> int:
        """Ask it to end, kill it after `grace_s` seconds, and return its exit status."""
        self.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                return await self.ended()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self.ended()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if not self._ready.done() and line.startswith(b"ready "):
                self.addresses = dict(field.split("=", 1) for field in line.decode().split()[1:])
                self._ready.set_result(True)
            else:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        if not self._ready.done():
            self._ready.set_result(False)
