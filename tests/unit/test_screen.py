"""What `onward follow` shows: a run's events in, a terminal's picture or a log file's lines out."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from onward.errors import Unavailable
from onward.payload import encode
from onward.v1.event_pb2 import (
    CHANGE_SET,
    CHANNEL_TOOL,
    OUTCOME_ERROR,
    OUTCOME_OK,
    ROLLBACK_CAUSE_ATTEMPT_LOST,
    ROLLBACK_CAUSE_RETRY,
    AttemptStarted,
    ComponentFinished,
    ComponentRetrying,
    ComponentStarted,
    Event,
    InputRequested,
    OutputDelta,
    Published,
    Rollback,
    RunStateChanged,
    StatusUpdated,
)
from onward.v1.run_pb2 import RUN_STATE_FAILED, RUN_STATE_QUEUED, RUN_STATE_SUCCEEDED, Run, RunError
from onward.views import View
from onward_cli.lines import Lines
from onward_cli.screen import HELD_MAX, Screen
from onward_cli.wording import cropped, duration, local, printable

RUN = Run(run_id="run-1", workflow="blog_post", create_time=Timestamp(seconds=100))
NOW = datetime.fromtimestamp(112.3, UTC)
HINT = "Ctrl-C stops watching; the run goes on"


class Story:
    """A run's log as it grows, in the order of the calls."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, component: str = "", *, at: int = 100, **kind: Any) -> Story:
        offset = len(self.events) + 1
        event = Event(offset=offset, component_id=component, create_time=Timestamp(seconds=at), **kind)
        self.events.append(event)
        return self

    def queued(self) -> Story:
        return self.add(run_state_changed=RunStateChanged(state=RUN_STATE_QUEUED))

    def attempt(self, number: int = 1) -> Story:
        self.add(attempt_started=AttemptStarted(executor_id="e1"))
        self.events[-1].attempt = number
        return self

    def started(self, component: str, name: str = "", parent: str = "", at: int = 100, input: Any = None) -> Story:
        said = ComponentStarted(name=name or component, parent_id=parent)
        if input is not None:
            said.input.CopyFrom(encode(input))
        return self.add(component, at=at, component_started=said)

    def text(self, component: str, *pieces: str) -> Story:
        for piece in pieces:
            self.add(component, output_delta=OutputDelta(text=piece))
        return self

    def status(self, component: str, message: str, done: int | None = None, total: int | None = None) -> Story:
        return self.add(component, status_updated=StatusUpdated(message=message, done=done, total=total))

    def finished(self, component: str, output: Any = None, at: int = 102) -> Story:
        ended = ComponentFinished(outcome=OUTCOME_OK, output=encode(output))
        return self.add(component, at=at, component_finished=ended)

    def failed(self, component: str, message: str, at: int = 102) -> Story:
        error = RunError(reason="COMPONENT_FAILED", type="builtins.ValueError", message=message)
        return self.add(component, at=at, component_finished=ComponentFinished(outcome=OUTCOME_ERROR, error=error))

    def retrying(self, component: str, message: str) -> Story:
        retrying = ComponentRetrying(try_number=1, error=RunError(message=message), delay=Duration(seconds=2))
        return self.add(component, component_retrying=retrying)

    def rollback(self, *components: str, after: int = 0, cause: Any = ROLLBACK_CAUSE_RETRY) -> Story:
        return self.add(rollback=Rollback(component_ids=components, after_offset=after, cause=cause))

    def succeeded(self, output: Any = None) -> Story:
        return self.add(run_state_changed=RunStateChanged(state=RUN_STATE_SUCCEEDED, output=encode(output)))


