"""What becomes of strings, rows and tables on the way to a document."""

import datetime
from collections import UserDict
from itertools import islice

import datasets
import numpy as np
import pandas
import pyarrow
import pytest

from tttnn import Document
from tttnn.documents import as_documents, is_position


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def texts(documents):
    return [document.text for document in documents]


def ids(documents):
    return [document.id for document in documents]


def test_a_row_becomes_its_text_its_id_and_the_rest_as_metadata():
    row = {"id": "a1", "text": "x", "year": 1999, "tags": ["p", "q"]}
    assert list(as_documents([row])) == [Document("a1", "x", {"year": 1999, "tags": ["p", "q"]})]


def test_strings_rows_and_documents_may_be_mixed():
    document = Document("mine", "z", {"k": 1})
    found = list(as_documents(["x", {"text": "y"}, document]))
    assert found == [Document("row 0", "x"), Document("row 1", "y"), document]


def test_other_columns_may_hold_the_text_and_the_id():
    found = list(as_documents([{"id": 1, "text": "no", "body": "yes", "key": 7}], text_column="body", id_column="key"))
    assert found == [Document("7", "yes", {"id": 1, "text": "no"})]


@pytest.mark.parametrize("name", ["meta", "metadata"])
def test_a_dictionary_of_metadata_is_merged_into_the_other_columns(name):
    found = list(as_documents([{"text": "x", "year": 1, name: {"pile_set_name": "Github", "n": None}}]))
    assert found[0].metadata == {"year": 1, "pile_set_name": "Github", "n": None}


def test_metadata_that_is_no_dictionary_stays_a_column():
    assert next(as_documents([{"text": "x", "meta": "Github", "metadata": None}])).metadata == {
        "meta": "Github",
        "metadata": None,
    }


def test_a_document_is_asked_for_its_id_and_its_metadata_by_name():
    document = Document("a", "x", {"id": "not this", "source": "b"})
    assert [document.value(name) for name in ("id", "source", "nothing")] == ["a", "b", None]


def test_reading_leaves_the_rows_as_they_were():
    row = {"id": 1, "text": "x", "meta": {"a": 1}}
    list(as_documents([row]))
    assert row == {"id": 1, "text": "x", "meta": {"a": 1}}


def test_rows_whose_id_is_null_get_their_position():
    assert ids(as_documents([{"id": None, "text": "x"}, {"id": None, "text": "y"}])) == ["row 0", "row 1"]


def test_a_data_set_is_read_row_by_row():
    rows = {"text": ["x", "y"], "meta": [{"pile_set_name": "A"}, {"pile_set_name": "B"}], "n": [1, 2]}
    found = list(as_documents(datasets.Dataset.from_dict(rows)))
    assert found == [
        Document("row 0", "x", {"n": 1, "pile_set_name": "A"}),
        Document("row 1", "y", {"n": 2, "pile_set_name": "B"}),
    ]


def test_a_streamed_data_set_is_read_no_further_than_asked():
    asked = []

    def rows():
        for number in range(1000):
            asked.append(number)
            yield {"text": f"text {number}"}

    found = list(islice(as_documents(datasets.IterableDataset.from_generator(rows)), 2))
    assert texts(found) == ["text 0", "text 1"]
    assert len(asked) < 10


@pytest.mark.parametrize("value", [None, 5, 1.5, b"bytes", ["x"], {"text": "x"}, np.str_])
def test_a_text_that_is_no_string_is_a_type_error_that_names_row_and_type(value):
    with pytest.raises(TypeError, match=f"text of row 1 is {type(value).__name__}, not a string"):
        list(as_documents([{"text": "fine"}, {"text": value}]))


@pytest.mark.parametrize("value", [None, 5, b"bytes", ["x"]])
def test_an_item_that_is_neither_string_nor_row_is_a_type_error_that_names_it(value):
    with pytest.raises(TypeError, match=f"row 1 is {type(value).__name__}, not a string"):
        list(as_documents(["fine", value]))


def test_a_missing_text_column_is_an_error_that_names_row_and_columns():
    with pytest.raises(ValueError, match=r"row 1 has no column `text`; its columns are \['body', 'id'\]"):
        list(as_documents([{"text": "x"}, {"id": 1, "body": "x"}]))


def test_a_missing_id_column_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="row 0 has no column `key`"):
        list(as_documents([{"text": "x"}], id_column="key"))


@pytest.mark.parametrize(
    "row",
    ["ab\ud800", {"text": "ab\ud800"}, Document("a", "ab\ud800")],
    ids=["string", "row", "document"],
)
def test_a_lone_surrogate_is_an_error_that_names_row_and_character(row):
    with pytest.raises(ValueError, match=r"text of row 1 holds the lone surrogate U\+D800 at character 2"):
        list(as_documents(["fine", row]))


