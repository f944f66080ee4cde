"""protos/README.md says what the code does: an executor in another language is written from it alone."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.runlog import SUCCEEDED, a_run, ended, log_of, told

from onward.log import EVENT_BYTES_MAX, INLINE_BYTES_MAX, UNSENT_BYTES_MAX, UNSENT_EVENTS_MAX
from onward.v1.event_pb2 import AttemptStarted, ComponentFinished, ComponentStarted, Event, OutputDelta
from onward.v1.run_pb2 import Payload
from onward_runlog import keys
from onward_runlog.runs import DEATHS_MAX, Runs
from onward_runlog.store import VERSION, Store, library
from onward_runlog.writer import (
    BATCH_BYTES_MAX,
    BATCH_EVENTS_MAX,
    CALL_BYTES_MAX,
    LOG_BYTES_MAX,
    LOG_EVENTS_MAX,
    RETENTION_S,
)

README = (Path(__file__).parents[2] / "protos" / "README.md").read_text()

MESSAGES: dict[str, bytes] = {
    "<AttemptStarted>": Event(attempt_started=AttemptStarted(executor_id="e1")).SerializeToString(),
    "<ComponentStarted>": Event(component_started=ComponentStarted(name="a")).SerializeToString(),
    "<ComponentFinished>": Event(component_finished=ComponentFinished()).SerializeToString(),
    "<RunStateChanged>": ended(SUCCEEDED).SerializeToString(),
    "<OutputDelta>": Event(output_delta=OutputDelta(text="late")).SerializeToString(),
    "<Payload>": Payload(data=b'"done"').SerializeToString(),
    "<result>": b"result",
    "<value>": b"value",
}


def declared() -> set[str]:
    """The functions that the library registers."""
    return {f"{VERSION}_{name}" for name in re.findall(r"^declare\('(\w+)'", library(), re.MULTILINE)}


def flat(reply: Any) -> list[str]:
    """The words of a reply, without its nesting."""
    if isinstance(reply, list):
        return [word for part in reply for word in flat(part)]
    return [reply.decode() if isinstance(reply, bytes) else str(reply)]


async def test_every_function_is_named_and_every_name_is_a_function(store: Store) -> None:
    await store.call("held", keys.base(0), "nobody")
    [[_, name, _, _, _, functions]] = await store.command("FUNCTION", "LIST", "LIBRARYNAME", VERSION)
    loaded = {function[1].decode() for function in functions}
    assert name == VERSION.encode()
    assert set(re.findall(rf"`({VERSION}_\w+)`", README)) == declared() == loaded


def test_every_answer_to_an_append_is_told() -> None:
    """Each with what an executor has to do then."""
    [answers] = re.findall(r"^-- → for each run \{(.*?),", library(), re.MULTILINE)
    _, _, table = README.partition("| status | what happened | what to do |")
    told = re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert set(told) == set(re.findall(r'"(\w+)"', answers)) > {"ok", "fenced"}


def test_keys_are_made_as_it_says() -> None:
    base, ref = "onward:{3}", "default/run-1"
    assert (keys.base(3), keys.ref("default", "run-1")) == (base, ref)
    assert keys.log(base, ref) in README
    for name in (
        keys.log("<base>", "<ref>"),
        keys.memo("<base>", "<ref>"),
        keys.blob("<base>", "<ref>", "<name>"),
        keys.run("<base>", "<ref>"),
        keys.wake_channel("<base>"),
        keys.STORE,
    ):
        assert f"| `{name}` |" in README


@pytest.mark.parametrize(
    "row",
    [
        f"| one event | {EVENT_BYTES_MAX >> 20} MiB, serialized |",
        f"| a value inline | {INLINE_BYTES_MAX >> 10} KiB; larger ones are blobs |",
        f"| one run in one append | {BATCH_EVENTS_MAX} events and {BATCH_BYTES_MAX >> 20} MiB, or one event |",
        f"| one call | {CALL_BYTES_MAX >> 20} MiB, or one run |",
        f"| {UNSENT_EVENTS_MAX:,} or {UNSENT_BYTES_MAX >> 20} MiB a run; then the user's code waits |",
        f"| a log with its memo and blobs | {LOG_EVENTS_MAX:,} events or {LOG_BYTES_MAX >> 20} MiB |",
        f"{LOG_EVENTS_MAX} and {LOG_BYTES_MAX} unless",
        f"{RETENTION_S * 1000} (7 days) unless",
        f"deaths_max {DEATHS_MAX},",
    ],
)
def test_limits_are_those_of_the_code(row: str) -> None:
    assert row in README


@pytest.mark.usefixtures("one_partition")
async def test_the_life_of_an_attempt_goes_as_told(store: Store, runs: Runs) -> None:
    """Each command of the worked example, sent as it stands there, gets the reply that stands under it."""
    run = a_run("r1")
    await runs.submit(run, holder="e1", ttl_s=60)
    blocks = re.findall(r"^```redis\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 18
    for call, reply in zip(lines[::2], lines[1::2], strict=True):
        words = [MESSAGES.get(word, word) for word in shlex.split(call)]
        expected = reply.removeprefix("→ ").split()
        words_back = flat(await store.command(*words))
        assert len(words_back) == len(expected), call
        assert [word if told != "*" else "*" for word, told in zip(words_back, expected, strict=True)] == expected, call
    kinds = ["QUEUED", "attempt_started", "component_started", "component_finished", "SUCCEEDED"]
    assert told(await log_of(store, run)) == kinds
    assert (await runs.get("default", "r1")).output.data == b'"done"'
