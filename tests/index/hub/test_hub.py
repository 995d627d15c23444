"""An index on the Hub, over HTTP on 127.0.0.1: pinned by revision, fetched once, and then opened from the cache."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEXTS
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import close_session
from loopback_hub import LoopbackHub

from tttnn import Embedder, NeighborRetriever
from tttnn.documents import as_documents
from tttnn.index.build.from_documents import IndexSettings, build_index
from tttnn.index.hub.card import index_card
from tttnn.index.manifest import read_manifest


pytestmark = pytest.mark.slow  # a separate process imports torch and transformers

# `HF_ENDPOINT` must be set before huggingface_hub is imported: all that asks the Hub runs in this program, once.
PROGRAM = """
import json, sys
from tttnn import NeighborRetriever

cache, query = sys.argv[1:]
outcomes = {}
for name, repo_id, arguments in [
    ("v1", "user/index", {"revision": "v1"}),
    ("v1 again", "user/index", {"revision": "v1"}),
    ("main", "user/index", {}),
    ("with a token", "user/index", {"token": "hf_of_mine"}),
    ("unknown repo", "user/nothing", {}),
    ("unknown revision", "user/index", {"revision": "v9"}),
    ("no index", "user/texts", {}),
]:
    try:
        retriever = NeighborRetriever.from_pretrained(repo_id, cache_dir=cache, **arguments)
        outcomes[name] = [neighbor.text for neighbor in retriever.retrieve([query], top_k=3)[0]]
    except (OSError, ValueError) as error:
        outcomes[name] = {"type": type(error).__name__, "message": str(error)}
print(json.dumps(outcomes))
"""
# What needs no tttnn: the texts of an index as a data set, and the metric from its Space.
OUTSIDE = """
import json, sys

import datasets
import evaluate

rows = datasets.load_dataset("user/index", split="train")
streamed = datasets.load_dataset("user/index", split="train", streaming=True)
old = datasets.load_dataset("user/index", split="train", revision="v1")
metric = evaluate.load("user/bits_per_byte", module_type="metric")
outcomes = {
    "columns": rows.column_names,
    "rows": list(rows),
    "streamed": list(streamed),
    "v1": old["text"][:],
    "result": metric.compute(predictions=[-12.0, -6.0], references=["long", "café"]),
    "tttnn": "tttnn" in sys.modules,
}
print(json.dumps(outcomes))
"""
QUERY = "The captain and the crew saw a whale."
METRIC = Path(__file__).parents[3] / "tttnn" / "metrics" / "bits_per_byte"


def run_program(program, hub, home, *arguments):
    """What a program printed last, in a separate process for which the Hub is this one."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**environment, **hub.environment(), "HF_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def visit(tmp_path_factory, embedder):
    """What a process saw of a Hub with an index at `v1` and another at `main`; the Hub is gone when the tests run."""
    folder, cache = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("cache")
    NeighborRetriever.from_documents(TEXTS, embedder).save_pretrained(folder / "v1")
    NeighborRetriever.from_documents([text.upper() for text in TEXTS], embedder).save_pretrained(folder / "main")
    (folder / "texts").mkdir()
    (folder / "texts" / "train.txt").write_text("a data set, but no index")
    with LoopbackHub() as hub:
        commits = {revision: hub.commit("user/index", folder / revision, revision) for revision in ("v1", "main")}
        hub.commit("user/texts", folder / "texts")
        outcomes = run_program(PROGRAM, hub, folder / "home", str(cache), QUERY)
    return {"outcomes": outcomes, "hub": hub, "commits": commits, "cache": cache}


@pytest.fixture
def outcomes(visit):
    return visit["outcomes"]


@pytest.fixture
def cache(visit, tmp_path):
    return shutil.copytree(visit["cache"], tmp_path / "cache", symlinks=True)


