"""The connection that all calls of a process share, and what a store must be to be served from."""

from __future__ import annotations

import asyncio
import ssl
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import DataError, ResponseError
from tests.certificates import Authority
from tests.proxy import proxy_to
from tests.runlog import a_run, eventually, status

from onward_cli.valkey import embedded_valkey
from onward_runlog import connection, keys
from onward_runlog.connection import Connection
from onward_runlog.deployments import Deployments
from onward_runlog.errors import StoreUnavailable, StoreUnfit
from onward_runlog.leases import Heartbeat
from onward_runlog.runs import Runs
from onward_runlog.store import PARTITIONS, VERSION, Store, library, open_store, revision_of
from onward_runlog.subscription import messages
from onward_runlog.writer import LogWriter


async def test_a_store_is_set_up_once(redis_url: str) -> None:
    """Whoever comes first writes how many partitions there are and the secret; everybody after reads them."""
    async with open_store(redis_url) as first, open_store(redis_url) as second:
        assert (first.partitions, first.digest_key) == (second.partitions, second.digest_key)
        assert (first.partitions, len(first.digest_key)) == (PARTITIONS, 32)


async def test_who_only_reads_waits_until_it_is_set_up(redis_url: str) -> None:
    """It says so once, and writes nothing."""
    said: list[str] = []
    waits = asyncio.Event()

    def waiting(why: str) -> None:
        said.append(why)
        waits.set()

    async def open_reading() -> int:
        async with open_store(redis_url, read_only=True, waiting=waiting) as store:
            return store.partitions

    reading = asyncio.create_task(open_reading())
    await waits.wait()
    async with Redis.from_url(redis_url) as redis:
        assert await redis.dbsize() == 0
    async with open_store(redis_url), asyncio.timeout(5):
        assert await reading == PARTITIONS
    assert said == ["no Scheduler has set it up yet"]


async def test_who_only_reads_loads_no_functions(redis_url: str) -> None:
    async with open_store(redis_url) as store, open_store(redis_url, read_only=True) as reader:
        await store.command("FUNCTION", "FLUSH")
        with pytest.raises(ResponseError, match="Function not found"):
            await reader.call("held", keys.base(0), "e1")
        assert await store.call("held", keys.base(0), "e1") == [], "who writes loads them when it needs them"


async def test_a_store_that_was_used_before_gets_the_functions_of_today(redis_url: str) -> None:
    """A fix reaches also the data directory of yesterday."""
    stale = f"#!lua name={VERSION}\nredis.register_function('{VERSION}_held', function() return 'stale' end)"
    async with Redis.from_url(redis_url) as redis:
        await redis.function_load(stale)
    async with open_store(redis_url) as store:
        assert await store.call("held", keys.base(0), "e1") == []


async def test_an_older_build_leaves_the_functions_of_a_newer_one_alone(redis_url: str) -> None:
    """One that starts, or comes back, in the middle of a deploy. What it asks for they still do."""
    newer = library().replace(f"-- Revision {revision_of(library())}\n", "-- Revision 1000000\n")
    async with Redis.from_url(redis_url) as redis:
        await redis.function_load(newer)
        async with open_store(redis_url) as store:
            assert await store.call("held", keys.base(0), "e1") == []
        [entry] = await redis.function_list(library=VERSION, withcode=True)
        assert revision_of(entry[entry.index(b"library_code") + 1].decode()) == 1_000_000


def test_the_revision_goes_up_with_every_change_of_the_functions() -> None:
    """If this fails: raise the revision at the top of functions.lua, and put the new digest here."""
    digest = blake2b(library().encode(), digest_size=8).hexdigest()
    assert (revision_of(library()), digest) == (3, "550558c7825ae6a7")


@pytest.mark.parametrize(("setting", "unfit", "fit"), [("maxmemory-policy", "allkeys-lru", "noeviction")])
async def test_a_store_that_may_lose_what_it_acknowledged_is_refused(
    redis_url: str, setting: str, unfit: str, fit: str
) -> None:
    """Unless told otherwise; the message names the setting and how to go on."""
    async with Redis.from_url(redis_url) as redis:
        await redis.config_set(setting, unfit)
        try:
            with pytest.raises(StoreUnfit, match=f"{setting} {unfit}.*Set {setting} {fit}"):
                async with open_store(redis_url):
                    pass
            async with open_store(redis_url, allow_unfit=True):
                pass
        finally:
            await redis.config_set(setting, fit)


