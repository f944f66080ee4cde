"""A store and several of every service, as real processes that faults are done to, and that come back from each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import grpc
from tests.ports import lasting_address
from tests.proxy import Proxy, proxy_to

from onward.v1.executor_service_pb2 import WatchRequest, WatchResponse
from onward.v1.executor_service_pb2_grpc import ExecutorServiceStub
from onward_cli.children import PARENT
from onward_cli.valkey import Valkey, embedded_valkey

LEASE_S = 2.0
READY_S = 30.0
STOP_S = 15.0

WORKLOAD = Path(__file__).with_name("workload.py")


class Member:
    """One server of the fleet, which is started again, at its address, whenever it has ended.

    Attributes:
        name: E.g. "executor 2".
        kind: "executor", "gateway" or "scheduler".
        address: HOST:PORT of its gRPC server.
        proxy: Between it and the store; None where it is connected to that itself.
        executor_id: Who it is now, if it is an executor.
        whole: Held while a fault is done to it: one at a time.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, proxy: Proxy | None, log: Path, env: dict[str, str]):
        self.name = name
        self.kind = name.split()[0]
        self.address = lasting_address()
        self.proxy = proxy
        self.executor_id = ""
        self.whole = asyncio.Lock()
        self._arguments = arguments
        self._log = log
        self._env = env
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            RuntimeError: It does not.
        """
        option = "--grpc" if self.kind == "gateway" else "--listen"
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "onward_cli", *self._arguments, f"{option}={self.address}"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._env, PARENT: str(os.getpid())},
                start_new_session=True,
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(READY_S):
                async for line in self._process.stdout:
                    if line.startswith(b"ready "):
                        break
                else:
                    raise RuntimeError(f"{self.name} ended instead of serving; see {self._log}")
        except TimeoutError:
            raise RuntimeError(f"{self.name} does not serve; see {self._log}") from None
        if self.kind == "executor":
            self.executor_id = await _executor_id(self.address)

    async def kill(self) -> None:
        """End it with SIGKILL."""
        self.signal(signal.SIGKILL)
        await self._ended()

    async def stop(self) -> None:
        """Ask it to end, and wait until it has; after STOP_S it is killed."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._ended()
        except TimeoutError:
            await self.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _ended(self) -> None:
        if self._process is not None:
            await self._process.wait()


async def _executor_id(address: str) -> str:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = ExecutorServiceStub(channel).Watch(WatchRequest(), wait_for_ready=True, timeout=READY_S)
        first = await call.read()
        call.cancel()
    assert isinstance(first, WatchResponse)
    return first.executor.executor_id


class Fleet:
    """Everything that serves.

    Attributes:
        valkey: The store.
        members: All servers by name.
        store_whole: Held while a fault is done to the store.
    """

    def __init__(self, valkey: Valkey) -> None:
        self.valkey = valkey
        self.members: dict[str, Member] = {}
        self.store_whole = asyncio.Lock()

    def of(self, kind: str) -> list[Member]:
        """Return the servers of a kind."""
        return [member for member in self.members.values() if member.kind == kind]

    def addresses(self, kind: str, *, first: int = 0) -> str:
        """Return the addresses of the servers of a kind, separated by commas, beginning with one of them."""
        found = [member.address for member in self.of(kind)]
        return ",".join(found[first:] + found[:first])

    def holder(self, executor_id: str) -> Member | None:
        """Return the executor with this id; None if it is gone."""
        return next((member for member in self.of("executor") if member.executor_id == executor_id), None)


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    env: Mapping[str, str],
    *,
    target: Path = WORKLOAD,
    schedulers: int = 2,
    gateways: int = 2,
    executors: int = 3,
    slots: int = 40,
    lease_s: float = LEASE_S,
    proxied: bool = True,
) -> AsyncIterator[Fleet]:
    """Run a fleet until the block ends.

    Args:
        folder: Where the store's data and the servers' logs go.
        env: What executors find in their environment.
        target: The workflows.
        schedulers: How many.
        gateways: How many.
        executors: How many.
        slots: Runs that an executor takes.
        lease_s: Time of a lease, in seconds.
        proxied: Whether the first server of each kind has a proxy between itself and the store.
    """
    async with contextlib.AsyncExitStack() as opened:
        valkey = await opened.enter_async_context(embedded_valkey(folder / "store"))
        fleet = Fleet(valkey)

        async def add(kind: str, count: int, *arguments: str) -> None:
            adding = []
            for number in range(1, count + 1):
                name = f"{kind} {number}"
                proxy = await opened.enter_async_context(proxy_to(valkey.url)) if proxied and number == 1 else None
                redis = f"--redis={proxy.url if proxy else valkey.url}"
                log = folder / f"{kind}-{number}.log"
                member = Member(name, [kind, *arguments, redis], proxy=proxy, log=log, env=dict(env))
                fleet.members[name] = member
                adding.append(member.start())
            await asyncio.gather(*adding)

        try:
            await add("scheduler", schedulers, f"--lease-ttl={lease_s}")
            to = f"--scheduler={fleet.addresses('scheduler')}"
            await asyncio.gather(
                add("gateway", gateways, to, "--http=127.0.0.1:0"),
                add("executor", executors, str(target), to, f"--slots={slots}", "--drain-grace=0.5"),
            )
            yield fleet
        finally:
            for kind in ("gateway", "executor", "scheduler"):
                await asyncio.gather(*(member.stop() for member in fleet.of(kind)))


