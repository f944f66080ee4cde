"""Processes that dev mode starts: they tell their parent when they serve, and never outlive it.

What they print is theirs: stdout and stderr are those of the parent, with nobody in between who could be in the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from onward_serving.process import announce

PARENT = "ONWARD_PARENT_PID"
"""Set for a child that must end with its parent."""

READY = "ONWARD_READY_FD"
"""Set for a child that tells its parent, and nobody else, when it serves: the file descriptor to write to."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, if that asked for it (Linux only)."""
    parent = os.environ.pop(PARENT, "")
    if not parent or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the kernel was told
        os._exit(1)


def tell_ready(**addresses: str) -> None:
    """Say that this process serves: to the one that started it if that asked for it, else to whoever reads stdout."""
    parent = os.environ.pop(READY, "")
    if not parent:
        announce(**addresses)
        return
    with open(int(parent), "w") as pipe, contextlib.redirect_stdout(pipe):  # noqa: PTH123 - a descriptor is no path
        announce(**addresses)


class Child:
    """A server process of ours.

    Attributes:
        addresses: What its ready line said, e.g. {"grpc": "127.0.0.1:50060"}; empty until it is ready.
    """

    def __init__(self, process: asyncio.subprocess.Process, pipe: int) -> None:
        self._process = process
        self.addresses: dict[str, str] = {}
        self._reading = asyncio.create_task(self._read(pipe), name=f"ready line of {process.pid}")

    @classmethod
    async def start(cls, arguments: Sequence[str], env: Mapping[str, str] = {}) -> Child:
        """Start `onward` with these arguments, and these variables beside those of this process."""
        pipe, childs = os.pipe()
        ours = {PARENT: str(os.getpid()), READY: str(childs), "PYTHONUNBUFFERED": "1"}
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "onward_cli",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **env, **ours},
                pass_fds=[childs],
                start_new_session=True,  # Ctrl-C is for dev mode, which then ends its children in order
            )
        except BaseException:
            os.close(pipe)
            raise
        finally:
            os.close(childs)
        return cls(process, pipe)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self) -> bool:
        """Wait until it serves; False if it ended before."""
        # The pipe's end proves nothing: what user code started may still hold it.
        ended = asyncio.create_task(self._process.wait())
        await asyncio.wait({self._reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        return bool(self.addresses)

    async def ended(self) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        status = await self._process.wait()
        self._reading.cancel()
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

    async def _read(self, pipe: int) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(pipe, readable.set)
        line = b""
        try:
            while not line.endswith(b"\n"):
                await readable.wait()
                readable.clear()
                piece = os.read(pipe, 4096)
                if not piece:
                    return
                line += piece
        finally:
            loop.remove_reader(pipe)
            os.close(pipe)
        self.addresses = dict(field.split("=", 1) for field in line.decode().split()[1:])
