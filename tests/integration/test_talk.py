"""The commands that talk, as a shell sees them: arguments in, output, messages and exit code out.

The Gateway is a real gRPC server with made-up runs, so that each test says what there is to be told.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from tests.runlog import eventually

from onward.gateways import Gateways
from onward.payload import encode
from onward.v1 import gateway_service_pb2 as pb
from onward.v1.event_pb2 import (
    OUTCOME_OK,
    AttemptStarted,
    ComponentFinished,
    ComponentStarted,
    Event,
    OutputDelta,
    RunStateChanged,
    StatusUpdated,
)
from onward.v1.gateway_service_pb2_grpc import GatewayServiceServicer, add_GatewayServiceServicer_to_server
from onward.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_CANCELLING,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RUN_STATE_RUNNING,
    RUN_STATE_SUCCEEDED,
    Payload,
    Run,
    RunError,
    RunLog,
    RunState,
)
from onward_cli import following, talk
from onward_cli.__main__ import TALK, command_line
from onward_cli.arguments import Refused, json_value, labels, workflow_input

Code = grpc.StatusCode
Context = grpc.aio.ServicerContext[Any, Any]

SCHEMA = {
    "type": "object",
    "properties": {
        "tone": {"$ref": "#/$defs/Tone", "default": "warm"},
        "topic": {"type": "string", "description": "What to write about."},
        "words": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
    },
    "required": ["topic"],
    "$defs": {"Tone": {"enum": ["warm", "dry"], "type": "string"}},
}


class Gateway(GatewayServiceServicer):
    """Knows some runs and workflows, and remembers what it was asked."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[Any] = []
        self.refusal: status_pb2.Status | None = None
        self.runs: dict[str, Run] = {}
        self.logs: dict[str, list[Event]] = {}
        self.blobs: dict[str, bytes] = {}
        self.followed = asyncio.Event()
        self.cuts = 0
        self.slow_s = 0.0
        self.more = asyncio.Event()
        self.workflows = [
            pb.Workflow(name="blog_post", description="Write a post.", input_schema=encode(SCHEMA)),
            pb.Workflow(name="plain"),
        ]

    def asked(self, kind: type[Message]) -> list[Any]:
        """The requests of a kind, in order."""
        return [request for request in self.requests if isinstance(request, kind)]

    def add(self, run_id: str, state: RunState.ValueType, events: list[Event] | None = None, **fields: Any) -> Run:
        """Know a run."""
        log = events if events is not None else story(state)
        for offset, event in enumerate(log, 1):
            event.offset = offset
            event.create_time.CopyFrom(Timestamp(seconds=100 + offset))
        self.logs[run_id] = log
        run = Run(run_id=run_id, workflow="blog_post", state=state, attempt=1, create_time=Timestamp(seconds=100))
        run.MergeFrom(Run(log=RunLog(log_id="L", first_offset=1, last_offset=len(log)), **fields))
        if state in (RUN_STATE_SUCCEEDED, RUN_STATE_FAILED, RUN_STATE_CANCELLED):
            run.end_time.CopyFrom(Timestamp(seconds=103))
        self.runs[run_id] = run
        return run

    def refuse(self, code: Code, reason: str, message: str, *details: Message) -> None:
        """Answer the next request with an error."""
        self.refusal = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message)
        for detail in (error_details_pb2.ErrorInfo(reason=f"ERROR_REASON_{reason}", domain="onward"), *details):
            packed = AnyMessage()
            packed.Pack(detail)
            self.refusal.details.append(packed)

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        await self._note(request, context)
        run_id = request.run_id or "run-1"
        return pb.StartRunResponse(run=self.runs.get(run_id) or self.add(run_id, RUN_STATE_QUEUED))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        await self._note(request, context)
        return pb.GetRunResponse(run=await self._run(request.run_id, context))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        await self._note(request, context)
        return pb.ListRunsResponse(runs=self.runs.values())

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        await self._note(request, context)
        return pb.CancelRunResponse(run=Run(run_id=request.run_id, state=RUN_STATE_CANCELLING))

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:
        await self._note(request, context)
        return pb.ResumeRunResponse(run=Run(run_id=request.run_id, state=RUN_STATE_QUEUED))

    async def SignalRun(self, request: pb.SignalRunRequest, context: Context) -> pb.SignalRunResponse:
        await self._note(request, context)
        return pb.SignalRunResponse(offset=7)

    async def ListWorkflows(self, request: pb.ListWorkflowsRequest, context: Context) -> pb.ListWorkflowsResponse:
        return pb.ListWorkflowsResponse(workflows=self.workflows)

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Context) -> AsyncIterator[pb.ReadBlobResponse]:
        yield pb.ReadBlobResponse(data=self.blobs[request.blob_uri])

    async def ListRunEvents(self, request: pb.ListRunEventsRequest, context: Context) -> pb.ListRunEventsResponse:
        events = self.logs[request.run_id]
        log = self.runs[request.run_id].log
        return pb.ListRunEventsResponse(events=events, log=log, after_offset=0, through_offset=len(events))

    async def InvokeWorkflow(self, request: pb.InvokeWorkflowRequest, context: Context) -> pb.InvokeWorkflowResponse:
        raise NotImplementedError

    async def ForkRun(self, request: pb.ForkRunRequest, context: Context) -> pb.ForkRunResponse:
        await self._note(request, context)
        return pb.ForkRunResponse(run=self.add("fork-1", RUN_STATE_QUEUED))

    async def SubscribeRun(
        self, request: pb.SubscribeRunRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeRunResponse]:
        await self._note(request, context)
        run = await self._run(request.run_id, context)
        log, after = self.logs[request.run_id], request.start.after_offset
        yield pb.SubscribeRunResponse(opened=pb.Opened(run=run, after_offset=after))
        if log[after:]:
            batch = pb.EventBatch(events=log[after:], after_offset=after, through_offset=len(log))
            yield pb.SubscribeRunResponse(batch=batch)
        self.followed.set()
        if self.cuts:
            self.cuts -= 1
            return
        if run.HasField("end_time"):
            yield pb.SubscribeRunResponse(completed=pb.Completed(run=run))
        else:
            await self.more.wait()

    async def _note(self, request: Message, context: Context) -> None:
        self.requests.append(request)
        await asyncio.sleep(self.slow_s)
        if self.refusal is not None:
            status, self.refusal = rpc_status.to_status(self.refusal), None
            context.set_trailing_metadata(status.trailing_metadata)
            await context.abort(status.code, status.details)

    async def _run(self, run_id: str, context: Context) -> Run:
        if run_id not in self.runs:
            self.refuse(Code.NOT_FOUND, "RUN_NOT_FOUND", f"no run {run_id}")
            await self._note(Run(), context)
        return self.runs[run_id]


