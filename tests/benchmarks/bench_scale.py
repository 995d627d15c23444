"""
Indexes of growing size, each stored by each preset: time and memory to open, query times, recall, bytes a document.

    python tests/benchmarks/bench_scale.py --sizes 10000 100000 1000000 --presets flat ivf scale
    python tests/benchmarks/bench_scale.py --vectors_only --sizes 10000000 --presets scale [--shard_size N]
    python tests/benchmarks/bench_scale.py --index runs/pile-index --presets flat ivf scale

The vectors are synthetic, of 384 dimensions and clustered: unit vectors about one center for each 100 rows, at random
in a space of 48 dimensions that is turned into 384, with noise in all of them. A query is the vector of a row, moved.
With `--index` the vectors are those of a flat index, and queries the first halves of its documents. Memory is taken in
separate processes; presets take turns, query by query, and all queries are asked twice: `first_p95_ms` is of the
first time, when what is mapped may still have to be read.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tttnn import Document, Embedder
from tttnn.index.build.from_documents import IndexSettings, build_index
from tttnn.index.manifest import VECTORS, read_manifest
from tttnn.index.opening import open_index
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.vectors import (
    default_shard_size,
    factory_for,
    import_faiss,
    num_training_rows,
    read_vectors,
    trained_index,
)


DIMENSION, INNER, ROWS_PER_CLUSTER = 384, 48, 100
BLOCK = 10_000


class SyntheticEmbedder(Embedder):
    """Gives each text the vector of the number in it."""

    dimension = DIMENSION

    def __init__(self, size: int) -> None:
        generator = np.random.default_rng(0)
        self.size = size
        self.turn = generator.normal(size=(INNER, DIMENSION)).astype(np.float32) / np.sqrt(INNER)
        self.centers = generator.normal(size=(max(size // ROWS_PER_CLUSTER, 1), INNER)).astype(np.float32)
        self._block: tuple[int, np.ndarray] = (-1, np.empty(0))

    def rows(self, block: int) -> np.ndarray:
        """Make the vectors of a block of rows."""
        if self._block[0] != block:
            generator = np.random.default_rng([1, block])
            centers = self.centers[generator.integers(len(self.centers), size=BLOCK)]
            inner = centers + 0.5 * generator.normal(size=(BLOCK, INNER)).astype(np.float32)
            self._block = (block, self._finish(inner, generator))
        return self._block[1]

    def _finish(self, inner: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        vectors = inner @ self.turn + 0.1 * generator.normal(size=(len(inner), DIMENSION)).astype(np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def encode_document(
        self, texts: list[str], batch_size: int | None = None, first_row: int = 0, progress: Any = None
    ) -> np.ndarray:
        """Give the vectors of texts."""
        numbers = [int(text.split()[1]) for text in texts]
        return np.stack([self.rows(number // BLOCK)[number % BLOCK] for number in numbers])

    def encode_query(self, texts: list[str], batch_size: int | None = None) -> np.ndarray:
        """Give the vectors of texts, moved."""
        vectors = np.stack([self.encode_document([text])[0] for text in texts])
        moved = vectors + np.random.default_rng(2).normal(size=vectors.shape).astype(np.float32) * 0.03
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)

    def describe(self) -> dict:
        """Describe it for the manifest."""
        return {
            "name": "synthetic",
            "revision": None,
            "pooling": [],
            "normalized": False,
            "max_seq_length": None,
            "dimension": DIMENSION,
            "query_prompt": "",
            "document_prompt": "",
            "probe": None,
        }


class StoredVectors(Embedder):
    """Gives the vectors of an index's rows, in their order; queries are embedded."""

    def __init__(self, index: DocumentIndex) -> None:
        self.index, self.row = index, 0

    def encode_document(
        self, texts: list[str], batch_size: int | None = None, first_row: int = 0, progress: Any = None
    ) -> np.ndarray:
        """Give the vectors of the next rows."""
        shard, place = self.index.shard_of(self.row)
        assert place + len(texts) <= len(shard), "windows and shards of the two indexes differ"
        self.row += len(texts)
        return shard.vectors.reconstruct_n(place, len(texts))

    def encode_query(self, texts: list[str], batch_size: int | None = None) -> np.ndarray:
        """Embed queries."""
        return Embedder.from_description(self.index.embedder).encode_query(texts)

    def describe(self) -> dict:
        """Describe the embedder."""
        return self.index.embedder

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.index.embedder["dimension"]


# --- what is measured in a separate process ---


