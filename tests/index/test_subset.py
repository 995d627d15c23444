"""A part of an index, against brute force over the rows that it keeps."""

from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from tttnn import Document, NeighborRetriever
from tttnn.index.build.save import write_index
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.subset import IndexSubset
from tttnn.index.texts import TextList


DIMENSION = 6


def make_index(*sizes, kind="flat"):
    """An index of random vectors, and these."""
    vectors = np.random.default_rng(0).normal(size=(sum(sizes), DIMENSION)).astype(np.float32)
    shards, first = [], 0
    for size in sizes:
        rows = vectors[first : first + size]
        store = faiss.IndexFlatL2(DIMENSION)
        if kind == "ivf":
            store = faiss.IndexIVFFlat(store, DIMENSION, 4)
            store.cp.min_points_per_centroid = 1
            store.train(rows)
            store.nprobe = 4  # all, so that it is exact
        store.add(rows)
        documents = [Document(str(first + row), f"text {first + row}") for row in range(size)]
        shards.append(Shard(store, TextList(documents), first))
        first += size
    return DocumentIndex(shards, {"name": "none"}, "digest"), vectors


def kept(subset, vectors):
    """All rows of a part: those that are found where all are asked for."""
    return sorted(row for _, row in subset.search(vectors[:1], len(vectors))[0])


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_part_is_searched_as_by_brute_force_over_its_rows(kind):
    index, vectors = make_index(40, 7, 23, kind=kind)
    subset = IndexSubset(index, 0.5)
    rows = kept(subset, vectors)
    queries = np.random.default_rng(1).normal(size=(20, DIMENSION)).astype(np.float32)
    for query, found in zip(queries, subset.search(queries, 5), strict=True):
        distances = ((vectors[rows].astype(np.float64) - query) ** 2).sum(axis=1)
        nearest = np.argsort(distances)[:5]
        assert [row for _, row in found] == [rows[place] for place in nearest]
        assert [distance for distance, _ in found] == pytest.approx(distances[nearest].tolist(), rel=1e-5)


@pytest.mark.parametrize(("fraction", "sizes"), [(0.1, (4, 1, 2)), (0.5, (20, 4, 12)), (1.0, (40, 7, 23))])
def test_each_shard_gives_its_share(fraction, sizes):
    """Of 40, 7 and 23 rows; 3.5 rounds to the even 4, 11.5 to 12."""
    index, vectors = make_index(40, 7, 23)
    subset = IndexSubset(index, fraction)
    rows = kept(subset, vectors)
    assert len(subset) == len(rows) == sum(sizes)
    bounds = [(0, 40), (40, 47), (47, 70)]
    assert tuple(sum(first <= row < last for row in rows) for first, last in bounds) == sizes


def test_a_smaller_part_lies_within_a_larger_one():
    index, vectors = make_index(40, 7, 23)
    parts = [set(kept(IndexSubset(index, fraction), vectors)) for fraction in (0.05, 0.2, 0.5, 1.0)]
    assert all(smaller < larger for smaller, larger in zip(parts, parts[1:], strict=False))


def test_the_draw_follows_the_seed():
    index, vectors = make_index(40, 7, 23)
    parts = [kept(IndexSubset(index, 0.5, seed), vectors) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_shards_of_one_size_are_drawn_from_differently():
    index, vectors = make_index(40, 40)
    rows = kept(IndexSubset(index, 0.5), vectors)
    assert [row for row in rows if row < 40] != [row - 40 for row in rows if row >= 40]


def test_the_whole_is_the_index_itself():
    index, vectors = make_index(40, 7)
    assert IndexSubset(index, 1.0).search(vectors[:3], 9) == index.search(vectors[:3], 9)


def test_rows_keep_their_documents():
    index, vectors = make_index(40, 7, 23)
    for _, row in IndexSubset(index, 0.2).search(vectors[:1], 10)[0]:
        assert IndexSubset(index, 0.2).documents([row])[0].text == f"text {row}"


def test_a_part_has_a_digest_of_its_own():
    index, _ = make_index(40)
    parts = [index, IndexSubset(index, 0.5), IndexSubset(index, 0.25), IndexSubset(index, 0.5, seed=1)]
    assert len({part.digest for part in parts}) == 4
    assert IndexSubset(index, 0.5).digest == parts[1].digest


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match="The fraction of an index is .*above 0 and up to 1"):
        IndexSubset(make_index(4)[0], fraction)


def test_a_share_that_leaves_no_row_is_refused():
    with pytest.raises(ValueError, match="The fraction 0.01 of an index of 40 documents leaves none"):
        IndexSubset(make_index(40)[0], 0.01)


def test_a_shard_may_be_left_without_rows():
    """0.1 of 40 rows are 4, of 3 rows none."""
    index, vectors = make_index(40, 3)
    assert len(IndexSubset(index, 0.1)) == len(kept(IndexSubset(index, 0.1), vectors)) == 4


def test_a_part_of_a_part_is_refused():
    part = IndexSubset(make_index(40)[0], 0.5)
    with pytest.raises(ValueError, match="a part already, of 20 documents"):
        IndexSubset(part, 0.5)


