"""Doors and services that encrypt: with real certificates, real handshakes, and those who show the wrong ones."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx2
import pytest
from tests.certificates import Authority, Issued
from tests.gateway import begun, gather, serve_workflow

from onward import Client, errors
from onward.v1.scheduler_service_pb2 import ListExecutorsRequest
from onward.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from onward_gateway import app as gateway_app
from onward_gateway.app import Doors
from onward_gateway.settings import Settings as GatewaySettings
from onward_runlog.store import Store
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings
from onward_serving import health
from onward_serving.tls import NAMED, PEER_NAME, Certificate, Peers, TlsInvalid, certificate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def issued(authority: Authority) -> Issued:
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture
async def doors(redis_url: str, store: Store, issued: Issued) -> AsyncIterator[Doors]:
    """A Gateway that encrypts."""
    settings = GatewaySettings(
        redis_url=redis_url, grpc="127.0.0.1:0", http="127.0.0.1:0", tls_cert=issued.cert, tls_key=issued.key
    )
    async with gateway_app.opened(settings) as doors:
        yield doors


def http_of(doors: Doors, verify: ssl.SSLContext | bool) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=f"https://{doors.http}", trust_env=False, verify=verify)


async def serial(address: str) -> str:
    """Connect, and return the number of the certificate that is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return shown.hex()


async def test_both_doors_encrypt_for_who_knows_the_authority(
    doors: Doors, store: Store, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(store)
    async with Client(f"https://{doors.grpc}", ca=authority.ca) as client:
        assert (await client.get("run")).run_id == "run"
    monkeypatch.setenv("ONWARD_CA", str(authority.ca))
    monkeypatch.setenv("ONWARD_GATEWAY", f"https://{doors.grpc}/")

    def blocking() -> str:
        with Client() as client:
            return client.get("run").run_id

    assert await asyncio.to_thread(blocking) == "run"
    async with http_of(doors, ssl.create_default_context(cafile=str(authority.ca))) as http:
        assert (await http.get("/v1/runs/run")).json()["run_id"] == "run"
        asked = await http.post("/v1/runs/run/cancel", json={}, headers={"origin": f"https://{doors.http}"})
        assert asked.status_code == 503, "its own page may ask: there is no Scheduler"


async def test_who_does_not_know_the_authority_is_told(doors: Doors, tmp_path: Path) -> None:
    """At once: no patience makes a certificate a better one."""
    other = Authority(tmp_path / "other", "other")
    for ca in (None, other.ca):
        async with Client(f"https://{doors.grpc}", ca=ca) as client:
            with pytest.raises(errors.Untrusted, match="ONWARD_CA names authorities"):
                await client.get("run")
            with pytest.raises(errors.Untrusted):
                async for _ in client.run("run").follow():
                    pass
    async with http_of(doors, True) as http:
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await http.get("/healthz")


async def test_a_certificate_for_another_name_and_a_door_without_one_are_not_believed(
    redis_url: str, store: Store, authority: Authority
) -> None:
    other = authority.issue("elsewhere.example")
    for cert, key in ((other.cert, other.key), (None, None)):
        settings = GatewaySettings(
            redis_url=redis_url, grpc="127.0.0.1:0", http="127.0.0.1:0", tls_cert=cert, tls_key=key
        )
        async with gateway_app.opened(settings) as doors, Client(f"https://{doors.grpc}", ca=authority.ca) as client:
            with pytest.raises(errors.Untrusted):
                await client.get("run")


async def test_who_speaks_plainly_to_a_door_that_encrypts_gets_nothing(doors: Doors) -> None:
    async with Client(doors.grpc, patience=0) as client:
        with pytest.raises(errors.Unavailable):
            await client.get("run")
    async with httpx2.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx2.RemoteProtocolError):
            await http.get(f"http://{doors.http}/healthz")


async def test_a_renewed_certificate_is_shown_without_a_restart(
    doors: Doors, authority: Authority, issued: Issued, caplog: pytest.LogCaptureFixture
) -> None:
    """One that makes no sense is not, and is told of."""
    before = [await serial(address) for address in (doors.grpc, doors.http)]
    assert before[0] == before[1]
    kept = issued.key.read_bytes()
    authority.issue("localhost", "127.0.0.1")
    renewed = issued.key.read_bytes()
    issued.key.write_bytes(kept)
    assert [await serial(address) for address in (doors.grpc, doors.http)] == before, "the key is not its own"
    assert "stays as it was" in caplog.text
    issued.key.write_bytes(renewed)
    after = [await serial(address) for address in (doors.grpc, doors.http)]
    assert after[0] == after[1] != before[0]
    async with Client(f"https://{doors.grpc}", ca=authority.ca) as client:
        with pytest.raises(errors.RunNotFound):
            await client.get("nobody")


