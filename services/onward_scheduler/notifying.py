"""Notifications: a run that ended or is paused is told to whoever its workflow or this Scheduler names.

A hook is an http(s) URL, which gets a signed webhook in the manner of Standard Webhooks, or a workflow, which is
started with the run as its input. Each is told at least once, and can tell a repeat by the id.

URLs come from whoever deploys workflows and from the operator, never from who starts runs. A Scheduler calls them from
inside the network, so where deployments are not trusted its way out has to be limited there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from onward.v1.gateway_service_pb2 import StartRunRequest
from onward.v1.run_pb2 import Payload, Run
from onward.v1.scheduler_service_pb2 import SubmitRunRequest
from onward_runlog.runs import Entry, Runs, state_name
from onward_scheduler.outbox import Later
from onward_serving.errors import Refused

TIMEOUT_S = 10.0
"""How long a receiver may take to answer."""

SECRET_PREFIX = "whsec_"  # noqa: S105 - what Standard Webhooks puts before a secret
ID_CHARACTERS = 26

Submit = Callable[[SubmitRunRequest], Awaitable[tuple[Run, bool]]]


def is_url(hook: str) -> bool:
    """Tell whether a hook is a URL; else it is the name of a workflow."""
    return hook.startswith(("https://", "http://"))


def signing_key(secret: str) -> bytes:
    """Return the key that a webhook secret stands for: "whsec_" and base64, or any text.

    Raises:
        ValueError: It is not what it says.
    """
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a webhook secret that begins with {SECRET_PREFIX} goes on in base64: {error}") from None


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the webhook-signature header: version 1, HMAC-SHA256 over id, time and body."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class Notifier:
    """Tells hooks.

    Args:
        runs: Where runs and their hooks are read.
        submit: Accepts a run.
        http: Sends webhooks. It follows no redirects: they would lead a signed body elsewhere.
        key: Signs them; empty leaves them unsigned.
    """

    def __init__(self, runs: Runs, submit: Submit, http: httpx2.AsyncClient, key: bytes) -> None:
        self._runs = runs
        self._submit = submit
        self._http = http
        self._key = key

    async def tell(self, entry: Entry) -> None:
        """Tell one hook of one event; see `Outbox` for what it raises."""
        namespace, run_id = entry.run
        run = await self._runs.get(namespace, run_id)
        hooks = await self._runs.hooks(namespace, run_id)
        ended = entry.kind == "end"
        hook = (hooks.on_run_end if ended else hooks.on_run_paused)[int(entry.parts[-1]) - 1]
        # The same for each repeat, and for nothing else: a run pauses at an offset once.
        name = f"{namespace}/{run_id}/{run.log.log_id}/{entry.id}"
        message_id = "msg_" + hashlib.blake2b(name.encode(), digest_size=ID_CHARACTERS // 2).hexdigest()
        document = _document(run)
        if is_url(hook):
            await self._post(hook, message_id, "run.ended" if ended else "run.paused", document)
        else:
            await self._start(hook, message_id, run, document)

    async def _post(self, url: str, message_id: str, kind: str, document: dict[str, Any]) -> None:
        timestamp = int(time.time())
        body = json.dumps({"type": kind, "data": document}, separators=(",", ":")).encode()
        headers = {"content-type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(timestamp)}
        if self._key:
            headers["webhook-signature"] = signature(self._key, message_id, timestamp, body)
        try:
            # What it answers is not read: it may be long, and nobody wants it.
            async with self._http.stream("POST", url, content=body, headers=headers, timeout=TIMEOUT_S) as response:
                pass
        except httpx2.HTTPError as error:
            raise Later(f"{url} does not answer: {str(error) or type(error).__name__}") from error
        except httpx2.InvalidURL as error:
            raise Later(f"{url} is no URL: {error}") from error
        if not response.is_success:
            raise Later(f"{url} answers {response.status_code}")

    async def _start(self, workflow: str, message_id: str, run: Run, document: dict[str, Any]) -> None:
        data = json.dumps({"run": document}, separators=(",", ":")).encode()
        start = StartRunRequest(
            workflow=workflow,
            run_id=message_id,
            input=Payload(data=data, size=len(data)),
            fairness_key=run.fairness_key,
        )
        try:
            await self._submit(SubmitRunRequest(namespace=run.namespace, start=start))
        except Refused as refused:
            raise Later(str(refused)) from refused


def _document(run: Run) -> dict[str, Any]:
    """Return a run as receivers get it: what it is and how it stands, without input and output."""
    document: dict[str, Any] = {
        "run_id": run.run_id,
        "namespace": run.namespace,
        "workflow": run.workflow,
        "state": state_name(run.state),
        "deployment": run.deployment,
        "attempt": run.attempt,
        "labels": dict(run.labels),
        "create_time": run.create_time.ToJsonString(),
    }
    if run.HasField("end_time"):
        document["end_time"] = run.end_time.ToJsonString()
    if run.parent_run_id:
        document["parent_run_id"] = run.parent_run_id
    if run.HasField("error"):
        error = run.error
        told = {
            "reason": error.reason,
            "message": error.message,
            "type": error.type,
            "component_id": error.component_id,
        }
        document["error"] = {name: value for name, value in told.items() if value}
    return document
