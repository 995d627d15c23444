"""Exact shards turned into the storage of a preset, with the recall that is left of them measured."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.embedding import Embedder
from tttnn.index import DocumentIndex, Shard
from tttnn.manifest import TEXTS, VECTORS
from tttnn.quantization import (
    RECALL_TOP_K,
    factory_for,
    import_faiss,
    num_training_rows,
    read_vectors,
    trained_index,
    tune,
)
from tttnn.texts import TextStore
from tttnn.writing import ROWS_PER_COPY, describe_file, write_json


logger = logging.getLogger(__name__)

NUM_QUERIES = 400
CONVERTED, TRAINED, DONE = "converted", "trained.faiss", "converted.json"


def convert_shards(
    folder: Path,
    shards: list[dict[str, Any]],
    embedder: Embedder,
    preset: str,
    recall_target: float = 0.95,
    trained: Any = None,  # noqa: ANN401
    first_shard: int = 0,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """
    Turn the exact shards of a build into those of a preset.

    All shards are divided by the same centroids, and those that were made before a kill are not made again. How
    thoroughly they are searched is chosen on half of the queries, and the recall measured on the other half. A query
    is the first half of a document's text, whose vector is not in the index.

    Args:
        folder (`Path`):
            Of the unfinished build.
        shards (`list[dict[str, Any]]`):
            Their entries for the manifest; those of the vectors' files are changed.
        embedder (`Embedder`):
            For the queries.
        preset (`str`):
            See `build_index`.
        recall_target (`float`, *optional*, defaults to `0.95`):
            See `build_index`.
        trained (`faiss.Index`, *optional*):
            Of an index to which the shards are added, and whose settings they share. By default a new one is trained.
        first_shard (`int`, *optional*, defaults to `0`):
            Number of the first of `shards`.

    Returns:
        `tuple[dict, dict]`: `storage` and `recall` for the manifest; no recall where `trained` is given.

    Raises:
        `ValueError`: If Faiss cannot make such an index.
    """
    names = [VECTORS.format(first_shard + number) for number in range(len(shards))]
    done, converted = folder / DONE, folder / CONVERTED
    if not done.is_file():
        faiss = import_faiss()
        exact = [faiss.read_index(str(folder / name), faiss.IO_FLAG_MMAP_IFC) for name in names]
        factory = factory_for(preset, sum(index.ntotal for index in exact), exact[0].d)
        result: dict[str, Any] = {"storage": {"preset": preset, "factory": factory, "search": {}}, "recall": None}
        template = _trained(folder / TRAINED, factory, exact) if trained is None else trained
        for name, index in zip(names, exact, strict=True):
            _convert(index, template, converted / name)
        if trained is None:
            opened = [read_vectors(converted / name, preset) for name in names]
            queries = _queries(folder, shards, embedder)
            result["storage"]["search"], result["recall"] = _measure(exact, opened, queries, recall_target)
        write_json(done, result)
    for name, entry in zip(names, shards, strict=True):
        if (converted / name).is_file():
            os.replace(converted / name, folder / name)
        entry["files"][name] = describe_file(folder / name)
    result = json.loads(done.read_bytes())
    return result["storage"], result["recall"]


def _trained(path: Path, factory: str, exact: Sequence[Any]) -> Any:  # noqa: ANN401
    """Train an index on a seeded sample of all rows, or read the one that was trained before a kill."""
    faiss = import_faiss()
    if not path.is_file():
        rows = np.cumsum([0] + [index.ntotal for index in exact])
        size = num_training_rows(int(rows[-1]), exact[0].d)
        chosen = np.sort(np.random.default_rng(0).choice(rows[-1], size, replace=False))
        sample = [
            index.reconstruct_batch(chosen[(start <= chosen) & (chosen < end)] - start)
            for index, start, end in zip(exact, rows[:-1], rows[1:], strict=True)
        ]
        faiss.write_index(trained_index(factory, np.concatenate(sample)), str(path) + ".tmp")
        os.replace(str(path) + ".tmp", path)
    return faiss.read_index(str(path))


def _convert(exact: Any, trained: Any, path: Path) -> None:  # noqa: ANN401
    if path.is_file():  # made before a kill
        return
    faiss = import_faiss()
    path.parent.mkdir(parents=True, exist_ok=True)
    index = faiss.clone_index(trained)
    index.reset()
    for first in range(0, exact.ntotal, ROWS_PER_COPY):
        index.add(exact.reconstruct_n(first, min(ROWS_PER_COPY, exact.ntotal - first)))
    faiss.write_index(index, str(path) + ".tmp")
    os.replace(str(path) + ".tmp", path)


def _queries(folder: Path, shards: list[dict[str, Any]], embedder: Embedder) -> np.ndarray:
    """Embed the first halves of texts that are drawn, seeded, from all."""
    counts = [entry["rows"] for entry in shards]
    ends = np.cumsum(counts)
    chosen = np.random.default_rng(1).choice(ends[-1], min(NUM_QUERIES, int(ends[-1])), replace=False)
    stores = [TextStore(folder / TEXTS.format(number), count) for number, count in enumerate(counts)]
    texts = []
    for row in chosen:
        number = int(np.searchsorted(ends, row, side="right"))
        text = stores[number].fetch([int(row - ends[number] + counts[number])])[0].text
        texts.append(text[: len(text) // 2])
    return embedder.encode_query(texts)


def _measure(
    exact: Sequence[Any], converted: Sequence[Any], queries: np.ndarray, target: float
) -> tuple[dict[str, int], dict[str, Any]]:
    reference, index = _as_index(exact), _as_index(converted)
    top_k = min(RECALL_TOP_K, len(reference))
    nearest = [{row for _, row in pairs} for pairs in reference.search(queries, top_k)]

    def recall(search: dict[str, int], part: slice) -> float:
        index.set_search(search)
        found = [{row for _, row in pairs} for pairs in index.search(queries[part], top_k)]
        pairs = zip(found, nearest[part], strict=True)
        return float(np.mean([len(these & those) / top_k for these, those in pairs]))

    half = len(queries) // 2
    chosen, _ = tune(index.shards[0].vectors, lambda search: recall(search, slice(max(1, half))), target)
    measured = recall(chosen, slice(half, None))
    if measured < target:
        logger.warning(
            "Of the %d nearest rows this index finds %.1f %%, less than the %.1f %% that were asked for. Take the "
            "preset 'flat', which finds all, or a factory that stores more of each vector.",
            top_k,
            100 * measured,
            100 * target,
        )
    return chosen, {
        "top_k": top_k,
        "recall": measured,
        "target": target,
        "num_queries": len(queries) - half,
        "num_rows": len(index),
    }


def _as_index(indexes: Sequence[Any]) -> DocumentIndex:
    starts = np.cumsum([0] + [index.ntotal for index in indexes])
    shards = [Shard(index, [], int(start)) for index, start in zip(indexes, starts[:-1], strict=True)]
    return DocumentIndex(shards, {}, "")