class Terminal:
    """A terminal of a fixed size, and what was written to it."""

    def __init__(self, width: int = 64, height: int = 20, after: int = 0) -> None:
        self.file = io.StringIO()
        console = Console(file=self.file, force_terminal=True, color_system=None, width=width, height=height)
        self.screen = Screen(console, RUN, after=after, clock=lambda: NOW)
        self.view = View()
        self._told = 0

    def tell(self, story: Story) -> Terminal:
        """Show what is new in a story."""
        for event in story.events[self._told :]:
            self.view.apply(event)
            self.screen.take(event, self.view)
        self._told = len(story.events)
        return self

    @property
    def live(self) -> list[str]:
        """The live part now."""
        return [text.plain.rstrip() for text in self.screen.frame()]

    def write(self, *, end: bool = False) -> str:
        """What is written for good now, without the live part below it."""
        begin = self.file.tell()
        if end:
            self.screen.close()
        else:
            self.screen.paint()
        self.file.seek(begin)
        return self.file.read()


def lines(story: Story, after: int = 0) -> list[str]:
    """A story as plain lines."""
    written: list[str] = []
    shown, view = Lines(written.append, RUN, after=after), View()
    for event in story.events:
        view.apply(event)
        shown.take(event, view)
    return written


def test_parallel_components_show_the_end_of_their_text_side_by_side() -> None:
    """Headline, status with a bar, a title and the last lines of each component that writes, published state, hint."""
    story = Story().queued().attempt().status("", "Writing", 1, 4)
    story.started("s1", "section", input={"title": "Origins"}).text("s1", "Tea began ", "as medicine.")
    story.started("s2", "section").text("s2", "one\n", "two")
    story.add(published=Published(name="outline", change=CHANGE_SET, value=encode(["Origins", "Roads"])))
    assert Terminal().tell(story).live == [
        "blog_post  run-1  ● RUNNING  12s",
        "Writing  ━━━━━━──────────────────  1/4",
        "⠸ section  Origins",
        "  Tea began as medicine.",
        "⠸ section#2",
        "  one",
        "  two",
        'outline ["Origins", "Roads"]',
        HINT,
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 4), (200, 60)])
@pytest.mark.parametrize("components", [1, 3, 40])
def test_the_live_part_fits_the_terminal(width: int, height: int, components: int) -> None:
    """However many components write however much, no line is too long and none too many."""
    story = Story().queued().attempt().status("", "Writing " + "x" * 300, 1, 4)
    for number in range(components):
        story.started(f"s{number}", "section", input={"title": "y" * 300})
        story.text(f"s{number}", "a long word " * 3_000, "漢字" * 500, "z" * 5_000)
    for name in "abcdef":
        story.add(published=Published(name=name, change=CHANGE_SET, value=encode("v" * 500)))
    for name in "abcdef":
        story.add(input_requested=InputRequested(name=name, prompt="p" * 300))
    terminal = Terminal(width, height).tell(story)
    frame = terminal.screen.frame()
    assert len(frame) < height
    assert max(text.cell_len for text in frame) <= width
    assert frame[-1].plain.startswith(HINT[: width - 1])


def test_a_single_component_gets_all_the_room() -> None:
    """The text of the only one that writes fills the terminal down to the hint."""
    story = Story().queued().attempt().started("a").text("a", *(f"line {number}\n" for number in range(100)))
    live = Terminal(height=20).tell(story).live
    assert live[2:-1] == [f"  line {number}" for number in range(85, 100)]


def test_where_titles_alone_fit_the_last_words_stand_beside_them() -> None:
    """With more components than lines the newest are shown, and that there are more."""
    story = Story().queued().attempt()
    for number in range(10):
        story.started(f"s{number}", "section").text(f"s{number}", "a lot of words " * 10 + f"end {number}")
    live = Terminal(width=40, height=10).tell(story).live
    assert len(live) == 8
    assert live[1] == "  and 5 more running"
    assert live[2].startswith("⠸ section#6  ")
    assert live[2].endswith("of words end 5")


def test_nothing_spins_while_no_executor_has_the_run() -> None:
    """Its executor was lost: what it wrote is still to be seen, and it is plain that nobody goes on with it."""
    story = Story().queued().attempt().started("a").text("a", "half").queued()
    assert Terminal().tell(story).live == ["blog_post  run-1  ● QUEUED  12s", "· a", "  half", HINT]


