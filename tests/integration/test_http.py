"""The HTTP door: what is asked, and how it is answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx2
import pytest
from tests.gateway import Door, begun, gateway, serve_workflow

from onward_runlog.store import Store
from onward_scheduler import app as scheduler_app
from onward_scheduler.settings import Settings as SchedulerSettings

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "words": {"type": "integer", "minimum": 1}},
    "required": ["topic"],
}


@pytest.fixture
async def scheduler(redis_url: str, store: Store) -> AsyncIterator[str]:
    async with scheduler_app.opened(SchedulerSettings(redis_url=redis_url, listen="127.0.0.1:0")) as serving:
        yield serving.address


@pytest.fixture
async def door(redis_url: str, store: Store, scheduler: str) -> AsyncIterator[Door]:
    await serve_workflow(store, schema=json.dumps(SCHEMA).encode())
    async with gateway(redis_url, schedulers=(scheduler,)) as door:
        yield door


@pytest.fixture
async def http(door: Door) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=f"http://{door.http}", trust_env=False) as client:
        yield client


async def test_a_run_is_started_and_read(http: httpx2.AsyncClient) -> None:
    started = await http.post("/v1/workflows/blog/runs", json={"topic": "tea"}, params={"label": "user:ada"})
    assert started.status_code == 202
    run = started.json()
    assert (run["state"], run["workflow"], run["labels"]) == ("QUEUED", "blog", {"user": "ada"})
    assert started.headers["location"] == f"/v1/runs/{run['run_id']}"
    assert started.headers["onward-run-id"] == run["run_id"]
    read = await http.get(started.headers["location"])
    assert (read.status_code, read.json()["input"]) == (200, {"topic": "tea"})


async def test_a_page_of_a_log(http: httpx2.AsyncClient, store: Store) -> None:
    log = await begun(store)
    last = await log.close()
    page = (await http.get("/v1/runs/run/events", params={"page_size": 1})).json()
    assert [event["offset"] for event in page["events"]] == [1]
    rest = (await http.get("/v1/runs/run/events", params={"after": page["next_cursor"]})).json()
    assert [event["offset"] for event in rest["events"]] == list(range(2, last + 1))
    assert rest["through_offset"] == rest["log"]["last_offset"] == last
