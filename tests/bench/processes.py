"""The suite's processes and the floor's, started as anybody would start them, and what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onward_cli.children import PARENT
from onward_cli.valkey import Valkey, embedded_valkey

ROOT = Path(__file__).parents[2]

STOP_GRACE_S = 5.0

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Server:
    """A server process.

    Attributes:
        name: What it is.
        pid: Its process id.
        addresses: What its ready line said.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, addresses: dict[str, str]) -> None:
        self.name = name
        self.pid = process.pid
        self.addresses = addresses
        self._process = process

    async def stop(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@dataclass(frozen=True)
class Suite:
    """A store, a gateway, a scheduler and an executor that serve.

    Attributes:
        name: "engine" or "floor".
        valkey: The store.
        servers: The processes beside it.
        gateway: HOST:PORT.
        gateway_command: What starts another Gateway.
    """

    name: str
    valkey: Valkey
    servers: dict[str, Server]
    gateway: str
    gateway_command: Sequence[str]

    @property
    def pids(self) -> dict[str, int]:
        """Return every process id, by what the process is."""
        return {"valkey": self.valkey.pid} | {name: server.pid for name, server in self.servers.items()}


@contextlib.asynccontextmanager
async def engine(data: Path, *, slots: int) -> AsyncIterator[Suite]:
    """Run the suite, by its own commands."""
    async with contextlib.AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(embedded_valkey(data))
        log = stack.enter_context((data / "services.log").open("ab"))
        servers: dict[str, Server] = {}

        async def start(*command: str) -> dict[str, str]:
            name = command[0]
            server = await _start(name, ["-m", "onward_cli", *command], log.fileno(), Path(log.name))
            stack.push_async_callback(server.stop)
            servers[name] = server
            return server.addresses

        redis = f"--redis={valkey.url}"
        scheduler = (await start("scheduler", redis, "--listen=127.0.0.1:0"))["grpc"]
        command = ["gateway", redis, f"--scheduler={scheduler}", "--grpc=127.0.0.1:0", "--http=127.0.0.1:0"]
        gateway = await start(*command)
        workflows = str(Path(__file__).with_name("workflows.py"))
        await start(
            "executor", workflows, redis, f"--scheduler={scheduler}", "--listen=127.0.0.1:0", f"--slots={slots}"
        )
        yield Suite("engine", valkey, servers, gateway["grpc"], ["-m", "onward_cli", *command])


@contextlib.asynccontextmanager
async def floor(data: Path, *, loop: str) -> AsyncIterator[Suite]:
    """Run the floor, on the event loop that the suite runs on."""
    async with contextlib.AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(embedded_valkey(data))
        log = stack.enter_context((data / "services.log").open("ab"))
        servers: dict[str, Server] = {}
        address = ""
        for name in ("executor", "scheduler", "gateway"):
            command = ["-m", "tests.bench.floor", name, f"--redis={valkey.url}", f"--loop={loop}"]
            if address:
                command.append(f"--next={address}")
            server = await _start(name, command, log.fileno(), Path(log.name))
            stack.push_async_callback(server.stop)
            servers[name] = server
            address = server.addresses["grpc"]
        yield Suite("floor", valkey, servers, address, command)


@contextlib.asynccontextmanager
async def another_gateway(suite: Suite) -> AsyncIterator[Server]:
    """Run one more Gateway of a suite."""
    with tempfile.NamedTemporaryFile() as log:
        server = await _start("gateway", suite.gateway_command, log.fileno(), Path(log.name))
        try:
            yield server
        finally:
            await server.stop()


async def _start(name: str, arguments: Sequence[str], log: int, log_path: Path) -> Server:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env={**os.environ, PARENT: str(os.getpid())},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            async for line in process.stdout:
                if line.startswith(b"ready "):
                    addresses = dict(field.split("=", 1) for field in line.decode().split()[1:])
                    return Server(name, process, addresses)
    except BaseException:
        process.kill()
        raise
    raise RuntimeError(f"{name} did not start:\n{log_path.read_text()[-4000:]}")


def loop_of(pid: int) -> str:
    """Return the name of the event loop that a process runs on."""
    return "uvloop" if "uvloop/loop" in Path(f"/proc/{pid}/maps").read_text() else "asyncio"


def resident_kib(pid: int) -> int:
    """Return how much memory of a process is resident, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(pid)


def cpu_by_process(suite: Suite) -> dict[str, float]:
    """Return the processor time that each process of a suite, and this one, has used, in seconds."""
    return {name: cpu_s(pid) for name, pid in suite.pids.items()} | {"client": sum(os.times()[:2])}


def machine_cpu_s() -> float:
    """Return the processor time that everything on the machine has used since it was started, in seconds."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
