"""The best passage of each document that is found, in the place of the document."""

from collections.abc import Callable

import numpy as np

from tttnn.documents import Document
from tttnn.neighbors import Neighbor


def nearest_passages(
    found: list[list[int]],
    passages: dict[int, list[Document]],
    queries: np.ndarray,
    embed: Callable[[list[str]], np.ndarray],
) -> list[list[Neighbor]]:
    """
    Choose the passage nearest to a query of each document that it found, and order by their distances.

    `found` has the rows of each query, `passages` those of each row, and `queries` a vector for each query.
    """
    vectors: dict[int, np.ndarray] = {}
    if passages:
        embedded = embed([passage.text for parts in passages.values() for passage in parts])
        ends = np.cumsum([len(parts) for parts in passages.values()])
        vectors = dict(zip(passages, np.split(embedded, ends[:-1]), strict=True))
    neighbors = []
    for query, rows in zip(queries, found, strict=True):
        nearest = []
        for row in rows:
            distances = np.square(vectors[row] - query).sum(axis=1)
            place = int(distances.argmin())
            nearest.append(as_neighbor(float(distances[place]), row, passages[row][place]))
        neighbors.append(sorted(nearest, key=lambda neighbor: (neighbor.distance, neighbor.id)))
    return neighbors


def as_neighbor(distance: float, row: int, document: Document) -> Neighbor:
    """Make a neighbor of a document, or of a passage of one, at a row."""
    return Neighbor(row, document.text, distance, {**document.metadata, "id": document.id})
