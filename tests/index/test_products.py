"""Exact search of many queries at once: its answers are those that Faiss gives each query alone, to the bit."""

import faiss
import numpy as np
import pytest

from tttnn.index import products
from tttnn.index.products import FEWEST_QUERIES, search_by_products
from tttnn.index.search import search_shards
from tttnn.index.shard import Shard, nearest


NUMBER = 2 * FEWEST_QUERIES


def flat(vectors):
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return index


def one_by_one(index, queries, depth, mask=None):
    """What Faiss gives each query alone; of equal distances the first row comes first."""
    selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    settings = None if mask is None else faiss.SearchParameters(sel=selector)
    results = [index.search(query[None], depth, params=settings) for query in queries]
    return nearest(*(np.concatenate(each) for each in zip(*results, strict=True)), depth)


def random_vectors(rows, dimension, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)


def near_ties(rows=5000, dimension=96):
    """Vectors about one point, at distances from it that float32 just tells apart; queries at that point."""
    generator = np.random.default_rng(1)
    directions = generator.normal(size=(rows, dimension))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    center = 3 + generator.normal(size=dimension)
    vectors = center + directions * (1 + 1e-7 * generator.integers(8, size=(rows, 1)))
    return vectors.astype(np.float32), np.tile(center, (NUMBER, 1)).astype(np.float32)


def copies(rows=5000, dimension=32):
    """Each vector some ten times."""
    vectors = random_vectors(rows // 10, dimension)[np.random.default_rng(2).integers(rows // 10, size=rows)]
    return vectors, vectors[:NUMBER] + np.float32(0.01)


def lattice(rows=5000, dimension=4):
    """Few distances, each of hundreds of rows."""
    numbers = np.random.default_rng(3).integers(3, size=(rows, dimension)).astype(np.float32)
    return numbers, numbers[:NUMBER]


def far_away(rows=5000, dimension=64):
    """A cloud far from the origin: the product cancels all but the last digits."""
    vectors = random_vectors(rows, dimension) * np.float32(1e-2) + np.float32(100)
    return vectors, vectors[:NUMBER] + np.float32(1e-3)


def tiny(rows=5000, dimension=16):
    """Squares that underflow."""
    vectors = random_vectors(rows, dimension) * np.float32(1e-22)
    return vectors, vectors[:NUMBER]


CASES = [near_ties, copies, lattice, far_away, tiny]


@pytest.mark.parametrize("depth", [1, 20, 150])
@pytest.mark.parametrize("make", CASES)
def test_a_batch_gives_what_each_query_alone_gives(make, depth):
    vectors, queries = make()
    expected = one_by_one(flat(vectors), queries, depth)
    (results,) = search_shards([Shard(flat(vectors), [])], queries, depth)
    assert [[distance for distance, _ in pairs] for pairs in results] == expected[0].tolist()
    assert [[row for _, row in pairs] for pairs in results] == expected[1].tolist()


@pytest.mark.parametrize("dimension", [1, 3, 17, 384])
def test_what_is_answered_by_products_is_the_answer(dimension):
    index, queries = flat(random_vectors(9000, dimension)), random_vectors(NUMBER, dimension, seed=4)
    distances, places, answered = search_by_products(index, queries, 20)
    assert answered.all()
    expected = one_by_one(index, queries, 20)
    assert np.array_equal(distances, expected[0])
    assert np.array_equal(places, expected[1])


def test_only_rows_of_the_mask_are_found():
    vectors, queries = copies()
    mask = np.random.default_rng(5).random(len(vectors)) < 0.3
    distances, places, answered = search_by_products(flat(vectors), queries, 20, mask)
    assert answered.all()
    assert mask[places].all()
    assert np.array_equal(places, one_by_one(flat(vectors), queries, 20, mask)[1])


def test_a_mask_of_few_rows_leaves_places_empty():
    index, queries = flat(random_vectors(5000, 8)), random_vectors(NUMBER, 8, seed=4)
    mask = np.zeros(5000, bool)
    mask[[7, 4999]] = True
    _, places, answered = search_by_products(index, queries, 3, mask)
    assert answered.all()
    assert set(places[:, :2].ravel().tolist()) == {7, 4999}
    assert (places[:, 2] == -1).all()


def test_too_many_candidates_are_left_to_a_search_of_one_query(monkeypatch):
    monkeypatch.setattr(products, "MOST_CANDIDATES", 100)
    vectors = random_vectors(6000, 8)
    vectors[2000:3000] = vectors[0]  # more than may be candidates, of the first query only
    queries = np.concatenate([vectors[:1], random_vectors(NUMBER, 8, seed=4) + 100 * random_vectors(1, 8, seed=6)])
    answered = search_by_products(flat(vectors), queries, 5)[2]
    assert not answered[0]
    assert answered[1:].any()
    (results,) = search_shards([Shard(flat(vectors), [])], queries, 5)
    assert [[row for _, row in pairs] for pairs in results] == one_by_one(flat(vectors), queries, 5)[1].tolist()
    assert [row for _, row in results[0]] == [0, 2000, 2001, 2002, 2003]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_numbers_without_a_finite_square_are_left_to_a_search_of_one_query(value):
    index, queries = flat(random_vectors(500, 8)), random_vectors(NUMBER, 8, seed=4)
    queries[3, 2] = value
    answered = search_by_products(index, queries, 5)[2]
    assert np.flatnonzero(~answered).tolist() == [3]
    vectors = random_vectors(500, 8)
    vectors[400, 2] = value
    assert not search_by_products(flat(vectors), queries, 5)[2].any()


@pytest.mark.parametrize("make", CASES)
def test_the_bound_holds_for_what_the_two_arithmetics_give(make):
    """The difference of both to the distance in float64 is within the bound, and so is that between them."""
    vectors, queries = make()
    squares = np.einsum("ij,ij->i", vectors, vectors)
    norms = np.einsum("ij,ij->i", queries, queries, dtype=np.float64)
    bound = products._error_bound(norms, float(squares.max()), vectors.shape[1])[:, None]
    by_product = queries @ vectors.T * np.float32(-2) + squares + norms[:, None]
    index = flat(vectors)
    distances, places = index.search(queries[:1], len(vectors))
    by_faiss = np.empty(len(vectors))
    by_faiss[places[0]] = distances[0]
    exact = np.square(queries[:1].astype(np.float64) - vectors).sum(axis=1)
    assert (np.abs(by_product[0] - by_faiss) <= bound[0]).all()
    assert (np.abs(by_product[0] - exact) + np.abs(by_faiss - exact) <= bound[0]).all()
