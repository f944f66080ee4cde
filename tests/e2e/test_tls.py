"""A whole suite that encrypts everywhere, as an operator starts it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from tests.certificates import Authority
from tests.e2e.suite import running_suite

from onward import Client
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED
from onward_serving.tls import PEER_NAME


async def onward(*words: str) -> tuple[int | None, str, str]:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onward_cli", *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_run_survives_its_executor_where_everything_is_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public doors by one authority, services among themselves by another; a death is proven as without it."""
    public, own = Authority(tmp_path / "public"), Authority(tmp_path / "own")
    door, peer = public.issue("127.0.0.1"), own.issue(PEER_NAME, file="peer")
    for name, path in {"CERT": peer.cert, "KEY": peer.key, "CA": own.ca}.items():
        monkeypatch.setenv(f"ONWARD_PEER_{name}", str(path))
    async with running_suite(tmp_path / "store", gateways=0, executors=0, lease_ttl_s=60.0) as suite:
        await suite.add_gateway(f"--tls-cert={door.cert}", f"--tls-key={door.key}")
        address = f"https://{suite.gateway_addresses}"
        first = await suite.add_executor()
        async with Client(address, ca=public.ca) as client:
            run = await client.start("talk", {"count": 400, "pause_s": 0.01})
            async for event in run.follow():
                if event.HasField("output_delta"):
                    break
            second = await suite.add_executor()
            await suite.kill(first)
            ended = await client.wait_for(run.run_id, timeout=45)
            assert (ended.state, ended.attempt) == (RUN_STATE_SUCCEEDED, 2), "long before the lease has run out"
        assert second.pid != first.pid
        status, out, err = await onward("get", run.run_id, "--gateway", address)
        assert (status, out) == (2, ""), "the authority is not known"
        assert "ONWARD_CA" in err
        monkeypatch.setenv("ONWARD_CA", str(public.ca))
        status, out, err = await onward("get", run.run_id, "--gateway", address)
        assert (status, err) == (0, "")


@pytest.mark.parametrize("command", ["gateway", "scheduler", "executor"])
async def test_files_that_cannot_be_used_end_a_server_with_one_line(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("a", file="one"), authority.issue("a", file="other")
    code = tmp_path / "code.py"
    code.write_text("from onward import workflow\n\n\n@workflow\nasync def flow() -> None: ...\n")
    words = [command, *([str(code)] if command == "executor" else []), f"--redis={redis_url}"]
    if command == "gateway":
        words += ["--grpc=127.0.0.1:0", "--http=127.0.0.1:0", f"--tls-cert={one.cert}", f"--tls-key={other.key}"]
    else:
        words += ["--listen=127.0.0.1:0"]
        for name, path in {"CERT": one.cert, "KEY": other.key, "CA": authority.ca}.items():
            monkeypatch.setenv(f"ONWARD_PEER_{name}", str(path))
    status, out, err = await onward(*words)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == f"onward: the key {other.key} is not that of the certificate {one.cert}"
