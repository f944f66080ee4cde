"""`onward dev`, as a developer has it: it runs, it is killed, its code changes while runs are in flight."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from tests.e2e.developing import Dev, begun, developing, gone, listens, processes
from tests.runlog import eventually

from onward import Client
from onward.client import RunHandle
from onward.v1.event_pb2 import ATTEMPT_CAUSE_EXECUTOR_LOST, ATTEMPT_CAUSE_HANDED_OVER, Event
from onward.v1.run_pb2 import RUN_STATE_PAUSED, RUN_STATE_QUEUED

pytestmark = pytest.mark.asyncio(loop_scope="module")

# `gated` is in flight until the file that it is given exists.
CODE = """\
import asyncio
import os
from pathlib import Path

from onward import component, status, workflow

print("imported by", os.getpid())


@component
async def opened(gate: str) -> None:
    while not Path(gate).exists():
        await asyncio.sleep(0.02)


@workflow
async def gated(gate: str) -> str:
    status(str(os.getpid()))
    await opened(gate)
    return "one"


@workflow
async def shout(length: int = 3) -> int:
    print("long" * length, "printed by", os.getpid())
    return os.getpid()
"""


def saying(output: str) -> str:
    """CODE whose `gated` gives this."""
    return CODE.replace('return "one"', f'return "{output}"')


@dataclass
class Desk:
    """A folder with code, and `onward dev` that runs it."""

    folder: Path
    dev: Dev

    @property
    def code(self) -> Path:
        """The file."""
        return self.folder / "flow.py"

    def client(self) -> Client:
        """A client."""
        return self.dev.client()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    """One for all tests that leave it as it was: it runs CODE."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "flow.py").write_text(CODE)
    async with developing(folder, "flow.py") as dev:
        yield Desk(folder, dev)


async def in_flight(run: RunHandle) -> int:
    """Wait until the newest attempt of a run of `gated` waits at its gate, and return the process that it is in."""
    pid = 0
    async for event in run.follow():
        if event.HasField("status_updated"):
            pid = int(event.status_updated.message)
        if event.HasField("component_started") and event.attempt == (await run.get()).attempt:
            return pid
    raise AssertionError("it ended")


async def attempts(run: RunHandle) -> list[Event]:
    return [event async for event in run.follow() if event.HasField("attempt_started")]


@pytest.mark.xdist_group("desk")
async def test_it_tells_where_everything_listens_and_runs_workflows(desk: Desk) -> None:
    """Every address answers, one line says that it serves, and user code runs and prints in a process of its own."""
    dev = desk.dev
    shown = {line.split()[0]: line.split()[1] for line in dev.lines if line.startswith("  ")}
    assert shown["gRPC"] == dev.addresses["grpc"]
    assert shown["HTTP"] == f"http://{dev.addresses['http']}"
    assert listens(shown["gRPC"])
    assert listens(shown["scheduler"])
    health = await asyncio.to_thread(urllib.request.urlopen, shown["HTTP"] + "/healthz", timeout=10)
    assert health.status == 200
    assert Path(shown["store"].removeprefix("unix://")).is_socket()
    async with desk.client() as client:
        pid = await client.invoke("shout", {"length": 1_000_000}, timeout=30)
    await dev.told(f"printed by {pid}")
    assert pid != dev.pid
    assert any(line == f"imported by {pid}" for line in dev.lines)
    assert not any(line == f"imported by {dev.pid}" for line in dev.lines)
    assert len(dev.ready_lines) == 1


