"""Runs and workflows as tables and details."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onward.payload import decode
from onward.v1.gateway_service_pb2 import Workflow
from onward.v1.run_pb2 import Run
from onward.views import TERMINAL, View
from onward_cli.following import show_value
from onward_cli.screen import headline_of
from onward_cli.wording import (
    STATE_STYLES,
    Labels,
    compact,
    cropped,
    duration,
    error_line,
    line,
    local,
    printable,
    question,
    ran_s,
    state_of,
    used,
)

COMPONENTS_MAX = 100
"""How many components `onward get` lists."""

_EXAMPLES: dict[str, Any] = {"string": "TEXT", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}


def runs_table(runs: Sequence[Run], now: datetime) -> Table:
    """Return runs as a table, in their order."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    # An id is there to be copied: it is never cut.
    table.add_column("RUN", no_wrap=True, overflow="fold", min_width=max((len(run.run_id) for run in runs), default=0))
    table.add_column("WORKFLOW", overflow="fold")
    table.add_column("STATE", no_wrap=True)
    table.add_column("AGE", justify="right", no_wrap=True)
    table.add_column("TOOK", justify="right", no_wrap=True)
    table.add_column("ATTEMPT", justify="right", no_wrap=True)
    table.add_column("LABELS", overflow="fold")
    waiting = any(run.waiting_for for run in runs)
    if waiting:
        table.add_column("WAITS FOR", overflow="fold")
    for run in runs:
        state = state_of(run)
        table.add_row(
            Text(run.run_id),
            Text(line(run.workflow)),
            Text(state, style=STATE_STYLES.get(state, "")),
            duration((now - run.create_time.ToDatetime(UTC)).total_seconds()),
            duration(ran_s(run, now)),
            str(run.attempt),
            Text(labels_text(run)),
            *([Text(line(run.waiting_for))] if waiting else []),
        )
    return table


def labels_text(run: Run) -> str:
    """Return a run's labels on one line."""
    return " ".join(f"{line(key)}={line(value)}" for key, value in sorted(run.labels.items()))


def show_run(console: Console, run: Run, view: View | None, now: datetime) -> None:
    """Show everything about a run.

    Args:
        console: Where.
        run: The run with input and output.
        view: What is to be seen of it; None leaves it out.
        now: The time.
    """
    state = state_of(run)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    rows: list[tuple[str, RenderableType]] = [
        ("run", Text(run.run_id, style="bold")),
        ("workflow", Text(line(run.workflow))),
        ("state", Text(state, style=STATE_STYLES.get(state, ""))),
    ]
    texts = {
        "waits for": line(run.waiting_for),
        "accepted": _time(run.create_time),
        "not before": _time(run.schedule_time) if run.HasField("schedule_time") else "",
        "started": _time(run.start_time) if run.HasField("start_time") else "",
        "ended": _time(run.end_time) if run.HasField("end_time") else "",
        "took" if run.state in TERMINAL else "lives for": duration(ran_s(run, now)),
        "wakes": _time(run.wake_time) if run.HasField("wake_time") else "",
        "deadline": _time(run.deadline) if run.HasField("deadline") else "",
        "kept until": _time(run.expire_time) if run.HasField("expire_time") else "",
        "attempt": str(run.attempt),
        "executor": line(run.executor_id),
        "deployment": line(run.deployment),
        "namespace": run.namespace if run.namespace != "default" else "",
        "labels": labels_text(run),
        "priority": str(run.priority) if run.priority else "",
        "fairness key": line(run.fairness_key),
        "request id": line(run.request_id),
        "parent": run.parent_run_id + (" (detached)" if run.detached else ""),
        "goes on as": run.continued_as_run_id,
        "goes on from": run.continued_from_run_id,
        "forked from": run.forked_from_run_id,
        "events": f"{run.log.first_offset} to {run.log.last_offset}" if run.log.last_offset else "none",
        "used": used(run.usage),
    }
    rows += [(name, Text(text)) for name, text in texts.items() if text]
    for name, value in rows:
        facts.add_row(name, value)
    console.print(facts)
    elsewhere = f"onward get {run.run_id} --output json"
    if run.input.WhichOneof("value"):
        console.print(Text("\ninput", style="dim"))
        show_value(console, decode(run.input), elsewhere)
    if view is not None and view.components:
        console.print(Text("\ncomponents", style="dim"))
        console.print(components_list(view))
    if view is not None:
        for request in view.requests:
            console.print(Text(f"\n? {question(request)}", style="bold magenta"), soft_wrap=True)
            console.print(Text(f"  answer with: onward signal {run.run_id} {line(request.name)} JSON"), soft_wrap=True)
    if run.HasField("error"):
        failed = view.components.get(run.error.component_id) if view is not None else None
        console.print(Text("\nerror", style="dim"))
        console.print(Text(error_line(run.error, line(failed.name) if failed else ""), style="red"), soft_wrap=True)
        if run.error.traceback:
            console.print(Text(printable(run.error.traceback).rstrip(), style="dim"), soft_wrap=True)
    if run.output.WhichOneof("value"):
        console.print(Text("\noutput", style="dim"))
        show_value(console, decode(run.output), elsewhere)


