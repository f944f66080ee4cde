"""A client of the Gateways: start runs, follow them, talk to them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from google.protobuf.duration_pb2 import Duration as DurationMessage
from google.protobuf.timestamp_pb2 import Timestamp

from onward.blocking import Answer, Facade, Flattened, Items, LoopThread
from onward.continuity import Continuity, EventsMissing
from onward.durations import Duration, seconds
from onward.errors import InternalError, RequestError, RunFailed, RunNotFound, Unavailable
from onward.gateways import ANSWER_S, Gateways
from onward.payload import decode, decode_bytes, encode
from onward.subscription import Subscription
from onward.tracing import current_trace_parent
from onward.v1 import gateway_service_pb2 as gateway
from onward.v1.event_pb2 import Event
from onward.v1.run_pb2 import RUN_STATE_PAUSED, RUN_STATE_SUCCEEDED, Payload, Run, RunState
from onward.views import TERMINAL, View

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where a Gateway listens unless told otherwise."""

WAIT_S = 20.0
"""Seconds that a Gateway is asked to wait for a run's end before it is asked again."""

ViewName = Literal["raw", "settled"]
FORK_S = 130.0
"""Seconds that one try of a fork may take: it copies a log."""

_VIEWS = {"raw": gateway.VIEW_RAW, "settled": gateway.VIEW_SETTLED}


class Named(Protocol):
    """Something with a name that a workflow is started by, such as a workflow itself."""

    @property
    def name(self) -> str: ...