@pytest.mark.xdist_group("desk")
async def test_changed_code_serves_new_runs_and_old_runs_finish_on_what_they_began_with(desk: Desk) -> None:
    """A change, a mistake, its repair within a second, and the change back, beside a run in flight."""
    dev, gate = desk.dev, str(desk.folder / "reloaded")
    first = dev.deployment
    async with desk.client() as client:

        async def new_run_gives(output: str) -> None:
            async def given() -> bool:
                run = await client.start("gated", {"gate": str(desk.code)})
                return bool(await run.result(timeout=30) == output)

            await eventually(given)  # Schedulers may hear of a change a moment later

        old = await client.start("gated", {"gate": gate})
        await in_flight(old)

        addition = "\n\n@workflow\nasync def added() -> None: ...\n"
        desk.code.write_text(saying("two") + addition)
        written = desk.code.stat()
        await dev.told("reloaded as deployment")
        await new_run_gives("two")
        assert "added" in [workflow.name for workflow in await client.workflows()]

        desk.code.write_text("def broken(:\n")
        await dev.told("SyntaxError")
        await dev.told("does not load; the code before goes on")
        await new_run_gives("two")

        desk.code.write_text(saying("six") + addition)
        os.utime(desk.code, ns=(written.st_atime_ns, written.st_mtime_ns))  # as if within the second
        await dev.told("reloaded as deployment")
        await new_run_gives("six")

        desk.code.write_text(CODE)
        await dev.told(f"reloaded as deployment {first};")
        await new_run_gives("one")

        Path(gate).touch()
        assert await old.result(timeout=30) == "one"
        (only,) = await attempts(old)
        assert only.attempt_started.deployment == first

        async def others_have_ended() -> bool:
            return len(processes(desk.folder)) == 2

        await eventually(others_have_ended)  # a store and an executor are left


@pytest.mark.xdist_group("desk")
async def test_what_dies_is_started_again_and_runs_go_on(desk: Desk) -> None:
    """Kill -9 of the store, then of the executor: nobody else needs to be started again."""
    dev, gate = desk.dev, desk.folder / "died"
    async with desk.client() as client:
        run = await client.start("gated", {"gate": str(gate)})
        executor = await in_flight(run)
        (store,) = processes(desk.folder) - {
            pid for pid in processes(desk.folder) if b"onward_cli" in Path(f"/proc/{pid}/cmdline").read_bytes()
        }
        os.kill(store, signal.SIGKILL)
        await dev.told("the store ended with status -9")
        assert await in_flight(run) == executor
        assert (await run.get()).attempt == 1

        os.kill(executor, signal.SIGKILL)
        await dev.told("an executor ended with status -9")
        await eventually(partial(began_again, run))
        assert await in_flight(run) != executor
        gate.touch()
        assert await run.result(timeout=30) == "one"
        assert (await attempts(run))[1].attempt_started.cause == ATTEMPT_CAUSE_EXECUTOR_LOST


async def began_again(run: RunHandle) -> bool:
    return (await run.get()).attempt > 1


@pytest.mark.xdist_group("desk")
async def test_what_is_taken_is_named(desk: Desk, tmp_path: Path) -> None:
    """A data directory by its process, an address as it was given; nothing is left of what had begun."""

    async def failing(option: str) -> str:
        data = () if option.startswith("--data") else (f"--data={tmp_path / option[2:6]}",)
        async with begun(tmp_path, str(desk.code), option, *data) as other:
            assert await other.ended() == 1
            assert other.ready_lines == []
            return str(other)

    grpc, http = desk.dev.addresses["grpc"], desk.dev.addresses["http"]
    data, door, web = await asyncio.gather(
        failing(f"--data={desk.folder / '.onward'}"), failing(f"--grpc={grpc}"), failing(f"--http={http}")
    )
    assert f"is in use by process {desk.dev.pid}" in data
    assert f"cannot listen on {grpc}" in door
    assert f"cannot listen on {http}" in web
    assert "Traceback" not in data + door + web
    assert processes(tmp_path) == set()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (None, ["there is no file flow.py"]),
        ("from onward import component\n", ["there is no workflow in flow.py"]),
        (
            "def brew():\n    raise RuntimeError('no tea')\n\nbrew()\n",
            ['flow.py", line 2, in brew', "RuntimeError: no tea"],
        ),
    ],
    ids=["missing", "empty", "raising"],
)
async def test_code_that_cannot_be_served_is_named(tmp_path: Path, code: str | None, told: list[str]) -> None:
    """Once, though there were to be two executors; and nothing is left."""
    if code is not None:
        (tmp_path / "flow.py").write_text(code)
    async with begun(tmp_path, "flow.py", "--executors=2") as dev:
        assert await dev.ended() == 1
        for text in told:
            assert str(dev).count(text) == 1
        assert dev.lines[-1] == "onward: flow.py cannot be served; the reason stands above"
        assert dev.ready_lines == []
    assert processes(tmp_path) == set()
    assert not (tmp_path / ".onward" / "valkey.sock").exists()