async def test_a_store_that_is_full_is_served(redis_url: str) -> None:
    """Who was restarted meanwhile writes nothing that is there already: else nobody could delete what is past its
    retention, and the store would stay full.
    """
    async with open_store(redis_url) as before, Redis.from_url(redis_url) as redis:
        await redis.config_set("maxmemory", "1")
        try:
            async with asyncio.timeout(5), open_store(redis_url) as store:
                assert store.digest_key == before.digest_key
                assert len(await Runs(store).sweep()) == PARTITIONS
        finally:
            await redis.config_set("maxmemory", "0")


async def test_a_store_that_does_not_tell_how_it_is_set_up_is_refused(redis_url: str) -> None:
    """Some that are for rent forbid CONFIG; who serves from one takes it upon themselves."""
    async with Redis.from_url(redis_url) as redis:
        await redis.acl_setuser("guest", enabled=True, nopass=True, commands=["+@all", "-config"], keys=["*"])
        try:
            there = redis_url.replace("://", "://guest:any@")
            with pytest.raises(StoreUnfit, match=r"does not tell.*--allow-unfit-store"):
                async with open_store(there):
                    pass
            async with open_store(there, allow_unfit=True):
                pass
        finally:
            await redis.acl_deluser("guest")


async def test_a_process_waits_for_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    """It says why once, and is there when the store is."""
    said: list[str] = []
    waits = asyncio.Event()

    def waiting(why: str) -> None:
        said.append(why)
        waits.set()

    async def open_waiting() -> int:
        async with open_store(server.url, waiting=waiting) as store:
            return store.partitions

    async with embedded_valkey(tmp_path) as server:
        await server.kill()
        opening = asyncio.create_task(open_waiting())
        await waits.wait()
        await server.start()
        async with asyncio.timeout(5):
            assert await opening == PARTITIONS
    assert said == ["Redis does not answer"]


async def test_replies_come_to_their_callers(store: Store) -> None:
    """Errors to those who made them, whatever else was in the pipeline."""
    calls = [store.command("SET" if number % 3 else "NO-SUCH", f"key-{number}", number) for number in range(300)]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(reply, ResponseError) == (number % 3 == 0) for number, reply in enumerate(replies))
    assert await store.command("GET", "key-298") == b"298"


@pytest.mark.parametrize("argument", [None, "\ud800", 1.5j])
async def test_a_command_that_cannot_be_sent_is_an_error_to_its_caller(store: Store, argument: Any) -> None:
    """To nobody else, though they asked in the same moment; the connection serves on."""
    before, bad, after = store.command("PING"), store.command("SET", "key", argument), store.command("ECHO", "on")
    with pytest.raises(DataError):
        await bad
    assert (await before, await after) == (b"PONG", b"on")
    assert await store.command("PING") == b"PONG"
    assert store.connection.lost == 0


async def test_functions_that_cannot_be_loaded_are_an_error_and_not_a_silence(redis_url: str) -> None:
    """Out of memory, not allowed, or a server that is too old."""
    connection = Connection(redis_url, library="#!lua name=broken\nthis is no Lua")
    async with connection.opened(), asyncio.timeout(5):
        with pytest.raises(ResponseError, match="compiling"):
            await connection.call("FCALL", "onward1_held", 1, keys.base(0), "e1")
        assert await connection.call("PING") == b"PONG"


async def test_what_is_unanswered_when_it_closes_fails(redis_url: str) -> None:
    """Nobody waits for ever."""
    async with proxy_to(redis_url) as proxy:
        async with Connection(proxy.url).opened() as connection:
            assert await connection.call("PING") == b"PONG"
            proxy.stall()
            call = connection.call("PING")
            await asyncio.wait([call], timeout=0.01)
        with pytest.raises(StoreUnavailable, match="closed"):
            await call


