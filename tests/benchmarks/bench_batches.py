"""
Exact search of many queries at once: by matrix products and ranked again, in blocks of 16, and plain Faiss with BLAS.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_batches.py --rows 100000 --batches 16 64 256

The vectors are unit vectors of 384 dimensions about 1,000 centers, and queries are vectors of rows, moved. The three
take turns; the medians of the rounds are printed, and whether the answers are those of each query alone.
"""

import argparse
import statistics
from time import perf_counter

import numpy as np

from tttnn.index.products import search_by_products
from tttnn.index.shard import QUERIES_PER_SEARCH
from tttnn.index.vectors import exact_index, import_faiss


def main() -> None:
    """Print seconds for each size of a batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    faiss, generator = import_faiss(), np.random.default_rng(0)
    centers = generator.normal(size=(1000, options.dimension)).astype(np.float32)
    vectors = centers[generator.integers(1000, size=options.rows)]
    vectors += 0.5 * generator.normal(size=vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = exact_index(options.dimension)
    index.add(vectors)

    def in_blocks(queries: np.ndarray) -> np.ndarray:
        firsts = range(0, len(queries), QUERIES_PER_SEARCH)
        return np.concatenate([index.search(queries[i : i + QUERIES_PER_SEARCH], options.top_k)[1] for i in firsts])

    def by_products(queries: np.ndarray) -> np.ndarray:
        return search_by_products(index, queries, options.top_k)[1]

    def by_faiss(queries: np.ndarray) -> np.ndarray:
        threshold, faiss.cvar.distance_compute_blas_threshold = faiss.cvar.distance_compute_blas_threshold, 1
        places = index.search(queries, options.top_k)[1]
        faiss.cvar.distance_compute_blas_threshold = threshold
        return places

    for size in options.batches:
        chosen = vectors[generator.integers(options.rows, size=size)]
        queries = (chosen + 0.02 * generator.normal(size=chosen.shape)).astype(np.float32)
        seconds: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            answers = {}
            for search in (in_blocks, by_products, by_faiss):
                start = perf_counter()
                answers[search.__name__] = search(queries)
                seconds.setdefault(search.__name__, []).append(perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        same = {name: bool((places == answers["in_blocks"]).all()) for name, places in answers.items()}
        ratios = [a / b for a, b in zip(seconds["in_blocks"], seconds["by_products"], strict=True)]
        print(
            f"{size} queries: "
            + ", ".join(f"{name} {value * 1000:.0f} ms (same: {same[name]})" for name, value in medians.items())
            + f"; products against blocks: {statistics.median(ratios):.1f} times ({min(ratios):.1f} to "
            f"{max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
