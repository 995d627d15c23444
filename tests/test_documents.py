"""What becomes of files, rows and strings on the way to a document."""

import datetime
import json
import os
import re
import shutil
from itertools import islice

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tttnn import Document, read_documents
from tttnn.documents import as_documents


ODD_TEXTS = [
    "",
    " \t\n",
    "naïve café, 東京, Ελλάδα, 👩‍👩‍👧‍👦",
    "one\ntwo\r\nthree\rfour\u2028five\x85six\x0cseven",
    "NUL \0 and other controls \x01\x1b\x7f\ufeff",
    '"quotes", \\backslashes\\ and {"json": [1, 2]}\\n',
]


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(documents):
    return [document.text for document in documents]


def ids(documents):
    return [document.id for document in documents]


# --- rows ---


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


def test_a_data_set_of_several_splits_is_a_type_error_and_not_the_names_of_its_splits():
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["x"]}))
    with pytest.raises(TypeError, match="split"):
        list(as_documents(splits))


# --- files ---


def test_each_line_of_a_jsonl_file_is_a_document(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"text": text, "n": n} for n, text in enumerate(ODD_TEXTS)))
    expected = [Document(f"a.jsonl:{n + 1}", text, {"n": n, "source": "a.jsonl"}) for n, text in enumerate(ODD_TEXTS)]
    assert list(read_documents(path)) == expected
    assert list(read_documents(str(path))) == expected


def test_a_column_named_source_is_kept(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": "x", "source": "a book"})
    assert next(read_documents(path)).metadata == {"source": "a book"}


def test_unescaped_line_separators_do_not_end_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\u2028b\x85c"}\n{"text": "d"}', encoding="utf-8")
    assert texts(read_documents(path)) == ["a\u2028b\x85c", "d"]


def test_a_compressed_file_reads_like_the_plain_one(tmp_path):
    plain = write_lines(tmp_path / "a.jsonl", *({"text": text, "id": n} for n, text in enumerate(ODD_TEXTS)))
    packed = tmp_path / "a.jsonl.zst"
    packed.write_bytes(zstandard.compress(plain.read_bytes()))
    assert [(d.id, d.text) for d in read_documents(packed)] == [(d.id, d.text) for d in read_documents(plain)]


def test_every_frame_of_a_compressed_file_is_read(tmp_path):
    # what `pzstd` and `cat a.zst b.zst` make; a frame's end falls inside of a line
    data = "".join(json.dumps({"text": f"{n} " * 40}) + "\n" for n in range(5000)).encode()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(data[at : at + 100_001]) for at in range(0, len(data), 100_001)))
    assert texts(read_documents(path)) == [f"{n} " * 40 for n in range(5000)]


def test_a_compressed_file_that_is_cut_short_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text": "x"}\n' * 3)[:-3])
    with pytest.raises((ValueError, OSError), match="a.jsonl.zst"):
        list(read_documents(path))


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "x"}\n')
    with pytest.raises((ValueError, OSError), match=re.escape(name)):
        list(read_documents(tmp_path))


def test_each_row_of_a_parquet_file_is_a_document(tmp_path):
    day = datetime.date(2024, 2, 29)
    columns = {"text": ODD_TEXTS * 100, "meta": [{"day": day}] * (len(ODD_TEXTS) * 100)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = list(read_documents(tmp_path / "a.parquet"))
    assert texts(found) == ODD_TEXTS * 100
    assert found[299] == Document("a.parquet:300", ODD_TEXTS[-1], {"day": day, "source": "a.parquet"})


def test_a_null_in_a_parquet_file_is_a_type_error_that_names_file_and_row(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None]}), tmp_path / "a.parquet")
    with pytest.raises(TypeError, match="a.parquet:2 is NoneType"):
        list(read_documents(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "a.jsonl:2 is not JSON"),
        ("plain text", "a.jsonl:2 is not JSON"),
        ('{"text": "x"} {"text": "y"}', "a.jsonl:2 is not JSON"),
        ('["x"]', "a.jsonl:2 is a JSON list, not an object"),
        ('"x"', "a.jsonl:2 is a JSON str, not an object"),
        ("null", "a.jsonl:2 is a JSON NoneType, not an object"),
        ('{"body": "x"}', "a.jsonl:2 has no column `text`"),
        (r'{"text": "\ud800"}', r"text of a.jsonl:2 holds the lone surrogate U\+D800"),
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line + '\n{"text": "y"}\n')
    with pytest.raises(ValueError, match=message):
        list(read_documents(tmp_path / "a.jsonl"))


