"""Search equals brute force, and a saved index opens mapped and whole or not at all."""

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import datasets
import faiss
import numpy as np
import pyarrow.parquet
import pytest
from conftest import TEXTS

import tttnn.index
from tttnn import Document, Embedder, NeighborRetriever
from tttnn.index import MANIFEST, DocumentIndex, Shard, build_shards, open_index, write_index


OPENED_FILES = ["index/shard-00001.faiss", "texts/shard-00001.jsonl", "texts/shard-00001.offsets.npy"]


def brute_force(vectors, queries, top_k):
    """Exact neighbors in float64: squared L2 distances and rows, nearest first, equal distances by row."""
    found = []
    for query in queries.astype(np.float64):
        distances = ((vectors.astype(np.float64) - query) ** 2).sum(axis=1)
        rows = sorted(range(len(vectors)), key=lambda row: (distances[row], row))[:top_k]  # noqa: B023
        found.append([(distances[row], row) for row in rows])
    return found


def make_index(vectors, num_shards=1):
    shards = []
    for part in np.array_split(vectors, num_shards):
        flat = faiss.IndexFlatL2(vectors.shape[1])
        flat.add(part)
        first = sum(shard.vectors.ntotal for shard in shards)
        shards.append(Shard(flat, [Document(f"id {first + row}", f"text {first + row}") for row in range(len(part))]))
    return DocumentIndex(shards, {"name": "none", "dimension": vectors.shape[1]}, "digest")


def whole_numbers(rng, shape):
    """Small whole numbers, whose distances are exact in any order of summation and often equal."""
    return rng.integers(-1, 2, shape).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """An index of three shards of 4, 3 and 3 documents."""
    index = make_index(whole_numbers(np.random.default_rng(0), (10, 8)), num_shards=3)
    return write_index(index.shards, index.embedder, tmp_path / "index")


