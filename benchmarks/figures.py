"""Medians, spreads and intervals, and the description of the machine."""

from __future__ import annotations

import datetime as dt
import platform
import random
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from attrs import frozen


@frozen
class Ratio:
    """The median of the rounds' ratios, with a bootstrap interval of that median."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(ones: Sequence[float], others: Sequence[float], *, share: float = 0.95, samples: int = 2000) -> Ratio:
    """The ratio of `ones` to `others`, measured in the same rounds.

    Args:
        share: of the bootstrap's medians that lie within the interval.
        samples: the number of those medians.
    """
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    rng = random.Random(0)  # the same interval for the same figures
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(samples))
    outside = int((1 - share) / 2 * samples)
    return Ratio(statistics.median(ratios), medians[outside], medians[-1 - outside])


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def versions(packages: Sequence[str]) -> str:
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def machine() -> str:
    """Python, operating system, processor and date; no name of a person or host."""
    model = platform.processor() or platform.machine()
    cores = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        models = [value.strip() for name, _, value in lines if name.strip() == "model name"]
        if models:
            model, cores = models[0], f", {len(models)} cores"
    today = dt.date.today().isoformat()
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{model}{cores}, {today}"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
