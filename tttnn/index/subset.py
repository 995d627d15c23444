"""Random draws from an index: a part of it (how large must a corpus be?), and documents to compare neighbors with."""

import hashlib
from typing import Any

import numpy as np

from tttnn.errors import InputError
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.vectors import import_faiss


class IndexSubset(DocumentIndex):
    """
    A random share of the rows of an index, searched without copying a vector.

    Of each shard the first `round(fraction * rows)` rows of a seeded permutation are in it, so that a smaller share of
    the same seed lies within a larger one. Rows keep their numbers.

    Args:
        index (`DocumentIndex`):
            The whole index.
        fraction (`float`):
            The share of its rows, above 0 and at most 1.
        seed (`int`, *optional*, defaults to `0`):
            Of the permutations.

    Raises:
        `ValueError`: If the fraction is out of range, or leaves no row, or the index is a part already, or of a kind
            that cannot search among some rows.
    """

    def __init__(self, index: DocumentIndex, fraction: float, seed: int = 0) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"The fraction of an index is {fraction}. Pass a share above 0 and up to 1.")
        if isinstance(index, IndexSubset):
            raise InputError(f"The index is a part already, of {len(index)} documents. Draw from the whole.")
        faiss = import_faiss()
        kinds = {type(shard.vectors) for shard in index.shards}
        other = [kind.__name__ for kind in kinds if not issubclass(kind, faiss.IndexFlat | faiss.IndexIVFFlat)]
        if other:
            raise InputError(
                f"A part can be drawn of flat and inverted-file indexes, and this is {other[0]}, which would lose "
                "most of its rows. Use a flat index."
            )
        digest = hashlib.sha256(f"{index.digest} {fraction!r} {seed}".encode()).hexdigest()
        super().__init__(index.shards, index.embedder, digest)
        self.nprobe = index.nprobe
        self._masks = {
            shard.start: _mask(len(shard), fraction, [seed, number]) for number, shard in enumerate(index.shards)
        }
        self._sizes = [int(mask.sum()) for mask in self._masks.values()]
        if len(self) == 0:
            raise InputError(
                f"The fraction {fraction} of an index of {len(index)} documents leaves none. Pass a larger one."
            )

    def __len__(self) -> int:
        return sum(self._sizes)

    def _selector(self, shard: Shard) -> Any:  # noqa: ANN401
        # eight rows a byte, the first in the lowest bit
        return import_faiss().IDSelectorBitmap(np.packbits(self._masks[shard.start], bitorder="little"))


def _mask(num_rows: int, fraction: float, seed: list[int]) -> np.ndarray:
    mask = np.zeros(num_rows, dtype=bool)
    mask[np.random.default_rng(seed).permutation(num_rows)[: round(fraction * num_rows)]] = True
    return mask


def random_distances(index: DocumentIndex, queries: np.ndarray, per_query: int = 20, seed: int = 0) -> list[float]:
    """
    Measure how far queries lie from documents drawn at random.

    Args:
        index (`DocumentIndex`):
            From which documents are drawn, with replacement.
        queries (`np.ndarray`):
            float32 of shape `(n, dimension)`.
        per_query (`int`, *optional*, defaults to `20`):
            Documents drawn for each query.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws.

    Returns:
        `list[float]`: `n * per_query` squared L2 distances, query by query.
    """
    generator = np.random.default_rng(seed)
    ends = np.cumsum([len(shard) for shard in index.shards])
    distances: list[float] = []
    for query in queries:
        for row in generator.integers(ends[-1], size=per_query):
            number = int(np.searchsorted(ends, row, side="right"))
            shard = index.shards[number]
            stored = shard.vectors if shard.exact is None else shard.exact
            # `reconstruct` fails for an inverted file without a map of its rows
            vector = stored.reconstruct_n(int(row - ends[number] + len(shard)), 1)
            distances.append(float(np.square(query - vector).sum()))
    return distances
