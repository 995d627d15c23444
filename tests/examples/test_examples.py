"""`examples/quickstart.py` from a folder of texts to its table and picture, with tiny parts."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEXTS
from PIL import Image

from tttnn import Document, NeighborRetriever


EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
import quickstart  # noqa: E402  (the examples are not installed)


PASSAGE_SIZE = 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eight files of six passages or so, one of a single line, and an empty one."""
    folder = tmp_path_factory.mktemp("corpus")
    shuffled = random.Random(3)
    for number in range(8):
        texts = shuffled.sample(TEXTS, 8)
        (folder / f"{number}.txt").write_text("\n\n".join([f"Number {number}.", *texts]), encoding="utf-8")
    (folder / "line.txt").write_text("one line, too short to be held out", encoding="utf-8")
    (folder / "nothing.txt").write_text("", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def parts(corpus, tiny_models, tokenizer, embedder, tmp_path_factory):
    """The arguments that name a corpus, a tiny model and a tiny embedder."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_models["gpt2"].save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    embedder.save(str(folder / "embedder"))
    options = {"corpus": corpus, "model": folder / "model", "embedder": folder / "embedder"}
    options |= {"num-documents": 3, "num-neighbors": 4, "passage-size": PASSAGE_SIZE}
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def first_run(parts, tmp_path_factory):
    """What the script prints when it is started in a shell, and where it puts what it makes."""
    folder = tmp_path_factory.mktemp("first run")
    result = subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py", *parts, "--output-dir", folder / "out"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf_home")},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return result, folder / "out"


@pytest.fixture
def start(monkeypatch, capsys):
    """Run the script in this process; gives what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["quickstart.py", *map(str, arguments)])
        capsys.readouterr()
        quickstart.main()
        return capsys.readouterr().out

    return run


def table_in(output):
    """The cells of the table, but for the seconds."""
    return [[cell.strip() for cell in line.split("|")[1:-2]] for line in output.splitlines() if line.startswith("| ")]


def held_out_in(output):
    (names,) = re.findall(r"held-out documents: (.*)", output)
    return names.split(", ")


def indexed(folder):
    """The documents of an index, by its own files."""
    index = NeighborRetriever.from_pretrained(folder / "index").index
    return [index.documents([row])[0] for row in range(len(index))]


def test_the_quickstart_prints_a_row_per_document_and_the_pooled_result(first_run):
    result, folder = first_run
    header, *rows = table_in(result.stdout)
    assert header == ["document", "bytes", "bits per byte before", "after", "ratio"]
    assert [row[0] for row in rows] == held_out_in(result.stdout)
    assert len(rows) == 3
    for _, num_bytes, before, after, ratio in rows:
        assert int(num_bytes) > 0
        assert 1 < float(before) < 10  # a tiny model that knows nothing
        assert float(after) / float(before) == pytest.approx(float(ratio), abs=1e-3)
    pooled = re.search(r"Pooled over 3 documents \((\d+) bytes\)", result.stdout)
    assert int(pooled[1]) == sum(int(row[1]) for row in rows)
    assert "95 % paired bootstrap over documents" in result.stdout
    assert re.search(r"\{'retrieve': [\d.]+, 'train': [\d.]+, 'score': [\d.]+\} seconds", result.stdout)


def test_the_quickstart_shows_progress_bars(first_run):
    result, _ = first_run
    assert re.search(r"Embedding: .*row/s\]", result.stderr)
    assert "Documents: 100%" in result.stderr
    assert "3/3" in result.stderr


def test_the_quickstart_draws_a_picture(first_run):
    result, folder = first_run
    assert result.stdout.splitlines()[-1] == f"Picture: {folder / 'curve.png'}"
    with Image.open(folder / "curve.png") as picture:
        assert picture.size == (960, 600)
        picture.verify()


def test_a_held_out_document_has_no_part_in_the_index(first_run, corpus):
    result, folder = first_run
    documents = indexed(folder)
    held_out = {passage.split("#")[0] for passage in held_out_in(result.stdout)}
    assert len(held_out) == 3
    assert {document.metadata["source"] for document in documents} == {
        path.name for path in corpus.iterdir() if path.name not in held_out and path.stat().st_size > 0
    }
    # the others are there to the last character
    for path in corpus.iterdir():
        passages = [document for document in documents if document.metadata["source"] == path.name]
        numbers = [int(document.id.split("#")[1]) for document in passages]
        text = "".join(document.text for _, document in sorted(zip(numbers, passages, strict=True)))
        assert text == ("" if path.name in held_out else path.read_text(encoding="utf-8"))


