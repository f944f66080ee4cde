"""What a Gateway tells of itself in figures. The README of services/deploy lists them for operators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from onward_gateway.calls import Calls
from onward_serving.metering import gauge


@contextlib.contextmanager
def reading(calls: Calls) -> Iterator[None]:
    """Have the gauges read until the block ends."""
    with gauge(
        "onward.streams", "{stream}", "Runs followed here, each follower counted.", lambda: [(calls.streams, {})]
    ):
        yield
