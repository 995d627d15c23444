"""Some shards of an index, open in one process of a cluster: what an actor of Ray runs."""

import os
import socket
from dataclasses import dataclass
from importlib.metadata import version
from threading import Lock
from typing import Any

import numpy as np

from tttnn.cluster.connection import import_ray
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.index import Candidates, DocumentIndex, fetch_index, find_candidates, open_index


@dataclass(frozen=True)
class Source:
    """
    Where the processes of a cluster find an index.

    Args:
        repo_id (`str`):
            The id of a dataset repo, or a folder that all machines see.
        revision (`str`, *optional*):
            A commit of the repo.
        options (`dict[str, Any]`):
            Other arguments of `fetch_index`: `token`, `cache_dir`, `local_files_only`, `texts`.
        trust_index (`bool`):
            As in `open_index`.
    """

    repo_id: str
    revision: str | None
    options: dict[str, Any]
    trust_index: bool = False


class ShardGroup:
    """
    Some shards of an index.

    Nothing is opened when it is made: an actor whose making fails is gone, and nobody hears why.

    Args:
        source (`Source`):
            Where the index is.
        shards (`list[int]`):
            Their numbers.
        digest (`str`):
            What `open_index` makes of them.
        num_threads (`int`):
            Of a search.
    """

    def __init__(self, source: Source, shards: list[int], digest: str, num_threads: int) -> None:
        self.source = source
        self.shards = shards
        self.digest = digest
        self.num_threads = num_threads
        self._index: DocumentIndex | None = None
        self._opening = Lock()

    @property
    def index(self) -> DocumentIndex:
        """The open shards; opened, and fetched where they are not on this machine, at the first use."""
        with self._opening:  # several jobs may ask at once
            if self._index is None:
                self._index = self._open()
                import faiss  # after the index, which says what to install if it is missing

                faiss.omp_set_num_threads(self.num_threads)
            return self._index

    def _open(self) -> DocumentIndex:
        source, here = self.source, socket.gethostname()
        try:
            folder, open_texts = fetch_index(source.repo_id, source.revision, shards=self.shards, **source.options)
            index = open_index(folder, shards=self.shards, open_texts=open_texts, trust_index=source.trust_index)
        except FileNotFoundError as error:
            raise InputError(
                f"The machine {here} does not see the shards {self.shards} of '{source.repo_id}' ({error}). Put the "
                "index on a folder that all machines share, or on the Hub."
            ) from error
        if index.digest != self.digest:
            raise InputError(
                f"The machine {here} has another version of '{source.repo_id}'. Bring all machines to the same one, "
                "or name a revision of the Hub."
            )
        return index

    def place(self) -> tuple[list[int], str, int, str]:
        """Say which shards these are, and where: the machine, the process and the node of Ray."""
        node = import_ray().get_runtime_context().get_node_id()
        return self.shards, socket.gethostname(), os.getpid(), node

    def describe(self) -> dict[str, Any]:
        """Open the shards, and say what they are."""
        index = self.index
        return {
            "rows": len(index),
            "keeps_vectors": index.keeps_vectors,
            "is_prefixed": index.is_prefixed,
            "version": version("tttnn"),
            "host": socket.gethostname(),
            "node": import_ray().get_runtime_context().get_node_id(),
        }

    def find(self, queries: np.ndarray, depth: int, nprobe: int | None) -> Candidates:
        """Find rows near to queries."""
        return find_candidates(self.index.shards, queries, depth, nprobe)

    def documents(self, rows: list[int]) -> list[Document]:
        """Give the documents of rows that are here."""
        return self.index.documents(rows)

    def vectors(self, rows: list[int]) -> np.ndarray:
        """Give the vectors of rows that are here."""
        return self.index.vectors(rows)
