"""Which neighbors are trained on, and which of them copy the scored text: by hand."""

import datetime
from decimal import Decimal

import numpy as np
import pytest

from tttnn import Document, Neighbor
from tttnn.index.texts import document_from_line, document_to_line
from tttnn.selection import SELECTORS, Hull, Sift, check_exclude, overlap, select


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
    assert chosen(neighbors("a", "b", "c", "d"), DOCUMENT, "", num_neighbors=2) == [0, 1]


def test_fewer_candidates_than_wanted_are_all_chosen():
    assert chosen(neighbors("a", "b"), DOCUMENT, "", num_neighbors=5) == [0, 1]
    assert chosen([], DOCUMENT, "", num_neighbors=5) == []


def test_a_neighbor_at_the_maximal_distance_is_near_enough():
    assert chosen(neighbors("a", "b", "c", "d"), DOCUMENT, "", num_neighbors=4, max_distance=2.0) == [0, 1, 2]
    assert chosen(neighbors("a", "b"), DOCUMENT, "", num_neighbors=2, max_distance=0.0) == [0]


def test_excluded_neighbors_make_room_for_the_next():
    candidates = neighbors(
        ("a", {"id": "d", "source": "b.txt"}),
        ("b", {"id": "e", "source": "a.txt"}),
        ("c", {"id": "f", "year": 1851}),
        ("d", {"id": "g"}),
    )
    assert chosen(candidates, DOCUMENT, "", num_neighbors=2) == [0, 1]
    assert chosen(candidates, DOCUMENT, "", num_neighbors=2, exclude="id") == [1, 2]
    assert chosen(candidates, DOCUMENT, "", num_neighbors=2, exclude="source") == [0, 2]
    assert chosen(candidates, DOCUMENT, "", num_neighbors=4, exclude="year") == [0, 1, 3]


def test_a_field_that_the_document_lacks_excludes_nobody():
    assert chosen(
        neighbors(("a", {"source": None}), "b"), Document("d", ""), "", num_neighbors=2, exclude="source"
    ) == [0, 1]


def test_a_value_that_is_empty_excludes_too():
    document = Document("d", "", {"source": ""})
    assert chosen(neighbors(("a", {"source": ""}), "b"), document, "", num_neighbors=2, exclude="source") == [1]


@pytest.mark.parametrize(
    "text",
    ["東京は日本の首都であり、世界有数の大都市である。", "ภาษาไทยเป็นภาษาราชการของประเทศไทย"],
    ids=["Japanese", "Thai"],
)
def test_a_text_without_spaces_that_stands_in_another_is_a_copy(text):
    assert overlap(text, f"前の文章はここにある。{text}後の文章はここにある。") == 1
    assert overlap(text, text[::-1]) == 0


def test_near_copies_are_named_with_their_overlap_and_kept():
    scored = text(0, 20)
    # overlaps 1, 0, 4/8 (the 16 first words have 4 of the 8 13-grams), 3/8
    candidates = neighbors(text(0, 30), "other words", text(0, 16) + " " + text(60, 70), text(0, 15) + " x" * 9)
    selection = select(candidates, DOCUMENT, scored, num_neighbors=4)
    assert [neighbor.id for neighbor in selection.neighbors] == [0, 1, 2, 3]
    assert selection.overlaps == pytest.approx([1.0, 0.0, 1 / 2, 3 / 8])
    assert selection.near_copies == [0, 2]


def test_dropped_near_copies_make_room_for_the_next_and_are_named():
    scored = text(0, 20)
    candidates = neighbors(text(0, 30), "other words", text(0, 20), text(0, 15) + " x" * 9, "more words")
    selection = select(candidates, DOCUMENT, scored, num_neighbors=2, drop_near_copies=True)
    assert [neighbor.id for neighbor in selection.neighbors] == [1, 3]
    assert selection.overlaps == pytest.approx([0.0, 3 / 8])
    assert selection.near_copies == [0, 2]


def test_neighbors_dropped_for_another_reason_are_no_near_copies_of_the_training():
    scored = text(0, 20)
    candidates = neighbors((scored, {"id": "d"}), "other words", scored)
    assert select(candidates, DOCUMENT, scored, num_neighbors=2, exclude="id", max_distance=1.5).near_copies == []


def test_a_passage_of_the_part_before_the_scored_text_is_a_near_copy_of_the_document():
    document = Document("d", text(0, 60))
    selection = select(neighbors(text(5, 25), text(70, 90)), document, text(30, 60), num_neighbors=2)
    assert (selection.near_copies, selection.overlaps) == ([0], [0.0, 0.0])
    dropped = select(
        neighbors(text(5, 25), text(70, 90)), document, text(30, 60), num_neighbors=2, drop_near_copies=True
    )
    assert [neighbor.id for neighbor in dropped.neighbors] == [1]


def test_a_passage_over_the_beginning_of_the_scored_text_is_a_near_copy_of_the_document():
    document = Document("d", text(0, 60))
    # of its 18 13-grams one stands in the scored text, and all in the document
    selection = select(neighbors(text(13, 43)), document, text(30, 60), num_neighbors=1)
    assert (selection.near_copies, selection.overlaps) == ([0], [pytest.approx(1 / 18)])


