"""Settings as people write them."""

from __future__ import annotations

import pytest

from onward_cli.serving import listed
from onward_executor.settings import Settings as ExecutorSettings
from onward_scheduler.settings import Settings as SchedulerSettings


@pytest.mark.parametrize("text", ["a:1,b:2", "a:1, b:2", " a:1 ,, b:2,"])
def test_lists_are_read_as_they_are_meant(text: str) -> None:
    """A space or a comma too many is no address."""
    assert ExecutorSettings.from_env("code.py", {"ONWARD_SCHEDULER": text}).schedulers == ("a:1", "b:2")
    assert SchedulerSettings.from_env({"ONWARD_ON_RUN_END": text}).on_run_end == ("a:1", "b:2")
    assert listed(text) == ("a:1", "b:2")


def test_an_empty_list_is_none() -> None:
    """As in a compose file whose variable is not set."""
    default = ExecutorSettings(target="code.py").schedulers
    assert ExecutorSettings.from_env("code.py", {"ONWARD_SCHEDULER": ""}).schedulers == default
    assert SchedulerSettings.from_env({"ONWARD_ON_RUN_END": ""}).on_run_end == ()
    assert listed("") is None
    assert listed(None) is None
