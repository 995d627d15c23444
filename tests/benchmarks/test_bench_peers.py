"""The benchmark against other libraries, at a tiny size, with the peers that every environment has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parent


@pytest.mark.slow
def test_the_benchmark_of_peers_runs_and_exact_searches_find_all(tmp_path):
    words = [
        "--sizes",
        "300",
        "--rounds",
        "1",
        "--peers",
        "tttnn-flat",
        "faiss-flat",
        "--work",
        str(tmp_path / "work"),
    ]
    paths = [str(BENCHMARKS.parents[1]), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_peers.py"), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True,
        capture_output=True,
        text=True,
    )
    rows = [line.split(" | ") for line in run.stdout.splitlines() if line.startswith(("| tttnn", "| faiss"))]
    assert [(row[0], row[2]) for row in rows] == [("| tttnn-flat", "1.000"), ("| faiss-flat", "1.000")]