def test_a_copy_of_the_part_before_the_scored_text_in_a_long_neighbor_is_a_near_copy():
    document = Document("d", text(0, 60))
    long = text(0, 30) + " " + " ".join(f"other{number}" for number in range(100))
    # of the document's 48 13-grams 18 stand there, too few, and all 18 of its first half
    assert select(neighbors(long), document, text(30, 60), num_neighbors=1).near_copies == [0]


# --- neighbors that come from the document itself ---


def own(document, *items, **options):
    return select(neighbors(*items), document, document.text, num_neighbors=len(items), **options).own


def test_neighbors_with_the_id_of_the_document_are_its_own_whatever_their_text():
    document = Document("book-7", text(0, 30))
    assert own(document, ("another edition", {"id": "book-7"}), (text(0, 30), {"id": "book-8"}), "no id") == [0]


def test_ids_of_a_retriever_that_are_numbers_equal_those_of_documents():
    assert own(Document("7", "a"), ("b", {"id": 7}), ("b", {"id": 8})) == [0]


@pytest.mark.parametrize("position", ["row 3", "data.jsonl:3"])
def test_an_id_that_only_counts_rows_needs_a_text_of_the_document(position):
    document = Document(position, text(0, 30))
    items = [("other words", {"id": position}), (text(5, 20), {"id": position}), (text(5, 9), {"id": position})]
    assert own(document, *items) == [1, 2]


def test_a_source_that_is_the_same_needs_a_text_of_the_document():
    document = Document("row 3", text(0, 30), {"source": "a.txt"})
    items = [
        (text(5, 20), {"id": "row 9", "source": "a.txt"}),
        (text(5, 20), {"id": "row 9", "source": "b.txt"}),
        ("other words", {"id": "row 9", "source": "a.txt"}),
        ("  ", {"id": "row 9", "source": "a.txt"}),
    ]
    assert own(document, *items) == [0]


@pytest.mark.parametrize("source", ["", None])
def test_an_empty_source_is_no_source(source):
    assert own(Document("row 3", text(0, 30), {"source": source}), (text(5, 20), {"source": source})) == []


def test_neighbors_that_a_rule_drops_are_not_among_the_documents_own():
    document = Document("d", text(0, 30))
    assert own(document, (text(0, 30), {"id": "d"}), exclude="id") == []
    assert own(document, (text(0, 30), {"id": "d"}), drop_near_copies=True) == []


# --- values of any type ---