def story(state: RunState.ValueType) -> list[Event]:
    """A log that ends in a state."""
    events = [
        Event(run_state_changed=RunStateChanged(state=RUN_STATE_QUEUED)),
        Event(attempt=1, attempt_started=AttemptStarted(executor_id="e1")),
        Event(status_updated=StatusUpdated(message="Writing", done=1, total=2)),
        Event(component_id="c", component_started=ComponentStarted(name="section")),
        Event(component_id="c", output_delta=OutputDelta(text="Tea is")),
        Event(component_id="c", output_delta=OutputDelta(text=" old.\nVery.")),
        Event(component_id="c", component_finished=ComponentFinished(outcome=OUTCOME_OK)),
    ]
    if state == RUN_STATE_SUCCEEDED:
        change = RunStateChanged(state=state, output=encode({"title": "Tea"}))
    elif state in (RUN_STATE_FAILED, RUN_STATE_PAUSED):
        change = RunStateChanged(state=state, error=ERROR)
    elif state == RUN_STATE_CANCELLED:
        change = RunStateChanged(state=state, reason="wrong topic")
    else:
        return events
    return [*events, Event(run_state_changed=change)]


ERROR = RunError(
    reason="COMPONENT_FAILED", type="builtins.ValueError", message="no tea", component_id="c", traceback="File x"
)


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
    """Runs commands against a Gateway, in this process."""

    def __init__(self, gateway: Gateway, captured: pytest.CaptureFixture[str]) -> None:
        self._gateway = gateway
        self._captured = captured

    async def __call__(self, *words: str) -> Ran:
        try:
            code = await command_line(words).run_async(words, result_action="return_value")
        except SystemExit as end:
            code = end.code
        out, err = self._captured.readouterr()
        assert "Traceback" not in err
        return Ran(code, out, err.replace(self._gateway.address, "HERE"))


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[Gateway]:
    server = grpc.aio.server()
    add_GatewayServiceServicer_to_server(gateway, server)
    gateway.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield gateway
    finally:
        await server.stop(None)


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    async with serving(Gateway()) as gateway:
        monkeypatch.setenv("ONWARD_GATEWAY", gateway.address)
        yield gateway


