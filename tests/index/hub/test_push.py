"""An index pushed to a Hub on 127.0.0.1 and pulled from it: one commit, nothing sent twice, no other file lost."""

import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import TEXTS
from huggingface_hub import DatasetCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from loopback_hub import LoopbackHub

from tttnn import Embedder, NeighborRetriever
from tttnn.cli.main import main
from tttnn.documents import as_documents
from tttnn.files import locked
from tttnn.index.build.from_documents import IndexSettings, add_documents, build_index
from tttnn.index.hub.card import GENERATED
from tttnn.index.hub.transfer import pull_index, push_index


TOKEN = "hf_of_mine"
QUERY = "The captain and the crew saw a whale."
SHARD = ["index/shard-{:05d}.faiss", "texts/shard-{:05d}.jsonl", "texts/shard-{:05d}.offsets.npy"]
SHARD += ["data/train-{:05d}.parquet"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that sends on to a store, and this process with the token of an account on it."""
    with LoopbackHub(store=True) as hub:
        hub.attach(monkeypatch, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def public(embedder):
    """The embedder as if it came from the Hub: its name is pushed as it is."""
    named = Embedder(embedder)
    named.name = "user/embedder"
    return named


@pytest.fixture(scope="module")
def make(embedder, tmp_path_factory):
    """Build an index of texts, four rows a shard; the same folder for the same texts."""
    made = {}

    def make(texts=TEXTS):
        if tuple(texts) not in made:
            folder = made[tuple(texts)] = tmp_path_factory.mktemp("index") / "index"
            build_index(as_documents(texts), public(embedder), folder, IndexSettings(shard_size=4))
        return made[tuple(texts)]

    return make


@pytest.fixture
def folder(make):
    """An index of three shards, of 4, 4 and 2 rows."""
    return make()


def files_in(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def found(retriever):
    return [(neighbor.id, neighbor.text) for neighbor in retriever.retrieve([QUERY], top_k=5)[0]]


def written_to(hub):
    return [path for path in hub.paths("POST") + hub.paths("PUT") if not path.endswith("/paths-info/main")]


# --- what arrives ---


def test_an_index_in_memory_opens_from_the_hub_after_a_push(hub, retriever, embedder):
    retriever.push_to_hub("user/index")
    assert found(NeighborRetriever.from_pretrained("user/index", embedder=embedder)) == found(retriever)


def test_an_index_on_disk_arrives_file_by_file_as_it_is(hub, folder, embedder):
    NeighborRetriever.from_pretrained(folder, embedder=embedder).push_to_hub("user/index")
    arrived = hub.files("user/index")
    assert {name: arrived[name] for name in files_in(folder)} == files_in(folder)
    assert arrived.keys() == files_in(folder).keys() | {"README.md", ".gitattributes"}


def test_the_path_of_a_local_embedder_stays_here(hub, embedder, tmp_path):
    embedder.save(str(tmp_path / "of-ann" / "minilm"))
    local = Embedder(tmp_path / "of-ann" / "minilm")
    build_index(as_documents(TEXTS), local, tmp_path / "index")
    push_index(tmp_path / "index", "user/index")
    arrived = hub.files("user/index")
    assert [name for name, content in arrived.items() if b"of-ann" in content] == []
    assert json.loads(arrived["tttnn_index.json"])["embedder"] == local.describe() | {"name": "./minilm"}
    with pytest.raises(ValueError, match=r"'\./minilm', a relative path, .* Pass it"):
        NeighborRetriever.from_pretrained("user/index").retrieve([QUERY], top_k=1)
    # on the machine that built it, the embedder need not be passed
    expected = found(NeighborRetriever.from_pretrained(tmp_path / "index"))
    assert found(NeighborRetriever.from_pretrained("user/index", embedder=local)) == expected


def test_a_push_gives_the_commit(hub, folder):
    commit = push_index(folder, "user/index")
    assert commit.oid == hub.repos["datasets/user/index"].history[-1].sha
    assert commit.commit_url == f"{hub.url}/datasets/user/index/commit/{commit.oid}"


def test_a_push_is_one_commit(hub, folder):
    push_index(folder, "user/index")
    assert [commit.message for commit in hub.repos["datasets/user/index"].history] == [
        "initial commit",
        "Upload index",
    ]


def test_the_commit_message_is_the_one_given(hub, folder):
    push_index(folder, "user/index", commit_message="Ten texts of three kinds")
    assert hub.repos["datasets/user/index"].history[-1].message == "Ten texts of three kinds"


def test_a_new_repo_is_public_where_the_account_says_nothing_else(hub, folder, embedder, monkeypatch):
    push_index(folder, "user/index")
    monkeypatch.delenv("HF_TOKEN")
    assert len(NeighborRetriever.from_pretrained("user/index", embedder=embedder)) == 10


def test_a_private_repo_opens_with_a_token_only(hub, folder, embedder, monkeypatch):
    push_index(folder, "user/index", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError):
        NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    assert len(NeighborRetriever.from_pretrained("user/index", token=TOKEN, embedder=embedder)) == 10


def test_a_token_can_be_given(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    push_index(folder, "user/index", token=TOKEN)
    assert "tttnn_index.json" in hub.files("user/index")


def test_the_token_is_sent_to_the_hub_and_not_to_its_store(hub, folder):
    push_index(folder, "user/index")
    assert {request.token for request in hub.requests if request.method == "POST"} == {f"Bearer {TOKEN}"}
    assert {request.token for request in hub.requests if request.method == "PUT"} == {None}


def test_a_branch_is_made_and_main_left_as_it_is(hub, folder):
    push_index(folder, "user/index", revision="v2")
    assert hub.files("user/index").keys() == {".gitattributes"}
    assert files_in(folder).items() <= hub.files("user/index", "v2").items()


def test_a_branch_that_is_there_gets_a_commit(hub, make, folder):
    push_index(folder, "user/index", revision="v2")
    push_index(make(TEXTS[:5]), "user/index", revision="v2")
    assert files_in(make(TEXTS[:5])).items() <= hub.files("user/index", "v2").items()


def test_the_pushed_texts_are_rows_of_a_data_set(hub, folder, tmp_path):
    import pyarrow.parquet

    push_index(folder, "user/index")
    (tmp_path / "train.parquet").write_bytes(hub.files("user/index")["data/train-00002.parquet"])
    rows = pyarrow.parquet.read_table(tmp_path / "train.parquet").to_pylist()
    assert [row["text"] for row in rows] == TEXTS[8:]


# --- over an earlier index ---


def test_the_files_of_an_earlier_larger_index_go_with_the_same_commit(hub, make, folder):
    push_index(folder, "user/index")
    push_index(make(TEXTS[:4]), "user/index")
    first, larger, smaller = hub.repos["datasets/user/index"].history
    assert larger.files.keys() - smaller.files.keys() == {name.format(n) for name in SHARD for n in (1, 2)}
    assert files_in(make(TEXTS[:4])).items() <= smaller.files.items()


def test_files_that_no_index_has_are_kept(hub, folder, make, tmp_path):
    names = ["notes.md", "data/train-00000-of-00002.parquet", "data/dev.jsonl", "texts/sources.txt", "index/README.md"]
    for name in names:
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).write_text(f"{name} of somebody")
    hub.commit("user/corpus", tmp_path / "corpus")
    push_index(folder, "user/corpus")
    push_index(make(TEXTS[:4]), "user/corpus")
    assert files_in(tmp_path / "corpus").items() <= hub.files("user/corpus").items()


def test_the_same_index_pushed_again_sends_nothing(hub, folder):
    first = push_index(folder, "user/index")
    sent = len(hub.paths("PUT"))
    assert push_index(folder, "user/index").oid == first.oid
    assert len(hub.paths("PUT")) == sent
    assert len(hub.repos["datasets/user/index"].history) == 2


def test_after_an_append_only_the_new_shard_is_sent(hub, embedder, tmp_path):
    build_index(as_documents(TEXTS[:4]), Embedder(embedder), tmp_path / "index", IndexSettings(shard_size=4))
    push_index(tmp_path / "index", "user/index")
    before = len(hub.paths("PUT"))
    add_documents(as_documents(TEXTS[4:6]), Embedder(embedder), tmp_path / "index")
    push_index(tmp_path / "index", "user/index")
    new = [(tmp_path / "index" / name.format(1)).read_bytes() for name in SHARD]
    assert sorted(hub.paths("PUT")[before:]) == sorted(f"/blobs/{sha256(each).hexdigest()}/upload" for each in new)


# --- the card ---


def test_a_card_is_made(hub, folder):
    push_index(folder, "user/index", license="cc-by-4.0")
    card = DatasetCard(hub.files("user/index")["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert 'NeighborRetriever.from_pretrained("user/index")' in card.text
    assert "10 documents" in card.text


def test_the_example_of_the_card_runs(hub, retriever, capsys):
    retriever.push_to_hub("user/index")
    (example,) = re.findall(r"```python\n(.*?)```", hub.files("user/index")["README.md"].decode(), re.DOTALL)
    folder = Path(retriever.embedder.name)
    assert f'embedder="path/to/{folder.name}"' in example
    capsys.readouterr()
    exec(example.replace(f"path/to/{folder.name}", str(folder)), {})
    expected = retriever.retrieve(["a text"], top_k=3)[0]
    printed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for _, name in printed] == [neighbor.metadata["id"] for neighbor in expected]
    assert [float(distance) for distance, _ in printed] == pytest.approx(
        [each.distance for each in expected], rel=1e-4
    )


def test_a_generated_card_is_generated_again(hub, make, folder):
    push_index(folder, "user/index")
    push_index(make(TEXTS[:4]), "user/index")
    assert "of 4 documents" in hub.files("user/index")["README.md"].decode()


def test_a_licence_once_given_stays_in_the_cards_made_later(hub, make, folder):
    push_index(folder, "user/index", license="cc-by-4.0")
    push_index(make(TEXTS[:4]), "user/index")
    assert DatasetCard(hub.files("user/index")["README.md"].decode()).data.license == "cc-by-4.0"


def test_a_licence_can_be_given_later(hub, folder):
    push_index(folder, "user/index")
    push_index(folder, "user/index", license="mit")
    assert DatasetCard(hub.files("user/index")["README.md"].decode()).data.license == "mit"


def test_a_card_written_on_the_hub_is_kept(hub, folder, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "README.md").write_text("---\nlicense: mit\n---\nWritten by hand.\n")
    hub.commit("user/index", tmp_path / "repo")
    push_index(folder, "user/index", license="cc-by-4.0")
    assert hub.files("user/index")["README.md"] == b"---\nlicense: mit\n---\nWritten by hand.\n"


def test_a_made_card_without_its_mark_is_kept(hub, make, folder):
    push_index(folder, "user/index")
    files = hub.files("user/index")
    edited = files["README.md"].replace(GENERATED.encode(), b"Mine now.")
    hub.repos["datasets/user/index"].add(files | {"README.md": edited})
    push_index(make(TEXTS[:4]), "user/index")
    assert hub.files("user/index")["README.md"] == edited


def test_a_card_written_beside_the_index_is_pushed(hub, folder, tmp_path, embedder):
    NeighborRetriever.from_pretrained(folder, embedder=embedder).save_pretrained(tmp_path / "index")
    (tmp_path / "index" / "README.md").write_text("---\nlicense: mit\n---\nWritten by hand.\n")
    push_index(tmp_path / "index", "user/index")
    assert hub.files("user/index")["README.md"] == b"---\nlicense: mit\n---\nWritten by hand.\n"


def test_a_card_whose_front_matter_the_hub_refuses_ends_the_push_before_anything_is_sent(
    hub, folder, tmp_path, embedder
):
    NeighborRetriever.from_pretrained(folder, embedder=embedder).save_pretrained(tmp_path / "index")
    (tmp_path / "index" / "README.md").write_text("---\nlicense: [mit\n---\nWritten by hand.\n")
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        push_index(tmp_path / "index", "user/index")
    assert hub.paths("PUT") == []


# --- what goes wrong ---


def test_an_interrupted_upload_resumes_without_what_has_arrived(hub, folder, waits):
    lost = sha256((folder / "texts" / "shard-00001.jsonl").read_bytes()).hexdigest()
    hub.order("PUT", lost, status=403, times=6)
    with pytest.raises(ConnectionError, match="files that have arrived are not sent again"):
        push_index(folder, "user/index")
    arrived, before = {*hub.blobs}, len(hub.paths("PUT"))
    assert lost not in arrived and hub.files("user/index").keys() == {".gitattributes"}
    push_index(folder, "user/index")
    again = {path.split("/")[2] for path in hub.paths("PUT")[before:]}
    every = {sha256((folder / name.format(n)).read_bytes()).hexdigest() for name in SHARD for n in range(3)}
    assert again == every - arrived
    assert files_in(folder).items() <= hub.files("user/index").items()


def test_whoever_opens_the_repo_while_an_upload_is_interrupted_gets_the_earlier_index(
    hub, make, folder, embedder, waits
):
    push_index(make(TEXTS[:4]), "user/index")
    lost = sha256((folder / "texts" / "shard-00001.jsonl").read_bytes()).hexdigest()
    hub.order("PUT", lost, status=403, times=6)
    with pytest.raises(ConnectionError):
        push_index(folder, "user/index")
    assert len(NeighborRetriever.from_pretrained("user/index", embedder=embedder, verify=True)) == 4


def test_a_store_that_fails_for_a_while_is_asked_again(hub, folder, waits):
    lost = sha256((folder / "texts" / "shard-00001.jsonl").read_bytes()).hexdigest()
    hub.order("PUT", lost, status=503, times=2)
    push_index(folder, "user/index")
    assert sum(lost in path for path in hub.paths("PUT")) == 3
    assert waits == [1, 2]  # seconds, each time twice as long


def test_a_store_whose_address_has_expired_is_asked_at_a_new_one(hub, folder, waits):
    hub.order("PUT", sha256((folder / "texts" / "shard-00001.jsonl").read_bytes()).hexdigest(), status=403)
    push_index(folder, "user/index")
    assert files_in(folder).items() <= hub.files("user/index").items()


# Every request of a push, by method and path.
STEPS = {
    "repo": ("POST", "/api/repos/create"),
    "branch": ("POST", "/branch/v2"),
    "listing": ("GET", "/tree/v2"),
    "card before": ("GET", "/resolve/v2/README.md"),
    "card": ("POST", "/api/validate-yaml"),
    "what to send": ("POST", "/preupload/v2"),
    "where to send": ("POST", "/info/lfs/objects/batch"),
    "file": ("PUT", ""),  # one of them
    "commit": ("POST", "/commit/v2"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("status", [429, 503])
def test_a_push_survives_a_transient_answer(hub, make, folder, waits, step, status):
    push_index(make(TEXTS[:4]), "user/index", revision="v2")
    method, pattern = STEPS[step]
    pattern = pattern or sha256((folder / "texts" / "shard-00001.jsonl").read_bytes()).hexdigest()
    hub.order(method, pattern, status=status, times=2)
    push_index(folder, "user/index", revision="v2")
    assert hub.faults[-1].times == 0
    assert waits == [1, 2]
    assert files_in(folder).items() <= hub.files("user/index", "v2").items()


def test_a_push_waits_as_long_as_the_hub_asks(hub, folder, waits):
    hub.order("POST", "/api/repos/create", status=429, headers={"Retry-After": "7"})
    hub.order("POST", "/commit/", status=429, headers={"RateLimit": '"api";r=0;t=55'})
    push_index(folder, "user/index")
    assert waits == [7, 55]


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, make, folder, waits):
    push_index(folder, "user/index")
    hub.order("POST", "/commit/", cut=0)
    commit = push_index(make(TEXTS[:4]), "user/index")
    history = hub.repos["datasets/user/index"].history
    assert (len(history), commit.oid) == (3, history[-1].sha)


@pytest.mark.parametrize("step", STEPS)
def test_a_hub_that_keeps_failing_in_a_push_is_asked_six_times_at_any_step(hub, make, folder, waits, step):
    push_index(make(TEXTS[:4]), "user/index", revision="v2")
    method, pattern = STEPS[step]
    pattern = pattern or sha256((folder / "texts" / "shard-00001.jsonl").read_bytes()).hexdigest()
    hub.order(method, pattern, status=503, times=1000)
    with pytest.raises(ConnectionError, match=r"The push to 'user/index' failed .*503.* Run it again: files"):
        push_index(folder, "user/index", revision="v2")
    assert (1000 - hub.faults[-1].times, waits) == (6, [1, 2, 4, 8, 8])


@pytest.mark.parametrize("step", ["repo", "where to send", "commit"])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses_is_its_own_error_at_once(hub, folder, waits, step, status):
    method, pattern = STEPS[step]
    hub.order(method, pattern.replace("v2", "main"), status=status, times=2)
    with pytest.raises(HfHubHTTPError) as refused:
        push_index(folder, "user/index")
    assert (refused.value.response.status_code, hub.faults[-1].times, waits) == (status, 1, [])


def test_a_hub_that_cannot_be_reached_is_a_connection_error(hub, folder, waits):
    hub.close()
    with pytest.raises(ConnectionError, match="user/index"):
        push_index(folder, "user/index")
    assert waits == [1, 2, 4, 8, 8]


def test_an_index_to_which_somebody_adds_is_not_pushed(hub, folder):
    with locked(folder), pytest.raises(RuntimeError, match="Another process is writing"):
        push_index(folder, "user/index")
    assert hub.requests == []


def test_nobody_adds_to_an_index_while_it_is_sent(hub, folder, monkeypatch):
    tried = []

    def create_commit(*arguments, **options):
        with pytest.raises(RuntimeError, match="Another process is writing"), locked(folder):
            pass
        tried.append(True)

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", create_commit)
    push_index(folder, "user/index")
    assert tried == [True]


def test_an_index_that_lacks_files_is_not_locked(hub, folder, embedder):
    push_index(folder, "user/index")
    fetched = NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    with pytest.raises(FileNotFoundError, match="train-00000.parquet"):
        fetched.push_to_hub("user/copy")
    # in the Hub's cache a file among the snapshots is taken for damage
    assert [path.name for path in fetched.index.folder.parent.iterdir()] == [fetched.index.folder.name]


def test_a_refused_token_is_the_error_of_the_hub(hub, folder):
    with pytest.raises(HfHubHTTPError, match="401"):
        push_index(folder, "user/index", token="hf_of_nobody")


def test_a_damaged_file_is_an_error_before_anything_is_sent(hub, folder, tmp_path, embedder):
    NeighborRetriever.from_pretrained(folder, embedder=embedder).save_pretrained(tmp_path / "index")
    path = tmp_path / "index" / "data" / "train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"train-00001.parquet' is damaged"):
        push_index(tmp_path / "index", "user/index")
    assert hub.requests == []


def test_an_index_without_all_of_its_files_is_an_error_before_anything_is_sent(hub, folder, tmp_path, embedder):
    NeighborRetriever.from_pretrained(folder, embedder=embedder).save_pretrained(tmp_path / "index")
    (tmp_path / "index" / "texts" / "shard-00002.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00002.jsonl' is missing"):
        push_index(tmp_path / "index", "user/index")
    assert hub.requests == []


def test_a_part_drawn_from_an_index_is_not_pushed(hub, retriever):
    with pytest.raises(ValueError, match="drawn by `subset`"):
        retriever.subset(0.5).push_to_hub("user/index")
    assert hub.requests == []


def test_an_index_fetched_without_its_files_for_viewers_is_not_pushed(hub, folder, embedder):
    push_index(folder, "user/index")
    fetched = NeighborRetriever.from_pretrained("user/index", embedder=embedder)
    before = len(written_to(hub))
    with pytest.raises(FileNotFoundError, match="train-00000.parquet"):
        fetched.push_to_hub("user/copy")
    assert len(written_to(hub)) == before


# --- pull ---


def test_a_pull_gives_the_folder_that_was_pushed_and_its_card(hub, folder, tmp_path):
    push_index(folder, "user/index")
    assert pull_index("user/index", tmp_path / "pulled") == tmp_path / "pulled"
    card = {"README.md": hub.files("user/index")["README.md"]}
    assert files_in(tmp_path / "pulled") == files_in(folder) | card


def test_a_pull_of_some_shards_gives_their_files_only(hub, folder, tmp_path):
    push_index(folder, "user/index")
    pull_index("user/index", tmp_path / "pulled", shards=[0, 2])
    names = {name.format(n) for name in SHARD for n in (0, 2)}
    assert files_in(tmp_path / "pulled").keys() == names | {"README.md", "tttnn_index.json"}


def test_a_pull_by_revision(hub, make, folder, tmp_path):
    commit = push_index(make(TEXTS[:4]), "user/index")
    push_index(folder, "user/index")
    pull_index("user/index", tmp_path / "pulled", revision=commit.oid)
    assert files_in(make(TEXTS[:4])).items() <= files_in(tmp_path / "pulled").items()


def test_all_files_of_a_pull_are_of_one_commit_whatever_is_pushed_meanwhile(hub, make, folder, tmp_path, monkeypatch):
    push_index(make(TEXTS[:4]), "user/index")
    import tttnn.index.hub.transfer

    read = tttnn.index.hub.transfer.read_manifest

    def read_while_somebody_pushes(path):
        hub.repos["datasets/user/index"].add({**files_in(make(TEXTS[4:8])), "README.md": b""})
        return read(path)

    monkeypatch.setattr(tttnn.index.hub.transfer, "read_manifest", read_while_somebody_pushes)
    pull_index("user/index", tmp_path / "pulled")
    assert files_in(make(TEXTS[:4])).items() <= files_in(tmp_path / "pulled").items()


def test_a_second_pull_fetches_nothing(hub, folder, tmp_path):
    push_index(folder, "user/index")
    pull_index("user/index", tmp_path / "pulled")
    before = len([path for path in hub.paths("GET") if "shard-" in path])
    pull_index("user/index", tmp_path / "pulled")
    assert len([path for path in hub.paths("GET") if "shard-" in path]) == before


def test_a_download_cut_off_in_the_middle_of_a_file_resumes_from_there(hub, folder, tmp_path, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50)  # what is written at a time
    push_index(folder, "user/index")
    hub.order("GET", "^/blobs/.*/texts/shard-00001.jsonl", cut=120)
    pull_index("user/index", tmp_path / "pulled")
    asked = [request for request in hub.requests if request.path.endswith("shard-00001.jsonl")]
    assert [request.range for request in asked if request.method == "GET"] == [None, "bytes=100-"]
    assert files_in(folder).items() <= files_in(tmp_path / "pulled").items()


def test_a_download_that_fails_resumes_without_the_files_that_have_arrived(hub, folder, tmp_path):
    push_index(folder, "user/index")
    hub.order("GET", "^/blobs/.*/texts/shard-00002.jsonl", status=403)
    with pytest.raises(HfHubHTTPError):
        pull_index("user/index", tmp_path / "pulled")
    arrived, before = files_in(tmp_path / "pulled").keys(), len(hub.requests)
    assert not {"texts/shard-00002.jsonl", "tttnn_index.json"} & arrived
    pull_index("user/index", tmp_path / "pulled")
    again = {request.path.split("/", 3)[3] for request in hub.requests[before:] if request.at_store}
    assert again == {name.format(n) for name in SHARD for n in range(3)} - arrived


@pytest.mark.slow  # a separate process
def test_a_pull_that_was_killed_resumes(hub, folder, tmp_path):
    push_index(folder, "user/index")
    hub.order("GET", "^/blobs/.*/texts/shard-00002.jsonl", cut=10, hold=True)
    program = "import sys; from tttnn.index.hub.transfer import pull_index; pull_index('user/index', sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {**hub.environment(), "HF_HOME": str(tmp_path / "home")}
    pull = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "pulled")], env=environment)
    assert hub.holding.wait(timeout=100)
    pull.kill()
    pull.wait()
    arrived, before = files_in(tmp_path / "pulled").keys(), len(hub.requests)
    assert not {"texts/shard-00002.jsonl", "tttnn_index.json"} & arrived
    pull_index("user/index", tmp_path / "pulled")
    again = {request.path.split("/", 3)[3] for request in hub.requests[before:] if request.at_store}
    assert again == {name.format(n) for name in SHARD for n in range(3)} - arrived
    assert files_in(folder).items() <= files_in(tmp_path / "pulled").items()


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("GET", "^/api/datasets/user/index$"),
        ("GET", "/tree/"),
        ("HEAD", "/resolve/.*/tttnn_index.json"),
        ("HEAD", "/resolve/.*/texts/shard-00001.jsonl"),
        ("GET", "/resolve/.*/tttnn_index.json"),
        ("GET", "^/blobs/.*/texts/shard-00001.jsonl"),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_pull_survives_a_transient_answer(hub, folder, tmp_path, waits, method, pattern, status):
    push_index(folder, "user/index")
    hub.order(method, pattern, status=status, times=2)
    pull_index("user/index", tmp_path / "pulled")
    assert hub.faults[-1].times == 0
    assert files_in(folder).items() <= files_in(tmp_path / "pulled").items()


def test_a_pull_survives_a_connection_that_was_reset(hub, folder, tmp_path, waits):
    push_index(folder, "user/index")
    hub.order("GET", "^/blobs/.*/texts/shard-00001.jsonl", cut=120, reset=True)
    pull_index("user/index", tmp_path / "pulled")
    assert files_in(folder).items() <= files_in(tmp_path / "pulled").items()


@pytest.mark.parametrize(
    ("method", "pattern", "fault", "requests"),
    [
        ("GET", "^/api/datasets/user/index$", {"status": 503}, 6),
        ("GET", "^/api/datasets/user/index$", {"cut": 0}, 6),
        ("GET", "/tree/", {"status": 503}, 6),
        ("GET", "/tree/", {"cut": 0}, 6),
        # huggingface_hub asks once, looks into its cache, and then backs off
        ("HEAD", "/resolve/.*/texts/shard-00001.jsonl", {"status": 503}, 7),
        ("HEAD", "/resolve/.*/texts/shard-00001.jsonl", {"status": 429}, 7),
        ("GET", "/resolve/.*/tttnn_index.json", {"status": 503}, 6),
        ("GET", "/resolve/.*/tttnn_index.json", {"status": 429}, 6),
        ("GET", "^/blobs/.*/texts/shard-00001.jsonl", {"status": 503}, 6),
        ("GET", "^/blobs/.*/texts/shard-00001.jsonl", {"status": 408}, 6),
        ("GET", "^/blobs/.*/texts/shard-00001.jsonl", {"cut": 10}, 6),
        ("GET", "^/blobs/.*/texts/shard-00001.jsonl", {"cut": 10, "reset": True}, 6),
    ],
)
def test_a_hub_that_keeps_failing_in_a_pull_is_asked_six_times_at_any_step_and_leaves_no_index(
    hub, folder, tmp_path, waits, method, pattern, fault, requests
):
    push_index(folder, "user/index")
    hub.order(method, pattern, times=1000, **fault)
    with pytest.raises(
        ConnectionError, match=r"The index 'user/index' \(revision .* could not be downloaded .*again:"
    ):
        pull_index("user/index", tmp_path / "pulled")
    assert 1000 - hub.faults[-1].times == requests
    assert sum(waits) < 25  # seconds
    assert not (tmp_path / "pulled" / "tttnn_index.json").exists()


def test_a_pull_whose_files_the_hub_does_not_list_is_not_taken_for_whole(hub, folder, tmp_path, waits, monkeypatch):
    import tttnn.index.hub.transfer

    push_index(folder, "user/index")
    hub.order("GET", "^/blobs/.*/texts/shard-00002.jsonl", status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        pull_index("user/index", tmp_path / "pulled")
    hub.repos["datasets/user/index"].add(hub.files("user/index") | {"notes.md": b"another commit"})
    (tmp_path / "pulled" / "texts" / "shard-00001.jsonl").unlink(missing_ok=True)
    read = tttnn.index.hub.transfer.read_manifest

    def read_while_the_hub_begins_to_fail(path):
        hub.order("GET", "/tree/", status=503, times=1000)
        return read(path)

    monkeypatch.setattr(tttnn.index.hub.transfer, "read_manifest", read_while_the_hub_begins_to_fail)
    # huggingface_hub then returns the folder as it is
    with pytest.raises(ConnectionError, match=r"could not be downloaded \(\d files have not arrived, 'texts/shard"):
        pull_index("user/index", tmp_path / "pulled")
    assert (1000 - hub.faults[-1].times, waits) == (6, [1, 2, 4, 8, 8])
    assert not (tmp_path / "pulled" / "tttnn_index.json").exists()


def test_without_the_hub_a_pull_and_a_push_name_the_repo_and_the_setting(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"'user/index' \(revision 'v1'\) could .*`HF_HUB_OFFLINE` is set"):
        pull_index("user/index", tmp_path / "pulled", revision="v1")
    with pytest.raises(ConnectionError, match="push to 'user/index' failed: `HF_HUB_OFFLINE` is set"):
        push_index(folder, "user/index")


def test_a_pull_with_a_wrong_checksum_is_an_error_and_leaves_no_index(hub, folder, tmp_path):
    push_index(folder, "user/index")
    size = (folder / "texts" / "shard-00001.jsonl").stat().st_size
    hub.order("GET", "^/blobs/.*/texts/shard-00001.jsonl", content=bytes(size))
    with pytest.raises(ValueError, match=r"texts/shard-00001.jsonl' is damaged: its sha256 is"):
        pull_index("user/index", tmp_path / "pulled")
    assert not (tmp_path / "pulled" / "tttnn_index.json").exists()


def test_a_pull_over_another_index_is_an_error_that_leaves_it_as_it_was(hub, make, folder, tmp_path, embedder):
    push_index(folder, "user/index")
    NeighborRetriever.from_pretrained(make(TEXTS[:4]), embedder=embedder).save_pretrained(tmp_path / "mine")
    before = files_in(tmp_path / "mine")
    with pytest.raises(FileExistsError, match="contains another index than 'user/index'"):
        pull_index("user/index", tmp_path / "mine")
    assert files_in(tmp_path / "mine") == before


def test_a_pull_into_a_folder_with_other_files_is_an_error_that_leaves_them(hub, folder, tmp_path):
    push_index(folder, "user/index")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        pull_index("user/index", tmp_path / "mine")
    assert files_in(tmp_path / "mine") == {"README.md": b"mine"}


def test_what_the_error_of_another_state_says_brings_a_pulled_index_up_to_date(hub, embedder, tmp_path):
    build_index(as_documents(TEXTS[:4]), public(embedder), tmp_path / "index", IndexSettings(shard_size=4))
    push_index(tmp_path / "index", "user/index")
    pull_index("user/index", tmp_path / "pulled")
    add_documents(as_documents(TEXTS[4:6]), Embedder(embedder), tmp_path / "index")
    push_index(tmp_path / "index", "user/index")
    with pytest.raises(FileExistsError) as refused:
        pull_index("user/index", tmp_path / "pulled")
    assert "remove its `tttnn_index.json` and pull again" in str(refused.value)
    (tmp_path / "pulled" / "tttnn_index.json").unlink()
    before = len(hub.requests)
    pull_index("user/index", tmp_path / "pulled")
    assert files_in(tmp_path / "index").items() <= files_in(tmp_path / "pulled").items()
    again = {request.path.split("/", 3)[3] for request in hub.requests[before:] if request.at_store}
    assert again == {name.format(1) for name in SHARD}


def test_other_shards_of_an_index_can_be_pulled_later(hub, folder, tmp_path):
    push_index(folder, "user/index")
    pull_index("user/index", tmp_path / "pulled", shards=[0])
    pull_index("user/index", tmp_path / "pulled", shards=[1, 2])
    assert files_in(folder).items() <= files_in(tmp_path / "pulled").items()


def test_two_pulls_into_a_folder_do_not_run_at_the_same_time(hub, folder, tmp_path):
    push_index(folder, "user/index")
    with locked(tmp_path / "pulled"), pytest.raises(RuntimeError, match="Another process is writing"):
        pull_index("user/index", tmp_path / "pulled")


def test_a_pulled_index_can_be_pushed_to_another_repo(hub, folder, tmp_path):
    push_index(folder, "user/index", license="mit")
    pull_index("user/index", tmp_path / "pulled")
    push_index(tmp_path / "pulled", "user/copy")
    copy, card = hub.files("user/copy"), DatasetCard(hub.files("user/copy")["README.md"].decode())
    assert files_in(folder).items() <= copy.items()
    assert (card.data.pretty_name, card.data.license) == ("Index copy", "mit")


def test_an_unknown_shard_is_an_error_that_names_those_there_are(hub, folder, tmp_path):
    push_index(folder, "user/index")
    with pytest.raises(ValueError, match=r"shards \[3\] were asked for, but the index has shards 0 to 2"):
        pull_index("user/index", tmp_path / "pulled", shards=[3])


def test_a_pull_from_a_repo_without_an_index_is_an_error_that_names_the_manifest(hub, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.txt").write_text("a data set, but no index")
    hub.commit("user/texts", tmp_path / "texts")
    with pytest.raises(FileNotFoundError, match=r"'user/texts' has no `tttnn_index.json`"):
        pull_index("user/texts", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_pull_from_an_unknown_repo_is_the_error_of_the_hub(hub, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        pull_index("user/nothing", tmp_path / "pulled")


def test_a_pull_from_a_hub_that_cannot_be_reached_is_a_connection_error(hub, tmp_path, waits):
    hub.close()
    with pytest.raises(ConnectionError, match="The index 'user/index' .* could not be downloaded"):
        pull_index("user/index", tmp_path / "pulled")


# --- the commands ---


def test_push_prints_the_address_of_the_commit(hub, folder, capsys):
    options = ["--private", "--revision", "v2", "--commit-message", "Ten texts", "--license", "mit"]
    assert main(["push", str(folder), "user/index", *options]) == 0
    repo = hub.repos["datasets/user/index"]
    assert capsys.readouterr().out == f"{hub.url}/datasets/user/index/commit/{repo.revisions['v2'].sha}\n"
    assert (repo.private, repo.revisions["v2"].message) == (True, "Ten texts")
    assert "license: mit" in repo.revisions["v2"].files["README.md"].decode()


def test_a_push_that_breaks_off_is_one_line_on_standard_error(hub, folder, capsys, waits):
    lost = sha256((folder / "texts" / "shard-00001.jsonl").read_bytes()).hexdigest()
    hub.order("PUT", lost, status=403, times=6)
    assert main(["push", str(folder), "user/index"]) == 1
    bars, line = capsys.readouterr().err.split("tttnn push: error: ")
    assert line.index("\n") == len(line) - 1
    assert "texts/shard-00001.jsonl" in line and "403" in line


def test_pull_says_what_it_downloaded(hub, folder, tmp_path, capsys):
    push_index(folder, "user/index")
    capsys.readouterr()
    assert main(["pull", "user/index", "--output", str(tmp_path / "pulled"), "--shards", "2", "0"]) == 0
    assert capsys.readouterr().out == f"Downloaded 6 rows in 2 shards: {tmp_path / 'pulled'}\n"


def test_pull_finds_the_damage_in_a_file_for_viewers(hub, folder, tmp_path, capsys):
    push_index(folder, "user/index")
    size = (folder / "data" / "train-00001.parquet").stat().st_size
    hub.order("GET", "^/blobs/.*/data/train-00001.parquet", content=bytes(size))
    assert main(["pull", "user/index", "--output", str(tmp_path / "pulled")]) == 1
    assert "train-00001.parquet' is damaged" in capsys.readouterr().err


def test_build_index_can_push_what_it_built(hub, embedder, tmp_path, capsys):
    embedder.save(str(tmp_path / "embedder"))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:3]))
    arguments = ["--output", str(tmp_path / "index"), "--embedder", str(tmp_path / "embedder")]
    push = ["--push-to-hub", "user/index", "--private"]
    assert main(["build-index", str(tmp_path / "corpus.jsonl"), *arguments, *push]) == 0
    assert hub.repos["datasets/user/index"].private
    assert {name.format(0) for name in SHARD} | {"tttnn_index.json"} <= hub.files("user/index").keys()
    assert "/commit/" in capsys.readouterr().out.splitlines()[-1]
