"""Search equals brute force, and a saved index opens mapped, in whole or in part."""

import sys
from importlib import import_module

import faiss
import numpy as np
import pytest
from conftest import TEXTS
from made_indexes import change_manifest, index_of_ten, make_index, whole_numbers

from tttnn import Document, Embedder
from tttnn.index.build.blocks import embedded_blocks
from tttnn.index.build.from_documents import IndexSettings, build_index, index_in_memory
from tttnn.index.build.save import write_index
from tttnn.index.manifest import MANIFEST
from tttnn.index.opening import open_index
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.vectors import read_vectors


def brute_force(vectors, queries, top_k):
    """Exact neighbors in float64: squared L2 distances and rows, nearest first, equal distances by row."""
    found = []
    for query in queries.astype(np.float64):
        distances = ((vectors.astype(np.float64) - query) ** 2).sum(axis=1)
        rows = sorted(range(len(vectors)), key=lambda row: (distances[row], row))[:top_k]  # noqa: B023
        found.append([(distances[row], row) for row in rows])
    return found


@pytest.fixture
def folder(tmp_path):
    return write_index(index_of_ten(), tmp_path / "index")


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
    index.set_search({"nprobe": 2})
    assert [row for _, row in index.search(np.array([[101.5]], dtype=np.float32), 5)[0]] == [4, 5, 3, 2, 1]


def test_lists_of_another_dimension_than_the_queries_are_an_error():
    """Faiss reads a file that holds such lists behind vectors of the right dimension."""
    lists = faiss.IndexIVFFlat(faiss.IndexFlatL2(16), 16, 1)
    queries, near = np.zeros((2, 8), np.float32), (np.zeros((2, 1), np.float32), np.zeros((2, 1), np.int64))
    with pytest.raises(ValueError, match="begins at row 7 are of dimension 16, and queries of 8: it is damaged"):
        Shard(lists, [], 7).search(queries, 3, 1, near)


def test_no_queries_have_no_neighbors():
    assert make_index(np.zeros((3, 2), dtype=np.float32)).search(np.empty((0, 2), dtype=np.float32), 1) == []


def test_a_row_is_looked_up_in_its_shard(folder):
    for index in (index_of_ten(), open_index(folder)):
        assert len(index) == 10
        assert [index.documents([row])[0].id for row in range(10)] == [f"id {row}" for row in range(10)]


def test_documents_come_in_the_order_of_their_rows_and_as_often(folder):
    for index in (index_of_ten(), open_index(folder)):
        assert [document.text for document in index.documents([9, 0, 5, 9, 4])] == [
            "text 9",
            "text 0",
            "text 5",
            "text 9",
            "text 4",
        ]
        assert index.documents([]) == []


def test_a_document_that_is_asked_for_twice_is_read_once():
    read = []

    class Store:
        def __init__(self, start):
            self.start = start

        def fetch(self, rows):
            read.extend(self.start + row for row in rows)
            return [Document(f"id {self.start + row}", "x") for row in rows]

    index = index_of_ten()
    for shard in index.shards:
        shard.documents = Store(shard.start)
    assert [document.id for document in index.documents([9, 1, 7, 1, 0])] == ["id 9", "id 1", "id 7", "id 1", "id 0"]
    assert sorted(read) == [0, 1, 7, 9], "of a source that may be far away many are asked for at a time"


@pytest.mark.parametrize("row", [-1, -10, -11, 10, 100])
def test_a_row_outside_of_the_index_is_an_index_error_that_names_its_rows(folder, row, tmp_path):
    message = f"Row {row} was asked for, but the index holds rows"
    for index in (index_of_ten(), open_index(folder)):
        with pytest.raises(IndexError, match=f"{message} 0 to 3, 4 to 6, 7 to 9"):
            index.documents([row])
    single = make_index(np.zeros((10, 8), dtype=np.float32))
    for index in (single, open_index(write_index(single, tmp_path / "single"))):
        with pytest.raises(IndexError, match=f"{message} 0 to 9"):
            index.documents([0, row])


# --- building ---


def stored_vectors(index):
    return np.concatenate([shard.vectors.reconstruct_n(0, len(shard)) for shard in index.shards])