def test_a_lone_surrogate_beside_the_text_is_an_error_that_names_the_row():
    # a title cut inside of an emoji: what JavaScript's `substring` leaves
    with pytest.raises(ValueError, match="row 1"):
        list(as_documents([{"text": "x", "title": "fine"}, {"text": "y", "title": "cut \ud83d"}]))


def test_one_string_instead_of_a_list_is_a_type_error():
    with pytest.raises(TypeError, match="one string was given"):
        list(as_documents("a text"))


@pytest.mark.parametrize("rows", [b"text", bytearray(b"text")])
def test_bytes_are_a_type_error_and_not_their_numbers(rows):
    with pytest.raises(TypeError, match="were given. Decode them"):
        list(as_documents(rows))


@pytest.mark.parametrize("rows", [{"a", "b"}, frozenset("ab"), {"a": 1}.keys()])
def test_a_set_is_a_type_error_since_it_has_no_order(rows):
    with pytest.raises(TypeError, match=f"A {type(rows).__name__} has no order"):
        list(as_documents(rows))


class Keyed:
    """Reads like a mapping, and is none by its class."""

    def keys(self):
        return ["text", "year"]

    def __getitem__(self, key):
        return ["x"]

    def __iter__(self):
        return iter(self.keys())


@pytest.mark.parametrize("rows", [{"text": ["x"], "year": [1]}, UserDict(text=["x"], year=[1]), Keyed()])
def test_a_mapping_is_a_type_error_that_names_its_keys_and_not_its_keys_as_documents(rows):
    with pytest.raises(TypeError, match=r"the keys \['text', 'year'\] was given"):
        list(as_documents(rows))


COLUMNS = {"text": ["x", "y"], "id": [7, 8], "day": [datetime.date(2024, 2, 29)] * 2}


@pytest.mark.parametrize(
    "table",
    [
        pandas.DataFrame(COLUMNS),
        pandas.DataFrame({name: values[:1] + values for name, values in COLUMNS.items()})[1:],
        pyarrow.table(COLUMNS),
        pyarrow.table(COLUMNS).to_batches()[0],
    ],
    ids=["DataFrame", "part of a DataFrame", "Table", "RecordBatch"],
)
def test_a_table_is_read_by_its_rows_and_not_by_its_columns(table):
    day = datetime.date(2024, 2, 29)
    assert list(as_documents(table)) == [Document("7", "x", {"day": day}), Document("8", "y", {"day": day})]


def test_a_missing_text_of_a_table_is_a_type_error_that_names_its_row():
    with pytest.raises(TypeError, match="text of row 1 is NoneType"):
        list(as_documents(pandas.DataFrame({"text": ["x", None]})))


def test_a_table_that_arrow_cannot_read_is_a_type_error():
    with pytest.raises(TypeError, match="The rows of this DataFrame cannot be read"):
        list(as_documents(pandas.DataFrame({"text": ["x", "y"], "mixed": [{"a": 1}, 5]})))


@pytest.mark.parametrize(
    "texts",
    [
        pandas.Series(["x", "y"]),
        np.array(["x", "y"]),
        ("x", "y"),
        (text for text in "xy"),
        dict(a="x", b="y").values(),
        datasets.Dataset.from_dict({"text": ["x", "y"]})["text"],
    ],
    ids=["Series", "array", "tuple", "generator", "values", "column"],
)
def test_anything_that_gives_texts_in_order_is_read(texts):
    assert [document.text for document in as_documents(texts)] == ["x", "y"]


@pytest.mark.parametrize(
    ("value", "reason"), [({("a", 1): 2}, "keys must be str"), (nested(100_000), "recursion")], ids=["key", "depth"]
)
def test_metadata_that_json_lacks_is_an_error_that_names_the_row(value, reason):
    with pytest.raises(ValueError, match=f"row 1, outside of its `text`, cannot be written as JSON .*{reason}"):
        list(as_documents(["x", {"text": "y", "value": value}]))


@pytest.mark.parametrize("name", ["row 3", "data.jsonl:3", "corpus/part-0.parquet:12", "line\nbreak.csv.gz:1"])
def test_ids_that_count_rows_are_positions(name):
    assert is_position(name)


@pytest.mark.parametrize("name", ["a.txt", "row", "third row 3", "wiki:12", "user/name/train 3", "doi:10.1/x", ""])
def test_ids_from_rows_and_names_of_files_are_no_positions(name):
    assert not is_position(name)


def test_a_data_set_of_several_splits_is_a_type_error_and_not_the_names_of_its_splits():
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["x"]}))
    with pytest.raises(TypeError, match="split"):
        list(as_documents(splits))
