"""An index of document vectors: its shards, searched as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.index.manifest import read_manifest
from tttnn.index.products import FEWEST_QUERIES, search_by_products
from tttnn.index.rows import RowRanges
from tttnn.index.shard import Shard, blocks, nearest
from tttnn.index.texts import fetch_places


Pairs = list[tuple[float, int]]
"""The squared L2 distances and rows that a query found, nearest first."""


class Index(Protocol):
    """
    What `NeighborRetriever` searches: a whole index, a part of one, or one on many machines.

    `embedder` is what `Embedder.describe` gave when it was built, and `digest` tells it from any other index. `source`
    says to people where it is.
    """

    embedder: dict[str, Any]
    digest: str
    source: str
    passage_tokens: int | None  # most tokens of a passage, where rows are passages

    @property
    def keeps_vectors(self) -> bool:
        """Whether `vectors` gives those that distances are measured by, not what a compression has left of them."""

    @property
    def search_key(self) -> list[Any]:
        """What the rows that a search finds depend on, beside query and `top_k`; JSON-able, for a cache of them."""

    @property
    def is_prefixed(self) -> bool:
        """Whether a search for fewer rows always finds the first ones of a search for more."""

    def __len__(self) -> int:
        """Give the number of rows."""

    def search(self, queries: np.ndarray, top_k: int) -> list[Pairs]:
        """Find at most `top_k` pairs of squared L2 distance and row for each query, nearest first."""

    def documents(self, rows: Sequence[int]) -> list[Document]:
        """Give the documents of rows, in their order."""

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Give the vectors of rows, float32 of shape `(n, dimension)`, as exactly as they are stored."""

    def row_at(self, place: int) -> int:
        """Give the number of a row by its place, below `len`, among the rows that are here."""


