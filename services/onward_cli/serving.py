"""What the commands that serve share: options, and how a server process runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from cyclopts import Parameter

from onward_cli.children import die_with_parent
from onward_runlog.errors import StoreUnfit
from onward_serving.process import log_to_stderr, stop_on_signals

Redis = Annotated[str | None, Parameter(help="URL of the store. [env: ONWARD_REDIS_URL]")]
Schedulers = Annotated[str | None, Parameter(help="HOST:PORT of Schedulers, comma-separated. [env: ONWARD_SCHEDULER]")]
AllowUnfit = Annotated[
    bool | None,
    Parameter(help="Serve also from a store without append-only file or that evicts keys: accepted runs may be lost."),
]
Target = Annotated[str, Parameter(help="Your code: a Python file, a folder of them, or a dotted module.")]


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given: they win over the environment."""
    return {name: value for name, value in values.items() if value is not None}


def addresses(text: str | None) -> tuple[str, ...] | None:
    """Return the addresses of a comma-separated list."""
    return tuple(text.split(",")) if text else None


def serve(
    work: Callable[[asyncio.Event], Awaitable[None]], *failures: type[Exception], log_level: str = "INFO"
) -> None:
    """Run a server until SIGTERM or Ctrl-C, or end with one line that says why it cannot.

    Args:
        work: Serves until the event is set.
        failures: What else may keep it from serving, beside a taken address and an unfit store.
        log_level: Unless ONWARD_LOG_LEVEL names another.
    """
    die_with_parent()
    log_to_stderr(os.environ.get("ONWARD_LOG_LEVEL", log_level))

    async def main() -> None:
        stop = asyncio.Event()
        with stop_on_signals(stop):
            await work(stop)

    try:
        asyncio.run(main())
    except (OSError, StoreUnfit, *failures) as error:
        sys.exit(f"onward: {error}")