class Client:
    """A client of one or more Gateways. It belongs to one event loop, and one is enough for a process.

        async with Client() as client:
            run = await client.start("blog_post", {"topic": "tea"})
            async for event in run.follow():
                ...

    In a synchronous program `with Client() as client` gives a `SyncClient`: the same without `async` and `await`.

    Every call survives a Gateway that goes away: it is repeated, at another Gateway where there is one. No call is done
    twice by that: starting and signalling carry a request_id.

    Args:
        address: HOST:PORT of a Gateway, or https://HOST:PORT of one that encrypts, or several, separated by commas. By
            default ONWARD_GATEWAY, else 127.0.0.1:50051.
        patience: How long a call, or a stream without any progress, goes on while nobody answers.
        heartbeat: Longest silence asked of a Gateway, 1 to 60 s; a stream silent for twice as long is replaced.
        api_key: Sent with every call, to every Gateway, as it is: on a network that others can read, only through
            what encrypts. By default ONWARD_API_KEY, else none.
        ca: File of the authorities, in PEM, whose certificates a Gateway that encrypts may show. By default ONWARD_CA,
            else those that are known to everybody.

    Raises:
        ValueError: `address` holds none, `api_key` cannot be one, or `ca` cannot be read.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        patience: Duration = 60,
        heartbeat: Duration = 10,
        api_key: str | None = None,
        ca: str | os.PathLike[str] | None = None,
    ) -> None:
        address = os.environ.get("ONWARD_GATEWAY", DEFAULT_ADDRESS) if address is None else address
        addresses = [each.strip() for each in address.split(",") if each.strip()]
        if not addresses:
            raise ValueError(f"no address of a Gateway in {address!r}")
        api_key = os.environ.get("ONWARD_API_KEY", "") if api_key is None else api_key
        if not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("an API key is printable ASCII")  # not said: the key itself
        ca = os.environ.get("ONWARD_CA", "") if ca is None else ca
        self._gateways = Gateways(addresses, seconds(patience), api_key, _authorities(ca) if ca else None)
        self._heartbeat_s = seconds(heartbeat)
        self._thread: LoopThread | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> SyncClient:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._thread = LoopThread.acquire()
            return SyncClient(self, self._thread)
        raise RuntimeError("`with Client()` would block the event loop: use `async with Client()` here")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._thread is not None
        try:
            self._thread.wait(self.close())
        finally:
            self._thread.release()

    async def close(self) -> None:
        """Close the connections. Streams that are still read end with an error; runs go on."""
        await self._gateways.close()

    async def start(
        self,
        workflow: str | Named,
        input: Mapping[str, Any] | None = None,
        /,
        *,
        run_id: str = "",
        request_id: str = "",
        labels: Mapping[str, str] | None = None,
        run_timeout: Duration | None = None,
        schedule_time: datetime | None = None,
        priority: int = 0,
        fairness_key: str = "",
        deployment: str = "",
    ) -> RunHandle:
        """Start a run and return at once, when it is accepted. From then on it survives the death of every process.

        Args:
            workflow: Its name, or the workflow itself.
            input: Its parameters by name. At most 3 MiB as JSON.
            run_id: 1 to 64 of [A-Za-z0-9_-]; by default the server chooses.
            request_id: Up to 64 printable ASCII characters; by default a new UUID. Starting again with the same one
                gives the first run.
            labels: Kept on the run, for listing. At most 32; keys up to 64 bytes, values up to 256.
            run_timeout: Bounds the whole run, queueing and waiting included. By default the workflow's own, or none.
            schedule_time: Earliest start, with a time zone. By default now.
            priority: Higher goes first, -100 to 100.
            fairness_key: The tenant that queued work is shared between.
            deployment: The build to run; by default the one that takes new runs.

        Raises:
            WorkflowNotFound: No deployment serves it.
            InvalidInput: The input does not satisfy its schema; `violations` lists everything that is wrong.
            RequestReused: The request_id or run_id was used for something else.
            LimitReached: Too many runs are queued; `retry_after_s` says when to try again.
            Unavailable: Nobody answers. The run may have been accepted: repeat with the same request_id.
            ValueError: The input has no JSON form, or schedule_time no time zone.
        """
        request = gateway.StartRunRequest(
            workflow=workflow if isinstance(workflow, str) else workflow.name,
            input=encode(dict(input or {})),
            run_id=run_id,
            request_id=request_id or uuid.uuid4().hex,
            labels=labels,
            run_timeout=None if run_timeout is None else _duration(run_timeout),
            schedule_time=None if schedule_time is None else _timestamp(schedule_time),
            priority=priority,
            fairness_key=fairness_key,
            deployment=deployment,
        )
        trace_parent = current_trace_parent()
        metadata = [("traceparent", trace_parent)] if trace_parent else []
        response = await self._gateways.ask(lambda stub: stub.StartRun, request, metadata=metadata)
        return RunHandle(self, response.run.run_id)

    async def invoke(
        self,
        workflow: str | Named,
        input: Mapping[str, Any] | None = None,
        /,
        *,
        timeout: Duration | None = None,  # noqa: ASYNC109  # the synchronous client has no other way to say it
    ) -> Any:
        """Start a run, wait for its end and return its output.

        Args:
            workflow: Its name, or the workflow itself.
            input: Its parameters by name.
            timeout: How long to wait. The run goes on when that has passed, and also when the caller is cancelled.

        Raises:
            RunFailed: It ended FAILED or CANCELLED, or is PAUSED.
            TimeoutError: It did not end in time. The message names it.
            RequestError: As `start`.
        """
        run = await self.start(workflow, input)
        return await run.result(timeout)

    def run(self, run_id: str) -> RunHandle:
        """Return a handle of a run that exists. Asks nobody."""
        return RunHandle(self, run_id)

    async def get(self, run_id: str) -> Run:
        """Return a run as it stands.

        Raises:
            RunNotFound: There is none.
        """
        request = gateway.GetRunRequest(run_id=run_id)
        return (await self._gateways.ask(lambda stub: stub.GetRun, request)).run

    async def list_runs(
        self,
        *,
        workflow: str | Named = "",
        states: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        parent_run_id: str = "",
        page_size: int = 0,
    ) -> AsyncGenerator[Run, None]:
        """Iterate runs, newest first, without input and output. Pages are fetched as they are needed.

        Args:
            workflow: Only runs of this one.
            states: Only runs in one of these, e.g. "FAILED".
            labels: Only runs that have all of these.
            parent_run_id: Only children of this run.
            page_size: Runs fetched at once, at most 1000; by default 50.

        Raises:
            ValueError: There is no such state.
        """
        request = gateway.ListRunsRequest(
            workflow=workflow if isinstance(workflow, str) else workflow.name,
            states=[RunState.Value(f"RUN_STATE_{state}") for state in states],
            labels=labels,
            parent_run_id=parent_run_id,
            page_size=page_size,
        )
        while True:
            page = await self._gateways.ask(lambda stub: stub.ListRuns, request)
            for run in page.runs:
                yield run
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(self, run_id: str, reason: str = "") -> Run:
        """Ask for a run's cancellation and return it as it then stands: its code may have to clean up.

        A run that has ended is returned unchanged. One that has gone on as another (`continue_as`) is cancelled as what
        it is now, and that is returned.
        """
        request = gateway.CancelRunRequest(run_id=run_id, reason=reason)
        return (await self._gateways.ask(lambda stub: stub.CancelRun, request)).run

    async def signal(self, run_id: str, name: str, value: Any = None, *, request_id: str = "") -> int:
        """Send a named value into a run. It is kept until the run takes it.

        Args:
            run_id: The run.
            name: What the run waits for.
            value: Anything that has a JSON form.
            request_id: By default a new UUID. A repeat with the same one sends nothing.

        Returns:
            The offset of the signal in the run's log.

        Raises:
            InvalidInput: The run waits for it, and it is not of the form that was asked for.
            WrongState: The run has ended.
        """
        request = gateway.SignalRunRequest(
            run_id=run_id, name=name, value=encode(value), request_id=request_id or uuid.uuid4().hex
        )
        return (await self._gateways.ask(lambda stub: stub.SignalRun, request)).offset

    async def resume(self, run_id: str, deployment: str = "") -> Run:
        """Continue a paused run from its log, on another build if one is named.

        Raises:
            WrongState: It is not paused.
        """
        request = gateway.ResumeRunRequest(run_id=run_id, deployment=deployment)
        return (await self._gateways.ask(lambda stub: stub.ResumeRun, request)).run

    async def fork(
        self, run_id: str, component_id: str = "", *, deployment: str = "", new_run_id: str = "", request_id: str = ""
    ) -> RunHandle:
        """Start a new run with the results that another one, terminal or PAUSED, had before one of its components.

        Its log begins with a copy of what is kept, so it lives on when the other run is gone.

        Args:
            run_id: The run to fork.
            component_id: The first instance that runs again, and with it all that began after it. What began before it
                keeps what it gave. Empty forks from the start.
            deployment: The build that runs the fork; by default the one that takes new runs.
            new_run_id: As `run_id` of `start`.
            request_id: As in `start`.

        Raises:
            WrongState: The run still goes on.
            InvalidRequest: It has no such component; the message names those that it has.
        """
        return await self._fork(run_id, component_id, False, deployment, new_run_id, request_id)

    async def retry(
        self, run_id: str, *, deployment: str = "", new_run_id: str = "", request_id: str = ""
    ) -> RunHandle:
        """Fork a run from the component in which its error began. Where none failed, all that has finished is kept.

        Args:
            run_id: A run that failed, was cancelled or is paused.
            deployment: As in `fork`.
            new_run_id: As in `fork`.
            request_id: As in `fork`.

        Raises:
            WrongState: It has succeeded, or still goes on.
        """
        return await self._fork(run_id, "", True, deployment, new_run_id, request_id)

    async def _fork(
        self, run_id: str, component_id: str, from_failure: bool, deployment: str, new_run_id: str, request_id: str
    ) -> RunHandle:
        request = gateway.ForkRunRequest(
            run_id=run_id,
            component_id=component_id,
            from_failure=from_failure,
            deployment=deployment,
            new_run_id=new_run_id,
            request_id=request_id or uuid.uuid4().hex,
        )
        trace_parent = current_trace_parent()
        metadata = [("traceparent", trace_parent)] if trace_parent else []
        response = await self._gateways.ask(lambda stub: stub.ForkRun, request, timeout_s=FORK_S, metadata=metadata)
        return RunHandle(self, response.run.run_id)

    async def workflows(self) -> Sequence[gateway.Workflow]:
        """Return what can be started, sorted by name."""
        response = await self._gateways.ask(lambda stub: stub.ListWorkflows, gateway.ListWorkflowsRequest())
        return response.workflows

    async def follow(
        self,
        run_id: str,
        *,
        after: int | str | None = 0,
        last: int | None = None,
        view: ViewName = "raw",
        on_connection: Callable[[RequestError | None], None] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield a run's events in order, once each, from a position to the end of its log, live.

        It goes on across cut streams, restarts and dead Gateways, and ends when the run has ended. What was missed is
        never skipped in silence. Watching is harmless: leaving early changes nothing for the run.

        Args:
            run_id: The run.
            after: The last event that is known: its offset, or a cursor; 0 is the beginning, None the first retained.
            last: Instead of `after`: begin before the newest so many events; 0 is only what comes from now on.
            view: "raw" is everything; "settled" leaves out what is void already. Both `fold` to the same.
            on_connection: Called on the client's event loop: with the error when the stream is cut, and with None when
                it goes on. To tell a person; there is nothing to do.

        Raises:
            RunNotFound: There is no such run.
            PositionLost: The log cannot be read from there: trimmed, ahead of the newest event, or rebuilt.
            Unavailable: Nobody answers any more.
        """
        following = self.follow_batches(run_id, after=after, last=last, view=view, on_connection=on_connection)
        async with aclosing(following) as batches:
            async for events in batches:
                for event in events:
                    yield event

    def follow_batches(
        self,
        run_id: str,
        *,
        after: int | str | None = 0,
        last: int | None = None,
        view: ViewName = "raw",
        on_connection: Callable[[RequestError | None], None] | None = None,
    ) -> AsyncGenerator[Sequence[Event], None]:
        """As `follow`, but yield together what came together: for who reads more than 100,000 events a second."""
        start = _position(after, last)
        subscription = Subscription(
            self._gateways,
            run_id,
            start=start,
            view=_VIEWS[view],
            heartbeat_s=self._heartbeat_s,
            on_connection=on_connection,
        )
        return subscription.batches()

    async def watch(self, run_id: str) -> AsyncGenerator[View, None]:
        """Yield what a user sees of a run, each time that there is something new, until it has ended.

        It is the same `View` each time, and what it shows grows. Published states too long for the log are read.

        Raises:
            RequestError: As `follow`.
        """
        view = View()
        async with aclosing(self.follow_batches(run_id, view="settled")) as batches:
            async for events in batches:
                for event in events:
                    view.apply(await self.with_value(run_id, event))
                yield view

    async def view(self, run_id: str) -> View:
        """Return what a user sees of a run by now.

        Raises:
            RequestError: As `follow`.
        """
        view = View()
        async with aclosing(self.events(run_id, view="settled")) as events:
            async for event in events:
                view.apply(await self.with_value(run_id, event))
        return view

    async def events(
        self,
        run_id: str,
        *,
        after: int | str | None = 0,
        last: int | None = None,
        view: ViewName = "raw",
        page_size: int = 1000,
    ) -> AsyncGenerator[Event, None]:
        """Yield the events that a run's log holds by now, without waiting for more. Pages are fetched as needed.

        Args:
            run_id: The run.
            after: As in `follow`.
            last: As in `follow`.
            view: As in `follow`.
            page_size: Events fetched at once, at most 1000.

        Raises:
            RequestError: As `follow`.
        """
        start = _position(after, last)
        request = gateway.ListRunEventsRequest(run_id=run_id, start=start, view=_VIEWS[view], page_size=page_size)
        continuity = Continuity(start, _VIEWS[view])
        while True:
            page = await self._gateways.ask(lambda stub: stub.ListRunEvents, request)
            try:
                new = continuity.take(page.events, page.after_offset, page.through_offset)
            except EventsMissing as missing:
                raise InternalError(f"the Gateway left out events: {missing}") from None
            for event in new:
                yield event
            if page.through_offset >= page.log.last_offset:
                return
            if page.through_offset <= page.after_offset:
                raise InternalError(f"the Gateway gave no events after {page.after_offset} of {page.log.last_offset}")
            request.start.after_cursor = page.next_cursor

    async def read_blob(self, run_id: str, uri: str) -> bytes:
        """Return a value that is too large for the log.

        Args:
            run_id: The run in whose events or record it was named.
            uri: `Blob.uri`, or `Payload.blob_uri`.

        Raises:
            NotFound: The run has no such blob.
        """
        data = bytearray()
        patience = self._gateways.patience()
        while True:
            address = self._gateways.address
            request = gateway.ReadBlobRequest(run_id=run_id, blob_uri=uri, start=len(data))
            stream = self._gateways.stream(lambda stub: stub.ReadBlob, request, silence_s=ANSWER_S)
            try:
                while (piece := await stream.read()) is not None:
                    data += piece.data
                    patience.reset()
                return bytes(data)
            except Unavailable as cut:
                error = cut
            finally:
                stream.close()
            self._gateways.leave(address)
            await patience.wait(error)

    async def wait_for(
        self,
        run_id: str,
        timeout: Duration | None = None,  # noqa: ASYNC109  # as invoke
        *,
        chain: bool = False,
    ) -> Run:
        """Return a run when it is terminal, or PAUSED and so will not end by itself.

        Args:
            run_id: The run.
            timeout: How long to wait. The run goes on when that has passed.
            chain: Where it goes on as another run (`continue_as`) wait for that, and return the last.

        Raises:
            TimeoutError: It did not end in time.
            RunNotFound: There is no such run.
        """
        try:
            async with asyncio.timeout(None if timeout is None else seconds(timeout)):
                run = await self._ended(run_id)
                while chain and run.continued_as_run_id:
                    run = await self._successor(run.continued_as_run_id)
                return run
        except TimeoutError:
            raise TimeoutError(f"run {run_id} goes on: it did not end within {timeout}") from None

    async def _ended(self, run_id: str) -> Run:
        request = gateway.GetRunRequest(run_id=run_id, wait=_duration(WAIT_S))
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            response = await self._gateways.ask(lambda stub: stub.GetRun, request, timeout_s=WAIT_S + ANSWER_S)
            if response.run.state in TERMINAL or response.run.state == RUN_STATE_PAUSED:
                return response.run
            # A Gateway that drains may answer early; it is not asked again at once.
            await asyncio.sleep(max(0.0, asked + 0.2 - loop.time()))

    async def _successor(self, run_id: str) -> Run:
        """`_ended`, of a run that another one goes on as: it is accepted a moment after that has ended."""
        patience = self._gateways.patience()
        while True:
            try:
                return await self._ended(run_id)
            except RunNotFound as error:
                await patience.wait(error)

    async def value(self, run_id: str, payload: Payload) -> Any:
        """Return the value of a payload of a run, read from where it is kept if it is not in the payload itself."""
        if payload.WhichOneof("value") == "blob_uri":
            return decode_bytes(payload.media_type, await self.read_blob(run_id, payload.blob_uri))
        return decode(payload)

    async def with_value(self, run_id: str, event: Event) -> Event:
        """Return an event of a run with what it publishes in it, also where that is too long for the log.

        For who folds events himself: a `View` cannot patch a state that it does not have.
        """
        if not event.HasField("published") or event.published.value.WhichOneof("value") != "blob_uri":
            return event
        whole = Event()
        whole.CopyFrom(event)
        whole.published.value.data = await self.read_blob(run_id, event.published.value.blob_uri)
        return whole


