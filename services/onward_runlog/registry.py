"""Which executors live, and which deployments were served."""

from __future__ import annotations

from collections.abc import Sequence

from onward.v1.executor_service_pb2 import Executor
from onward.v1.gateway_service_pb2 import ListWorkflowsResponse, Workflow
from onward_runlog import keys
from onward_runlog.store import Store


async def register(store: Store, executor: Executor, *, ttl_s: float) -> None:
    """Make an executor known for `ttl_s` seconds, and what its deployment serves until newer ones take its place."""
    served: Sequence[Workflow] = sorted(executor.workflows, key=lambda workflow: workflow.name)
    workflows = ListWorkflowsResponse(workflows=served).SerializeToString(deterministic=True)
    slim = Executor()
    slim.CopyFrom(executor)
    slim.ClearField("workflows")
    await store.call(
        "register",
        keys.REGISTRY,
        executor.executor_id,
        slim.SerializeToString(),
        executor.deployment,
        workflows,
        int(ttl_s * 1000),
    )


async def unregister(store: Store, executor_id: str) -> None:
    """Forget an executor that has ended or died."""
    await store.call("unregister", keys.REGISTRY, executor_id)


async def executors(store: Store) -> list[Executor]:
    """Return the executors whose registration lives, without their workflows."""
    return [Executor.FromString(value) for value in await store.call("executors", keys.REGISTRY)]


async def promote(store: Store, deployment: str) -> None:
    """Make a deployment the newest, so that it takes new runs, whenever it was first seen."""
    await store.call("promote", keys.REGISTRY, deployment)
