"""The contract is enough: a client made from `protos/` alone, by plain protoc, does what it says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.e2e.developing import Dev, developing
from tests.e2e.suite import WORKFLOWS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("stranger")]

PROTOS = Path(__file__).parents[2] / "protos"
STRANGER = Path(__file__).with_name("stranger.py")

LAUNCHER = """
import runpy, sys
sys.path[:0] = sys.argv[2:4]
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Runs a script, its first argument, that can import what lies in the two folders that follow."""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plain protoc makes of the contract."""
    folder = tmp_path_factory.mktemp("stubs")
    files = [str(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    options = [f"-I{PROTOS}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *files], check=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """One of everything."""
    async with developing(tmp_path_factory.mktemp("dev"), str(WORKFLOWS), "--no-reload") as dev:
        yield dev


@pytest.mark.parametrize("what", ["follow", "stop", "invoke", "refuse", "ask_servers"])
async def test_a_client_made_from_the_contract_alone(dev: Dev, stubs: Path, what: str) -> None:
    """Each is a function in stranger.py, whose interpreter sees neither this checkout nor what is installed of it."""
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", LAUNCHER, str(STRANGER), str(stubs), sysconfig.get_path("platlib")),
        *(dev.addresses["grpc"], dev.scheduler, what),
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(40):
            _, complaint = await client.communicate()
    finally:
        if client.returncode is None:
            client.kill()
            await client.wait()
    assert client.returncode == 0, complaint.decode()
