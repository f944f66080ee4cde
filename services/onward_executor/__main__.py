"""`python -m onward_executor FILE_OR_MODULE`: an executor with its settings from the environment."""

from __future__ import annotations

import asyncio
import sys

from onward.loading import LoadError
from onward_executor.app import opened
from onward_executor.settings import Settings
from onward_serving import running
from onward_serving.process import announce, failing_in_one_line, log_to_stderr, stop_on_signals


async def run(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or a Drain."""
    stop = asyncio.Event()
    with stop_on_signals(stop):
        async with opened(settings, stop) as served:
            announce(grpc=served.server.address, deployment=served.executor.deployment)
            await stop.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m onward_executor FILE_OR_MODULE")
    log_to_stderr()
    with failing_in_one_line("onward executor", LoadError):
        running.run(run(Settings.from_env(sys.argv[1])))
