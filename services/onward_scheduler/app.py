"""Opens, wires and closes a Scheduler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import grpc
import httpx2

from onward.tracing import emit_run_span
from onward.v1.gateway_service_pb2 import Workflow
from onward.v1.run_pb2 import Run
from onward.v1.scheduler_service_pb2 import DESCRIPTOR
from onward.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server
from onward_runlog.deployments import Deployments
from onward_runlog.runs import Runs
from onward_runlog.store import open_store
from onward_scheduler.accepting import Accepting
from onward_scheduler.adopting import Adopting
from onward_scheduler.dispatching import Dispatcher
from onward_scheduler.errands import Errands
from onward_scheduler.metering import Metering
from onward_scheduler.notifying import Notifier, signing_key
from onward_scheduler.outbox import ERRAND, HOOK, Outbox
from onward_scheduler.servicer import SchedulerServicer
from onward_scheduler.settings import Settings
from onward_scheduler.sweeping import Sweeper
from onward_serving.server import Serving, serving

SERVICE = DESCRIPTOR.services_by_name["SchedulerService"].full_name


def _emit_span(run: Run, trace_parent: str) -> None:
    error = run.error if run.HasField("error") else None
    emit_run_span(run, run.state, trace_parent=trace_parent, error=error)


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Serving]:
    """Serve until the block ends; then take nothing new, finish what is under way, and close.

    Raises:
        OSError: The address is taken.
        StoreUnfit: The store may lose what it acknowledges.
        TlsInvalid: A certificate or its key cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings.redis_url, allow_unfit=settings.allow_unfit_store))
        deployments = await stack.enter_async_context(Deployments(store).following())
        metering = Metering()
        runs = Runs(
            store,
            retention_s=settings.retention_s,
            cancel_grace_s=settings.cancel_grace_s,
            on_end=_emit_span,
            on_lost=metering.lost,
        )
        dispatcher = await stack.enter_async_context(
            Dispatcher(
                store,
                runs,
                settings.peers,
                lease_ttl_s=settings.lease_ttl_s,
                cancel_grace_s=settings.cancel_grace_s,
                on_given=metering.given,
            ).dispatching()
        )
        stack.enter_context(metering.reading(dispatcher.fleet))
        always = Workflow(on_run_end=settings.on_run_end, on_run_paused=settings.on_run_paused)
        accepting = Accepting(runs, dispatcher, deployments, always)
        servicer = SchedulerServicer(store, runs, dispatcher, accepting, settings)
        http = await stack.enter_async_context(httpx2.AsyncClient(follow_redirects=False))
        notifier = Notifier(runs, partial(accepting.submit, silent=True), http, signing_key(settings.webhook_secret))
        errands = Errands(runs, dispatcher, accepting)
        outbox = Outbox(store, runs, ERRAND, {"ended": errands.end, "errand": errands.do})
        hooks = Outbox(store, runs, HOOK, {"end": notifier.tell, "pause": notifier.tell})

        def add(server: grpc.aio.Server) -> None:
            add_SchedulerServiceServicer_to_server(servicer, server)

        server = await stack.enter_async_context(
            serving(
                add,
                settings.listen,
                services=[SERVICE],
                grace_s=settings.shutdown_grace_s,
                credentials=settings.peers.server(),
            )
        )
        adopting = Adopting(runs, deployments, after_s=settings.adopt_after_s)
        sweeper = Sweeper(store, runs, dispatcher, adopting, lease_ttl_s=settings.lease_ttl_s, on_swept=metering.swept)
        tasks = [
            asyncio.create_task(outbox.empty_for_ever(), name="outbox"),
            asyncio.create_task(outbox.listen(), name="outbox hints"),
            asyncio.create_task(hooks.empty_for_ever(), name="hooks"),
            asyncio.create_task(hooks.listen(), name="hooks hints"),
            asyncio.create_task(sweeper.sweep_for_ever(), name="sweeper"),
            asyncio.create_task(dispatcher.listen(settings.redis_url, store.bases()), name="queue hints"),
        ]
        try:
            await server.set_ready(True)
            yield server
        finally:
            servicer.draining = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
