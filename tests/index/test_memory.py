"""Memory: an index is opened by mapping its files, and built in as much for many shards as for few."""

import ctypes
import threading
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pytest
from build_program import WordEmbedder
from made_indexes import description

from tttnn import Document
from tttnn.index.build.from_documents import IndexSettings, build_index
from tttnn.index.build.save import write_index
from tttnn.index.build.tttlm import import_tttlm_index
from tttnn.index.opening import open_index
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.texts import TextList
from tttnn.index.vectors import read_vectors, trained_index


def anonymous_bytes():
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def settled_bytes():
    """The same, after what was freed has gone back: else a copy could take its place unseen."""
    ctypes.CDLL(None).malloc_trim(0)
    return anonymous_bytes()


@contextmanager
def peak():
    """Watch by how many bytes memory grows at most."""
    before, seen, done = settled_bytes(), [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            seen[0] = max(seen[0], anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def test_opening_maps_the_files_and_takes_no_memory_in_proportion_to_them(tmp_path):
    rows, dimension = 2500, 4096
    flat = faiss.IndexFlatL2(dimension)
    flat.add(np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32))
    documents = [Document(str(row), chr(97 + row % 26) * 16_000) for row in range(rows)]
    large = DocumentIndex([Shard(flat, TextList(documents))], description(dimension), "digest")
    folder = write_index(large, tmp_path / "large")
    query = flat.reconstruct(7)[None]
    vectors, texts = folder / "index" / "shard-00000.faiss", folder / "texts" / "shard-00000.jsonl"
    assert vectors.stat().st_size > 40_000_000
    assert texts.stat().st_size > 40_000_000
    before = settled_bytes()
    opened = open_index(folder)
    assert opened.search(query, 1) == [[(0.0, 7)]]  # which reads every page of the vectors
    assert opened.documents([7])[0].text == "h" * 16_000
    assert anonymous_bytes() - before < 4_000_000
    assert type(opened.shards[0].vectors) is faiss.IndexFlatL2
    mapped = Path("/proc/self/maps").read_text()
    assert str(vectors) in mapped
    assert str(texts) in mapped
    # the same measure sees a copy
    before = settled_bytes()
    copied = faiss.read_index(str(vectors))
    assert copied.ntotal == rows
    assert anonymous_bytes() - before > 36_000_000


def resident_bytes(path):
    """Pages of a mapped file that count as this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name = line.split()[0]
        if not name.endswith(":"):  # the head of a mapping
            inside = line.endswith(str(path))
        elif inside and name == "Rss:":
            found += int(line.split()[1]) * 1024
    return found


def is_read_at_random(path):
    """Whether the system is told not to read what lies beside a page of a mapped file."""
    mappings = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return [" rr" in mapping.split("VmFlags:")[1].splitlines()[0] for mapping in mappings]


@pytest.mark.parametrize(("preset", "factory"), [("flat", "Flat"), ("ivf", "IVF4,Flat")])
def test_what_is_read_in_a_row_is_not_read_at_random(tmp_path, preset, factory):
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    index = trained_index(factory, vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "vectors.faiss"))
    opened = read_vectors(tmp_path / "vectors.faiss", preset)
    assert opened.ntotal == 300
    assert is_read_at_random(tmp_path / "vectors.faiss") == [False]


def test_what_is_copied_at_opening_does_not_count_twice(tmp_path):
    rows, dimension, path = 50_000, 64, tmp_path / "scale.faiss"
    vectors = np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32)
    index = trained_index("IVF16,RaBitQfs,Refine(SQfp16)", vectors)
    index.add(vectors)
    faiss.write_index(index, str(path))
    opened = read_vectors(path, "scale")
    assert resident_bytes(path) < 100_000
    assert is_read_at_random(path) == [True], "20 or more rows of an index that may be larger than memory"
    assert opened.search(vectors[:1], 1)[1].tolist() == [[0]]
    assert 0 < resident_bytes(path) < 1_000_000, "the rows that were ranked again, and those beside them"
    # the same measure sees what is read through a mapping and copied: bits, factors and numbers of all rows
    left = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    assert left.ntotal == rows
    assert resident_bytes(path) > 1_000_000


def test_an_index_of_long_documents_is_made_in_memory_for_a_few(tmp_path):
    rows, line = 300, b'{"text": "' + b"x" * 400_000 + b'"}\n'
    flat = faiss.IndexFlatL2(8)
    flat.add(np.zeros((rows, 8), np.float32))
    faiss.write_index(flat, str(tmp_path / "00.jsonl.index"))
    with (tmp_path / "00.jsonl").open("wb") as file:
        file.writelines(line for _ in range(rows))
    with peak() as seen:
        import_tttlm_index([tmp_path / "00.jsonl.index"], [tmp_path / "00.jsonl"], tmp_path / "index")
    assert seen[0] < 90_000_000, "the texts take 120 MB"


class NumberEmbedder(WordEmbedder):
    """Draws the vector of the number that a text is."""

    def encode_query(self, texts, batch_size=None):
        vectors = np.empty((len(texts), self.size), np.float32)
        for text, vector in zip(texts, vectors, strict=True):
            seed = int(text) if text.isdigit() else 0
            np.random.default_rng(seed).standard_normal(dtype=np.float32, out=vector)
        return vectors


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build an index of vectors of 16 kB, and give by how many bytes memory grew at most."""
    monkeypatch.setattr("tttnn.index.build.blocks.BLOCK_DOCUMENTS", 200)
    monkeypatch.setattr("tttnn.index.vectors.MAX_TRAINING_BYTES", 4_000_000)
    monkeypatch.setattr("tttnn.index.build.compress.NUM_QUERIES", 8)
    monkeypatch.setattr("tttnn.index.build.compress.ROWS_PER_COPY", 200)

    def build(preset, rows, shard_size):
        documents = [Document(str(row), str(row)) for row in range(rows)]
        with peak() as seen:
            build_index(documents, NumberEmbedder(4096), tmp_path / str(rows), IndexSettings(preset, shard_size))
        return seen[0]

    return build


@pytest.mark.parametrize("preset", ["ivf", "scale"])
def test_building_takes_as_much_memory_for_many_shards_as_for_few(preset, build):
    few, many = (build(preset, num_shards * 600, 600) for num_shards in (2, 12))
    assert few > 9_000_000, "the vectors of one shard take 10 MB"
    assert many < few + 25_000_000, "and those of ten shards 100 MB"


def test_a_shard_is_not_copied_while_it_is_converted(build):
    # after 3200 rows of 16 kB an array that doubles as it grows would be copied
    assert 50_000_000 < build("Flat", 3300, 3300) < 80_000_000
