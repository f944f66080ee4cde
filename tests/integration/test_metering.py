"""What services tell of themselves in figures: here in one process, so that they can be read in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tests.gateway import begun
from tests.runlog import eventually

from onward import Client
from onward.budgets import Caller
from onward.telemetry import configure_metrics_from_env
from onward_executor import app as executor_app
from onward_executor.settings import Settings as ExecutorSettings
from onward_gateway import app as gateway_app
from onward_gateway.settings import Settings as GatewaySettings
from onward_runlog.budgets import RedisBudgets
from onward_runlog.store import Store
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings

CODE = """
import asyncio
from pathlib import Path

from onward import workflow

@workflow
async def gated(gate: str) -> None:
    while not Path(gate).exists():
        await asyncio.sleep(0.01)
"""

README = Path(__file__).parents[2] / "services" / "deploy" / "README.md"


class Figures:
    """What would be exported now."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def all(self) -> dict[str, list[Any]]:
        """Every figure's points, by its name."""
        data = self._reader.get_metrics_data()
        resources = data.resource_metrics if data is not None else []
        return {
            metric.name: list(metric.data.data_points)
            for resource in resources
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def of(self, name: str, **labels: str) -> float:
        """A figure's value, or of a histogram how much it has counted; 0 where there is none."""
        points = [point for point in self.all().get(name, []) if labels.items() <= dict(point.attributes).items()]
        return float(sum(point.count if hasattr(point, "count") else point.value for point in points))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Figures]:
    """Read in memory while a test runs: the process's own provider can be set once, and would stay."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    yield Figures(reader)
    provider.shutdown()


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of workflows; loading it leaves nothing in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "metered.py"
    file.write_text(CODE)
    yield file
    sys.modules.pop(file.stem, None)


@contextlib.asynccontextmanager
async def executing(code: Path, redis_url: str, scheduler: str) -> AsyncIterator[None]:
    settings = ExecutorSettings(
        target=str(code),
        redis_url=redis_url,
        schedulers=(scheduler,),
        listen="127.0.0.1:0",
        deployment="build",
        slots=3,
        drain_grace_s=0.0,
    )
    async with executor_app.opened(settings, asyncio.Event()):
        yield


async def test_queues_slots_runs_and_streams_are_told(
    redis_url: str, store: Store, code: Path, figures: Figures, tmp_path: Path
) -> None:
    """As they are, and empty again afterwards."""

    async def comes_to(value: float, name: str, **labels: str) -> None:
        async def there() -> bool:
            return figures.of(name, **labels) == value

        await eventually(there)

    gate = {"gate": str(tmp_path / "gate")}
    async with scheduler_app.opened(SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0")) as scheduler:
        settings = GatewaySettings(
            redis_url=redis_url, schedulers=(scheduler.address,), grpc="127.0.0.1:0", http="127.0.0.1:0"
        )
        async with gateway_app.opened(settings) as doors, Client(doors.grpc) as client:
            async with executing(code, redis_url, scheduler.address):
                await comes_to(3, "onward.slots", deployment="build", state="free")
                first = await client.start("gated", gate)
                await comes_to(1, "onward.runs.held", deployment="build")
                await comes_to(1, "onward.slots", state="used")
                await comes_to(2, "onward.slots", state="free")
                assert figures.of("onward.attempts", deployment="build", cause="started") == 1
                assert figures.of("onward.queue.wait", deployment="build") == 1
                await comes_to(1, "onward.append.duration")
                stream = first.follow()
                await anext(stream)
                assert figures.of("onward.streams") == 1
                await stream.aclose()
                await comes_to(0, "onward.streams")
            await comes_to(1, "onward.queue.length", deployment="build")
            second = await client.start("gated", gate)
            await comes_to(2, "onward.queue.length", deployment="build")
            Path(gate["gate"]).touch()
            async with executing(code, redis_url, scheduler.address):
                await first.result()
                await second.result()
                await comes_to(0, "onward.queue.length", deployment="build")
                await comes_to(0, "onward.runs.held")
                assert figures.of("onward.attempts", cause="handed_over") == 1
                assert figures.of("onward.queue.wait") == 2, "only the first time"
    assert figures.of("onward.queue.length") == figures.of("onward.slots") == 0, "nobody is here to tell"


async def test_lost_runs_are_counted(redis_url: str, store: Store, figures: Figures) -> None:
    """By the lease that has run out here."""
    await begun(store)
    settings = SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0", lease_ttl_s=0.2)
    base, ref = store.place("default", "run")
    await store.command("ZADD", f"{base}:leases", 1, ref)
    async with scheduler_app.opened(settings):

        async def counted() -> bool:
            return figures.of("onward.runs.lost", why="expired") == 1

        await eventually(counted)


async def test_waits_for_a_budget_are_told(store: Store) -> None:
    waits: list[float] = []
    async with RedisBudgets(store, on_wait=waits.append).opened() as budgets:
        one, two = [
            await budgets.reserve("name", Caller(call, 1, "tenant"), 1, tokens=None, requests=1.0, window_s=60.0)
            for call in ("one", "two")
        ]
    assert one == 0.0
    assert waits == [two]
    assert waits[0] > 0


async def test_every_figure_is_listed_for_operators(
    redis_url: str, store: Store, code: Path, figures: Figures, tmp_path: Path
) -> None:
    """The README names all there are, with their labels, and no others."""
    rows = [line.split("|")[1:4] for line in README.read_text().splitlines() if line.startswith("| `onward.")]
    listed = {row[0].strip(" `"): row[1].strip() for row in rows}
    made: dict[str, str] = {}

    class Noting:
        def __getattr__(self, method: str) -> Any:
            def make(name: str, *_: Any, **__: Any) -> Any:
                made[name] = {"create_observable_gauge": "gauge", "create_counter": "counter"}.get(method, "histogram")
                return None

            return make

    noting: Mapping[str, Any] = {"get_meter": lambda _self, _name: Noting()}
    provider = type("Provider", (), dict(noting))()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "get_meter_provider", lambda: provider)
        async with scheduler_app.opened(SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0")) as scheduler:
            settings = GatewaySettings(redis_url=redis_url, grpc="127.0.0.1:0", http="127.0.0.1:0")
            async with gateway_app.opened(settings), executing(code, redis_url, scheduler.address):
                pass
    assert listed == made


async def test_an_exporter_that_is_not_there_is_told_of(redis_url: str) -> None:
    """By one line; and where none is named nothing is set up."""
    assert configure_metrics_from_env("test", {"OTEL_METRICS_EXPORTER": "none"}) is None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onward_cli", "scheduler", f"--redis={redis_url}", "--listen=127.0.0.1:0"),
        env={**os.environ, "OTEL_METRICS_EXPORTER": "pigeon"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 1
    assert told.startswith(b"onward: OTEL_METRICS_EXPORTER=pigeon: no such exporter is installed")
