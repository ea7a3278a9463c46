"""What every benchmark shares: one row of the table, and two sides measured in turn."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Row:
    """One line of the table. `value` is ours, `baseline` the plain way's, both in `unit`."""

    name: str
    value: float
    baseline: float | None  # None where there is nothing to compare with but the goal
    unit: str  # a rate such as "words/s" (more is better), or "s" or "MB" (less is better)
    goal: str = ""  # in words: "≥ 5x", "< 1 s"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline."""
        if not self.baseline or not self.value:
            return None
        return self.value / self.baseline if self.unit.endswith("/s") else self.baseline / self.value


def in_turns(ours: Callable[[], float], plain: Callable[[], float], repeats: int = 5) -> tuple[float, float]:
    """Medians of what each side returns, run in turns after one warm-up each, so that both see the same machine."""
    ours(), plain()
    pairs = [(ours(), plain()) for _ in range(repeats)]
    return statistics.median(o for o, _ in pairs), statistics.median(p for _, p in pairs)


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    begun = perf_counter()
    work()
    return perf_counter() - begun
