"""Every name in Redis. A partition is one hash tag, so whatever one run touches lies in one Cluster slot."""

from __future__ import annotations

import binascii

REGISTRY = "onward:{registry}"
"""Base name of what is known about executors and deployments."""

STORE = "onward:{registry}:store"
"""Hash of what the store was set up with: partitions, digest_key."""


def ref(namespace: str, run_id: str) -> str:
    """Return how functions and channels name a run."""
    return f"{namespace}/{run_id}"


def partition_of(ref: str, partitions: int) -> int:
    """Return the partition, from 0, that holds a run: CRC-16 (XMODEM, as Redis Cluster's) of its ref."""
    return binascii.crc_hqx(ref.encode(), 0) % partitions


def base(partition: int) -> str:
    """Return the base name of a partition: KEYS[1] of every function."""
    return f"onward:{{{partition}}}"


def run(base: str, ref: str) -> str:
    """Return the key of a run's record, a hash."""
    return f"{base}:{ref}:run"


def log(base: str, ref: str) -> str:
    """Return the key of a run's log, a stream."""
    return f"{base}:{ref}:log"


def memo(base: str, ref: str) -> str:
    """Return the key of what later attempts need and readers may not see, a hash by component_id."""
    return f"{base}:{ref}:memo"


def signals(base: str, ref: str) -> str:
    """Return the key of the signals that came, a hash from request_id to offset and digest."""
    return f"{base}:{ref}:signals"


def blob(base: str, ref: str, name: str) -> str:
    """Return the key of a value over the inline limit, a string."""
    return f"{base}:{ref}:blob:{name}"


def index(base: str, namespace: str, name: str) -> str:
    """Return the key of a listing: run ids of one namespace and partition, scored by create_time in microseconds."""
    return f"{base}:runs:{namespace}:{name}"


ALL = "all"
"""The index of all runs."""


def by_workflow(workflow: str) -> str:
    """Return the name of the index of one workflow's runs."""
    return f"w={workflow}"


def by_state(state: int) -> str:
    """Return the name of the index of runs in one RunState."""
    return f"s={state}"


def by_label(key: str, value: str) -> str:
    """Return the name of the index of runs with one label. The key's length keeps "a=b": "c" and "a": "b=c" apart."""
    return f"l={len(key)}={key}={value}"


def by_parent(run_id: str) -> str:
    """Return the name of the index of one run's children."""
    return f"p={run_id}"


ALONE = "\0alone"
"""Ends the name of the queue of a deployment's runs that are given only to an executor which holds nothing else."""


def alone(deployment: str) -> str:
    """Return the name of that queue; the other one is named as the deployment."""
    return deployment + ALONE


def queue(base: str, name: str) -> str:
    """Return the key of a queue, a sorted set of refs: those in front have the lowest scores."""
    return f"{base}:queue:{name}"


def wake_channel(base: str) -> str:
    """Return the channel of Wake messages: what was appended in a partition, or that the registry changed."""
    return f"{base}:wake"


def posted_channel(base: str) -> str:
    """Return the channel that says that something was put into the partition's outbox."""
    return f"{base}:posted"


def queued_channel(base: str) -> str:
    """Return the channel on which a queue's name says that a run waits in it."""
    return f"{base}:queued"


def granted_channel(process: str) -> str:
    """Return the channel on which a process hears of the permits that it gets while it waits for them."""
    return f"onward:granted:{process}"


BUDGETS = "onward:{registry}:budgets"
"""Channel that names budgets which a provider turned out to limit."""


def budgets(base: str) -> str:
    """Return the key of those of one partition, by the time in milliseconds until which they count as limited."""
    return f"{base}:budgets"


BREAKERS = "onward:{registry}:breakers"
"""Channel that names breakers which are not closed any more."""


def breakers(base: str) -> str:
    """Return the key of those of one partition, by the time in milliseconds until which everybody asks them."""
    return f"{base}:breakers"