async def test_a_store_that_is_silent_is_taken_for_gone(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait has its own time, though one timer looks after all of them; what was asked is asked again elsewhere."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT_S", 0.3)
    async with proxy_to(redis_url) as proxy, Connection(proxy.url).opened() as opened, asyncio.timeout(20):
        for number in range(2):
            assert await opened.call("PING") == b"PONG"
            proxy.forget_links()
            assert await opened.call("ECHO", str(number)) == str(number).encode()
            assert opened.lost == number + 1


async def test_a_store_that_closes_the_connection_is_asked_again(redis_url: str) -> None:
    """Also where that was closed while nobody waited."""
    async with proxy_to(redis_url) as proxy, Connection(proxy.url).opened() as opened, asyncio.timeout(20):
        for number in range(3):
            assert await opened.call("ECHO", str(number)) == str(number).encode()
            proxy.cut()


async def test_a_store_is_asked_over_tls(redis_url: str, tmp_path: Path) -> None:
    """Also for what is longer than one record of it."""
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(issued.cert, issued.key)
    long = b"x" * 1_000_000
    async with (
        proxy_to(redis_url, tls) as proxy,
        Connection(f"{proxy.url}?ssl_ca_certs={authority.ca}").opened() as opened,
        asyncio.timeout(20),
    ):
        assert list(await asyncio.gather(opened.call("PING"), opened.call("ECHO", long))) == [b"PONG", long]


async def test_a_caller_that_goes_away_disturbs_nobody(redis_url: str) -> None:
    """Its reply is read and dropped."""
    async with proxy_to(redis_url) as proxy, Connection(proxy.url).opened() as connection:
        proxy.stall()
        calls = [connection.call("ECHO", str(number)) for number in range(3)]
        await asyncio.wait(calls, timeout=0.01)
        calls[1].cancel()
        proxy.flow()
        assert [await calls[0], await calls[2]] == [b"0", b"2"]


async def test_what_was_opened_is_closed(redis_url: str) -> None:
    """No task and no connection is left, whatever was under way."""

    async def connections() -> int:
        return len(await redis.client_list())

    async with Redis.from_url(redis_url) as redis:
        tasks, links = asyncio.all_tasks(), await connections()
        async with (
            open_store(redis_url) as store,
            LogWriter(store).opened() as writer,
            Deployments(store).following() as deployments,
            Heartbeat(store, "e1", ttl_s=0.03, on_renewal=lambda _: None).beating() as heartbeat,
        ):
            await Runs(store).submit(a_run(), holder="e1", ttl_s=60)
            log = writer.log("default", "run", 1)
            heartbeat.add(log.base, log.ref, 1)
            await log.append(status())

            async def all_connected() -> bool:
                return await connections() == links + 3

            await eventually(all_connected)
            log.post(status())
            looking = asyncio.ensure_future(deployments.choose("blog"))
            await asyncio.wait([looking], timeout=0)
            looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

        async def all_gone() -> bool:
            return await connections() == links

        await eventually(all_gone)
        assert asyncio.all_tasks() == tasks


async def test_a_subscription_comes_back_and_says_so(redis_url: str) -> None:
    """None marks where messages may have been missed."""
    async with proxy_to(redis_url) as proxy, Redis.from_url(redis_url) as redis:
        heard = messages(proxy.url, ["one", "two"])
        assert await anext(heard) is None
        await redis.publish("two", "a")
        message = await anext(heard)
        assert message is not None
        assert (message.channel, message.data) == ("two", b"a")
        proxy.cut()
        assert await anext(heard) is None
        await redis.publish("one", "b")
        message = await anext(heard)
        assert message is not None
        assert (message.channel, message.data) == ("one", b"b")
        await heard.aclose()


def test_a_partition_is_one_slot_and_runs_spread_over_all() -> None:
    """CRC-16 as in Redis Cluster; the hash tag is the partition."""
    assert keys.partition_of("123456789", 1 << 16) == 0x31C3
    parts = [keys.partition_of(keys.ref("default", f"run-{number}"), 16) for number in range(1_600)]
    assert all(50 < parts.count(part) < 150 for part in range(16))
    assert keys.run(keys.base(3), "default/run") == "onward:{3}:default/run:run"


def test_labels_that_look_alike_have_indexes_of_their_own() -> None:
    assert keys.by_label("a=b", "c") != keys.by_label("a", "b=c")
