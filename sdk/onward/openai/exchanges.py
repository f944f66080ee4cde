"""One request to a provider inside a run: an instance like a component's, whose result is the response.

A response that came whole is remembered as it is. One that streams is given chunk by chunk, each once it is in the log
where it is shown, and it is remembered when it has come to its end. So a later attempt sends nothing, and the `openai`
package makes of the response what it made of it the first time: values, streams, its own exceptions.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, TypeVar

import httpx2
from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, OpenAIError
from opentelemetry.trace import SpanKind
from pydantic_core import from_json, to_json

from onward import prices
from onward.calls import Call, Failure, Policy, Standing, begin, fail, working
from onward.durations import text as duration_text
from onward.failure import component_error, run_error
from onward.instance import Instance, leave
from onward.journal import seen, stamped
from onward.log import add_usage
from onward.openai import spans
from onward.openai.admission import Admission, Candidate, Late
from onward.openai.alarm import Alarm
from onward.openai.answers import Answer, ErrorChunk, Shown, Splice, Unreadable, parsed
from onward.openai.budgets import Budgeted, budget_of
from onward.openai.policy import ModelPolicy, Stall
from onward.openai.providers import Provider, Providers, json_object, name_of, readdressed
from onward.openai.sse import DONE, END, Events, Parsed, data_of, with_data
from onward.openai.wires import Wire
from onward.past import PIECES, Piece, Places, Record
from onward.retry import retry_after_s
from onward.signature import Signature
from onward.streams import Flow
from onward.v1.event_pb2 import ROLLBACK_CAUSE_FALLBACK, Event
from onward.v1.run_pb2 import Payload, Usage

RESPONSE = "application/vnd.onward.response"
"""Media type of a memo that holds a response: its head as a line of JSON, then its body."""

TAIL_S = 5.0
"""How long a stream that has come to its end is read on for its usage."""

DRAIN_S = 0.1
"""How long the end of a response's body may take after that of the answer in it."""

_DROPPED = frozenset(
    (
        "alt-svc",
        "connection",
        "content-encoding",
        "content-length",
        "keep-alive",
        "nel",
        "report-to",
        "set-cookie",
        "strict-transport-security",
        "transfer-encoding",
    )
)
"""Headers that say nothing about the answer, or something that is not true of what is given."""

_AGAIN = frozenset((408, 409, 429))
_ELSEWHERE = frozenset((401, 403, 404))
"""Refusals of this provider: another may not refuse."""
_SERVER_ERRORS = frozenset(
    ("server_error", "rate_limit_exceeded", "rate_limit_error", "overloaded", "overloaded_error")
)

T = TypeVar("T")


async def _response() -> bytes:
    """The response of a provider."""
    raise NotImplementedError


_SIGNATURE = Signature(_response)


class Asked(Call):
    """One request as a call. Its input is the request's path and body: not its headers, which name an account.

    Attributes:
        model: The model that is asked for; empty where the request names none.
        body: The request's body, parsed; None where it is no JSON object.
        path: Its path, below the API's base URL.
    """

    __slots__ = ("_input", "body", "model", "path")

    span_kind = SpanKind.CLIENT

    def __init__(
        self,
        instance: Instance,
        request: httpx2.Request,
        base_url: httpx2.URL,
        policy: ModelPolicy,
        retries: int,
    ) -> None:
        policy_of_call = Policy(retry=policy.retry(retries + 1), private=policy.private)
        super().__init__(instance.name, _SIGNATURE, policy_of_call, instance, (), {}, {})
        path = request.url.raw_path.removeprefix(base_url.raw_path).decode(errors="replace").lstrip("/")
        self.path = path if request.method == "POST" else f"{request.method} {path}"
        self.body = json_object(request)
        content = request.content
        if content and self.body is None:
            content = to_json(content.decode(errors="replace"))
        self.model = str((self.body or {}).get("model") or "")
        self._input = b'{"path":%b%b}' % (to_json(self.path), b',"body":%b' % content if content else b"")

    def dump_input(self) -> bytes | None:
        return self._input

    def canonical(self, data: bytes | None) -> bytes | None:
        return data

    def error_reason(self, error: BaseException, otherwise: str = "COMPONENT_FAILED") -> str:
        if self.policy.retry.attempts > 1 and getattr(error, "retryable", False):
            return "ATTEMPTS_EXHAUSTED"
        return "TIMEOUT" if isinstance(error, APITimeoutError) else otherwise


