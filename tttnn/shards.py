"""A part of an index: its vectors, how they are searched, and where its documents are."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tttnn.corpus import Document
from tttnn.quantization import import_faiss
from tttnn.remote import RemoteTexts
from tttnn.texts import TextStore


# Faiss answers large batches by a matrix product, whose rounding reorders near-equal neighbors: in small blocks, a
# batch of queries gives exactly what each query alone gives.
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

    def set_nprobe(self, nprobe: int | None) -> None:
        """
        Set how many inverted lists are looked into, if it has any.

        Args:
            nprobe (`int`, *optional*):
                At most all. None leaves it as the file says.
        """
        lists = import_faiss().try_extract_index_ivf(self.lists)
        if lists is not None and nprobe is not None:
            lists.nprobe = min(nprobe, lists.nlist)

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