def components_list(view: View) -> Group:
    """Return a line for each component of a run, below the one that called it."""
    labels = Labels()
    for component in view.components.values():
        labels.of(component)
    lines: list[Text] = []
    # A stack and no recursion: agents nest as deep as they like.
    stack = [(each, 0) for each in reversed(view.children())]
    while stack and len(lines) < COMPONENTS_MAX:
        component, depth = stack.pop()
        shown = Text("  " * min(depth, 10)) + headline_of(component, labels.of(component))
        if component.state == "running" and component.status is not None:
            shown.append(f"  {line(component.status.message)}", style="dim")
        shown.no_wrap, shown.overflow = True, "ellipsis"
        lines.append(shown)
        stack += [(each, depth + 1) for each in reversed(view.children(component.id))]
    if (hidden := len(view.components) - len(lines)) > 0:
        lines.append(Text(f"and {hidden} more", style="dim"))
    return Group(*lines)


def workflow_help(workflow: Workflow) -> Group:
    """Return what a workflow is called, does and takes, and how to start it."""
    schema = decode(workflow.input_schema)
    parts: list[RenderableType] = [Text(line(workflow.name), style="bold")]
    if workflow.description:
        parts.append(Padding(Text(printable(workflow.description)), (0, 0, 0, 2), expand=False))
    parameters = _parameters(schema)
    if parameters:
        table = Table.grid(padding=(0, 2))
        for name, parameter, required in parameters:
            table.add_row(
                Text(line(name)),
                Text(_type(parameter), style="cyan"),
                Text("" if required else f"default {compact(parameter.get('default'), 40)}", style="dim"),
                Text(cropped(str(parameter.get("description", "")), 200), style="dim"),
            )
        parts.append(Padding(table, (0, 0, 0, 4), expand=False))
    parts.append(Padding(Text(f"onward start {example(workflow)}", style="green"), (0, 0, 0, 2), expand=False))
    return Group(*parts)


def example(workflow: Workflow) -> str:
    """Return what to write behind `onward start` to start a workflow."""
    words = [workflow.name]
    for name, parameter, required in _parameters(decode(workflow.input_schema)):
        if required:
            value = _example(parameter)
            words.append(shlex.quote(f"{name}={value if isinstance(value, str) else compact(value)}"))
    return " ".join([*words, "--follow"])


def _parameters(schema: Any) -> list[tuple[str, dict[str, Any], bool]]:
    """Name, schema and whether it must be given, of each parameter; those first that must."""
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return []
    definitions = schema.get("$defs", {})
    required = schema.get("required", [])
    parameters = [
        (name, _resolved(parameter, definitions), name in required) for name, parameter in schema["properties"].items()
    ]
    return sorted(parameters, key=lambda parameter: not parameter[2])


def _resolved(parameter: Any, definitions: Any) -> dict[str, Any]:
    if not isinstance(parameter, dict):
        return {}
    name = str(parameter.get("$ref", "")).removeprefix("#/$defs/")
    referred = definitions.get(name, {}) if isinstance(definitions, dict) else {}
    return {"title": name, **referred, **parameter} if isinstance(referred, dict) and name else parameter


def _type(parameter: dict[str, Any]) -> str:
    """What a parameter takes, in a few words."""
    if "enum" in parameter:
        return cropped(" | ".join(compact(value, 20) for value in parameter["enum"]), 60)
    if isinstance(parameter.get("anyOf"), list):
        return cropped(" | ".join(_type(each) for each in parameter["anyOf"] if isinstance(each, dict)), 60)
    kind = parameter.get("type", "any")
    if kind == "array" and isinstance(parameter.get("items"), dict):
        return f"array of {_type(parameter['items'])}"
    if kind == "object" and parameter.get("title"):
        return line(str(parameter["title"]))
    return line(str(kind))


def _example(parameter: dict[str, Any]) -> Any:
    if parameter.get("examples"):
        return parameter["examples"][0]
    if parameter.get("enum"):
        return parameter["enum"][0]
    kind = parameter.get("type")
    if kind == "object":
        return {
            name: _example(each)
            for name, each in parameter.get("properties", {}).items()
            if isinstance(each, dict) and name in parameter.get("required", [])
        }
    return _EXAMPLES.get(kind, "VALUE") if isinstance(kind, str) else "VALUE"


def _time(time: Timestamp) -> str:
    return local(time.ToDatetime(UTC))
