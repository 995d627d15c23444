"""Exact shards turned into the storage of a preset, with the recall that is left of them measured."""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.embedding import Embedder
from tttnn.errors import InputError
from tttnn.files import write_json
from tttnn.index.build.workspace import CONVERTED, STORAGE, intact
from tttnn.index.build.writers import ROWS_PER_COPY
from tttnn.index.manifest import TEXTS, VECTORS, FileEntry, Recall, ShardEntry, Storage
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.texts import TextStore
from tttnn.index.vectors import (
    RECALL_TOP_K,
    factory_for,
    import_faiss,
    num_training_rows,
    read_vectors,
    trained_index,
    tune,
)


logger = logging.getLogger(__name__)

NUM_QUERIES = 400
TRAINED, DONE = f"{CONVERTED}/trained.faiss", f"{CONVERTED}/done.json"  # in the folder of a build


def choose_storage(folder: Path, preset: str, recall_target: float) -> None:
    """
    Note how the vectors of a build will be stored; what was made of them for an earlier choice is dropped.

    Args:
        folder (`Path`):
            Of the unfinished build.
        preset (`str`):
            See `build_index`.
        recall_target (`float`):
            See `build_index`.

    Raises:
        `ValueError`: If the exact vectors may be gone already, or the folder is damaged.
    """
    path, chosen = folder / STORAGE, {"preset": preset, "recall_target": recall_target}
    with intact(folder):
        earlier = json.loads(path.read_bytes()) if path.is_file() else chosen
    if earlier != chosen:
        if (folder / DONE).is_file():
            raise InputError(
                f"'{folder}' holds an interrupted build that is stored as {earlier} already, and {chosen} was "
                "asked for. Start with the former to go on with it, or remove that folder."
            )
        shutil.rmtree(folder / CONVERTED, ignore_errors=True)
    write_json(path, chosen)


def convert_shards(
    folder: Path,
    shards: list[ShardEntry],
    shard_size: int,
    embedder: Embedder,
    preset: str,
    recall_target: float = 0.95,
    like: Path | None = None,
    first_shard: int = 0,
) -> tuple[Storage, Recall | None]:
    """
    Turn the exact shards of a build into those of a preset.

    All shards are divided by the same centroids, and those that were made before a kill are not made again. How
    thoroughly they are searched is chosen on half of the queries, and the recall measured on the other half. A query
    is the first half of a document's text, whose vector is not in the index.

    Args:
        folder (`Path`):
            Of the unfinished build.
        shards (`list[ShardEntry]`):
            Their entries for the manifest; those of the vectors' files are changed.
        shard_size (`int`):
            Rows in a shard.
        embedder (`Embedder`):
            For the queries.
        preset (`str`):
            See `build_index`.
        recall_target (`float`, *optional*, defaults to `0.95`):
            See `build_index`.
        like (`Path`, *optional*):
            A shard of the index to which these are added, whose centroids they share. By default an index is trained.
        first_shard (`int`, *optional*, defaults to `0`):
            Number of the first of `shards`.

    Returns:
        `tuple[Storage, Recall]`: `storage` and `recall` for the manifest; no recall where `like` is given.

    Raises:
        `ValueError`: If Faiss cannot make such an index.
    """
    names = [VECTORS.format(first_shard + number) for number in range(len(shards))]
    done, converted = folder / DONE, folder / CONVERTED
    if not done.is_file():
        starts = np.cumsum([0] + [entry.rows for entry in shards]).tolist()
        exact = _OpenedInTurn([folder / name for name in names], "flat", starts[:-1])
        factory = factory_for(preset, starts[-1], embedder.dimension)
        result: dict[str, Any] = {
            "storage": {"preset": preset, "factory": factory, "search": {}, "shard_size": shard_size},
            "recall": None,
        }
        template = _trained(folder / TRAINED, factory, exact) if like is None else _emptied(like)
        for number, name in enumerate(names):
            _convert(exact[number].vectors, template, converted / name)
        if like is None:
            stored = _OpenedInTurn([converted / name for name in names], preset, starts[:-1])
            found = _measure(exact, stored, template, _queries(folder, shards, embedder), recall_target)
            result["storage"]["search"], result["recall"] = found
        write_json(done, result)
    for name, entry in zip(names, shards, strict=True):
        if (converted / name).is_file():
            os.replace(converted / name, folder / name)
        entry.files[name] = FileEntry.of(folder / name)
    with intact(folder):
        result = json.loads(done.read_bytes())
        recall = result["recall"]
        return Storage.from_json(result["storage"]), None if recall is None else Recall.from_json(recall)


