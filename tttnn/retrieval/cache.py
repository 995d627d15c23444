"""A cache of queries on disk, so that many runs over the same documents embed and retrieve once."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from huggingface_hub import constants

from tttnn.index import Index, Pairs
from tttnn.neighbors import PartialAnswer
from tttnn.retrieval.store import Store


DEPTH = 100
MAX_BYTES = 500_000_000  # a file: about 100,000 vectors of 1,024 numbers, or 250,000 lists of 100 neighbors


class NeighborCache:
    """
    The vectors of queries and their neighbors' rows, in two SQLite files.

    Vectors are kept by the description of the embedder, and rows by the digest of the index and how it is searched;
    both by the sha256 of the query. Vectors of texts of the corpus are kept too, apart from those of queries, since an
    embedder may put another prompt before each. A cache gives the rows that a search without it gives. It keeps at
    least 100 rows of an exact or inverted-file index, and what was searched for one `top_k` serves every smaller one.
    Other indexes give other rows if more are asked for, and are searched for each `top_k`.

    Each file takes at most 500 MB, and the entries that were used least recently go first. Several processes may use
    it at once. If the disk is full or read-only, nothing is kept; a damaged file is set aside with a warning, and
    rebuilt.

    Args:
        folder (`str` or `Path`, *optional*):
            Holds `vectors.sqlite` and `neighbors.sqlite`; both can be deleted at any time. By default
            `tttnn/neighbors` in the Hugging Face cache.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(constants.HF_HOME) / "tttnn" / "neighbors" if folder is None else Path(folder)
        self._vectors = Store(self.folder / "vectors.sqlite", MAX_BYTES)
        self._neighbors = Store(self.folder / "neighbors.sqlite", MAX_BYTES)

    def search(
        self, index: Index, embed: Callable[[list[str]], np.ndarray], texts: list[str], top_k: int
    ) -> list[Pairs]:
        """
        Find the nearest rows of each text; embed and search only those that are not in the cache.

        Args:
            index (`Index`):
                The index to search.
            embed (`Callable`):
                Gives the vectors of texts, float32 of shape `(n, dimension)`.
            texts (`list[str]`):
                Queries.
            top_k (`int`):
                Rows wanted for each.

        Returns:
            `list`: what `Index.search` gives.
        """
        # deeper than asked for if that changes nothing, so that the next run finds more neighbors here
        depth, only = (max(top_k, DEPTH), None) if index.is_prefixed else (top_k, top_k)
        keys = _keys([*index.search_key, only], texts)
        neighbors = {
            key: _from_bytes(content)
            for key, (kept_depth, content) in self._neighbors.get(keys).items()
            if kept_depth >= top_k
        }
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in neighbors}
        if new:
            vectors = self.embed(index, embed, [*new.values()])
            found = index.search(vectors, depth)
            neighbors |= zip(new, found, strict=True)
            if isinstance(found, PartialAnswer):  # not kept: the next search may have all
                return PartialAnswer((neighbors[key][:top_k] for key in keys), found.missing_shards)
            self._neighbors.put({key: (depth, _to_bytes(neighbors[key])) for key in new})
        return [neighbors[key][:top_k] for key in keys]

    def embed(
        self,
        index: Index,
        embed: Callable[[list[str]], np.ndarray],
        texts: list[str],
        *,
        are_queries: bool = True,
    ) -> np.ndarray:
        """
        Embed texts, but only those whose vectors are not in the cache.

        Args:
            index (`Index`):
                The index with this embedder.
            embed (`Callable`):
                Gives the vectors of texts, float32 of shape `(n, dimension)`.
            texts (`list[str]`):
                At least one.
            are_queries (`bool`, *optional*, defaults to `True`):
                Whether `embed` embeds queries, and not texts of the corpus.

        Returns:
            `np.ndarray`: float32 of shape `(len(texts), dimension)`.
        """
        # by the embedder alone: all its indexes, and parts of them, share the vectors
        keys = _keys(index.embedder if are_queries else [index.embedder, "document"], texts)
        vectors = {
            key: np.frombuffer(content, "<f4")
            for key, (dimension, content) in self._vectors.get(keys).items()
            if len(content) == 4 * dimension
        }
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
        if new:
            vectors |= zip(new, embed([*new.values()]).astype("<f4"), strict=True)
            self._vectors.put({key: (len(vectors[key]), vectors[key].tobytes()) for key in new})
        return np.stack([vectors[key] for key in keys])


def _keys(space: object, texts: list[str]) -> list[bytes]:
    prefix = json.dumps(space, sort_keys=True)
    return [hashlib.sha256(f"{prefix}\n{text}".encode()).digest() for text in texts]


def _to_bytes(pairs: Pairs) -> bytes:
    distances, rows = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(distances, "<f8").tobytes() + np.array(rows, "<i8").tobytes()


def _from_bytes(content: bytes) -> Pairs:
    distances, rows = content[: len(content) // 2], content[len(content) // 2 :]
    return [*zip(np.frombuffer(distances, "<f8").tolist(), np.frombuffer(rows, "<i8").tolist(), strict=True)]
