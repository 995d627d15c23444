"""A part of an index: its vectors, how they are searched, and where its documents are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tttnn.errors import InputError
from tttnn.index.texts import TextSource
from tttnn.index.vectors import import_faiss


# Faiss answers large batches by a matrix product, whose rounding reorders near-equal neighbors: in small blocks, a
# batch of queries gives exactly what each query alone gives. Not so where a factory rotates or projects vectors first
# (OPQ, PCA, RR): that is a matrix product for any number of queries.
QUERIES_PER_SEARCH = 16


@dataclass
class Shard:
    """A part of an index: a Faiss index of squared L2 distances, the documents of its rows, and its first row."""

    vectors: Any
    documents: TextSource
    start: int = 0

    def __post_init__(self) -> None:
        faiss = import_faiss()
        self.lists: Any = self.vectors
        self.exact: Any = None
        if isinstance(self.vectors, faiss.IndexRefine):
            # candidates are found among compressed vectors, and ranked again by what is stored of each
            self.lists = faiss.downcast_index(self.vectors.base_index)
            self.exact = faiss.downcast_index(self.vectors.refine_index)

    def __len__(self) -> int:
        return int(self.vectors.ntotal)

    @property
    def is_flat(self) -> bool:
        """Whether all vectors are compared with a query, as they are."""
        return isinstance(self.vectors, import_faiss().IndexFlat)

    @property
    def is_plain(self) -> bool:
        """Whether vectors are stored as they are: a search for more rows then begins with what one for fewer finds."""
        faiss = import_faiss()
        return isinstance(self.vectors, faiss.IndexFlat | faiss.IndexIVFFlat)

    @property
    def keeps_vectors(self) -> bool:
        """Whether distances are those of vectors that it can give: stored as they are, or in half precision."""
        faiss = import_faiss()
        if isinstance(self.exact, faiss.IndexScalarQuantizer):
            return bool(self.exact.sq.qtype == faiss.ScalarQuantizer.QT_fp16)
        return self.is_plain or isinstance(self.exact, faiss.IndexFlat)

    def is_like(self, other: "Shard") -> bool:
        """Whether another shard is stored and divided in the same way."""
        if type(self.lists) is not type(other.lists) or (self.exact is None) != (other.exact is None):
            return False
        if not isinstance(self.lists, import_faiss().IndexIVF):
            return True
        # of their centroids three are looked at, because opening must not read them all
        return self.lists.nlist == other.lists.nlist and all(
            np.array_equal(*(each.lists.quantizer.reconstruct(place) for each in (self, other)))
            for place in (0, self.lists.nlist // 2, self.lists.nlist - 1)
        )

    def vectors_of(self, places: Sequence[int]) -> np.ndarray:
        """Give the vectors of places, as exactly as they are stored."""
        stored = self.vectors if self.exact is None else self.exact
        # `reconstruct` fails for an inverted file without a map of its rows
        return np.concatenate([stored.reconstruct_n(int(place), 1) for place in places])

    def near_lists(self, queries: np.ndarray, nprobe: int | None) -> tuple[np.ndarray, np.ndarray] | None:
        """
        Find the inverted lists to look into: distances of their centroids, and their numbers.

        They are the same for all shards of an index. None if there are no lists, or vectors are rotated before they
        are divided.
        """
        if not isinstance(self.lists, import_faiss().IndexIVF):
            return None
        return self.lists.quantizer.search(queries, self._settings(nprobe).nprobe)

    def search(
        self,
        queries: np.ndarray,
        depth: int,
        nprobe: int | None,
        lists: tuple[np.ndarray, np.ndarray] | None = None,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Find distances and places nearest to each query, both of shape `(n, depth)`, padded with the place -1.

        `lists` is what `near_lists` gave, and `mask` says which places are searched. Nothing is kept for the next
        search.
        """
        faiss = import_faiss()
        # eight places a byte, the first in the lowest bit
        selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        settings = self._settings(nprobe, selector)
        if lists is None:
            return self.lists.search(queries, depth, params=settings)
        if queries.shape[1] != self.lists.d:  # which Faiss does not look at here
            raise InputError(
                f"The lists of the shard that begins at row {self.start} are of dimension {self.lists.d}, and queries "
                f"of {queries.shape[1]}: it is damaged. Fetch or rebuild the index."
            )
        settings.nprobe = lists[1].shape[1]
        near, places = np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int64)
        vectors, numbers, distances, *results = map(faiss.swig_ptr, (queries, lists[1], lists[0], near, places))
        # `search_preassigned` of Faiss 1.15 takes no settings
        self.lists.search_preassigned_c(len(queries), vectors, depth, numbers, distances, *results, False, settings)
        return near, places

    def _settings(self, nprobe: int | None, selector: Any = None) -> Any:  # noqa: ANN401
        """Say how to search once: what Faiss keeps in the shard is shared by all that search it."""
        faiss = import_faiss()
        lists = faiss.try_extract_index_ivf(self.lists)
        if lists is None:
            return None if selector is None else faiss.SearchParameters(sel=selector)
        nprobe = min(nprobe or lists.nprobe, lists.nlist)
        # beside settings for once, those of the shard are not looked at
        return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe, max_codes=lists.max_codes)

    def measure(self, queries: np.ndarray, rows: np.ndarray, distances: np.ndarray) -> None:
        """Write into `distances` those of the candidate `rows` that are in this shard, by the vectors stored whole."""
        for block, among, measured in zip(blocks(queries), blocks(rows), blocks(distances), strict=True):
            places = among - self.start
            inside = (places >= 0) & (places < len(self))
            if inside.any():
                differences = self.exact.reconstruct_batch(places[inside]) - block[inside.nonzero()[0]]
                measured[inside] = np.square(differences).sum(axis=1, dtype=np.float32)


def blocks(array: np.ndarray) -> list[np.ndarray]:
    """Divide queries, or what belongs to each of them, into views of at most `QUERIES_PER_SEARCH` lines."""
    return [array[first : first + QUERIES_PER_SEARCH] for first in range(0, len(array), QUERIES_PER_SEARCH)]


def nearest(distances: np.ndarray, rows: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the nearest rows of each query; equal distances are ordered by row, and the padding -1 comes last."""
    order = np.lexsort((rows, distances, rows < 0))[:, :number]
    lines = np.arange(len(rows))[:, None]
    return distances[lines, order], rows[lines, order]
