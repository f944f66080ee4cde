"""Cursors say where a reader is, of which run and log, and are refused for anything else."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward_runlog.cursor import Cursors, parse
from onward_runlog.errors import CursorInvalid

OFFSETS = st.integers(0, 2**63 - 1)
HASHES = st.integers(0, 2**32 - 1)


@given(OFFSETS, HASHES, st.text(), st.text())
def test_a_cursor_says_again_what_it_was_made_of(offset: int, event: int, ref: str, log_id: str) -> None:
    cursors = Cursors(ref, log_id)
    cursor = parse(ref, cursors.at(offset, event).decode())
    assert (cursor.offset, cursor.event, cursor.log) == (offset, event, cursors.log)


def test_a_cursor_is_url_safe_and_always_as_long() -> None:
    cursors = Cursors("default/run", "log")
    made = [cursors.at(offset, event) for offset in (0, 1, 2**63 - 1) for event in (0, 2**32 - 1)]
    assert {len(cursor) for cursor in made} == {40}
    assert all(cursor.decode().replace("-", "a").replace("_", "a").isalnum() for cursor in made)


def test_a_cursor_is_of_one_run_in_one_namespace() -> None:
    cursor = Cursors("default/run", "log").at(7, 1).decode()
    for ref in ("default/other", "tenant/run", "default/run "):
        with pytest.raises(CursorInvalid, match="another run"):
            parse(ref, cursor)


def test_another_log_of_the_same_run_is_told_apart() -> None:
    old, new = Cursors("default/run", "old"), Cursors("default/run", "new")
    assert parse("default/run", old.at(7, 1).decode()).log == old.log != new.log


@given(st.text())
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(CursorInvalid):
        parse("default/run", text)


@given(st.binary(max_size=60))
def test_bytes_that_look_like_a_cursor_are_refused(data: bytes) -> None:
    with pytest.raises(CursorInvalid):
        parse("default/run", base64.urlsafe_b64encode(data).decode())


def test_a_cut_or_altered_cursor_is_refused() -> None:
    cursor = Cursors("default/run", "log").at(7, 1).decode()
    for altered in (cursor[:-1], cursor + "A", cursor[4:], "B" + cursor[1:], "", cursor[:24]):
        with pytest.raises(CursorInvalid):
            parse("default/run", altered)
