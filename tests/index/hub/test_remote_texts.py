"""Texts that stay on the Hub: each neighbor's is fetched by its bytes, and each failure has its own error."""

import json
import threading

import pytest
from conftest import TEXTS
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from loopback_hub import LoopbackHub

from tttnn import Embedder, NeighborRetriever
from tttnn.documents import Document, as_documents
from tttnn.index.build.from_documents import IndexSettings, build_index
from tttnn.index.hub.remote_texts import RemoteFile, RemoteTexts


TOKEN = "hf_of_mine"
QUERIES = ["The captain and the crew saw a whale.", "def main(argv): parser = ArgumentParser()", "東京 café"]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def folder(embedder, tmp_path_factory):
    """An index of three shards, of 4, 4 and 2 rows."""
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(as_documents(TEXTS), Embedder(embedder), folder, IndexSettings(shard_size=4))
    return folder


@pytest.fixture(scope="module")
def large_folder(embedder, tmp_path_factory):
    """An index of one shard of 250 texts of 8 kB: 2 MB."""
    folder = tmp_path_factory.mktemp("large") / "index"
    texts = [f"{number} {TEXTS[number % 10]} " * (8000 // len(TEXTS[number % 10])) for number in range(250)]
    build_index(as_documents(texts), Embedder(embedder), folder)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path, folder):
    """A Hub that sends on to a store, with the index at `user/index`."""
    with LoopbackHub(store=True) as hub:
        hub.attach(monkeypatch, tmp_path / "home")
        hub.commit("user/index", folder)
        yield hub


@pytest.fixture
def remote(hub, embedder):
    """The index with its texts on the Hub; requests from here on are for texts."""
    retriever = NeighborRetriever.from_pretrained("user/index", texts="remote", embedder=embedder)
    hub.requests.clear()
    return retriever


def texts_of(rows, retriever):
    return [document.text for document in retriever.index.documents(rows)]


def at_hub(hub):
    return [request for request in hub.requests if not request.at_store]


def at_store(hub):
    return [request for request in hub.requests if request.at_store]


# --- what is given ---


def test_neighbors_are_those_of_the_index_with_local_texts(remote, folder, embedder):
    local = NeighborRetriever.from_pretrained(folder, embedder=embedder)
    assert remote.retrieve(QUERIES, top_k=10) == local.retrieve(QUERIES, top_k=10)


def test_documents_come_with_ids_and_metadata_in_the_order_asked_for(hub, embedder, tmp_path):
    documents = [Document(f"é-{row}", f"text {row} 東京", {"row": row, "tags": ["a"]}) for row in range(12)]
    build_index(documents, Embedder(embedder), tmp_path / "index", IndexSettings(shard_size=5))
    hub.commit("user/documents", tmp_path / "index")
    remote = NeighborRetriever.from_pretrained("user/documents", texts="remote", embedder=embedder)
    assert remote.index.documents([11, 0, 7, 4, 0]) == [documents[row] for row in (11, 0, 7, 4, 0)]


def test_the_texts_themselves_are_not_downloaded(hub, embedder):
    NeighborRetriever.from_pretrained("user/index", texts="remote", embedder=embedder)
    fetched = {request.path.split("/", 3)[3] for request in at_store(hub) if request.method == "GET"}
    names = ("index/shard-{:05d}.faiss", "texts/shard-{:05d}.offsets.npy")
    assert fetched == {name.format(number) for name in names for number in range(3)}


def test_some_shards_can_be_opened_with_their_texts_on_the_hub(hub, embedder):
    remote = NeighborRetriever.from_pretrained("user/index", texts="remote", shards=[0, 2], embedder=embedder)
    assert texts_of([9, 0], remote) == [TEXTS[9], TEXTS[0]]
    with pytest.raises(IndexError, match="Row 5"):
        texts_of([5], remote)


def test_the_index_can_be_opened_from_the_cache_and_asks_the_hub_for_texts_only(hub, remote, embedder):
    again = NeighborRetriever.from_pretrained("user/index", texts="remote", local_files_only=True, embedder=embedder)
    assert hub.requests == []
    assert texts_of([3], again) == [TEXTS[3]]


def test_texts_are_of_the_commit_that_was_opened(hub, remote, embedder, tmp_path):
    build_index(as_documents([text.upper() for text in TEXTS]), Embedder(embedder), tmp_path / "index")
    hub.commit("user/index", tmp_path / "index")
    assert texts_of([3], remote) == [TEXTS[3]]


# --- what it costs ---


def test_twenty_neighbors_cost_fewer_than_25_requests_and_a_megabyte(hub, embedder, large_folder):
    hub.commit("user/large", large_folder)
    assert (large_folder / "texts" / "shard-00000.jsonl").stat().st_size > 1.9 * MEGABYTE
    remote = NeighborRetriever.from_pretrained("user/large", texts="remote", embedder=embedder)
    hub.requests.clear()
    assert len(remote.retrieve(QUERIES[:1], top_k=20)[0]) == 20
    assert len(hub.requests) < 25
    assert sum(request.num_bytes for request in hub.requests) < MEGABYTE


def test_twenty_neighbors_in_twenty_shards_cost_fewer_than_25_requests_at_the_first_query(hub, embedder, tmp_path):
    build_index(as_documents(TEXTS * 2), Embedder(embedder), tmp_path / "index", IndexSettings(shard_size=1))
    hub.commit("user/many", tmp_path / "index")
    remote = NeighborRetriever.from_pretrained("user/many", texts="remote", embedder=embedder)
    hub.requests.clear()
    assert len({neighbor.id for neighbor in remote.retrieve(QUERIES[:1], top_k=20)[0]}) == 20
    assert [request.at_store for request in hub.requests] == [True] * 20


def test_rows_of_all_shards_are_asked_for_at_the_same_time(hub, remote):
    hub.meeting = threading.Barrier(3)  # an answer comes when as many requests are under way
    assert texts_of([0, 4, 8], remote) == [TEXTS[row] for row in (0, 4, 8)]


def test_opening_costs_a_request_for_each_shard_beside_its_files(hub, embedder):
    NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    NeighborRetriever.from_pretrained("user/index", texts="remote", embedder=embedder)  # nothing else is missing
    asked = [request for request in hub.requests if "/texts/" in request.path][-3:]
    assert [(request.method, request.at_store) for request in asked] == [("HEAD", False)] * 3
    assert {request.path.split("/texts/")[1] for request in asked} == {f"shard-{n:05d}.jsonl" for n in range(3)}


def test_opening_costs_vectors_and_offsets_but_no_text(hub, embedder, large_folder):
    hub.commit("user/large", large_folder)
    NeighborRetriever.from_pretrained("user/large", texts="remote", embedder=embedder)
    # 250 vectors of 32 floats and 251 offsets are 34 kB, and the rest manifest and listings
    assert sum(request.num_bytes for request in hub.requests) < 0.06 * MEGABYTE


def test_only_the_bytes_of_a_text_are_asked_for(hub, remote, folder):
    lines = (folder / "texts" / "shard-00000.jsonl").read_bytes().splitlines(keepends=True)
    texts_of([1], remote)
    first, end = len(lines[0]), len(lines[0]) + len(lines[1])
    assert [request.range for request in hub.requests] == [f"bytes={first}-{end - 1}"]
    assert sum(request.num_bytes for request in at_store(hub)) == len(lines[1])


def test_the_hub_is_asked_for_the_place_of_a_shard_at_opening_and_not_again(hub, remote):
    texts_of([0, 1, 2, 3], remote)
    texts_of([3, 2], remote)
    assert (len(at_hub(hub)), len(at_store(hub))) == (0, 6)


def test_an_index_opened_from_the_cache_asks_for_the_place_of_a_shard_at_the_first_query(hub, remote, embedder):
    again = NeighborRetriever.from_pretrained("user/index", texts="remote", local_files_only=True, embedder=embedder)
    texts_of([0, 1, 2, 3], again)
    texts_of([3, 2], again)
    assert (len(at_hub(hub)), len(at_store(hub))) == (1, 6)


def test_a_neighbor_of_several_queries_is_asked_for_once(hub, remote):
    remote.retrieve(QUERIES, top_k=10)
    assert len(hub.requests) == 10  # rows


# --- tokens and addresses ---


def test_the_token_is_sent_to_the_hub_and_not_to_its_store(hub, embedder):
    remote = NeighborRetriever.from_pretrained("user/index", texts="remote", token=TOKEN, embedder=embedder)
    hub.expire()
    hub.requests.clear()
    texts_of([0, 1, 2], remote)
    assert [request.token for request in at_hub(hub)] == [f"Bearer {TOKEN}"]
    assert [request.token for request in at_store(hub)] == [None] * 4


def test_texts_of_a_private_repo_need_the_token(hub, embedder):
    hub.repos["datasets/user/index"].private = True
    remote = NeighborRetriever.from_pretrained("user/index", texts="remote", token=TOKEN, embedder=embedder)
    assert texts_of([5], remote) == [TEXTS[5]]


def test_an_expired_address_of_the_store_is_asked_for_again(hub, remote):
    hub.expire()
    assert texts_of([1, 2, 3], remote) == TEXTS[1:4]
    assert (len(at_hub(hub)), len(at_store(hub))) == (1, 4)  # the store refuses once


def test_a_store_that_refuses_every_address_is_the_error_of_the_hub(hub, remote, waits):
    hub.order("GET", "^/blobs/", status=403, times=100)
    with pytest.raises(HfHubHTTPError, match="403"):
        texts_of([1], remote)
    # the address it has, and a new one
    assert [request.at_store for request in hub.requests] == [True, False, True]
    assert waits == []


def test_a_repo_that_has_moved_is_followed_with_the_token(hub, remote, embedder):
    repo = hub.repos["datasets/user/index"]
    commit = repo.history[-1].sha
    path = f"resolve/{commit}/texts/shard-00000.jsonl"
    hub.repos["datasets/user/moved"] = repo
    headers = {"Location": f"/datasets/user/moved/{path}"}
    hub.order("HEAD", f"^/datasets/user/index/{path}", status=307, headers=headers)
    hub.order("GET", f"^/datasets/user/index/{path}", status=307, headers=headers)
    repo.private = True
    opened = NeighborRetriever.from_pretrained("user/index", texts="remote", token=TOKEN, embedder=embedder)
    assert texts_of([0], opened) == TEXTS[:1]
    hub.expire()
    assert texts_of([0], opened) == TEXTS[:1]
    asked = [request for request in at_hub(hub) if request.path.endswith("texts/shard-00000.jsonl")]
    assert [request.path.split("/")[3] for request in asked] == ["index", "moved"] * 2
    assert [request.token for request in asked] == [f"Bearer {TOKEN}"] * 4


def test_a_hub_without_a_store_is_asked_each_time(monkeypatch, tmp_path, folder, embedder):
    with LoopbackHub() as hub:
        hub.attach(monkeypatch, tmp_path / "home")
        hub.commit("user/index", folder)
        remote = NeighborRetriever.from_pretrained("user/index", texts="remote", token=TOKEN, embedder=embedder)
        hub.requests.clear()
        assert texts_of([0, 1], remote) == TEXTS[:2]
    assert [request.token for request in hub.requests] == [f"Bearer {TOKEN}"] * 2


# --- what goes wrong for a while ---


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_fails_for_a_while_is_asked_again(hub, remote, waits, status):
    hub.order("GET", "^/blobs/", status=status, times=2)
    assert texts_of([0], remote) == TEXTS[:1]
    assert waits == [1, 2]  # seconds, each time twice as long


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "9" * 400}, 300),  # the longest that is waited
        ({"Retry-After": "soon"}, 1),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1),
        ({"Retry-After": "Wed, 21 Oct 2999 07:28:00 GMT"}, 300),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55),  # as the Hub itself says it
        ({"RateLimit": '"resolvers";r=9;t=55'}, 1),
    ],
    ids=["none", "seconds", "ages", "no-number", "past", "future", "limit-reached", "limit-not-reached"],
)
def test_what_a_server_asks_to_wait_is_heeded(hub, remote, waits, headers, waited):
    hub.order("GET", "^/blobs/", status=429, headers=headers)
    assert texts_of([0], remote) == TEXTS[:1]
    assert waits == [waited]


