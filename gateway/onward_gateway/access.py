"""Who calls: what an API key opens, and what a caller without one may do."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from onward.v1.error_reason_pb2 import ErrorReason
from onward_serving.errors import Refused

logger = logging.getLogger(__name__)

PREFIX = "onward_"
"""A key begins with it, so that scanners for leaked secrets know what they have found."""

KEY_BYTES = 32

KEYS_BYTES_MAX = 4 * 1024 * 1024
"""Of a file of keys."""

LOOK_S = 1.0
"""How often it is looked whether the file has changed."""

_HASH = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Scope(enum.StrEnum):
    """What a key may be used for. None includes another."""

    READ = "read"
    """See runs and workflows."""
    WRITE = "write"
    """Start, signal, cancel, resume and fork runs."""
    ADMIN = "admin"
    """See what all tenants share: executors and their addresses."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody whose request is answered.

    Attributes:
        namespace: The only tenant whose runs there are for this caller.
        scopes: What it may do there.
        key: Hash of its API key; empty without one.
    """

    namespace: str
    scopes: frozenset[Scope]
    key: str = ""

    def check(self, *needed: Scope) -> None:
        """Raises:
        Refused: The caller's key is not for this.
        """
        missing = [scope for scope in needed if scope not in self.scopes]
        if missing:
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                ErrorReason.ERROR_REASON_FORBIDDEN,
                f"this needs an API key with the scope {missing[0]}",
            )


class KeysInvalid(ValueError):
    """A file of keys cannot be read, or a line in it is none."""


class Access:
    """Tells callers by their API keys, or takes everybody for one tenant where there are none."""

    def __init__(self, namespace: str, keys: Mapping[str, Caller] | None) -> None:
        """Args:
        namespace: Of callers without a key, where keys are not asked for.
        keys: Callers by the hashes of their keys. None asks for no key.
        """
        self._anyone = Caller(namespace, frozenset(Scope))
        self._keys = keys

    @property
    def anonymous(self) -> bool:
        """Whether no key is asked for: then whoever can connect may do everything."""
        return self._keys is None

    def caller(self, authorization: str | None) -> Caller:
        """Return who sent a request with this authorization.

        Raises:
            Refused: No key, or an unknown one.
        """
        if self._keys is None:
            return self._anyone
        if authorization is None:
            _refuse("an API key is needed: Authorization: Bearer …")
        scheme, _, key = authorization.strip().partition(" ")
        caller = self._keys.get(hash_of(key.strip())) if scheme.lower() == "bearer" else None
        if caller is None:
            _refuse("the API key is not known here")
        return caller

    def knows(self, caller: Caller) -> bool:
        """Say whether a caller of before would be taken for the same one today."""
        return caller == (self._anyone if self._keys is None else self._keys.get(caller.key))

    def check(self, caller: Caller) -> None:
        """Look again at a caller who was let in a while ago.

        Raises:
            Refused: It would not be let in today.
        """
        if not self.knows(caller):
            _refuse("the API key is not known here any more")

    def replace(self, keys: Mapping[str, Caller]) -> None:
        """Go by other keys from now on."""
        self._keys = keys


@contextlib.asynccontextmanager
async def following_keys(access: Access, path: Path, changed: Callable[[], None]) -> AsyncIterator[None]:
    """Follow changes of a file of keys until the block ends. A file that makes no sense is told of and changes nothing.

    Args:
        access: What goes by it.
        path: Its name, at which the file may also be replaced.
        changed: Called after each change.
    """

    async def look_for_ever() -> None:
        seen = _look(path)
        while True:
            await asyncio.sleep(LOOK_S)
            now = _look(path)
            if now == seen:
                continue
            seen = now
            try:
                access.replace(keys_in(path))
            except KeysInvalid as error:
                logger.error("the keys of before go on: %s", error)
            else:
                logger.info("the keys in %s were read again", path)
                changed()

    looking = asyncio.create_task(look_for_ever(), name="keys")
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


def new_key() -> str:
    """Return a fresh API key: 256 bits of chance."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_of(key: str) -> str:
    """Return what is kept of a key.

    A plain SHA-256: slow hashes and salts protect passwords, which can be guessed, and 256 bits of chance cannot. A
    slow one would be paid for by every request. Looking a hash up tells by its timing nothing of use either: whoever
    knows how a hash begins still has no key for it.
    """
    return "sha256:" + hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def line_of(key: str, namespace: str, scopes: frozenset[Scope], name: str) -> str:
    """Return the line that makes a key known.

    Raises:
        KeysInvalid: The namespace or the name is none.
    """
    text = f"{hash_of(key)} {namespace} {','.join(scope for scope in Scope if scope in scopes)} {name}".rstrip()
    if not scopes:
        raise KeysInvalid(f"a key is for something: some of {', '.join(Scope)}")
    if not name.isprintable():
        raise KeysInvalid("a key's name is one line of printable characters")
    _parse(text)
    return text


def keys_in(path: Path) -> dict[str, Caller]:
    """Return the callers that a file makes known, by the hashes of their keys.

    A line for each key: its hash, its namespace, its scopes with commas between them, and then a name for people. Empty
    lines and those that begin with # say nothing.

    Raises:
        KeysInvalid: It cannot be read, or a line is none of these.
    """
    try:
        if path.stat().st_size > KEYS_BYTES_MAX:
            raise KeysInvalid(f"{path} is larger than {KEYS_BYTES_MAX} bytes")
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysInvalid(f"{path} cannot be read: {error}") from error
    callers: dict[str, Caller] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            caller = _parse(line)
        except KeysInvalid as error:
            raise KeysInvalid(f"{path}, line {number}: {error}") from None
        if caller.key in callers:
            raise KeysInvalid(f"{path}, line {number}: the key stands there twice")
        callers[caller.key] = caller
    return callers


def _parse(line: str) -> Caller:
    words = line.split(maxsplit=3)
    if len(words) < 3:
        raise KeysInvalid("a line is: HASH NAMESPACE SCOPES [NAME]")
    key, namespace, scopes = words[:3]
    if not _HASH.fullmatch(key):
        raise KeysInvalid("a hash is sha256: and 64 hexadecimal digits; `onward keys new` makes a line")
    if not _NAMESPACE.fullmatch(namespace):
        raise KeysInvalid("a namespace is 1 to 64 of A-Z a-z 0-9 _ -")
    try:
        granted = frozenset(Scope(scope) for scope in scopes.split(","))
    except ValueError:
        raise KeysInvalid(f"scopes are some of {', '.join(Scope)}, with commas between them") from None
    return Caller(namespace, granted, key)


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _refuse(why: str) -> NoReturn:
    raise Refused(grpc.StatusCode.UNAUTHENTICATED, ErrorReason.ERROR_REASON_FORBIDDEN, why)