def test_a_line_that_is_not_utf_8_is_an_error_that_names_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "x"}\n{"text": "é"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match="a.jsonl:2 is not JSON"):
        list(read_documents(tmp_path))


def test_a_bad_line_in_a_compressed_file_is_named_too(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "x"}\n{"text": \n'))
    with pytest.raises(ValueError, match="a.jsonl.zst:2 is not JSON"):
        list(read_documents(tmp_path / "a.jsonl.zst"))


def test_any_other_file_is_one_document_with_every_byte_of_its_text(tmp_path):
    (tmp_path / "a.py").write_bytes("x = 'é'\r\ny\rz\n\0".encode())
    assert list(read_documents(tmp_path / "a.py")) == [Document("a.py", "x = 'é'\r\ny\rz\n\0", {"source": "a.py"})]


def test_an_empty_jsonl_file_has_no_documents(tmp_path):
    (tmp_path / "a.jsonl").touch()
    assert list(read_documents(tmp_path / "a.jsonl")) == []


# --- folders ---


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "corpus"
    for name in ("b/c", ".git", "b/__pycache__", "b/.hidden"):
        (root / name).mkdir(parents=True)
    (root / "b" / "c" / "deep.txt").write_text("deep")
    (root / "z.md").write_text("last")
    (root / "a.txt").write_text("first")
    (root / "empty.txt").touch()
    write_lines(root / "b" / "rows.jsonl", {"text": "row one"}, {"text": "row two", "id": "named"})
    (root / "b" / "latin.txt").write_bytes(b"caf\xe9")
    (root / "b" / "picture.png").write_bytes(bytes(range(256)))
    for hidden in (".git/config", ".env", "b/.hidden/x.txt", "b/__pycache__/m.txt"):
        (root / hidden).write_text("hidden")
    (root / "gone.txt").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe")
    return root


def test_a_folder_is_read_by_path_without_what_is_hidden_or_no_text(folder):
    assert [(document.id, document.text) for document in read_documents(folder)] == [
        ("a.txt", "first"),
        ("b/c/deep.txt", "deep"),
        ("b/rows.jsonl:1", "row one"),
        ("named", "row two"),
        ("empty.txt", ""),
        ("z.md", "last"),
    ]


def test_files_that_are_no_text_are_counted_and_named(folder, caplog):
    list(read_documents(folder))
    assert [record.getMessage() for record in caplog.records] == [
        "Skipped 2 files that are not UTF-8 text: b/latin.txt, b/picture.png"
    ]


def test_the_source_of_a_document_is_its_file(folder):
    sources = [document.metadata["source"] for document in read_documents(folder)]
    assert sources == ["a.txt", "b/c/deep.txt", "b/rows.jsonl", "b/rows.jsonl", "empty.txt", "z.md"]


def test_a_file_whose_name_is_no_text_is_an_error_that_names_it(tmp_path):
    # bytes of a name that are not UTF-8 become lone surrogates, which no text store can keep
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("x")
    with pytest.raises(ValueError, match=r"caf.*lone surrogate U\+DCE9|lone surrogate U\+DCE9.*caf"):
        list(read_documents(tmp_path))


def test_a_folder_inside_of_a_hidden_one_can_be_read(tmp_path):
    root = tmp_path / ".cache" / "corpus"
    root.mkdir(parents=True)
    (root / "a.txt").write_text("x")
    assert ids(read_documents(root)) == ["a.txt"]


def test_ids_are_the_same_in_another_run_and_in_another_place(folder, tmp_path):
    first = ids(read_documents(folder))
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder / "b", moved / "b")
    for name in ("z.md", "empty.txt", "a.txt"):  # written in another order
        shutil.copy(folder / name, moved / name)
    assert ids(read_documents(folder)) == first
    assert ids(read_documents(str(moved) + "/")) == first