def _trained(path: Path, factory: str, exact: Sequence[Shard]) -> Any:  # noqa: ANN401
    """Train an index on a seeded sample of all rows, or read the one that was trained before a kill."""
    faiss = import_faiss()
    if not path.is_file():
        num_rows, dimension = exact[-1].start + len(exact[-1]), exact[-1].vectors.d
        size = num_training_rows(num_rows, dimension)
        chosen = np.sort(np.random.default_rng(0).choice(num_rows, size, replace=False))
        # filled in place, for the sample is the largest thing in memory, and Faiss makes a copy
        sample = np.empty((size, dimension), np.float32)
        for shard in exact:
            first, last = np.searchsorted(chosen, [shard.start, shard.start + len(shard)])
            if first < last:
                shard.vectors.reconstruct_batch(chosen[first:last] - shard.start, sample[first:last])
        path.parent.mkdir(exist_ok=True)
        faiss.write_index(trained_index(factory, sample), str(path) + ".tmp")
        os.replace(str(path) + ".tmp", path)
    return faiss.read_index(str(path))


def _emptied(path: Path) -> Any:  # noqa: ANN401
    """Read an index without its rows."""
    faiss = import_faiss()
    index = faiss.read_index(str(path))  # into memory, for a mapped index cannot be emptied
    index.reset()
    return faiss.clone_index(index)  # without the room that the rows took


def _convert(exact: Any, trained: Any, path: Path) -> None:  # noqa: ANN401
    if path.is_file():  # made before a kill
        return
    faiss = import_faiss()
    path.parent.mkdir(parents=True, exist_ok=True)
    index = faiss.clone_index(trained)
    stored = faiss.downcast_index(index.refine_index) if isinstance(index, faiss.IndexRefine) else index
    if isinstance(stored, faiss.IndexFlatCodes):
        # room for all, for it would be doubled as it fills, and copied
        stored.codes.resize(exact.ntotal * stored.code_size)
        stored.codes.resize(0)
    for first in range(0, exact.ntotal, ROWS_PER_COPY):
        index.add(exact.reconstruct_n(first, min(ROWS_PER_COPY, exact.ntotal - first)))
    faiss.write_index(index, str(path) + ".tmp")
    os.replace(str(path) + ".tmp", path)


def _queries(folder: Path, shards: list[ShardEntry], embedder: Embedder) -> np.ndarray:
    """Embed the first halves of texts that are drawn, seeded, from all."""
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


class _OpenedInTurn(Sequence[Shard]):
    """Shards of which one is kept open, the last that was asked for: memory holds what was read of it."""

    def __init__(self, paths: list[Path], preset: str, starts: list[int]) -> None:
        self.paths, self.preset, self.starts = paths, preset, starts
        self.opened: dict[int, Shard] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: Any) -> Any:  # noqa: ANN401
        if number not in self.opened:
            self.opened.clear()
            self.opened[number] = Shard(read_vectors(self.paths[number], self.preset), [], self.starts[number])
        return self.opened[number]


def _measure(
    exact: Sequence[Shard],
    stored: Sequence[Shard],
    trained: Any,  # noqa: ANN401
    queries: np.ndarray,
    target: float,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Choose how thoroughly to search on half of the queries, and measure the recall on the other half."""
    reference, index = DocumentIndex(exact, {}, ""), DocumentIndex(stored, {}, "")
    top_k, half = min(RECALL_TOP_K, len(reference)), len(queries) // 2
    nearest = [{row for _, row in pairs} for pairs in reference.search(queries, top_k)]

    def recall(found: list[list[tuple[float, int]]], part: slice) -> float:
        pairs = zip(found, nearest[part], strict=True)
        return float(np.mean([len({row for _, row in each} & those) / top_k for each, those in pairs]))

    def tried(search: dict[str, int], k_factors: Sequence[int]) -> list[float]:
        index.set_search(search)
        part = slice(max(1, half))
        return [recall(found, part) for found in index.search_each(queries[part], top_k, k_factors)]

    chosen, reached = tune(trained, tried, target)
    index.set_search(chosen)
    measured = recall(index.search(queries[half:], top_k), slice(half, None))
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
    return chosen, {
        "top_k": top_k,
        "recall": measured,
        "target": target,
        "num_queries": len(queries) - half,
        "num_rows": len(reference),
    }