def test_a_corpus_is_embedded_shard_by_shard_as_its_documents_come(embedder, tmp_path):
    finished = []

    def documents():
        for row, text in enumerate(TEXTS):
            # of the last files of a shard
            finished.append(len(list((tmp_path / "index" / "texts").glob("*.offsets.npy"))))
            yield Document(str(row), text)

    assert build_index(documents(), Embedder(embedder), tmp_path / "index", IndexSettings(shard_size=4), batch_size=2)
    assert finished == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    index = open_index(tmp_path / "index")
    assert [(shard.start, len(shard)) for shard in index.shards] == [(0, 4), (4, 4), (8, 2)]
    assert [document.text for document in index.documents(range(10))] == TEXTS
    assert stored_vectors(index) == pytest.approx(embedder.encode(TEXTS), abs=1e-6)


@pytest.mark.parametrize("number", [15, 16, 17, 33])
def test_every_document_is_embedded_once_whatever_the_block(embedder, number, monkeypatch):
    monkeypatch.setattr("tttnn.index.build.blocks.BLOCK_DOCUMENTS", 16)
    documents = [Document(str(row), f"{row} " * (1 + row % 5)) for row in range(number)]
    index = index_in_memory(iter(documents), Embedder(embedder), batch_size=2)
    expected = embedder.encode([document.text for document in documents])
    assert stored_vectors(index) == pytest.approx(expected, abs=1e-6)
    assert index.documents(range(number)) == documents


def test_a_block_ends_at_its_last_document_or_character(embedder, monkeypatch):
    monkeypatch.setattr("tttnn.index.build.blocks.BLOCK_DOCUMENTS", 3)
    monkeypatch.setattr("tttnn.index.build.blocks.BLOCK_CHARACTERS", 10)
    lengths = [1, 1, 1, 1, 9, 20, 5, 5, 2]
    documents = [Document(str(row), "x" * length) for row, length in enumerate(lengths)]
    blocks = [
        [len(document.text) for document in block] for block, _ in embedded_blocks(documents, Embedder(embedder))
    ]
    assert blocks == [[1, 1, 1], [1, 9], [20], [5, 5], [2]]


