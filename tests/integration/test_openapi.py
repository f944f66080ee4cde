"""The description of the HTTP door: true of every route, typed for every workflow, and kept under attack."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import pytest
from tests.gateway import Door, begun, delta, gateway

from onward_cli.children import Child
from onward_gateway.access import Scope, line_of, new_key
from onward_gateway.http.routes import ROUTES
from onward_runlog.store import Store

WORKFLOWS = Path(__file__).with_name("described.py")

UNDESCRIBED = {"/", "/openapi.json", "/docs", "/docs/{name}"}
"""Pages, which are no API."""


async def describe(http: str, key: str = "") -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(base_url=f"http://{http}", trust_env=False, headers=headers) as client:
        response = await client.get("/openapi.json")
        assert response.status_code == 200
        document: dict[str, Any] = response.json()
        again = await client.get("/openapi.json", headers={"if-none-match": response.headers["etag"]})
        assert again.status_code == 304
        return document


def schema_of(document: dict[str, Any], pointer: str) -> jsonschema_rs.Draft202012Validator:
    """A validator of a component."""
    return jsonschema_rs.Draft202012Validator({"components": document["components"], "$ref": pointer})


@pytest.mark.xdist_group("described")
async def test_the_description_holds_under_attack(tmp_path: Path) -> None:
    """Schemathesis makes requests from it, good and bad ones: no 5xx, and every answer is as described.

    Runs are real: an executor takes them.
    """
    child = await Child.start(
        [
            "dev",
            str(WORKFLOWS),
            f"--data={tmp_path / 'data'}",
            "--grpc=127.0.0.1:0",
            "--http=127.0.0.1:0",
            "--no-reload",
        ]
    )
    try:
        assert await child.ready()
        document = await describe(child.addresses["http"])
        _check_workflows(document)
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"http://{child.addresses['http']}/openapi.json"),
            *("--header", "Prefer: wait=1"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "1", "--max-time", "30"),
            # What the description cannot say, such as that a token is one of ours, is refused though it fits.
            *(
                "--checks",
                "all",
                "--exclude-checks",
                "positive_data_acceptance",
                "--request-timeout",
                "10",
                "--suppress-health-check",
                "all",
                "--no-color",
            ),
            cwd=tmp_path,
            env={
                **os.environ,
                "NO_PROXY": "*",
                "no_proxy": "*",
                "PYTHONPATH": str(WORKFLOWS.parent),
                "SCHEMATHESIS_HOOKS": "attacks",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
    finally:
        await child.stop(15.0)


def _check_workflows(document: dict[str, Any]) -> None:
    """Every workflow has its own types, wherever its schema pointed."""
    schemas = document["components"]["schemas"]
    grow = document["paths"]["/v1/workflows/grow/invoke"]["post"]
    taken = grow["requestBody"]["content"]["application/json"]
    assert taken["schema"] == {"$ref": "#/components/schemas/grow.input"}
    assert "$defs" not in schemas["grow.input"]
    assert {"grow.input.Tree", "grow.input.Leaf", "grow.output.Tree"} <= set(schemas)
    validator = schema_of(document, taken["schema"]["$ref"])
    assert validator.is_valid(taken["example"]), "the example is one"
    leaf = {"name": "x"}
    assert validator.is_valid({"tree": {"leaf": leaf, "children": [{"leaf": leaf}]}})
    assert not validator.is_valid({"tree": {"leaf": leaf, "children": [{"leaf": 1}]}}), "recursion is kept"
    assert grow["description"] == "Return the tree that came in."


async def test_every_route_is_described_and_nothing_else(redis_url: str, store: Store) -> None:
    async with gateway(redis_url) as door:
        document = await describe(door.http)
    served = {
        (method.lower(), path.replace("{name:path}", "{name}"))
        for method, path in ROUTES
        if path not in UNDESCRIBED and not path.startswith("/console") and "{workflow}" not in path
    }
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == served
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    assert "security" not in document


async def test_a_key_is_described_where_one_is_needed(redis_url: str, store: Store, tmp_path: Path) -> None:
    key, file = new_key(), tmp_path / "keys"
    file.write_text(line_of(key, "a", frozenset({Scope.READ}), ""))
    async with gateway(redis_url, keys=file) as door:
        document = await describe(door.http, key)
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/healthz"]["get"]["security"] == []


async def test_events_are_as_described(redis_url: str, store: Store) -> None:
    log = await begun(store, labels={"a": "b"})
    await log.close(delta("x"), delta("y", "c"))
    async with gateway(redis_url) as door:
        await _check_events(door)


async def _check_events(door: Door) -> None:
    document = await describe(door.http)
    async with httpx2.AsyncClient(base_url=f"http://{door.http}", trust_env=False) as client:
        page = (await client.get("/v1/runs/run/events")).json()
        run = (await client.get("/v1/runs/run")).json()
    for event in page["events"]:
        schema_of(document, "#/components/schemas/Event").validate(event)
        assert set(event) <= set(document["components"]["schemas"]["Event"]["properties"])
        kind = document["components"]["schemas"]["Event"]["properties"][event["kind"]]["$ref"]
        assert set(event[event["kind"]]) <= set(document["components"]["schemas"][kind.split("/")[-1]]["properties"])
    schema_of(document, "#/components/schemas/Run").validate(run)
    assert set(run) <= set(document["components"]["schemas"]["Run"]["properties"])
