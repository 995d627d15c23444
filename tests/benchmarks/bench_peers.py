"""
Search by tttnn against what a user would take instead: plain Faiss, usearch, hnswlib, LanceDB.

    python tests/benchmarks/bench_peers.py --sizes 100000 1000000 [--peers tttnn-flat hnswlib ...] [--threads 1]
        [--build_budget 3600]

The vectors are those of `bench_scale.py`: synthetic, clustered, unit length, 384 dimensions. Queries are vectors of
rows, moved. Each peer is built and searched in processes of its own, so that its memory is its own. For the search all
processes are alive at once and take turns, round by round, in an order that rotates; in a turn a peer answers all
queries one by one, and then in batches of 64. A peer with a dial is set to the fastest setting that finds 0.95 of the
10 nearest rows of 64 other queries; tttnn chooses its settings itself when it builds. The README beside this file
names the packages. A peer that is not installed is named as such, and so is one that is not built within
`--build_budget` seconds of processor time, the same for all: processor time depends less than seconds on what else
runs.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import numpy as np


TOP_K, BATCH, TARGET = 10, 64, 0.95
DIMENSION = 384
TESTED, TUNED = 128, 64  # queries


# --- the peers: each builds files, opens them, and gives rows of shape (queries, TOP_K), -1 where there are fewer ---


class Tttnn:
    """An index of one of tttnn's presets, with texts, manifest and checksums."""

    packages = ["faiss-cpu", "tttnn"]
    settings = [None]

    def __init__(self, preset: str) -> None:
        from tttnn.index import open_index
        from tttnn.index.vectors import import_faiss

        import_faiss()
        self.preset, self.open_index = preset, open_index

    def prepare(self, vectors, folder, threads):
        # imports torch, which no search needs
        from bench_scale import SyntheticEmbedder

        from tttnn import Document
        from tttnn.index import IndexSettings, build_index

        class StoredVectors(SyntheticEmbedder):
            def __init__(self) -> None:
                pass

            def encode_document(self, texts, batch_size=None, first_row=0, progress=None):
                return vectors[[int(text.split()[1]) for text in texts]]

        documents = (Document(str(row), text_of(row)) for row in range(len(vectors)))
        return partial(build_index, documents, StoredVectors(), folder, IndexSettings(self.preset))

    def open(self, folder, threads):
        self.index = self.open_index(folder)

    def search(self, queries, setting):
        return padded([[row for _, row in pairs] for pairs in self.index.search(queries, TOP_K)])


class Faiss:
    """`IndexFlatL2` as it is, read into memory or mapped."""

    packages = ["faiss-cpu"]
    settings = [None]

    def __init__(self) -> None:
        import faiss

        self.faiss = faiss

    def prepare(self, vectors, folder, threads):
        return partial(self.build, vectors, folder)

    def build(self, vectors, folder):
        index = self.faiss.IndexFlatL2(vectors.shape[1])
        index.add(vectors)
        self.faiss.write_index(index, str(folder / "index.faiss"))

    def open(self, folder, threads):
        self.index = self.faiss.read_index(str(folder / "index.faiss"))

    def search(self, queries, setting):
        return self.index.search(queries, TOP_K)[1]


class Hnswlib:
    """A graph in memory: 16 links, 200 candidates while it is built."""

    packages = ["hnswlib"]
    settings = [10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512]

    def __init__(self) -> None:
        import hnswlib

        self.hnswlib = hnswlib

    def prepare(self, vectors, folder, threads):
        return partial(self.build, vectors, folder, threads)

    def build(self, vectors, folder, threads):
        index = self.hnswlib.Index(space="l2", dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), ef_construction=200, M=16)
        index.add_items(vectors, num_threads=threads)
        index.save_index(str(folder / "index.hnsw"))

    def open(self, folder, threads):
        self.index = self.hnswlib.Index(space="l2", dim=DIMENSION)
        self.index.load_index(str(folder / "index.hnsw"))
        self.index.set_num_threads(threads)

    def search(self, queries, setting):
        self.index.set_ef(setting)
        return self.index.knn_query(queries, TOP_K)[0].astype(np.int64)


