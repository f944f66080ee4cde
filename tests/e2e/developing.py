"""`onward dev` as a process in a terminal of its own, for tests that do to it what developers do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from onward import Client

LINE_BYTES_MAX = 8 * 1024 * 1024

END_S = 20.0
"""Longer than anything may take to end."""


class Dev:
    """A process that was started with `onward dev`.

    Attributes:
        process: The process.
        lines: What it and the code that it runs have printed so far, in the order in which it came.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._seen = 0
        self._grown = asyncio.Condition()
        assert process.stdout is not None
        assert process.stderr is not None
        self._reading = [asyncio.create_task(self._read(stream)) for stream in (process.stdout, process.stderr)]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def ready_lines(self) -> list[str]:
        """Every line that says that it serves."""
        return [line for line in self.lines if line.startswith("ready ")]

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens, by what its ready line calls it."""
        return dict(field.split("=", 1) for field in self.ready_lines[0].split()[1:])

    @property
    def scheduler(self) -> str:
        """HOST:PORT of its Scheduler."""
        return next(line.split()[1] for line in self.lines if line.startswith("  scheduler "))

    @property
    def deployment(self) -> str:
        """The code that it began with."""
        return next(line.split()[-1].rstrip(")") for line in self.lines if line.startswith("onward dev "))

    def client(self) -> Client:
        """Return a client."""
        return Client(self.addresses["grpc"])

    async def told(self, pattern: str, *, within_s: float = 30.0) -> re.Match[str]:
        """Wait for a line that holds `pattern`, after the last one that was waited for."""
        try:
            async with asyncio.timeout(within_s), self._grown:
                while True:
                    for i in range(self._seen, len(self.lines)):
                        if found := re.search(pattern, self.lines[i]):
                            self._seen = i + 1
                            return found
                    assert not all(task.done() for task in self._reading), f"ended without {pattern!r}:\n{self}"
                    self._seen = len(self.lines)
                    await self._grown.wait()
        except TimeoutError:
            raise AssertionError(f"did not tell {pattern!r}:\n{self}") from None

    async def ended(self) -> int:
        """Wait for its end and return its exit status."""
        async with asyncio.timeout(END_S):
            await asyncio.gather(*self._reading)
            return await self.process.wait()

    async def interrupt(self) -> int:
        """Press Ctrl-C, and return its exit status."""
        os.killpg(self.pid, signal.SIGINT)
        return await self.ended()

    async def terminate(self) -> int:
        """Send SIGTERM, and return its exit status."""
        self.process.terminate()
        return await self.ended()

    def __str__(self) -> str:
        return "\n".join(self.lines)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            async with self._grown:
                self.lines.append(line.decode().rstrip("\n"))
                self._grown.notify_all()
        async with self._grown:
            self._grown.notify_all()


@contextlib.asynccontextmanager
async def begun(cwd: Path, target: str, *options: str, env: Mapping[str, str] = {}) -> AsyncIterator[Dev]:
    """Run `onward dev` in a folder, on free ports unless told otherwise, until the block ends."""
    free = {"--grpc": "127.0.0.1:0", "--http": "127.0.0.1:0"}
    given = {option.partition("=")[0] for option in options}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "onward_cli", "dev", target, *options),
        *(f"{name}={value}" for name, value in free.items() if name not in given),
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        start_new_session=True,
    )
    dev = Dev(process)
    try:
        yield dev
    finally:
        if process.returncode is None:
            process.kill()
        await dev.ended()


@contextlib.asynccontextmanager
async def developing(cwd: Path, target: str, *options: str, env: Mapping[str, str] = {}) -> AsyncIterator[Dev]:
    """Run `onward dev`, and wait until it serves."""
    async with begun(cwd, target, *options, env=env) as dev:
        await dev.told("^ready ")
        yield dev


def processes(folder: Path) -> set[int]:
    """Return every process whose command names a folder or something in it."""
    found = set()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in command.read_bytes():
                found.add(int(command.parent.name))
    return found


async def gone(pids: set[int]) -> None:
    """Wait until processes have ended; they need not be children of this one."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(END_S):
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            ended = asyncio.Event()
            loop.add_reader(handle, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(handle)
                os.close(handle)


def listens(address: str) -> bool:
    """Return whether anybody takes connections there."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=1.0):
        return True
    return False
