"""SIFT: picks and variances against the formula, a search over all, and an example by hand."""

import numpy as np
import pytest

from tttnn import Document, Neighbor
from tttnn.selection import Sift, hull_weights, sift_picks


def variance(query, vectors, picks, regularization):
    """k(q, q) - k(q, X) (k(X, X) + regularization I)^-1 k(X, q), of vectors of length 1, by a matrix inverse."""
    query = query / np.linalg.norm(query)
    chosen = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[picks]
    inverse = np.linalg.inv(chosen @ chosen.T + regularization * np.eye(len(picks)))
    return query @ query - query @ chosen.T @ inverse @ chosen @ query


def greedy(query, vectors, num_picks, regularization):
    """The picks of a search that tries every candidate, with the formula, at every pick."""
    picks = []
    for _ in range(num_picks):
        trials = [variance(query, vectors, [*picks, row], regularization) for row in range(len(vectors))]
        picks.append(int(np.argmin(trials)))
    return picks


def drawn(number, dimension, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=dimension)
    return query, query + spread * rng.normal(size=(number, dimension))


CASES = [(12, 3, 0.01), (12, 3, 1.0), (30, 8, 0.01), (30, 8, 1e-4), (5, 50, 0.1)]


@pytest.mark.parametrize(("number", "dimension", "regularization"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_picks_are_those_of_a_search_over_all_candidates(number, dimension, regularization, seed):
    query, vectors = drawn(number, dimension, seed)
    picks, variances = sift_picks(query, vectors, 8, regularization)
    assert picks == greedy(query, vectors, 8, regularization)
    expected = [variance(query, vectors, picks[: count + 1], regularization) for count in range(8)]
    assert variances == pytest.approx(expected, rel=1e-9, abs=1e-10)  # what the inverse itself is off


def test_a_rank_one_update_is_the_formula_after_fifty_picks():
    query, vectors = drawn(200, 64, seed=3)
    picks, variances = sift_picks(query.astype(np.float32), vectors.astype(np.float32), 50)
    query, vectors = query.astype(np.float32).astype(float), vectors.astype(np.float32).astype(float)
    assert variances[-1] == pytest.approx(variance(query, vectors, picks, 0.01), rel=1e-8)
    assert variances == sorted(variances, reverse=True)


def test_three_picks_in_the_plane_by_hand():
    """
    The query is (3, 4) / 5. Of (1, 0), again (1, 0) and (0, 1), the third has the larger product, 0.8: with
    regularization 0.25 the variance falls to 1 - 0.64 / 1.25 = 0.488. Now picking it again would leave
    1 - 2 * 0.64 / (2 + 0.25) = 0.4311, and the first, orthogonal to it, 0.488 - 0.36 / 1.25 = 0.2. After both, the
    first again gains 0.36 * (2 / 2.25 - 1 / 1.25) = 0.032, and the third 0.64 * (2 / 2.25 - 1 / 1.25) = 0.0569.
    """
    picks, variances = sift_picks(np.array([3.0, 4.0]), np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 7.0]]), 3, 0.25)
    assert picks == [2, 0, 2]
    assert variances == pytest.approx([0.488, 0.2, 0.2 - 0.64 * (2 / 2.25 - 1 / 1.25)])


def test_the_first_pick_is_the_nearest_by_angle():
    query, vectors = drawn(50, 16, seed=1)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
    assert sift_picks(query, vectors, 1)[0] == [int(cosines.argmax())]


def test_a_copy_of_a_pick_is_left_for_what_is_new():
    query = np.array([1.0, 0.6, 0.0])
    vectors = np.array([[1.0, 0.1, 0.0], [1.0, 0.1, 0.0], [0.0, 1.0, 0.0]])
    assert sift_picks(query, vectors, 2)[0] == [0, 2]


@pytest.mark.parametrize("seed", range(5))
def test_of_copies_the_first_is_picked(seed):
    query, vectors = drawn(40, 300, seed)
    assert max(sift_picks(query, np.vstack([vectors] * 3), 12)[0]) < 40


def test_a_vector_without_a_length_is_picked_last():
    assert sift_picks(np.array([1.0, 0.0]), np.array([[0.0, 0.0], [1.0, 1.0]]), 2)[0] == [1, 1]


def test_a_query_without_a_length_leaves_the_choice_to_the_order():
    # every candidate tells nothing of it, so the first, which is the nearest, is picked again and again
    assert sift_picks(np.zeros(2), np.array([[0.0, 2.0], [1.0, 1.0]]), 3) == ([0, 0, 0], [0, 0, 0])


