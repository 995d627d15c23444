"""An index on a Ray cluster of three nodes, simulated on this machine: the same answers, and what a lost node does."""

import contextlib
import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from commands import run_main
from conftest import TEXTS

from tttnn import Document, NeighborRetriever, TestTimeGenerator, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.cluster import build_on_cluster, building, cluster_status, groups, open_on_cluster, stop_cluster
from tttnn.cluster.connection import connect
from tttnn.cluster.shard_group import ShardGroup, Source
from tttnn.documents import Corpus
from tttnn.embedding import Embedder
from tttnn.index import IndexSettings, build_index, open_index
from tttnn.index.manifest import MANIFEST
from tttnn.neighbors import PartialAnswer
from tttnn.retrieval import NeighborCache


pytestmark = pytest.mark.ray

# nodes end and come at a word; the daemons are in a session of this program, and end with it
NODES = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "lose":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))
    print("done", flush=True)
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def nodes():
    """Three nodes; `nodes.stdin` takes "lose", which replaces one."""
    ray = pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start"
        connect(address)
        yield process
    finally:
        ray.shutdown()
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """320 short texts in a file; the last ten are the first ten again."""
    words = " ".join(TEXTS).split()
    draws = np.random.default_rng(0).choice(words, size=(310, 8))
    texts = [" ".join(row) for row in draws]
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    from commands import write_rows

    return write_rows(path, [*texts, *texts[:10]])


@pytest.fixture(scope="module")
def folders(corpus, embedder_folder, tmp_path_factory):
    """An index of each preset, in shards of 64 rows."""
    folder = tmp_path_factory.mktemp("indexes")
    for preset in ("flat", "ivf", "scale"):
        settings = IndexSettings(preset, shard_size=64)
        build_index(Corpus([corpus]), Embedder(str(embedder_folder), device="cpu"), folder / preset, settings)
    return folder


@pytest.fixture
def flat(nodes, folders):
    """The folder of the flat index, which is on no machine before and after."""
    yield folders / "flat"
    stop_cluster("auto", folders / "flat")
    until(lambda: not cluster_status("auto", folders / "flat"))


def make_never(ray):
    """An actor that answers `ready`, and `wait` after a time that no test waits."""

    class Never:  # local, so that Ray sends the class itself: the machines cannot import this file
        def ready(self):
            return True

        def wait(self):
            import time

            time.sleep(600)

    actor = ray.remote(Never).options(num_cpus=0).remote()
    assert ray.get(actor.ready.remote())
    return actor


