"""`onward` as a person has it: `onward dev` in one terminal, the commands that talk in another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from onward_cli.children import Child

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("cli")]

WORKFLOWS = Path(__file__).with_name("workflows.py")
STOP_S = 15.0


@dataclass
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> list[Any]:
        """The lines of its output, each as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """A shell with ONWARD_GATEWAY set."""

    def __init__(self, gateway: str) -> None:
        self._environment = {**os.environ, "ONWARD_GATEWAY": gateway}

    async def begin(self, *words: str) -> asyncio.subprocess.Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "onward_cli", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        )

    async def __call__(self, *words: str) -> Ran:
        """Run a command to its end."""
        process = await self.begin(*words)
        out, err = await process.communicate()
        assert process.returncode is not None
        assert b"Traceback" not in err
        return Ran(process.returncode, out.decode(), err.decode())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def onward(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shell]:
    """A shell beside a running `onward dev`, the same for all tests."""
    data = tmp_path_factory.mktemp("data")
    addresses = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    dev = await Child.start(["dev", str(WORKFLOWS), "--data", str(data), *addresses])
    try:
        assert await dev.ready()
        yield Shell(dev.addresses["grpc"])
    finally:
        await dev.stop(STOP_S)


async def test_what_a_person_does_in_the_first_minutes(onward: Shell) -> None:
    """Look what there is, start it wrongly, start it rightly, follow it, look at it, find it in the list."""
    listed = await onward("workflows")
    assert "\n  onward start talk --follow\n" in listed.out
    wrong = await onward("start", "talk", "count=many", "speed=1")
    assert (wrong.code, wrong.out) == (2, "")
    assert "that is no input of talk:" in wrong.err
    assert "count" in wrong.err
    assert "speed" in wrong.err
    followed = await onward("start", "talk", "count=6", "pause_s=0", "--label", "user=ada", "--follow")
    assert (followed.code, followed.err) == (0, "")
    lines = followed.out.splitlines()
    run_id = lines[0].split()[1]
    assert [line for line in lines if line.startswith("[")] == [
        "[talk] status: begins 0/2",
        '[talk] published progress = {"half": false}',
        "[words] started",
        "[words] word0 word1 word2",
        *[line for line in lines if line.startswith("[words] finished in ")],
        "[talk] status: goes on 1/2",
        '[talk] published progress changed: [{"op": "replace", "path": "/half", "value": true}]',
        "[words#2] started",
        "[words#2] word0 word1 word2",
        *[line for line in lines if line.startswith("[words#2] finished in ")],
    ]
    assert lines[-4:-2] == [f"run {run_id} SUCCEEDED", "word0 word1 word2 word0 word1 word2 "]
    assert lines[-1].startswith(f"follow it again: onward follow {run_id}")
    assert (await onward("follow", run_id)).out == followed.out
    details = await onward("get", run_id)
    assert "✓ words#2" in details.out
    (runs,) = (await onward("runs", "--label", "user=ada", "--output", "json")).json
    assert [(run["run_id"], run["state"]) for run in runs] == [(run_id, "SUCCEEDED")]


async def test_a_script_gets_every_event_once_and_the_end(onward: Shell) -> None:
    """Offsets from 1 without a hole, and the same from the middle."""
    whole = await onward("start", "talk", "count=10", "pause_s=0", "--follow", "--output", "json")
    assert (whole.code, whole.err) == (0, "")
    *events, last = whole.json
    assert [line["event"]["offset"] for line in events] == list(range(1, len(events) + 1))
    assert last["run"]["output"] == "word0 word1 word2 word3 word4 " * 2
    rest = await onward("follow", last["run"]["run_id"], "--after", "5", "--output", "json")
    assert rest.json[:-1] == events[5:]


async def test_a_run_that_fails_says_why(onward: Shell) -> None:
    """With its own words, exit code 1, and the way to its traceback."""
    failed = await onward("start", "fail", "message=the tea is cold", "--follow")
    assert (failed.code, failed.err) == (1, "")
    assert "FAILED: ValueError: the tea is cold\n" in failed.out
    run_id = failed.out.split()[1]
    assert f"traceback: onward get {run_id}\n" in failed.out
    assert "raise ValueError(message)" in (await onward("get", run_id)).out


async def test_ctrl_c_leaves_the_run_to_be_followed_again_and_cancelled(onward: Shell) -> None:
    """Watching is harmless, cancelling is what cancels."""
    run_id = (await onward("start", "wait", "--run-id", "waits")).out.strip()
    assert run_id == "waits"
    watching = await onward.begin("follow", run_id)
    assert watching.stdout is not None
    while b"status: waiting" not in await watching.stdout.readline():
        pass
    watching.send_signal(signal.SIGINT)
    _, err = await watching.communicate()
    assert watching.returncode == 130
    assert b"run waits goes on. Follow it again: onward follow waits" in err
    (run,) = (await onward("get", run_id, "--output", "json")).json
    assert run["state"] == "RUNNING"
    watching = await onward.begin("follow", run_id)
    assert (await onward("cancel", run_id, "--reason", "enough")).out in (
        "run waits is CANCELLING\n",
        "run waits is CANCELLED\n",
    )
    out, _ = await watching.communicate()
    assert watching.returncode == 1
    assert b"[wait] status: cleaned up\n" in out
    assert b"run waits CANCELLED" in out
