"""A part of an index, drawn at random: how large must a corpus be?"""

import hashlib
from collections.abc import Sequence

import numpy as np

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.index.search import DocumentIndex, Index, Pairs, search_shards


class IndexSubset:
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
            Seed of the permutations.

    Raises:
        `ValueError`: If the fraction is out of range, or leaves no row, or the index is a part already, or of a kind
            that cannot search among some rows.
    """

    def __init__(self, index: Index, fraction: float, seed: int = 0) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"The fraction of an index is {fraction}. Pass a share above 0 and up to 1.")
        if not isinstance(index, DocumentIndex):
            raise InputError(f"The index is a part already, of {len(index)} documents. Draw from the whole.")
        other = [type(shard.vectors).__name__ for shard in index.shards if not shard.is_plain]
        if other:
            raise InputError(
                f"A part can be drawn of flat and inverted-file indexes, and this is {other[0]}, which would lose "
                "most of its rows. Use a flat index."
            )
        self.index = index
        self.digest = hashlib.sha256(f"{index.digest} {fraction!r} {seed}".encode()).hexdigest()
        self.embedder, self.nprobe, self.k_factor = index.embedder, index.nprobe, index.k_factor
        self.is_prefixed = True
        self._masks = [_mask(len(shard), fraction, [seed, number]) for number, shard in enumerate(index.shards)]
        self._sizes = [int(mask.sum()) for mask in self._masks]
        if len(self) == 0:
            raise InputError(
                f"The fraction {fraction} of an index of {len(index)} documents leaves none. Pass a larger one."
            )

    def __len__(self) -> int:
        return sum(self._sizes)

    def search(self, queries: np.ndarray, top_k: int) -> list[Pairs]:
        """Find the nearest rows of each query among those of the part, as `DocumentIndex.search` does among all."""
        return search_shards(self.index.shards, queries, top_k, self.nprobe, masks=self._masks)[0]

    def documents(self, rows: Sequence[int]) -> list[Document]:
        """Give the documents of rows of the whole index."""
        return self.index.documents(rows)

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Give the vectors of rows of the whole index."""
        return self.index.vectors(rows)

    def row_at(self, place: int) -> int:
        """Give the number of a row by its place among the rows of the part."""
        for shard, mask, size in zip(self.index.shards, self._masks, self._sizes, strict=True):
            if place < size:
                return shard.start + int(np.flatnonzero(mask)[place])
            place -= size
        raise IndexError(f"The part holds {len(self)} rows, and place {place + len(self)} was asked for.")


def _mask(num_rows: int, fraction: float, seed: list[int]) -> np.ndarray:
    mask = np.zeros(num_rows, dtype=bool)
    mask[np.random.default_rng(seed).permutation(num_rows)[: round(fraction * num_rows)]] = True
    return mask
