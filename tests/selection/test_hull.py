"""The weighted set of neighbors nearest to the query: a triangle by hand, and other solvers on random data."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import nnls

from tttnn import Document, Neighbor
from tttnn.selection import Hull, hull_weights


TRIANGLE = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])


def nearest_by_nnls(query, vectors):
    """The nearest point of the hull by non-negative least squares, with the sum of 1 as one more, heavy equation."""
    heavy = 1e4
    rows = np.vstack([vectors.T, np.full(len(vectors), heavy)])
    weights = nnls(rows, np.append(query, heavy), maxiter=10_000)[0]
    return weights / weights.sum()


def drawn(number, dimension, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=dimension)
    return query, query + spread * rng.normal(size=(number, dimension)) + 0.3


def test_a_query_inside_a_triangle_is_the_mean_of_its_corners():
    # (1, 2) = 1/4 (0, 0) + 1/4 (4, 0) + 1/2 (0, 4)
    assert hull_weights(np.array([1.0, 2.0]), TRIANGLE) == pytest.approx([0.25, 0.25, 0.5])


def test_a_query_outside_of_a_triangle_is_nearest_to_a_point_of_its_side():
    # of the side from (4, 0) to (0, 4) the point nearest to (4, 2) is (3, 1)
    assert hull_weights(np.array([4.0, 2.0]), TRIANGLE) == pytest.approx([0, 0.75, 0.25])


def test_a_query_before_a_corner_is_nearest_to_that_corner():
    assert hull_weights(np.array([-3.0, -1.0]), TRIANGLE).tolist() == [1, 0, 0]


def test_a_candidate_that_came_first_leaves_when_others_serve_better():
    # (2, 1) is the nearest to (2, 0) at first; the point itself lies on the line from (0, 0) to (4, 0)
    assert hull_weights(np.array([2.0, 0.0]), np.array([[2.0, 1.0], [0, 0], [4, 0]])) == pytest.approx([0, 0.5, 0.5])


@pytest.mark.parametrize(("number", "dimension"), [(3, 2), (10, 2), (10, 40), (60, 8), (200, 30)])
@pytest.mark.parametrize("seed", range(6))
def test_the_mean_is_as_near_as_an_independent_solver_finds(number, dimension, seed):
    query, vectors = drawn(number, dimension, seed)
    weights = hull_weights(query, vectors)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    expected = np.linalg.norm(nearest_by_nnls(query, vectors) @ vectors - query)
    assert np.linalg.norm(weights @ vectors - query) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_no_candidate_lies_before_the_nearest_point(seed):
    """At the optimum (mean - query) (vector - mean) is 0 for chosen vectors and not negative for the others."""
    query, vectors = drawn(80, 12, seed)
    weights = hull_weights(query, vectors)
    mean = weights @ vectors
    products = (vectors - mean) @ (mean - query)
    assert products.min() > -1e-8
    assert np.abs(products[weights > 0]).max() < 1e-8


def test_a_vector_far_away_does_not_end_the_search_early():
    # the nearest point of the side from (-1, 1) to (2, 1) is (0, 1) = 2/3 (-1, 1) + 1/3 (2, 1)
    near = np.array([[-1.0, 1.0], [2.0, 1.0]])
    expected = pytest.approx([2 / 3, 1 / 3, 0])
    assert hull_weights(np.zeros(2), np.vstack([near, [0.0, 1e8]])) == expected


def test_a_mean_of_no_vector_is_refused():
    with pytest.raises(ValueError, match="`max_vectors` is 0"):
        hull_weights(np.zeros(2), TRIANGLE, 0)


def test_copies_of_a_candidate_share_no_weight_twice():
    query, vectors = np.array([1.0, 2.0]), np.vstack([TRIANGLE, TRIANGLE, TRIANGLE])
    weights = hull_weights(query, vectors)
    assert weights.reshape(3, 3).sum(axis=0) == pytest.approx([0.25, 0.25, 0.5])
    assert (weights > 0).sum() == 3


def test_candidates_that_all_are_the_query_need_only_one():
    assert hull_weights(np.ones(4), np.ones((5, 4))).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_of_more_than_are_allowed_the_best_weights_of_some_are_found(seed):
    query, vectors = drawn(60, 20, seed)
    distances = []
    for most in range(1, 15):
        weights = hull_weights(query, vectors, most)
        chosen = weights > 0
        assert chosen.sum() <= most
        distances.append(np.linalg.norm(weights @ vectors - query))
        alone = nearest_by_nnls(query, vectors[chosen])
        assert distances[-1] == pytest.approx(np.linalg.norm(alone @ vectors[chosen] - query), rel=1e-6)
    assert distances == sorted(distances, reverse=True)
    assert distances[0] == pytest.approx(np.linalg.norm(vectors - query, axis=1).min())


def chosen(query, **options):
    neighbors = [Neighbor(row, f"text {row}", float(row)) for row in range(3)]
    rows = {neighbor.id: vector for neighbor, vector in zip(neighbors, TRIANGLE.astype(np.float32), strict=True)}

    def vectors(left):
        return np.array(query, np.float32), np.stack([rows[neighbor.id] for neighbor in left])

    return Hull()(neighbors, Document("d", ""), "", vectors=vectors, **options)


def test_the_selector_gives_the_heaviest_first_with_weights_of_mean_one():
    selection = chosen((1, 2), num_neighbors=3)
    assert [neighbor.id for neighbor in selection.neighbors][0] == 2
    assert sorted(selection.weights) == pytest.approx([0.75, 0.75, 1.5])
    assert sum(selection.weights) == pytest.approx(3)


def test_weights_follow_the_order_of_their_neighbors():
    weight_of = {0: 0.75, 1: 0.75, 2: 1.5}
    for order in ("nearest", "farthest", "random"):
        selection = chosen((1, 2), num_neighbors=3, order=order, seed=1)
        expected = [weight_of[neighbor.id] for neighbor in selection.neighbors]
        assert selection.weights == pytest.approx(expected)
    assert [neighbor.id for neighbor in chosen((1, 2), num_neighbors=3, order="farthest").neighbors][-1] == 2


def test_the_rules_come_before_the_hull():
    selection = chosen((4, 2), num_neighbors=3, max_distance=1.0)  # (0, 4) is left out
    assert [neighbor.id for neighbor in selection.neighbors] == [1]
    assert selection.weights == [float(Fraction(1))]
    assert chosen((4, 2), num_neighbors=3, max_distance=-1.0).neighbors == []