def test_void_text_disappears() -> None:
    """A try that failed leaves nothing but why the next one runs."""
    story = Story().queued().attempt().started("a").text("a", "half a sen")
    terminal = Terminal().tell(story)
    assert "  half a sen" in terminal.live
    terminal.tell(story.retrying("a", "hung up").rollback("a"))
    assert terminal.live[1:-1] == ["⠸ a  try 2 after hung up"]
    terminal.tell(story.started("a").text("a", "anew"))
    assert terminal.live[1:-1] == ["⠸ a  try 2", "  anew"]


def test_finished_components_are_written_in_the_order_they_began() -> None:
    """One that is finished early waits below, on one line, for those before it."""
    story = Story().queued().attempt().started("s1", "section").started("s2", "section")
    story.text("s1", "First.").text("s2", "Second.").finished("s2", "Second.", at=103)
    terminal = Terminal()
    assert "Second." not in terminal.tell(story).write()
    assert "✓ section#2  3.0s" in terminal.live
    written = terminal.tell(story.finished("s1", "First.")).write()
    order = [written.index(text) for text in ("✓ section  2.0s", "First.", "✓ section#2  3.0s", "Second.")]
    assert order == sorted(order)
    assert terminal.live == ["blog_post  run-1  ● RUNNING  12s", HINT]


def test_a_model_that_calls_tools_says_which() -> None:
    """Beside it stands what it asked for, not how its answer is packed, whatever was in the log."""
    story = Story().queued().attempt().started("c1", "chat").started("c2", "chat")
    for tool in (
        {"name": "search", "arguments": {"query": "tea\x1b[2J"}},
        {"name": "read", "arguments": {"page": "a", "line": 2}},
    ):
        story.add("c1", output_delta=OutputDelta(channel=CHANNEL_TOOL, value=encode(tool)))
    for other in ({"name": "stop"}, 3):
        story.add("c2", output_delta=OutputDelta(channel=CHANNEL_TOOL, part=1, value=encode(other)))
    story.finished("c1", {"status": 200}).finished("c2", {"status": 200})
    written = Terminal(width=90).tell(story).write()
    assert "✓ chat  2.0s  calls search(tea" in written
    assert "; read(page=a, line=2)" in written
    assert "✓ chat#2  2.0s  calls stop(); 3" in written
    assert "\x1b[2J" not in written
    assert "status" not in written


def test_nobody_waits_for_one_that_calls_others_or_for_too_long() -> None:
    """An agent that runs for hours does not hold back what its steps gave, nor a slow neighbour dozens."""
    story = Story().queued().attempt().started("agent").started("step", parent="agent").finished("step", [1, 2])
    assert "✓ step  2.0s  → [1, 2]" in Terminal().tell(story).write()
    story = Story().queued().attempt().started("slow")
    for number in range(HELD_MAX + 1):
        story.started(f"c{number}").finished(f"c{number}", number)
    assert "✓ c0  2.0s  → 0" in Terminal().tell(story).write()


def test_what_turns_out_void_after_it_was_written_is_said_to_be() -> None:
    """A component around it is tried again: its result does not count any more."""
    story = Story().queued().attempt().started("agent").started("step", parent="agent").finished("step", "x")
    terminal = Terminal()
    terminal.tell(story).write()
    story.retrying("agent", "no").rollback("agent", "step").started("agent").started("step", parent="agent")
    assert "↺ step above is void: it runs again" in terminal.tell(story).write()
    assert "✓ step" in terminal.tell(story.finished("step", "y", at=105)).write()


def test_a_run_that_ended_leaves_nothing_live() -> None:
    """All that finished is written, what did not is said to be stopped, and the cursor is back."""
    story = Story().queued().attempt().started("a").text("a", "unfinished").started("b").failed("b", "no").succeeded(1)
    written = Terminal().tell(story).write(end=True)
    assert "■ a  stopped\nunfinished\n\n✗ b  2.0s  ValueError: no\n" in written
    assert HINT not in written


def test_what_was_seen_before_is_not_written_again() -> None:
    """With --after, only what finished later is written; what runs is shown whole."""
    story = Story().queued().attempt().started("a").finished("a", 1).started("b").finished("b", 2).started("c")
    terminal = Terminal(after=4).tell(story)
    assert "⠸ c" in terminal.live
    assert terminal.write() == "✓ b  2.0s  → 2\n"