@pytest.mark.parametrize("kind", ["HNSW8", "SQfp16", "IVF1,PQ2x4", "Flat,Refine(Flat)"])
def test_a_part_of_an_index_that_cannot_search_among_some_rows_is_refused(kind):
    store = faiss.index_factory(DIMENSION, kind)
    vectors = np.random.default_rng(0).normal(size=(64, DIMENSION)).astype(np.float32)
    store.train(vectors)
    store.add(vectors)
    index = DocumentIndex([Shard(store, [Document(str(row), "x") for row in range(64)])], {}, "digest")
    with pytest.raises(ValueError, match=f"this is {type(store).__name__}, .*Use a flat index"):
        IndexSubset(index, 0.5)


def test_a_part_searches_as_thoroughly_as_the_whole():
    index, vectors = make_index(40, 30, kind="ivf")
    index.set_search({"nprobe": 1})
    query = vectors[:1]
    assert len(index.search(query, 70)[0]) < 70
    whole, part = ({row for _, row in searched.search(query, 70)[0]} for searched in (index, IndexSubset(index, 1.0)))
    assert part == whole
    assert {row for _, row in IndexSubset(index, 0.5).search(query, 70)[0]} < whole


def test_a_part_of_several_opened_shards_keeps_the_rows_of_the_whole():
    index, vectors = make_index(40, 7, 23)
    opened = DocumentIndex([index.shards[0], index.shards[2]], index.embedder, "other")
    rows = kept(IndexSubset(opened, 0.5), vectors)
    assert len(rows) == 32
    assert not {*range(40, 47)} & {*rows}


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_the_vectors_of_rows_are_those_that_were_indexed(kind):
    index, vectors = make_index(40, 7, 23, kind=kind)
    rows = [69, 0, 41, 39, 41]
    np.testing.assert_array_equal(index.vectors(rows), vectors[rows])
    np.testing.assert_array_equal(IndexSubset(index, 0.5).vectors(rows), vectors[rows])
    with pytest.raises(IndexError, match="Row 70 was asked for"):
        index.vectors([70])


def test_each_row_of_a_part_has_a_place():
    index, vectors = make_index(40, 7, 23)
    subset = IndexSubset(index, 0.5)
    assert sorted(map(subset.row_at, range(len(subset)))) == kept(subset, vectors)
    assert [*map(index.row_at, range(70))] == [*range(70)]
    opened = DocumentIndex([index.shards[0], index.shards[2]], index.embedder, "other")
    assert [*map(opened.row_at, range(63))] == [*range(40), *range(47, 70)]
    for searched, place in ((index, 70), (subset, len(subset)), (opened, 63)):
        with pytest.raises(IndexError, match=f"place {place} was asked for"):
            searched.row_at(place)


def test_a_part_is_not_written_as_an_index(tmp_path):
    with pytest.raises(ValueError, match="part of an index, drawn by `subset`. Save the whole one"):
        write_index(IndexSubset(make_index(10)[0], 0.5), tmp_path / "part")
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_distances_to_documents_drawn_at_random_are_distances_to_stored_vectors(kind):
    index, vectors = make_index(40, 7, 23, kind=kind)
    queries = np.random.default_rng(1).normal(size=(3, DIMENSION)).astype(np.float32)
    stand_in = SimpleNamespace(check=lambda description: None, encode_query=lambda texts: queries)
    retriever = NeighborRetriever(index, stand_in)
    drawn = retriever.random_distances(["a", "b", "c"], per_text=300)
    assert len(drawn) == 900
    for number, query in enumerate(queries):
        every = ((vectors.astype(np.float64) - query) ** 2).sum(axis=1)
        rows = {int(np.abs(every - distance).argmin()) for distance in drawn[300 * number : 300 * number + 300]}
        assert max(np.abs(every - distance).min() for distance in drawn[300 * number : 300 * number + 300]) < 1e-4
        # of 300 draws nearly every one of 70 rows, and each shard by its size
        assert len(rows) > 60
    assert retriever.random_distances(["a", "b", "c"], per_text=300) == drawn
    assert retriever.random_distances(["a", "b", "c"], per_text=300, seed=1) != drawn


def test_a_retriever_of_a_part_retrieves_from_it_only(retriever):
    part = retriever.subset(0.5)
    everything = {neighbor.id for neighbor in part.retrieve(["the whale"], 5)[0]}
    assert len(part) == len(everything) == 5
    for text in ("def main():", "the captain", "x squared"):
        found = part.retrieve([text], 3)[0]
        expected = [neighbor for neighbor in retriever.retrieve([text], 10)[0] if neighbor.id in everything][:3]
        assert [neighbor.id for neighbor in found] == [neighbor.id for neighbor in expected]
        assert [neighbor.text for neighbor in found] == [neighbor.text for neighbor in expected]


def test_more_neighbors_than_a_part_holds_are_refused(retriever):
    with pytest.raises(ValueError, match="`top_k` is 6, but the index holds 5 documents"):
        retriever.subset(0.5).retrieve(["the whale"], 6)
