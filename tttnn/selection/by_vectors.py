"""What selectors that compare the vectors of candidates have in common."""

from abc import ABC, abstractmethod
from typing import Unpack

import numpy as np

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.neighbors import Neighbor, Rules, Selection, Vectors
from tttnn.selection.rules import Sieve


class VectorSelector(ABC):
    """Chooses among the candidates that the rules leave, by their vectors and that of the query."""

    @abstractmethod
    def choose(
        self, query: np.ndarray, vectors: np.ndarray, num_neighbors: int
    ) -> tuple[list[int], list[float] | None]:
        """Give the chosen rows of `vectors`, in the order `"nearest"`, and their weights, if they have any."""

    def __call__(
        self,
        candidates: list[Neighbor],
        document: Document,
        scored_text: str,
        *,
        num_neighbors: int,
        order: str = "nearest",
        seed: int = 0,
        vectors: Vectors,
        **rules: Unpack[Rules],
    ) -> Selection:
        """Choose; the arguments are those of `select`, and `vectors` is called once, if any candidate is left."""
        sieve = Sieve(document, scored_text, **rules)
        left = [*sieve.left_of(candidates)]
        rows, weights = self.choose(*vectors(left), num_neighbors) if left else ([], None)
        return sieve.selection([left[row] for row in rows], order, seed, weights)


def check_vectors(query: np.ndarray, vectors: np.ndarray) -> None:
    """Refuse what cannot be compared: no vector, another length than the query's, or a number that is not finite."""
    if np.ndim(query) != 1 or np.ndim(vectors) != 2 or np.shape(vectors)[1:] != np.shape(query) or not len(vectors):
        raise InputError(
            f"The query has the shape {np.shape(query)}, and the vectors have {np.shape(vectors)}. Pass (dimension,) "
            "and (n, dimension), with n of at least 1."
        )
    if not (np.isfinite(query).all() and np.isfinite(vectors).all()):
        raise InputError("A vector is not finite. Leave it out, or check its embedder.")