def test_a_question_says_how_to_answer_it() -> None:
    """Whoever watches learns what the run waits for and which command goes on."""
    story = Story().queued().attempt().started("w", "approval")
    story.add("w", input_requested=InputRequested(name="approve", prompt="Publish it?"))
    live = Terminal().tell(story).live
    assert live[-3:] == [
        "? waits for signal approve: Publish it?",
        "  answer with: onward signal run-1 approve JSON",
        HINT,
    ]


def test_what_a_run_in_line_waits_for_stands_beside_its_state() -> None:
    """Until it runs."""
    terminal = Terminal().tell(Story().queued())
    terminal.screen.waits("an executor of blue")
    assert terminal.live[0].endswith("● QUEUED  12s  waits for an executor of blue")
    assert "waits" not in terminal.tell(Story().queued().attempt()).live[0]


def test_the_live_part_is_drawn_over_itself_and_gone_at_the_end() -> None:
    """What is written for good stands alone in the end, and the cursor is to be seen again."""
    story = Story().queued().attempt().started("a").text("a", "some text")
    terminal = Terminal()
    with terminal.screen:
        assert "some text" in terminal.tell(story).write()
        again = terminal.tell(story.text("a", " and more")).write()
        erased = again.count("\x1b[2K")
        assert erased == 4, "headline, title, text and hint"
        assert "some text and more" in again
        written = terminal.tell(story.finished("a").succeeded()).write(end=True)
    assert written.endswith("\x1b[?25h" + "\r" + "\x1b[1A\x1b[2K" * 2)


def evil(story: Story) -> Story:
    bad = "\x1b]0;title\x07\x1b[2J\x9b31m\rback\x08"
    story.queued().attempt().status("", bad).started("a", bad, input=bad).text("a", bad + "\n").status("a", bad)
    story.add(published=Published(name="n", change=CHANGE_SET, value=encode(bad)))
    story.add("a", input_requested=InputRequested(name=bad, prompt=bad))
    return story.started("b", bad).failed("b", bad).finished("a", bad).succeeded(bad)


def test_no_text_of_a_run_steers_the_terminal() -> None:
    """Escape sequences from a model, an error or a label arrive as the harmless rest of their characters."""
    story = evil(Story())
    terminal = Terminal(width=200)
    for end in range(len(story.events)):
        upto = Story()
        upto.events = story.events[: end + 1]
        terminal.tell(upto)
        assert "\x1b" not in "".join(terminal.live)
        written = terminal.write(end=end == len(story.events) - 1)
        assert not {"\x1b]", "\x1b[2J\x9b", "\x07", "\x08", "\x9b"} & set(_windows(written))
    assert not set("\x1b\x07\x08\x9b\r") & set("".join(lines(story)))


def _windows(text: str) -> Sequence[str]:
    return [text[start : start + length] for length in (1, 2, 5) for start in range(len(text))]


def test_a_run_as_lines() -> None:
    """The whole of it, as a CI log has it: text by whole lines, everything else when it happens."""
    story = Story().queued().attempt().status("", "Outlining").started("o", "outline").finished("o", ["x"])
    story.status("", "Writing", 0, 2).started("s1", "section").started("s2", "section").status("s2", "hm")
    story.text("s1", "Tea ", "began.\nThen").text("s2", "One.").text("s1", " it\n\nspread.").finished("s1", "…")
    story.add(published=Published(name="draft", change=CHANGE_SET, value=encode({"n": 1})))
    story.finished("s2", "One.", at=130).text("", "The end").succeeded("x")
    assert lines(story) == [
        "run run-1 QUEUED",
        "run run-1 RUNNING on e1",
        "[blog_post] status: Outlining",
        "[outline] started",
        '[outline] finished in 2.0s: ["x"]',
        "[blog_post] status: Writing 0/2",
        "[section] started",
        "[section#2] started",
        "[section#2] status: hm",
        "[section] Tea began.",
        "[section] Then it",
        "[section]",
        "[section] spread.",
        "[section] finished in 2.0s",
        '[blog_post] published draft = {"n": 1}',
        "[section#2] One.",
        "[section#2] finished in 30s",
        "[blog_post] The end",
        "run run-1 SUCCEEDED",
    ]


