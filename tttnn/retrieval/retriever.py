"""`NeighborRetriever`: the nearest documents of a text, from an index on disk, on the Hub or in memory."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from huggingface_hub import CommitInfo
from sentence_transformers import SentenceTransformer

from tttnn.documents import as_documents, check_text
from tttnn.embedding import Embedder
from tttnn.errors import InputError, InputTypeError
from tttnn.index import (
    DocumentIndex,
    Index,
    IndexSubset,
    Pairs,
    fetch_index,
    index_in_memory,
    open_index,
    push_index,
    split_into_passages,
    write_index,
)
from tttnn.neighbors import Neighbor, PartialAnswer
from tttnn.retrieval.cache import NeighborCache
from tttnn.retrieval.passages import as_neighbor, nearest_passages


class NeighborRetriever:
    """
    Finds the nearest documents of a text in a Faiss index.

    Open one with `NeighborRetriever.from_pretrained`, or index a few thousand texts with
    `NeighborRetriever.from_documents`.

    Args:
        index (`Index`):
            Vectors and documents.
        embedder (`Embedder`, *optional*):
            Embeds the queries. By default the one that the index names, loaded at the first query.
        cache (`NeighborCache`, *optional*):
            Keeps the vectors and neighbors of queries on disk. By default nothing is kept.
        passage_length (`int`, *optional*):
            Give the best passage of each document that is found in the place of the document: it is cut into passages
            of at most this many tokens of the embedder, and the one nearest to the query becomes the neighbor.
            Documents are found as without it, by their beginnings; then all their passages are embedded. By default
            neighbors are whole documents.

    Raises:
        `ValueError`: If the embedder is not the one that built the index, or `passage_length` is given for an index of
            passages.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3.
    """

    def __init__(
        self,
        index: Index,
        embedder: Embedder | None = None,
        cache: NeighborCache | None = None,
        passage_length: int | None = None,
    ) -> None:
        if passage_length is not None and index.passage_tokens is not None:
            raise InputError(
                f"`passage_length` is {passage_length}, but the rows of the index are passages of "
                f"{index.passage_tokens} tokens already. Leave it out."
            )
        self.index = index
        self.cache = cache
        self.passage_length = passage_length
        self._embedder = embedder
        if embedder is not None:
            embedder.check(index.embedder)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"NeighborRetriever({self.index!r})"

    def describe(self) -> dict[str, Any]:
        """
        Say where neighbors come from: the journal of a run records it.

        Returns:
            `dict[str, Any]`: `index`, the digest that tells this index from any other, `num_indexed`, its rows, and
            `passage_length`.
        """
        return {"index": self.index.digest, "num_indexed": len(self), "passage_length": self.passage_length}

    @property
    def embedder(self) -> Embedder:
        """The embedder of the queries; it is loaded at the first use."""
        if self._embedder is None:
            embedder = Embedder.from_description(self.index.embedder)
            embedder.check(self.index.embedder)
            self._embedder = embedder
        return self._embedder

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str | Path,
        revision: str | None = None,
        *,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        shards: Sequence[int] | None = None,
        texts: str = "local",
        embedder: str | SentenceTransformer | Embedder | None = None,
        verify: bool = False,
        trust_index: bool = False,
        cache: NeighborCache | None = None,
        passage_length: int | None = None,
        cluster: str | None = None,
        replicas: int = 1,
        on_missing: str = "wait",
    ) -> "NeighborRetriever":
        """
        Open an index from a folder or from a dataset repo of the Hub.

        Vectors and texts are memory-mapped, so that an index may be larger than the memory.

        Args:
            repo_id (`str` or `Path`):
                A local folder, or the id of a dataset repo.
            revision (`str`, *optional*):
                Branch, tag or commit of the repo.
            token (`str` or `bool`, *optional*):
                Token for a private repo.
            cache_dir (`str` or `Path`, *optional*):
                Folder of the downloads. By default the Hub's cache.
            local_files_only (`bool`, *optional*, defaults to `False`):
                Whether to use only what is in the Hub's cache.
            shards (`Sequence[int]`, *optional*):
                Numbers of the shards to fetch and open, for example `[0, 3]`; neighbors keep their ids. By
                default all.
            texts (`str`, *optional*, defaults to `"local"`):
                `"local"`, or `"remote"` to leave the texts on the Hub and fetch only those of the neighbors.
            embedder (`str`, `SentenceTransformer` or `Embedder`, *optional*):
                The embedder that built the index, if it now has another name or path. By default the one that the
                index names is loaded at the first query: `tttlm`, a Hub id or an absolute path.
            verify (`bool`, *optional*, defaults to `False`):
                Whether to check the sha256 of every file again. The first open on a machine always does.
            trust_index (`bool`, *optional*, defaults to `False`):
                Whether to let Faiss read files that are of no preset and were built elsewhere: forged, they can crash
                the process.
            cache (`NeighborCache`, *optional*):
                Keeps the vectors and neighbors of queries on disk, for runs over the same documents. By default
                nothing is kept.
            passage_length (`int`, *optional*):
                Give the nearest passage of at most this many tokens of each document that is found. By default
                neighbors are whole documents.
            cluster (`str`, *optional*):
                Search on a Ray cluster, whose address this is: `"auto"`, `"HOST:6379"` or `"local"`. Its machines open
                the shards, each some of them; results are those of this machine alone. By default the index is opened
                here.
            replicas (`int`, *optional*, defaults to `1`):
                On how many machines of the cluster each shard is open.
            on_missing (`str`, *optional*, defaults to `"wait"`):
                What happens if a machine does not answer: `"wait"` for another one to take over, two minutes at most,
                then an error; `"raise"` an error at once; or `"report"`: the answer is without its shards, and says
                so (`PartialAnswer`).

        Returns:
            `NeighborRetriever`: ready to retrieve.

        Raises:
            `FileNotFoundError`: If there is no index, or it is not in the Hub's cache and the Hub may not be asked.
            `ConnectionError`: If the Hub or a machine of the cluster cannot be reached or fails, after some tries.
            `HfHubHTTPError`: If the Hub refuses: an unknown repo, or a token without access.
            `ValueError`: If a file is damaged, there is no such shard, the embedder is not the one that built the
                index, `passage_length` is given for an index of passages, or the machines of the cluster do not see
                the index.
            `RuntimeError`: If there is no cluster at the address.
            `ImportError`: If Ray is missing.
        """
        if cluster is not None:
            from tttnn.cluster import open_on_cluster

            index: Index = open_on_cluster(
                cluster,
                repo_id,
                revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                shards=shards,
                texts=texts,
                trust_index=trust_index,
                replicas=replicas,
                on_missing=on_missing,
            )
            return cls(index, _as_embedder(index, embedder), cache, passage_length)
        if replicas != 1 or on_missing != "wait":
            raise InputError("`replicas` and `on_missing` are for a cluster. Pass `cluster`, or leave them out.")
        folder, open_texts = fetch_index(
            repo_id,
            revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            shards=shards,
            texts=texts,
        )
        index = open_index(folder, verify=verify, shards=shards, open_texts=open_texts, trust_index=trust_index)
        if folder != Path(repo_id).expanduser():
            index.source = f"{repo_id}@{revision or 'main'}"
        return cls(index, _as_embedder(index, embedder), cache, passage_length)

    def subset(self, fraction: float, seed: int = 0) -> "NeighborRetriever":
        """
        Draw a random part of the documents, to see what a smaller corpus would give.

        Args:
            fraction (`float`):
                The share of the documents, above 0 and at most 1. A smaller share is part of a larger one.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the random draw.

        Returns:
            `NeighborRetriever`: over that part, with the same rows, embedder and cache.

        Raises:
            `ValueError`: If the fraction is out of range, or leaves no document.
            `TypeError`: If this process has not opened the index itself.
        """
        index = IndexSubset(self._shards_here(), fraction, seed)
        return NeighborRetriever(index, self.embedder, self.cache, self.passage_length)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Any],
        embedder: str | SentenceTransformer | Embedder,
        text_column: str = "text",
        *,
        id_column: str | None = None,
        passage_tokens: int | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> "NeighborRetriever":
        """
        Embed and index a few thousand documents in memory.

        For a larger corpus run `tttnn build-index`, which writes shard by shard.

        Args:
            documents (`Iterable`):
                A `datasets.Dataset`, or texts, rows (`dict`) or `Document` items.
            embedder (`str`, `SentenceTransformer` or `Embedder`):
                Embeds the documents and the queries.
            text_column (`str`, *optional*, defaults to `"text"`):
                The field of a row with the text.
            id_column (`str`, *optional*):
                The field of a row with its id. By default `id`, or the row's position if it has none.
            passage_tokens (`int`, *optional*):
                Index passages of at most this number of the embedder's tokens. By default whole documents are rows,
                and the embedder reads the beginning of each.
            batch_size (`int`, *optional*):
                Texts in one forward pass. By default `Embedder.default_batch_size`.
            show_progress_bar (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.

        Returns:
            `NeighborRetriever`: over these documents; `retriever.save_pretrained(folder)` saves it.

        Raises:
            `ValueError`: If there is no document, or one cannot be encoded.
            `TypeError`: If a text is not a string.
        """
        if not isinstance(embedder, Embedder):
            embedder = Embedder(embedder)
        rows = as_documents(documents, text_column, id_column)
        index = index_in_memory(
            rows, embedder, passage_tokens, batch_size=batch_size, show_progress_bar=show_progress_bar
        )
        return cls(index, embedder)

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """
        Write the index in the layout that `from_pretrained` opens.

        Args:
            save_directory (`str` or `Path`):
                A new or empty folder.

        Returns:
            `Path`: the folder.

        Raises:
            `FileExistsError`: If the folder exists and is not empty.
            `ValueError`: If this is a part of an index, drawn by `subset` or opened with `shards`.
            `TypeError`: If this process has not opened the index itself.
            `FileNotFoundError`: If its texts were left on the Hub.
        """
        return write_index(self._shards_here(), save_directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
    ) -> CommitInfo:
        """
        Upload the index to a dataset repo of the Hub, with a card; an interrupted upload resumes at the next call.

        Args:
            repo_id (`str`):
                The id of the repo; it is created if it does not exist.
            private (`bool`, *optional*):
                Whether a new repo is private. By default the user's or organization's setting.
            token (`str` or `bool`, *optional*):
                Token with the right to write. By default the saved one.
            revision (`str`, *optional*):
                Branch to push to; it is created if it does not exist. By default `main`.
            commit_message (`str`, *optional*):
                Message of the commit. By default `Upload index`.
            license (`str`, *optional*):
                The license of the corpus, by its name on the Hub. By default that of the earlier card, or `unknown`.

        Returns:
            `CommitInfo`: the commit.

        Raises:
            `ValueError`: If this is a part of an index, drawn by `subset` or opened with `shards`.
            `TypeError`: If this process has not opened the index itself.
            `FileNotFoundError`: If not all of its files were fetched.
            `ConnectionError`: If the Hub cannot be reached or fails, after six tries.
            `HfHubHTTPError`: If the Hub refuses: a token without the right to write.
        """
        index = self._shards_here()
        index.check_whole()
        push = partial(
            push_index,
            repo_id=repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            license=license,
        )
        if index.folder is not None:
            return push(index.folder)
        with TemporaryDirectory() as folder:
            return push(write_index(index, Path(folder) / "index"))

    def _shards_here(self) -> DocumentIndex:
        """Give the index as shards that are open in this process: only such an index is saved or divided."""
        if not isinstance(self.index, DocumentIndex):
            raise InputTypeError(
                f"The retriever searches an index of the type {type(self.index).__name__}. Only an index that this "
                "process has opened can be saved, pushed or divided. Open it with `NeighborRetriever.from_pretrained`."
            )
        return self.index

    def retrieve(self, texts: list[str], top_k: int = 50) -> list[list[Neighbor]]:
        """
        Find the nearest corpus documents of each text.

        Args:
            texts (`list[str]`):
                Query texts, embedded in batches. The embedder truncates each to its `max_seq_length` tokens, and reads
                an empty one as one space.
            top_k (`int`, *optional*, defaults to `50`):
                Candidates fetched per text.

        Returns:
            `list[list[Neighbor]]`: in the order of `texts`, each with at most `top_k` neighbors, nearest first; a
            `PartialAnswer` with the missing shards if `on_missing` is `"report"` and machines did not answer. Equal
            distances are in the order of rows. `distance` is squared L2. With `passage_length` both are those of
            passages, and their metadata has the `passage`, its `start_line` and its `end_line`.

        Raises:
            `ValueError`: If `top_k` exceeds the number of indexed documents or is not positive.
            `ValueError`: If a text contains a lone surrogate.
            `TypeError`: If `texts` is a single string, or an item is not a string.

        Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3.
        """
        if isinstance(texts, str):
            raise InputTypeError("`texts` is one string, but a list is needed. Pass `[text]`.")
        self.prepare(top_k)
        texts = [check_text(text, f"row {row}") for row, text in enumerate(texts)]
        if self.cache is None:
            results = self.index.search(self.embedder.encode_query(texts), top_k)
        else:
            results = self.cache.search(self.index, self.embedder.encode_query, texts, top_k)
        neighbors = self._neighbors_of(texts, results)
        return PartialAnswer(neighbors, results.missing_shards) if isinstance(results, PartialAnswer) else neighbors

    def _neighbors_of(self, texts: list[str], results: list[Pairs]) -> list[list[Neighbor]]:
        """Fetch the documents of rows that were found, or their nearest passages."""
        rows = list(dict.fromkeys(row for pairs in results for _, row in pairs))
        documents = dict(zip(rows, self.index.documents(rows), strict=True))
        if self.passage_length is None:
            return [[as_neighbor(distance, row, documents[row]) for distance, row in pairs] for pairs in results]
        passages = {
            row: [*split_into_passages([document], self.embedder, self.passage_length)]
            for row, document in documents.items()
        }
        found = [[row for _, row in pairs] for pairs in results]
        return nearest_passages(found, passages, self._embed_queries(texts), self._embed_documents) if texts else []

    def random_distances(self, texts: list[str], per_text: int = 20, seed: int = 0) -> list[float]:
        """
        Measure how far texts lie from random documents, to compare the distances of their neighbors with.

        Args:
            texts (`list[str]`):
                Query texts, at least one.
            per_text (`int`, *optional*, defaults to `20`):
                Documents drawn for each text, with replacement.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the random draws.

        Returns:
            `list[float]`: squared L2 distances, `per_text` for each text, in the order of `texts`.
        """
        queries = self._embed_queries(texts)
        generator = np.random.default_rng(seed)
        distances: list[float] = []
        for query in queries:
            rows = [self.index.row_at(int(place)) for place in generator.integers(len(self), size=per_text)]
            distances += [float(np.square(query - vector).sum()) for vector in self.index.vectors(rows)]
        return distances

    def _embed_queries(self, texts: list[str]) -> np.ndarray:
        if self.cache is None:
            return self.embedder.encode_query(texts)
        return self.cache.embed(self.index, self.embedder.encode_query, texts)

    def _embed_documents(self, texts: list[str]) -> np.ndarray:
        if self.cache is None:
            return self.embedder.encode_document(texts)
        return self.cache.embed(self.index, self.embedder.encode_document, texts, are_queries=False)

    def vectors(self, query: str, neighbors: list[Neighbor]) -> tuple[np.ndarray, np.ndarray]:
        """
        Give the vectors of a query and of its neighbors, for selectors that compare neighbors with each other.

        They come from the index if it stores them as they are (`flat`, `ivf`) or in half precision (`scale`, which
        ranks by these). Where the index keeps only what a compression has left, or a neighbor is a passage of what is
        indexed, the texts of the neighbors are embedded.

        Args:
            query (`str`):
                A query.
            neighbors (`list[Neighbor]`):
                Neighbors that `retrieve` gave; may be none.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: float32 of shape `(dimension,)` and `(len(neighbors), dimension)`.

        Raises:
            `IndexError`: If a neighbor is of no open shard.
        """
        (embedded,) = self._embed_queries([check_text(query, "`query`")])
        if not neighbors:
            return embedded, np.empty((0, len(embedded)), np.float32)
        if self.index.keeps_vectors and self.passage_length is None:
            return embedded, self.index.vectors([neighbor.id for neighbor in neighbors])
        return embedded, self._embed_documents([neighbor.text for neighbor in neighbors])

    def prepare(self, top_k: int) -> None:
        """
        Load the embedder and check that the index is large enough, before the first query.

        Args:
            top_k (`int`):
                Candidates that will be fetched per text.

        Raises:
            `ValueError`: If `top_k` exceeds the number of indexed documents, the index names its embedder by a
                relative path, its name now gives another embedder, or it does not read `passage_length` tokens.
            `RuntimeError`: If the embedder cannot be loaded.
        """
        if not 1 <= top_k <= len(self):
            raise InputError(
                f"`top_k` is {top_k}, but the index holds {len(self)} documents. Pass at least 1 and at most "
                f"{len(self)}; by default it follows from `num_neighbors`."
            )
        _ = self.embedder
        if self.passage_length is not None:
            [*split_into_passages([], self.embedder, self.passage_length)]  # no document, but the length is checked


def _as_embedder(index: Index, embedder: str | SentenceTransformer | Embedder | None) -> Embedder | None:
    """Load an embedder that was passed in the place of the one that the index names."""
    if embedder is None or isinstance(embedder, Embedder):
        return embedder
    return Embedder.from_description(index.embedder, embedder)