def until(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def queries_of(folder, number=40):
    """Vectors of the index, some of which are there twice, and others."""
    index = open_index(folder)
    others = np.random.default_rng(1).normal(size=(number - 10, 32)).astype(np.float32)
    return np.concatenate([index.vectors(range(10)), others])


def kill(status):
    os.kill(status.pid, signal.SIGKILL)


@pytest.mark.parametrize("preset", ["flat", "ivf", "scale"])
def test_rows_and_distances_are_those_of_the_local_index(nodes, folders, preset):
    local, queries = open_index(folders / preset), queries_of(folders / preset)
    index = open_on_cluster("auto", folders / preset)
    assert len(index.groups) == 3
    for number, top_k in ((40, 20), (1, 7), (3, 320)):
        assert index.search(queries[:number], top_k) == local.search(queries[:number], top_k)
    ties = [row for _, row in local.search(queries[:1], 2)[0]]
    assert ties == [0, 310], "the same text twice: by row"
    rows = [319, 0, 64, 63, 0]
    assert index.documents(rows) == local.documents(rows)
    assert np.array_equal(index.vectors(rows), local.vectors(rows))
    assert (len(index), index.digest, index.search_key) == (len(local), local.digest, local.search_key)
    assert (index.is_prefixed, index.keeps_vectors) == (local.is_prefixed, local.keeps_vectors)
    assert [index.row_at(place) for place in (0, 64, 319)] == [0, 64, 319]
    stop_cluster("auto", folders / preset)


def test_some_shards_keep_their_rows(flat):
    index, local = open_on_cluster("auto", flat, shards=[1, 4]), open_index(flat, shards=[1, 4])
    assert index.search(queries_of(flat), 10) == local.search(queries_of(flat), 10)
    assert index.row_at(64) == local.row_at(64) == 256
    with pytest.raises(IndexError, match="Row 0 was asked for, but the index holds rows 64 to 127, 256 to 319"):
        index.documents([0])
    assert stop_cluster("auto", flat, shards=[1, 4]) == 2


def test_a_retriever_finds_the_same_neighbors_and_a_second_one_the_same_processes(flat):
    texts = ["the captain", "import json"]
    expected = NeighborRetriever.from_pretrained(flat).retrieve(texts, 5)
    retriever = NeighborRetriever.from_pretrained(flat, cluster="auto")
    assert retriever.retrieve(texts, 5) == expected
    before = cluster_status("auto", flat)
    again = NeighborRetriever.from_pretrained(flat, cluster="auto")
    assert again.retrieve(texts, 5) == expected
    assert cluster_status("auto", flat) == before
    assert len({status.pid for status in before}) == 3
    with pytest.raises(TypeError, match="ClusterIndex"):
        retriever.subset(0.5)


def test_status_and_stop_from_the_shell(flat, capsys):
    open_on_cluster("auto", flat)
    assert run_main("cluster", "status", flat) == 0
    assert "group 0 of 3, shards 0 3: " in capsys.readouterr().out
    assert run_main("retrieve", flat, "the captain", "--cluster", "auto", "--top-k", 2) == 0
    there = capsys.readouterr().out
    assert run_main("retrieve", flat, "the captain", "--top-k", 2) == 0
    assert capsys.readouterr().out == there
    assert run_main("cluster", "stop", flat) == 0
    assert capsys.readouterr().out.startswith("Stopped 3 processes")
    until(lambda: not cluster_status("auto", flat))
    assert run_main("cluster", "status", flat) == 0
    assert "is not on the cluster" in capsys.readouterr().out


def test_waiting_gives_the_whole_answer_after_a_process_is_killed(flat):
    index, queries = open_on_cluster("auto", flat), queries_of(flat)
    kill(cluster_status("auto", flat)[1])
    assert index.search(queries, 10) == open_index(flat).search(queries, 10)


def test_raising_names_the_shards_whose_process_is_killed(flat):
    index, queries = open_on_cluster("auto", flat, on_missing="raise"), queries_of(flat)
    kill(cluster_status("auto", flat)[1])
    with pytest.raises(ConnectionError, match=r"The shards \[1, 4\] .* are missing"):
        index.search(queries, 10)


def test_waiting_too_long_is_an_error_that_names_the_shards(flat):
    index, queries = open_on_cluster("auto", flat), queries_of(flat)
    index.groups.timeout = 0.3
    kill(cluster_status("auto", flat)[2])
    with pytest.raises(ConnectionError, match=r"The shards \[2\] .* within 0.3 seconds"):
        index.search(queries, 10)


def test_a_call_that_is_lost_without_a_word_is_made_again(flat, monkeypatch):
    """The first call to a group is lost: its reference is one that nobody answers."""
    index, queries = open_on_cluster("auto", flat), queries_of(flat)
    monkeypatch.setattr(groups, "REPEAT_SECONDS", 0.2)
    ray = pytest.importorskip("ray")
    never, ask, calls = make_never(ray), index.groups._ask, []

    def lose_first(group, method, arguments):
        calls.append(group)
        return never.wait.remote() if calls == [0] else ask(group, method, arguments)

    monkeypatch.setattr(index.groups, "_ask", lose_first)
    assert index.search(queries, 10) == open_index(flat).search(queries, 10)
    assert calls[:3] == [0, 1, 2]
    assert calls.count(0) > 1, "others may be asked again too, where the machine is busy"
    ray.kill(never)


def test_a_call_that_is_lost_after_others_have_failed_is_made_again_as_soon(flat, monkeypatch):
    """Eight calls fail at once, as they do while a process is started again, and the ninth is lost."""
    index, queries = open_on_cluster("auto", flat), queries_of(flat)
    monkeypatch.setattr(groups, "REPEAT_SECONDS", 1.0)
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.01)
    index.groups.timeout = 40
    ray = pytest.importorskip("ray")
    never, dead = make_never(ray), make_never(ray)
    ray.kill(dead)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(dead.wait.remote())
    ask, calls = index.groups._ask, []

    def fail_first(group, method, arguments):
        if group == 0:
            calls.append(group)
            if len(calls) < 10:
                return (dead if len(calls) < 9 else never).wait.remote()
        return ask(group, method, arguments)

    monkeypatch.setattr(index.groups, "_ask", fail_first)
    assert index.search(queries, 10) == open_index(flat).search(queries, 10)
    ray.kill(never)


