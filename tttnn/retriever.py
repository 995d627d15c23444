"""`NeighborRetriever`: the nearest documents of a text, from an index on disk, on the Hub or in memory."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer

from tttnn.corpus import HUB_ID, as_documents, check_text
from tttnn.embedding import Embedder
from tttnn.index import MANIFEST, DocumentIndex, build_shards, open_index, write_index
from tttnn.neighbor_cache import NeighborCache
from tttnn.subset import IndexSubset


@dataclass(frozen=True)
class Neighbor:
    """
    A document of the corpus that lies near a query.

    Args:
        id (`int`):
            Its row in the whole index.
        text (`str`):
            Its text.
        distance (`float`):
            Squared L2 distance to the query.
        metadata (`dict[str, Any]`, *optional*):
            The document's own `id`, its `source` and what else its row held.
    """

    id: int
    text: str
    distance: float
    metadata: dict[str, Any] = field(default_factory=dict)


class Retriever(Protocol):
    """What `TestTimeTrainer` needs of a retriever; `NeighborRetriever` is one."""

    def retrieve(self, texts: list[str], top_k: int) -> list[list[Neighbor]]:
        """
        Find the nearest corpus documents of each text.

        Args:
            texts (`list[str]`):
                Query texts.
            top_k (`int`):
                Candidates wanted per text; fewer are legal.

        Returns:
            `list[list[Neighbor]]`: in the order of `texts`, each nearest first.
        """
        ...


def as_neighbors(neighbors: Sequence[Neighbor | str]) -> list[Neighbor]:
    """
    Make neighbors of texts that were found elsewhere.

    Args:
        neighbors (`Sequence[Neighbor]` or `Sequence[str]`):
            Neighbors, or texts; a text gets its position for an id, and a distance of NaN.

    Returns:
        `list[Neighbor]`: in the same order.

    Raises:
        `TypeError`: If one string is given, or a text is not a string.
        `ValueError`: If a text holds a lone surrogate.
    """
    if isinstance(neighbors, str):
        raise TypeError("`neighbors` is one string, but a list is needed. Pass `[text]`.")
    found = [item if isinstance(item, Neighbor) else Neighbor(row, item, nan) for row, item in enumerate(neighbors)]
    for neighbor in found:
        check_text(neighbor.text, f"neighbor {neighbor.id}")
    return found


class NeighborRetriever:
    """
    Finds the nearest documents of a text in a Faiss index.

    Open one with `NeighborRetriever.from_pretrained`, or make one of a few thousand texts with
    `NeighborRetriever.from_documents`.

    Args:
        index (`DocumentIndex`):
            Vectors and documents.
        embedder (`Embedder`, *optional*):
            Embeds the queries. By default the one that built the index, loaded at the first query.
        cache (`NeighborCache`, *optional*):
            Keeps on disk what queries found. By default nothing is kept.

    Raises:
        `ValueError`: If the embedder is not the one that built the index.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3.
    """

    def __init__(
        self, index: DocumentIndex, embedder: Embedder | None = None, cache: NeighborCache | None = None
    ) -> None:
        self.index = index
        self.cache = cache
        self._embedder = embedder
        if embedder is not None:
            embedder.check(index.embedder)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def embedder(self) -> Embedder:
        """The embedder of the queries, loaded when it is first needed."""
        if self._embedder is None:
            built = self.index.embedder
            try:
                embedder = Embedder(built["name"], built["revision"], built["max_seq_length"])
            except (OSError, ValueError) as error:
                raise RuntimeError(
                    f"The index was built with the embedder '{built['name']}', which cannot be loaded here ({error}). "
                    "Pass it: `NeighborRetriever.from_pretrained(..., embedder=...)`."
                ) from error
            embedder.check(built)
            self._embedder = embedder
        return self._embedder

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        embedder: str | SentenceTransformer | Embedder | None = None,
        verify: bool = False,
        cache: NeighborCache | None = None,
    ) -> "NeighborRetriever":
        """
        Open an index from a folder or from a dataset repo of the Hub.

        The vectors and texts are memory-mapped: opening costs no memory in proportion to the index.

        Args:
            repo_id (`str` or `Path`):
                A local folder, or the id of a dataset repo.
            revision (`str`, *optional*):
                Branch, tag or commit of the repo.
            token (`str` or `bool`, *optional*):
                Token for a private repo.
            cache_dir (`str` or `Path`, *optional*):
                Where downloads are kept. By default the Hub cache.
            local_files_only (`bool`, *optional*, defaults to `False`):
                Whether to use the Hub cache only.
            embedder (`str`, `SentenceTransformer` or `Embedder`, *optional*):
                The embedder that built the index, where it now has another name or path.
            verify (`bool`, *optional*, defaults to `False`):
                Whether to hash every file again. The first open on a machine does so in any case.
            cache (`NeighborCache`, *optional*):
                Keeps on disk what queries found, for runs over the same documents. By default nothing is kept.

        Returns:
            `NeighborRetriever`: ready to retrieve.

        Raises:
            `FileNotFoundError`: If there is no index.
            `ValueError`: If a file is damaged, or the embedder is not the one that built the index.
        """
        folder = _local_folder(repo_id, revision, token, cache_dir, local_files_only)
        index = open_index(folder, verify=verify)
        if embedder is not None and not isinstance(embedder, Embedder):
            # a loaded model is checked as it is; one that is loaded here reads as many tokens as the index's own
            loaded = isinstance(embedder, SentenceTransformer)
            embedder = Embedder(embedder, max_seq_length=None if loaded else index.embedder["max_seq_length"])
        return cls(index, embedder, cache)

    def subset(self, fraction: float, seed: int = 0) -> "NeighborRetriever":
        """
        Draw a part of the documents at random, to see what a smaller corpus would give.

        Args:
            fraction (`float`):
                The share of the documents, above 0 and at most 1. Smaller shares lie within larger ones.
            seed (`int`, *optional*, defaults to `0`):
                Of the draw.

        Returns:
            `NeighborRetriever`: over that part, with the same rows, embedder and cache.

        Raises:
            `ValueError`: If the fraction is out of range, or leaves no document.
        """
        return NeighborRetriever(IndexSubset(self.index, fraction, seed), self.embedder, self.cache)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Any],
        embedder: str | SentenceTransformer | Embedder,
        text_column: str = "text",
        id_column: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> "NeighborRetriever":
        """
        Embed and index a few thousand documents in memory.

        For a larger corpus run `tttnn build-index`, which writes shard by shard.

        Args:
            documents (`Iterable`):
                A `datasets.Dataset`, or texts, rows (`dict`) or `Document` items.
            embedder (`str`, `SentenceTransformer` or `Embedder`):
                Embeds the documents, and later the queries.
            text_column (`str`, *optional*, defaults to `"text"`):
                The field of a row with the text.
            id_column (`str`, *optional*):
                The field of a row with its id. By default `id`, or else its position.
            batch_size (`int`, *optional*, defaults to `32`):
                Texts in one forward pass.
            show_progress_bar (`bool`, *optional*, defaults to `False`):
                Whether to show one.

        Returns:
            `NeighborRetriever`: `retriever.save_pretrained(folder)` keeps it.

        Raises:
            `ValueError`: If there is no document, or one cannot be encoded.
            `TypeError`: If a text is not a string.
        """
        if not isinstance(embedder, Embedder):
            embedder = Embedder(embedder)
        rows = list(as_documents(documents, text_column, id_column))
        shards = list(build_shards(rows, embedder, max(len(rows), 1), batch_size, show_progress_bar))
        described = embedder.describe()
        digest = hashlib.sha256(json.dumps(described).encode())
        for row in rows:
            digest.update(json.dumps([row.id, row.text, row.metadata], default=str).encode())
        return cls(DocumentIndex(shards, described, digest.hexdigest()), embedder)

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """
        Write the index in the layout that `from_pretrained` opens.

        Args:
            save_directory (`str` or `Path`):
                A new or empty folder.

        Returns:
            `Path`: the folder.

        Raises:
            `FileExistsError`: If the folder is there and not empty.
            `ValueError`: If this is a part of an index.
        """
        if isinstance(self.index, IndexSubset):
            raise ValueError("This is a part of an index, drawn by `subset`. Save the whole one.")
        return write_index(self.index.shards, self.index.embedder, save_directory)

    def retrieve(self, texts: list[str], top_k: int = 50) -> list[list[Neighbor]]:
        """
        Find the nearest corpus documents of each text.

        Args:
            texts (`list[str]`):
                Query texts, embedded in batches; the embedder truncates each to its `max_seq_length` tokens, and an
                empty one counts as one space.
            top_k (`int`, *optional*, defaults to `50`):
                Candidates fetched per text.

        Returns:
            `list[list[Neighbor]]`: in the order of `texts`, each with at most `top_k` neighbors, nearest first, equal
            distances by row. `distance` is squared L2.

        Raises:
            `ValueError`: If `top_k` exceeds the number of indexed documents or is not positive.
            `TypeError`: If `texts` is a single string, or an item is not a string.

        Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3.
        """
        if isinstance(texts, str):
            raise TypeError("`texts` is one string, but a list is needed. Pass `[text]`.")
        self.prepare(top_k)
        if self.cache is None:
            found = self.index.search(self.embedder.encode(list(texts)), top_k)
        else:
            found = self.cache.search(self.index, self.embedder.encode, list(texts), top_k)
        return [[self._neighbor(distance, row) for distance, row in pairs] for pairs in found]

    def prepare(self, top_k: int) -> None:
        """
        Load the embedder, and make sure that the index is large enough, before the first query.

        Args:
            top_k (`int`):
                Candidates that will be fetched per text.

        Raises:
            `ValueError`: If `top_k` exceeds the number of indexed documents.
            `RuntimeError`: If the embedder cannot be loaded.
        """
        if not 1 <= top_k <= len(self):
            raise ValueError(
                f"`top_k` is {top_k}, but the index holds {len(self)} documents. Pass at least 1 and at most "
                f"{len(self)}; where it is left open, it follows from `num_neighbors`."
            )
        _ = self.embedder

    def _neighbor(self, distance: float, row: int) -> Neighbor:
        document = self.index.document(row)
        return Neighbor(row, document.text, distance, {**document.metadata, "id": document.id})


def _local_folder(
    repo_id: str | Path,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """Give the folder of an index, downloaded if it lies on the Hub."""
    folder = Path(repo_id).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(repo_id, Path) or folder.exists() or not HUB_ID.fullmatch(repo_id):
        raise FileNotFoundError(
            f"There is no folder '{repo_id}', and an id on the Hub reads 'user/name'. Check the path."
        )
    downloaded = snapshot_download(
        str(repo_id),
        repo_type="dataset",
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        allow_patterns=[MANIFEST, "index/*", "texts/*"],
    )
    return Path(downloaded)
