"""Random draws from an index: a part of it (how large must a corpus be?), and documents to compare neighbors with."""

import hashlib

import numpy as np

from tttnn.corpus import Document
from tttnn.index import DocumentIndex, import_faiss


RANDOM_DISTANCES = "random-distances.json"  # stands beside a journal, for the report


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
            raise ValueError(f"The fraction of an index is {fraction}. Pass a share above 0 and up to 1.")
        if isinstance(index, IndexSubset):
            raise ValueError(
                f"The index is a part already: {len(index)} of {int(index.starts[-1])} documents. Draw from the whole."
            )
        faiss = import_faiss()
        kinds = {type(shard.vectors) for shard in index.shards}
        other = [kind.__name__ for kind in kinds if not issubclass(kind, faiss.IndexFlat | faiss.IndexIVF)]
        if other:
            raise ValueError(
                f"A part can be drawn of flat and inverted-file indexes, and this is {other[0]}, which would lose "
                "most of its rows. Use a flat index."
            )
        digest = hashlib.sha256(f"{index.digest} {fraction!r} {seed}".encode()).hexdigest()
        super().__init__(index.shards, index.embedder, digest)
        self._whole = index
        self._masks = [
            _mask(shard.vectors.ntotal, fraction, [seed, number]) for number, shard in enumerate(index.shards)
        ]
        self._sizes = [int(mask.sum()) for mask in self._masks]
        if len(self) == 0:
            raise ValueError(
                f"The fraction {fraction} of an index of {len(index)} documents leaves none. Pass a larger one."
            )

    def __len__(self) -> int:
        return sum(self._sizes)

    def document(self, row: int) -> Document:
        """Fetch the document of a row of the whole index (see `DocumentIndex.document`)."""
        return self._whole.document(row)

    def _search_shard(self, number: int, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        faiss, vectors = import_faiss(), self.shards[number].vectors
        # eight rows a byte, the first in the lowest bit
        selector = faiss.IDSelectorBitmap(np.packbits(self._masks[number], bitorder="little"))
        if isinstance(vectors, faiss.IndexIVF):  # whose own settings are not looked at beside parameters
            params = faiss.SearchParametersIVF(sel=selector, nprobe=vectors.nprobe, max_codes=vectors.max_codes)
        else:
            params = faiss.SearchParameters(sel=selector)
        return vectors.search(queries, min(top_k, vectors.ntotal), params=params)


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
    distances: list[float] = []
    for query in queries:
        for row in generator.integers(index.starts[-1], size=per_query):
            shard = int(np.searchsorted(index.starts, row, side="right")) - 1
            # `reconstruct` fails for an inverted file without a map of its rows
            vector = index.shards[shard].vectors.reconstruct_n(int(row - index.starts[shard]), 1)
            distances.append(float(np.square(query - vector).sum()))
    return distances
