"""Model calls on real processes: an executor that is killed in mid-call, and what is left of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.e2e.asking import KEY
from tests.e2e.suite import running_suite
from tests.provider import Reply, serving

from onward import fold
from onward.v1.run_pb2 import Usage

TEXT = "One two three four five"
USED = Usage(input_tokens=40, output_tokens=20, cached_input_tokens=16, calls=4, cost_usd_micros=4 * 12)


@pytest.mark.parametrize("call", range(4), ids=["whole", "streaming component", "stream", "in a thread"])
async def test_an_executor_that_is_killed_in_mid_call_costs_that_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each other is asked once; output, view and usage are as if nothing had happened, and no key is anywhere."""
    async with serving() as provider:
        monkeypatch.setenv("TEST_MODEL_URL", provider.url)
        provider.default = Reply(TEXT)
        provider.script(*[Reply(TEXT)] * call, Reply(TEXT, gate=asyncio.Event(), after=3 if call else 0))
        target = Path(__file__).with_name("asking.py")
        async with running_suite(tmp_path, target=target, lease_ttl_s=5) as suite, suite.client() as client:
            run = await client.start("writes", {"topic": "tea"})
            await provider.until(lambda provider: len(provider.requests) == call + 1)
            if call in (1, 2):
                async for event in run.follow():
                    if event.output_delta.text == " three" and event.attempt == 1:
                        deltas = sum(" three" in one.text for one in fold([event]).components.values())
                        if deltas and (call == 1 or event.component_id):
                            break
            await suite.kill(suite.executors[0])
            await suite.add_executor("--drain-grace=1")
            events = [event async for event in run.follow()]
            assert await run.result() == [TEXT] * 4
            tried_again = [one.component_retrying.error for one in events if one.HasField("component_retrying")]
            assert not tried_again
            assert len(provider.requests) == 5
            view = fold(events)
            assert sorted(one.text for one in view.components.values() if one.text) == [TEXT] * 3
            assert (await client.get(run.run_id)).usage == USED
    told = capfd.readouterr()
    assert "with •••" in told.err
    assert KEY not in "".join(map(str, (*events, told.err, told.out)))