@pytest.mark.parametrize(
    ("address", "ca", "why"),
    [
        ("ftp://127.0.0.1:1", None, "https://HOST:PORT"),
        ("https://127.0.0.1:1/path", None, "https://HOST:PORT"),
        ("https://127.0.0.1:1", "missing.pem", "cannot be read: No such file"),
        ("https://127.0.0.1:1", grpc.__file__, "no certificate in PEM"),
    ],
)
def test_a_client_is_told_what_is_wrong_with_its_settings(address: str, ca: str | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Client(address, ca=ca)


def test_files_that_cannot_be_used_are_named(authority: Authority, issued: Issued, tmp_path: Path) -> None:
    other, locked = authority.issue("a", file="other"), authority.issue("a", file="locked", password=b"x")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for cert, key, why in [
        (tmp_path / "missing", issued.key, f"cannot read {tmp_path / 'missing'}: No such file"),
        (issued.cert, tmp_path / "missing", f"cannot read {tmp_path / 'missing'}: No such file"),
        (tmp_path, issued.key, f"cannot read {tmp_path}: Is a directory"),
        (issued.cert, other.key, "is not that of the certificate"),
        (issued.key, issued.cert, "no certificate and key in PEM"),
        (broken, issued.key, "no certificate and key in PEM"),
        (empty, issued.key, "is not in PEM"),
        (locked.cert, locked.key, "is encrypted"),
        (issued.cert, None, "--tls-cert and --tls-key"),
        (None, issued.key, "--tls-cert and --tls-key"),
    ]:
        with pytest.raises(TlsInvalid, match=why):
            certificate(cert, key)
    assert certificate(None, None) is None
    assert isinstance(certificate(issued.cert, issued.key), Certificate)
    with pytest.raises(TlsInvalid, match="all three"):
        Peers(cert=issued.cert, key=issued.key).server()


def peers_of(authority: Authority, name: str = PEER_NAME, file: str = "peer") -> Peers:
    made = authority.issue(name, file=file)
    return Peers(cert=made.cert, key=made.key, ca=authority.ca)


async def test_services_know_each_other_by_their_authority(
    redis_url: str, store: Store, authority: Authority, tmp_path: Path
) -> None:
    """A Gateway with a certificate of it is answered; one of another authority, or without any, is not.

    A Scheduler whose certificate has another name is not asked.
    """
    await serve_workflow(store)
    peers = peers_of(authority)
    others = peers_of(Authority(tmp_path / "other", "other"))
    strangers = [Peers(), others, dataclasses.replace(others, ca=authority.ca)]
    half = peers_of(authority, "elsewhere.example", "elsewhere")
    settings = SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0", peers=peers)
    async with scheduler_app.opened(settings) as scheduler:
        told = await gather([asyncio.to_thread(health.status, scheduler.address, one) for one in (peers, *strangers)])
        assert [answer == "SERVING" for answer in told] == [True, False, False, False]
        nobody = grpc.aio.secure_channel(
            scheduler.address, grpc.ssl_channel_credentials(authority.ca.read_bytes()), options=[NAMED]
        )
        async with nobody:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await SchedulerServiceStub(nobody).ListExecutors(ListExecutorsRequest(), timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE, "it knows the authority, and shows nothing"
        for known, answered in [(peers, True), (strangers[-1], False)]:
            gate = GatewaySettings(
                redis_url=redis_url,
                schedulers=(scheduler.address,),
                grpc="127.0.0.1:0",
                http="127.0.0.1:0",
                peers=known,
            )
            async with gateway_app.opened(gate) as doors, Client(doors.grpc, patience=0) as client:
                if answered:
                    assert (await client.start("blog")).run_id
                else:
                    with pytest.raises(errors.Unavailable):
                        await client.start("blog")
    async with scheduler_app.opened(
        SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0", peers=half)
    ) as another:
        assert await asyncio.to_thread(health.status, another.address, peers) != "SERVING", "it says who it is not"


async def test_health_of_a_door_that_encrypts(doors: Doors) -> None:
    assert await asyncio.to_thread(health.status, f"https://{doors.http}", Peers()) == "SERVING"
    assert await asyncio.to_thread(health.status, "https://127.0.0.1:1", Peers()) != "SERVING"


async def test_a_handshake_that_is_not_made_is_not_waited_for(
    redis_url: str, store: Store, issued: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever only connects is cut off, as whoever sends no request where nothing is encrypted."""
    monkeypatch.setattr("onward_gateway.http.door.HEAD_S", 0.3)
    settings = GatewaySettings(
        redis_url=redis_url, grpc="127.0.0.1:0", http="127.0.0.1:0", tls_cert=issued.cert, tls_key=issued.key
    )
    async with gateway_app.opened(settings) as doors:
        host, _, port = doors.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()