class DocumentIndex:
    """
    Shards of document vectors, searched as one.

    Args:
        shards (`Sequence[Shard]`):
            In the order of their rows; those between them may be closed.
        embedder (`dict[str, Any]`):
            What `Embedder.describe` said of the embedder that made the vectors.
        digest (`str`):
            What tells the index from another: of its manifest and the open shards, or of its texts if it is in memory.
        search (`dict[str, int]`, *optional*):
            `nprobe`, the inverted lists that are looked into, and `k_factor`, the candidates that are ranked again for
            each row that is asked for; each where the vectors are stored so.
        folder (`Path`, *optional*):
            Where its files are; none if it is in memory.
        passage_tokens (`int`, *optional*):
            Most tokens of a passage, where rows are passages.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        embedder: dict[str, Any],
        digest: str,
        search: dict[str, int] | None = None,
        folder: Path | None = None,
        passage_tokens: int | None = None,
    ) -> None:
        self.shards = shards
        self.rows = RowRanges([(shard.start, len(shard)) for shard in shards])
        self.embedder = embedder
        self.digest = digest
        self.folder = folder
        self.source = "memory" if folder is None else str(folder)
        self.passage_tokens = passage_tokens
        self.set_search(search or {})

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(rows={len(self)}, shards={len(self.shards)}, "
            f"storage='{type(self.shards[0].vectors).__name__}', embedder='{self.embedder['name']}', "
            f"source='{self.source}')"
        )

    def set_search(self, search: dict[str, int]) -> None:
        """
        Set how thoroughly it is searched.

        Args:
            search (`dict[str, int]`):
                `nprobe` and `k_factor`.
        """
        self.nprobe, self.k_factor = search.get("nprobe"), search.get("k_factor", 1)

    def row_at(self, place: int) -> int:
        """
        Give the number of a row by its place among the rows of the open shards.

        Args:
            place (`int`):
                Below `len(index)`.

        Returns:
            `int`: the row of the whole index; the same number where all shards are open.
        """
        return self.rows.row_at(place)

    def documents(self, rows: Sequence[int]) -> list[Document]:
        """
        Fetch the documents of rows, those that stay on the Hub many at a time.

        Args:
            rows (`Sequence[int]`):
                Rows of the whole index.

        Returns:
            `list[Document]`: in the order of `rows`.

        Raises:
            `IndexError`: If no open shard has a row.
            `ConnectionError`: If the texts are on the Hub, and it does not serve.
            `ValueError`: If a text is damaged.
        """
        places = {row: self._place_of(row) for row in dict.fromkeys(rows)}
        documents = fetch_places([(shard.documents, place) for shard, place in places.values()])
        by_row = dict(zip(places, documents, strict=True))
        return [by_row[row] for row in rows]

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """
        Give the vectors of rows.

        Args:
            rows (`Sequence[int]`):
                Rows of the whole index, at least one.

        Returns:
            `np.ndarray`: float32 of shape `(len(rows), dimension)`, as exactly as they are stored.

        Raises:
            `IndexError`: If no open shard has a row.
        """
        return np.concatenate([shard.vectors_of([place]) for shard, place in map(self._place_of, rows)])

    def _place_of(self, row: int) -> tuple[Shard, int]:
        """Find the shard of a row, and the row's place in it."""
        number, place = self.rows.find(row)
        return self.shards[number], place

    def search(self, queries: np.ndarray, top_k: int) -> list[Pairs]:
        """
        Find the nearest rows of each query.

        Args:
            queries (`np.ndarray`):
                float32 of shape `(n, dimension)`.
            top_k (`int`):
                Rows wanted for each query.

        Returns:
            `list[list[tuple[float, int]]]`: for each query at most `top_k` pairs of squared L2 distance and row of the
            whole index, nearest first, equal distances by row.
        """
        return search_shards(self.shards, queries, top_k, self.nprobe, [self.k_factor])[0]

    @property
    def search_key(self) -> list[Any]:
        """What the rows that a search finds depend on, beside query and `top_k`."""
        return [self.digest, self.nprobe, self.k_factor]

    @property
    def is_prefixed(self) -> bool:
        """Whether fewer rows are always the first of more: not if some are ranked again, or a graph is walked."""
        return self.shards[0].is_plain  # shards are stored alike

    def check_whole(self) -> None:
        """
        Make sure that all of the index is here, as it must be to save it.

        Raises:
            `ValueError`: If it is a part that was drawn, or some of its shards are not open.
        """
        if self.folder is not None:
            opened, there = len(self.shards), len(read_manifest(self.folder).shards)
            if opened < there:
                raise InputError(
                    f"Only {opened} of the {there} shards of '{self.folder}' are open, and only a whole index can be "
                    "saved. Open all of them: `from_pretrained` without `shards`."
                )

    @property
    def keeps_vectors(self) -> bool:
        """Whether `vectors` gives those that distances are measured by, not what a compression has left of them."""
        return self.shards[0].keeps_vectors


class Candidates(NamedTuple):
    """
    Rows near to each query, from some shards of an index: arrays of shape `(queries, depth)`, padded with the row -1.

    Args:
        distances (`np.ndarray`):
            By which rows were found; they are ordered by them.
        rows (`np.ndarray`):
            Of the whole index.
        measured (`np.ndarray`, *optional*):
            Distances by the vectors that are stored whole, where rows were found among compressed ones.
    """

    distances: np.ndarray
    rows: np.ndarray
    measured: np.ndarray | None


def search_shards(
    shards: Sequence[Shard],
    queries: np.ndarray,
    top_k: int,
    nprobe: int | None = None,
    k_factors: Sequence[int] = (1,),
    masks: Sequence[np.ndarray] | None = None,
) -> list[list[Pairs]]:
    """
    Search shards as one, with each of several `k_factor`; candidates are looked for once.

    A shard is opened by being asked for: each is asked for in turn, so that a sequence may keep one open at a time.
    `masks` says for each shard which of its places are searched.
    """
    if len(queries) == 0:
        return [[] for _ in k_factors]
    return merge_candidates(
        [find_candidates(shards, queries, top_k * max(k_factors), nprobe, masks)], top_k, k_factors
    )


