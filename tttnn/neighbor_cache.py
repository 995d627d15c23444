"""What queries found, kept on disk, so that many runs over the same documents embed and retrieve once."""

import base64
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import constants

from tttnn.index import DocumentIndex


logger = logging.getLogger(__name__)

DEPTH = 100
Pairs = list[tuple[float, int]]


class NeighborCache:
    """
    Vectors of queries and the rows that they found, in files that only grow.

    Vectors are kept by what describes the embedder, rows by the digest of the index as well; both by the sha256 of the
    query. At least 100 rows are kept of each, and what was found for one `top_k` serves every smaller one. Several
    processes may write at once, and a line that a kill has cut is passed over. Where nothing can be written, nothing
    is kept.

    Args:
        folder (`str` or `Path`, *optional*):
            Where the files are; they can be deleted at any time. By default `tttnn/neighbors` in the Hugging Face
            cache.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(constants.HF_HOME) / "tttnn" / "neighbors" if folder is None else Path(folder)
        self._lines: dict[Path, dict[str, Any]] = {}

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
        rows = self._open(self.folder / f"rows-{index.digest[:32]}.jsonl")
        keys = [_key(text) for text in texts]
        texts_of = dict(zip(keys, texts, strict=True))
        new = [key for key in texts_of if key not in rows or rows[key]["top_k"] < top_k]
        if new:
            vectors = self.embed(index, embed, [texts_of[key] for key in new])
            # deeper than asked for, so that more neighbors, too, are there for the next run
            depth = max(top_k, DEPTH)
            for key, pairs in zip(new, index.search(vectors, depth), strict=True):
                self._append(rows, key, {"top_k": depth, "found": pairs})
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
        # a vector is the same for every index of one embedder, a part of an index included
        embedder = hashlib.sha256(json.dumps(index.embedder, sort_keys=True).encode()).hexdigest()
        vectors = self._open(self.folder / f"vectors-{embedder[:32]}.jsonl")
        texts_of = {_key(text): text for text in texts}
        new = [key for key in texts_of if key not in vectors]
        if new:
            for key, vector in zip(new, embed([texts_of[key] for key in new]), strict=True):
                self._append(vectors, key, {"vector": base64.b64encode(vector.astype("<f4").tobytes()).decode()})
        return np.stack([np.frombuffer(base64.b64decode(vectors[_key(text)]["vector"]), "<f4") for text in texts])

    def _open(self, path: Path) -> dict[str, Any]:
        """Read a file once; the path itself stands in what was read, under the empty key."""
        if path not in self._lines:
            lines: dict[str, Any] = {"": path}
            for line in path.read_bytes().splitlines() if path.is_file() else ():
                try:
                    row = json.loads(line)
                    # a process that began earlier may have written fewer rows later
                    if row["key"] not in lines or row["top_k"] > lines[row["key"]]["top_k"]:
                        lines[row["key"]] = row
                except (ValueError, KeyError, TypeError):
                    continue  # cut by a kill: found again
            self._lines[path] = lines
        return self._lines[path]

    def _append(self, lines: dict[str, Any], key: str, row: dict[str, Any]) -> None:
        lines[key] = row
        path: Path = lines[""]
        # a line end on both sides parts it from a line that was cut; one write keeps it whole beside other writers
        line = b"\n" + json.dumps({"key": key, **row}).encode() + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.info("What a query found cannot be kept in '%s' for the next time: %s", path, error)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
