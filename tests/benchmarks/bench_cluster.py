"""
An index on a Ray cluster of three nodes on this machine against the same index opened here, in turns.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_cluster.py --rows 100000 --shards 8 --preset flat

Vectors are those of `bench_scale.py`. Printed are, for batches of 1, 16 and 64 queries, the median and the 95th
percentile of a search in milliseconds, and queries per second; then the seconds until the whole answer after a process
is killed, and after a node is lost. The nodes share the processors of this machine, so a search cannot be faster there
than here: what is seen is what the way over the cluster costs.
"""

import argparse
import os
import signal
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import ray
from bench_scale import SyntheticEmbedder
from ray.cluster_utils import Cluster

from tttnn import Document
from tttnn.cluster import cluster_status, open_on_cluster, stop_cluster
from tttnn.index import IndexSettings, build_index, open_index


TOP_K = 20
SECONDS_WATCHED = 40


def milliseconds(seconds: list[float]) -> str:
    """Say the median and the 95th percentile."""
    low, high = np.quantile(np.array(seconds) * 1000, (0.5, 0.95))
    return f"{low:.2f} / {high:.2f}"


def main() -> None:
    """Compare, and recover."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--preset", default="flat")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as work:
        folder, embedder = Path(work) / "index", SyntheticEmbedder(arguments.rows)
        documents = (Document(str(row), f"document {row} {'x' * 20}") for row in range(arguments.rows))
        settings = IndexSettings(arguments.preset, shard_size=-(-arguments.rows // arguments.shards))
        build_index(documents, embedder, folder, settings)
        generator = np.random.default_rng(3)
        texts = [f"document {row}" for row in generator.choice(arguments.rows, 256, replace=False)]
        queries = embedder.encode_query(texts)
        here = open_index(folder)
        start = perf_counter()
        there = open_on_cluster("auto", folder)
        print(f"{arguments.rows} rows, {arguments.preset}, {arguments.shards} shards in {len(there.groups)} groups")
        print(f"opened on the cluster in {perf_counter() - start:.1f} s")
        assert there.search(queries, TOP_K) == here.search(queries, TOP_K)
        print("batch | here, p50 / p95 ms | cluster | cluster - here, p50 ms | queries/s here | cluster")
        for batch in (1, 16, 64):
            seconds: tuple[list[float], list[float]] = ([], [])
            for turn in range(arguments.rounds if batch == 1 else arguments.rounds // 5):
                part = queries[(turn * batch) % 192 :][:batch]
                for index, taken in zip((here, there), seconds, strict=True):
                    start = perf_counter()
                    index.search(part, TOP_K)
                    taken.append(perf_counter() - start)
            added = np.median(np.subtract(*reversed(seconds))) * 1000
            rates = [f"{batch / np.median(taken):.0f}" for taken in seconds]
            print(" | ".join([str(batch), *map(milliseconds, seconds), f"{added:.2f}", *rates]))
        rows = [row for _, row in here.search(queries[:1], TOP_K)[0]]
        fetches: tuple[list[float], list[float]] = ([], [])
        for _ in range(arguments.rounds):
            for index, taken in zip((here, there), fetches, strict=True):
                start = perf_counter()
                index.documents(rows)
                taken.append(perf_counter() - start)
        print(f"documents of {TOP_K} rows: here {milliseconds(fetches[0])}, cluster {milliseconds(fetches[1])} ms")
        expected = here.search(queries[:16], TOP_K)
        # each node has one group now
        cluster.remove_node(nodes[-1], allow_graceful=False)
        start, longest = perf_counter(), 0.0
        while perf_counter() - start < SECONDS_WATCHED:  # a process of the lost node may still answer for a while
            begin = perf_counter()
            assert there.search(queries[:16], TOP_K) == expected
            longest = max(longest, perf_counter() - begin)
        print(f"longest of all searches in {SECONDS_WATCHED} s after a node was lost: {longest:.1f} s")
        killed = cluster_status("auto", folder)[1]
        os.kill(killed.pid, signal.SIGKILL)
        start = perf_counter()
        assert there.search(queries[:16], TOP_K) == expected
        print(f"whole answer {perf_counter() - start:.1f} s after a process was killed")
        stop_cluster("auto", folder)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
