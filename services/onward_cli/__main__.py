"""The `onward` command."""

from __future__ import annotations

from cyclopts import App

app = App(name="onward", help="Run long agent workflows and never lose the thread.")
for name in ("dev", "gateway", "scheduler", "executor"):
    app.command(f"onward_cli.{name}:{name}", name=name)  # by path: a command imports only what it needs


def main() -> None:
    """Run the command that the arguments name."""
    app()


if __name__ == "__main__":
    main()
