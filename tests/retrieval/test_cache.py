"""What the cache of queries gives is what a search gives: counted calls, damaged files, several writers."""

import multiprocessing
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from tttnn import NeighborRetriever
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.subset import IndexSubset
from tttnn.retrieval.cache import DEPTH, NeighborCache


TEXTS = ["the whale", "def main():", "", "東京, Größe"]


class Counted:
    """An index and an embedder that note what they are asked for."""

    def __init__(self, retriever, index=None):
        self.index = retriever.index if index is None else index
        self.embedded, self.searched = [], []
        self._encode = retriever.embedder.encode_query
        names = ("embedder", "search_key", "is_prefixed")
        self.stand_in = SimpleNamespace(**{name: getattr(self.index, name) for name in names}, search=self.search)

    def encode(self, texts):
        self.embedded += texts
        return self._encode(texts)

    def search(self, vectors, top_k):
        self.searched.append((len(vectors), top_k))
        return self.index.search(vectors, top_k)

    def find(self, cache, texts=TEXTS, top_k=4):
        """What is found, the texts embedded for it, and the searches."""
        self.embedded, self.searched = [], []
        found = cache.search(self.stand_in, self.encode, texts, top_k)
        return found, self.embedded, self.searched


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def counted(retriever):
    return Counted(retriever)


@pytest.fixture
def uncached(retriever):
    """What is found without a cache, text by text."""

    def find(texts=TEXTS, top_k=4, index=retriever.index):
        return [index.search(retriever.embedder.encode_query([text]), top_k)[0] for text in texts]

    return find


def same(found, expected):
    return [[row for _, row in pairs] for pairs in found] == [[row for _, row in pairs] for pairs in expected] and all(
        distance == pytest.approx(other, rel=1e-5, abs=1e-6)
        for pairs, others in zip(found, expected, strict=True)
        for (distance, _), (other, _) in zip(pairs, others, strict=True)
    )


def test_a_cache_finds_what_is_found_without_one(counted, folder, uncached):
    assert same(counted.find(NeighborCache(folder))[0], uncached())


def test_a_second_run_embeds_and_searches_nothing(counted, folder):
    first, embedded, searched = counted.find(NeighborCache(folder))
    assert (embedded, searched) == (TEXTS, [(4, DEPTH)])
    assert counted.find(NeighborCache(folder)) == (first, [], [])


def test_a_smaller_top_k_is_served_from_a_larger_one(counted, folder, uncached):
    counted.find(NeighborCache(folder), top_k=6)
    found, embedded, searched = counted.find(NeighborCache(folder), top_k=2)
    assert (embedded, searched) == ([], [])
    assert same(found, uncached(top_k=2))


def test_more_neighbors_of_a_query_are_there_already(counted, folder, uncached):
    """A sweep over the number of neighbors searches once, whichever comes first."""
    counted.find(NeighborCache(folder), top_k=2)
    found, embedded, searched = counted.find(NeighborCache(folder), top_k=6)
    assert (embedded, searched) == ([], [])
    assert same(found, uncached(top_k=6))


def test_more_than_the_depth_is_searched_for_but_not_embedded_again(counted, folder):
    counted.find(NeighborCache(folder), top_k=2)
    found, embedded, searched = counted.find(NeighborCache(folder), top_k=DEPTH + 1)
    assert (embedded, searched) == ([], [(4, DEPTH + 1)])
    assert counted.find(NeighborCache(folder), top_k=DEPTH + 1) == (found, [], [])


def test_only_new_texts_are_embedded(counted, folder, uncached):
    counted.find(NeighborCache(folder), TEXTS[:2])
    found, embedded, searched = counted.find(NeighborCache(folder), TEXTS)
    assert (embedded, searched) == (TEXTS[2:], [(2, DEPTH)])
    assert same(found, uncached())


