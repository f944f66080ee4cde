"""Files of API keys, and what callers may do."""

from __future__ import annotations

from pathlib import Path

import pytest

from onward_cli.__main__ import command_line
from onward_gateway.access import Access, Caller, KeysInvalid, Scope, hash_of, keys_in, line_of, new_key
from onward_serving.errors import Refused

HASH = "sha256:" + "0" * 64


def test_a_line_makes_its_key_known(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = new_key()
    file.write_text(f"# mine\n\n  {line_of(key, 'acme', frozenset({Scope.READ, Scope.WRITE}), 'a name')}  \n")
    access = Access("default", keys_in(file))
    caller = access.caller(f"bEaReR  {key} ")
    assert (caller.namespace, set(caller.scopes)) == ("acme", {Scope.READ, Scope.WRITE})
    assert key not in file.read_text(), "only its hash is kept"
    assert not access.anonymous


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x", "HASH NAMESPACE SCOPES"),
        (f"{HASH} acme", "HASH NAMESPACE SCOPES"),
        ("sha256:00 acme read", "64 hexadecimal"),
        (f"md5:{'0' * 64} acme read", "64 hexadecimal"),
        (f"{HASH} a/b read", "namespace"),
        (f"{HASH} {'a' * 65} read", "namespace"),
        (f"{HASH} acme all", "scopes"),
        (f"{HASH} acme read,", "scopes"),
        (f"{HASH} acme read\n{HASH} other read", "line 2: the key stands there twice"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(KeysInvalid, match=why):
        keys_in(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(KeysInvalid, match="cannot be read"):
        keys_in(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(KeysInvalid, match="cannot be read"):
        keys_in(tmp_path / "binary")


def test_no_keys_in_a_file_let_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("")
    access = Access("default", keys_in(file))
    assert not access.anonymous
    for authorization in (None, "", "Bearer", "Bearer ", f"Bearer {new_key()}", "Basic eDp5"):
        with pytest.raises(Refused):
            access.caller(authorization)


def test_without_keys_everybody_is_one_tenant() -> None:
    access = Access("mine", None)
    assert access.caller(None) == access.caller("Bearer anything") == Caller("mine", frozenset(Scope))


def test_keys_are_long_and_differ() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("onward_") and len(key) == len("onward_") + 43 for key in keys)
    assert len({hash_of(key) for key in keys}) == 100


def test_the_command_adds_a_line_and_prints_the_key_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    for _ in range(2):
        command_line(["keys"])(
            ["keys", "new", "--namespace", "acme", "--scopes", "read", "--name", "ci", "--file", str(file)],
            result_action="return_value",
        )
    first, second = capsys.readouterr().out.split()
    known = keys_in(file)
    assert known[hash_of(first)].namespace == known[hash_of(second)].namespace == "acme"
    for wrong in (["--scopes", "all"], ["--scopes", ""], ["--namespace", "a b"]):
        with pytest.raises(SystemExit, match="onward: "):
            command_line(["keys"])(["keys", "new", *wrong], result_action="return_value")
