"""Exact shards turned into the storage of a preset, and the recall that is left of them measured."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.embedding import Embedder
from tttnn.index.manifest import TEXTS, Recall, ShardEntry
from tttnn.index.search import Pairs, search_shards
from tttnn.index.shard import Shard
from tttnn.index.texts import TextList, TextStore
from tttnn.index.vectors import RECALL_TOP_K, import_faiss, num_training_rows, read_vectors, trained_index, tune


logger = logging.getLogger(__name__)

NUM_QUERIES = 400
ROWS_PER_COPY = 16_384


class OpenedInTurn(Sequence[Shard]):
    """Shards of which one is kept open, the last that was asked for: memory holds what was read of it."""

    def __init__(self, paths: list[Path], preset: str, starts: list[int]) -> None:
        self.paths, self.preset, self.starts = paths, preset, starts
        self.opened: dict[int, Shard] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: Any) -> Any:  # noqa: ANN401
        number = range(len(self))[number]  # from the end too, and an IndexError past it
        if number not in self.opened:
            self.opened.clear()
            vectors = read_vectors(self.paths[number], self.preset)
            self.opened[number] = Shard(vectors, TextList(), self.starts[number])
        return self.opened[number]


def trained_for(factory: str, exact: Sequence[Shard]) -> Any:  # noqa: ANN401
    """Train an index on a seeded sample of all rows."""
    num_rows, dimension = exact[-1].start + len(exact[-1]), exact[-1].vectors.d
    size = num_training_rows(num_rows, dimension)
    chosen = np.sort(np.random.default_rng(0).choice(num_rows, size, replace=False))
    # filled in place, because the sample is the largest thing in memory, and Faiss makes a copy
    sample = np.empty((size, dimension), np.float32)
    for shard in exact:
        first, last = np.searchsorted(chosen, [shard.start, shard.start + len(shard)])
        if first < last:
            shard.vectors.reconstruct_batch(chosen[first:last] - shard.start, sample[first:last])
    return trained_index(factory, sample)


def emptied(path: Path) -> Any:  # noqa: ANN401
    """Read an index without its rows."""
    faiss = import_faiss()
    index = faiss.read_index(str(path))  # into memory, because a mapped index cannot be emptied
    index.reset()
    return faiss.clone_index(index)  # without the room that the rows took


def converted(exact: Any, trained: Path) -> Any:  # noqa: ANN401
    """Make an index of exact vectors that is divided and compressed as a trained one says."""
    faiss = import_faiss()
    index = faiss.read_index(str(trained))
    stored = faiss.downcast_index(index.refine_index) if isinstance(index, faiss.IndexRefine) else index
    if isinstance(stored, faiss.IndexFlatCodes):
        # room for all: it would be doubled as it fills, and copied
        stored.codes.resize(exact.ntotal * stored.code_size)
        stored.codes.resize(0)
    for vectors in vectors_of(exact):
        index.add(vectors)
    return index


def vectors_of(exact: Any) -> Any:  # noqa: ANN401
    """Give the vectors of a Faiss index, a bounded number at a time."""
    for first in range(0, exact.ntotal, ROWS_PER_COPY):
        yield exact.reconstruct_n(first, min(ROWS_PER_COPY, exact.ntotal - first))


def draw_queries(folder: Path, shards: list[ShardEntry], embedder: Embedder) -> np.ndarray:
    """Embed the first halves of texts that are drawn, seeded, from all; no such vector is in the index."""
    counts = [entry.rows for entry in shards]
    ends = np.cumsum(counts)
    chosen = np.random.default_rng(1).choice(ends[-1], min(NUM_QUERIES, int(ends[-1])), replace=False)
    stores = [TextStore(folder / TEXTS.format(number), count) for number, count in enumerate(counts)]
    texts = []
    for row in chosen:
        number = int(np.searchsorted(ends, row, side="right"))
        text = stores[number].fetch([int(row - ends[number] + counts[number])])[0].text
        texts.append(text[: len(text) // 2])
    return embedder.encode_query(texts)


def measure(
    exact: Sequence[Shard], stored: Sequence[Shard], trained: Path, queries: np.ndarray, target: float
) -> tuple[dict[str, int], Recall]:
    """Choose how thoroughly to search on half of the queries, and measure the recall on the other half."""
    num_rows, half = exact[-1].start + len(exact[-1]), len(queries) // 2
    top_k = min(RECALL_TOP_K, num_rows)
    nearest = [{row for _, row in pairs} for pairs in search_shards(exact, queries, top_k)[0]]

    def recall(results: list[Pairs], part: slice) -> float:
        lines = zip(results, nearest[part], strict=True)
        return float(np.mean([len({row for _, row in pairs} & rows) / top_k for pairs, rows in lines]))

    def tried(search: dict[str, int], k_factors: Sequence[int]) -> list[float]:
        part = slice(max(1, half))
        results = search_shards(stored, queries[part], top_k, search.get("nprobe"), k_factors)
        return [recall(result, part) for result in results]

    chosen, reached = tune(import_faiss().read_index(str(trained)), tried, target)
    k_factors = [chosen.get("k_factor", 1)]
    results = search_shards(stored, queries[half:], top_k, chosen.get("nprobe"), k_factors)[0]
    measured = recall(results, slice(half, None))
    if measured < target:
        logger.warning(
            "Of the %d nearest rows this index finds %.1f %%, less than the %.1f %% that were asked for. %s the "
            "preset 'flat', which finds all, or a factory that stores more of each vector.",
            top_k,
            100 * measured,
            100 * target,
            "The settings of search reached them with the queries that they were chosen by, and missed them with "
            "others. Ask for more (`--recall-target`), or take"
            if reached >= target
            else "No settings of search reached them. Take",
        )
    return chosen, Recall(top_k, measured, target, len(queries) - half, num_rows)