def test_a_text_that_comes_twice_is_embedded_once(counted, folder):
    found, embedded, searched = counted.find(NeighborCache(folder), [TEXTS[0], TEXTS[1], TEXTS[0]])
    assert (embedded, searched) == (TEXTS[:2], [(2, DEPTH)])
    assert found[0] == found[2] != found[1]


def test_a_part_of_the_index_is_searched_with_the_vectors_of_the_whole(retriever, counted, folder, uncached):
    counted.find(NeighborCache(folder))
    subset = IndexSubset(retriever.index, 0.5)
    part = Counted(retriever, subset)
    found, embedded, searched = part.find(NeighborCache(folder), top_k=3)
    assert (embedded, searched) == ([], [(4, DEPTH)])
    assert same(found, uncached(top_k=3, index=subset))
    assert part.find(NeighborCache(folder), top_k=3) == (found, [], [])


def stored(retriever, factory, rows=300):
    """The vectors of the embedder and random ones, stored as a name of Faiss's factory says."""
    own = retriever.embedder.encode_document(TEXTS)
    noise = np.random.default_rng(0).normal(size=(rows, own.shape[1])).astype(np.float32)
    vectors = own[np.arange(rows) % len(own)] + noise * np.abs(own).mean()
    index = faiss.index_factory(own.shape[1], factory)
    index.train(vectors)
    index.add(vectors)
    return DocumentIndex([Shard(index, [])], retriever.index.embedder, "digest", {"nprobe": 2, "k_factor": 2})


def test_what_depends_on_the_rows_that_are_asked_for_is_searched_as_without_a_cache(retriever, folder, uncached):
    """A deeper search ranks more candidates again."""
    index = stored(retriever, "PQ4x4,RFlat")
    assert not same(uncached(index=index), [found[:4] for found in uncached(top_k=DEPTH, index=index)])
    counted = Counted(retriever, index)
    for top_k in (6, 4):  # the larger first
        found, _, searched = counted.find(NeighborCache(folder), top_k=top_k)
        assert same(found, uncached(top_k=top_k, index=index))
        assert searched == [(4, top_k)]


def test_what_depends_on_the_rows_that_are_asked_for_is_kept_for_each_number_and_embedded_once(retriever, folder):
    counted = Counted(retriever, stored(retriever, "PQ4x4,RFlat"))
    first = [counted.find(NeighborCache(folder), top_k=top_k)[0] for top_k in (4, 6)]
    assert counted.embedded == []
    for top_k, found in zip((4, 6), first, strict=True):
        assert counted.find(NeighborCache(folder), top_k=top_k) == (found, [], [])


@pytest.mark.parametrize(
    ("factory", "search"), [("IVF8,Flat", {"nprobe": 8}), ("PQ4x4,RFlat", {"k_factor": 20})], ids=["lists", "ranked"]
)
def test_a_search_that_looks_farther_is_not_served_what_a_narrower_one_found(
    retriever, folder, uncached, factory, search
):
    index = stored(retriever, factory)
    narrow = Counted(retriever, index).find(NeighborCache(folder))[0]
    index.set_search(search)
    found, embedded, searched = Counted(retriever, index).find(NeighborCache(folder))
    assert same(found, uncached(index=index))
    assert not same(found, narrow)
    assert (embedded, len(searched)) == ([], 1)


def test_more_neighbors_from_inverted_lists_are_there_already(retriever, folder, uncached):
    index = stored(retriever, "IVF8,Flat")
    counted = Counted(retriever, index)
    for top_k, searches in ((2, [(4, DEPTH)]), (6, [])):
        found, _, searched = counted.find(NeighborCache(folder), top_k=top_k)
        assert same(found, uncached(top_k=top_k, index=index))
        assert searched == searches


@pytest.mark.parametrize("is_other_embedder", [False, True])
def test_another_embedder_or_index_has_other_entries(counted, folder, is_other_embedder):
    counted.find(NeighborCache(folder))
    counted.stand_in.search_key = ["0" * 64, None, 1]
    if is_other_embedder:
        counted.stand_in.embedder = {**counted.index.embedder, "probe": [1.0]}
    _, embedded, searched = counted.find(NeighborCache(folder))
    assert embedded == (TEXTS if is_other_embedder else [])
    assert searched == [(4, DEPTH)]