def test_reporting_answers_from_the_rest_and_counts_the_document(flat, model, tokenizer, tmp_path):
    """The rest is by hand what a local index of the other shards finds."""
    retriever = NeighborRetriever.from_pretrained(
        flat, cluster="auto", on_missing="report", cache=NeighborCache(tmp_path / "cache")
    )
    retriever.retrieve(["warm"], 3)
    kill(cluster_status("auto", flat)[1])
    answer = retriever.retrieve(["the captain"], 5)
    assert isinstance(answer, PartialAnswer)
    assert answer.missing_shards == [1, 4]
    assert answer == NeighborRetriever.from_pretrained(flat, shards=[0, 2, 3]).retrieve(["the captain"], 5)
    until(lambda: all(status.pid for status in cluster_status("auto", flat)))
    whole = retriever.retrieve(["the captain"], 5)
    assert whole == NeighborRetriever.from_pretrained(flat).retrieve(["the captain"], 5), "the cache kept no part"
    args = TestTimeTrainingArguments(
        output_dir=str(tmp_path), num_neighbors=2, max_length=32, use_cpu=True, disable_tqdm=True
    )
    retriever.cache = None
    trainer = TestTimeTrainer(model, args, retriever, processing_class=tokenizer)
    kill(cluster_status("auto", flat)[2])
    metrics = trainer.evaluate([Document("a", TEXTS[2])])
    assert metrics["eval_num_partial"] == 1
    assert trainer.records[0].missing_shards == [2]
    until(lambda: all(status.pid for status in cluster_status("auto", flat)))
    generator = TestTimeGenerator(trainer)
    generation = generator("the captain", max_new_tokens=5)
    assert generation.missing_shards == []
    trainer.retriever = NeighborRetriever.from_pretrained(flat)
    assert TestTimeGenerator(trainer)("the captain", max_new_tokens=5).texts == generation.texts
    trainer.retriever = retriever
    kill(cluster_status("auto", flat)[0])
    assert generator("the captain", max_new_tokens=5).missing_shards == [0, 3]


def test_a_replica_takes_over_when_a_node_is_lost(nodes, flat):
    index, queries = open_on_cluster("auto", flat, replicas=2, on_missing="raise"), queries_of(flat)
    expected = open_index(flat).search(queries, 10)
    statuses = cluster_status("auto", flat)
    assert len({(status.group, status.node) for status in statuses}) == 6, "replicas are on different nodes"
    assert index.search(queries, 10) == expected
    nodes.stdin.write("lose\n")
    nodes.stdin.flush()
    for _ in range(10):  # while the node goes away
        assert index.search(queries, 10) == expected
        time.sleep(0.1)
    assert nodes.stdout.readline() == "done\n"
    assert index.search(queries, 10) == expected


