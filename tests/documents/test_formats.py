"""Rows of a file, in the format that its name says."""

import datetime
import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tttnn import Document, read_documents


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


# --- JSON ---

ROWS = [{"text": "x", "n": 1}, {"text": "y", "n": 2}]
DOCUMENTS = [("x", {"n": 1}), ("y", {"n": 2})]


def read(path, **options):
    return [(d.text, {k: v for k, v in d.metadata.items() if k != "source"}) for d in read_documents(path, **options)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ROWS, DOCUMENTS),
        (["x", "y"], [("x", {}), ("y", {})]),
        (ROWS[0], DOCUMENTS[:1]),
        ({"version": 1, "tags": ["a"], "data": ROWS}, DOCUMENTS),
        ([], []),
    ],
    ids=["rows", "texts", "a row", "rows in an object", "no rows"],
)
def test_a_json_file_is_read_by_its_rows(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(json.dumps(content, indent=1))
    assert read(tmp_path / "a.json") == expected


def test_rows_of_a_json_file_have_ids_that_count_them(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["x", {"text": "y"}, {"text": "z", "id": 5}]))
    found = list(read_documents(tmp_path / "a.json"))
    assert [document.id for document in found] == ["a.json:1", "a.json:2", "5"]
    assert [document.metadata for document in found] == [{"source": "a.json"}] * 3


def test_a_json_file_of_lines_is_read_line_by_line(tmp_path):
    write_lines(tmp_path / "a.json", *ROWS)
    assert read(tmp_path / "a.json") == DOCUMENTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "a.json is a JSON list without rows"),
        ("5", "a.json is a JSON int without rows"),
        ('{"text": ["x", "y"]}', "text of a.json:1 is list, not a string"),
        ('{"a": [{"text": "x"}], "b": [{"text": "y"}]}', r"neither the column `text` nor one list .* \['a', 'b'\]"),
        ('{"texts": ["x"]}', "a.json has neither the column `text` nor one list of objects"),
        ('[{"text": "x"}, 5]', "a.json:2 is a JSON int, neither an object nor a string"),
        ('[{"body": "x"}]', r"a.json:1 has no column `text`; its columns are \['body'\]"),
        ('[{"text": "x"}', "a.json is not JSON"),
        ('{"text": "x"}\n{"text": ', "a.json:2 is not JSON"),
        ("[" * 100_000 + "]" * 100_000, "a.json is not JSON .*recursion"),
    ],
)
def test_a_json_file_of_something_else_is_an_error_that_names_it(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read_documents(tmp_path / "a.json"))


def test_another_column_chooses_the_rows_of_a_json_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"body": "x"}], "authors": [{"name": "y"}]}))
    assert read(tmp_path / "a.json", text_column="body") == [("x", {})]


@pytest.mark.parametrize("line", ['{"text": "x", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}", "[" * 100_000])
def test_a_line_that_is_nested_too_deeply_is_an_error_that_names_it(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl:2 is not JSON \(.*recursion"):
        list(read_documents(tmp_path / "a.jsonl"))


# --- tables of text ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'n,text\n1,"x, ""quoted""\nand on"\n2,y\n'),
        ("a.tsv", 'n\ttext\r\n1\t"x, ""quoted""\nand on"\r\n2\ty\r\n'),
        ("a.CSV", '\ufeffn,text\n1,"x, ""quoted""\nand on"\n\n2,y'),
    ],
)
def test_each_row_of_a_csv_file_is_a_document(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert list(read_documents(tmp_path / name)) == [
        Document(f"{name}:1", 'x, "quoted"\nand on', {"n": "1", "source": name}),
        Document(f"{name}:2", "y", {"n": "2", "source": name}),
    ]


def test_a_long_text_of_a_csv_file_is_read_whole(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 500_000 + "\n")
    assert [len(text) for text in texts(read_documents(tmp_path / "a.csv"))] == [500_000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,n\nx,1\ny,2,3\n", "a.csv:2 has more fields than the first line, 2"),
        (b"n,text\n1,x\n2\n", "text of a.csv:2 is NoneType"),
        (b"text,text\nx,y\n", r"'a.csv' has two columns of one name: \['text', 'text'\]"),
        (b'text\n"x\n', "a.csv is not csv in UTF-8 after 1 lines"),
        (b"text\ncaf\xe9\n", "a.csv is not csv in UTF-8 after 0 lines"),
        (b"body\nx\n", r"a.csv:1 has no column `text`; its columns are \['body'\]"),
    ],
)
def test_a_bad_csv_file_is_an_error_that_names_it(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises((ValueError, TypeError), match=message):
        list(read_documents(tmp_path / "a.csv"))


# --- names ---

CONTENT = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "ndjson": "".join(json.dumps(row) + "\n" for row in ROWS),
    "json": json.dumps(ROWS),
    "csv": "text,n\nx,1\ny,2\n",
    "tsv": "text\tn\nx\t1\ny\t2\n",
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("upper", [False, True], ids=["lower case", "upper case"])
@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("kind", CONTENT)
def test_a_file_is_read_by_the_format_and_compression_of_its_name(tmp_path, kind, pack, upper):
    name = f"a.{kind}{pack}"
    path = tmp_path / (name.upper() if upper else name)
    path.write_bytes(PACK[pack](CONTENT[kind].encode()))
    assert [(text, int(metadata["n"])) for text, metadata in read(path)] == [("x", 1), ("y", 2)]


def test_parquet_is_read_under_an_upper_case_name(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / "a.Parquet")
    assert texts(read_documents(tmp_path)) == ["x"]


def test_every_member_of_a_gzip_file_is_read(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(b'{"text": "x"}\n' * 9) for _ in range(3)))
    assert texts(read_documents(tmp_path / "a.jsonl.gz")) == ["x"] * 27


def test_a_gzip_file_that_is_cut_short_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 999)[:-9])
    with pytest.raises(ValueError, match="a.jsonl.gz' cannot be read"):
        list(read_documents(tmp_path / "a.jsonl.gz"))
