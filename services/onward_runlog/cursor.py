"""Opaque resume tokens: which run, which log, which offset, and a short hash of the event there."""

from __future__ import annotations

import binascii
import hashlib
import struct
import zlib
from dataclasses import dataclass

from onward_runlog.errors import CursorInvalid

VERSION = 1

_HEAD = struct.Struct(">B9s8s")
_TAIL = struct.Struct(">QI")
# 18 and 12 bytes, both multiples of three: base64 of the whole is that of the parts, without padding.
_HEAD_CHARACTERS = 24
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A cursor that was made for the run it was parsed for.

    Attributes:
        offset: The last offset that its reader has handled.
        log: Digest of the log's id.
        event: Hash of the event at the offset; 0 where it was not at hand, which proves nothing.
    """

    offset: int
    log: bytes
    event: int


class Cursors:
    """Makes and reads the cursors of one log."""

    def __init__(self, ref: str, log_id: str) -> None:
        self._run = _digest(ref, 9)
        self.log = _digest(log_id, 8)
        self._head = binascii.b2a_base64(_HEAD.pack(VERSION, self._run, self.log), newline=False).translate(_TO_URL)

    def at(self, offset: int, event: int) -> bytes:
        """Return the cursor, in ASCII, after the event at `offset` whose `event_hash` is `event` (0: not at hand)."""
        return self._head + binascii.b2a_base64(_TAIL.pack(offset, event), newline=False).translate(_TO_URL)


def event_hash(event: bytes) -> int:
    """Return the short hash of an event. Whoever makes cursors hashes the same form of it: we take the framed one."""
    return zlib.crc32(event)


def parse(ref: str, text: str) -> Cursor:
    """Read a cursor that a caller gave for a run.

    Raises:
        CursorInvalid: It is malformed, or of another run.
    """
    try:
        data = text.encode("ascii").translate(_FROM_URL)
        head, tail = binascii.a2b_base64(data[:_HEAD_CHARACTERS]), binascii.a2b_base64(data[_HEAD_CHARACTERS:])
        version, run, log = _HEAD.unpack(head)
        offset, event = _TAIL.unpack(tail)
    except (UnicodeEncodeError, binascii.Error, struct.error):
        raise CursorInvalid("the cursor is malformed") from None
    if version != VERSION or offset >= 1 << 63:
        raise CursorInvalid("the cursor is malformed, or of a newer version")
    if run != _digest(ref, 9):
        raise CursorInvalid("the cursor is of another run")
    return Cursor(offset, log, event)


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()
