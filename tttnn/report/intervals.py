"""Paired bootstrap intervals over documents, and a rank correlation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tttnn.errors import InputError
from tttnn.records import DocumentRecord


CHUNK = 5_000_000  # drawn documents in memory at a time


class PairedScores(NamedTuple):
    """
    Two scores of each of some documents.

    Args:
        before (`np.ndarray`):
            Negative log-likelihoods in nats, float64 of shape `(documents,)`.
        after (`np.ndarray`):
            Those that they are compared with.
        bytes_before (`np.ndarray`):
            Bytes that `before` is the score of.
        bytes_after (`np.ndarray`):
            Bytes that `after` is the score of.
    """

    before: np.ndarray
    after: np.ndarray
    bytes_before: np.ndarray
    bytes_after: np.ndarray

    @classmethod
    def of(cls, records: list[DocumentRecord]) -> "PairedScores":
        """Pair the first with the last score of each record."""
        num_bytes = np.array([record.num_bytes for record in records], dtype=np.float64)
        before, after = (
            np.array([record.nll[place] for record in records], dtype=np.float64).reshape(-1) for place in (0, -1)
        )
        return cls(before, after, num_bytes, num_bytes)


@dataclass(frozen=True)
class Bootstrap:
    """
    How intervals are drawn.

    Args:
        num_samples (`int`, *optional*, defaults to `10000`):
            Samples drawn.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of samples inside the interval.

    Raises:
        `ValueError`: If there is no sample to draw, or the confidence is no share.
    """

    num_samples: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InputError(f"`num_samples` is {self.num_samples}. Pass at least 1; intervals ask for 1000 or more.")
        if self.seed < 0:
            raise InputError(f"`seed` is {self.seed}. Pass 0 or more.")
        if not 0 < self.confidence < 1:
            raise InputError(f"`confidence` is {self.confidence}. Pass a share between 0 and 1.")

    def interval(
        self, groups: dict[str, PairedScores], weights: dict[str, float] | None = None
    ) -> tuple[float, float]:
        """
        Give an interval of the difference in bits per byte of two scores.

        Each sample draws as many documents as there are, with replacement, within each group; a document brings both
        scores together, so that what they share cancels. Sums are pooled within a group.

        Args:
            groups (`dict[str, PairedScores]`):
                Scores by task; one group for a pooled result.
            weights (`dict[str, float]`, *optional*):
                Share of each group, summing to 1. By default one group has all.

        Returns:
            `tuple[float, float]`: lower and upper end of after minus before; NaN where a group has under two
            documents.
        """
        if not groups or any(len(scores.before) < 2 for scores in groups.values()):
            return math.nan, math.nan
        generator = np.random.default_rng(self.seed)
        differences = np.zeros(self.num_samples)
        for name, scores in groups.items():
            share = 1.0 if weights is None else weights[name]
            columns = np.stack(scores, axis=1)
            sums = np.concatenate([counts @ columns for counts in _draws(len(columns), self.num_samples, generator)])
            with np.errstate(invalid="ignore", divide="ignore"):
                differences += share * (sums[:, 1] / sums[:, 3] - sums[:, 0] / sums[:, 2]) / math.log(2)
        return self._ends(differences)

    def curve_interval(self, scores: np.ndarray, num_bytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Give an interval of the change in bits per byte at each point of a curve.

        Args:
            scores (`np.ndarray`):
                Nats of shape `(documents, points)`; the first point is the one that others are compared with.
            num_bytes (`np.ndarray`):
                Of shape `(documents,)`.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: lower and upper ends, each of shape `(points,)`.
        """
        generator, columns = np.random.default_rng(self.seed), np.column_stack([scores - scores[:, :1], num_bytes])
        sums = np.concatenate([counts @ columns for counts in _draws(len(scores), self.num_samples, generator)])
        sums = sums[sums[:, -1] > 0]  # a draw without a byte is left out
        if not len(sums):
            return np.full(scores.shape[1], math.nan), np.full(scores.shape[1], math.nan)
        differences = sums[:, :-1] / sums[:, -1:] / math.log(2)
        low, high = np.quantile(differences, [(1 - self.confidence) / 2, (1 + self.confidence) / 2], axis=0)
        return low, high

    def _ends(self, differences: np.ndarray) -> tuple[float, float]:
        differences = differences[~np.isnan(differences)]  # a draw without a byte is left out
        if not len(differences):
            return math.nan, math.nan
        low, high = np.quantile(differences, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return float(low), float(high)


def _draws(num_documents: int, num_samples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each document is in a sample, float64 of shape `(samples, num_documents)`, in parts."""
    step = max(1, CHUNK // num_documents)
    for first in range(0, num_samples, step):
        size = min(step, num_samples - first)
        drawn = generator.integers(0, num_documents, size=(size, num_documents))
        drawn += np.arange(size)[:, None] * num_documents
        counts = np.bincount(drawn.ravel(), minlength=size * num_documents)
        yield counts.reshape(size, num_documents).astype(np.float64)


def bootstrap_difference(
    groups: dict[str, list[DocumentRecord]],
    weights: dict[str, float] | None = None,
    confidence: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Give an interval of the change in bits per byte, paired and resampled over documents.

    Each sample draws as many documents as there are, with replacement, within each group; a document brings its scores
    before and after together, so that what they share cancels. Sums are pooled within a group.

    Args:
        groups (`dict[str, list[DocumentRecord]]`):
            Records by task; one group for a pooled result.
        weights (`dict[str, float]`, *optional*):
            Share of each group, summing to 1. By default one group has all.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of samples inside the interval.
        num_samples (`int`, *optional*, defaults to `10000`):
            Samples drawn.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws.

    Returns:
        `tuple[float, float]`: lower and upper end of after minus before; NaN where a group has under two documents.
    """
    scores = {name: PairedScores.of(records) for name, records in groups.items()}
    return Bootstrap(num_samples, seed, confidence).interval(scores, weights)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """
    Give Spearman's rank correlation.

    Args:
        first (`np.ndarray`):
            Of shape `(n,)`.
        second (`np.ndarray`):
            As many.

    Returns:
        `float`: between -1 and 1; NaN for under three pairs, or where one side is all the same.
    """
    ranks: list[np.ndarray] = []
    for values in (first, second):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < 2 or len(values) < 3:
            return math.nan
        ranks.append((counts.cumsum() - (counts - 1) / 2)[places])  # ties share their mean rank
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