def test_one_candidate_is_picked_as_often_as_asked():
    # in its own direction, with noise 1: 1 - n / (n + 1)
    picks, variances = sift_picks(np.array([2.0, 0.0]), np.array([[5.0, 0.0]]), 3, 1.0)
    assert picks == [0, 0, 0]
    assert variances == pytest.approx([1 / 2, 1 / 3, 1 / 4])


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_least_regularization_gives_variances_that_are_exact(offset):
    query, vectors = drawn(30, 3, seed=0)
    vectors += offset  # all but parallel
    picks, variances = sift_picks(query, vectors, 12, 1e-8)
    # the variance is also the least squared error of the query as a sum of picks, with a penalty on their weights
    query, vectors = query / np.linalg.norm(query), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for count in range(1, 13):
        rows = np.vstack([vectors[picks[:count]].T, 1e-4 * np.eye(count)])
        wanted = np.append(query, np.zeros(count))
        weights = np.linalg.lstsq(rows, wanted)[0]
        assert variances[count - 1] == pytest.approx(np.square(rows @ weights - wanted).sum(), abs=1e-9)


@pytest.mark.parametrize(
    ("query", "vectors", "message"),
    [
        ([1.0, np.nan], [[1.0, 0.0]], "not finite"),
        ([1.0, 0.0], [[1.0, 0.0], [np.nan, 0.0]], "not finite"),
        ([1.0, 0.0], [[np.inf, 0.0]], "not finite"),
        ([1.0, 0.0], np.empty((0, 2)), r"\(0, 2\)"),
        ([1.0, 0.0], [[1.0, 0.0, 0.0]], r"\(1, 3\)"),
        ([1.0, 0.0], [1.0, 0.0], r"vectors have \(2,\)"),
    ],
)
@pytest.mark.parametrize("choose", [lambda *vectors: sift_picks(*vectors, 2), hull_weights])
def test_vectors_that_cannot_be_compared_are_refused(choose, query, vectors, message):
    with pytest.raises(ValueError, match=message):
        choose(np.array(query), np.array(vectors))


def test_many_candidates_take_memory_in_proportion():
    # the covariances of all pairs would take 80 GB
    query, vectors = drawn(100_000, 2, seed=0)
    picks, variances = sift_picks(query, vectors, 2)
    assert variances[-1] == pytest.approx(variance(query, vectors, picks, 0.01), rel=1e-8)


def test_the_selector_trains_on_picks_in_their_order_and_again_on_those_that_are_picked_again():
    neighbors = [Neighbor(7, "a", 1.0), Neighbor(8, "b", 2.0), Neighbor(9, "c", 3.0)]
    vectors = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 7.0]], np.float32)
    selection = Sift(0.25)(
        neighbors,
        Document("d", ""),
        "",
        num_neighbors=3,
        vectors=lambda left: (np.array([3.0, 4.0], np.float32), vectors[[neighbor.id - 7 for neighbor in left]]),
    )
    assert [neighbor.id for neighbor in selection.neighbors] == [9, 7, 9]
    assert selection.weights is None
    assert len(selection.overlaps) == 3


@pytest.mark.parametrize("regularization", [0.0, 1e-09, float("inf"), float("nan")])
def test_a_regularization_that_is_not_finite_or_below_rounding_is_refused(regularization):
    with pytest.raises(ValueError, match=f"`regularization` is {regularization}"):
        Sift(regularization)
    with pytest.raises(ValueError, match=f"`regularization` is {regularization}"):
        sift_picks(np.ones(2), np.ones((1, 2)), 1, regularization)


def test_the_adaptive_stop_ends_where_the_deviation_is_too_large_by_hand():
    """
    In the example in the plane above, two picks leave the variances 0.488 and 0.2, and the third one 0.2 - 0.0569.
    Times the number of picks the deviations are 0.6986, 0.8944 and 1.1349: with alpha 1 the third is the last.
    """
    query, vectors = np.array([3.0, 4.0]), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    picks, variances = sift_picks(query, vectors, 6, 0.25)
    assert variances[:3] == pytest.approx([0.488, 0.2, 0.2 - 0.64 * (2 / 2.25 - 1 / 1.25)])
    for alpha, number in ((1.0, 3), (1.2, 2), (1 / 0.6986, 2), (1 / 0.6985, 1), (100.0, 1), (None, 6)):
        assert Sift(0.25, alpha).choose(query, vectors, 6)[0] == picks[:number], alpha


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_a_stop_that_cannot_be_is_refused(alpha):
    with pytest.raises(ValueError, match="`alpha` is .*above 0"):
        Sift(alpha=alpha)