def test_an_empty_corpus_is_an_error_and_leaves_nothing(embedder, tmp_path):
    with pytest.raises(ValueError, match="holds no document"):
        index_in_memory([], Embedder(embedder))
    with pytest.raises(ValueError, match="holds no document"):
        build_index([], Embedder(embedder), tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("shard_size", [0, -1])
def test_a_shard_of_no_documents_is_an_error(shard_size):
    with pytest.raises(ValueError, match=f"`shard_size` is {shard_size}"):
        IndexSettings(shard_size=shard_size)


def encode_badly(embedder):
    """Make an embedder that gives NaN for the text "bad"."""
    poisoned = Embedder(embedder)
    encode = embedder.encode_document

    def encode_document(texts, **named):
        vectors = encode(texts, **named)
        vectors[[text == "bad" for text in texts]] = np.nan
        return vectors

    return poisoned, encode_document


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
def test_a_document_with_a_vector_that_is_not_finite_is_named_by_its_row(embedder, tmp_path, monkeypatch, on_disk):
    monkeypatch.setattr("tttnn.index.build.blocks.BLOCK_DOCUMENTS", 8)
    poisoned, encode_document = encode_badly(embedder)
    monkeypatch.setattr(poisoned.model, "encode_document", encode_document)
    documents = [Document(f"file.txt:{row}", "bad" if row == 21 else "good") for row in range(30)]
    with pytest.raises(ValueError, match=r"not finite for rows \[21\]"):
        if on_disk:
            build_index(documents, poisoned, tmp_path / "index", IndexSettings(shard_size=20), batch_size=1)
        else:
            index_in_memory(documents, poisoned, batch_size=1)
    assert not (tmp_path / "index" / MANIFEST).exists()


def test_the_digest_of_an_index_in_memory_follows_its_documents_and_its_embedder(embedder):
    digests = [
        index_in_memory(documents, Embedder(embedder, query_prompt=prompt)).digest
        for documents, prompt in (
            ([Document("a", "x")], ""),
            ([Document("a", "x")], ""),
            ([Document("b", "x")], ""),
            ([Document("a", "y")], ""),
            ([Document("a", "x", {"n": 1})], ""),
            ([Document("a", "x")], "query: "),
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


# --- opening ---


def test_a_part_of_the_shards_opens_without_the_files_of_the_others(folder):
    for path in folder.glob("*/*-00001*"):
        path.unlink()
    opened = open_index(folder, shards=[2, 0])
    assert len(opened) == 7
    assert [document.id for document in opened.documents([9, 0, 3, 7])] == ["id 9", "id 0", "id 3", "id 7"]
    with pytest.raises(FileNotFoundError, match="shard-00001.faiss' is missing"):
        open_index(folder)


def test_neighbors_from_a_part_of_the_shards_keep_their_rows(folder):
    whole, part = open_index(folder), open_index(folder, shards=[0, 2])
    query = np.full((1, 8), 0.5, dtype=np.float32)
    expected = [pair for pair in whole.search(query, 10)[0] if pair[1] not in (4, 5, 6)]
    assert len(expected) == 7
    assert part.search(query, 10) == [expected]


@pytest.mark.parametrize("row", [4, 6])
def test_a_row_of_a_closed_shard_is_an_index_error_that_names_those_that_are_open(folder, row):
    with pytest.raises(IndexError, match=f"Row {row} was asked for, but the index holds rows 0 to 3, 7 to 9"):
        open_index(folder, shards=[0, 2]).documents([row])


def test_a_shard_that_is_named_twice_is_opened_once(folder):
    assert [shard.start for shard in open_index(folder, shards=[2, 1, 2]).shards] == [4, 7]


@pytest.mark.parametrize("shards", [[], [3], [0, 3], [-1], [-3, 0]], ids=str)
def test_shards_that_there_are_not_are_an_error_that_names_those_that_there_are(folder, shards):
    with pytest.raises(ValueError, match="were asked for, but the index has shards 0 to 2"):
        open_index(folder, shards=shards)


def test_the_digest_tells_which_shards_are_open(folder):
    parts = [None, [0, 1, 2], [0], [1], [0, 1], [1, 0]]
    digests = [open_index(folder, shards=shards).digest for shards in parts]
    assert digests[4] == digests[5]
    assert len(set(digests[2:5])) == 3
    assert digests[0] not in digests[2:]


def test_the_digest_is_that_of_the_manifest_whose_rows_are_open(folder, monkeypatch):
    """An `add` puts another manifest in its place while the shards are opened."""
    before = open_index(folder).digest

    def opening(path, preset):
        change_manifest(folder, sources=["added meanwhile"])
        return read_vectors(path, preset)

    monkeypatch.setattr("tttnn.index.opening.read_vectors", opening)
    assert open_index(folder).digest == before
    assert open_index(folder).digest != before, "the manifest is another now"


# --- Faiss ---


@pytest.mark.parametrize("use", ["build in memory", "build", "save", "open"])
def test_without_faiss_the_pip_line_is_told(folder, tmp_path, embedder, monkeypatch, use):
    index, one = index_of_ten(), [Document("a", "x")]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install tttnn\[cpu\]"):
        if use == "build in memory":
            index_in_memory(one, Embedder(embedder))
        elif use == "build":
            build_index(one, Embedder(embedder), tmp_path / "new")
        elif use == "save":
            write_index(index, tmp_path / "new")
        else:
            open_index(folder)


@pytest.mark.parametrize(
    "name",
    [
        "search",
        "vectors",
        "subset",
        "build.from_documents",
        "build.writers",
        "build.compress",
        "build.tttlm",
        "hub.transfer",
    ],
)
def test_a_module_imports_without_faiss(monkeypatch, name):
    before = import_module(f"tttnn.index.{name}")
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.delitem(sys.modules, f"tttnn.index.{name}")
    package, _, module = f"tttnn.index.{name}".rpartition(".")
    monkeypatch.setattr(sys.modules[package], module, before)
    assert import_module(f"tttnn.index.{name}") is not before