class Usearch:
    """A graph with usearch's defaults (16 links, 128 candidates while it is built), in memory or mapped."""

    packages = ["usearch"]
    settings = Hnswlib.settings

    def __init__(self, view: bool) -> None:
        import usearch.index

        self.usearch, self.view = usearch.index, view

    def prepare(self, vectors, folder, threads):
        return partial(self.build, vectors, folder, threads)

    def build(self, vectors, folder, threads):
        index = self.usearch.Index(ndim=vectors.shape[1], metric="l2sq", dtype="f32")
        index.add(np.arange(len(vectors)), vectors, threads=threads)
        index.save(str(folder / "index.usearch"))

    def open(self, folder, threads):
        self.threads = threads
        self.index = self.usearch.Index.restore(str(folder / "index.usearch"), view=self.view)

    def search(self, queries, setting):
        self.index.expansion_search = setting
        return self.index.search(queries, TOP_K, threads=self.threads).keys.reshape(len(queries), -1).astype(np.int64)


class Lancedb:
    """A table of vectors and texts on disk, with its default index (`IVF_PQ`) or by a scan of all rows."""

    packages = ["lancedb"]

    def __init__(self, exact: bool) -> None:
        import lancedb

        self.lancedb, self.exact = lancedb, exact
        self.settings = [None] if exact else [(n, f) for n in (5, 10, 20, 40) for f in (5, 20, 50)]

    def prepare(self, vectors, folder, threads):
        import pyarrow
        from lancedb.index import IvfPq

        return partial(self.build, vectors, folder, pyarrow, IvfPq(distance_type="l2"))

    def build(self, vectors, folder, pyarrow, config):
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
        texts = [text_of(row) for row in range(len(vectors))]
        rows = pyarrow.table({"vector": column, "row": np.arange(len(vectors)), "text": texts})
        table = self.lancedb.connect(str(folder)).create_table("rows", rows)
        table.create_index("vector", config=config)

    def open(self, folder, threads):
        self.table = self.lancedb.connect(str(folder)).open_table("rows")

    def search(self, queries, setting):
        search = self.table.search(list(queries)).distance_type("l2").limit(TOP_K).select(["row", "_distance"])
        if self.exact:
            search = search.bypass_vector_index()
        else:
            search = search.nprobes(setting[0]).refine_factor(setting[1])
        answer = search.to_arrow()
        rows: list[list[int]] = [[] for _ in queries]
        places = answer["query_index"].to_pylist() if len(queries) > 1 else [0] * len(answer)
        for place, row in zip(places, answer["row"].to_pylist(), strict=True):
            rows[place].append(row)
        return padded(rows)


# name: class, its argument, the folder of its files
PEERS = {
    "tttnn-flat": (Tttnn, ("flat",), "tttnn-flat"),
    "tttnn-ivf": (Tttnn, ("ivf",), "tttnn-ivf"),
    "tttnn-scale": (Tttnn, ("scale",), "tttnn-scale"),
    "faiss-flat": (Faiss, (), "faiss-flat"),
    "hnswlib": (Hnswlib, (), "hnswlib"),
    "usearch": (Usearch, (False,), "usearch"),
    "usearch-mapped": (Usearch, (True,), "usearch"),
    "lancedb": (Lancedb, (False,), "lancedb"),
    "lancedb-scan": (Lancedb, (True,), "lancedb"),
}
MODULES = {Tttnn: "faiss", Faiss: "faiss", Hnswlib: "hnswlib", Usearch: "usearch", Lancedb: "lancedb"}


def text_of(row: int) -> str:
    """The text of a row."""
    return f"document {row} {'x' * 20}"


def padded(rows: list[list[int]]) -> np.ndarray:
    """Rows as an array of `TOP_K` columns."""
    return np.array([[*line, *[-1] * (TOP_K - len(line))] for line in rows])


def recall(rows: np.ndarray, nearest: np.ndarray) -> float:
    """The share of the nearest rows that were found."""
    pairs = zip(rows.tolist(), nearest.tolist(), strict=True)
    return float(np.mean([len({*line} & {*exact}) / TOP_K for line, exact in pairs]))


# --- processes ---