@pytest.fixture
def onward(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(gateway, capsys)


# --- start ------------------------------------------------------------------------------------------------------------


async def test_start_prints_the_id_and_says_how_to_follow(gateway: Gateway, onward: Shell) -> None:
    """The id alone is the answer, for `RUN=$(onward start …)`; the rest is for who reads along."""
    ran = await onward("start", "blog_post", "topic=the history of tea", "words=3", "tone=", 'note="3"', "a=[1]")
    assert ran == Ran(0, "run-1\n", "follow it: onward follow run-1\n")
    (request,) = gateway.asked(pb.StartRunRequest)
    assert json.loads(request.input.data) == {
        "topic": "the history of tea",
        "words": 3,
        "tone": "",
        "note": "3",
        "a": [1],
    }
    assert request.request_id
    assert not request.HasField("run_timeout")
    assert not request.HasField("schedule_time")


async def test_start_passes_on_everything_that_is_asked_for(gateway: Gateway, onward: Shell) -> None:
    """Each option reaches its field of the request."""
    ran = await onward(
        *("start", "blog_post", "topic=coffee", "--input", '{"topic": "tea", "words": 9}', "--run-id", "mine"),
        *("--request-id", "r1", "--label", "user=ada", "--label", "a=b=c", "--timeout", "1h30m"),
        *("--at", "2026-11-22T08:00+01:00", "--priority", "-5", "--fairness-key", "ada", "--deployment", "v2"),
    )
    assert (ran.code, ran.out) == (0, "mine\n")
    (request,) = gateway.asked(pb.StartRunRequest)
    assert json.loads(request.input.data) == {"topic": "coffee", "words": 9}, "single parameters win"
    assert (request.workflow, request.run_id, request.request_id) == ("blog_post", "mine", "r1")
    assert dict(request.labels) == {"user": "ada", "a": "b=c"}
    assert request.run_timeout.ToSeconds() == 5400
    assert request.schedule_time.ToJsonString() == "2026-11-22T07:00:00Z"
    assert (request.priority, request.fairness_key, request.deployment) == (-5, "ada", "v2")


async def test_start_for_scripts_gives_the_run_as_one_document(gateway: Gateway, onward: Shell) -> None:
    """Nothing else is written, not even to people."""
    gateway.add("run-1", RUN_STATE_QUEUED, [Event()], input=encode({"topic": "tea"}), labels={"a": "b"})
    ran = await onward("start", "blog_post", "--output", "json")
    assert (ran.code, ran.err) == (0, "")
    (run,) = ran.json
    assert (run["run_id"], run["state"], run["labels"]) == ("run-1", "QUEUED", {"a": "b"})
    assert run["input"] == {"topic": "tea"}
    assert run["create_time"] == "1970-01-01T00:01:40.000Z"
    assert "output" not in run


async def test_input_comes_from_a_file_and_from_the_standard_input(
    gateway: Gateway, onward: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`@FILE` and `-`, for inputs that no command line holds."""
    (tmp_path / "input.json").write_text('{"topic": "file"}')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"topic": "stdin"}')))
    assert (await onward("start", "blog_post", "--input", f"@{tmp_path}/input.json")).code == 0
    assert (await onward("start", "blog_post", "--input", "-")).code == 0
    topics = [json.loads(request.input.data)["topic"] for request in gateway.asked(pb.StartRunRequest)]
    assert topics == ["file", "stdin"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--input", "{"], "onward: --input is not JSON"),
        (["--input", "[1]"], "onward: --input is a JSON object of the workflow's parameters by name, not [1]"),
        (["--input", "@missing.json"], "onward: --input: cannot read missing.json: No such file or directory"),
        (["tea"], "onward: input 'tea' is not NAME=VALUE"),
        (["--label", "ada"], "onward: --label 'ada' is not NAME=VALUE"),
        (["--timeout", "soon"], "onward: --timeout: 'soon' is not a duration"),
        (["--timeout", "3652501d"], "onward: --timeout: a duration is 0 or more and at most 10,000 years"),
        (["--in", "3652500d"], "onward: --in 3652500d is behind the year 9999"),
        (["--at", "0001-01-01T00:00+14:00"], "onward: --at '0001-01-01T00:00+14:00' is not a time"),
        (["--at", "8 o'clock"], 'onward: --at "8 o\'clock" is not a time'),
        (["--at", "2026-11-22", "--in", "1h"], "onward: --at and --in exclude each other"),
        (["--priority", "high"], "priority"),
        (["--flollow"], "Unknown option: --flollow"),
    ],
)
async def test_what_makes_no_sense_is_refused_here(
    gateway: Gateway, onward: Shell, words: list[str], said: str
) -> None:
    """One clear message, exit code 2, and the Gateway is not asked."""
    ran = await onward("start", "blog_post", *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert not gateway.requests


async def test_every_violation_of_the_schema_is_listed(gateway: Gateway, onward: Shell) -> None:
    """Who starts a run learns at once all that is wrong, and where the parameters are described."""
    violation = error_details_pb2.BadRequest.FieldViolation
    wrong = error_details_pb2.BadRequest(
        field_violations=[
            violation(field="/words", description="is not an integer"),
            violation(description='"topic" is a required property'),
        ]
    )
    gateway.refuse(Code.INVALID_ARGUMENT, "INPUT_INVALID", "wrong", wrong)
    ran = await onward("start", "blog_post", "words=many")
    assert ran == Ran(
        2,
        "",
        "onward: that is no input of blog_post:\n  /words: is not an integer\n"
        '  "topic" is a required property\nsee: onward workflows blog_post\n',
    )


async def test_a_number_is_text_where_text_is_wanted(gateway: Gateway, onward: Shell) -> None:
    """As it was typed: only the schema knows that a year is no number. What is wrong otherwise is told as ever."""
    violation = error_details_pb2.BadRequest.FieldViolation
    wrong = error_details_pb2.BadRequest(field_violations=[violation(field="/topic", description="is not a string")])
    gateway.refuse(Code.INVALID_ARGUMENT, "INPUT_INVALID", "wrong", wrong)
    assert (await onward("start", "blog_post", "topic=1e3", "words=7")).code == 0
    first, second = gateway.asked(pb.StartRunRequest)
    assert json.loads(first.input.data) == {"topic": 1000.0, "words": 7}
    assert json.loads(second.input.data) == {"topic": "1e3", "words": 7}
    assert first.request_id == second.request_id
    for topic in ("[1]", "tea"):
        gateway.refuse(Code.INVALID_ARGUMENT, "INPUT_INVALID", "wrong", wrong)
        assert "/topic: is not a string" in (await onward("start", "blog_post", f"topic={topic}")).err


async def test_an_unknown_workflow_is_told_from_a_misspelt_one(gateway: Gateway, onward: Shell) -> None:
    """What is near is named."""
    gateway.refuse(Code.NOT_FOUND, "WORKFLOW_NOT_FOUND", "nobody serves blog_pst")
    ran = await onward("start", "blog_pst")
    assert ran == Ran(2, "", "onward: there is no workflow blog_pst: did you mean blog_post?\n")
    gateway.refuse(Code.NOT_FOUND, "WORKFLOW_NOT_FOUND", "nobody serves xyz")
    ran = await onward("start", "xyz")
    assert ran == Ran(2, "", "onward: nobody serves xyz: see onward workflows\n")


async def test_without_a_gateway_one_line_says_what_to_do(onward: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, and no words of gRPC."""
    monkeypatch.setattr(talk, "PATIENCE_S", 0)
    where = "127.0.0.1:1"  # nobody listens there
    said = (
        f"onward: no Gateway answers at {where}: start one with `onward dev FILE`, or name another one with --gateway\n"
    )
    for command in ("runs", "workflows", "get x", "follow x", "cancel x", "resume x", "signal x y", "start x"):
        assert await onward(*command.split(), "--gateway", where) == Ran(2, "", said)


async def test_where_a_start_may_have_happened_it_is_said_how_to_find_out(
    gateway: Gateway, onward: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same request_id again gives the run if there is one, and starts it if not."""
    monkeypatch.setattr(talk, "PATIENCE_S", 0)
    gateway.refuse(Code.UNAVAILABLE, "STORE_UNAVAILABLE", "the store does not answer")
    ran = await onward("start", "blog_post", "--request-id", "r1")
    assert ran == Ran(
        2,
        "",
        "onward: the store does not answer\n"
        "if it was accepted after all, this gives the same run and no second one: --request-id r1\n",
    )


async def test_a_gateway_that_takes_long_is_told_from_none(
    gateway: Gateway, onward: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there and waits for the store: a moment later a person hears that the command goes on, and at last why."""
    monkeypatch.setattr(talk, "PATIENCE_S", 0)
    monkeypatch.setattr(talk, "STILL_TRYING_S", 0.1)
    monkeypatch.setattr(Gateways.ask, "__kwdefaults__", {"timeout_s": 0.5, "metadata": ()})
    gateway.slow_s = 30.0
    told = (
        "still trying: no answer yet from HERE\nonward: no answer came in time from HERE: what it needs may be away "
        "(the store, a Scheduler), which its log would say, or nobody is there\n"
    )
    assert await onward("runs") == Ran(2, "", told)
    ran = await onward("start", "plain", "--request-id", "r1")
    assert (ran.code, ran.out, ran.err.startswith(told)) == (2, "", True)
    assert ran.err.endswith("this gives the same run and no second one: --request-id r1\n")


async def test_who_follows_is_not_told_that_it_takes_long(
    gateway: Gateway, onward: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run does."""
    monkeypatch.setattr(talk, "STILL_TRYING_S", 0.2)
    gateway.add("run-1", RUN_STATE_RUNNING)
    watching = asyncio.create_task(onward("follow", "run-1"))
    await gateway.followed.wait()
    await asyncio.sleep(0.4)
    gateway.cuts = 1
    gateway.add("run-1", RUN_STATE_SUCCEEDED)
    gateway.more.set()
    assert "still trying" not in (await watching).err


# --- follow -----------------------------------------------------------------------------------------------------------


async def test_follow_writes_lines_where_there_is_no_terminal(gateway: Gateway, onward: Shell) -> None:
    """What a CI log shows, to the word."""
    gateway.add("run-1", RUN_STATE_SUCCEEDED, output=encode({"title": "Tea"}))
    ran = await onward("follow", "run-1")
    assert ran == Ran(
        0,
        "run run-1 QUEUED\n"
        "run run-1 RUNNING on e1\n"
        "[blog_post] status: Writing 1/2\n"
        "[section] started\n"
        "[section] Tea is old.\n"
        "[section] Very.\n"
        "[section] finished in 3.0s\n"
        "run run-1 SUCCEEDED\n"
        '{\n  "title": "Tea"\n}\n'
        "✓ SUCCEEDED  blog_post  run-1  after 3.0s\n"
        "follow it again: onward follow run-1\n",
        "",
    )


async def test_a_lost_connection_is_told_and_resumed(gateway: Gateway, onward: Shell) -> None:
    """To a person, beside the run; a script has nothing to do about it."""
    gateway.add("run-1", RUN_STATE_SUCCEEDED, output=encode({"title": "Tea"}))
    whole = await onward("follow", "run-1")
    gateway.cuts = 1
    ran = await onward("follow", "run-1")
    assert (ran.code, ran.out) == (0, whole.out)
    assert ran.err.startswith("connection lost, resuming: ")
    assert ran.err.count("\n") == 1
    gateway.cuts = 1
    script = await onward("follow", "run-1", "--output", "json")
    assert (script.code, script.err, len(script.json)) == (0, "", 9)


async def test_start_and_follow_in_one(gateway: Gateway, onward: Shell) -> None:
    """The same picture, and text as it is."""
    events = [*story(RUN_STATE_QUEUED), Event(run_state_changed=RunStateChanged(state=RUN_STATE_SUCCEEDED))]
    gateway.add("run-1", RUN_STATE_SUCCEEDED, events, output=encode("A text.\nIts end."))
    ran = await onward("start", "blog_post", "topic=tea", "--follow", "--gateway", f"{gateway.address},")
    assert ran.code == 0
    assert "\nrun run-1 SUCCEEDED\nA text.\nIts end.\n✓ SUCCEEDED  " in ran.out
    assert ran.out.endswith(f"follow it again: onward follow run-1 --gateway {gateway.address},\n")


async def test_follow_goes_on_after_an_offset(gateway: Gateway, onward: Shell) -> None:
    """Only what came later is shown, and a place that does not exist yet is an error."""
    gateway.add("run-1", RUN_STATE_SUCCEEDED)
    ran = await onward("follow", "run-1", "--after", "5")
    assert ran.out.startswith("[section] Tea is old.\n[section] Very.\n[section] finished")
    ran = await onward("follow", "run-1", "--after", "9")
    assert ran == Ran(2, "", "onward: run run-1 has no event 9 yet: the newest is 8\n")


async def test_what_a_run_in_line_waits_for_is_told_when_it_changes(
    gateway: Gateway, onward: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log does not say that nobody serves it."""
    monkeypatch.setattr(following, "WAITS_S", 0.02)
    run = gateway.add("run-1", RUN_STATE_QUEUED, story(RUN_STATE_QUEUED)[:1], waiting_for="an executor of blue")
    watching = asyncio.create_task(onward("follow", "run-1"))
    await eventually(lambda: _asked(gateway, 4))
    run.waiting_for = "an executor of green"
    await eventually(lambda: _asked(gateway, 8))
    gateway.add("run-1", RUN_STATE_SUCCEEDED)
    gateway.more.set()
    lines = (await watching).out.splitlines()
    assert lines[:4] == [
        "run run-1 QUEUED",
        "run run-1 waits for an executor of blue",
        "run run-1 waits for an executor of green",
        "run run-1 RUNNING on e1",
    ]


async def _asked(gateway: Gateway, times: int) -> bool:
    return len(gateway.asked(pb.GetRunRequest)) >= times


async def test_follow_for_scripts_gives_a_line_for_each_event(gateway: Gateway, onward: Shell) -> None:
    """Events with their values decoded, at last the run with the whole of its output, wherever that is kept."""
    gateway.add("run-1", RUN_STATE_SUCCEEDED, output=Payload(blob_uri="b1", size=300_000))
    gateway.blobs["b1"] = b'{"long": true}'
    ran = await onward("follow", "run-1", "--output", "json", "--after", "4")
    assert (ran.code, ran.err) == (0, "")
    *events, last = ran.json
    assert [line["event"]["offset"] for line in events] == [5, 6, 7, 8]
    assert events[0]["event"]["output_delta"] == {"part": 0, "channel": "UNSPECIFIED", "text": "Tea is"}
    assert events[2]["event"]["component_finished"]["outcome"] == "OK"
    assert events[3]["event"]["run_state_changed"]["output"] == {"title": "Tea"}
    assert last["run"]["output"] == {"long": True}


@pytest.mark.parametrize(
    ("state", "fields", "said"),
    [
        (RUN_STATE_FAILED, {"error": ERROR}, "run run-1 FAILED: section: ValueError: no tea\n✗ FAILED  blog_post"),
        (RUN_STATE_CANCELLED, {}, "run run-1 CANCELLED: wrong topic\n■ CANCELLED  blog_post"),
        (RUN_STATE_PAUSED, {"error": ERROR}, "  continue it: onward resume run-1\n"),
    ],
)
async def test_a_run_that_did_not_succeed_gives_exit_code_1(
    gateway: Gateway, onward: Shell, state: RunState.ValueType, fields: dict[str, Any], said: str
) -> None:
    """Failed, cancelled, or paused: that one waits for a person, and following it would wait too."""
    gateway.add("run-1", state, **fields)
    ran = await onward("follow", "run-1")
    assert (ran.code, ran.err) == (1, "")
    assert said in ran.out
    assert (await onward("follow", "run-1", "--output", "json")).code == 1


async def test_a_run_that_was_paused_and_went_on_is_followed_to_its_end(gateway: Gateway, onward: Shell) -> None:
    """Only the pause of now ends following."""
    end = Event(run_state_changed=RunStateChanged(state=RUN_STATE_SUCCEEDED))
    gateway.add("run-1", RUN_STATE_SUCCEEDED, [*story(RUN_STATE_PAUSED), Event(), end])
    ran = await onward("follow", "run-1")
    assert ran.code == 0
    assert "run run-1 PAUSED: section: ValueError: no tea\nrun run-1 SUCCEEDED\n" in ran.out


async def test_an_unknown_run_is_one_line(onward: Shell) -> None:
    """And where to look."""
    for command in ("follow", "get"):
        assert await onward(command, "nope") == Ran(2, "", "onward: no run nope: see onward runs\n")


# --- in a process of its own ------------------------------------------------------------------------------------------

PROGRAM = (sys.executable, "-m", "onward_cli")


async def test_ctrl_c_stops_watching_and_nothing_else(gateway: Gateway) -> None:
    """The run goes on, and the message says so and how to see more of it."""
    gateway.add("run-1", RUN_STATE_RUNNING)
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, *("follow", "run-1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    while b"finished" not in await process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert err.decode() == ("\nnot watching any more; run run-1 goes on. Follow it again: onward follow run-1\n")
    assert not gateway.asked(pb.CancelRunRequest)


@pytest.mark.parametrize("state", [RUN_STATE_SUCCEEDED, RUN_STATE_RUNNING])
async def test_on_a_terminal_the_run_is_live(gateway: Gateway, state: RunState.ValueType) -> None:
    """A real terminal gets the live picture; when the run ends, or Ctrl-C comes, it is left clean."""
    gateway.add("run-1", state, output=encode({"title": "Tea"}) if state == RUN_STATE_SUCCEEDED else None)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, *("follow", "run-1"), stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    if state == RUN_STATE_RUNNING:
        await gateway.followed.wait()
        await asyncio.to_thread(_read_until, ours, "━")
        process.send_signal(signal.SIGINT)
    shown = await asyncio.to_thread(_read_until, ours, None)
    await process.wait()
    os.close(ours)
    assert "\x1b[?25h" in shown, "the cursor is back"
    if state == RUN_STATE_RUNNING:
        assert process.returncode == 130
        assert "run run-1 goes on. Follow it again" in shown
    else:
        assert process.returncode == 0
        after = shown[shown.rindex("\x1b[?25h") :]
        assert '"title"' in after
        assert "SUCCEEDED" in after
        assert "the run goes on" not in after


def _read_until(terminal: int, text: str | None) -> str:
    """Read a terminal until a text has come, or with None until nobody writes any more."""
    seen = b""
    with suppress(OSError):  # Linux says so when the last writer is gone
        while (text is None or text.encode() not in seen) and (piece := os.read(terminal, 4096)):
            seen += piece
    return seen.decode()


# --- the others -------------------------------------------------------------------------------------------------------


async def test_runs_are_a_table_with_filters(gateway: Gateway, onward: Shell) -> None:
    """A row is a line where there is no terminal, however long; filters reach the Gateway."""
    gateway.add("a" * 40, RUN_STATE_SUCCEEDED, labels={"user": "ada", "long": "x" * 100})
    gateway.add("run-2", RUN_STATE_FAILED)
    ran = await onward("runs", "--workflow", "blog_post", "--state", "failed", "--state", "PAUSED", "--label", "a=b")
    (request,) = gateway.asked(pb.ListRunsRequest)
    assert (request.workflow, list(request.states), dict(request.labels)) == (
        "blog_post",
        [RUN_STATE_FAILED, RUN_STATE_PAUSED],
        {"a": "b"},
    )
    head, first, second = ran.out.splitlines()
    assert head.split() == ["RUN", "WORKFLOW", "STATE", "AGE", "TOOK", "ATTEMPT", "LABELS"]
    assert first.split()[:3] == ["a" * 40, "blog_post", "SUCCEEDED"]
    assert first.split()[4:] == ["3.0s", "1", f"long={'x' * 100}", "user=ada"]
    assert second.split()[:3] == ["run-2", "blog_post", "FAILED"]


async def test_a_list_says_what_runs_wait_for(gateway: Gateway, onward: Shell) -> None:
    """In a column that is there when one does."""
    gateway.add("run-1", RUN_STATE_SUCCEEDED)
    gateway.add("run-2", RUN_STATE_QUEUED, waiting_for="an executor of deployment blue")
    head, first, second = (await onward("runs")).out.splitlines()
    assert head.rstrip().endswith("WAITS FOR")
    assert "executor" not in first
    assert second.rstrip().endswith("an executor of deployment blue")


async def test_runs_are_limited_and_say_so(gateway: Gateway, onward: Shell) -> None:
    """As many as were asked for, and a word on the rest."""
    for number in range(3):
        gateway.add(f"run-{number}", RUN_STATE_QUEUED)
    ran = await onward("runs", "--limit", "2")
    assert len(ran.out.splitlines()) == 3
    assert ran.err == "there are more: --limit 4\n"
    ran = await onward("runs", "--limit", "2", "--output", "json")
    assert [run["run_id"] for run in ran.json[0]] == ["run-0", "run-1"]
    gateway.runs.clear()
    assert await onward("runs") == Ran(0, "", "no runs\n")
    assert await onward("runs", "--output", "json") == Ran(0, "[]\n", "")
    for few in ("0", "-3"):
        assert await onward("runs", "--limit", few) == Ran(
            2, "", f"onward: --limit {few}: a number from 1 on is wanted\n"
        )


async def test_a_state_that_is_none_is_refused(onward: Shell) -> None:
    """With those that there are."""
    ran = await onward("runs", "--state", "done")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("onward: --state done is none: there are queued, running, waiting, ")


async def test_get_shows_everything_about_a_run(gateway: Gateway, onward: Shell) -> None:
    """Facts, input, components, error with its traceback."""
    gateway.add("run-1", RUN_STATE_FAILED, error=ERROR, input=encode({"topic": "tea"}), labels={"user": "ada"})
    ran = await onward("get", "run-1")
    assert (ran.code, ran.err) == (0, "")
    facts = [line.split() for line in ran.out.splitlines()]
    for fact in (
        ["run", "run-1"],
        ["state", "FAILED"],
        ["took", "3.0s"],
        ["labels", "user=ada"],
        ["events", "1", "to", "8"],
    ):
        assert fact in facts
    assert '\ninput\n{\n  "topic": "tea"\n}\n' in ran.out
    assert "\ncomponents\n✓ section  3.0s\n" in ran.out
    assert "\nerror\nsection: ValueError: no tea\nFile x\n" in ran.out
    (run,) = (await onward("get", "run-1", "--output", "json")).json
    assert run["error"]["reason"] == "COMPONENT_FAILED"
    assert run["components"] == [{"id": "c", "name": "section", "parent_id": "", "state": "ok", "tries": 1}]


async def test_fork_and_retry_print_the_new_run(gateway: Gateway, onward: Shell) -> None:
    """Each reaches the Gateway as it was meant."""
    ran = await onward("retry", "r", "--deployment", "v2")
    assert (ran.code, ran.out) == (0, "fork-1\n")
    assert "onward follow fork-1" in ran.err
    (run,) = (await onward("fork", "r", "--from", "c1", "--output", "json")).json
    assert run["run_id"] == "fork-1"
    assert (await onward("fork", "r")).out == "fork-1\n"
    asked = [
        (each.run_id, each.component_id, each.from_failure, each.deployment)
        for each in gateway.asked(pb.ForkRunRequest)
    ]
    assert asked == [("r", "", True, "v2"), ("r", "c1", False, ""), ("r", "", False, "")]


async def test_cancel_signal_and_resume_say_what_came_of_it(gateway: Gateway, onward: Shell) -> None:
    """Each reaches the Gateway as it was meant."""
    assert await onward("cancel", "r", "--reason", "no") == Ran(0, "run r is CANCELLING\n", "")
    assert await onward("signal", "r", "approve", '{"by": "ada"}') == Ran(0, "signal approve is event 7 of run r\n", "")
    assert await onward("signal", "r", "count", "-5", "--output", "json") == Ran(0, '{"offset": 7}\n', "")
    assert await onward("resume", "r", "--deployment", "v2") == Ran(0, "run r is QUEUED\n", "")
    assert gateway.asked(pb.CancelRunRequest)[0].reason == "no"
    assert [json.loads(request.value.data) for request in gateway.asked(pb.SignalRunRequest)] == [{"by": "ada"}, -5]
    assert gateway.asked(pb.ResumeRunRequest)[0].deployment == "v2"
    ran = await onward("signal", "r", "approve", "yes")
    assert (ran.code, ran.err.startswith("onward: the value of approve is not JSON")) == (2, True)
    gateway.refuse(Code.FAILED_PRECONDITION, "RUN_STATE", "run r is SUCCEEDED: only a paused run is resumed")
    assert await onward("resume", "r") == Ran(2, "", "onward: run r is SUCCEEDED: only a paused run is resumed\n")


async def test_workflows_come_with_their_parameters_and_an_example(gateway: Gateway, onward: Shell) -> None:
    """Whoever reads it can start one."""
    ran = await onward("workflows")
    assert [line.rstrip() for line in ran.out.splitlines()] == [
        "blog_post",
        "  Write a post.",
        "    topic  string                          What to write about.",
        '    tone   "warm" | "dry"  default "warm"',
        "    words  integer | null  default null",
        "  onward start blog_post topic=TEXT --follow",
        "",
        "plain",
        "  onward start plain --follow",
    ]
    (served,) = (await onward("workflows", "plain", "--output", "json")).json
    assert [each["name"] for each in served] == ["plain"]
    assert (await onward("workflows", "plan")).err == "onward: there is no workflow plan: did you mean plain?\n"


async def test_help_is_short_and_has_an_example(onward: Shell) -> None:
    """For each command, with the exit codes where they tell something."""
    for command in TALK:
        ran = await onward(command, "--help")
        assert f"Example: onward {command}" in ran.out
        assert "--gateway" in ran.out
        assert "ONWARD_GATEWAY" in ran.out
        assert command in (await onward("--help")).out
    assert "130" in (await onward("follow", "--help")).out


def test_values_are_read_as_they_are_typed() -> None:
    """What looks like JSON is JSON, all else is text."""
    values = workflow_input(None, ["a=1", "b=true", "c=1e3", 'd="x"', "e=x", "f=NaN", "g= ", "h=a=b", "i=null"])
    assert values == {"a": 1, "b": True, "c": 1000.0, "d": "x", "e": "x", "f": "NaN", "g": " ", "h": "a=b", "i": None}
    assert labels(["a=1"]) == {"a": "1"}
    assert json_value("[1]", "x") == [1]
    with pytest.raises(Refused, match=r"^x is not JSON: NaN is not JSON$"):
        json_value("NaN", "x")
