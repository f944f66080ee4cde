"""What Schemathesis loads: its requests are bounded, or it would wait for a run that begins in a thousand years."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import schemathesis

SOON_S = 1


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Leave out what makes runs begin late, and calls wait for long. What is malformed stays as it is."""
    query = case.query
    if not isinstance(query, dict):
        return
    try:
        if datetime.fromisoformat(query["schedule_time"]) > datetime.now(UTC):
            del query["schedule_time"]
    except (KeyError, TypeError, ValueError):
        pass
    try:
        if SOON_S < float(query["wait_s"]) <= 60:
            query["wait_s"] = SOON_S
    except (KeyError, TypeError, ValueError):
        pass