def memory() -> dict[str, float]:
    """Memory of this process in MB: now, at its peak, and now without pages of files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}


def build_one(name: str, vectors_file: str, folder: Path, threads: int, budget: int) -> None:
    """Build the files of a peer, with the vectors in memory, and print what it took."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # SIGXCPU, which comes at the limit below, would write a core
    resource.setrlimit(resource.RLIMIT_CPU, (budget, resource.RLIM_INFINITY))
    kind, arguments, _ = PEERS[name]
    vectors, peer = np.load(vectors_file), kind(*arguments)
    folder.mkdir()
    build = peer.prepare(vectors, folder, threads)  # imports what only a build needs
    before, start, start_cpu = memory(), perf_counter(), process_time()
    build()
    result = {"seconds_build": perf_counter() - start, "cpu_build": process_time() - start_cpu}
    result["build_mb"] = memory()["VmHWM"] - before["VmRSS"]
    print(json.dumps({**result, "disk_mb": sum(path.stat().st_size for path in folder.rglob("*")) / 1e6}))


def serve(name: str, folder: Path, queries_file: str, threads: int) -> None:
    """Answer the commands that come by lines."""
    answers, sys.stdout = sys.stdout, sys.stderr
    kind, arguments, _ = PEERS[name]
    peer, stored, setting = kind(*arguments), np.load(queries_file), None
    tested, tuned, nearest = stored["tested"], stored["tuned"], stored["nearest"]
    before = memory()
    for command in sys.stdin:
        result = {}
        if command.strip() == "open":
            peer.index = peer.table = None
            gc.collect()
            start = perf_counter()
            peer.open(folder, threads)
            result["seconds_open"] = perf_counter() - start
            peer.search(tested[:1], setting or peer.settings[-1])
            result["seconds_first"] = perf_counter() - start
        elif command.strip() == "tune":
            tried = []
            for each in peer.settings:
                start = process_time()
                rows = np.concatenate([peer.search(query[None], each) for query in tuned])
                tried.append((recall(rows, nearest[TESTED:]), process_time() - start, each))
            reached = [one for one in tried if one[0] >= TARGET]
            setting = (min(reached, key=lambda one: one[1]) if reached else max(tried, key=lambda one: one[0]))[2]
            result["setting"] = setting
        elif command.strip() == "search":
            for size in (1, BATCH):
                rows, seconds, start_cpu = [], [], process_time()
                for first in range(0, TESTED, size):
                    start = perf_counter()
                    rows.append(peer.search(tested[first : first + size], setting))
                    seconds.append((perf_counter() - start) / size)
                result[f"cpu_ms_{size}"] = 1000 * (process_time() - start_cpu) / TESTED
                result[f"ms_{size}"] = 1000 * statistics.median(seconds)
                result[f"recall_{size}"] = recall(np.concatenate(rows), nearest[:TESTED])
        elif command.strip() == "memory":
            now = memory()
            result = {"peak_mb": now["VmHWM"] - before["VmRSS"], "private_mb": now["RssAnon"] - before["RssAnon"]}
        print(json.dumps(result), file=answers, flush=True)


class Worker:
    """A process that holds one peer open."""

    def __init__(self, name: str, folder: Path, queries: Path, threads: int) -> None:
        command = [sys.executable, __file__, "--serve", name, str(folder), str(queries), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command: str) -> dict:
        """Send a command and wait for its answer."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()


# --- the study ---


def make_data(size: int, work: Path) -> tuple[Path, Path]:
    """Write vectors, queries and their exactly nearest rows; what is there is kept."""
    from bench_scale import BLOCK, SyntheticEmbedder

    from tttnn.index.vectors import import_faiss

    vectors_file, queries_file = work / "vectors.npy", work / "queries.npz"
    if not queries_file.is_file():
        embedder = SyntheticEmbedder(size)
        vectors = np.concatenate([embedder.rows(block) for block in range(-(-size // BLOCK))])[:size]
        picked = np.random.default_rng(5).choice(size, TESTED + TUNED, replace=False)
        moved = vectors[picked] + 0.03 * np.random.default_rng(2).normal(size=(len(picked), DIMENSION))
        queries = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
        nearest = import_faiss().knn(queries, vectors, TOP_K)[1]
        np.save(vectors_file, vectors)
        np.savez(queries_file, tested=queries[:TESTED], tuned=queries[TESTED:], nearest=nearest)
    return vectors_file, queries_file


def spread(values: list[float]) -> str:
    """The median of rounds, and the lowest and the highest."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} – {max(values):.3g})"


