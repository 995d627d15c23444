"""A weighted set of neighbors whose mean comes closest to the query."""

from dataclasses import dataclass

import numpy as np

from tttnn.errors import InputError
from tttnn.selection.by_vectors import VectorSelector, check_vectors


# Of the squared length of the longest difference between a vector of the mean and the query: rounding.
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Hull(VectorSelector):
    """
    Selects and weighs neighbors so that the weighted mean of their vectors comes closest to the query:
    `--selector hull`.

    The point of the candidates' convex hull that is nearest to the query is a mean of few of them (see
    `hull_weights`). These are the neighbors, and their weights in the mean, scaled to a mean of 1, are the factors of
    their losses: together they count as much as that many neighbors without weights. In the order `"nearest"` the
    heaviest comes first.

    Source: the idea of [HullFT](https://huggingface.co/papers/2605.30337): Frank-Wolfe over the hull of the
    candidates.
    """

    def choose(self, query: np.ndarray, vectors: np.ndarray, num_neighbors: int) -> tuple[list[int], list[float]]:
        """Choose at most `num_neighbors`, each once, with weights whose sum is their number."""
        shares = hull_weights(query, vectors, num_neighbors)
        rows = [int(row) for row in np.argsort(-shares, kind="stable") if shares[row] > 0]
        return rows, [float(shares[row]) * len(rows) for row in rows]


def hull_weights(query: np.ndarray, vectors: np.ndarray, max_vectors: int | None = None) -> np.ndarray:
    """
    Find the weighted mean of vectors that is nearest to a query.

    This is the Frank-Wolfe algorithm with a full correction after each step, which is Wolfe's algorithm for the
    nearest point of a polytope. It begins at the nearest vector. Each step adds the vector that lies farthest in the
    direction of the query, and finds the best weights of all that were added; those that fall to 0 leave. It ends at
    the exact solution, or as soon as `max_vectors` have a weight.

    Args:
        query (`np.ndarray`):
            Of shape `(dimension,)`.
        vectors (`np.ndarray`):
            Of shape `(n, dimension)`, with at least one row.
        max_vectors (`int`, *optional*):
            The most vectors with a weight. By default there is no limit; `dimension + 1` are always enough.

    Returns:
        `np.ndarray`: a weight of at least 0 for each vector, float64 of shape `(n,)`; their sum is 1.

    Raises:
        `ValueError`: If there is no vector, one is not finite or not as long as the query, or `max_vectors` is below
            1.
    """
    check_vectors(query, vectors)
    if max_vectors is not None and max_vectors < 1:
        raise InputError(f"`max_vectors` is {max_vectors}, but a mean is of at least one vector. Pass at least 1.")
    points = vectors.astype(np.float64) - query.astype(np.float64)
    lengths = np.square(points).sum(axis=1)
    support, weights = [int(lengths.argmin())], np.ones(1)
    limit = len(points) if max_vectors is None else max_vectors
    while len(support) < limit:
        mean = weights @ points[support]
        progress = points @ mean
        new = int(progress.argmin())
        # no vector lies farther in the direction of the query than the mean itself; one that lies far off and is not
        # needed has no say in what counts as rounding
        if new in support or mean @ mean - progress[new] <= TOLERANCE * lengths[[*support, new]].max():
            break
        support, weights = _corrected(points, [*support, new], np.append(weights, 0.0))
    shares = np.zeros(len(points))
    shares[support] = weights / weights.sum()
    return shares


def _corrected(points: np.ndarray, support: list[int], weights: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Move the weights of some points to those whose mean is nearest to the origin; points whose weight ends leave."""
    while True:
        best = _affine_weights(points[support])
        if (best > 0).all():
            return support, best
        # as far towards the best as no weight falls below 0; there at least one is 0
        falling = best <= 0
        ratios = weights[falling] / np.maximum(weights[falling] - best[falling], np.finfo(np.float64).tiny)
        weights = weights + ratios.min() * (best - weights)
        kept = weights > 0
        kept[np.flatnonzero(falling)[ratios.argmin()]] = False
        support, weights = [place for place, keep in zip(support, kept, strict=True) if keep], weights[kept]


def _affine_weights(points: np.ndarray) -> np.ndarray:
    """Find weights, of any sign and of sum 1, whose mean of points is nearest to the origin."""
    first, others = points[0], points[1:] - points[0]
    rest = np.linalg.lstsq(others.T, -first, rcond=None)[0]
    return np.append(1 - rest.sum(), rest)
