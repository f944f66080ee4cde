"""Workflows that end at once, with types of all sorts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from onward import status, workflow


@dataclass
class Leaf:
    name: str
    tags: list[str] = field(default_factory=list)


@dataclass
class Tree:
    leaf: Leaf
    children: list[Tree] = field(default_factory=list)


@workflow
async def grow(tree: Tree, mood: Literal["calm", "wild"] = "calm") -> Tree:
    """Return the tree that came in."""
    status(mood)
    return tree


@workflow
async def add(a: int, b: int = 1) -> int:
    return a + b


@workflow
async def say(text: str = "hi") -> AsyncIterator[str]:
    yield text