def test_another_file_leaves_the_ids_of_the_rest(folder):
    first = ids(read_documents(folder))
    (folder / "aa.txt").write_text("new")
    assert [name for name in ids(read_documents(folder)) if name != "aa.txt"] == first


@pytest.mark.parametrize(("limit", "number"), [(1, 1), (3, 3), (100, 6), (None, 6)])
def test_a_limit_takes_the_first_documents(folder, limit, number):
    everything = list(read_documents(folder))
    assert list(read_documents(folder, limit=limit)) == everything[:number]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_an_error(folder, limit):
    with pytest.raises(ValueError, match=f"limit is {limit} documents"):
        read_documents(folder, limit=limit)


def test_what_lies_behind_the_limit_is_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nnot JSON\n')
    assert texts(read_documents(tmp_path, limit=1)) == ["x"]


def test_an_empty_folder_has_no_documents(tmp_path):
    assert list(read_documents(tmp_path)) == []


# --- sources ---


@pytest.mark.parametrize(
    "source", ["nothing", "./user/name", "../name", "~/name", "/user/name", "a/b/c", "user/a.jsonl", "user/a.parquet"]
)
def test_a_path_where_nothing_lies_is_an_error_that_names_it(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file or folder at '{source}'"):
        read_documents(source)


def test_a_path_object_is_never_an_id_of_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_documents(tmp_path.relative_to(tmp_path.parent) / "name")


def test_several_sources_are_read_one_after_another(tmp_path):
    for name in ("b/one.txt", "a/two.txt", "c/three.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"text": "x"}')
    found = read_documents([tmp_path / "b/one.txt", str(tmp_path / "a"), tmp_path / "c/three.jsonl"])
    assert [name.split("/")[-1] for name in ids(found)] == ["one.txt", "two.txt", "three.jsonl:1"]


def test_files_of_one_name_in_several_folders_get_ids_of_their_own(tmp_path):
    for name in ("a/test.jsonl", "b/test.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"text": "x"}')
    assert ids(read_documents([tmp_path / "a/test.jsonl", tmp_path / "b/test.jsonl"])) == [
        "a/test.jsonl:1",
        "b/test.jsonl:1",
    ]


def test_folders_with_files_of_one_name_give_ids_of_their_own(tmp_path):
    for name in ("a/test.txt", "b/test.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    assert len(set(ids(read_documents([tmp_path / "a", tmp_path / "b"])))) == 2


def test_a_link_to_a_file_elsewhere_is_read_under_its_own_name(tmp_path):
    # the Hub cache holds links to files that are named by their hash
    (tmp_path / "blob").write_text('{"text": "x"}')
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.jsonl").symlink_to(tmp_path / "blob")
    assert ids(read_documents(tmp_path / "snapshot" / "train.jsonl")) == ["train.jsonl:1"]
    assert ids(read_documents(tmp_path / "snapshot")) == ["train.jsonl:1"]


def test_an_empty_source_is_an_error_and_not_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises((FileNotFoundError, ValueError)):
        read_documents("")


def test_the_home_folder_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert ids(read_documents("~/corpus", limit=1)) == ["a.txt"]


def test_an_id_of_the_hub_is_streamed_at_its_split_and_revision(tmp_path, monkeypatch):
    calls = []

    def load_dataset(*arguments, **named):
        calls.append((arguments, named))
        return datasets.Dataset.from_dict({"text": ["x", "y"]}).to_iterable_dataset()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found = read_documents("user/name", split="test", revision="v1", token="hf_mine")
    assert [(document.id, document.text) for document in found] == [
        ("user/name/test 0", "x"),
        ("user/name/test 1", "y"),
    ]
    assert calls == [
        (("user/name",), {"split": "test", "revision": "v1", "token": "hf_mine", "streaming": True}),
    ]
