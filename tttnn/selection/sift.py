"""SIFT: the neighbors that together leave the least uncertainty about the query."""

import math
from dataclasses import dataclass

import numpy as np

from tttnn.errors import InputError
from tttnn.selection.by_vectors import VectorSelector, check_vectors


ROUNDING = 1e-9  # gains that differ by less are equal: those of copies do
LEAST = 1e-8  # regularization at which variances are exact to about 1e-10


@dataclass(frozen=True)
class Sift(VectorSelector):
    """
    Selects neighbors that tell much about the query, and each something that the others do not: `--selector sift`.

    Each pick is the candidate after which the variance of a Gaussian process at the query is smallest (see
    `sift_picks`). A candidate can be picked again, and is then trained on again: `num_neighbors` picks are as many
    steps. They are trained on in the order of picking. What is trained on in the order `"nearest"` with fewer
    neighbors is thus the beginning of what is trained on with more.

    Args:
        regularization (`float`, *optional*, defaults to `0.01`):
            The paper's lambda, at least 1e-8. The smaller, the less a pick is repeated.
        alpha (`float`, *optional*):
            Of the paper's adaptive stop: the pick `n` after which the standard deviation at the query is more than
            `1 / (alpha * n)` is the last. A query that the corpus tells little about thus takes fewer steps, and the
            larger `alpha`, the fewer. By default there are `num_neighbors` picks.

    Raises:
        `ValueError`: If `regularization` or `alpha` is out of range.

    Source: [SIFT](https://huggingface.co/papers/2410.08020).
    """

    regularization: float = 0.01
    alpha: float | None = None

    def __post_init__(self) -> None:
        _check_regularization(self.regularization)
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise InputError(f"`alpha` is {self.alpha}. Pass a number above 0, or none for no adaptive stop.")

    def choose(self, query: np.ndarray, vectors: np.ndarray, num_neighbors: int) -> tuple[list[int], None]:
        """Choose `num_neighbors` or, with `alpha`, fewer; some of them perhaps several times; and weigh none."""
        picks, variances = sift_picks(query, vectors, num_neighbors, self.regularization)
        for number, variance in enumerate(variances, 1):
            if self.alpha is not None and math.sqrt(variance) * self.alpha * number > 1:
                return picks[:number], None
        return picks, None


def sift_picks(
    query: np.ndarray, vectors: np.ndarray, num_picks: int, regularization: float = 0.01
) -> tuple[list[int], list[float]]:
    """
    Pick vectors, one after another, each so that the variance at the query becomes as small as it can.

    Vectors are scaled to length 1, and their inner product is the kernel `k` of a Gaussian process, observed at the
    picks with noise of variance `regularization`. With `X` the picks, the variance at the query `q` is
    `k(q, q) - k(q, X) (k(X, X) + regularization I)^-1 k(X, q)`. A pick is a rank-one update of all covariances. Only
    the query's and the variances are kept up to date, so memory is linear in the number of vectors.

    Args:
        query (`np.ndarray`):
            Of shape `(dimension,)`.
        vectors (`np.ndarray`):
            Of shape `(n, dimension)`, with at least one row.
        num_picks (`int`):
            How often to pick. The same vector can be picked again.
        regularization (`float`, *optional*, defaults to `0.01`):
            Variance of the noise, at least 1e-8.

    Returns:
        `tuple[list[int], list[float]]`: the rows that were picked, and the variance after each pick. Of equally good
        rows the first is picked.

    Raises:
        `ValueError`: If there is no vector, one is not finite or not as long as the query, or `regularization` is out
            of range.

    Source: [SIFT](https://huggingface.co/papers/2410.08020), section 3.
    """
    check_vectors(query, vectors)
    _check_regularization(regularization)
    points = np.vstack([query, vectors]).astype(np.float64)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    # given the picks: the covariance of each with the query, which is row 0, and the variance of each
    with_query, variance = points @ points[0], np.square(points).sum(axis=1)
    updates = np.empty((num_picks, len(points)))  # a pick takes its update's outer product from all covariances
    picks, variances = [], []
    for place in range(num_picks):
        gains = with_query[1:] ** 2 / (variance[1:] + regularization)
        pick = 1 + int((gains >= (1 - ROUNDING) * gains.max()).argmax())
        column = points @ points[pick] - updates[:place, pick] @ updates[:place]
        updates[place] = column / np.sqrt(variance[pick] + regularization)
        with_query -= updates[place, 0] * updates[place]
        variance = np.maximum(variance - updates[place] ** 2, 0)  # not below it by rounding
        picks.append(pick - 1)
        variances.append(float(variance[0]))
    return picks, variances


def _check_regularization(regularization: float) -> None:
    """Refuse noise so small that rounding would choose."""
    if not LEAST <= regularization < math.inf:
        raise InputError(f"`regularization` is {regularization}. Pass a finite number of at least {LEAST:g}.")
