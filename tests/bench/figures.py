"""What is measured and how it is shown."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table.

    Attributes:
        row: The number of the row that it belongs to.
        what: What was measured.
        value: Of the engine, in `unit`.
        unit: Of `value` and `floor`.
        floor: Of the floor, measured beside it; None where there is none.
        ratio: The engine's value to the floor's; of paired rounds the median of their ratios.
        target: What is asked for, in words; empty where nothing is.
        met: Whether it is so; None where nothing is asked for.
    """

    row: int
    what: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None

    def cells(self) -> list[str]:
        """Return it as cells of the table."""
        return [
            str(self.row),
            self.what,
            f"{_number(self.value)} {self.unit}",
            "" if self.floor is None else f"{_number(self.floor)} {self.unit}",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            self.target,
            "" if self.met is None else "met" if self.met else "**missed**",
        ]


HEADERS = ["row", "figure", "engine", "floor", "ratio", "target", "verdict"]


@dataclass(frozen=True)
class Rounds:
    """Figures of the engine and the floor, taken in turns so that what else the machine does hits both.

    Attributes:
        engine: One value for each round.
        floor: One value for each round.
    """

    engine: Sequence[float]
    floor: Sequence[float]

    @property
    def ratio(self) -> float:
        """Return the median of the rounds' ratios."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.engine, self.floor, strict=True))

    def figure(self, row: int, what: str, unit: str, *, target: str = "", met: bool | None = None) -> Figure:
        """Return the medians."""
        return Figure(
            row=row,
            what=what,
            value=statistics.median(self.engine),
            unit=unit,
            floor=statistics.median(self.floor),
            ratio=self.ratio,
            target=target,
            met=met,
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def table(figures: Sequence[Figure]) -> str:
    """Return a Markdown table that can be read as it is."""
    rows = [HEADERS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADERS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine(loop: str, valkey_version: str) -> str:
    """Return what the figures were taken on, and when."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("grpcio", "protobuf", "redis"))
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {model}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()} on {loop}, {packages}, valkey {valkey_version} with "
        "appendfsync always"
    )


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
