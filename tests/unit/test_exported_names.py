"""What `import onward` offers."""

from __future__ import annotations

import subprocess
import sys

import onward


def test_every_exported_name_is_there() -> None:
    """And listed, though nothing is imported before it is asked for."""
    for name in onward.__all__:
        assert getattr(onward, name).__module__.startswith("onward."), name
        assert name in dir(onward)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module."""
    assert not hasattr(onward, "nothing_of_this_name")


def test_the_contract_alone_is_cheap() -> None:
    """Servers that need only the messages do not load pydantic, the engine or the client."""
    code = (
        "import sys, onward.v1.event_pb2; print([m for m in ('pydantic', 'grpc', 'onward.engine') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
