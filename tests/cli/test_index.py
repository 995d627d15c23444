"""The commands that move and read indexes: `retrieve`, `info`, `push` and `pull`."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from commands import QUERY, rename_embedder, run_main, write_rows
from conftest import TEXTS
from loopback_hub import LoopbackHub

from tttnn.index.manifest import MANIFEST


def nearest(embedder, top_k):
    """A brute-force search."""
    vectors, query = embedder.encode(TEXTS).astype(np.float64), embedder.encode([QUERY]).astype(np.float64)
    distances = ((vectors - query) ** 2).sum(axis=1)
    return [(int(row), float(distances[row])) for row in np.argsort(distances)[:top_k]]


def test_whole_neighbors_come_as_json_lines(index_folder, embedder, capsys):
    assert run_main("retrieve", index_folder, QUERY, "--top-k", 4, "--json") == 0
    neighbors = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = nearest(embedder, 4)
    assert [neighbor["id"] for neighbor in neighbors] == [row for row, _ in expected]
    assert [neighbor["distance"] for neighbor in neighbors] == pytest.approx([d for _, d in expected], rel=1e-5)
    assert [neighbor["text"] for neighbor in neighbors] == [TEXTS[row] for row, _ in expected]
    assert all(neighbor["metadata"] == {"id": f"row {neighbor['id']}"} for neighbor in neighbors)


def test_json_keeps_letters_as_they_are(index_folder, capsys):
    assert run_main("retrieve", index_folder, TEXTS[4], "--top-k", 1, "--json") == 0
    assert "東京, Ελλάδα" in capsys.readouterr().out


def test_neighbors_are_shown_by_distance_id_and_beginning(index_folder, embedder, capsys):
    assert run_main("retrieve", index_folder, QUERY) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = []
    for row, distance in nearest(embedder, 5):
        expected += [f"{distance:8.4f}  row {row}", " " * 10 + " ".join(TEXTS[row].split())[:100]]
    assert lines == expected


def test_a_passage_is_shown_with_its_lines(build, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a.py", "text": "one", "start_line": 12, "end_line": 40}\n{"id": "b.py", "text": "two"}\n')
    assert build(rows) == 0
    capsys.readouterr()
    assert run_main("retrieve", tmp_path / "built", "one", "--top-k", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[10:] for line in lines[::2]] == ["a.py, lines 12-40", "b.py"]


def test_a_long_text_is_shown_by_its_first_hundred_characters(build, tmp_path, capsys):
    assert build(write_rows(tmp_path / "rows.jsonl", ["\tnine char\n" * 30])) == 0
    capsys.readouterr()
    assert run_main("retrieve", tmp_path / "built", QUERY, "--top-k", 1) == 0
    # the blanks between words are one space each
    assert capsys.readouterr().out.splitlines()[1] == " " * 10 + "nine char " * 10


def test_an_embedder_that_moved_is_named(index_folder, embedder_folder, tmp_path, capsys):
    moved = tmp_path / "index"
    shutil.copytree(index_folder, moved)
    rename_embedder(moved)
    assert run_main("retrieve", moved, QUERY, "--embedder", embedder_folder) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_some_shards_are_searched(build, corpus, tmp_path, capsys):
    assert build(corpus, "--shard-size", 4) == 0
    capsys.readouterr()
    arguments = ["--shards", 0, 2, "--top-k", 6, "--json"]
    assert run_main("retrieve", tmp_path / "built", QUERY, *arguments) == 0
    found = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(found) == [0, 1, 2, 3, 8, 9]


def damage_vectors(index):
    path = index / "index" / "shard-00000.faiss"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_texts(index):
    path = index / "texts" / "shard-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-1])


def remove_vectors(index):
    (index / "index" / "shard-00000.faiss").unlink()


def remove_manifest(index):
    (index / MANIFEST).unlink()


def cut_manifest(index):
    (index / MANIFEST).write_bytes((index / MANIFEST).read_bytes()[:100])


def empty_manifest(index):
    (index / MANIFEST).write_text("[]")


DAMAGES = [
    (damage_vectors, "shard-00000.faiss' is damaged"),
    (cut_texts, "shard-00000.jsonl' has"),
    (remove_vectors, "shard-00000.faiss' is missing"),
    (remove_manifest, f"holds no `{MANIFEST}`"),
    (cut_manifest, MANIFEST),
    (empty_manifest, MANIFEST),
    (rename_embedder, "embedder '/moved/elsewhere', which cannot be loaded here"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("command", ["retrieve", "evaluate"])
def test_a_damaged_index_is_told(command, damage, message, evaluation, index_folder, tmp_path, capsys):
    index = tmp_path / "damaged"
    shutil.copytree(index_folder, index)
    damage(index)
    arguments = [*evaluation, "--index", index] if command == "evaluate" else ["retrieve", index, QUERY]
    assert run_main(*arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith(f"tttnn {command}: error: ")
    assert message in output.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", "11"], "`top_k` is 11, but the index holds 10 documents"),
        (["--top-k", "0"], "`top_k` is 0"),
        (["--embedder", "/missing/folder"], "/missing/folder"),
        (["--shards", "1"], "The shards [1] were asked for, but the index has shards 0 to 0"),
        (["--texts", "remote"], "is a local folder"),
    ],
)
def test_a_wrong_retrieval_is_told(arguments, message, index_folder, capsys):
    assert run_main("retrieve", index_folder, QUERY, *arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err


@pytest.mark.parametrize("name", ["/missing/index", "user/missing-index"])
def test_a_missing_index_is_told(name, capsys):
    assert run_main("retrieve", name, QUERY) == 1
    assert capsys.readouterr().err.startswith("tttnn retrieve: error: ")


@pytest.mark.parametrize("name", ["./missing-index", "/missing/index"])
def test_a_missing_folder_is_told_as_one(name, capsys):
    assert run_main("retrieve", name, QUERY) == 1
    assert f"There is no folder '{name}'" in capsys.readouterr().err


def test_a_local_embedder_named_by_a_relative_path_is_found_at_the_next_query(
    corpus, embedder_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(embedder_folder.parent)
    assert run_main("build-index", corpus, "--output", tmp_path / "built", "--embedder", embedder_folder.name) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run_main("retrieve", "built", QUERY, "--top-k", 1) == 0
    assert "The whale" in capsys.readouterr().out


# --- info ---


def info_of(index, capsys):
    capsys.readouterr()
    assert run_main("info", index) == 0
    return dict(re.split(r":\s+", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_info_shows_what_an_index_holds(build, embedder_folder, corpus, tmp_path, capsys):
    assert build(corpus, "--shard-size", 4) == 0
    built = tmp_path / "built"
    files = [path for name in ("index", "texts", "data") for path in (built / name).iterdir()]
    texts = [(built / "texts" / f"shard-0000{number}.jsonl").read_bytes() for number in range(3)]
    digests = "".join(hashlib.sha256(text).hexdigest() for text in texts)
    assert info_of(built, capsys) == {
        "rows": "10",
        "documents": "10",
        "passages": "no: rows are documents",
        "shards": "3",
        "storage": "flat (Faiss: Flat)",
        "recall": "exact",
        "embedder": str(embedder_folder),
        "sources": "corpus",
        "size": f"{sum(path.stat().st_size for path in files):,} bytes in 12 files",
        "digest": hashlib.sha256(digests.encode()).hexdigest(),
        "format version": "2",
    }


def test_info_shows_passages_and_the_measured_recall(build, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", ["one two three four five six " * 40])
    assert build(rows, "--passages", 30, "--preset", "ivf") == 0
    shown = info_of(tmp_path / "built", capsys)
    assert shown["passages"] == "rows, of at most 30 tokens"
    assert shown["documents"] == "1"
    assert int(shown["rows"]) > 3
    assert shown["storage"].startswith("ivf (Faiss: IVF")
    assert re.fullmatch(r"[01]\.\d{3} of the \d+ nearest \(target: 0\.95\)", shown["recall"])


def test_info_reads_the_manifest_only(index_folder, tmp_path, capsys):
    (tmp_path / MANIFEST).write_bytes((index_folder / MANIFEST).read_bytes())
    assert info_of(tmp_path, capsys) == info_of(index_folder, capsys)


def test_info_of_an_index_on_the_hub_fetches_its_manifest_only(index_folder, tmp_path, monkeypatch, capsys):
    with LoopbackHub() as hub:
        hub.attach(monkeypatch, tmp_path / "home")
        hub.commit("user/index", index_folder)
        assert info_of("user/index", capsys) == info_of(index_folder, capsys)
    fetched = {path.name for path in (tmp_path / "home").rglob("snapshots/**/*") if path.is_file()}
    assert fetched == {MANIFEST}


@pytest.mark.parametrize(
    ("index", "message"),
    [("{}", f"holds no `{MANIFEST}`"), ("{}/missing", "There is no folder '{}/missing'")],
)
def test_info_of_no_index_is_told(index, message, tmp_path, capsys):
    assert run_main("info", index.format(tmp_path)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tttnn info: error: ")
    assert message.format(tmp_path) in line
