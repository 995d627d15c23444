"""Paired bootstrap intervals over documents."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tttnn.errors import InputError
from tttnn.records import DocumentRecord


CHUNK = 5_000_000  # drawn documents in memory at a time


class PairedScores(NamedTuple):
    """
    Two scores of each document, for `Bootstrap.interval`; all arrays are of shape `(documents,)`.

    Args:
        before (`np.ndarray`):
            The first scores, in nats.
        after (`np.ndarray`):
            The second scores, in nats.
        bytes_before (`np.ndarray`):
            Bytes that the first scores are of.
        bytes_after (`np.ndarray`):
            Bytes that the second scores are of; others if two runs score different parts of a document.
    """

    before: np.ndarray
    after: np.ndarray
    bytes_before: np.ndarray
    bytes_after: np.ndarray

    @classmethod
    def of(cls, records: list[DocumentRecord]) -> "PairedScores":
        """
        Pair the first with the last score of each record.

        Args:
            records (`list[DocumentRecord]`):
                Of an evaluation.

        Returns:
            `PairedScores`: in the order of the records.
        """
        rows = [(record.nll[0], record.nll[-1], record.num_bytes, record.num_bytes) for record in records]
        return cls(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)


@dataclass(frozen=True)
class Bootstrap:
    """
    How intervals are drawn.

    Args:
        num_samples (`int`, *optional*, defaults to `10000`):
            Samples drawn.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random draws.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of samples inside the interval.

    Raises:
        `ValueError`: If a number is out of range.
    """

    num_samples: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InputError(f"`num_samples` is {self.num_samples}. Pass at least 1; an interval needs 1000 or more.")
        if self.seed < 0:
            raise InputError(f"`seed` is {self.seed}. Pass 0 or more.")
        if not 0 < self.confidence < 1:
            raise InputError(f"`confidence` is {self.confidence}. Pass a share between 0 and 1.")

    def interval(
        self, groups: dict[str, PairedScores], weights: dict[str, float] | None = None
    ) -> tuple[float, float]:
        """
        Give an interval of the difference in bits per byte of two scores.

        Each sample draws, within each group, as many documents as the group has, with replacement; so the document of
        a group of one is in every sample. A document brings both scores together, and what they share cancels. Sums
        are pooled within a group.

        Args:
            groups (`dict[str, PairedScores]`):
                Scores by task; one group for a pooled result.
            weights (`dict[str, float]`, *optional*):
                Share of each group, summing to 1. By default one group has all.

        Returns:
            `tuple[float, float]`: lower and upper end of after minus before; NaN if no group has two documents, or one
            has none.
        """
        sizes = [len(scores.before) for scores in groups.values()]
        if max(sizes, default=0) < 2 or min(sizes) < 1:
            return math.nan, math.nan
        generator = np.random.default_rng(self.seed)
        differences = np.zeros((self.num_samples, 1))
        for name, scores in groups.items():
            share = 1.0 if weights is None else weights[name]
            sums = self._sums(np.stack(scores, axis=1), generator)
            with np.errstate(invalid="ignore", divide="ignore"):
                differences[:, 0] += share * (sums[:, 1] / sums[:, 3] - sums[:, 0] / sums[:, 2]) / math.log(2)
        low, high = self._ends(differences)[:, 0].tolist()
        return low, high

    def curve_interval(self, scores: np.ndarray, num_bytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Give an interval of the change in bits per byte at each point of a curve.

        Args:
            scores (`np.ndarray`):
                Nats of shape `(documents, points)`; the first point is the one that others are compared with.
            num_bytes (`np.ndarray`):
                Bytes of each document, of shape `(documents,)`.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: lower and upper ends, each of shape `(points,)`.
        """
        columns = np.column_stack([scores - scores[:, :1], num_bytes])
        sums = self._sums(columns, np.random.default_rng(self.seed))
        with np.errstate(invalid="ignore", divide="ignore"):
            low, high = self._ends(sums[:, :-1] / sums[:, -1:] / math.log(2))
        return low, high

    def mean_interval(self, values: np.ndarray) -> tuple[float, float]:
        """
        Give an interval of a mean.

        Args:
            values (`np.ndarray`):
                Of shape `(items,)`; for a paired comparison, the difference of each item.

        Returns:
            `tuple[float, float]`: lower and upper end; NaN with fewer than two items.
        """
        if len(values) < 2:
            return math.nan, math.nan
        sums = self._sums(np.asarray(values, np.float64)[:, None], np.random.default_rng(self.seed))
        low, high = self._ends(sums / len(values))[:, 0].tolist()
        return low, high

    def statistic_interval(self, statistic: Callable[[np.ndarray], float], num_items: int) -> tuple[float, float]:
        """
        Give an interval of any statistic of items.

        Args:
            statistic (`Callable`):
                Takes the numbers of the drawn items, int64 of shape `(items,)`, some of them several times.
            num_items (`int`):
                Items to draw from, and to draw.

        Returns:
            `tuple[float, float]`: lower and upper end; NaN with fewer than two items.
        """
        if num_items < 2:
            return math.nan, math.nan
        generator = np.random.default_rng(self.seed)
        drawn = [statistic(generator.integers(num_items, size=num_items)) for _ in range(self.num_samples)]
        low, high = self._ends(np.asarray(drawn)[:, None])[:, 0].tolist()
        return low, high

    def _sums(self, columns: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sum the columns over the documents of each sample."""
        return np.concatenate([counts @ columns for counts in _draws(len(columns), self.num_samples, generator)])

    def _ends(self, differences: np.ndarray) -> np.ndarray:
        """Give the lower and upper ends of columns; a sample without a byte (not finite) is left out."""
        differences = differences[np.isfinite(differences).all(axis=1)]
        if not len(differences):
            return np.full((2, differences.shape[1]), math.nan)
        return np.quantile(differences, [(1 - self.confidence) / 2, (1 + self.confidence) / 2], axis=0)


def _draws(num_documents: int, num_samples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each document is in a sample, float64 of shape `(samples, num_documents)`, in parts."""
    step = max(1, CHUNK // num_documents)
    for first in range(0, num_samples, step):
        size = min(step, num_samples - first)
        drawn = generator.integers(0, num_documents, size=(size, num_documents))
        drawn += np.arange(size)[:, None] * num_documents
        counts = np.bincount(drawn.ravel(), minlength=size * num_documents)
        yield counts.reshape(size, num_documents).astype(np.float64)
