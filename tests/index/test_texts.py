"""What becomes of documents on the way to a text store and back."""

import datetime
import hashlib
import json
import os
import pickle
import random

import numpy as np
import pytest

from tttnn import Document
from tttnn.index.build.writers import TextWriter
from tttnn.index.manifest import FileEntry
from tttnn.index.texts import TextStore, document_from_line, document_to_line


ODD_TEXTS = [
    "",
    " \t\n",
    "naïve café, 東京, Ελλάδα, 👩‍👩‍👧‍👦",
    "one\ntwo\r\nthree\rfour\u2028five\x85six\x0cseven",
    "NUL \0 and other controls \x01\x1b\x7f\ufeff",
    '"quotes", \\backslashes\\ and {"json": [1, 2]}\\n',
]


@pytest.fixture
def write(tmp_path):
    """Write a store; gives its two files."""

    def write(*documents):
        writer = TextWriter(tmp_path / "texts.jsonl")
        for document in documents:
            writer.add(document)
        writer.close()
        return tmp_path / "texts.jsonl", tmp_path / "texts.offsets.npy"

    return write


@pytest.fixture
def store(write):
    documents = [Document(f"id {n} é", text, {"n": n, "note": text}) for n, text in enumerate(ODD_TEXTS)]
    return TextStore(write(*documents)[0], len(documents)), documents


# --- lines ---


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_document_comes_back_from_its_line(text):
    document = Document(text, text, {"source": text, "nested": [{"n": 1.5, "none": None}]})
    line = document_to_line(document)
    assert line.count(b"\n") == 1 == line.endswith(b"\n")
    assert document_from_line(line, "here") == document


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b'{"id": "a", "text": "x", "metadata": {}',
        b"[]",
        b"null",
        b'"text"',
        b'{"id": "a", "text": "x"}',
        b'{"id": "a", "text": "x", "metadata": {}, "more": 1}',
        b'{"id": 1, "text": "x", "metadata": {}}',
        b'{"id": "a", "text": null, "metadata": {}}',
        b'{"id": "a", "text": "x", "metadata": []}',
        b'{"id": "a", "text": "x", "metadata": null}',
        rb'{"id": "a", "text": "\ud800", "metadata": {}}',
        rb'{"id": "\ud800", "text": "x", "metadata": {}}',
        b'{"id": "a", "text": "\xff", "metadata": {}}',
        b"[" * 100_000,
    ],
    ids=lambda line: line.decode("latin-1")[:40],
)
def test_a_line_that_is_no_document_is_an_error_that_says_where_it_is(line):
    with pytest.raises(ValueError, match="Row 3 of 'texts.jsonl' is damaged .*Fetch or rebuild the index"):
        document_from_line(line, "Row 3 of 'texts.jsonl'")


# --- stores ---


def test_documents_come_back_from_a_store_as_they_were(store):
    opened, documents = store
    assert opened.fetch(range(len(documents))) == documents


def test_documents_come_back_in_any_order(store):
    opened, documents = store
    rows = random.Random(0).choices(range(len(documents)), k=30)
    assert opened.fetch(rows) == [documents[row] for row in rows]
    assert opened.fetch([]) == []


def test_a_document_of_five_megabytes_comes_back(write):
    text = ("naïve 東京\n\0" * 500_000)[:5_000_000]
    documents = [Document("before", "x"), Document("large", text), Document("after", "y")]
    assert TextStore(write(*documents)[0], 3).fetch(range(3)) == documents


def test_a_store_is_an_object_a_line_and_the_offsets_of_the_lines(write):
    texts, offsets = write(Document("a", "é"), Document("b", "x\ny", {"n": 1}))
    lines = texts.read_text(encoding="utf-8").splitlines(keepends=True)
    assert [json.loads(line) for line in lines] == [
        {"id": "a", "text": "é", "metadata": {}},
        {"id": "b", "text": "x\ny", "metadata": {"n": 1}},
    ]
    first, second = (len(line.encode()) for line in lines)
    found = np.load(offsets, allow_pickle=False)
    assert found.dtype == np.int64
    assert found.tolist() == [0, first, first + second]


def test_metadata_that_json_lacks_becomes_a_string(write):
    document = Document("a", "x", {"day": datetime.date(2024, 2, 29), "nested": [{"at": datetime.time(1, 2)}]})
    (opened,) = TextStore(write(document)[0], 1).fetch([0])
    assert opened.metadata == {"day": "2024-02-29", "nested": [{"at": "01:02:00"}]}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), np.float64("nan")], ids=str)
def test_a_number_in_metadata_that_json_lacks_becomes_null_and_nothing_else_changes(number):
    metadata = {"a": number, "b": [1.5, number], "c": {"d": ({"e": number}, datetime.date(2024, 2, 29))}}
    line = document_to_line(Document("ä", "NaN, Infinity", metadata))
    assert line.decode() == (
        '{"id": "ä", "text": "NaN, Infinity", "metadata": {"a": null, "b": [1.5, null], '
        '"c": {"d": [{"e": null}, "2024-02-29"]}}}\n'
    )


def test_a_store_is_read_through_a_memory_map(store):
    with open("/proc/self/maps") as maps:
        mapped = maps.read()
    assert str(store[0].path) in mapped
    assert str(store[0].path.with_suffix(".offsets.npy")) in mapped


