"""Run workflows in a test, in process and without infrastructure, and look at what their users would have seen.

    async def test_the_blog_has_a_section_for_each_title() -> None:
        result = await testing.run(blog_post, "tea")
        assert result.output.sections == 3
        assert result.statuses[0] == "Outlining"

    async def test_nobody_notices_a_crash_in_mid_sentence() -> None:
        with testing.crash(testing.after_text("Once upon"), testing.before_end()):
            result = await testing.run(blog_post, "tea")
        assert result.view.text.count("Once upon") == 1

    async def test_a_trip_waits_for_its_approval() -> None:
        with testing.signals({"approval": True}):
            assert (await testing.run(trip, "Lisbon")).output == "booked"

The input and the result travel as JSON, as they do in production. Nobody waits between tries, and a run that parks is
woken at once: what it sleeps for passes in no time, and `signals` gives what it waits for. And when a run has ended its
log is replayed once, as after a crash at the very end: code that depends on time or chance shows here.
"""

from __future__ import annotations

from onward.testing.chaos import Broken as Broken
from onward.testing.chaos import Chaos as Chaos
from onward.testing.checking import Effect as Effect
from onward.testing.checking import Finding as Finding
from onward.testing.checking import Seen as Seen
from onward.testing.checking import check as check
from onward.testing.checking import settle as settle
from onward.testing.checking import shown as shown
from onward.testing.points import Point as Point
from onward.testing.points import PointNotReached as PointNotReached
from onward.testing.points import after_finish as after_finish
from onward.testing.points import after_start as after_start
from onward.testing.points import after_text as after_text
from onward.testing.points import before_end as before_end
from onward.testing.relatives import Relative as Relative
from onward.testing.relatives import check_relatives as check_relatives
from onward.testing.running import NotRepeatable as NotRepeatable
from onward.testing.running import Result as Result
from onward.testing.running import WaitsForEver as WaitsForEver
from onward.testing.running import crash as crash
from onward.testing.running import no_backoff as no_backoff
from onward.testing.running import no_replay as no_replay
from onward.testing.running import one_cache as one_cache
from onward.testing.running import run as run
from onward.testing.running import serving as serving
from onward.testing.running import signals as signals

__all__ = [
    "Broken",
    "Chaos",
    "Effect",
    "Finding",
    "NotRepeatable",
    "Point",
    "PointNotReached",
    "Relative",
    "Result",
    "Seen",
    "WaitsForEver",
    "after_finish",
    "after_start",
    "after_text",
    "before_end",
    "check",
    "check_relatives",
    "crash",
    "no_backoff",
    "no_replay",
    "one_cache",
    "run",
    "serving",
    "settle",
    "shown",
    "signals",
]
