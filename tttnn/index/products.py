"""
Exact search of many queries at once: a matrix product finds candidates, Faiss's arithmetic of one query ranks them.

A matrix product reads each vector once for all queries, but rounds otherwise than Faiss does for one query, which may
reorder near-equal neighbors. How far the two can differ is bounded: with it, no row that belongs to the answer is
missed, and the candidates' distances are then those of a single query, to the bit.
"""

from typing import Any

import numpy as np

from tttnn.index.vectors import import_faiss


FEWEST_QUERIES = 8  # of fewer the product costs more than it saves
QUERIES_AT_ONCE, ROWS_AT_ONCE = 128, 4096  # of a product, which then stays in the cache
MOST_CANDIDATES = 2048  # of a query, beside those that are asked for
LARGEST = 1e37  # squared norms up to which nothing overflows
ROUNDING = 2.0**-24  # of float32
UNDERFLOW = 1e-44  # of a product or a square, at most


def search_by_products(
    index: Any,  # noqa: ANN401
    queries: np.ndarray,
    depth: int,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Find distances and places nearest to each query in a flat Faiss index, padded with the place -1.

    The third array says which queries are answered. The others have too many candidates, at nearly the same distance,
    or numbers that are not finite, and must be searched one by one. `mask` says which places are searched.
    """
    parts = [
        _search_part(index, queries[first : first + QUERIES_AT_ONCE], depth, mask)
        for first in range(0, len(queries), QUERIES_AT_ONCE)
    ]
    distances, places, answered = (np.concatenate(each) for each in zip(*parts, strict=True))
    return distances, places, answered


def _search_part(
    index: Any,  # noqa: ANN401
    queries: np.ndarray,
    depth: int,
    mask: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    faiss = import_faiss()
    owners, rows, answered = _find_candidates(index, queries, depth, mask)
    distances = np.full((len(queries), depth), np.inf, np.float32)
    places = np.full((len(queries), depth), -1, np.int64)
    starts = np.searchsorted(owners, np.arange(len(queries) + 1))
    for number in np.flatnonzero(answered):
        among = np.sort(rows[starts[number] : starts[number + 1]])
        measured = np.empty(len(among), np.float32)
        pointers = map(faiss.swig_ptr, (measured, queries[number]))
        faiss.fvec_L2sqr_by_idx(*pointers, index.get_xb(), faiss.swig_ptr(among), index.d, 1, len(among))
        order = np.argsort(measured, kind="stable")[:depth]  # of equal distances the first rows, as Faiss does
        distances[number, : len(order)], places[number, : len(order)] = measured[order], among[order]
    return distances, places, answered


@np.errstate(over="ignore", invalid="ignore")
def _find_candidates(
    index: Any,  # noqa: ANN401
    queries: np.ndarray,
    depth: int,
    mask: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Find for each query all rows that may be among the `depth` nearest.

    Gives numbers of queries, ascending, and the rows that belong to them; and which queries are answered by them.
    """
    faiss = import_faiss()
    vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    norms = np.einsum("ij,ij->i", queries, queries, dtype=np.float64)
    # at least `depth` rows are at most so far away, by any of the two arithmetics
    reach, answered = np.full(len(queries), np.inf), np.ones(len(queries), bool)
    owners, rows = np.empty(0, np.int64), np.empty(0, np.int64)
    low, high = np.empty(0), np.empty(0)
    kept = 0
    for first in range(0, index.ntotal, ROWS_AT_ONCE):
        block = vectors[first : first + ROWS_AT_ONCE]
        numbers = np.arange(first, first + len(block))
        if mask is not None:
            inside = mask[first : first + ROWS_AT_ONCE]
            block, numbers = block[inside], numbers[inside]
        if len(block) == 0:
            continue
        squares = np.einsum("ij,ij->i", block, block)
        largest = float(squares.max())
        error = _error_bound(norms, largest, index.d)
        answered &= (norms < LARGEST) & (largest < LARGEST)
        reach[~answered] = -np.inf
        near = queries @ block.T
        near *= -2
        near += squares
        if first == 0 and len(block) > depth:  # what is far from the first rows' nearest is not looked at
            ranked = np.partition(near, depth - 1, axis=1)[:, depth - 1]
            reach = np.where(answered, ranked + norms + error, -np.inf)
        hits, columns = np.nonzero(near <= (reach - norms + error).astype(np.float32)[:, None])
        measured = near[hits, columns] + norms[hits]
        owners, rows = np.concatenate([owners, hits]), np.concatenate([rows, numbers[columns]])
        low = np.concatenate([low, measured - error[hits]])
        high = np.concatenate([high, measured + error[hits]])
        if len(owners) > 2 * kept or first + ROWS_AT_ONCE >= index.ntotal:
            order = np.lexsort((high, owners))
            owners, rows, low, high = owners[order], rows[order], low[order], high[order]
            starts = np.searchsorted(owners, np.arange(len(queries) + 1))
            full = np.flatnonzero(np.diff(starts) >= depth)
            reach[full] = np.minimum(reach[full], high[starts[full] + depth - 1])
            inside = low <= reach[owners]
            counts = np.bincount(owners[inside], minlength=len(queries))
            answered &= counts <= depth + MOST_CANDIDATES
            reach[~answered] = -np.inf
            inside &= answered[owners]
            owners, rows, low, high = owners[inside], rows[inside], low[inside], high[inside]
            kept = len(owners)
    return owners, rows, answered


def _error_bound(norms: np.ndarray, largest: float, dimension: int) -> np.ndarray:
    """
    Bound the difference between a squared distance by the product and by Faiss's sum of squared differences.

    A sum of n products in float32 is, in whatever order, within n u / (1 - n u) of the sum of their sizes. The sizes
    are here at most (|q| + |x|)^2, in both arithmetics; to n some operations are added, for the differences, the sum
    of the three terms, and the comparison in float32.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    terms = (dimension + 16) * ROUNDING
    # the largest norm was itself rounded
    size = np.square(np.sqrt(norms) + np.sqrt(largest * (1 + 2 * terms)))
    return 2 * terms / (1 - terms) * size + 4 * dimension * UNDERFLOW
