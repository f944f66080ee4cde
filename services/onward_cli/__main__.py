"""The `onward` command."""

from __future__ import annotations

from importlib.metadata import version

from cyclopts import App, Group

SERVE = {
    "dev": "Run everything on this machine, and your code, reloaded when it changes.",
    "gateway": "Serve the public API.",
    "scheduler": "Decide which run goes where and when.",
    "executor": "Run your code.",
}
TALK = {
    "start": "Start a run.",
    "follow": "Show a run until it ends.",
    "runs": "List runs, newest first.",
    "get": "Show one run.",
    "cancel": "Ask for a run's end.",
    "signal": "Send a value into a run.",
    "resume": "Continue a paused run.",
    "workflows": "List what can be started.",
}

SERVING, TALKING = Group("Serve", sort_key=0), Group("Talk to a Gateway", sort_key=1)

app = App(name="onward", help="Run long agent workflows and never lose the thread.", version=version("onward"))
# By path: a command imports only what it needs.
for name, text in SERVE.items():
    app.command(f"onward_cli.{name}:{name}", name=name, group=SERVING, help=text)
for name, text in TALK.items():
    app.command(f"onward_cli.talk:{name}", name=name, group=TALKING, help=text)


def main() -> None:
    """Run the command that the arguments name."""
    app()


if __name__ == "__main__":
    main()