def test_machines_that_do_not_see_the_index_are_named(nodes, folders, tmp_path):
    shutil.copy(folders / "flat" / MANIFEST, tmp_path)
    with pytest.raises(ValueError, match="does not see the shards .* a folder that all machines share"):
        open_on_cluster("auto", tmp_path)
    stop_cluster("auto", tmp_path)


def test_another_version_of_the_index_is_refused(folders):
    group = ShardGroup(Source(str(folders / "flat"), None, {}), [0, 1], "another digest", 1)
    with pytest.raises(ValueError, match="has another version of"):
        group.describe()


def test_options_that_cannot_be_are_refused(nodes, folders):
    with pytest.raises(ValueError, match="`on_missing` is 'ignore'"):
        open_on_cluster("auto", folders / "flat", on_missing="ignore")
    with pytest.raises(ValueError, match="`replicas` is 0"):
        open_on_cluster("auto", folders / "flat", replicas=0)
    with pytest.raises(ValueError, match="`replicas` is 9, and the cluster has . machines"):
        open_on_cluster("auto", folders / "flat", replicas=9)
    with pytest.raises(ValueError, match="are for a cluster"):
        NeighborRetriever.from_pretrained(folders / "flat", replicas=2)


def test_without_a_cluster_the_error_says_how_to_start_one(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(
        RuntimeError, match=r"There is no Ray cluster at '127.0.0.1:9' \(.*refused\). .*ray start --head"
    ):
        connect("127.0.0.1:9")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'tttnn\[ray\]'"):
        connect("auto")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["flat", "ivf"])
def test_a_build_on_the_cluster_is_byte_for_byte_that_of_one_process(
    nodes, folders, corpus, embedder_folder, tmp_path, preset
):
    make_embedder = partial(Embedder, str(embedder_folder), device="cpu")
    settings = IndexSettings(preset, shard_size=64)
    if preset == "flat":  # with one process killed as soon as it has begun
        killer = subprocess.Popen([sys.executable, "-c", KILLER, str(tmp_path / "built")])
    assert build_on_cluster("auto", Corpus([corpus]), make_embedder, tmp_path / "built", settings)
    if preset == "flat":
        assert killer.wait(10) == 0, "no process was killed"
    whole, built = folders / preset, tmp_path / "built"
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and ".lock" not in path.name)
    assert filecmp.cmpfiles(whole, built, names, shallow=False) == (names, [], [])
    assert not build_on_cluster("auto", Corpus([corpus]), make_embedder, built, settings)


def test_a_build_has_a_process_for_each_gpu_and_for_each_machine_without_one(monkeypatch):
    """Ray starts only as many processes as the resources that each asks for, so these are what counts."""
    strategies = pytest.importorskip("ray.util.scheduling_strategies")
    monkeypatch.setattr(strategies, "NodeAffinitySchedulingStrategy", lambda node, soft: (node, soft))
    resources = {"a": {"CPU": 16.0, "GPU": 4.0}, "b": {"CPU": 8.0}, "c": {"GPU": 1.0}}
    nodes = [{"NodeID": name, "Alive": True, "Resources": item} for name, item in resources.items()]
    asked = []
    actor = SimpleNamespace(options=lambda **options: asked.append(options) or SimpleNamespace(remote=print))
    makers = building._makers(SimpleNamespace(nodes=lambda: nodes, remote=lambda kind: actor), ())
    assert len(makers) == 5, "four GPUs, and a machine; one without a CPU computes nothing"
    assert [
        (options["scheduling_strategy"][0], options.get("num_gpus", 0), options["num_cpus"]) for options in asked
    ] == [
        ("a", 1, 4),
        ("b", 0, 8),
    ]


KILLER = """
import os, signal, sys, time
from pathlib import Path

folder, end = Path(sys.argv[1]), time.monotonic() + 60
while time.monotonic() < end:
    for place in folder.glob(".unfinished/*@*"):
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if b"ray::Shard" + b"Builder" in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    sys.exit(0)
            except OSError:
                continue
    time.sleep(0.01)
sys.exit(1)
"""
