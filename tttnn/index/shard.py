"""A part of an index: its vectors, how they are searched, and where its documents are."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.index.hub.remote_texts import RemoteTexts
from tttnn.index.texts import TextStore
from tttnn.index.vectors import import_faiss


# Faiss answers large batches by a matrix product, whose rounding reorders near-equal neighbors: in small blocks, a
# batch of queries gives exactly what each query alone gives. Not so where a factory rotates or projects vectors first
# (OPQ, PCA, RR): that is a matrix product for any number of queries.
QUERIES_PER_SEARCH = 16


@dataclass
class Shard:
    """
    A part of an index.

    Args:
        vectors (`faiss.Index`):
            A Faiss index of squared L2 distances.
        documents (`list[Document]`, `TextStore` or `RemoteTexts`):
            The documents of its rows.
        start (`int`, *optional*, defaults to `0`):
            Its first row in the whole index.
    """

    vectors: Any
    documents: list[Document] | TextStore | RemoteTexts
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

    def near_lists(self, queries: np.ndarray, nprobe: int | None) -> tuple[np.ndarray, np.ndarray] | None:
        """
        Find the inverted lists to look into, which are the same for all shards of an index.

        Args:
            queries (`np.ndarray`):
                float32 of shape `(n, dimension)`.
            nprobe (`int`, *optional*):
                How many, at most all. By default what the file says.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: distances of their centroids, and their numbers, both of shape
            `(n, nprobe)`. None where there are no lists, or vectors are rotated before they are divided.
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
        selector: Any = None,  # noqa: ANN401
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Find the nearest places of each query; nothing is kept for the next search.

        Args:
            queries (`np.ndarray`):
                float32 of shape `(n, dimension)`, contiguous.
            depth (`int`):
                Places wanted for each query.
            nprobe (`int`, *optional*):
                As `near_lists` takes it.
            lists (`tuple[np.ndarray, np.ndarray]`, *optional*):
                What `near_lists` gave. By default they are found here, if there are any.
            selector (`faiss.IDSelector`, *optional*):
                The places among which to search. By default all.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: distances and places, both of shape `(n, depth)`; the place is -1 where
            fewer are found.
        """
        faiss, settings = import_faiss(), self._settings(nprobe, selector)
        if lists is None:
            return self.lists.search(queries, depth, params=settings)
        if queries.shape[1] != self.lists.d:  # which Faiss does not look at here
            raise InputError(
                f"The lists of the shard that begins at row {self.start} are of dimension {self.lists.d}, and queries "
                f"of {queries.shape[1]}: it is damaged. Fetch or build the index anew."
            )
        settings.nprobe = lists[1].shape[1]
        near, places = np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int64)
        given, numbers, distances, *found = map(faiss.swig_ptr, (queries, lists[1], lists[0], near, places))
        # `search_preassigned` of Faiss 1.15 takes no settings
        self.lists.search_preassigned_c(len(queries), given, depth, numbers, distances, *found, False, settings)
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
        """
        Measure the candidates that are in this shard by the vectors that are stored whole.

        Args:
            queries (`np.ndarray`):
                float32 of shape `(n, dimension)`.
            rows (`np.ndarray`):
                Of shape `(n, depth)`: for each query rows of the whole index.
            distances (`np.ndarray`):
                float32 of the same shape, into which the squared L2 distances of this shard's rows are written.
        """
        for block, among, measured in zip(blocks(queries), blocks(rows), blocks(distances), strict=True):
            places = among - self.start
            inside = (places >= 0) & (places < len(self))
            if inside.any():
                differences = self.exact.reconstruct_batch(places[inside]) - block[inside.nonzero()[0]]
                measured[inside] = np.square(differences).sum(axis=1, dtype=np.float32)


def blocks(array: np.ndarray) -> list[np.ndarray]:
    """
    Divide queries, or what belongs to each of them.

    Args:
        array (`np.ndarray`):
            Of any shape.

    Returns:
        `list[np.ndarray]`: views of at most `QUERIES_PER_SEARCH` lines each.
    """
    return [array[first : first + QUERIES_PER_SEARCH] for first in range(0, len(array), QUERIES_PER_SEARCH)]


def nearest(distances: np.ndarray, rows: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Choose of the rows that were found for each query those that are nearest.

    Args:
        distances (`np.ndarray`):
            Of shape `(n, found)`.
        rows (`np.ndarray`):
            Of the same shape; -1 where fewer were found.
        number (`int`):
            Rows wanted for each query.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: at most as many of both, nearest first, equal distances by row, -1 at the end.
    """
    order = np.lexsort((rows, distances, rows < 0))[:, :number]
    lines = np.arange(len(rows))[:, None]
    return distances[lines, order], rows[lines, order]