@pytest.mark.parametrize("row", [6, 7, 100])
def test_a_row_outside_of_the_store_is_an_index_error(store, row):
    with pytest.raises(IndexError):
        store[0].fetch([0, row])


@pytest.mark.parametrize(
    "offsets",
    [
        np.array([], dtype=np.int64),
        np.array([0], dtype=np.int64),
        np.array([45], dtype=np.int64),
        np.array([0, 5], dtype=np.int64),
        np.array([0, 20, 45], dtype=np.int64),
        np.array([0, 45], dtype=np.int32),
        np.array([0.0, 45.0]),
        np.array([[0, 45]]),
        np.array(45),
    ],
    ids=["none", "no end", "no start", "another end", "two lines", "short", "floats", "two axes", "no axis"],
)
def test_offsets_that_do_not_span_the_file_are_an_error_that_names_it(write, offsets):
    texts, path = write(Document("aaa", "x" * 3))
    assert texts.stat().st_size == 45
    np.save(path, offsets)
    with pytest.raises(ValueError, match="texts.offsets.npy' does not hold the offsets of 1 lines"):
        TextStore(texts, 1)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_another_number_of_rows_is_an_error_that_names_it(write, num_rows):
    texts, _ = write(Document("a", "x"), Document("b", "y"))
    with pytest.raises(ValueError, match=f"texts.offsets.npy' does not hold the offsets of {num_rows} lines"):
        TextStore(texts, num_rows)


@pytest.mark.parametrize("offsets", [[0, -1], [0, 0], [44, 44], [45, 44], [-45, 44], [1 << 40, 44]], ids=str)
def test_offsets_that_lead_astray_are_an_error_that_names_the_row(write, offsets):
    # of two lines of 44 bytes each; the end is right, so the store opens
    texts, path = write(Document("aa", "xxx"), Document("bb", "yyy"))
    assert texts.stat().st_size == 88
    np.save(path, np.array([*offsets, 88], dtype=np.int64))
    opened = TextStore(texts, 2)
    with pytest.raises(ValueError, match=r"[Rr]ow \d of '.*texts.jsonl'.* damaged"):
        opened.fetch([0, 1])


def test_a_store_without_a_byte_is_an_error(write):
    texts, path = write(Document("a", "x"))
    texts.write_bytes(b"")
    np.save(path, np.array([0, 0], dtype=np.int64))
    with pytest.raises(ValueError, match="texts.offsets.npy' does not hold the offsets of 1 lines"):
        TextStore(texts, 1)


@pytest.mark.parametrize("keep", [0, 1, 60, 127, -1])
def test_offsets_that_are_cut_are_an_error_that_names_them(write, keep):
    texts, path = write(Document("a", "x"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="texts.offsets.npy' does not hold the offsets"):
        TextStore(texts, 1)


def test_offsets_with_a_pickle_are_an_error_and_run_nothing(write, tmp_path):
    class Intruder:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "intruded"),)

    texts, path = write(Document("a", "x"))
    np.save(path, np.array([Intruder()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="does not hold the offsets"):
        TextStore(texts, 1)
    path.write_bytes(pickle.dumps(Intruder()))
    with pytest.raises(ValueError, match="does not hold the offsets"):
        TextStore(texts, 1)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.offsets.npy"])
def test_a_missing_file_of_a_store_is_an_error_that_names_it(write, tmp_path, name):
    texts, _ = write(Document("a", "x"))
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        TextStore(texts, 1)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(60), b"\x93NUMPY", b"x" * 64], ids=["zip", "cut", "other"])
def test_offsets_of_another_format_are_an_error_that_names_them(write, content):
    texts, offsets = write(Document("a", "x"))
    offsets.write_bytes(content)
    with pytest.raises(ValueError, match="texts.offsets.npy' does not hold the offsets"):
        TextStore(texts, 1)


# --- a store that is resumed ---


def lost(path, cut):
    os.truncate(path, 132 - cut)


def zeroed(path, number):
    path.write_bytes(path.read_bytes()[:-number] + bytes(number))


@pytest.mark.parametrize(("damage", "number"), [(lost, 1), (lost, 44), (lost, 132), (zeroed, 1), (zeroed, 132)])
def test_a_store_that_lost_bytes_is_not_resumed_and_is_left_as_it_is(write, damage, number):
    # three lines of 44 bytes
    texts, _ = write(*[Document(name, "xxx") for name in ("aa", "bb", "cc")])
    kept = FileEntry.of(texts)
    damage(texts, number)
    before = texts.read_bytes()
    with pytest.raises(ValueError, match="texts.jsonl' does not begin with the 132 bytes that were written"):
        TextWriter(texts, kept)
    assert texts.read_bytes() == before


def test_what_came_after_the_part_that_is_kept_is_dropped(write, tmp_path):
    documents = [Document(name, "xxx") for name in ("aa", "bb", "cc")]
    texts, _ = write(*documents)
    whole = texts.read_bytes()
    kept = FileEntry(88, hashlib.sha256(whole[:88]).hexdigest())
    writer = TextWriter(texts, kept)
    assert texts.read_bytes() == whole[:88]
    assert writer.go_past(iter(documents[:2]))
    assert not writer.go_past(iter(documents[1:]))
    assert not writer.go_past(iter(documents[:1]))
    writer.add(documents[2])
    writer.close()
    assert texts.read_bytes() == whole
    assert TextStore(texts, 3).fetch(range(3)) == documents
