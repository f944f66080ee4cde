"""What the commands that serve share: options, and how a server process runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter

from onward_cli.children import PARENT, die_with_parent
from onward_serving.addresses import address, addresses
from onward_serving.environment import CENTURY_S, members
from onward_serving.process import failing_in_one_line, log_to_stderr, stop_on_signals
from onward_serving.running import run

Server = TypeVar("Server")

Redis = Annotated[
    str | None, Parameter(help="URL of the store; redis://127.0.0.1:6379 by default. [env: ONWARD_REDIS_URL]")
]
Schedulers = Annotated[
    str | None,
    Parameter(help="HOST:PORT of Schedulers, comma-separated; 127.0.0.1:50052 by default. [env: ONWARD_SCHEDULER]"),
]
AllowUnfit = Annotated[
    bool | None,
    Parameter(
        help="Serve also from a store without append-only file or that evicts keys: accepted runs may be lost. "
        "[env: ONWARD_ALLOW_UNFIT_STORE=1]",
        negative="",
    ),
]
Target = Annotated[str, Parameter(help="Your code: a Python file, a folder of them, or a dotted module.")]


def at_least(least: float) -> Callable[[Any, float | None], None]:
    """Return what refuses an option that is below `least`, or more than any that makes sense."""

    def check(_type: Any, value: float | None) -> None:
        if value is not None and not least <= value <= CENTURY_S:  # nor NaN
            raise ValueError(f"from {least:g} on, not {value:g}")

    return check


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given: they win over the environment."""
    return {name: value for name, value in values.items() if value is not None}


def listed(text: str | None) -> tuple[str, ...] | None:
    """Return the members of a comma-separated list; None where there are none."""
    return members(text or "") or None


def address_of(name: str, text: str | None) -> str | None:
    """Return the HOST:PORT that an option holds, if it was given; see onward_serving.addresses."""
    return None if text is None else address(text, name)


def addresses_of(name: str, text: str | None) -> tuple[str, ...] | None:
    """Return each HOST:PORT of a comma-separated list; None where there are none."""
    return addresses(text or "", name) or None


def serve(
    name: str,
    open: Callable[[asyncio.Event], AbstractAsyncContextManager[Server]],
    ready: Callable[[Server], None],
    *failures: type[Exception],
    log_level: str = "INFO",
    starts_processes: bool = False,
) -> None:
    """Run a server until SIGTERM or Ctrl-C, or end with one line that says why it cannot.

    Args:
        name: What it is called in traces, unless OTEL_SERVICE_NAME names it.
        open: Gives the server, which serves inside its block; takes the event that ends it.
        ready: Called when it serves.
        failures: What else may keep it from serving; see failing_in_one_line.
        log_level: Unless ONWARD_LOG_LEVEL names another.
        starts_processes: Keeps it on asyncio's own loop. uvloop forks to start a process, which gRPC, with its threads,
            warns of each time; in tests, on a busy machine, some of those processes ended before they had begun.
    """
    if PARENT in os.environ:
        # A cached file is trusted by its size and the second of its time: a change within that second would be missed.
        sys.dont_write_bytecode = True
    die_with_parent()
    log_to_stderr(os.environ.get("ONWARD_LOG_LEVEL", log_level))
    factory = None if starts_processes else _loop_factory()
    with failing_in_one_line("onward", *failures), _watched(name):
        run(_main(open, ready), factory)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return who makes the event loop: uvloop, unless ONWARD_LOOP=asyncio says otherwise or there is none."""
    if os.environ.get("ONWARD_LOOP") == "asyncio" or sys.platform == "win32":
        return None
    import uvloop  # only where it is there

    return uvloop.new_event_loop


@contextlib.contextmanager
def _watched(name: str) -> Iterator[None]:
    """Export spans and metrics as the OTEL_ variables ask for it, and what is left of them when the block ends."""
    with contextlib.ExitStack() as stack:
        if os.environ.get("OTEL_TRACES_EXPORTER") or os.environ.get("OTEL_METRICS_EXPORTER"):
            from onward import telemetry  # a tenth of a second, which few need

            try:
                for configure in (telemetry.configure_from_env, telemetry.configure_metrics_from_env):
                    if (provider := configure(name)) is not None:
                        stack.callback(provider.shutdown)
            except ValueError as error:
                sys.exit(f"onward: {error}")
        yield


async def _main(
    open: Callable[[asyncio.Event], AbstractAsyncContextManager[Server]], ready: Callable[[Server], None]
) -> None:
    stop, is_ready = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with open(stop) as server:
            is_ready.set()
            ready(server)
            await stop.wait()

    with stop_on_signals(stop):
        working = asyncio.create_task(work())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not is_ready.is_set():
            working.cancel()  # it waits for the store or for a Scheduler: nothing was promised yet
        with contextlib.suppress(asyncio.CancelledError):
            await working