def test_a_vector_from_the_cache_is_the_one_that_was_kept_to_the_bit(counted, folder):
    first = NeighborCache(folder).embed(counted.index, counted.encode, TEXTS)
    again = NeighborCache(folder).embed(counted.index, None, TEXTS)  # which cannot embed
    assert (again.dtype, again.shape) == (np.float32, first.shape)
    assert np.array_equal(again, first)


def test_vectors_and_neighbors_are_two_files(counted, folder):
    counted.find(NeighborCache(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["neighbors.sqlite", "vectors.sqlite"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_files_that_are_cut_anywhere_are_rebuilt(counted, folder, uncached, share):
    counted.find(NeighborCache(folder))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for _ in range(3):  # one file may be found damaged only when it is written
        assert same(counted.find(NeighborCache(folder))[0], uncached())
    assert counted.find(NeighborCache(folder))[1:] == ([], [])


@pytest.mark.parametrize("name", ["vectors.sqlite", "neighbors.sqlite"])
def test_damage_anywhere_in_a_file_changes_no_result(counted, folder, uncached, name):
    counted.find(NeighborCache(folder))
    whole, expected = (folder / name).read_bytes(), uncached()
    generator = np.random.default_rng(0)
    for place in generator.integers(len(whole), size=40):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.integers(8)
        (folder / name).write_bytes(damaged)
        if name == "vectors.sqlite":
            (folder / "neighbors.sqlite").unlink(missing_ok=True)
        assert same(counted.find(NeighborCache(folder))[0], expected)


def stand_in(**parts):
    return SimpleNamespace(embedder={}, search_key=["d" * 64, None, 1], is_prefixed=True, **parts)


def write_many(folder, start, barrier):
    """Ask for a hundred texts one by one, beside another process; vectors take several pages of the file."""
    index = stand_in(search=lambda vectors, top_k: [[(0.5, 3)] * top_k] * len(vectors))
    cache = NeighborCache(folder)
    barrier.wait()
    for number in range(start, start + 100):
        cache.search(index, lambda texts: np.full((len(texts), 4096), float(texts[0])), [str(number)], 40)


def test_two_processes_write_at_once(folder):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=write_many, args=(folder, start, barrier)) for start in (0, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    index = stand_in()  # that neither embeds nor searches
    texts = [str(number) for number in range(150)]
    cache = NeighborCache(folder)
    assert cache.search(index, None, texts, 40) == [[(0.5, 3)] * 40] * 150
    assert cache.embed(index, None, texts)[:, 0].tolist() == list(range(150))


def test_a_folder_that_cannot_be_written_keeps_nothing(counted, tmp_path, uncached):
    file = tmp_path / "file"
    file.write_text("in the way of a folder")
    cache = NeighborCache(file / "cache")
    for _ in range(2):
        found, embedded, _ = counted.find(cache)
        assert same(found, uncached())
        assert embedded == TEXTS


def test_a_retriever_with_a_cache_retrieves_the_same_neighbors(retriever, folder, monkeypatch):
    expected = [retriever.retrieve([text], 4)[0] for text in TEXTS]
    NeighborRetriever(retriever.index, retriever.embedder, NeighborCache(folder)).retrieve(TEXTS, 5)
    again = NeighborRetriever(retriever.index, cache=NeighborCache(folder))
    again._embedder = SimpleNamespace(encode_query=None)  # which cannot encode
    found = again.retrieve(TEXTS, 4)
    assert [[neighbor.id for neighbor in row] for row in found] == [[n.id for n in row] for row in expected]
    assert [[neighbor.text for neighbor in row] for row in found] == [[n.text for n in row] for row in expected]