# Faults. Each heals by itself: it returns when what it was done to serves again.


async def kill(member: Member) -> None:
    """SIGKILL; it is started again."""
    await member.kill()
    await member.start()


async def drain(member: Member) -> None:
    """SIGTERM; it is started again when it has ended."""
    await member.stop()
    await member.start()


async def freeze(member: Member, seconds: float) -> None:
    """SIGSTOP, and SIGCONT later: past a lease what goes on is a zombie."""
    member.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        member.signal(signal.SIGCONT)


async def cut(member: Member) -> None:
    """Cut its connections to the store."""
    assert member.proxy is not None
    member.proxy.cut()


async def stall(member: Member, seconds: float) -> None:
    """Let nothing through between it and the store for a while."""
    assert member.proxy is not None
    member.proxy.stall()
    try:
        await asyncio.sleep(seconds)
    finally:
        member.proxy.flow()


async def lose_reply(member: Member, nth: int) -> None:
    """Lose the reply of the nth function call from now on that it has the store apply, and its connection with it."""
    assert member.proxy is not None
    member.proxy.lose_reply(b"onward1_", nth)


async def kill_store(fleet: Fleet) -> None:
    """SIGKILL of the store; it is started again."""
    await fleet.valkey.kill()
    await fleet.valkey.start()


async def freeze_store(fleet: Fleet, seconds: float) -> None:
    """SIGSTOP of the store, and SIGCONT later."""
    pid = fleet.valkey.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


# What a seed makes of them

KINDS = {
    "kill executor": 5,
    "freeze executor": 3,
    "drain executor": 2,
    "cut executor": 2,
    "stall executor": 1,
    "lose reply executor": 3,
    "kill scheduler": 2,
    "freeze scheduler": 1,
    "cut scheduler": 1,
    "lose reply scheduler": 2,
    "kill gateway": 3,
    "freeze gateway": 1,
    "drain gateway": 1,
    "cut gateway": 1,
    "kill store": 2,
    "freeze store": 1,
}
"""Faults, and how often each is done beside the others."""


class Fault:
    """One fault, and where in the log of which run it is done.

    Attributes:
        kind: One of KINDS.
        run: The name of the run.
        after: The offset of its log after which it is done.
        done: Whether it was.
    """

    def __init__(self, chance: random.Random, run: str, length: int) -> None:
        self.kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        self.run = run
        self.after = chance.randint(2, max(3, length - 1))
        self.done = False
        self._of_holder = chance.random() < 0.7
        self._pick = chance.random()
        self._seconds = chance.choice((0.3, 1.0, LEASE_S * 1.5, LEASE_S * 2))
        self._nth = chance.randint(1, 8)

    def __str__(self) -> str:
        return f"{self.kind} after event {self.after} of run {self.run}"

    async def do(self, fleet: Fleet, executor_id: str) -> str:
        """Do it, and return to what.

        Args:
            fleet: Where.
            executor_id: Who holds the run.
        """
        self.done = True
        what, _, kind = self.kind.rpartition(" ")
        if kind == "store":
            async with fleet.store_whole:
                await (kill_store(fleet) if what == "kill" else freeze_store(fleet, self._seconds))
            return "the store"
        member = self._member(fleet, kind, executor_id, wired=what in ("cut", "stall", "lose reply"))
        async with member.whole:
            match what:
                case "kill":
                    await kill(member)
                case "drain":
                    await drain(member)
                case "freeze":
                    await freeze(member, self._seconds)
                case "cut":
                    await cut(member)
                case "stall":
                    await stall(member, self._seconds)
                case "lose reply":
                    await lose_reply(member, self._nth)
        return member.name

    def _member(self, fleet: Fleet, kind: str, executor_id: str, *, wired: bool) -> Member:
        holder = fleet.holder(executor_id)
        if kind == "executor" and self._of_holder and holder is not None and (not wired or holder.proxy is not None):
            return holder
        members = [member for member in fleet.of(kind) if not wired or member.proxy is not None]
        return members[int(self._pick * len(members))]
