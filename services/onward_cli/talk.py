"""The commands that talk to a Gateway: start, follow, runs, get, cancel, signal, resume, retry, fork, workflows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from onward.client import DEFAULT_ADDRESS, Client, RunHandle
from onward.errors import InvalidInput, OnwardError, RequestError, RunNotFound, Unavailable, WorkflowNotFound
from onward.v1.run_pb2 import RUN_STATE_SUCCEEDED, Run, RunState
from onward.views import View
from onward_cli.arguments import Refused, duration_s, json_value, labels, meant_as_text, schedule, workflow_input
from onward_cli.documents import components, document
from onward_cli.following import follow_as_json, follow_shown, run_document, write_json
from onward_cli.listings import runs_table, show_run, workflow_help
from onward_cli.wording import line, state_of

PATIENCE_S = 3
"""How long a command goes on while nobody answers: a person waits for it."""

STILL_TRYING_S = 2.0
"""How long a person is left without a word."""

FOLLOW_PATIENCE_S = 600
"""How long following goes on while nobody answers: a deploy or an outage passes."""

VIEW_EVENTS_MAX = 10_000
"""Longest log that `onward get` reads to tell of components."""

PIPE_COLUMNS = 10_000
"""Longest line to a file or a pipe."""

SUCCEEDED, FAILED, REFUSED = 0, 1, 2
"""Exit codes. Ctrl-C gives 130."""

_ADDRESS = "ONWARD_GATEWAY"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Talk:
    """What all commands here take."""

    gateway: Annotated[
        str,
        Parameter(
            env_var=_ADDRESS,
            help="HOST:PORT of a Gateway, https://HOST:PORT where it encrypts; several are separated by commas. "
            "ONWARD_API_KEY holds the key that it may ask for, ONWARD_CA names a file of authorities to believe.",
        ),
    ] = DEFAULT_ADDRESS
    output: Annotated[
        Literal["text", "json"],
        Parameter(help="text is for people; json is one document, or a line for each event where there are many."),
    ] = "text"

    @property
    def json(self) -> bool:
        """Whether a program reads the answer."""
        return self.output == "json"

    def command(self, *words: str) -> str:
        """Return a command line that talks to the same Gateway."""
        elsewhere = self.gateway != os.environ.get(_ADDRESS, DEFAULT_ADDRESS)
        return shlex.join(["onward", *words, *(["--gateway", self.gateway] if elsewhere else [])])


def _option(help: str, metavar: str | None = None, **more: Any) -> Parameter:
    """An option whose default, if it has one, is said in its help."""
    return Parameter(help=help, metavar=metavar, negative="", show_default=False, **more)


RunId = Annotated[str, Parameter(help="The run, by its id.")]
_DEFAULT = Talk()


async def start(
    workflow: Annotated[str, _option("The workflow, by its name.")],
    /,
    *pairs: Annotated[
        str,
        Parameter(
            name="NAME=VALUE",
            help="Its parameters. A value that is JSON is that, any other is text; so is 5, where text is wanted.",
        ),
    ],
    input: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True, help="All its parameters: a JSON object, @FILE, or - for the standard input."
        ),
    ] = None,
    follow: Annotated[bool, _option("Show the run until it ends.")] = False,
    label: Annotated[
        list[str] | None, _option("Kept on the run, for listing; repeat it for more.", "KEY=VALUE")
    ] = None,
    run_id: Annotated[str, _option("The id to give the run; by default the server chooses.")] = "",
    request_id: Annotated[str, _option("Starting again with the same one gives the first run.")] = "",
    run_timeout: Annotated[
        str | None, _option("Bounds the whole run, waiting included, e.g. 1h.", "DURATION", name="--timeout")
    ] = None,
    at: Annotated[str | None, _option("Earliest start, e.g. 2026-11-22T08:00.", "TIME")] = None,
    in_: Annotated[str | None, _option("Earliest start from now on, e.g. 10m.", "DURATION", name="--in")] = None,
    priority: Annotated[int, _option("Higher goes first, -100 to 100; 0 by default.")] = 0,
    fairness_key: Annotated[str, _option("The tenant that queued work is shared between.")] = "",
    deployment: Annotated[str, _option("The build to run; by default the one that takes new runs.")] = "",
    talk: Talk = _DEFAULT,
) -> int:
    """Start a run and print its id. It goes on whatever becomes of this command.

    Example: onward start blog_post topic="the history of tea" --follow

    Exit code: 0 when it was accepted, 2 when it was refused; with --follow as `onward follow`.
    """

    async def work(client: Client) -> int | Run:
        values = workflow_input(input, pairs)
        kept_request_id = request_id or uuid.uuid4().hex
        begin = partial(
            client.start,
            workflow,
            run_id=run_id,
            request_id=kept_request_id,
            labels=labels(label or ()),
            run_timeout=None if run_timeout is None else duration_s(run_timeout, "--timeout"),
            schedule_time=schedule(at, in_, datetime.now(UTC)),
            priority=priority,
            fairness_key=fairness_key,
            deployment=deployment,
        )
        try:
            handle = await _begun(begin, values, pairs)
        except WorkflowNotFound as error:
            raise Refused(await _unknown_workflow(client, workflow, str(error), talk)) from None
        except InvalidInput as error:
            wrong = "".join(f"\n  {line(each.removeprefix(': '))}" for each in error.violations or [str(error)])
            raise Refused(
                f"that is no input of {workflow}:{wrong}\nsee: {talk.command('workflows', workflow)}"
            ) from None
        except Unavailable as error:
            if "failed to connect" in str(error):  # gRPC's words: nobody was asked
                raise
            again = f"this gives the same run and no second one: --request-id {kept_request_id}"
            raise Refused(f"{explain(error, talk)}\nif it was accepted after all, {again}") from None
        return await _accepted(handle, follow, talk)

    return await _talk(talk, work)


async def follow(
    run: RunId,
    /,
    *,
    after: Annotated[int, _option("Leave out what happened up to this event of the run's log.")] = 0,
    talk: Talk = _DEFAULT,
) -> int:
    """Show a run until it ends: its progress, its text as it is written, its output. Ctrl-C leaves it running.

    Example: onward follow 3f1c8a52

    With --output json each event of the run's log is a line {"event": …}, and the last line is {"run": …}.

    Exit code: 0 when the run succeeded, 1 when it failed, was cancelled or is paused, 2 when it cannot be followed, 130
    after Ctrl-C.
    """

    async def work(client: Client) -> Run:
        return await client.get(run)

    return await _talk(talk, work, after=after)


async def runs(
    *,
    workflow: Annotated[str, _option("Only runs of this workflow.")] = "",
    state: Annotated[
        list[str] | None,
        _option("Only runs in this state, e.g. failed; repeat it for more.", "STATE"),
    ] = None,
    label: Annotated[
        list[str] | None, _option("Only runs that have this label; repeat it for more.", "KEY=VALUE")
    ] = None,
    parent: Annotated[str, _option("Only children of this run.")] = "",
    limit: Annotated[int, _option("How many at most; 50 by default.")] = 50,
    talk: Talk = _DEFAULT,
) -> int:
    """List runs, newest first.

    Example: onward runs --state failed --label user=ada
    """

    async def work(client: Client) -> int:
        if limit < 1:
            raise Refused(f"--limit {limit}: a number from 1 on is wanted")
        listed: list[Run] = []
        found = client.list_runs(
            workflow=workflow,
            states=[_state(each) for each in state or ()],
            labels=labels(label or ()),
            parent_run_id=parent,
            page_size=min(limit, 1000),
        )
        more = False
        async for run in found:
            if len(listed) >= limit:
                more = True
                break
            listed.append(run)
        if talk.json:
            write_json([document(run) for run in listed])
            return SUCCEEDED
        if listed:
            console = _console()
            console.print(runs_table(listed, datetime.now(UTC)))
            if more:
                _hint(f"there are more: --limit {limit * 2}")
        else:
            _hint("no runs")
        return SUCCEEDED

    return await _talk(talk, work)


async def get(run: RunId, /, *, talk: Talk = _DEFAULT) -> int:
    """Show a run: its state, input, components, output or error.

    Example: onward get 3f1c8a52

    With --output json `components` is a list with id, name, parent_id, state and tries of each, in the order in which
    they began. It is left out where the run's log is longer than 10,000 events; `onward follow` reads those, too.
    """

    async def work(client: Client) -> int:
        found = await client.get(run)
        view: View | None = None
        if found.log.last_offset <= VIEW_EVENTS_MAX:
            view = await client.view(run)
        if talk.json:
            told = {"components": components(view)} if view is not None else {}
            write_json({**await run_document(client, found), **told})
            return SUCCEEDED
        show_run(_console(), found, view, datetime.now(UTC))
        return SUCCEEDED

    return await _talk(talk, work)


async def cancel(
    run: RunId,
    /,
    *,
    reason: Annotated[str, _option("Why, for the run's log.")] = "",
    talk: Talk = _DEFAULT,
) -> int:
    """Cancel a run. Its code may clean up, so it may take a while to end.

    Example: onward cancel 3f1c8a52 --reason "wrong topic"
    """

    async def work(client: Client) -> int:
        return _answer(await client.cancel(run, reason), talk)

    return await _talk(talk, work)


async def signal(
    run: RunId,
    name: Annotated[str, _option("What the run waits for.")],
    value: Annotated[
        str | None,
        Parameter(
            name="JSON", allow_leading_hyphen=True, help="What to tell it: JSON, @FILE, or - for the standard input."
        ),
    ] = None,
    /,
    *,
    request_id: Annotated[str, _option("A repeat with the same one sends nothing.")] = "",
    talk: Talk = _DEFAULT,
) -> int:
    """Send a value into a run that waits for it, or will.

    Example: onward signal 3f1c8a52 approve '{"by": "ada"}'
    """

    async def work(client: Client) -> int:
        told = None if value is None else json_value(value, f"the value of {name}")
        offset = await client.signal(run, name, told, request_id=request_id)
        if talk.json:
            write_json({"offset": offset})
        else:
            sys.stdout.write(f"signal {name} is event {offset} of run {run}\n")
        return SUCCEEDED

    return await _talk(talk, work)


async def resume(
    run: RunId,
    /,
    *,
    deployment: Annotated[str, _option("Move it to this build; by default it keeps its own.")] = "",
    talk: Talk = _DEFAULT,
) -> int:
    """Continue a paused run where it stopped, or with --deployment one that waits for a build which is gone.

    Example: onward resume 3f1c8a52
    """

    async def work(client: Client) -> int:
        return _answer(await client.resume(run, deployment), talk)

    return await _talk(talk, work)


async def retry(
    run: RunId,
    /,
    *,
    deployment: Annotated[str, _option("The build to run; by default the one that takes new runs.")] = "",
    follow: Annotated[bool, _option("Show the new run until it ends.")] = False,
    talk: Talk = _DEFAULT,
) -> int:
    """Start a new run that goes on from the component in which this one failed, and print its id.

    Example: onward retry 3f1c8a52 --follow

    What had finished before keeps what it gave. Exit code: as `onward start`.
    """

    async def work(client: Client) -> int | Run:
        return await _accepted(await client.retry(run, deployment=deployment), follow, talk)

    return await _talk(talk, work)


async def fork(
    run: RunId,
    /,
    *,
    component: Annotated[
        str, _option("The id of the first component that runs again; by default all do.", name="--from")
    ] = "",
    deployment: Annotated[str, _option("The build to run; by default the one that takes new runs.")] = "",
    follow: Annotated[bool, _option("Show the new run until it ends.")] = False,
    talk: Talk = _DEFAULT,
) -> int:
    """Start a new run with the results that this one had before one of its components, and print its id.

    Example: onward fork 3f1c8a52 --from 7b0e02da8e7492bd

    `onward get RUN --output json` tells the ids of its components. Exit code: as `onward start`.
    """

    async def work(client: Client) -> int | Run:
        return await _accepted(await client.fork(run, component, deployment=deployment), follow, talk)

    return await _talk(talk, work)


async def workflows(
    name: Annotated[str, _option("Only this one.")] = "",
    /,
    *,
    talk: Talk = _DEFAULT,
) -> int:
    """List what can be started, what it takes, and how.

    Example: onward workflows
    """

    async def work(client: Client) -> int:
        served = [each for each in await client.workflows() if not name or each.name == name]
        if name and not served:
            raise Refused(await _unknown_workflow(client, name, f"there is no workflow {name}", talk))
        if talk.json:
            write_json([document(each) for each in served])
            return SUCCEEDED
        if not served:
            _hint("no workflows yet: serve some with `onward dev FILE`, or `onward executor FILE`")
        console = _console()
        for number, each in enumerate(served):
            console.print(*([""] if number else []), workflow_help(each), sep="\n")
        return SUCCEEDED

    return await _talk(talk, work)


async def _begun(
    begin: Callable[[dict[str, Any]], Awaitable[RunHandle]], values: dict[str, Any], pairs: Sequence[str]
) -> RunHandle:
    """Start a run, if need be with numbers as text; raises what `begin` raises."""
    try:
        return await begin(values)
    except InvalidInput as error:
        texts = meant_as_text(pairs, error.violations)
        if not texts:
            raise
        try:
            return await begin({**values, **texts})
        except InvalidInput as still:
            # As text neither: then what was typed is what is wrong.
            raise (error if meant_as_text(pairs, still.violations) else still) from None


async def _accepted(handle: RunHandle, follow: bool, talk: Talk) -> int | Run:
    """Say which run was accepted, or return it to be shown until it ends."""
    if follow:
        return await handle.get()
    if talk.json:
        write_json(document(await handle.get()))
    else:
        sys.stdout.write(f"{handle.run_id}\n")
        _hint(f"follow it: {talk.command('follow', handle.run_id)}")
    return SUCCEEDED


def explain(error: OnwardError, talk: Talk) -> str:
    """Return an error in words that say what to do."""
    match error:
        case Unavailable(reason="") if "Deadline Exceeded" in str(error):  # gRPC's words: somebody may be there
            return (
                f"no answer came in time from {talk.gateway}: what it needs may be away (the store, a Scheduler), "
                "which its log would say, or nobody is there"
            )
        case Unavailable(reason=""):
            where = "no Gateway answers at" if "," not in talk.gateway else "none of the Gateways answers:"
            return f"{where} {talk.gateway}: start one with `onward dev FILE`, or name another one with --gateway"
        case RunNotFound():
            return f"{line(str(error))}: see {talk.command('runs')}"
        case RequestError(violations=[_, *_]):
            return "\n  ".join([line(str(error)), *map(line, error.violations)])
        case RequestError(retry_after_s=seconds) if seconds:
            return f"{line(str(error))}; try again in {seconds:g} s"
    return line(str(error))


async def _talk(talk: Talk, work: Callable[[Client], Awaitable[int | Run]], *, after: int = 0) -> int:
    """Do a command's work with a client, and say what went wrong in words.

    Args:
        talk: As given.
        work: Gives the exit code, or the run to follow until it ends.
        after: What happened to that one up to this offset is left out.
    """
    # Texts come in all characters, and not every terminal or pipe takes them.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        async with Client(talk.gateway, patience=PATIENCE_S) as client:
            with _still_trying(talk):
                done = await work(client)
        return await _follow(done, after, talk) if isinstance(done, Run) else done
    except OnwardError as error:
        said = explain(error, talk)
    except (Refused, ValueError) as error:
        said = str(error)
    except BrokenPipeError:
        # Whoever read has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    sys.stderr.write(f"onward: {said}\n")
    return REFUSED


@contextlib.contextmanager
def _still_trying(talk: Talk) -> Iterator[None]:
    """Say so where the block takes long: nobody should have to guess whether anything happens."""
    said = f"still trying: no answer yet from {talk.gateway}"
    saying = asyncio.get_running_loop().call_later(STILL_TRYING_S, _hint, said)
    try:
        yield
    finally:
        saying.cancel()


async def _follow(run: Run, after: int, talk: Talk) -> int:
    again = talk.command("follow", run.run_id)
    try:
        async with Client(talk.gateway, patience=FOLLOW_PATIENCE_S) as client:
            if talk.json:
                ended = await follow_as_json(client, run, after=after)
            else:
                ended = await follow_shown(client, run, _console(), after=after, again=again)
    except asyncio.CancelledError:
        # Ctrl-C: asyncio.run makes it KeyboardInterrupt again, which exits with 130.
        sys.stderr.write(f"\nnot watching any more; run {run.run_id} goes on. Follow it again: {again}\n")
        raise
    return SUCCEEDED if ended.state == RUN_STATE_SUCCEEDED else FAILED


async def _unknown_workflow(client: Client, name: str, why: str, talk: Talk) -> str:
    names = [each.name for each in await client.workflows()]
    near = get_close_matches(name, names, n=3)
    if near:
        return f"there is no workflow {name}: did you mean {' or '.join(near)}?"
    return f"{line(why)}: see {talk.command('workflows')}" if names else f"{line(why)}: none is served yet"


def _answer(run: Run, talk: Talk) -> int:
    if talk.json:
        write_json(document(run))
    else:
        sys.stdout.write(f"run {run.run_id} is {state_of(run)}\n")
    return SUCCEEDED


def _state(given: str) -> str:
    names = [
        name.removeprefix("RUN_STATE_")
        for name in RunState.DESCRIPTOR.values_by_name
        if name != "RUN_STATE_UNSPECIFIED"
    ]
    if given.upper() not in names:
        raise Refused(f"--state {given} is none: there are {', '.join(names).lower()}")
    return given.upper()


def _hint(text: str) -> None:
    """Say something that is not the answer: programs read only that."""
    Console(stderr=True, highlight=False).print(Text(text, style="dim"), soft_wrap=True)


def _console() -> Console:
    # No terminal, no width: what is one line stays one, whoever reads it.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
