"""How fast an embedding goes and how long it will take: what a terminal, a run's log and its metadata say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic

from sophia.embedding.base import Embedder, EmbeddingFigures
from sophia.embedding.ceiling import matrix_ceiling

# Fewer tokens say nothing of the device, and are not worth measuring its ceiling.
LEAST_TOKENS = 2_000
# Between two lines of a log.
LINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far work is whose time goes into embedding.

    Attributes:
        done, total: documents; the total is an estimate, and never below what is done.
        cost: what embedding cost since the work began.
        roofline: share of the device's measured matrix products, 0 to 1 or a little above; None if not known.
        eta_seconds: time that the rest will take at the pace so far; None before there is any.
    """

    done: int
    total: int
    cost: EmbeddingFigures
    roofline: float | None
    eta_seconds: float | None

    def __str__(self) -> str:
        parts = [f"{self.cost.tokens_per_second:,.0f} tokens/s"]
        if self.roofline is not None:
            parts[0] += f" ({self.roofline:.0%} of the device's matrix products)"
        parts.append(f"padding {self.cost.padding_share:.1%}")
        counts = {
            "cache hits": self.cost.cache_hits,
            "duplicates": self.cost.duplicates,
            "refused": self.cost.refused,
            "out of memory": self.cost.out_of_memory,
        }
        parts += [f"{name} {count:,}" for name, count in counts.items() if count]
        if self.eta_seconds is not None and self.done < self.total:
            parts.append(f"{_duration(self.eta_seconds)} left")
        return ", ".join(parts)

    def metadata(self) -> dict[str, float | int]:
        """Numbers for a plot, always under the same names; 0 where one is not known."""
        return {
            "tokens_per_s": round(self.cost.tokens_per_second, 1),
            "roofline_share": round(self.roofline or 0.0, 4),
            "padding_share": round(self.cost.padding_share, 4),
            "cache_hits": self.cost.cache_hits,
            "duplicates": self.cost.duplicates,
            "refused": self.cost.refused,
            "out_of_memory": self.cost.out_of_memory,
        }


class Meter:
    """Watches an embedder from now on.

    Args:
        total: documents of the work, estimated; may be corrected later.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, embedder: Embedder, total: int, clock: Callable[[], float] = monotonic) -> None:
        self._embedder = embedder
        self.total = total
        self._clock = clock
        self._began = clock()
        self._before = replace(embedder.figures)

    def reading(self, done: int) -> Progress:
        """How far it is, `done` documents being done."""
        cost = self._embedder.figures.since(self._before)
        total = max(self.total, done)
        eta = (self._clock() - self._began) * (total - done) / done if done else None
        return Progress(done, total, cost, _roofline(self._embedder, cost), eta)


class Lines:
    """Passes a line on when the last one was written `seconds` ago, or at once where it is the last of its part."""

    def __init__(
        self, write: Callable[[str], object], seconds: float = LINE_SECONDS, clock: Callable[[], float] = monotonic
    ) -> None:
        self._write = write
        self._seconds = seconds
        self._clock = clock
        self._next = clock() + seconds

    def __call__(self, line: object, *, ends: bool = False) -> None:
        """Say `line`, which is only made a text if it is written."""
        now = self._clock()
        if ends or now >= self._next:
            self._next = now + self._seconds
            self._write(str(line))


def _roofline(embedder: Embedder, cost: EmbeddingFigures) -> float | None:
    engine = embedder.engine
    if engine is None or engine.number is None or cost.tokens < LEAST_TOKENS:
        return None
    computed = max(1, cost.texts - cost.cache_hits - cost.duplicates - cost.refused)
    # By the mean length: attention's part grows with the square, so that the share is a little too small.
    flop = engine.flop_per_token(cost.tokens / computed)
    ceiling = matrix_ceiling(engine.device, engine.number)
    if flop is None or ceiling is None:
        return None
    return cost.tokens_per_second * flop / ceiling


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"
