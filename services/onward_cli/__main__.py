"""The `onward` command."""

from __future__ import annotations

from cyclopts import App

from onward_cli.serve import serve_commands

app = App(name="onward", help="Run long agent workflows and never lose the thread.")
serve_commands(app)


def main() -> None:
    """Run the command that the arguments name."""
    app()


if __name__ == "__main__":
    main()
