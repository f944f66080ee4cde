"""docker-compose.yml against the settings that it has to fit. Whether it works is shown by services/deploy/try.sh."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from onward_executor.app import END_S
from onward_executor.settings import Settings as Executor
from onward_gateway.settings import Settings as Gateway
from onward_scheduler.settings import Settings as Scheduler

FILE = Path(__file__).parents[2] / "docker-compose.yml"


def service(name: str) -> str:
    """Return what the file says of one service, its variables at their defaults."""
    block = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", FILE.read_text(), re.MULTILINE)
    assert block is not None, f"no service {name}"
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", block[1])


def value(name: str, pattern: str) -> str:
    found = re.search(pattern, service(name))
    assert found is not None, f"no {pattern} in {name}"
    return found[1]


@pytest.mark.parametrize(
    ("name", "needed_s"),
    [
        ("executor", Executor.drain_grace_s + END_S),
        ("gateway", Gateway.shutdown_grace_s),
        ("scheduler", Scheduler.shutdown_grace_s),
    ],
)
def test_a_container_has_longer_to_end_than_its_process_takes(name: str, needed_s: float) -> None:
    """Docker kills what outlives the stop grace: a run would be lost to its lease instead of handed over."""
    assert int(value(name, r"stop_grace_period: (\d+)s")) > needed_s


def test_an_executor_drains_as_long_as_its_stop_grace_was_made_for() -> None:
    assert float(value("executor", r"ONWARD_DRAIN_GRACE_S: (\d+)")) == Executor.drain_grace_s


@pytest.mark.parametrize("name", ["gateway", "scheduler", "executor"])
def test_a_health_check_runs_what_the_image_has(name: str) -> None:
    """The image has Python, and this project, and no curl."""
    command = value(name, r"test: \[(.*)\]").replace('"', "").split(", ")
    assert command[:3] == ["CMD", "python", "-m"]
    assert importlib.util.find_spec(command[3]) is not None
    port = command[4].removeprefix("127.0.0.1:")
    assert f"0.0.0.0:{port}" in service("scheduler" if name == "scheduler" else name)


def test_the_store_keeps_what_it_acknowledges() -> None:
    command = service("valkey")
    for setting in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
        assert setting in command


def test_only_this_machine_reaches_what_is_published() -> None:
    published = re.findall(r"^      - (\S+):\d+$", service("gateway"), re.MULTILINE)
    assert published == ["127.0.0.1:50051", "127.0.0.1:8080"]
    assert "ports:" not in service("valkey") + service("scheduler") + service("executor")


def test_the_image_has_what_the_examples_import() -> None:
    """Executors serve all of them: one that cannot be imported keeps every other from being served, too."""
    project = tomllib.loads((FILE.parent / "pyproject.toml").read_text())["project"]
    extras = re.search(r"^ +EXTRAS: (\w+)", FILE.read_text(), re.MULTILINE)
    assert extras is not None
    installed = [*project["dependencies"], *project["optional-dependencies"][extras[1]]]
    needed = {re.split(r"[^\w-]", one)[0].replace("-", "_").lower() for one in installed}
    needed.add("pydantic_core")  # comes with pydantic
    examples = FILE.parent / "sdk" / "examples"
    ours = {path.stem for path in examples.iterdir()} | {"onward"}
    imported: dict[str, set[str]] = {}
    for path in examples.rglob("*.py"):
        if not path.name.startswith("_demo"):
            imported[str(path)] = {
                name.partition(".")[0]
                for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                )
            }
    missing = {path: names - needed - ours - sys.stdlib_module_names for path, names in imported.items()}
    assert {path: names for path, names in missing.items() if names} == {}


def test_compose_accepts_the_file() -> None:
    if found := shutil.which("docker-compose"):
        command = [found]
    elif found := shutil.which("docker"):
        command = [found, "compose"]
        if subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
            pytest.skip("docker has no compose here")
    else:
        pytest.skip("there is no docker-compose here")
    checked = subprocess.run(
        [*command, "-f", str(FILE), "config", "--quiet"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