@dataclass(frozen=True, slots=True)
class Failed:
    """How a try failed.

    Attributes:
        error: As the `openai` package would raise it, where that knows such an error.
        again: Whether asking again may help.
        elsewhere: Whether asking another provider may.
        stall: Which limit of silence it reached; empty where it was something else.
        refused: Whether it was one call too many for the provider.
        unanswered: Whether it got no answer, which others may not get either.
    """

    error: BaseException
    again: bool = False
    elsewhere: bool = False
    stall: str = ""
    refused: bool = False
    unanswered: bool = False


class Stalled(Exception):
    """A provider is silent.

    Attributes:
        what: "first" or "next": the token that did not come.
    """

    def __init__(self, what: str, limit: Stall) -> None:
        super().__init__(f"no {what} token within {duration_text(limit.after_s)}")
        self.what = what


class Exchange(Flow):
    """A request, and what comes back. `respond` first; then the response's body reads the chunks, if it streams."""

    def __init__(
        self,
        call: Asked,
        request: httpx2.Request,
        base_url: httpx2.URL,
        policy: ModelPolicy,
        providers: Providers | None,
        budget: Budgeted,
        wire: Wire,
        status_error: Callable[[httpx2.Response], APIStatusError],
    ) -> None:
        super().__init__(call)
        assert call.instance is not None
        self._instance = call.instance
        self._asked = call
        self._request = request
        self._base_url = base_url
        self._policy = policy
        self._providers = providers
        self._budget = budget
        self._wire = wire
        self._status_error = status_error
        self._tells_usage = False
        """The stream was made to tell its usage, which the caller had not asked for."""
        self._usage = Usage()
        # Tries
        self._rounds = 0
        self._left: list[Provider] = []
        """Who is not asked yet in this round."""
        self._stalls = {"first": 0, "next": 0}
        self._provider: Provider | None = None
        self._outgoing = request
        self._admission: Admission | None = None
        self._candidate: Candidate | None = None
        # The answer under way
        self._inner: httpx2.Response | None = None
        self._sent = 0.0
        self._first_token_s: float | None = None
        self._deadline = 0.0
        self._alarm = Alarm()
        self._head: dict[str, Any] = {}
        self._head_given: dict[str, Any] = {}
        self._body = b""
        self._events = Events()
        self._answer = Answer()
        self._batch: list[bytes] = []
        """Chunks that were read and are not in the log yet, each with its END."""
        self._deltas: list[Shown] = []
        """What they show."""
        # What was given
        self._ready: deque[bytes] = deque()
        """Chunks that its reader may have, each with its END."""
        self._error: Exception | None = None
        """What is raised after everything that is ready."""
        self._chunks: list[bytes] = []
        self._pieces = 0
        self._epoch = b""
        self._replayed: deque[tuple[int, Piece]] = deque()
        """What an earlier attempt gave, and where it stands."""
        self._before = Answer()
        """What that had said."""
        self._splice: Splice | None = None

    # The response

    async def respond(self) -> httpx2.Response:
        """Return the response, once its status is known and the first token of a stream is there.

        Raises:
            OpenAIError: There is none, after all tries.
            CancelledError: The caller was cancelled, or the attempt is over.
        """
        try:
            await self._open()
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._head.get("streamed"):
            return self._streamed()
        if self._error is not None:
            raise self._error
        return self._whole()

    async def _open(self) -> None:
        instance = self._instance
        self._remembered = await begin(self.call, instance, gives_again=True)
        self._standing = Standing(self.call)
        record = instance.record
        if self._remembered:
            assert record is not None
            await self._recall(record)
            return
        if record is not None and record.pieces:
            self._head = self._head_given = from_json(record.pieces[0].data)
            self._recall_pieces(record, len(record.pieces) - 1)
            self._splice = Splice()
            return
        if instance.span is not None:
            spans.asked(instance.span, self._asked, self._provider_name, httpx2.URL(self._provider_url))
        await self._ask()

    async def _recall(self, record: Record) -> None:
        """Take from the log what an earlier attempt was given."""
        memo = record.memo
        if memo is None or memo.media_type not in (RESPONSE, PIECES):
            # It failed before there was any response.
            await self._turn(record.finished_offset)
            self.ended = True
            if record.error is not None:
                raise component_error(self.call.name, record.error)
            await self._instance.journal.unreadable(self._instance, ValueError("it is no response"))
        line, _, body = (await self._instance.journal.kept(memo)).partition(b"\n")
        self._head = from_json(line)
        if "error" in self._head:
            self._error = self._connection_error(**self._head["error"])
        if not self._head.get("streamed"):
            await self._turn(record.finished_offset)
            self.ended = True
            self._body = body
        elif memo.media_type == PIECES:
            self._recall_pieces(record, self._head["pieces"])
        elif body:
            places = Places.load(record.places, record.started_offset)
            for offset, events in groupby(zip(places, body.split(END), strict=False), key=itemgetter(0)):
                self._replayed.append((offset, Piece(0, b"", END.join(event for _, event in events))))

    def _recall_pieces(self, record: Record, count: int) -> None:
        offset = record.started_offset
        deltas = iter(list(record.trail.deltas))
        for one in record.pieces[1 : 1 + count]:
            for offset, _ in islice(deltas, one.deltas):  # noqa: B007 - the last of them is where it stands
                pass
            self._replayed.append((offset, one))
        self._pieces, self._epoch = count, record.pieces[0].epoch

    def _whole(self) -> httpx2.Response:
        return self._made(httpx2.Response(self._head["status"], headers=self._head["headers"], content=self._body))

    def _streamed(self) -> httpx2.Response:
        parent = self._instance.parent
        assert parent is not None
        if parent.flows is None:
            parent.flows = set()
        parent.flows.add(self)
        stream = self._wire.body(self)
        return self._made(httpx2.Response(self._head["status"], headers=self._head["headers"], stream=stream))

    def _made(self, response: httpx2.Response) -> httpx2.Response:
        response.request = self._request
        response.elapsed = timedelta(seconds=self._head["elapsed_s"])
        return response

    # Tries

    async def _ask(self) -> None:
        """Ask until somebody answers, as the policy says."""
        standing = self._standing
        assert standing is not None
        self._rounds = standing.counted
        await prices.ready()
        with working(self._instance):
            while True:
                self._this = await standing.begin()
                try:
                    await self._admit()
                    await self._try()
                    return
                except Failure as error:
                    failed = self._failure(error)
                    excused = await self._told_of(failed)
                    self._settle(failed)
                rounds = self._rounds
                delay_s = self._delay_s(failed, excused=excused)
                if delay_s is None:
                    await self._give_up(failed.error)
                    return
                await self._stop_try()
                standing.failed(failed.error, delay_s, uncounted=self._rounds == rounds)
                self._batch.clear()
                self._deltas.clear()

    async def _try(self) -> None:
        assert self._this is not None
        self._answer, self._events = Answer(self._before), Events()
        self._answer.shown = self._this.voice
        self._head = {}
        request = self._outgoing
        self._usage.calls += 1
        self._sent = time.monotonic()
        self._first_token_s = None
        self._deadline = self._sent + self._policy.first_token.after_s
        token = self._this.enter()
        try:
            sent = self._wire.send(request)
            response = self._inner = await (self._in_time(sent) if self._instance.streams else sent)
        finally:
            leave(token)
        kind = response.headers.get("content-type", "")
        streamed = self._instance.streams and response.status_code < 400 and not kind.startswith("application/json")
        self._head = {
            "status": response.status_code,
            "headers": [one for one in response.headers.multi_items() if one[0].lower() not in _DROPPED],
            "elapsed_s": round(time.monotonic() - self._sent, 6),
            "provider": self._provider_name,
            "streamed": streamed,
        }
        if self._admission is not None and response.status_code < 400:
            self._admission.heard(response.headers)
        if streamed:
            # Up to the first token nothing has reached the caller, and whatever fails may be tried again.
            await self._read_on(until_token=True)
            return
        self._body = await self._wire.whole(response)
        if response.status_code >= 400:
            raise self._status_error(self._whole())
        if self._admission is not None:
            self._admission.answered()
        if kind.startswith("application/json") or "+json" in kind:
            self._answer.whole(self._body)
        await self._succeed(self._body, self._body)

    async def _admit(self) -> None:
        """Choose who is asked: the first that may be by its budget, once one may.

        Raises:
            Late: It would be too late.
        """
        assert self._this is not None
        assert self._standing is not None
        if self._providers is not None and not self._left:
            self._left = self._providers.ordered()
        self._admission = None
        chosen = 0
        journal = self._this.journal
        if journal.budgets is not None or journal.breakers is not None:
            total_s = self.call.policy.retry.total_s
            candidates = [self._candidate_of(one) for one in self._left or (None,)]
            admission = Admission(self._this, self._asked.body, self._policy.outage_s)
            deadline = None if total_s is None else self._standing.began + total_s
            chosen = await admission.enter(candidates, deadline)
            self._admission, self._candidate = admission, candidates[chosen]
        self._provider = self._left.pop(chosen) if self._left else None
        self._outgoing = self._addressed()

    def _candidate_of(self, provider: Provider | None) -> Candidate:
        self._provider = provider
        model = self._asked.model if provider is None else provider.model(self._asked.model)
        budget = budget_of(self._budget if provider is None else provider.budget, model)
        return Candidate(self._provider_name, model, self._addressed(), budget)

    async def _told_of(self, failed: Failed) -> bool:
        """Tell the fleet whether the provider answered. Returns whether the failure is not this call's own."""
        admission, candidate = self._admission, self._candidate
        if admission is None or candidate is None:
            return False
        if failed.unanswered:
            return await admission.failed(candidate, time.monotonic() - self._sent)
        if isinstance(failed.error, APIStatusError):
            admission.answered()
        else:
            admission.left()
        return False

    def _settle(self, failed: Failed) -> None:
        """Tell the budget how the try failed."""
        admission, error = self._admission, failed.error
        if admission is None:
            return
        if failed.refused:
            headers = error.response.headers if isinstance(error, APIStatusError) else httpx2.Headers()
            admission.heard(headers, refused=True, after_s=retry_after_s(error))
        if self._used:
            admission.settle(self._answer.usage)
        elif isinstance(error, APIStatusError):
            admission.settle(Usage())
        elif isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout) and not _hung_up(error.__cause__):
            admission.settle(Usage(), requests=0)
        else:
            admission.settle(None)

    @property
    def _used(self) -> bool:
        return bool(self._answer.usage.input_tokens or self._answer.usage.output_tokens)

    @property
    def _provider_name(self) -> str:
        return name_of(self._request.url.host) if self._provider is None else self._provider.name

    @property
    def _provider_url(self) -> str:
        return str(self._base_url) if self._provider is None else self._provider.base_url

    def _addressed(self) -> httpx2.Request:
        """Return the request as it goes out in this try."""
        body, streams = self._asked.body, self._instance.streams
        if streams and body is not None and "messages" in body and self._policy.count_tokens:
            options = body.get("stream_options") or {}
            if isinstance(options, dict) and not options.get("include_usage"):
                self._tells_usage = True
                body = {**body, "stream_options": {**options, "include_usage": True}}
        request = self._request
        if self._provider is not None:
            request = self._provider.addressed(request, self._base_url, body)
        elif self._tells_usage:
            request = readdressed(request, request.url, request.headers.copy(), to_json(body))
        if streams and not self._wire.interruptible:
            timeouts = dict(request.extensions.get("timeout") or {})
            limit_s = max(self._policy.first_token.after_s, self._policy.between_tokens.after_s)
            timeouts["read"] = min(timeouts.get("read") or limit_s, limit_s)
            request.extensions = {**request.extensions, "timeout": timeouts}
        return request

    async def _in_time(self, work: Awaitable[T]) -> T:
        """Wait for the next token no longer than the policy says.

        Raises:
            Stalled: It did not come.
        """
        if not self._wire.interruptible:
            return await work
        try:
            return await self._alarm.within(work, self._deadline)
        except TimeoutError:
            if time.monotonic() < self._deadline:
                raise  # the connection's own
        if self._answer.begun:
            raise Stalled("next", self._policy.between_tokens)
        raise Stalled("first", self._policy.first_token)

    def _failure(self, error: BaseException) -> Failed:
        if isinstance(error, APIStatusError):
            said = error.response.headers.get("x-should-retry")
            again = said == "true" or (said != "false" and (error.status_code in _AGAIN or error.status_code >= 500))
            failed = Failed(
                error,
                again=again and error.code != "insufficient_quota",
                elsewhere=again or error.status_code in _ELSEWHERE,
                refused=again and error.status_code == 429 and error.code != "insufficient_quota",
                unanswered=error.status_code == 408 or error.status_code >= 500,
            )
        elif isinstance(error, ErrorChunk):
            again = error.error.get("type") in _SERVER_ERRORS or error.error.get("code") in _SERVER_ERRORS
            made = APIError(str(error), self._request, body=error.error)
            refused = _is_refusal(error.error)
            failed = Failed(made, again, again, refused=refused, unanswered=again and not refused)
        elif isinstance(error, Stalled):
            failed = self._no_answer(str(error), timeout=True, stall=error.what)
        elif isinstance(error, httpx2.TimeoutException) and not _hung_up(error):
            failed = self._no_answer(f"the request timed out: {error!r}", timeout=True)
        elif isinstance(error, httpx2.RequestError | OSError):
            failed = self._no_answer(f"the connection failed: {error!r}", timeout=False)
        elif isinstance(error, Unreadable):
            failed = self._no_answer(str(error), timeout=False)
        elif isinstance(error, Late):
            failed = Failed(self._connection_error(str(error), timeout=True))
        else:
            again = isinstance(error, APIConnectionError)
            failed = Failed(error, again, again)
        if isinstance(failed.error, OpenAIError):
            failed.error.__cause__ = None if failed.error is error else error
            vars(failed.error).update(retryable=failed.again, retry_after_s=retry_after_s(failed.error))
        return failed

    def _no_answer(self, message: str, *, timeout: bool, stall: str = "") -> Failed:
        error = self._connection_error(message, timeout=timeout)
        return Failed(error, again=True, elsewhere=True, stall=stall, unanswered=True)

    def _connection_error(self, message: str, *, timeout: bool) -> APIConnectionError:
        """Return the error of a request that got no whole answer, the same the first time as on replay."""
        made = APITimeoutError(self._request) if timeout else APIConnectionError(request=self._request)
        made.message = message
        made.args = (message,)
        return made

    def _delay_s(self, failed: Failed, *, excused: bool) -> float | None:
        """Return how long to wait before the next try, None where there is none."""
        retry = self.call.policy.retry
        assert self._standing is not None
        elapsed_s = time.monotonic() - self._standing.began
        in_time = retry.total_s is None or elapsed_s < retry.total_s
        if failed.elsewhere and self._providers is not None and self._provider is not None:
            self._providers.failed(self._provider)
            if self._left:
                return 0.0 if in_time else None
        if not failed.again:
            return None
        if excused:
            # The breaker tells when to ask again, and that nobody is answered is no failure of this call.
            return 0.0 if in_time else None
        if failed.stall:
            stall = self._policy.first_token if failed.stall == "first" else self._policy.between_tokens
            self._stalls[failed.stall] += 1
            return 0.0 if in_time and self._stalls[failed.stall] < stall.tries else None
        if failed.refused and self._admission is not None:
            # The budget tells when to ask again, and that the provider has too many callers is no failure of this one.
            return 0.0 if in_time else None
        self._rounds += 1
        return retry.delay_s(self._rounds, failed.error, elapsed_s)

    async def _give_up(self, error: BaseException) -> None:
        """End with an error: as a response that says it, or as what is raised."""
        if self._batch or self._pieces:
            # The caller has chunks, or gets them. What comes then is an error chunk, or breaks the connection.
            if not isinstance(error, APIConnectionError) and not (self._batch and isinstance(error, APIError)):
                error = self._connection_error(f"the stream could not be taken up again: {error}", timeout=False)
            await self._broke(error)
        elif isinstance(error, APIStatusError):
            await self._end_failed(error, self._body)
        elif isinstance(error, APIConnectionError):
            self._head = {}
            await self._end_failed(error, b"")
        else:
            await self._stop_try()
            self._end()
            await fail(self.call, self._instance, error)

    # Chunks

    async def read(self) -> bytes | None:
        """Return the next chunk, once it is in the log; None at the end.

        Raises:
            OpenAIError: The stream broke.
            CancelledError: The reader was cancelled, or the attempt is over.
        """
        while not self._ready:
            if self.ended:
                if self._error is None:
                    return None
                error, self._error = self._error, None
                raise error
            try:
                await self._more()
            except asyncio.CancelledError:
                await self.close()
                raise
        self._reached = True
        return self._ready.popleft()

    async def _more(self) -> None:
        if self._replayed:
            await self._give_again()
        elif self._remembered:
            record = self._instance.record
            assert record is not None
            await self._turn(record.finished_offset)
            self._end()
        elif self._inner is None:
            await self._go_on()
        else:
            # What its reader does between two chunks is no silence of the provider.
            self._silence_begins(time.monotonic())
            try:
                if self._instance.journal.replay is None:
                    await self._read_on()
                else:
                    with working(self._instance):
                        await self._read_on()
            except Failure as error:
                failed = self._failure(error)
                await self._told_of(failed)
                await self._broke(failed.error)

    async def _read_on(self, *, until_token: bool = False) -> None:
        """Read what comes next, or all up to the first token, and have it ready once it is in the log."""
        answer = self._answer
        while await self._pull():
            # What makes the answer whole is given when nothing follows it, with the usage: its reader may well go.
            if self._batch and not answer.complete and (answer.begun or not until_token):
                await self._commit()
                return
        await self._drain()
        await self._commit()
        told = {"finish": answer.finish_reasons, "text": "".join(answer.texts)}
        await self._succeed(_joined(self._chunks), to_json(told))

    async def _pull(self) -> bool:
        """Read what comes next. Returns whether more may follow."""
        assert self._inner is not None
        answer = self._answer
        try:
            data = await self._in_time(self._wire.next(self._inner))
        except Failure:
            if answer.complete:
                return False  # It has said everything. How the connection ends is nobody's business.
            raise
        over = data is None
        for event in self._events.end() if data is None else self._events.feed(data):
            told = data_of(event)
            if told.startswith(b"[DONE]"):
                over = True
                self._batch.append(DONE + END)
                break
            self._take(event, told)
        if answer.begun:
            at = time.monotonic()
            if self._first_token_s is None:
                self._first_token_s = at - self._sent
                if self._admission is not None:
                    self._admission.answered()
            self._silence_begins(at)
        if over and not answer.complete and (answer.known or not (answer.begun or self._pieces)):
            raise Unreadable("the stream ended before the answer did")
        return not over

    def _silence_begins(self, at: float) -> None:
        self._deadline = at + (TAIL_S if self._answer.complete else self._policy.between_tokens.after_s)

    async def _drain(self) -> None:
        """Read what follows the answer's end, so that the connection can be used again."""
        if self._inner is None or not self._wire.interruptible:
            return
        try:
            async with asyncio.timeout(DRAIN_S):
                while await self._wire.next(self._inner) is not None:
                    pass
        except Failure:
            pass  # Then it is closed.

    def _take(self, event: bytes, data: bytes) -> None:
        """Take in one chunk."""
        body = parsed(data)
        chunk: bytes = Parsed.of(event, body)
        try:
            if self._splice is None:
                shown = self._answer.chunk(body)
            elif (rest := self._splice.cut(body)) is not None:
                chunk = with_data(event, rest) + END
                shown = self._answer.chunk(rest)
            else:
                self._answer.begun = True
                return
        except ErrorChunk:
            self._batch.append(chunk)
            raise
        if self._tells_usage and body.get("choices") == [] and body.get("usage"):
            return
        self._batch.append(chunk)
        self._deltas += shown

    async def _commit(self) -> None:
        """Show what was read, and have it ready."""
        this = self._this
        assert this is not None
        this.check()
        if not self._batch:
            return
        if this.voice:
            journal = this.journal
            deltas = self._deltas if self._deltas and this.shows() else []
            memo = {}
            if not self._pieces:
                self._head_given = self._head
                self._epoch = time.time_ns().to_bytes(8, "big")
                memo[f"{this.id}/0"] = Piece(0, self._epoch, to_json(self._head)).dump()
            self._pieces += 1
            memo[f"{this.id}/{self._pieces}"] = Piece(len(deltas), self._epoch, _joined(self._batch)).dump()
            offset = await journal.append(*[_event(this.id, one) for one in deltas], memo=memo)
            if not journal.turns.at_once(offset):
                await journal.turns.turn(offset)
        else:
            self._chunks += self._batch
            for _ in self._batch:
                self._places.add(this.journal.turns.newest)
        self._ready += self._batch
        self._batch = []
        self._deltas = []

    async def _give_again(self) -> None:
        """Have the next piece of an earlier attempt ready, in its turn."""
        offset, one = self._replayed[0]
        await self._turn(offset, after=not self._instance.voice)
        self._replayed.popleft()
        given = one.data.split(END)
        self._ready += [event + END for event in given]
        if self._splice is None:
            return
        record = self._instance.record
        assert record is not None
        for _ in range(min(one.deltas, len(record.trail.deltas))):
            record.trail.match()
        for event in given:
            if event != DONE:
                body = parsed(data_of(event))
                self._splice.gave(body)
                self._before.chunk(body)

    async def _go_on(self) -> None:
        """Ask again for what comes after what an earlier attempt had given."""
        record = self._instance.record
        assert record is not None
        if record.outcome:
            # It had been left here. Likely it is left again, and nobody is asked at all.
            await self._turn(record.finished_offset)
        await self._ask()

    # The end

    async def _succeed(self, body: bytes, shown: bytes) -> None:
        """Commit the answer, before the caller has the whole of it.

        Args:
            body: The response's body.
            shown: What readers see of it, as JSON; anything else is not shown.
        """
        instance = self._instance
        await self._stop_try()
        self._count()
        output = None
        if not self._policy.private:
            told = {"provider": self._provider_name, "model": self._answer.model, "status": self._head["status"]}
            is_json = self._answer.complete or self._answer.known
            output = seen(b'%b,"answer":%b}' % (to_json(told)[:-1], shown) if is_json else to_json(told))
        memo = await self._memo_of(body)
        self._end()
        await instance.journal.finished(instance, output, memo, self._usage, beside=self._places.beside(instance.id))

    async def _broke(self, error: BaseException) -> None:
        """The stream broke after its first token: what came is given, and then the error."""
        await self._commit()
        if not isinstance(error, APIError):
            made = self._connection_error(f"{type(error).__name__}: {error}", timeout=False)
            made.__cause__ = error
            error = made
        if self._providers is not None and self._provider is not None:
            self._providers.failed(self._provider)
            if len(self._providers.all) > 1:
                vars(error).update(rollback_cause=ROLLBACK_CAUSE_FALLBACK)
        await self._end_failed(error, _joined(self._chunks))

    async def _end_failed(self, error: BaseException, body: bytes) -> None:
        instance = self._instance
        await self._stop_try()
        self._count()
        if isinstance(error, APIConnectionError):
            self._error = error
            self._head["error"] = {"message": error.message, "timeout": isinstance(error, APITimeoutError)}
        told = run_error(error, self.call.error_reason(error), instance.id)
        memo = await self._memo_of(body)
        self._end()
        await instance.journal.failed(instance, told, memo, self._usage, beside=self._places.beside(instance.id))

    def _count(self) -> None:
        """Note what the last try used. Of those before it nobody reported anything."""
        answer, usage = self._answer, self._usage
        if self._admission is not None:
            self._admission.left()
            self._admission.settle(answer.usage if self._used else None)
        add_usage(usage, answer.usage)
        asked = self._asked.model if self._provider is None else self._provider.model(self._asked.model)
        usage.cost_usd_micros += prices.micros(answer.usage, (answer.model, asked), self._provider_url)
        if self._instance.span is not None:
            spans.answered(self._instance.span, answer, usage, self._provider_name, self._first_token_s)

    async def _memo_of(self, body: bytes) -> Payload:
        head = self._head
        if self._pieces:
            # What the caller has begun to read counts, not how asking again went.
            head = {**self._head_given, "pieces": self._pieces}
            if "error" in self._head:
                head["error"] = self._head["error"]
        memo = await self._instance.journal.stored(b"%b\n%b" % (to_json(head), body))
        memo.media_type = PIECES if self._pieces else RESPONSE
        return memo

    def _write_cancelled(self) -> None:
        self._count()
        self._instance.journal.cancelled(self._instance, self._usage, ran=self._this is not None)

    async def _stop_try(self) -> None:
        self._alarm.off()
        if self._inner is not None:
            inner, self._inner = self._inner, None
            try:
                await self._wire.close(inner)
            except Failure:
                pass  # It is let go of in any case.
        if self._this is not None:
            self._this.ended = True


def _event(component_id: str, shown: Shown) -> Event:
    event = stamped(component_id)
    delta = event.output_delta
    delta.channel, delta.part = shown.channel, shown.part
    if shown.value is None:
        delta.text = shown.text
    else:
        delta.value.CopyFrom(shown.value)
    return event


def _joined(chunks: list[bytes]) -> bytes:
    """Return chunks as they are remembered: with an END between them."""
    return b"".join(chunks).removesuffix(END)


def _hung_up(error: BaseException) -> bool:
    """Tell whether a time-out is none: the package's client on aiohttp raises one where the other side hung up."""
    cause = error.__cause__
    return type(cause).__module__.startswith("aiohttp.") and not isinstance(cause, TimeoutError)


def _is_refusal(error: dict[str, Any]) -> bool:
    return any(error.get(name) in ("rate_limit_exceeded", "rate_limit_error") for name in ("type", "code"))