def build_all(names: list[str], vectors_file: Path, threads: int, budget: int, work: Path) -> dict[str, dict]:
    """Build each peer within the budget; what was built before is kept."""
    builds = {}
    for name in names:
        folder = work / PEERS[name][2]
        log = work / f"{folder.name}.json"  # written last: without it the build is done again
        if not log.is_file():
            subprocess.run(["rm", "-rf", str(folder)], check=True)
            words = ["--build", name, str(vectors_file), str(folder), str(threads), str(budget)]
            run = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
            if run.returncode == -signal.SIGXCPU:
                print(f"{name}: not built within {budget} s of processor time", flush=True)
                continue
            run.check_returncode()
            log.write_text(run.stdout.splitlines()[-1])
        builds[name] = json.loads(log.read_text())
        print(json.dumps({"peer": name, **builds[name]}), flush=True)
    return builds


def study(size: int, names: list[str], rounds: int, threads: int, budget: int, work: Path) -> None:
    """Build all, open all, take turns, and print a table."""
    work.mkdir(parents=True, exist_ok=True)
    print(f"\n{size} rows", flush=True)
    vectors_file, queries_file = make_data(size, work)
    builds = build_all(names, vectors_file, threads, budget, work)
    names = list(builds)
    workers = {name: Worker(name, work / PEERS[name][2], queries_file, threads) for name in names}
    asked: dict[str, dict[str, list]] = {name: {} for name in names}
    for name, worker in workers.items():
        worker.ask("open")  # the first one may verify files, and read them from the disk
        asked[name]["setting"] = [worker.ask("tune")["setting"]]
    for number in range(rounds):
        place = number % len(names)
        for name in names[place:] + names[:place]:
            for command in ("open", "search"):
                for key, value in workers[name].ask(command).items():
                    asked[name].setdefault(key, []).append(value)
    print(
        f"\n{size} rows, {rounds} rounds, {threads} threads: medians over rounds (lowest – highest)\n"
        "| peer | setting | recall@10 | ms a query, one | processor ms | ms a query, of 64 | processor ms "
        "| open, s | and first query, s | peak MB | private MB | build, s | processor s | build MB | disk MB |\n"
        "|---|---|" + "--:|" * 13
    )
    for name in names:
        values, build = asked[name], {**builds[name], **workers[name].ask("memory")}
        cells = [name, str(values["setting"][0]), f"{values['recall_1'][0]:.3f}"]
        cells += [spread(values[key]) for key in ("ms_1", "cpu_ms_1", f"ms_{BATCH}", f"cpu_ms_{BATCH}")]
        cells += [spread(values[key]) for key in ("seconds_open", "seconds_first")]
        keys = ("peak_mb", "private_mb", "seconds_build", "cpu_build", "build_mb", "disk_mb")
        cells += [f"{build[key]:.0f}" for key in keys]
        print("| " + " | ".join(cells) + " |", flush=True)
    for worker in workers.values():
        worker.close()


def main() -> None:
    """Read the command line and run."""
    if len(sys.argv) > 1 and sys.argv[1] == "--build":
        return build_one(sys.argv[2], sys.argv[3], Path(sys.argv[4]), *map(int, sys.argv[5:7]))
    if len(sys.argv) > 1 and sys.argv[1] == "--serve":
        return serve(sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--build_budget", type=int, default=3600, help="seconds of processor time of each build")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"))
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "LANCE_CPU_THREADS", "RAYON_NUM_THREADS", "TOKIO_WORKER_THREADS"):
        os.environ[name] = str(arguments.threads)  # of the processes that are started
    there = [name for name in arguments.peers if importlib.util.find_spec(MODULES[PEERS[name][0]])]
    packages = dict.fromkeys(package for name in there for package in PEERS[name][0].packages)
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages if package != "tttnn"]
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {', '.join(versions)}")
    for name in arguments.peers:
        if name not in there:
            print(f"{name}: not installed (`pip install {' '.join(PEERS[name][0].packages)}`)")
    for size in arguments.sizes:
        work = arguments.work / str(size)
        study(size, there, arguments.rounds, arguments.threads, arguments.build_budget, work)


if __name__ == "__main__":
    main()