def test_a_text_is_fetched_again_after_a_connection_that_broke_in_the_middle(hub, remote, waits):
    hub.order("GET", "^/blobs/", cut=10)
    hub.order("GET", "^/blobs/", cut=10, reset=True)
    assert texts_of([0, 1], remote) == TEXTS[:2]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_keeps_failing_is_a_connection_error_after_six_requests(hub, remote, waits, status):
    hub.order("GET", "^/blobs/", status=status, times=100)
    with pytest.raises(
        ConnectionError, match=rf"Row 1 of '.*/texts/shard-00000.jsonl' could not be fetched \(.*{status}"
    ):
        texts_of([1], remote)
    assert (len(hub.requests), waits) == (6, [1, 2, 4, 8, 8])


def test_a_hub_that_cannot_be_reached_is_a_connection_error(hub, remote, waits):
    hub.close()
    with pytest.raises(ConnectionError, match="Try again later"):
        texts_of([1], remote)
    assert len(waits) == 5


def test_a_hub_that_fails_for_a_while_at_opening_is_asked_again(hub, embedder, waits):
    hub.order("HEAD", "/resolve/.*/texts/shard-00001.jsonl", status=503, times=2)
    remote = NeighborRetriever.from_pretrained("user/index", texts="remote", embedder=embedder)
    assert (texts_of([5], remote), waits) == ([TEXTS[5]], [1, 2])


