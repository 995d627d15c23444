"""An index on the Hub, asked for over HTTP on 127.0.0.1: pinned, fetched once, and then at home in the cache."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import TEXTS
from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError
from loopback_hub import LoopbackHub

from tttnn import NeighborRetriever


pytestmark = pytest.mark.slow  # a process of its own imports torch and transformers

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
QUERY = "The captain and the crew saw a whale."


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
        environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(cache), QUERY],
            env={**environment, **hub.environment(), "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    return {"outcomes": json.loads(run.stdout.splitlines()[-1]), "hub": hub, "commits": commits, "cache": cache}


@pytest.fixture
def outcomes(visit):
    return visit["outcomes"]


@pytest.fixture
def cache(visit, tmp_path):
    return shutil.copytree(visit["cache"], tmp_path / "cache", symlinks=True)


def resolved(visit, revision):
    """The files of a commit that were fetched whole."""
    start = f"/datasets/user/index/resolve/{visit['commits'][revision]}/"
    return [path.removeprefix(start) for path in visit["hub"].paths("GET") if path.startswith(start)]


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


def test_local_files_only_without_the_files_is_the_error_of_the_hub(tmp_path):
    with pytest.raises(LocalEntryNotFoundError, match="local_files_only=False"):
        NeighborRetriever.from_pretrained("user/index", cache_dir=tmp_path / "empty", local_files_only=True)


def test_a_file_missing_in_the_cache_is_an_error_that_names_it(visit, cache):
    snapshot = cache / "datasets--user--index" / "snapshots" / visit["commits"]["v1"]
    (snapshot / "texts" / "shard-00000.jsonl").unlink()
    with pytest.raises((IncompleteSnapshotError, FileNotFoundError), match="shard-00000.jsonl"):
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