def test_a_held_out_document_is_a_second_passage(first_run, corpus):
    """Of which the second half, as the trainer's default has it, is scored."""
    result, _ = first_run
    for name, num_bytes, *_ in table_in(result.stdout)[1:]:
        path, number = name.split("#")
        assert number == "1"
        text = (corpus / path).read_text(encoding="utf-8")
        passage = quickstart.passages(Document(path, text), PASSAGE_SIZE)[1].text
        assert 0.3 * len(passage.encode()) < int(num_bytes) < 0.8 * len(passage.encode())


def test_a_second_run_tells_the_same(first_run, parts, start):
    result, folder = first_run
    output = start(*parts, "--output-dir", folder)
    assert table_in(output) == table_in(result.stdout)
    assert held_out_in(output) == held_out_in(result.stdout)


def test_the_picture_has_a_point_before_training_and_after_each_neighbor(parts, start, monkeypatch, tmp_path):
    drawn = []

    def plot_curve(records, path, title):
        drawn.extend(records)
        return path

    monkeypatch.setattr(quickstart, "plot_curve", plot_curve)
    start(*parts, "--num-documents", 1, "--output-dir", tmp_path)
    assert [len(record.nll) for record in drawn] == [1 + 4]


def test_a_second_run_that_holds_out_more_does_not_find_them_in_the_index(first_run, parts, start):
    _, folder = first_run
    output = start(*parts, "--num-documents", 6, "--output-dir", folder)
    held_out = {passage.split("#")[0] for passage in held_out_in(output)}
    assert len(held_out) == 6
    assert not held_out & {document.metadata["source"] for document in indexed(folder)}


def test_a_second_run_asks_the_embedder_that_it_is_given(first_run, parts, start, tmp_path):
    _, folder = first_run
    with pytest.raises((OSError, ValueError), match="another"):
        start(*parts, "--embedder", tmp_path / "another", "--output-dir", folder)


def test_a_folder_that_is_no_index_is_not_removed(parts, start, tmp_path):
    precious = tmp_path / "index" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("kept")
    with pytest.raises(FileExistsError, match="is there already"):
        start(*parts, "--output-dir", tmp_path)
    assert precious.read_text() == "kept"


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "one line without an end",
        "\n\n\n",
        "a\n\n" * 40,
        "a line\n" * 40 + "\n" + "the end",
        "one very long line " * 100 + "\n" + "and a short one\n",
        "carriage\r\nreturns\r\n\r\nand form\x0cfeeds\x0b, next\x85lines, \u2028separators\u2029 and \x1c files\n" * 5,
        "Größe, naïve café; 東京\n\n  \nΕλλάδα 🐳\n" * 10,
        "\x00\n \n",
    ],
)
def test_passages_lose_no_character(text, size):
    passages = quickstart.passages(Document("d", text, {"source": "s"}), size)
    assert "".join(passage.text for passage in passages) == text
    assert [passage.id for passage in passages] == [f"d#{number}" for number in range(len(passages))]
    assert all(passage.metadata == {"source": "s"} for passage in passages)
    assert all(passages[1:]) or not text
    # none is longer than twice the size and the line that crossed it
    longest = max(map(len, text.splitlines(keepends=True)), default=0)
    assert all(len(passage.text) <= 2 * size + longest for passage in passages)


def test_a_passage_ends_before_the_first_blank_line_past_its_size():
    text = "1234\n\n1234567\n1234\n\n1\n\n"
    # the first blank line comes after 5 characters, the next after 19: only that is past the size
    passages = quickstart.passages(Document("d", text), 10)
    assert [passage.text for passage in passages] == ["1234\n\n1234567\n1234\n", "\n1\n\n"]


def test_a_passage_without_a_blank_line_ends_past_twice_its_size():
    passages = quickstart.passages(Document("d", "12345\n" * 8), 10)
    # 24 characters are the first length above 20
    assert [len(passage.text) for passage in passages] == [24, 24]


def test_a_passage_of_a_document_without_a_source_has_its_id():
    (passage,) = quickstart.passages(Document("d", "text"), 10)
    assert passage.metadata == {"source": "d"}


def test_the_standard_library_is_read_whole():
    documents = {document.id: document for document in quickstart.standard_library()}
    assert len(documents) > 50
    assert documents["bisect.py"].text == Path(__import__("bisect").__file__).read_text(encoding="utf-8")
    assert documents["bisect.py"].metadata == {"source": "bisect.py"}
    assert all(len(document.text.encode()) <= 30_000 for document in documents.values())