def memory() -> dict[str, float]:
    """Read this process's memory in MB: its own, and pages of mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def measure_open(folder: Path, queries: Path) -> None:
    """Print what it takes to open an index, and then to search it."""
    loaded = np.load(queries)
    import_faiss()
    before = memory()
    start = perf_counter()
    index = open_index(folder)
    seconds = perf_counter() - start
    opened = memory()
    for query in loaded:
        index.search(query[None], 20)
    searched = memory()
    print(
        json.dumps(
            {
                "seconds_open": seconds,
                "own_mb": opened["RssAnon"] - before["RssAnon"],
                "mapped_mb": opened["RssFile"] - before["RssFile"],
                "own_mb_searched": searched["RssAnon"] - before["RssAnon"],
                "mapped_mb_searched": searched["RssFile"] - before["RssFile"],
            }
        )
    )


def build(folder: Path, source: str, preset: str) -> None:
    """Build an index of N synthetic vectors, or of those of a flat index, and print what it took."""
    if source.isdigit():
        documents = (Document(str(row), f"document {row} {'x' * 20}") for row in range(int(source)))
        embedder: Any = SyntheticEmbedder(int(source))
    else:
        embedder = StoredVectors(open_index(source))
        documents = (embedder.index.documents([row])[0] for row in range(len(embedder.index)))
    start = perf_counter()
    build_index(documents, embedder, folder, IndexSettings(preset))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds_build": perf_counter() - start, "peak_mb": peak}))


def alone(*words: str) -> dict[str, float]:
    """Run this script in a separate process."""
    run = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


# --- studies ---


def queries_of(folder: Path, count: int) -> np.ndarray:
    """Embed the first halves of an index's documents."""
    index = open_index(folder)
    rows = np.random.default_rng(3).choice(len(index), count, replace=False).tolist()
    texts = [document.text[: len(document.text) // 2] for document in index.documents(rows)]
    return Embedder.from_description(index.embedder).encode_query(texts)


def study(folders: dict[str, Path], queries: np.ndarray, work: Path) -> None:
    """Compare the presets of one corpus, the first of which is exact."""
    np.save(work / "queries.npy", queries)
    indexes = {preset: open_index(folder) for preset, folder in folders.items()}
    seconds: dict[str, np.ndarray] = {preset: np.empty((2, len(queries))) for preset in folders}
    found: dict[str, list[set[int]]] = {preset: [set()] * len(queries) for preset in folders}
    for turn in range(2):  # in the second, all that is read is in memory
        for number, query in enumerate(queries):
            for preset, index in indexes.items():
                start = perf_counter()
                pairs = index.search(query[None], 20)[0]
                seconds[preset][turn, number] = perf_counter() - start
                found[preset][number] = {row for _, row in pairs}
    for preset, folder in folders.items():
        manifest = read_manifest(folder)
        size = sum(shard.files[VECTORS.format(i)].bytes for i, shard in enumerate(manifest.shards))
        pairs = zip(found[preset], found["flat"], strict=True)
        row = {
            "rows": manifest.num_rows,
            "preset": preset,
            "factory": manifest.storage.factory,
            **manifest.storage.search,
            "recall": float(np.mean([len(these & those) / 20 for these, those in pairs])),
            "p50_ms": 1000 * float(np.median(seconds[preset][1])),
            "p95_ms": 1000 * float(np.quantile(seconds[preset][1], 0.95)),
            "first_p95_ms": 1000 * float(np.quantile(seconds[preset][0], 0.95)),
            "ratio_to_flat": float(np.median(seconds["flat"][1] / seconds[preset][1])),
            "disk_bytes_a_row": size / manifest.num_rows,
            **alone("--open", str(folder), str(work / "queries.npy")),
        }
        print(json.dumps(row), flush=True)


def build_vectors(size: int, preset: str, shard_size: int, num_queries: int, work: Path) -> None:
    """Store vectors without documents, and find the nearest ones of queries exactly; what is there is kept."""
    faiss, embedder = import_faiss(), SyntheticEmbedder(size)
    picked = np.random.default_rng(5).choice(size, num_queries, replace=False)
    queries = embedder.encode_query([f"document {row}" for row in picked])
    np.save(work / "queries.npy", queries)
    trained = work / "trained.faiss"
    if not trained.is_file():
        wanted, start = num_training_rows(size, DIMENSION), perf_counter()
        chosen = np.random.default_rng(4).permutation(size // BLOCK)[: -(-wanted // BLOCK)]
        sample = np.concatenate([embedder.rows(int(block)) for block in chosen])[:wanted]
        faiss.write_index(trained_index(factory_for(preset, size, DIMENSION), sample), str(trained))
        print(json.dumps({"seconds_train": perf_counter() - start, "training_rows": wanted}), flush=True)
    for number, first in enumerate(range(0, size, shard_size)):
        path, near = work / f"shard-{number:05d}.faiss", work / f"shard-{number:05d}.nearest.npz"
        if near.is_file():
            continue
        start = perf_counter()
        index, nearest = faiss.read_index(str(trained)), [np.empty((num_queries, 0))] * 2
        for row in range(first, min(first + shard_size, size), BLOCK):
            vectors = embedder.rows(row // BLOCK)
            index.add(vectors)
            found = faiss.knn(queries, vectors, 20)
            nearest = [np.hstack(pair) for pair in zip(nearest, (found[0], found[1] + row), strict=True)]
            order = np.argsort(nearest[0], axis=1, kind="stable")[:, :20]
            nearest = [np.take_along_axis(values, order, axis=1) for values in nearest]
        faiss.write_index(index, str(path))
        np.savez(near, distances=nearest[0], rows=nearest[1])
        print(json.dumps({"shard": number, "rows": index.ntotal, "seconds": perf_counter() - start}), flush=True)


def search_vectors(size: int, preset: str, shard_size: int, work: Path) -> None:
    """Search what `build_vectors` stored, ever more thoroughly."""
    found = [np.load(path) for path in sorted(work.glob("*.nearest.npz"))]
    distances, rows = (np.hstack([each[name] for each in found]) for name in ("distances", "rows"))
    nearest = np.take_along_axis(rows, np.argsort(distances, axis=1, kind="stable")[:, :20], axis=1)
    queries = np.load(work / "queries.npy")
    paths = sorted(work.glob("shard-*.faiss"))
    before, start = memory(), perf_counter()
    shards = [Shard(read_vectors(path, preset), [], number * shard_size) for number, path in enumerate(paths)]
    index, seconds_open = DocumentIndex(shards, {}, ""), perf_counter() - start
    opened = memory()
    for nprobe in (4, 8, 16, 32, 64, 128):
        index.set_search({"nprobe": nprobe, "k_factor": 4})
        seconds, hits = [], []
        for query, exact in zip(queries, nearest, strict=True):
            start = perf_counter()
            these = {row for _, row in index.search(query[None], 20)[0]}
            seconds.append(perf_counter() - start)
            hits.append(len(these & {*exact.tolist()}) / 20)
        searched = memory()
        row = {
            "rows": size,
            "dimension": queries.shape[1],
            "preset": preset,
            "shards": len(shards),
            "nprobe": nprobe,
            "recall": float(np.mean(hits)),
            "p50_ms": 1000 * float(np.median(seconds)),
            "p95_ms": 1000 * float(np.quantile(seconds, 0.95)),
            "disk_bytes_a_row": sum(path.stat().st_size for path in paths) / size,
            "seconds_open": seconds_open,
            "own_mb": opened["RssAnon"] - before["RssAnon"],
            "mapped_mb": opened["RssFile"] - before["RssFile"],
            "own_mb_searched": searched["RssAnon"] - before["RssAnon"],
            "mapped_mb_searched": searched["RssFile"] - before["RssFile"],
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    """Run the studies that are asked for."""
    global DIMENSION
    if len(sys.argv) > 1 and sys.argv[1] == "--open":
        return measure_open(Path(sys.argv[2]), Path(sys.argv[3]))
    if len(sys.argv) > 1 and sys.argv[1] == "--search":
        return search_vectors(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))
    if len(sys.argv) > 1 and sys.argv[1] == "--build":
        return build(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--presets", nargs="+", default=["flat", "ivf", "scale"])
    parser.add_argument("--num_queries", type=int, default=200)
    parser.add_argument("--dimension", type=int, default=384, help="with --vectors_only")
    parser.add_argument("--shard_size", type=int, help="with --vectors_only, in tens of thousands (default: tttnn's)")
    parser.add_argument("--vectors_only", action="store_true")
    parser.add_argument("--index", type=Path, help="a flat index of texts, in the place of synthetic vectors")
    parser.add_argument("--work", type=Path, default=Path("runs/scale"))
    arguments = parser.parse_args()
    for size in [0] if arguments.index else arguments.sizes:
        work = arguments.work / (arguments.index.name if arguments.index else str(size))
        work.mkdir(parents=True, exist_ok=True)
        if arguments.vectors_only:
            DIMENSION = arguments.dimension
            for preset in arguments.presets:
                shard_size = (arguments.shard_size or default_shard_size(DIMENSION)) // BLOCK * BLOCK
                folder = work / f"{preset}-{DIMENSION}-{shard_size}"
                folder.mkdir(exist_ok=True)
                build_vectors(size, preset, shard_size, arguments.num_queries, folder)
                words = ["--search", str(size), preset, str(shard_size), str(folder)]
                subprocess.run([sys.executable, __file__, *words], check=True)
            continue
        folders = {preset: work / preset for preset in arguments.presets}
        for preset, folder in folders.items():
            source = str(arguments.index or size)
            print(json.dumps({"preset": preset, **alone("--build", str(folder), source, preset)}), flush=True)
        if arguments.index:
            queries = queries_of(arguments.index, arguments.num_queries)
        else:
            picked = np.random.default_rng(5).choice(size, arguments.num_queries, replace=False)
            queries = SyntheticEmbedder(size).encode_query([f"document {row}" for row in picked])
        study(folders, queries, work)


if __name__ == "__main__":
    main()