@pytest.fixture(scope="module")
def folder(embedder, tmp_path_factory):
    """An index of three shards, of 4, 4 and 2 rows, with its card."""
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(as_documents(TEXTS), Embedder(embedder), folder, IndexSettings(shard_size=4))
    (folder / "README.md").write_text(index_card(read_manifest(folder), "user/index"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def outside(tmp_path_factory, folder, embedder):
    """What a process without tttnn got from a Hub with an index and a Space, and what it asked for."""
    home = tmp_path_factory.mktemp("outside")
    build_index(as_documents(TEXTS[:2]), Embedder(embedder), home / "v1")
    with LoopbackHub(store=True) as hub:
        hub.commit("user/index", home / "v1", "v1")
        hub.commit("user/index", folder)
        hub.commit("user/bits_per_byte", METRIC, kind="spaces")
        return {**run_program(OUTSIDE, hub, home / "home"), "requests": hub.requests}


@pytest.fixture
def hub(monkeypatch, tmp_path, folder):
    """A Hub that sends on to a store, with the index of three shards, for this process."""
    with LoopbackHub(store=True) as hub:
        hub.attach(monkeypatch, tmp_path / "home")
        hub.commit("user/index", folder)
        yield hub


def resolved(visit, revision):
    """The files of a commit that were fetched whole."""
    start = f"/datasets/user/index/resolve/{visit['commits'][revision]}/"
    return [path.removeprefix(start) for path in visit["hub"].paths("GET") if path.startswith(start)]


def test_an_index_from_the_hub_names_its_repo_and_revision(visit, cache, embedder):
    opened = NeighborRetriever.from_pretrained("user/index", revision="v1", cache_dir=cache, local_files_only=True)
    folder = embedder.transformers_model.config._name_or_path
    assert repr(opened) == (
        f"NeighborRetriever(DocumentIndex(rows=10, shards=1, storage='IndexFlatL2', embedder='{folder}', "
        "source='user/index@v1'))"
    )


def nearest(retriever):
    return [neighbor.text for neighbor in retriever.retrieve([QUERY], top_k=3)[0]]


def test_an_index_from_the_hub_gives_the_neighbors_of_the_one_in_memory(outcomes, retriever):
    assert outcomes["v1"] == nearest(retriever)


def test_without_a_revision_the_index_is_that_of_main(outcomes, embedder):
    assert outcomes["main"] == nearest(NeighborRetriever.from_documents([text.upper() for text in TEXTS], embedder))


def test_only_the_manifest_the_vectors_and_the_texts_are_fetched_each_once(visit):
    assert visit["outcomes"]["v1 again"] == visit["outcomes"]["v1"]
    assert sorted(resolved(visit, "v1")) == [
        "index/shard-00000.faiss",
        "texts/shard-00000.jsonl",
        "texts/shard-00000.offsets.npy",
        "tttnn_index.json",
    ]


def test_the_revision_is_asked_for_by_name_and_fetched_by_commit(visit):
    assert visit["hub"].paths("GET")[0] == "/api/datasets/user/index/revision/v1"
    assert not any("/resolve/v1/" in request.path for request in visit["hub"].requests)


def test_the_token_is_sent_only_where_it_is_given(visit):
    with_token = {request.path for request in visit["hub"].requests if request.token is not None}
    assert {request.token for request in visit["hub"].requests} == {None, "Bearer hf_of_mine"}
    assert with_token == {"/api/datasets/user/index/revision/main"}


def test_an_unknown_repo_is_the_error_of_the_hub_that_names_it(outcomes):
    assert outcomes["unknown repo"]["type"] == "RepositoryNotFoundError"
    assert "/api/datasets/user/nothing/" in outcomes["unknown repo"]["message"]


def test_an_unknown_revision_is_the_error_of_the_hub_that_names_it(outcomes):
    assert outcomes["unknown revision"]["type"] == "RevisionNotFoundError"
    assert "v9" in outcomes["unknown revision"]["message"]


def test_a_repo_without_an_index_is_an_error_that_names_the_manifest(outcomes):
    assert outcomes["no index"]["type"] == "FileNotFoundError"
    assert "holds no `tttnn_index.json`" in outcomes["no index"]["message"]


def test_local_files_only_opens_what_was_fetched(cache, retriever):
    opened = NeighborRetriever.from_pretrained("user/index", revision="v1", cache_dir=cache, local_files_only=True)
    assert nearest(opened) == nearest(retriever)


def test_a_commit_serves_as_revision(visit, cache, retriever):
    commit = visit["commits"]["v1"]
    opened = NeighborRetriever.from_pretrained("user/index", revision=commit, cache_dir=cache, local_files_only=True)
    assert nearest(opened) == nearest(retriever)


@pytest.mark.parametrize(
    ("options", "setting"), [({"local_files_only": True}, "local_files_only"), ({}, "HF_HUB_OFFLINE")]
)
def test_without_the_hub_and_the_files_the_error_names_the_index_and_the_setting(tmp_path, options, setting):
    message = rf"no folder 'user/index', .* \(revision 'v1'\) is not complete in .* `{setting}` is set. .*`--index`"
    with pytest.raises(FileNotFoundError, match=message):
        NeighborRetriever.from_pretrained("user/index", revision="v1", cache_dir=tmp_path / "empty", **options)


def test_a_file_missing_in_the_cache_is_an_error_that_names_it(visit, cache):
    snapshot = cache / "datasets--user--index" / "snapshots" / visit["commits"]["v1"]
    (snapshot / "texts" / "shard-00000.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="shard-00000.jsonl"):
        NeighborRetriever.from_pretrained("user/index", revision="v1", cache_dir=cache, local_files_only=True)


def test_a_file_damaged_in_the_cache_is_an_error_that_names_it_even_after_a_good_open(visit, cache):
    arguments = {"revision": "v1", "cache_dir": cache, "local_files_only": True}
    NeighborRetriever.from_pretrained("user/index", **arguments)
    path = cache / "datasets--user--index" / "snapshots" / visit["commits"]["v1"] / "index" / "shard-00000.faiss"
    assert path.is_symlink()
    blob = path.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(0, 0))
    with pytest.raises(ValueError, match="shard-00000.faiss' is damaged"):
        NeighborRetriever.from_pretrained("user/index", **arguments)


# --- some of the shards ---


def names_of(*numbers):
    patterns = ("index/shard-{:05d}.faiss", "texts/shard-{:05d}.jsonl", "texts/shard-{:05d}.offsets.npy")
    return {pattern.format(number) for pattern in patterns for number in numbers}


def fetched(hub):
    return {request.path.split("/", 3)[3] for request in hub.requests if request.at_store and request.method == "GET"}


def test_only_the_files_of_the_shards_asked_for_are_fetched(hub, embedder):
    NeighborRetriever.from_pretrained("user/index", shards=[0, 2], embedder=embedder)
    assert fetched(hub) == names_of(0, 2)


def test_neighbors_from_some_shards_keep_their_ids(hub, embedder, folder):
    some = NeighborRetriever.from_pretrained("user/index", shards=[2, 0], embedder=embedder)
    whole = NeighborRetriever.from_pretrained(folder, embedder=embedder)
    expected = [each for each in whole.retrieve([QUERY], top_k=10)[0] if each.id in (0, 1, 2, 3, 8, 9)]
    assert some.retrieve([QUERY], top_k=6)[0] == expected
    assert {each.id: each.text for each in expected} == {row: TEXTS[row] for row in (0, 1, 2, 3, 8, 9)}


def test_the_other_shards_are_fetched_when_they_are_asked_for(hub, embedder):
    NeighborRetriever.from_pretrained("user/index", shards=[0, 2], embedder=embedder)
    hub.requests.clear()
    assert len(NeighborRetriever.from_pretrained("user/index", embedder=embedder)) == 10
    assert fetched(hub) == names_of(1)


def test_some_shards_open_without_the_hub_when_they_are_in_the_cache(hub, embedder):
    NeighborRetriever.from_pretrained("user/index", shards=[0, 2], embedder=embedder)
    hub.close()
    opened = NeighborRetriever.from_pretrained("user/index", shards=[2], local_files_only=True, embedder=embedder)
    assert len(opened) == 2


@pytest.mark.parametrize("shards", [[], [3], [-1]])
def test_shards_that_are_not_there_are_an_error_before_any_is_fetched(hub, embedder, shards):
    with pytest.raises(ValueError, match="the index has shards 0 to 2"):
        NeighborRetriever.from_pretrained("user/index", shards=shards, embedder=embedder)
    assert fetched(hub) == set()


# --- what goes wrong on the way ---


def test_a_file_cut_off_in_the_middle_is_resumed_from_there(hub, embedder, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50)  # what is written at a time
    hub.order("GET", "^/blobs/.*/texts/shard-00000.jsonl", cut=120)
    retriever = NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    asked = [request for request in hub.requests if request.path.endswith("shard-00000.jsonl")]
    assert [request.range for request in asked if request.method == "GET"] == [None, "bytes=100-"]
    assert retriever.index.documents([0])[0].text == TEXTS[0]


def test_after_a_download_that_failed_only_the_files_that_are_missing_are_fetched(hub, embedder):
    hub.order("GET", "^/blobs/.*/texts/shard-00002.jsonl", status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    arrived = {request.path.split("/", 3)[3] for request in hub.requests if request.num_bytes > 0 and request.at_store}
    hub.requests.clear()
    assert len(NeighborRetriever.from_pretrained("user/index", embedder=embedder)) == 10
    assert fetched(hub) == names_of(0, 1, 2) - (arrived - {"texts/shard-00002.jsonl"})


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("GET", "/revision/main"),
        ("GET", "/tree/"),
        ("HEAD", "/resolve/.*/index/shard-00001.faiss"),
        ("GET", "/resolve/.*/tttnn_index.json"),
        ("GET", "^/blobs/.*/index/shard-00001.faiss"),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_an_index_opens_after_an_answer_that_passes(hub, embedder, waits, method, pattern, status):
    hub.order(method, pattern, status=status, times=2)
    assert len(NeighborRetriever.from_pretrained("user/index", embedder=embedder)) == 10
    assert hub.faults[-1].times == 0


def test_an_index_opens_after_a_connection_that_was_reset(hub, embedder, waits):
    hub.order("GET", "^/blobs/.*/index/shard-00001.faiss", cut=100, reset=True)
    assert len(NeighborRetriever.from_pretrained("user/index", embedder=embedder)) == 10


def test_a_download_waits_as_long_as_the_hub_asks(hub, embedder, waits):
    hub.order("GET", "/revision/main", status=503, headers={"Retry-After": "7"})
    NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    assert waits == [7]


@pytest.mark.parametrize(("method", "pattern"), [("GET", "/revision/main"), ("GET", "^/blobs/.*/shard-00001.faiss")])
def test_a_hub_that_keeps_failing_is_a_connection_error_that_says_how_to_resume(hub, embedder, waits, method, pattern):
    hub.order(method, pattern, status=503, times=1000)
    with pytest.raises(ConnectionError, match=r"The index 'user/index' .* could not be downloaded .*503.* again"):
        NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    assert waits == [1, 2, 4, 8, 8]


def test_a_hub_that_cannot_be_reached_is_a_connection_error(hub, embedder, waits):
    hub.close()
    with pytest.raises(ConnectionError, match=r"The index 'user/index' \(revision 'main'\) could not be downloaded"):
        NeighborRetriever.from_pretrained("user/index", embedder=embedder)


@pytest.mark.parametrize("pattern", ["/revision/main", "/resolve/.*/index/shard-00001.faiss"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_refuses_is_its_own_error_at_once(hub, embedder, waits, pattern, status):
    hub.order("HEAD" if "resolve" in pattern else "GET", pattern, status=status)
    with pytest.raises(HfHubHTTPError, match=str(status)):
        NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    assert waits == []


def test_without_the_hub_what_is_in_the_cache_opens_at_once(hub, embedder, waits):
    NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    hub.close()
    close_session()  # a connection that is open would first be found broken
    assert len(NeighborRetriever.from_pretrained("user/index", embedder=embedder)) == 10
    assert waits == []


def test_other_bytes_of_the_same_length_are_an_error_that_names_the_file(hub, embedder, folder):
    size = (folder / "texts" / "shard-00001.jsonl").stat().st_size
    hub.order("GET", "^/blobs/.*/texts/shard-00001.jsonl", content=bytes(size))
    with pytest.raises(ValueError, match=r"texts/shard-00001.jsonl' is damaged: its sha256 is"):
        NeighborRetriever.from_pretrained("user/index", embedder=embedder)


def test_what_the_error_of_a_damaged_file_says_mends_it(hub, embedder, folder):
    size = (folder / "texts" / "shard-00001.jsonl").stat().st_size
    hub.order("GET", "^/blobs/.*/texts/shard-00001.jsonl", content=bytes(size))
    with pytest.raises(ValueError) as damaged:
        NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    Path(re.search(r"Remove '(.*?)', and fetch", str(damaged.value))[1]).unlink()
    retriever = NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    assert retriever.index.documents([4])[0].text == TEXTS[4]


def test_files_of_another_commit_than_the_manifest_are_never_mixed_in(hub, embedder, tmp_path, monkeypatch):
    import tttnn.index.hub.transfer

    build_index(as_documents([text.upper() for text in TEXTS]), Embedder(embedder), tmp_path / "upper")
    read = tttnn.index.hub.transfer.read_manifest

    def read_while_somebody_pushes(path):
        hub.commit("user/index", tmp_path / "upper")
        return read(path)

    monkeypatch.setattr(tttnn.index.hub.transfer, "read_manifest", read_while_somebody_pushes)
    retriever = NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    assert [document.text for document in retriever.index.documents(range(10))] == TEXTS


# --- without tttnn ---


def test_the_texts_of_an_index_are_a_data_set(outside):
    assert outside["columns"] == ["id", "text", "metadata"]
    assert [row["text"] for row in outside["rows"]] == TEXTS
    assert [row["id"] for row in outside["rows"]] == [f"row {row}" for row in range(10)]
    assert {row["metadata"] for row in outside["rows"]} == {"{}"}
    assert not outside["tttnn"]


def test_the_data_set_can_be_streamed(outside):
    assert outside["streamed"] == outside["rows"]


def test_the_data_set_of_an_index_without_a_card_is_found_by_the_names_of_its_files(outside):
    assert outside["v1"] == TEXTS[:2]


def test_a_data_set_costs_neither_vectors_nor_the_texts_for_neighbors(outside):
    asked = {request.path.rsplit("/", 1)[1] for request in outside["requests"] if request.at_store}
    assert asked == {f"train-{number:05d}.parquet" for number in range(3)}


def test_the_metric_loads_from_its_space(outside):
    # 18 nats on 9 bytes, for "é" has two: 2 nats a byte
    assert outside["result"] == pytest.approx({"bits_per_byte": 2 / math.log(2), "byte_perplexity": math.e**2})


def test_of_the_space_only_the_file_of_the_metric_is_fetched(outside):
    paths = [request.path for request in outside["requests"] if "/spaces/" in request.path]
    # first the tag of evaluate's own version, which no Space of ours has
    assert {path.rsplit("/", 1)[1] for path in paths} == {"bits_per_byte.py"}
    assert paths[-1] == "/spaces/user/bits_per_byte/resolve/main/bits_per_byte.py"
