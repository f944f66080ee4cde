"""onward.testing, as users of it see it."""

from __future__ import annotations

import pytest

from onward import RunFailed, component, status, testing, workflow
from onward.v1.event_pb2 import ATTEMPT_CAUSE_EXECUTOR_LOST


@component
async def greet(name: str) -> str:
    status(f"greeting {name}")
    return f"Hello, {name}!"


@workflow
async def flow(name: str) -> str:
    if not name:
        raise ValueError("nobody")
    return await greet(name)


async def test_a_run_is_looked_at_when_it_has_ended() -> None:
    """Output, state, statuses, view and log."""
    result = await testing.run(flow, "Ada")
    assert result.output == "Hello, Ada!"
    assert result.state == "SUCCEEDED"
    assert result.error is None
    assert result.statuses == ["greeting Ada"]
    assert [instance.name for instance in result.view.children()] == ["greet"]
    assert len(result.events) == 6
    assert result.attempts == 1


async def test_a_run_that_failed_has_no_output() -> None:
    """Asking for it says why."""
    result = await testing.run(flow, name="")
    assert result.state == "FAILED"
    with pytest.raises(RunFailed, match="nobody"):
        _ = result.output


async def test_a_run_survives_its_executors() -> None:
    """Each crash is one attempt more."""
    with testing.crash(2, 6):
        result = await testing.run(flow, "Ada")
    assert result.attempts == 3
    assert result.output == "Hello, Ada!"
    assert result.statuses == ["greeting Ada"]
    causes = [event.attempt_started.cause for event in result.events if event.HasField("attempt_started")]
    assert causes[1:] == [ATTEMPT_CAUSE_EXECUTOR_LOST] * (len(causes) - 1)


async def test_a_crash_after_the_end_does_not_happen() -> None:
    """The run was over by then."""
    with testing.crash(100):
        result = await testing.run(flow, "Ada")
    assert result.attempts == 1


async def test_an_input_that_is_no_json_is_refused() -> None:
    """It could not be sent to a Gateway either."""

    @workflow
    async def takes(thing: object) -> None: ...

    with pytest.raises(TypeError, match="no JSON form"):
        await testing.run(takes, object())