def flip(path, position):
    """Change one bit of one byte, in place."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def change_manifest(folder, **entries):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# --- search ---


@pytest.mark.parametrize("dimension", [3, 8, 32])
@pytest.mark.parametrize("num_shards", [1, 4])
def test_neighbors_equal_brute_force_with_ties_by_row(dimension, num_shards):
    rng = np.random.default_rng(dimension)
    vectors, queries = whole_numbers(rng, (203, dimension)), whole_numbers(rng, (40, dimension))
    vectors[150:] = vectors[:53]
    index = make_index(vectors, num_shards)
    for top_k in (1, 2, 20, 120, 203):
        expected = brute_force(vectors, queries, top_k)
        assert len({distance for distance, _ in expected[0]}) < top_k or top_k == 1
        assert index.search(queries, top_k) == expected


def test_neighbors_of_real_numbers_equal_brute_force():
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 384)).astype(np.float32) for n in (300, 17))
    for found, expected in zip(
        make_index(vectors, 3).search(queries, 50), brute_force(vectors, queries, 50), strict=True
    ):
        assert [row for _, row in found] == [row for _, row in expected]
        assert [distance for distance, _ in found] == pytest.approx([distance for distance, _ in expected], rel=1e-5)


@pytest.mark.parametrize("number", [1, 16, 17, 40])
def test_a_batch_of_queries_gives_exactly_what_each_gives_alone(number):
    # Faiss turns to a matrix product, which rounds differently, at 20 queries, and 1.15.1 at 128,000 numbers in them:
    # 40 queries of 4,100 are past both.
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 4100)).astype(np.float32)
    vectors[100:] = vectors[:100] + np.float32(1e-6)  # near-equal neighbors, which that rounding reorders
    queries = rng.normal(size=(number, 4100)).astype(np.float32)
    index = make_index(vectors, 2)
    assert index.search(queries, 30) == [index.search(query[None], 30)[0] for query in queries]


def test_more_rows_than_a_shard_holds_come_from_the_others():
    vectors = np.arange(10, dtype=np.float32)[:, None]
    index = make_index(vectors, num_shards=5)
    assert index.search(np.array([[4.25]], dtype=np.float32), 10)[0] == [
        (0.0625, 4),
        (0.5625, 5),
        (1.5625, 3),
        (3.0625, 6),
        (5.0625, 2),
        (7.5625, 7),
        (10.5625, 1),
        (14.0625, 8),
        (18.0625, 0),
        (22.5625, 9),
    ]


def test_rows_that_an_inverted_file_does_not_find_are_left_out():
    # two far-apart lists of three rows; the one probed list holds fewer rows than asked for
    vectors = np.array([[0], [1], [2], [100], [101], [102]], dtype=np.float32)
    quantizer = faiss.IndexFlatL2(1)
    quantizer.add(np.array([[1], [101]], dtype=np.float32))
    inverted = faiss.IndexIVFFlat(quantizer, 1, 2)
    inverted.is_trained = True
    inverted.add(vectors)
    index = DocumentIndex([Shard(inverted, [Document(str(row), "x") for row in range(6)])], {}, "digest")
    assert index.search(np.array([[101.5]], dtype=np.float32), 5) == [[(0.25, 4), (0.25, 5), (2.25, 3)]]


def test_no_queries_have_no_neighbors():
    assert make_index(np.zeros((3, 2), dtype=np.float32)).search(np.empty((0, 2), dtype=np.float32), 1) == []


def test_a_row_is_looked_up_in_its_shard(folder):
    for index in (make_index(np.zeros((10, 8), dtype=np.float32), 3), open_index(folder)):
        assert len(index) == 10
        assert [index.document(row).id for row in range(10)] == [f"id {row}" for row in range(10)]


@pytest.mark.parametrize("row", [-1, -10, -11, 10, 100])
def test_a_row_outside_of_the_index_is_an_index_error(folder, row):
    for index in (make_index(np.zeros((10, 8), dtype=np.float32), 3), open_index(folder)):
        with pytest.raises(IndexError):
            index.document(row)
    saved = write_index(
        make_index(np.zeros((10, 8), dtype=np.float32)).shards, {"name": "none", "dimension": 8}, folder / "one"
    )
    with pytest.raises(IndexError):
        open_index(saved).document(row)


# --- building ---


def test_a_corpus_is_embedded_shard_by_shard_as_its_documents_come(embedder):
    read = []

    def documents():
        for row, text in enumerate(TEXTS):
            read.append(row)
            yield Document(str(row), text)

    vectors = Embedder(embedder).encode(TEXTS)
    shards = []
    for shard in build_shards(documents(), Embedder(embedder), shard_size=4, batch_size=2):
        shards.append(shard)
        assert len(read) == sum(shard.vectors.ntotal for shard in shards)
    assert [shard.vectors.ntotal for shard in shards] == [4, 4, 2]
    assert [document.text for shard in shards for document in shard.documents] == TEXTS
    stored = np.concatenate([shard.vectors.reconstruct_n(0, shard.vectors.ntotal) for shard in shards])
    assert stored == pytest.approx(vectors, abs=1e-6)


@pytest.mark.parametrize("number", [15, 16, 17, 33])
def test_every_document_is_embedded_once_whatever_the_block(embedder, number):
    # a block is 8 batches, here 16 texts
    documents = [Document(str(row), f"{row} " * (1 + row % 5)) for row in range(number)]
    (shard,) = build_shards(documents, Embedder(embedder), shard_size=100, batch_size=2)
    expected = Embedder(embedder).encode([document.text for document in documents])
    assert shard.vectors.reconstruct_n(0, number) == pytest.approx(expected, abs=1e-6)


def test_an_empty_corpus_is_an_error(embedder, tmp_path):
    with pytest.raises(ValueError, match="holds no document"):
        write_index(build_shards([], Embedder(embedder), shard_size=4), {}, tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("shard_size", [0, -1])
def test_a_shard_of_no_documents_is_an_error(embedder, shard_size):
    with pytest.raises(ValueError, match=f"`shard_size` is {shard_size}"):
        list(build_shards([Document("a", "x")], Embedder(embedder), shard_size))


def test_a_document_with_a_vector_that_is_not_finite_is_named_by_its_row_in_the_corpus(embedder, tokenizer):
    poisoned = NeighborRetriever.from_documents(["x"], embedder).embedder
    encode = poisoned.model.encode

    def encode_badly(texts, **named):
        vectors = encode(texts, **named)
        vectors[[text == "bad" for text in texts]] = np.nan
        return vectors

    documents = [Document(f"file.txt:{row}", "bad" if row == 21 else "good") for row in range(30)]
    poisoned.model.encode = encode_badly
    try:
        with pytest.raises(ValueError, match=r"\b21\b"):
            list(build_shards(documents, poisoned, shard_size=20, batch_size=1))
    finally:
        del poisoned.model.encode


# --- saving ---


def test_the_manifest_says_what_the_folder_holds(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["format_version"] == 1
    assert manifest["metric"] == "squared_l2"
    assert manifest["num_documents"] == 10
    assert manifest["embedder"] == {"name": "none", "dimension": 8}
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 3, 3]
    named = {name: file for shard in manifest["shards"] for name, file in shard["files"].items()}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(named) == {name for name in present if name.split("/")[0] in ("index", "texts", "data")}
    assert len(named) == 12
    for name, file in named.items():
        content = (folder / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, name


def test_an_index_comes_back_from_its_folder_as_it_was(tmp_path):
    rng = np.random.default_rng(3)
    vectors, queries = rng.normal(size=(50, 16)).astype(np.float32), rng.normal(size=(5, 16)).astype(np.float32)
    index = make_index(vectors, num_shards=3)
    opened = open_index(write_index(index.shards, index.embedder, tmp_path / "index"))
    assert opened.search(queries, 50) == index.search(queries, 50)
    assert [opened.document(row) for row in range(50)] == [index.document(row) for row in range(50)]
    assert opened.embedder == index.embedder


def test_an_opened_index_can_be_saved_again(folder, tmp_path):
    opened = open_index(folder)
    again = write_index(opened.shards, opened.embedder, tmp_path / "again")
    for name in (*OPENED_FILES, "data/train-00001.parquet", MANIFEST):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_digest_tells_one_index_from_another(folder, tmp_path):
    other = make_index(np.ones((10, 8), dtype=np.float32), 3)
    write_index(other.shards, other.embedder, tmp_path / "other")
    assert open_index(folder).digest == open_index(shutil.copytree(folder, tmp_path / "copy")).digest
    assert open_index(folder).digest != open_index(tmp_path / "other").digest


def test_load_dataset_reads_the_documents_of_a_saved_index(tmp_path):
    odd = ["naïve 東京", "one\ntwo\r\n", "NUL \0", ""]
    flat = faiss.IndexFlatL2(2)
    flat.add(np.zeros((2, 2), dtype=np.float32))
    documents = [Document(f"test/{row}", text, {"source": "é", "n": row}) for row, text in enumerate(odd)]
    shards = [Shard(flat, documents[:2]), Shard(flat, documents[2:])]
    # the folder's name and its README must not lead `load_dataset` to other files
    folder = write_index(shards, {"dimension": 2}, tmp_path / "test-index")
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


def test_a_folder_with_something_in_it_is_an_error_and_keeps_it(folder, tmp_path):
    index = open_index(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=f"'{folder}' is there already"):
        write_index(index.shards, index.embedder, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file' is there already"):
        write_index(index.shards, index.embedder, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_something_in_it_is_noticed_before_the_work(folder):
    def shards():
        raise AssertionError("a shard was asked for")
        yield

    with pytest.raises(FileExistsError):
        write_index(shards(), {}, folder)


def test_an_empty_folder_may_be_written_to(folder, tmp_path):
    index = open_index(folder)
    (tmp_path / "empty").mkdir()
    write_index(index.shards, index.embedder, tmp_path / "empty")
    assert len(open_index(tmp_path / "empty")) == 10


def test_the_current_folder_may_be_written_to(folder, tmp_path, monkeypatch):
    index = open_index(folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_index(index.shards, index.embedder, ".")
    assert len(open_index(".")) == len(open_index(tmp_path / "here")) == 10


def test_a_link_to_an_empty_folder_may_be_written_to(folder, tmp_path):
    index = open_index(folder)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write_index(index.shards, index.embedder, tmp_path / "link")
    assert len(open_index(tmp_path / "link")) == len(open_index(tmp_path / "disk")) == 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_build_leaves_no_index_and_can_be_started_again(folder, tmp_path, error):
    index = open_index(folder)

    def shards():
        yield index.shards[0]
        raise error

    with pytest.raises(error):
        write_index(shards(), index.embedder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write_index(index.shards, index.embedder, tmp_path / "new")
    assert len(open_index(tmp_path / "new")) == 10
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("new")) == ["new"]


def test_a_killed_build_leaves_no_index_and_can_be_started_again(folder, tmp_path):
    index = open_index(folder)

    def shards():
        yield from index.shards[:2]
        (tmp_path / "two shards are written").touch()
        time.sleep(60)

    child = os.fork()
    if child == 0:
        try:
            write_index(shards(), index.embedder, tmp_path / "new")
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while not (tmp_path / "two shards are written").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / "two shards are written").exists()
    assert any(path.suffix == ".faiss" for path in tmp_path.glob("new*/index/*"))
    with pytest.raises(FileNotFoundError, match="no index"):
        open_index(tmp_path / "new")
    for unfinished in tmp_path.glob("new*"):
        with pytest.raises(FileNotFoundError, match="no index"):
            open_index(unfinished)
    write_index(index.shards, index.embedder, tmp_path / "new")
    assert len(open_index(tmp_path / "new")) == 10


def test_a_full_disk_leaves_no_index(folder, tmp_path):
    index = open_index(folder)

    def shards():
        yield index.shards[0]
        # from here on no file may grow: the writes of the next shard fail as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
        yield index.shards[1]

    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises((OSError, RuntimeError)):
            write_index(shards(), index.embedder, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "new").exists()


# --- opening ---


def anonymous_bytes():
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def test_opening_maps_the_files_and_takes_no_memory_in_proportion_to_them(tmp_path):
    # more than 32 MiB each: malloc gives such a block memory of its own, and not what was freed before
    rows, dimension = 2500, 4096
    flat = faiss.IndexFlatL2(dimension)
    flat.add(np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32))
    documents = [Document(str(row), chr(97 + row % 26) * 16_000) for row in range(rows)]
    folder = write_index([Shard(flat, documents)], {"name": "none", "dimension": dimension}, tmp_path / "large")
    query = flat.reconstruct(7)[None]
    vectors, texts = folder / "index" / "shard-00000.faiss", folder / "texts" / "shard-00000.jsonl"
    assert vectors.stat().st_size > 40_000_000
    assert texts.stat().st_size > 40_000_000
    before = anonymous_bytes()
    opened = open_index(folder)
    assert opened.search(query, 1) == [[(0.0, 7)]]  # which reads every page of the vectors
    assert opened.document(7).text == "h" * 16_000
    assert anonymous_bytes() - before < 4_000_000
    assert type(opened.shards[0].vectors) is faiss.IndexFlatL2
    mapped = Path("/proc/self/maps").read_text()
    assert str(vectors) in mapped
    assert str(texts) in mapped
    # the same measure sees a copy
    before = anonymous_bytes()
    copied = faiss.read_index(str(vectors))
    assert copied.ntotal == rows
    assert anonymous_bytes() - before > 36_000_000


@pytest.mark.parametrize("name", OPENED_FILES)
@pytest.mark.parametrize("position", [0, -1], ids=["first byte", "last byte"])
def test_a_changed_byte_is_an_error_that_names_the_file(folder, name, position):
    flip(folder / name, position)
    with pytest.raises(ValueError, match=f"{name}' is damaged"):
        open_index(folder)


@pytest.mark.parametrize("name", OPENED_FILES)
def test_a_byte_changed_after_a_good_open_is_an_error_that_names_the_file(folder, name):
    open_index(folder)
    flip(folder / name, -1)
    os.utime(folder / name, ns=(0, 0))
    with pytest.raises(ValueError, match=f"{name}' is damaged"):
        open_index(folder)


@pytest.mark.parametrize("name", OPENED_FILES)
def test_verify_finds_a_byte_that_changed_without_a_trace(folder, name):
    open_index(folder)
    times = (folder / name).stat().st_atime_ns, (folder / name).stat().st_mtime_ns
    flip(folder / name, -16)  # a vector, a text, the offset of the last line
    os.utime(folder / name, ns=times)
    open_index(folder)  # the stamp is that of the whole file
    with pytest.raises(ValueError, match=f"{name}' is damaged"):
        open_index(folder, verify=True)


def test_verify_finds_a_damaged_viewer_file(folder):
    flip(folder / "data" / "train-00001.parquet", 100)
    with pytest.raises(ValueError, match="data/train-00001.parquet' is damaged"):
        open_index(folder, verify=True)


def test_an_index_opens_without_its_viewer_files(folder):
    shutil.rmtree(folder / "data")
    assert len(open_index(folder, verify=True)) == 10


def test_a_damaged_file_stays_an_error_at_every_open(folder):
    flip(folder / OPENED_FILES[0], -1)
    for _ in range(2):
        with pytest.raises(ValueError, match="is damaged"):
            open_index(folder)
    flip(folder / OPENED_FILES[0], -1)
    assert len(open_index(folder)) == 10


def test_a_whole_file_is_hashed_once_and_again_when_asked(folder, monkeypatch):
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    open_index(folder)
    assert {Path(name).name for name in hashed} == {
        f"shard-0000{shard}.{suffix}" for shard in range(3) for suffix in ("faiss", "jsonl", "offsets.npy")
    }
    hashed.clear()
    open_index(folder)
    assert hashed == []
    open_index(folder, verify=True)
    assert len(hashed) >= 9


def test_another_file_in_the_place_of_a_whole_one_is_hashed(folder, tmp_path):
    open_index(folder)
    path = folder / OPENED_FILES[0]
    status = path.stat()
    shutil.copy(path, tmp_path / "other")
    flip(tmp_path / "other", -1)
    os.utime(tmp_path / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(tmp_path / "other", path)  # same size, same time, another inode
    with pytest.raises(ValueError, match="is damaged"):
        open_index(folder)


def test_an_index_opens_where_the_stamps_cannot_be_kept(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "/proc/nowhere")
    assert len(open_index(folder)) == 10


@pytest.mark.parametrize("name", OPENED_FILES)
@pytest.mark.parametrize("keep", [0, 1, -1], ids=["nothing", "one byte", "all but one byte"])
def test_a_truncated_file_is_an_error_that_names_it_and_both_sizes(folder, name, keep):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:keep])
    message = f"{name}' has {len(content[:keep])} bytes, and the manifest says {len(content)}"
    with pytest.raises(ValueError, match=message):
        open_index(folder)


@pytest.mark.parametrize("name", OPENED_FILES)
def test_a_missing_file_is_an_error_that_names_it(folder, name):
    open_index(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}' is missing"):
        open_index(folder)


def test_shards_that_changed_places_are_an_error(folder):
    first, second = folder / "index/shard-00001.faiss", folder / "index/shard-00002.faiss"
    assert first.stat().st_size == second.stat().st_size
    os.rename(first, folder / "other")
    os.rename(second, first)
    os.rename(folder / "other", second)
    with pytest.raises(ValueError, match="shard-00001.faiss' is damaged"):
        open_index(folder)


def test_a_folder_without_a_manifest_is_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}' holds no `tttnn_index.json`"):
        open_index(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_format_version_is_an_error_that_names_both(folder, version):
    change_manifest(folder, format_version=version)
    with pytest.raises(ValueError, match="tttnn_index.json' has format_version .*; this tttnn reads 1"):
        open_index(folder)


def test_a_manifest_without_a_format_version_is_an_error(folder):
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match="format_version None"):
        open_index(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"format_version": 1, "shards": [', b"[]", b"null", b"\xff\xfe\xfa", b'{"format_version": 1}'],
    ids=["empty", "cut", "list", "null", "not text", "no shards"],
)
def test_a_broken_manifest_is_an_error_that_names_it(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match="tttnn_index.json"):
        open_index(folder)


def test_a_changed_byte_of_the_manifest_is_a_clear_error_or_of_no_account(folder):
    content = (folder / MANIFEST).read_bytes()
    outcomes = {"opened": 0, "error": 0}
    for position in range(0, len(content), 23):
        flip(folder / MANIFEST, position)
        try:
            open_index(folder)
            outcomes["opened"] += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error), f"byte {position}: {error}"
            outcomes["error"] += 1
        (folder / MANIFEST).write_bytes(content)
    # most of a manifest is checksums and what they belong to
    assert outcomes["error"] > outcomes["opened"] > 0


def test_a_manifest_that_names_other_rows_is_an_error(folder):
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    shards[2]["rows"] = 4
    change_manifest(folder, shards=shards)
    with pytest.raises(ValueError, match="Shard 2 of .* should hold 4 rows .* has 3 vectors .* and 3 texts"):
        open_index(folder)


def test_a_manifest_that_names_another_dimension_is_an_error(folder):
    change_manifest(folder, embedder={"name": "none", "dimension": 9})
    with pytest.raises(ValueError, match="rows of dimension 9, but has 4 vectors of dimension 8"):
        open_index(folder)


# --- Faiss ---


@pytest.mark.parametrize("use", ["build", "save", "open"])
def test_without_faiss_the_pip_line_is_told(folder, tmp_path, embedder, monkeypatch, use):
    index = open_index(folder)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install tttnn\[cpu\]"):
        if use == "build":
            list(build_shards([Document("a", "x")], Embedder(embedder), 1))
        elif use == "save":
            write_index(index.shards, index.embedder, tmp_path / "new")
        else:
            open_index(folder)


def test_the_module_of_the_index_imports_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.delitem(sys.modules, "tttnn.index")
    monkeypatch.setattr(tttnn, "index", tttnn.index)
    import tttnn.index as again

    assert again.MANIFEST == "tttnn_index.json"