class RunHandle:
    """A run, to follow, to wait for and to talk to.

    Attributes:
        run_id: Names it.
    """

    def __init__(self, client: Client, run_id: str) -> None:
        self.run_id = run_id
        self._client = client

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id}>"

    async def get(self) -> Run:
        """As `Client.get`."""
        return await self._client.get(self.run_id)

    def follow(
        self,
        *,
        after: int | str | None = 0,
        last: int | None = None,
        view: ViewName = "raw",
        on_connection: Callable[[RequestError | None], None] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As `Client.follow`."""
        return self._client.follow(self.run_id, after=after, last=last, view=view, on_connection=on_connection)

    def follow_batches(
        self,
        *,
        after: int | str | None = 0,
        last: int | None = None,
        view: ViewName = "raw",
        on_connection: Callable[[RequestError | None], None] | None = None,
    ) -> AsyncGenerator[Sequence[Event], None]:
        """As `Client.follow_batches`."""
        return self._client.follow_batches(self.run_id, after=after, last=last, view=view, on_connection=on_connection)

    def watch(self) -> AsyncGenerator[View, None]:
        """As `Client.watch`."""
        return self._client.watch(self.run_id)

    async def view(self) -> View:
        """As `Client.view`."""
        return await self._client.view(self.run_id)

    async def result(self, timeout: Duration | None = None) -> Any:  # noqa: ASYNC109  # as Client.invoke
        """Wait for the run's end and return its output, decoded, wherever it is kept.

        Where it goes on as another run (`continue_as`) it is the output of the last.

        Args:
            timeout: How long to wait. The run goes on when that has passed.

        Raises:
            RunFailed: It ended FAILED or CANCELLED, or is PAUSED.
            TimeoutError: It did not end in time.
        """
        run = await self._client.wait_for(self.run_id, timeout, chain=True)
        last = run.run_id if run.continued_from_run_id else self.run_id
        if run.state != RUN_STATE_SUCCEEDED:
            state = RunState.Name(run.state).removeprefix("RUN_STATE_")
            raise RunFailed(last, state, run.error.reason, run.error.message)
        return await self._client.value(last, run.output)

    async def signal(self, name: str, value: Any = None, *, request_id: str = "") -> int:
        """As `Client.signal`."""
        return await self._client.signal(self.run_id, name, value, request_id=request_id)

    async def cancel(self, reason: str = "") -> Run:
        """As `Client.cancel`."""
        return await self._client.cancel(self.run_id, reason)

    async def resume(self, deployment: str = "") -> Run:
        """As `Client.resume`."""
        return await self._client.resume(self.run_id, deployment)

    async def fork(
        self, component_id: str = "", *, deployment: str = "", new_run_id: str = "", request_id: str = ""
    ) -> RunHandle:
        """As `Client.fork`."""
        return await self._client.fork(
            self.run_id, component_id, deployment=deployment, new_run_id=new_run_id, request_id=request_id
        )

    async def retry(self, *, deployment: str = "", new_run_id: str = "", request_id: str = "") -> RunHandle:
        """As `Client.retry`."""
        return await self._client.retry(
            self.run_id, deployment=deployment, new_run_id=new_run_id, request_id=request_id
        )


class SyncRunHandle(Facade[RunHandle]):
    """A `RunHandle` for synchronous programs."""

    @property
    def run_id(self) -> str:
        """Names the run."""
        return self.target.run_id

    get = Answer(RunHandle.get)
    follow = Flattened(RunHandle.follow_batches)
    watch = Items(RunHandle.watch)
    view = Answer(RunHandle.view)
    result = Answer(RunHandle.result)
    signal = Answer(RunHandle.signal)
    cancel = Answer(RunHandle.cancel)
    resume = Answer(RunHandle.resume)

    def fork(
        self, component_id: str = "", *, deployment: str = "", new_run_id: str = "", request_id: str = ""
    ) -> SyncRunHandle:
        """As `Client.fork`."""
        forking = self.target.fork(component_id, deployment=deployment, new_run_id=new_run_id, request_id=request_id)
        return SyncRunHandle(self.loop.wait(forking), self.loop)

    def retry(self, *, deployment: str = "", new_run_id: str = "", request_id: str = "") -> SyncRunHandle:
        """As `Client.retry`."""
        retrying = self.target.retry(deployment=deployment, new_run_id=new_run_id, request_id=request_id)
        return SyncRunHandle(self.loop.wait(retrying), self.loop)


class SyncClient(Facade[Client]):
    """A `Client` for synchronous programs, made by `with Client(…) as client`.

    What the client iterates is a generator here; closing it ends the stream.
    """

    start = Answer(Client.start, SyncRunHandle)
    invoke = Answer(Client.invoke)
    get = Answer(Client.get)
    list_runs = Items(Client.list_runs)
    cancel = Answer(Client.cancel)
    signal = Answer(Client.signal)
    resume = Answer(Client.resume)
    fork = Answer(Client.fork, SyncRunHandle)
    retry = Answer(Client.retry, SyncRunHandle)
    workflows = Answer(Client.workflows)
    follow = Flattened(Client.follow_batches)
    watch = Items(Client.watch)
    view = Answer(Client.view)
    events = Items(Client.events)
    read_blob = Answer(Client.read_blob)
    wait_for = Answer(Client.wait_for)
    value = Answer(Client.value)

    def run(self, run_id: str) -> SyncRunHandle:
        """As `Client.run`."""
        return SyncRunHandle(self.target.run(run_id), self.loop)


def _position(after: int | str | None, last: int | None) -> gateway.Position:
    if last is not None:
        return gateway.Position(last=last)
    if isinstance(after, str):
        return gateway.Position(after_cursor=after)
    return gateway.Position() if after is None else gateway.Position(after_offset=after)


def _authorities(path: str | os.PathLike[str]) -> bytes:
    try:
        found = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"the authorities in {path} (ONWARD_CA) cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in found:
        raise ValueError(f"{path} (ONWARD_CA) holds no certificate in PEM")
    return found


def _duration(duration: Duration) -> DurationMessage:
    message = DurationMessage()
    message.FromNanoseconds(int(seconds(duration) * 1e9))
    return message


def _timestamp(time: datetime) -> Timestamp:
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    message = Timestamp()
    message.FromDatetime(time)
    return message
