"""A server's event loop, and its end: a process whose loop was left must not stay."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

BROKEN = 70
"""Exit status of a process whose event loop was left; EX_SOFTWARE of sysexits.h."""

LAST_WORDS_S = 3.0
"""What is left to a process whose loop was left, to say so."""


def run(main: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run a server until it ends, or end the process at once where its event loop is left before.

    asyncio lets SystemExit and KeyboardInterrupt out of the loop, whichever task or callback raises them: also what
    user code raises in an executor. All other tasks then stand still, and ending them in order means waiting for what
    may never come, while the port is open and nobody is served. So nothing is ended in order: it is the death of a
    process, for which runs are prepared, and which whoever started it sees.

    Args:
        main: Ends when it was told to, in order. What it raises itself is raised here.
        loop_factory: Makes the loop; None is asyncio's own.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            runner.run(main)
        except BaseException as error:
            if inspect.getcoroutinestate(main) == inspect.CORO_SUSPENDED:
                _die(error)
            raise


def _die(error: BaseException) -> NoReturn:
    # Saying so may hang, too: on a full pipe, or on a lock that a thread of the user's holds.
    last_resort = threading.Timer(LAST_WORDS_S, os._exit, [BROKEN])
    last_resort.daemon = True
    last_resort.start()
    logger.critical(
        "the event loop was left by %s, and this process ends with status %d",
        f"{type(error).__name__}({error})",
        BROKEN,
        exc_info=error,
    )
    sys.stdout.flush()
    os._exit(BROKEN)
