"""An index is written whole or not at all, and comes back from its folder as it was."""

import datetime
import hashlib
import json
import os
import resource
import shutil
import signal
import time

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from build_program import WordEmbedder, files_of
from made_indexes import OPENED_FILES, description, index_of_ten, make_index

from tttnn import Document, Embedder
from tttnn.files import locked
from tttnn.index.build.from_documents import IndexSettings, add_documents, build_index
from tttnn.index.build.save import write_index
from tttnn.index.manifest import MANIFEST
from tttnn.index.opening import open_index


@pytest.fixture
def folder(tmp_path):
    return write_index(index_of_ten(), tmp_path / "index")


class Interrupted:
    """The documents of a shard, at whose first read something happens."""

    def __init__(self, documents, happen):
        self.documents, self.happen = documents, happen

    def fetch(self, rows):
        self.happen()
        return self.documents.fetch(rows)


def index_that(happen, number=1):
    """An index of three shards, at whose shard of that number something happens."""
    index = index_of_ten()
    index.shards[number].documents = Interrupted(index.shards[number].documents, happen)
    return index


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("new"))


def test_the_manifest_says_what_the_folder_holds(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["format_version"] == 2
    assert manifest["metric"] == "squared_l2"
    assert (manifest["num_documents"], manifest["num_rows"]) == (10, 10)
    assert manifest["embedder"] == description(8)
    assert manifest["storage"] == {"preset": "flat", "factory": "Flat", "search": {}, "shard_size": 2**29 // 32}
    assert (manifest["recall"], manifest["passage_tokens"], manifest["sources"]) == (None, None, [])
    assert [(shard["rows"], shard["documents"]) for shard in manifest["shards"]] == [(4, 4), (3, 3), (3, 3)]
    named = {name: file for shard in manifest["shards"] for name, file in shard["files"].items()}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert present == {*named, MANIFEST}
    assert len(named) == 12
    for name, file in named.items():
        content = (folder / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, name


def test_the_corpus_digest_is_that_of_the_digests_of_the_texts(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("texts/*.jsonl"))]
    assert len(digests) == 3
    assert manifest["corpus_digest"] == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_an_index_comes_back_from_its_folder_as_it_was(tmp_path):
    rng = np.random.default_rng(3)
    vectors, queries = rng.normal(size=(50, 16)).astype(np.float32), rng.normal(size=(5, 16)).astype(np.float32)
    index = make_index(vectors, num_shards=3)
    opened = open_index(write_index(index, tmp_path / "index"))
    assert opened.search(queries, 50) == index.search(queries, 50)
    assert opened.documents(range(50)) == index.documents(range(50))
    assert opened.embedder == index.embedder


def test_rows_are_copied_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("tttnn.index.build.compress.ROWS_PER_COPY", 3)
    index = make_index(np.arange(22, dtype=np.float32).reshape(11, 2), num_shards=2)
    opened = open_index(write_index(index, tmp_path / "index"))
    stored = [shard.vectors.reconstruct_n(0, len(shard)) for shard in opened.shards]
    assert np.concatenate(stored).ravel().tolist() == list(range(22))
    assert opened.documents(range(11)) == index.documents(range(11))


def test_an_opened_index_can_be_saved_again(folder, tmp_path):
    again = write_index(open_index(folder), tmp_path / "again")
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(files) == 13
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()} == files


def test_an_index_without_its_viewer_files_can_be_saved_again(folder, tmp_path):
    shutil.rmtree(folder / "data")
    assert len(open_index(write_index(open_index(folder), tmp_path / "again"), verify=True)) == 10


def test_saving_an_index_whose_files_are_not_all_there_is_an_error(folder, tmp_path):
    index = open_index(folder)
    (folder / OPENED_FILES[0]).unlink()
    with pytest.raises(FileNotFoundError, match="shard-00001.faiss"):
        write_index(index, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_saving_an_index_whose_shards_are_not_all_open_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match="Only 2 of the 3 shards .* are open"):
        write_index(open_index(folder, shards=[0, 2]), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_digest_tells_one_index_from_another(folder, tmp_path):
    write_index(make_index(np.ones((10, 8), dtype=np.float32), 3), tmp_path / "other")
    assert open_index(folder).digest == open_index(shutil.copytree(folder, tmp_path / "copy")).digest
    assert open_index(folder).digest != open_index(tmp_path / "other").digest


def test_load_dataset_reads_the_documents_of_a_saved_index(tmp_path):
    odd = ["naïve 東京", "one\ntwo\r\n", "NUL \0", ""]
    documents = [Document(f"test/{row}", text, {"source": "é", "n": row}) for row, text in enumerate(odd)]
    index = make_index(np.zeros((4, 2), dtype=np.float32), 2, documents)
    # the folder's name and its README must not lead `load_dataset` to other files
    folder = write_index(index, tmp_path / "test-index")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 4}
    assert loaded["train"].column_names == ["id", "text", "metadata"]
    assert list(loaded["train"]["text"]) == odd
    assert list(loaded["train"]["id"]) == ["test/0", "test/1", "test/2", "test/3"]
    assert json.loads(loaded["train"][3]["metadata"]) == {"source": "é", "n": 3}
    streamed = datasets.load_dataset(str(folder), split="train", streaming=True, cache_dir=str(tmp_path / "cache"))
    assert [row["text"] for row in streamed] == odd


def test_the_parquet_files_hold_the_documents_of_their_shard(folder):
    rows = pyarrow.parquet.read_table(folder / "data" / "train-00001.parquet").to_pylist()
    assert rows == [{"id": f"id {row}", "text": f"text {row}", "metadata": "{}"} for row in (4, 5, 6)]


@pytest.mark.parametrize(("rows", "num_bytes", "sizes"), [(4, 10**6, [4, 4, 2]), (100, 200, [4, 2, 1, 2, 1])], ids=str)
def test_a_row_group_of_the_parquet_files_is_small(tmp_path, monkeypatch, rows, num_bytes, sizes):
    monkeypatch.setattr("tttnn.index.build.writers.ROWS_PER_GROUP", rows)
    monkeypatch.setattr("tttnn.index.build.writers.BYTES_PER_GROUP", num_bytes)
    # lines of 50 bytes, but for row 6, of 400, and row 7, of 150
    documents = [Document(f"id {row}", "x" * {6: 357, 7: 107}.get(row, 7)) for row in range(10)]
    folder = write_index(make_index(np.zeros((10, 2), dtype=np.float32), 1, documents), tmp_path / "index")
    lines = (folder / "texts" / "shard-00000.jsonl").read_bytes().splitlines(keepends=True)
    assert [len(line) for line in lines] == [50] * 6 + [400, 150, 50, 50]
    file = pyarrow.parquet.ParquetFile(folder / "data" / "train-00000.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == sizes
    assert file.read().column("text").to_pylist() == [document.text for document in documents]


def test_metadata_that_json_lacks_becomes_a_string_in_both_files(tmp_path):
    document = Document("a", "x", {"day": datetime.date(2024, 2, 29)})
    folder = write_index(make_index(np.zeros((1, 2), dtype=np.float32), 1, [document]), tmp_path / "index")
    assert open_index(folder).documents([0])[0].metadata == {"day": "2024-02-29"}
    rows = pyarrow.parquet.read_table(folder / "data" / "train-00000.parquet").to_pylist()
    assert json.loads(rows[0]["metadata"]) == {"day": "2024-02-29"}


# --- folders ---


def test_a_folder_with_something_in_it_is_an_error_and_keeps_it(folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for index in (index_of_ten(), open_index(folder)):
        with pytest.raises(FileExistsError, match=f"'{folder}' is there already"):
            write_index(index, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file' is there already"):
        write_index(index_of_ten(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_something_in_it_is_noticed_before_the_work(embedder, tmp_path):
    def fail():
        raise AssertionError("a document was asked for")
        yield

    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_index(index_that(lambda: next(fail()), number=0), tmp_path)
    with pytest.raises(FileExistsError):
        build_index(fail(), Embedder(embedder), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_build_that_was_interrupted_is_not_overwritten_by_a_save(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_index(interrupting(), WordEmbedder(), tmp_path / "new", IndexSettings(shard_size=1))
    before = files_of(tmp_path / "new")
    with pytest.raises(ValueError, match="holds an interrupted build with other settings"):
        write_index(index_of_ten(), tmp_path / "new")
    assert files_of(tmp_path / "new") == before


def test_an_index_to_which_documents_are_being_added_is_not_overwritten_by_a_save(tmp_path):
    build_index([Document("0", "a")], WordEmbedder(), tmp_path / "new")
    with pytest.raises(KeyboardInterrupt):
        add_documents(iter(interrupting()), WordEmbedder(), tmp_path / "new")
    with pytest.raises(ValueError, match="holds an interrupted build with other settings"):
        write_index(index_of_ten(), tmp_path / "new")
    assert open_index(tmp_path / "new", verify=True).documents([0]) == [Document("0", "a")]


def test_a_save_that_was_killed_after_its_manifest_is_an_index(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tttnn.index.build.unfinished.settle", kill)
        write_index(index_of_ten(), tmp_path / "new")
    assert len(open_index(tmp_path / "new")) == 10
    assert not (tmp_path / "new" / "data" / "train-00000.parquet").exists()
    with pytest.raises(FileExistsError, match="is there already"):
        write_index(index_of_ten(), tmp_path / "new")
    assert len(open_index(tmp_path / "new", verify=True)) == 10
    assert (tmp_path / "new" / "data" / "train-00000.parquet").is_file()


def kill(_folder):
    raise KeyboardInterrupt


def interrupting():
    yield from [Document("0", "a"), Document("1", "b")]
    raise KeyboardInterrupt


def test_an_empty_folder_may_be_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    write_index(index_of_ten(), tmp_path / "empty")
    assert len(open_index(tmp_path / "empty")) == 10


def test_a_folder_in_folders_that_are_not_there_may_be_written_to(tmp_path):
    write_index(index_of_ten(), tmp_path / "deep" / "er" / "index")
    assert len(open_index(tmp_path / "deep" / "er" / "index")) == 10


def test_the_current_folder_may_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_index(index_of_ten(), ".")
    assert len(open_index(".")) == len(open_index(tmp_path / "here")) == 10


def test_a_link_to_an_empty_folder_may_be_written_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write_index(index_of_ten(), tmp_path / "link")
    assert len(open_index(tmp_path / "link")) == len(open_index(tmp_path / "disk")) == 10
    assert (tmp_path / "link").is_symlink()


# --- interruptions ---


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_no_index_and_can_be_started_again(tmp_path, error):
    def happen():
        raise error

    with pytest.raises(error):
        write_index(index_that(happen), tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="no index"):
        open_index(tmp_path / "new")
    write_index(index_of_ten(), tmp_path / "new")
    assert len(open_index(tmp_path / "new")) == 10
    assert names_in(tmp_path) == ["new"]


def test_a_killed_save_leaves_no_index_and_can_be_started_again(tmp_path):
    def happen():
        (tmp_path / "two shards are written").touch()
        time.sleep(60)

    child = os.fork()
    if child == 0:
        try:
            write_index(index_that(happen, number=2), tmp_path / "new")
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while not (tmp_path / "two shards are written").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / "two shards are written").exists()
    assert any(path.suffix == ".faiss" for path in tmp_path.glob("new/.unfinished/*"))
    with pytest.raises(FileNotFoundError, match="no index"):
        open_index(tmp_path / "new")
    write_index(index_of_ten(), tmp_path / "new")
    assert len(open_index(tmp_path / "new")) == 10
    assert names_in(tmp_path) == ["new"]


def test_a_full_disk_leaves_no_index(tmp_path):
    def happen():
        # from here on no file may grow: the writes of this shard fail as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))

    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises((OSError, RuntimeError)):
            write_index(index_that(happen), tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(FileNotFoundError, match="no index"):
        open_index(tmp_path / "new")


def test_a_folder_into_which_another_process_writes_is_refused(tmp_path):
    with locked(tmp_path / "new"), pytest.raises(RuntimeError, match="Another process is writing"):
        write_index(index_of_ten(), tmp_path / "new")
    write_index(index_of_ten(), tmp_path / "new")