@pytest.mark.timeout(120)
async def test_what_was_begun_goes_on_after_ctrl_c_and_after_kill_9(tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end everything with exit code 0; kill -9 leaves no orphan; the next one takes over."""
    (tmp_path / "tea").mkdir()
    (tmp_path / "tea" / "flows.py").write_text(CODE)
    (tmp_path / "tea" / "__init__.py").touch()
    gate = tmp_path / "gate"
    options = ["tea.flows", "--executors=2", "--data=kept"]

    async def nothing_is_left(dev: Dev) -> None:
        assert processes(tmp_path) == set()
        assert not any(map(listens, [*dev.addresses.values(), dev.scheduler]))
        assert not (tmp_path / "kept" / "valkey.sock").exists()

    async with developing(tmp_path, *options, "--slots=1") as dev:
        async with dev.client() as client:
            finished = await client.start("shout")
            await finished.result(timeout=30)
            log = [event async for event in finished.follow()]
            held = [await client.start("gated", {"gate": str(gate)}) for _ in range(2)]
            assert len({await in_flight(run) for run in held}) == 2, "one slot each"
            third = await client.start("gated", {"gate": str(gate)})
            assert (await third.get()).state == RUN_STATE_QUEUED
        assert await dev.interrupt() == 0
        await nothing_is_left(dev)

    async with developing(tmp_path, *options) as dev:
        async with dev.client() as client:
            for run in held:
                await eventually(partial(began_again, client.run(run.run_id)))
            for run in (*held, third):
                await in_flight(client.run(run.run_id))
            assert [event async for event in client.follow(finished.run_id)] == log
        family = processes(tmp_path)
        assert len(family) == 3, "a store and two executors"
        dev.process.kill()
        await gone({*family, dev.pid})
        assert processes(tmp_path) == set()

    async with developing(tmp_path, *options, env={"OTEL_TRACES_EXPORTER": "console"}) as dev:
        async with dev.client() as client:
            runs = [client.run(run.run_id) for run in (*held, third)]
            gate.touch()
            for run in runs:
                assert await run.result(timeout=30) == "one"
            causes = [[event.attempt_started.cause for event in await attempts(run)] for run in runs[:2]]
            assert causes == [[1, ATTEMPT_CAUSE_HANDED_OVER, ATTEMPT_CAUSE_EXECUTOR_LOST]] * 2
            assert [event async for event in client.follow(finished.run_id)] == log
        assert await dev.terminate() == 0
        await nothing_is_left(dev)
        printed = str(dev)
        assert printed.count('"name": "run gated"') == 3
        assert '"service.name": "onward-executor"' in printed


# `approval` waits for a person, `count` is in flight until the file that it is given exists.
WAITING_CODE = """\
import asyncio
from pathlib import Path

import onward
from onward import component, workflow


@component
async def note(text: str) -> str:
    return text


@component
async def opened(gate: str) -> None:
    while not Path(gate).exists():
        await asyncio.sleep(0.02)


@workflow
async def approval() -> str:
    await note("asked")
    answer = await onward.request_input("approval", str)
    return await note("one " + answer)


@workflow
async def count(gate: str) -> str:
    first = await note("counted")
    await opened(gate)
    return await note("one " + first)


@workflow
async def dropped() -> str:
    await onward.signal("never")
    return ""
"""


async def parked(run: RunHandle) -> None:
    async for event in run.follow():
        if event.HasField("run_waiting"):
            return


@pytest.mark.timeout(120)
async def test_runs_go_on_in_the_code_as_it_is_now(tmp_path: Path) -> None:
    """Edited while a run waits and while another was in flight as dev was stopped; code that does not fit pauses."""
    code, gate = tmp_path / "flow.py", tmp_path / "gate"
    code.write_text(WAITING_CODE)
    async with developing(tmp_path, "flow.py") as dev:
        async with dev.client() as client:
            waits, unfit, dropped = [await client.start(name) for name in ("approval", "approval", "dropped")]
            for run in (waits, unfit, dropped):
                await parked(run)

            edited = WAITING_CODE.replace("one ", "two ").partition("@workflow\nasync def dropped")[0]
            code.write_text(edited)
            await dev.told("reloaded as deployment .* those that wait go on here")
            await waits.signal("approval", "yes")
            assert await waits.result(timeout=30) == "two yes"
            began, reason = await moved(waits)
            assert began[0] == dev.deployment
            assert began[1] == (await waits.get()).deployment != dev.deployment
            assert reason == f"deployment {began[0]} has no executor: it goes on in {began[1]}"

            await dropped.signal("never")

            async def says_what_for() -> bool:
                return (await dropped.get()).waiting_for == f"an executor of deployment {dev.deployment}"

            await eventually(says_what_for)

            code.write_text(edited.replace('note("asked")', 'note("asked otherwise")'))
            await dev.told("reloaded as deployment")
            await unfit.signal("approval", "yes")
            stopped = await client.wait_for(unfit.run_id, timeout=30)
            assert (stopped.state, stopped.error.reason) == (RUN_STATE_PAUSED, "NON_DETERMINISTIC")
            assert "note" in stopped.error.message
            code.write_text(edited)
            await dev.told("reloaded as deployment")
            await unfit.resume()
            assert await unfit.result(timeout=30) == "two yes"

            flies = await client.start("count", {"gate": str(gate)})
            async for event in flies.follow():
                if event.component_started.name == "opened":
                    break
        assert await dev.interrupt() == 0

    code.write_text(edited.replace("two ", "three "))
    gate.touch()
    async with developing(tmp_path, "flow.py") as dev:
        async with dev.client() as client:
            assert await client.run(flies.run_id).result(timeout=30) == "three counted"
            began, _ = await moved(client.run(flies.run_id))
            assert began[-1] == dev.deployment
        assert await dev.interrupt() == 0


async def moved(run: RunHandle) -> tuple[list[str], str]:
    """The deployments of a run's attempts, and why it was queued last."""
    events = [event async for event in run.follow()]
    queued = [event for event in events if event.run_state_changed.state == RUN_STATE_QUEUED]
    began = [event.attempt_started.deployment for event in events if event.HasField("attempt_started")]
    return began, queued[-1].run_state_changed.reason


# What opentelemetry-exporter-prometheus does: each process serves what it has on a port.
SCRAPED = """\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from opentelemetry.sdk.metrics.export import InMemoryMetricReader


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"figures")

    def log_message(self, *_):
        pass


class Reader(InMemoryMetricReader):
    def __init__(self):
        super().__init__()
        server = HTTPServer(("localhost", int(os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"])), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
"""


def free_ports(many: int) -> int:
    """Return the first of so many that are free, one after another."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("localhost", 0))).getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                for number in range(1, many):
                    stack.enter_context(socket.create_server(("localhost", first + number)))
                return int(first)


async def test_each_process_serves_its_figures_on_a_port_of_its_own(tmp_path: Path) -> None:
    """It says where. Who takes a dead one's place has its port."""
    (tmp_path / "flow.py").write_text(CODE)
    (tmp_path / "scraped.py").write_text(SCRAPED)
    installed = tmp_path / "scraped-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: scraped\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[opentelemetry_metrics_exporter]\nprometheus = scraped:Reader\n")
    first = free_ports(3)
    env = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")])),
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(first),
    }

    def figures(of: re.Match[str]) -> int:
        with urllib.request.urlopen(of[1], timeout=5) as response:
            assert response.read() == b"figures"
        return int(of[2])

    url = r"(http://localhost:(\d+)/metrics)"
    async with begun(tmp_path, "flow.py", "--executors=2", env=env) as dev:
        executors = [figures(await dev.told(f"^figures of an executor: {url}")) for _ in range(2)]
        assert executors == [first + 1, first + 2]
        assert figures(await dev.told(f"^  figures +{url}")) == first
        await dev.told("^ready ")
        async with dev.client() as client:
            pid = await client.invoke("shout", {})
        os.kill(pid, signal.SIGKILL)
        assert figures(await dev.told(f"^figures of an executor: {url}")) in executors
        assert await dev.terminate() == 0
