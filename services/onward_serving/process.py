"""What a server process does around its work: tell that it is ready, stop on a signal, log to stderr."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator

from onward.secrets import MaskingFilter
from onward_runlog.errors import StoreUnfit, StoreUrlInvalid
from onward_serving.environment import SettingInvalid
from onward_serving.tls import TlsInvalid

OURS = (
    "onward",
    "onward_cli",
    "onward_executor",
    "onward_gateway",
    "onward_runlog",
    "onward_scheduler",
    "onward_serving",
)


COLLECT_AT = 10_000
"""So many more objects that may be in cycles than before begin a garbage collection, instead of Python's 700.

What messages are made of is in no cycle: a server that sends 15,000 a second would search it many times a second, and
now and then everything there is, which takes a few hundredths of a second.
"""


def announce(**addresses: str) -> None:
    """Print the one line that says that a server serves, e.g. `ready grpc=127.0.0.1:50051 http=127.0.0.1:8080`.

    From now on it collects garbage rarely.
    """
    collect_rarely()
    sys.stdout.write("ready " + " ".join(f"{name}={address}" for name, address in addresses.items()) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def failing_in_one_line(name: str, *failures: type[Exception]) -> Iterator[None]:
    """End the process with one line where the block fails by something that its operator can mend.

    Args:
        name: Begins the line.
        failures: What else that may be, beside a taken address, a setting that makes no sense, an unfit store, a URL
            of one that is none, and certificates that cannot be used.
    """
    known: tuple[type[Exception], ...] = (OSError, SettingInvalid, StoreUnfit, StoreUrlInvalid, TlsInvalid, *failures)
    try:
        yield
    except known as error:
        sys.exit(f"{name}: {error}")


def collect_rarely() -> None:
    """Have garbage collections be rare, and leave alone what was made until now: it is there until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AT)


@contextlib.contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM and SIGINT while the block runs; a second signal ends the process at once."""
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def log_to_stderr(level: str = "INFO") -> None:
    """Configure logging for a server process. Libraries never do.

    Args:
        level: For our own loggers; those of other libraries tell warnings only.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(MaskingFilter())
    for package in OURS:
        logging.getLogger(package).setLevel(level.upper())
