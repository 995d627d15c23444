"""A corpus is read from any of its documents on, with the same documents as from its beginning."""

import gzip
import json
import logging

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tttnn.documents import Corpus


ROWS = [{"text": f"text {row}\u2028 é", "n": row} for row in range(7)]
# blank lines hold no row, and count in the numbers of the others
LINES = "".join("\n \n" * (row["n"] % 3 == 1) + json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(folder, name):
    path = folder / name
    if name == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    elif name == "texts":
        path.mkdir()
        for number in range(3):
            (path / f"{number}.txt").write_text(f"text {number}")
        (path / "1.bin").write_bytes(b"\0\1")  # skipped, and so are the next two
        (path / "empty.txt").touch()
        (path / "settings.json").write_text('{"a": 1}')
        (path / "2.jsonl").write_bytes(LINES)
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=3)
    elif name.endswith((".csv", ".csv.gz")):
        content = ("text,n\n" + "".join(f'"a\n{row["text"]}",{row["n"]}\n' for row in ROWS)).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    elif name == "list.json":
        path.write_text(json.dumps(ROWS))
    else:
        packed = {"zst": zstandard.compress, "gz": gzip.compress}
        path.write_bytes(packed.get(name.rpartition(".")[2], bytes)(LINES))
    return path


FILES = ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.ndjson", "lines.json", "list.json", "a.csv", "a.csv.gz"]
FILES += ["a.parquet", "saved", "texts"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("every", [1, 3])
def test_a_corpus_is_read_from_any_of_its_places_on(tmp_path, name, every):
    (tmp_path / "alone.txt").write_text("a text before")
    corpus = Corpus([tmp_path / "alone.txt", write(tmp_path, name)], quiet=True)
    documents = [*corpus]
    assert len(documents) == (11 if name == "texts" else 8)
    places, number = corpus.places(every)
    assert number == len(documents) == corpus.count()
    assert len(places) == len(range(0, number, every))
    for position, place in zip(range(0, number, every), places, strict=True):
        assert [*corpus.read_from(place)] == documents[position:]


def test_a_data_set_of_the_hub_is_read_from_a_row_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *_, **__: datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    )
    corpus = Corpus("user/name", split="test")
    documents = [*corpus]
    assert [document.id for document in documents] == [f"user/name/test {row}" for row in range(7)]
    places, number = corpus.places(4)
    assert number == 7
    assert [[*corpus.read_from(place)] for place in places] == [documents, documents[4:]]


def test_rows_that_a_data_set_of_the_hub_counts_itself_are_not_read_to_be_counted(tmp_path, monkeypatch):
    def fail():
        raise AssertionError("a row was read")
        yield

    rows = datasets.IterableDataset.from_generator(fail)
    rows.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=5)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    assert [place.row.row for place in Corpus("user/name").places(2)[0]] == [0, 2, 4]


def test_lines_are_found_by_their_bytes_and_are_not_parsed_before(tmp_path):
    path = write(tmp_path, "a.jsonl")
    corpus = Corpus(path)
    place = corpus.places(5)[0][1]
    path.write_bytes(b"x" * place.row.byte + LINES[place.row.byte :])
    assert [document.metadata["n"] for document in corpus.read_from(place)] == [5, 6]
    assert next(corpus.read_from(place)).id == f"a.jsonl:{LINES[: place.row.byte].count(10) + 1}"


def test_groups_of_a_parquet_file_before_a_place_are_not_read(tmp_path, monkeypatch):
    corpus = Corpus(write(tmp_path, "a.parquet"))
    place, groups = corpus.places(4)[0][1], []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def noted(self, *args, row_groups, **kwargs):
        groups.extend(row_groups)
        return original(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", noted)
    assert [document.metadata["n"] for document in corpus.read_from(place)] == [4, 5, 6]
    assert groups == [1, 2]  # of three rows each: row 4 is in the second


@pytest.mark.parametrize(("name", "is_said"), [("a.jsonl.zst", True), ("a.csv", True), ("a.jsonl", False)])
def test_a_file_in_which_no_reader_can_begin_is_named(tmp_path, caplog, name, is_said):
    corpus = Corpus(write(tmp_path, name))
    with caplog.at_level(logging.WARNING):
        corpus.places(7)  # the whole file is one part
        assert caplog.messages == []
        corpus.places(3)
    assert [f"found by reading it from its beginning: {name}." in message for message in caplog.messages] == [
        True
    ] * is_said


def test_the_limit_of_a_corpus_is_one_of_its_places_too(tmp_path):
    places, number = Corpus(write(tmp_path, "a.jsonl"), limit=4).places(3)
    assert (len(places), number) == (2, 4)
    assert Corpus(tmp_path / "a.jsonl", limit=4).count() == 4


def test_a_corpus_is_known_by_names_sizes_contents_and_options(tmp_path):
    path = write(tmp_path, "a.jsonl")
    described = Corpus(path).describe()
    path.write_bytes(LINES[:-9] + LINES[-9:].swapcase())
    assert {name for name, value in Corpus(path).describe().items() if value != described[name]} == {"contents"}
    path.write_bytes(LINES)
    assert described == json.loads(json.dumps(Corpus(str(path)).describe()))
    assert described != Corpus(path, limit=3).describe()
    assert described != Corpus(path, text_column="body").describe()
    path.write_bytes(LINES + b"\n")
    assert described != Corpus(path).describe()
