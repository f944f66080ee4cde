"""Settings of the services: read from the environment, refused with their name, and all of them in the README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from onward_cli.__main__ import command_line
from onward_executor.settings import Settings as Executor
from onward_gateway.settings import Settings as Gateway
from onward_scheduler.settings import Settings as Scheduler
from onward_serving.environment import SettingInvalid
from onward_serving.tls import Peers

ROOT = Path(__file__).parents[2]
README = ROOT / "services" / "deploy" / "README.md"


def of_gateway(env: dict[str, str]) -> Any:
    return Gateway.from_env(env)


def of_scheduler(env: dict[str, str]) -> Any:
    return Scheduler.from_env(env)


def of_executor(env: dict[str, str]) -> Any:
    return Executor.from_env("code.py", env)


@pytest.mark.parametrize(
    ("read", "default"),
    [(of_gateway, Gateway()), (of_scheduler, Scheduler()), (of_executor, Executor(target="code.py"))],
)
def test_an_empty_environment_is_the_default(read: Any, default: Any) -> None:
    assert read({}) == default


@pytest.mark.parametrize(
    ("read", "name", "field", "text", "value"),
    [
        (of_gateway, "ONWARD_STREAMS_MAX", "streams_max", "7", 7),
        (of_gateway, "ONWARD_STREAM_AGE_S", "stream_age_s", "1.5", 1.5),
        (of_gateway, "ONWARD_KEYS", "keys", "a", Path("a")),
        (of_gateway, "ONWARD_SCHEDULER", "schedulers", "a:1, b:2", ("a:1", "b:2")),
        (of_gateway, "ONWARD_PEER_CA", "peers", "ca", Peers(ca=Path("ca"))),
        (of_scheduler, "ONWARD_ADOPT_AFTER_S", "adopt_after_s", "0", 0.0),
        (of_scheduler, "ONWARD_RETENTION_S", "retention_s", "3153600000", 3_153_600_000.0),
        (of_executor, "ONWARD_EXECUTOR_LISTEN", "listen", "[::1]:0", "[::1]:0"),
        (of_executor, "ONWARD_EXECUTOR_ADVERTISE", "advertise", "a-1.b_c:65535", "a-1.b_c:65535"),
        (of_executor, "ONWARD_SLOTS", "slots", "3", 3),
        (of_executor, "ONWARD_SCHEDULER", "schedulers", "a:1,b:2", ("a:1", "b:2")),
    ],
)
def test_what_is_set_is_read(read: Any, name: str, field: str, text: str, value: object) -> None:
    assert getattr(read({name: text}), field) == value


@pytest.mark.parametrize(
    ("read", "name", "text"),
    [
        (of_gateway, "ONWARD_STREAMS_MAX", "0"),
        (of_gateway, "ONWARD_HTTP_CONNECTIONS_MAX", "many"),
        (of_gateway, "ONWARD_SLOW_READER_S", "0"),
        (of_scheduler, "ONWARD_LEASE_TTL_S", "nan"),
        (of_scheduler, "ONWARD_RETENTION_S", "1e30"),
        (of_scheduler, "ONWARD_ADOPT_AFTER_S", "-1"),
        (of_gateway, "ONWARD_GRPC", "127.0.0.1:99999"),
        (of_gateway, "ONWARD_HTTP", "localhost"),
        (of_gateway, "ONWARD_SCHEDULER", "a"),
        (of_scheduler, "ONWARD_SCHEDULER_LISTEN", "http://localhost:1"),
        (of_executor, "ONWARD_EXECUTOR_LISTEN", "::1:50060"),
        (of_executor, "ONWARD_EXECUTOR_ADVERTISE", ":50060"),
        (of_executor, "ONWARD_SLOTS", "1.5"),
        (of_executor, "ONWARD_DRAIN_GRACE_S", "30s"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_name(read: Any, name: str, text: str) -> None:
    with pytest.raises(SettingInvalid, match=f"{name}={text}: "):
        read({name: text})


def test_operators_find_every_setting() -> None:
    """Those that the code reads, and no others."""
    read = {"ONWARD_LOG_LEVEL", "ONWARD_LOOP", "ONWARD_GATEWAY", "ONWARD_API_KEY", "ONWARD_CA"}
    for settings in (Gateway, Scheduler, Executor, Peers):
        read |= set(re.findall(r"ONWARD_[A-Z_]+", settings.from_env.__doc__ or ""))
    chapter = README.read_text().partition("## All settings of the services")[2]
    listed = [name for line in chapter.splitlines() if line.startswith("| `") for name in _names(line)]
    assert sorted(listed) == sorted(read)


def _names(line: str) -> list[str]:
    return re.findall(r"`(ONWARD_[A-Z_]+)`", line.split("|")[1])


@pytest.mark.parametrize(
    "words",
    [
        ["scheduler", "--lease-ttl=nan"],
        ["scheduler", "--lease-ttl=0"],
        ["scheduler", "--adopt-after=-1"],
        ["executor", "code.py", "--slots=0"],
        ["executor", "code.py", "--drain-grace=inf"],
        ["dev", "code.py", "--executors=0"],
    ],
)
def test_options_are_bounded_as_variables_are(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line(words)(words)
    assert "from " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["gateway", "--grpc=127.0.0.1:99999"], "--grpc=127.0.0.1:99999"),
        (["gateway", "--grpc=127.0.0.1:65536"], "--grpc=127.0.0.1:65536"),
        (["gateway", "--grpc=localhost"], "--grpc=localhost"),
        (["gateway", "--http=a:"], "--http=a:"),
        (["gateway", "--scheduler=a:1,b"], "--scheduler=b"),
        (["scheduler", "--listen=50052"], "--listen=50052"),
        (["executor", "code.py", "--listen=a:b"], "--listen=a:b"),
        (["executor", "code.py", "--advertise=a"], "--advertise=a"),
        (["dev", "code.py", "--grpc=foo"], "--grpc=foo"),
        (["dev", "code.py", "--http=127.0.0.1:99999"], "--http=127.0.0.1:99999"),
        (["dev", "code.py", "--grpc=0.0.0.0:50051"], "--grpc=0.0.0.0:50051"),
    ],
)
def test_an_address_that_is_none_is_told_with_its_option(words: list[str], option: str) -> None:
    """gRPC would listen on another port than 99999, and say nothing."""
    with pytest.raises(SettingInvalid, match=f"^{option}: [^\n]*$"):
        command_line(words)(words)