def test_lines_that_turn_out_void_are_said_to_be() -> None:
    """What was written cannot be taken back: a line says that it does not count, and what is left is written again."""
    story = Story().queued().attempt().started("a").text("a", "one\ntwo ", "three\nfo").attempt(2)
    story.rollback("a", after=4, cause=ROLLBACK_CAUSE_ATTEMPT_LOST).started("a").text("a", "2\nend").finished("a")
    assert lines(story)[3:] == [
        "[a] one",
        "[a] two three",
        "run run-1 RUNNING on e1, attempt 2",
        "[a] what it wrote is void: its executor was lost",
        "[a] started",
        "[a] two 2",
        "[a] end",
        "[a] finished in 2.0s",
    ]


def test_a_rollback_of_a_line_that_was_not_written_yet_is_silent() -> None:
    """Nobody saw it."""
    story = Story().queued().attempt().started("a").text("a", "half").retrying("a", "no").rollback("a")
    story.started("a").text("a", "whole").finished("a")
    assert lines(story)[3:] == [
        "[a] try 1 failed, the next one in 2.0s: no",
        "[a] started",
        "[a] whole",
        "[a] finished in 2.0s",
    ]
    lost = Story().queued().attempt().started("a").text("a", "half").attempt(2).rollback("a").started("a")
    assert lines(lost.text("a", "whole").finished("a"))[3:] == [
        "run run-1 RUNNING on e1, attempt 2",
        "[a] started",
        "[a] whole",
        "[a] finished in 2.0s",
    ]


def test_lines_after_an_offset_know_what_was_before() -> None:
    """Labels and lines that began earlier are right; nothing from before is repeated."""
    story = Story().queued().attempt().started("s1", "section").started("s2", "section").text("s2", "Half")
    story.text("s2", " a line\n").finished("s2").add(
        run_state_changed=RunStateChanged(
            state=RUN_STATE_FAILED, error=RunError(reason="COMPONENT_FAILED", message="no", component_id="s2")
        )
    )
    assert lines(story, after=5) == [
        "[section#2] Half a line",
        "[section#2] finished in 2.0s",
        "run run-1 FAILED: section#2: no",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (3599.6, "1h00m"),
        (100_000, "1d03h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    """Two units at most, and never sixty of one."""
    assert duration(seconds) == text


def test_text_is_cropped_and_cleaned() -> None:
    """Lines stay lines in a text and become spaces in a line."""
    assert printable("a\tb\nc\x1b[0m\x85") == "a\tb\nc[0m"
    assert cropped("a\nbcd", 4) == "a b…"
    assert cropped("abcd", 4) == "abcd"


def test_a_lost_connection_is_told_as_long_as_it_lasts() -> None:
    """On a terminal beside the hint; elsewhere once, apart from the run's lines."""
    terminal = Terminal().tell(Story().queued().attempt())
    terminal.screen.connection(Unavailable("nobody is there"))
    assert terminal.live[-1] == f"connection lost, resuming…  {HINT}"[:63] + "…"
    terminal.screen.connection(None)
    assert terminal.live[-1] == HINT
    written: list[str] = []
    warned: list[str] = []
    plain = Lines(written.append, RUN, warn=warned.append)
    plain.connection(Unavailable("nobody is\nthere"))
    plain.connection(None)
    assert (written, warned) == ([], ["connection lost, resuming: nobody is there"])


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "UTC"])
@pytest.mark.parametrize("year", [1, 9999])
def test_times_at_the_ends_of_the_calendar_are_shown(monkeypatch: pytest.MonkeyPatch, zone: str, year: int) -> None:
    """A deadline that no time can tell is the last one there is, which has no form in some zones."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        last = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC) if year > 1 else datetime(1, 1, 1, tzinfo=UTC)
        assert local(last)
    finally:
        monkeypatch.undo()
        time.tzset()