def merge_candidates(groups: Sequence[Candidates], top_k: int, k_factors: Sequence[int] = (1,)) -> list[list[Pairs]]:
    """
    Choose the nearest rows among candidates of groups of shards, as a search of all of them at once does.

    Args:
        groups (`Sequence[Candidates]`):
            Each found to the depth `top_k * max(k_factors)`.
        top_k (`int`):
            Rows wanted for each query.
        k_factors (`Sequence[int]`, *optional*, defaults to `(1,)`):
            Candidates that are ranked again for each row that is wanted.

    Returns:
        `list[list[list[tuple[float, int]]]]`: for each factor, what `Index.search` gives.
    """
    distances = np.hstack([group.distances for group in groups])
    rows = np.hstack([group.rows for group in groups])
    order = np.lexsort((rows, distances, rows < 0))[:, : top_k * max(k_factors)]
    lines = np.arange(len(rows))[:, None]
    ranked = np.hstack([distances if measured is None else measured for distances, _, measured in groups])
    distances, rows = ranked[lines, order], rows[lines, order]
    results = []
    for depth in (top_k * k_factor for k_factor in k_factors):
        near, near_rows = nearest(distances[:, :depth], rows[:, :depth], top_k)
        found = zip(near.tolist(), near_rows.tolist(), strict=True)
        results.append([[pair for pair in zip(*line, strict=True) if pair[1] >= 0] for line in found])
    return results


def find_candidates(
    shards: Sequence[Shard],
    queries: np.ndarray,
    depth: int,
    nprobe: int | None,
    masks: Sequence[np.ndarray] | None = None,
) -> Candidates:
    """
    Find rows of each query; each shard is read once, and once more where rows are measured again.

    Args:
        shards (`Sequence[Shard]`):
            Of one index.
        queries (`np.ndarray`):
            float32 of shape `(n, dimension)`, at least one.
        depth (`int`):
            Rows wanted for each query.
        nprobe (`int`, *optional*):
            Inverted lists to look into.
        masks (`Sequence[np.ndarray]`, *optional*):
            For each shard, which of its places are searched.

    Returns:
        `Candidates`: nearest first.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    parts = blocks(queries)
    # all shards are divided by the same centroids: the lists to look into are found once
    lists = [shards[0].near_lists(part, nprobe) for part in parts]
    distances, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for number, shard in enumerate(shards):
        asked, mask = (min(depth, len(shard)), nprobe), None if masks is None else masks[number]
        if shard.is_flat and len(queries) >= FEWEST_QUERIES:
            near, places = _search_flat(shard, queries, asked[0], mask)
        else:
            results = [shard.search(part, *asked, near, mask) for part, near in zip(parts, lists, strict=True)]
            near, places = (np.concatenate(each) for each in zip(*results, strict=True))
        if places.max() >= len(shard):
            raise InputError(
                f"The shard that begins at row {shard.start} has {len(shard)} rows, but names its row "
                f"{places.max()}: it is damaged. Fetch or rebuild the index."
            )
        # an inverted-file index pads with -1 where its probed lists hold too few rows
        places[places >= 0] += shard.start
        distances, rows = nearest(np.hstack([distances, near]), np.hstack([rows, places]), depth)
    if shards[0].exact is None:
        return Candidates(distances, rows, None)
    measured = np.full(rows.shape, np.inf, np.float32)
    for shard in shards:
        shard.measure(queries, rows, measured)
    return Candidates(distances, rows, measured)


def _search_flat(
    shard: Shard, queries: np.ndarray, depth: int, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Search vectors that are stored as they are for many queries at once, with the answers that each alone gets."""
    distances, places, answered = search_by_products(shard.vectors, queries, depth, mask)
    for number in np.flatnonzero(~answered):
        query = slice(number, number + 1)
        distances[query], places[query] = shard.search(queries[query], depth, None, mask=mask)
    return distances, places