DAY = datetime.date(2024, 2, 29)
VALUES = {
    "a date": (DAY, datetime.date(2024, 3, 1)),
    "a time": (datetime.datetime(2024, 2, 29, 12, 30), datetime.datetime(2024, 2, 29)),
    "a Decimal": (Decimal("1.50"), Decimal("1.51")),
    "a NumPy integer": (np.int64(7), np.int64(8)),
    "a NumPy float": (np.float32(0.5), np.float32(0.25)),
    "a NumPy boolean": (np.bool_(True), np.bool_(False)),
    "a NumPy time": (np.datetime64("2024-02-29"), np.datetime64("2024-03-01")),
    "an array": (np.arange(3), np.arange(4)),
    "a tuple": ((1, "a"), (1, "b")),
    "nested": ({"days": [DAY, (np.int32(1), None)]}, {"days": [DAY, (np.int32(2), None)]}),
    "a float and an integer": (1851.0, 1852),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_excludes_what_has_it_and_nothing_else_before_and_after_the_index_is_on_disk(kind):
    value, other = VALUES[kind]
    corpus = [Document("a", "a", {"field": value}), Document("b", "b", {"field": other}), Document("c", "c")]
    read = [document_from_line(document_to_line(document), "the line") for document in corpus]
    for documents in (corpus, read):
        candidates = neighbors(*((document.text, document.metadata) for document in documents))
        assert chosen(candidates, Document("d", "", {"field": value}), "", num_neighbors=3, exclude="field") == [1, 2]


@pytest.mark.parametrize(
    ("value", "same"), [(np.int64(7), 7), (7, 7.0), (7, np.float32(7)), ((1, 2), np.array([1, 2]))]
)
def test_values_of_several_types_are_equal_where_json_has_them_equal(value, same):
    document = Document("d", "", {"field": same})
    assert chosen(neighbors(("a", {"field": value})), document, "", num_neighbors=1, exclude="field") == []


@pytest.mark.parametrize("value", [None, float("nan"), np.float32("nan")], ids=repr)
def test_a_value_that_json_lacks_is_none_and_excludes_nobody(value):
    document = Document("d", "", {"field": value})
    assert chosen(neighbors(("a", {"field": value})), document, "", num_neighbors=1, exclude="field") == [0]
    with pytest.raises(ValueError, match="document 'd' has no such field"):
        check_exclude([document], "field")


def test_the_selectors_go_by_name():
    assert SELECTORS == {"nearest": select, "sift": Sift(), "hull": Hull()}


# --- in which order ---


def test_farthest_first_is_the_order_of_the_chosen_ones_turned():
    assert chosen(neighbors(*"abcd"), DOCUMENT, "", num_neighbors=3, order="farthest") == [2, 1, 0]


def test_overlaps_follow_the_order_of_their_neighbors():
    scored = text(0, 20)
    candidates = neighbors(text(0, 20), "other words", text(0, 16) + " " + text(60, 70))
    assert select(candidates, DOCUMENT, scored, num_neighbors=3, order="farthest").overlaps == pytest.approx(
        [0.5, 0.0, 1.0]
    )


def test_a_random_order_is_one_of_the_chosen_ones_and_of_its_seed():
    candidates = neighbors(*map(str, range(30)))
    orders = [chosen(candidates, DOCUMENT, "", num_neighbors=20, order="random", seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != list(range(20))


# --- duplicates ---


def test_of_the_same_text_the_nearest_is_kept():
    candidates = neighbors("a", "b", "a", "c", "b")
    assert chosen(candidates, DOCUMENT, "", num_neighbors=4) == [0, 1, 2, 3]
    assert chosen(candidates, DOCUMENT, "", num_neighbors=4, distinct="text") == [0, 1, 3]


def test_of_the_passages_of_a_document_the_nearest_is_kept():
    passages = [
        ("a", {"id": "book", "source": "x", "passage": 4}),
        ("b", {"id": "book", "source": "y", "passage": 0}),
        ("c", {"id": "book", "source": "x", "passage": 5}),
        ("d", {"id": "other", "source": "x"}),
        ("d", {"id": "third", "source": "x"}),
        "no id",
        "nor here",
    ]
    assert chosen(neighbors(*passages), DOCUMENT, "", num_neighbors=9, distinct="document") == [0, 1, 3, 5, 6]
    assert chosen(neighbors(*passages), DOCUMENT, "", num_neighbors=9, distinct="text") == [0, 1, 2, 3, 5, 6]


def test_a_passage_that_another_rule_leaves_out_makes_room_for_the_next_of_its_document():
    document = Document("d", text(0, 30))
    candidates = neighbors((text(0, 20), {"id": "book"}), ("other words", {"id": "book"}))
    for distinct in ("text", "document"):
        selection = select(
            candidates, document, document.text, num_neighbors=1, drop_near_copies=True, distinct=distinct
        )
        assert [neighbor.id for neighbor in selection.neighbors] == [1]
        assert selection.near_copies == [0]


# --- the same rules for every selector ---


def points(left):
    """Candidates on a line away from the query, the first the nearest."""
    return np.array([1.0, 0.0], np.float32), np.array([[1.0, 0.1 * neighbor.id] for neighbor in left], np.float32)


RULED = {
    "far": (text(40, 60), {"id": "f"}, 99.0),
    "of the document": (text(0, 20), {"id": "d"}, 0.0),
    "a near-copy": (text(0, 25), {"id": "n"}, 1.0),
    "a copy of another": (text(60, 80), {"id": "o"}, 3.0),
}
RULES = {"max_distance": 9.0, "exclude": "id", "drop_near_copies": True, "distinct": "text"}


@pytest.mark.parametrize("name", SELECTORS)
def test_what_a_rule_leaves_out_no_selector_chooses(name):
    fine = Neighbor(9, text(60, 80), 2.0, {"id": "g"})
    left_out = [Neighbor(row, item, distance, data) for row, (item, data, distance) in enumerate(RULED.values())]
    candidates = sorted([*left_out, fine], key=lambda neighbor: neighbor.distance)
    document = Document("d", text(0, 30))
    selection = SELECTORS[name](
        candidates, document, document.text, num_neighbors=3, order="nearest", seed=0, vectors=points, **RULES
    )
    assert {neighbor.id for neighbor in selection.neighbors} == {9}
    assert (selection.near_copies, selection.own) == ([2], [])


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_reports_the_near_copies_and_the_documents_own(name):
    document = Document("d", text(0, 30))
    candidates = [Neighbor(4, text(0, 20), 0.0, {"id": "d"})]
    selection = SELECTORS[name](
        candidates, document, document.text, num_neighbors=3, order="nearest", seed=0, vectors=points
    )
    assert (selection.near_copies, selection.own, {*selection.overlaps}) == ([4], [4], {1.0})


@pytest.mark.parametrize("name", SELECTORS)
def test_without_a_candidate_every_selector_chooses_none(name):
    selection = SELECTORS[name]([], DOCUMENT, "", num_neighbors=3, order="random", seed=0, vectors=points)
    assert (selection.neighbors, selection.overlaps) == ([], [])
    selection.check()


def test_the_nearest_are_chosen_without_a_vector():
    def none(left):
        raise AssertionError

    assert chosen(neighbors("a", "b"), DOCUMENT, "", num_neighbors=1, vectors=none) == [0]


# --- weights ---


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")], []])
def test_weights_that_cannot_be_are_refused(weights):
    selection = select(neighbors("a", "b"), DOCUMENT, "", num_neighbors=2)
    selection.weights = weights
    with pytest.raises(ValueError, match=r"The selector gave .* weight"):
        selection.check()