def test_texts_that_the_hub_refuses_are_its_error_at_opening(hub, embedder, waits):
    hub.order("HEAD", "/resolve/.*/texts/shard-00001.jsonl", status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        NeighborRetriever.from_pretrained("user/index", texts="remote", embedder=embedder)
    assert waits == []


def test_after_a_connection_error_the_next_query_is_asked_again(hub, remote, waits):
    hub.order("GET", "^/blobs/", status=503, times=6)
    with pytest.raises(ConnectionError):
        texts_of([1], remote)
    assert texts_of([1], remote) == [TEXTS[1]]


# --- what is refused or wrong ---


def test_an_unknown_repo_is_the_error_of_the_hub_at_once(hub, remote, waits):
    hub.repos.clear()
    hub.expire()
    with pytest.raises(RepositoryNotFoundError):
        texts_of([0], remote)
    assert ([request.at_store for request in hub.requests], waits) == ([True, False], [])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses_is_its_own_error_at_once(hub, remote, waits, status):
    hub.expire()
    hub.order("GET", "/resolve/", status=status)
    with pytest.raises(HfHubHTTPError, match=str(status)):
        texts_of([0], remote)
    assert ([request.at_store for request in hub.requests], waits) == ([True, False], [])


def test_a_refusal_is_no_connection_error(hub, remote):
    hub.expire()
    hub.order("GET", "/resolve/", status=401)
    with pytest.raises(HfHubHTTPError) as refused:
        texts_of([0], remote)
    assert not isinstance(refused.value, ConnectionError)


def test_a_refusal_of_one_of_several_texts_is_an_error(hub, remote):
    hub.order("GET", ".", status=404, times=100)
    with pytest.raises(HfHubHTTPError, match="404"):
        texts_of([1, 2, 3], remote)


@pytest.mark.parametrize("content", [b"", b'{"id": "3"'], ids=["nothing", "too little"])
def test_an_answer_of_another_length_is_a_connection_error_that_names_both(hub, remote, folder, content):
    line = (folder / "texts" / "shard-00000.jsonl").read_bytes().splitlines(keepends=True)[0]
    hub.order("GET", "^/blobs/", content=content or b"\n", times=100)
    expected = (
        rf"Row 0 of .*: {len(line)} bytes were asked for, and the answer has {len(content) or 1} with status 206"
    )
    with pytest.raises(ConnectionError, match=expected):
        texts_of([0], remote)


def test_a_server_that_knows_no_ranges_is_a_connection_error(hub, remote):
    hub.ranges = False
    with pytest.raises(ConnectionError, match=r"with status 200. .*`texts='local'`"):
        texts_of([0], remote)


def test_of_a_server_that_knows_no_ranges_the_file_is_not_read(hub, embedder, large_folder):
    hub.commit("user/large", large_folder)
    remote = NeighborRetriever.from_pretrained("user/large", texts="remote", embedder=embedder)
    hub.ranges = False
    hub.order("GET", "^/blobs/", cut=1000, hold=True)  # of 2 MB, and only then the client can be gone
    with pytest.raises(ConnectionError, match=r"bytes were asked for, and the answer has \d{7} with status 200"):
        texts_of([0], remote)


def test_an_answer_that_is_too_long_is_not_read(hub, remote):
    hub.order("GET", "^/blobs/", content=b"?" * 5000, status=206, cut=1000, hold=True)
    with pytest.raises(ConnectionError, match="the answer has 5000 with status 206"):
        texts_of([0], remote)


def test_redirects_in_a_circle_are_a_connection_error(hub, remote):
    hub.expire()
    texts_of([4], remote)
    hub.requests.clear()
    hub.order("GET", "/resolve/", status=302, headers={"Location": "/datasets/user/index/resolve/x"}, times=100)
    with pytest.raises(ConnectionError, match="redirected 5 times, at last to '.*/datasets/user/index/resolve/x'"):
        texts_of([0], remote)
    assert len(hub.requests) == 5


def test_a_damaged_text_is_an_error_that_names_its_row_and_file(hub, remote, folder):
    size = (folder / "texts" / "shard-00000.jsonl").stat().st_size
    hub.order("GET", "^/blobs/", content=b"?" * size)
    with pytest.raises(ValueError, match=r"Row 2 of 'http.*/texts/shard-00000.jsonl' is damaged"):
        texts_of([2], remote)


def test_damaged_offsets_are_an_error_before_anything_is_asked_for(hub, folder, tmp_path):
    import numpy as np

    offsets = np.load(folder / "texts" / "shard-00000.offsets.npy")
    np.save(tmp_path / "offsets.npy", offsets[[0, 2, 1, 3, 4]])
    file = RemoteFile(f"{hub.url}/texts.jsonl", {})
    texts = RemoteTexts(file, tmp_path / "offsets.npy", 4, int(offsets[-1]))
    with pytest.raises(ValueError, match="offsets of Row 1 .* are damaged"):
        texts.fetch([1])
    assert hub.requests == []


def test_offsets_of_another_file_are_an_error(folder, tmp_path):
    path = folder / "texts" / "shard-00000.offsets.npy"
    with pytest.raises(ValueError, match="does not hold the offsets of 4 lines"):
        RemoteTexts(RemoteFile("http://127.0.0.1/texts.jsonl", {}), path, 4, 17)


def test_remote_texts_of_a_local_folder_are_an_error(folder):
    with pytest.raises(ValueError, match="`texts` is 'remote', but .* is a local folder"):
        NeighborRetriever.from_pretrained(folder, texts="remote")


def test_another_word_for_texts_is_an_error():
    with pytest.raises(ValueError, match="`texts` is 'none'. Pass 'local', or 'remote'"):
        NeighborRetriever.from_pretrained("user/index", texts="none")


def test_an_index_with_texts_on_the_hub_is_not_saved(hub, remote, tmp_path):
    with pytest.raises(FileNotFoundError, match="shard-00000.jsonl"):
        remote.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_lines_on_the_hub_are_json_objects_of_three_fields(hub):
    lines = hub.files("user/index")["texts/shard-00002.jsonl"].decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": f"row {row}", "text": TEXTS[row], "metadata": {}} for row in (8, 9)
    ]
