"""A part of an index, drawn at random: how large must a corpus be?"""

import hashlib

import numpy as np

from tttnn.errors import InputError
from tttnn.index.search import DocumentIndex, Pairs, search_shards


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
            Seed of the permutations.

    Raises:
        `ValueError`: If the fraction is out of range, or leaves no row, or the index is a part already, or of a kind
            that cannot search among some rows.
    """

    def __init__(self, index: DocumentIndex, fraction: float, seed: int = 0) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"The fraction of an index is {fraction}. Pass a share above 0 and up to 1.")
        if isinstance(index, IndexSubset):
            raise InputError(f"The index is a part already, of {len(index)} documents. Draw from the whole.")
        if not index.is_prefixed:
            raise InputError(
                "A part can be drawn of flat and inverted-file indexes, and this is "
                f"{type(index.shards[0].vectors).__name__}, which would lose most of its rows. Use a flat index."
            )
        digest = hashlib.sha256(f"{index.digest} {fraction!r} {seed}".encode()).hexdigest()
        super().__init__(index.shards, index.embedder, digest)
        self.source = f"{fraction:g} of {index.source}"
        self.nprobe = index.nprobe
        self._masks = [_mask(len(shard), fraction, [seed, number]) for number, shard in enumerate(index.shards)]
        self._sizes = [int(mask.sum()) for mask in self._masks]
        if len(self) == 0:
            raise InputError(
                f"The fraction {fraction} of an index of {len(index)} documents leaves none. Pass a larger one."
            )

    def __len__(self) -> int:
        return sum(self._sizes)

    def search(self, queries: np.ndarray, top_k: int) -> list[Pairs]:
        """Find the nearest rows of each query among those of the part."""
        return search_shards(self.shards, queries, top_k, self.nprobe, masks=self._masks)[0]

    def check_whole(self) -> None:
        """Refuse to be saved."""
        raise InputError("This is a part of an index, drawn by `subset`. Save the whole one.")

    def row_at(self, place: int) -> int:
        """Give the number of a row by its place among the rows of the part."""
        for shard, mask, size in zip(self.shards, self._masks, self._sizes, strict=True):
            if place < size:
                return shard.start + int(np.flatnonzero(mask)[place])
            place -= size
        raise IndexError(f"The part holds {len(self)} rows, and place {place + len(self)} was asked for.")


def _mask(num_rows: int, fraction: float, seed: list[int]) -> np.ndarray:
    mask = np.zeros(num_rows, dtype=bool)
    mask[np.random.default_rng(seed).permutation(num_rows)[: round(fraction * num_rows)]] = True
    return mask
