"""What queries found, kept on disk, so that many runs over the same documents embed and retrieve once."""

import base64
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from huggingface_hub import constants

from tttnn.index.search import DocumentIndex
from tttnn.index.vectors import import_faiss


logger = logging.getLogger(__name__)

DEPTH = 100
Pairs = list[tuple[float, int]]


class NeighborCache:
    """
    Vectors of queries and the rows that they found, in files that only grow.

    Vectors are kept by what describes the embedder, rows by the digest of the index and how it is searched; both by
    the sha256 of the query. A cache gives the rows that are found without one. Of an exact or inverted-file index at
    least 100 are kept, and what was found for one `top_k` serves every smaller one. Other indexes find other rows when
    more are asked for, and are searched for each `top_k`. Several processes may write at once, and a line that a kill
    has cut is passed over. Where nothing can be written, nothing is kept.

    Args:
        folder (`str` or `Path`, *optional*):
            Where the files are; they can be deleted at any time. By default `tttnn/neighbors` in the Hugging Face
            cache.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(constants.HF_HOME) / "tttnn" / "neighbors" if folder is None else Path(folder)
        self._files: dict[Path, dict[str, dict[str, Any]]] = {}
        self._turn = RLock()

    def search(
        self, index: DocumentIndex, embed: Callable[[list[str]], np.ndarray], texts: list[str], top_k: int
    ) -> list[Pairs]:
        """
        Find the nearest rows of each text; embed and search only what is not known.

        Args:
            index (`DocumentIndex`):
                Where to search.
            embed (`Callable`):
                Gives the vectors of texts, float32 of shape `(n, dimension)`.
            texts (`list[str]`):
                Queries.
            top_k (`int`):
                Rows wanted for each.

        Returns:
            `list`: what `DocumentIndex.search` gives.
        """
        with self._turn:
            # deeper than asked for where that changes nothing, so that more neighbors are there for the next run
            depth, only = (max(top_k, DEPTH), None) if _is_prefixed(index) else (top_k, top_k)
            path = self.folder / f"rows-{_name([index.digest, index.nprobe, index.k_factor, only])}.jsonl"
            rows, keys = self._read(path), [_key(text) for text in texts]
            texts_of = dict(zip(keys, texts, strict=True))
            new = [key for key in texts_of if key not in rows or rows[key]["top_k"] < top_k]
            if new:
                vectors = self.embed(index, embed, [texts_of[key] for key in new])
                for key, pairs in zip(new, index.search(vectors, depth), strict=True):
                    self._append(path, {"key": key, "top_k": depth, "found": pairs})
            return [[(distance, row) for distance, row in rows[key]["found"][:top_k]] for key in keys]

    def embed(self, index: DocumentIndex, embed: Callable[[list[str]], np.ndarray], texts: list[str]) -> np.ndarray:
        """
        Embed texts; those only whose vectors are not known.

        Args:
            index (`DocumentIndex`):
                Whose embedder this is.
            embed (`Callable`):
                Gives the vectors of texts, float32 of shape `(n, dimension)`.
            texts (`list[str]`):
                At least one.

        Returns:
            `np.ndarray`: float32 of shape `(len(texts), dimension)`.
        """
        with self._turn:
            # a vector is the same for every index of one embedder, a part of an index included
            path = self.folder / f"vectors-{_name(index.embedder)}.jsonl"
            vectors, keys = self._read(path), [_key(text) for text in texts]
            texts_of = dict(zip(keys, texts, strict=True))
            new = [key for key in texts_of if key not in vectors]
            if new:
                for key, vector in zip(new, embed([texts_of[key] for key in new]), strict=True):
                    encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
                    self._append(path, {"key": key, "top_k": 0, "vector": encoded})
            return np.stack([np.frombuffer(base64.b64decode(vectors[key]["vector"]), "<f4") for key in keys])

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        """Read a file, once."""
        if path not in self._files:
            self._files[path] = {}
            for line in path.read_bytes().splitlines() if path.is_file() else ():
                try:
                    self._keep(path, json.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue  # cut by a kill: found again
        return self._files[path]

    def _keep(self, path: Path, entry: dict[str, Any]) -> None:
        # a process that began earlier may have written fewer rows later
        known = self._files[path].get(entry["key"])
        if known is None or entry["top_k"] > known["top_k"]:
            self._files[path][entry["key"]] = entry

    def _append(self, path: Path, entry: dict[str, Any]) -> None:
        self._keep(path, entry)
        # a line end on both sides parts it from a line that was cut; one write keeps it whole beside other writers
        line = b"\n" + json.dumps(entry).encode() + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.info("What a query found cannot be kept in '%s' for the next time: %s", path, error)


def _is_prefixed(index: DocumentIndex) -> bool:
    """Whether fewer rows are always the first of more: not where some are ranked again, or a graph is walked."""
    faiss = import_faiss()
    # shards are stored alike
    return isinstance(index.shards[0].vectors, faiss.IndexFlat | faiss.IndexIVFFlat)


def _name(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
