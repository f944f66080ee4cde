"""`python -m onward_gateway`: a Gateway with its settings from the environment."""

from __future__ import annotations

import asyncio
import sys

from onward_gateway.access import KeysInvalid
from onward_gateway.app import Unprotected, serve
from onward_gateway.settings import Settings
from onward_serving import running
from onward_serving.process import announce, failing_in_one_line, log_to_stderr, stop_on_signals


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    with stop_on_signals(stop):
        await serve(settings, stop, announce)


def main() -> None:
    """Run on uvloop where there is one: a message costs a third less than on asyncio's own loop."""
    log_to_stderr()
    loop_factory = None
    if sys.platform != "win32":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with failing_in_one_line("onward gateway", Unprotected, KeysInvalid):
        running.run(run(Settings.from_env()), loop_factory)


if __name__ == "__main__":
    main()
