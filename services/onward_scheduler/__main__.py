"""`python -m onward_scheduler`: a Scheduler with its settings from the environment."""

from __future__ import annotations

import asyncio

from onward_scheduler.app import opened
from onward_scheduler.settings import Settings
from onward_serving import running
from onward_serving.process import announce, failing_in_one_line, log_to_stderr, stop_on_signals


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    with stop_on_signals(stop):
        async with opened(settings) as server:
            announce(grpc=server.address)
            await stop.wait()


if __name__ == "__main__":
    log_to_stderr()
    with failing_in_one_line("onward scheduler"):
        running.run(run(Settings.from_env()))
