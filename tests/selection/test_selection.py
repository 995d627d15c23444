"""Which neighbors are trained on, and which of them copy the scored text: by hand."""

import pytest

from tttnn import Document, Neighbor
from tttnn.selection.near_copies import overlap
from tttnn.selection.nearest import select


WORDS = [f"word{number}" for number in range(100)]
DOCUMENT = Document("d", "", {"source": "a.txt", "year": 1851})


def text(start, stop):
    return " ".join(WORDS[start:stop])


def neighbors(*items):
    """Neighbors 0, 1, ... at squared distances 0, 1, ..., of texts or of pairs of text and metadata."""
    pairs = [item if isinstance(item, tuple) else (item, {}) for item in items]
    return [Neighbor(row, content, float(row), metadata) for row, (content, metadata) in enumerate(pairs)]


def chosen(*arguments, **keywords):
    return [neighbor.id for neighbor in select(*arguments, **keywords).neighbors]


# --- overlap ---

OVERLAPS = {
    "the same text": (text(0, 20), text(0, 20), 1.0),
    "no word in common": (text(0, 20), text(50, 70), 0.0),
    "one text within the other": (text(5, 20), text(0, 100), 1.0),
    # 20 words have 8 13-grams, their first 19 have 7
    "seven of eight": (text(0, 20), text(0, 19) + " " + text(60, 65), 7 / 8),
    # 14 words have 2 13-grams, of which one is in the other text
    "one of two": (text(0, 14), text(1, 40), 1 / 2),
    # twelve words in common are no 13-gram
    "twelve words in a row": (text(0, 30), text(18, 30) + " " + text(60, 80), 0.0),
    "thirteen words are one 13-gram": (text(0, 13), text(0, 13), 1.0),
    "thirteen words, the last one another": (text(0, 13), text(0, 12) + " other", 0.0),
    # 13 words said three times have 13 different 13-grams, 30 words have 18, and they share the first
    "repeated 13-grams count once": (" ".join([text(0, 13)] * 3), text(0, 13) + " " + text(50, 67), 1 / 13),
    "case and punctuation do not count": ("A b, c! D e f g h i j k l m.", "a B c d E f-g h i j (k) l m", 1.0),
    "letters of other scripts count": ("ä б 東 " * 5, "Ä Б 東 " * 5, 1.0),
    "an underscore belongs to its word": ("a_b " * 13, "a b " * 13, 0.0),
    "short texts with the same words": ("The white whale!", "the white, WHALE", 1.0),
    "short texts with other words": ("the white whale", "the white wall", 0.0),
    "a short text within a long one": (text(0, 5), text(0, 50), 0.0),
    "two empty texts": ("", "", 0.0),
    "an empty text and a long one": ("", text(0, 50), 0.0),
    "two texts without words": ("--- !", "--- !", 0.0),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_overlap_is_the_share_of_common_13_grams_of_the_shorter_text(case):
    first, second, expected = OVERLAPS[case]
    assert overlap(first, second) == pytest.approx(expected)
    assert overlap(second, first) == pytest.approx(expected), "the other way round it is the same"


# --- which ---


def test_the_nearest_are_chosen():
    assert chosen(neighbors("a", "b", "c", "d"), DOCUMENT, "", 2) == [0, 1]


def test_fewer_candidates_than_wanted_are_all_chosen():
    assert chosen(neighbors("a", "b"), DOCUMENT, "", 5) == [0, 1]
    assert chosen([], DOCUMENT, "", 5) == []


def test_a_neighbor_at_the_maximal_distance_is_near_enough():
    assert chosen(neighbors("a", "b", "c", "d"), DOCUMENT, "", 4, max_distance=2.0) == [0, 1, 2]
    assert chosen(neighbors("a", "b"), DOCUMENT, "", 2, max_distance=0.0) == [0]


def test_excluded_neighbors_make_room_for_the_next():
    candidates = neighbors(
        ("a", {"id": "d", "source": "b.txt"}),
        ("b", {"id": "e", "source": "a.txt"}),
        ("c", {"id": "f", "year": 1851}),
        ("d", {"id": "g"}),
    )
    assert chosen(candidates, DOCUMENT, "", 2) == [0, 1]
    assert chosen(candidates, DOCUMENT, "", 2, exclude="id") == [1, 2]
    assert chosen(candidates, DOCUMENT, "", 2, exclude="source") == [0, 2]
    assert chosen(candidates, DOCUMENT, "", 4, exclude="year") == [0, 1, 3]


def test_a_field_that_the_document_lacks_excludes_nobody():
    assert chosen(neighbors(("a", {"source": None}), "b"), Document("d", ""), "", 2, exclude="source") == [0, 1]


def test_a_value_that_is_empty_excludes_too():
    document = Document("d", "", {"source": ""})
    assert chosen(neighbors(("a", {"source": ""}), "b"), document, "", 2, exclude="source") == [1]


def test_near_copies_are_named_with_their_overlap_and_kept():
    scored = text(0, 20)
    # overlaps 1, 0, 4/8 (the 16 first words have 4 of the 8 13-grams), 3/8
    candidates = neighbors(text(0, 30), "other words", text(0, 16) + " " + text(60, 70), text(0, 15) + " x" * 9)
    selection = select(candidates, DOCUMENT, scored, 4)
    assert [neighbor.id for neighbor in selection.neighbors] == [0, 1, 2, 3]
    assert selection.overlaps == pytest.approx([1.0, 0.0, 1 / 2, 3 / 8])
    assert selection.near_copies == [0, 2]


def test_dropped_near_copies_make_room_for_the_next_and_are_named():
    scored = text(0, 20)
    candidates = neighbors(text(0, 30), "other words", text(0, 20), text(0, 15) + " x" * 9, "more words")
    selection = select(candidates, DOCUMENT, scored, 2, drop_near_copies=True)
    assert [neighbor.id for neighbor in selection.neighbors] == [1, 3]
    assert selection.overlaps == pytest.approx([0.0, 3 / 8])
    assert selection.near_copies == [0, 2]


def test_neighbors_dropped_for_another_reason_are_no_near_copies_of_the_training():
    scored = text(0, 20)
    candidates = neighbors((scored, {"id": "d"}), "other words", scored)
    assert select(candidates, DOCUMENT, scored, 2, exclude="id", max_distance=1.5).near_copies == []


# --- in which order ---


def test_farthest_first_is_the_order_of_the_chosen_ones_turned():
    assert chosen(neighbors(*"abcd"), DOCUMENT, "", 3, order="farthest") == [2, 1, 0]


def test_overlaps_follow_the_order_of_their_neighbors():
    scored = text(0, 20)
    candidates = neighbors(text(0, 20), "other words", text(0, 16) + " " + text(60, 70))
    assert select(candidates, DOCUMENT, scored, 3, order="farthest").overlaps == pytest.approx([0.5, 0.0, 1.0])


def test_a_random_order_is_one_of_the_chosen_ones_and_of_its_seed():
    candidates = neighbors(*map(str, range(30)))
    orders = [chosen(candidates, DOCUMENT, "", 20, order="random", seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != list(range(20))
