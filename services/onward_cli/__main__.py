"""The `onward` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, Group

from onward_serving.environment import SettingInvalid

SERVE = {
    "dev": "Run everything on this machine, and your code, reloaded when it changes.",
    "gateway": "Serve the public API.",
    "scheduler": "Decide which run goes where and when.",
    "executor": "Run your code.",
    "keys": "Make API keys for a Gateway.",
}
TALK = {
    "start": "Start a run.",
    "follow": "Show a run until it ends.",
    "runs": "List runs, newest first.",
    "get": "Show one run.",
    "cancel": "Ask for a run's end.",
    "signal": "Send a value into a run.",
    "resume": "Continue a paused run.",
    "retry": "Run what failed again, and keep what did not.",
    "fork": "Start a run with what another one has got.",
    "workflows": "List what can be started.",
}

SERVING, TALKING = Group("Serve", sort_key=0), Group("Talk to a Gateway", sort_key=1)


def command_line(arguments: Sequence[str]) -> App:
    """Return the command as it answers these arguments: each command on a line, the one that is called in full."""
    app = App(name="onward", help="Run long agent workflows and never lose the thread.", version=version("onward"))
    homes = {name: f"onward_cli.{name}:{name}" for name in SERVE} | {name: f"onward_cli.talk:{name}" for name in TALK}
    for order, (name, text) in enumerate((SERVE | TALK).items()):
        # By path: a command imports only what it needs. Without a text its help is its docstring.
        group = SERVING if name in SERVE else TALKING
        app.command(homes[name], name=name, group=group, help=None if name in arguments[:1] else text, sort_key=order)
    return app


def main() -> None:
    """Run the command that the arguments name."""
    try:
        command_line(sys.argv[1:])()
    except SettingInvalid as error:
        sys.exit(f"onward: {error}")


if __name__ == "__main__":
    main()
