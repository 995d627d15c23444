"""The command `tttnn`: what it prints, where, and how it takes bad input, interrupts and repeats."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import zstandard
from conftest import TEXTS
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from tttnn import Embedder, NeighborRetriever
from tttnn.cli.main import main
from tttnn.evaluation.options import SHOWN, EvaluateArguments, parse_evaluation
from tttnn.evaluation.run import load_parts
from tttnn.index.manifest import MANIFEST, read_manifest
from tttnn.index.search import open_index
from tttnn.retrieval.cache import NeighborCache


COMMANDS = ["build-index", "add", "push", "pull", "import-tttlm", "retrieve", "evaluate", "report"]


@pytest.fixture(scope="session")
def model_folder(tiny_models, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models["gpt2"].save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedder_folder(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved embedder")
    embedder.save(str(folder))
    return folder


@pytest.fixture(scope="session")
def index_folder(retriever, tmp_path_factory):
    return retriever.save_pretrained(tmp_path_factory.mktemp("index") / "tiny")


@pytest.fixture
def test_set(documents, tmp_path):
    return write_rows(tmp_path / "test.jsonl", documents)


@pytest.fixture
def corpus(tmp_path):
    """The texts of conftest, a file each."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def build(embedder_folder, tmp_path):
    """Run `tttnn build-index` with the tiny embedder; gives the exit status."""

    def run(*arguments):
        return run_main("build-index", *arguments, "--output", tmp_path / "built", "--embedder", embedder_folder)

    return run


@pytest.fixture
def evaluation(model_folder, index_folder, test_set, tmp_path):
    """The arguments of an evaluation of tiny parts; later ones override earlier ones."""
    parts = ["--model", model_folder, "--index", index_folder, "--dataset", test_set]
    options = ["--output_dir", tmp_path / "run", "--num_neighbors", 4, "--max_length", 32, "--learning_rate", 1e-3]
    return ["evaluate", *parts, *options, "--use_cpu"]


def run_main(*arguments):
    return main([str(argument) for argument in arguments])


def write_rows(path, texts, column="text"):
    lines = "".join(json.dumps({column: text}, ensure_ascii=False) + "\n" for text in texts).encode("utf-8")
    path.write_bytes(zstandard.compress(lines) if path.suffix == ".zst" else lines)
    return path


def table_in(output, without="seconds"):
    """The cells of the table in an output, but for a column that no two runs share."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    place = rows[0].index(without)
    return [row[:place] + row[place + 1 :] for row in rows]


def journal_in(folder):
    header, *lines = (folder / "journal-eval.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(header)["settings"], [json.loads(line) for line in lines]


def pooled(records, position):
    return sum(r["nll"][position] for r in records) / sum(r["num_bytes"] for r in records) / math.log(2)


def help_of(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit_status:
        run_main(*command.split(), "--help")
    assert exit_status.value.code == 0
    return capsys.readouterr().out


# --- help ---


def test_the_entry_point_is_this_command():
    (script,) = entry_points(group="console_scripts", name="tttnn")
    assert script.load() is main


def test_help_names_every_command(capsys, monkeypatch):
    text = help_of("", capsys, monkeypatch)
    assert re.findall(r"^  ([a-z][a-z-]+)  +\S+ \S+", text, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys, monkeypatch):
    text = help_of(command, capsys, monkeypatch)
    blocks = re.split(r"\n(?=  \S)", re.split(r"\noptions:\n", text)[1].split("\n\n")[0])
    assert len(blocks) >= 4
    for block in blocks:
        # flags and their values come first, and at least two blanks or a line end part them from what they mean
        _, *explanation = re.split(r"\s{2,}", block.strip(), maxsplit=1)
        assert len(re.sub(r"\(default: .*\)", "", " ".join(explanation)).split()) >= 2, block


def test_help_names_no_default_where_there_is_none(capsys, monkeypatch):
    text = help_of("evaluate", capsys, monkeypatch)
    assert "(default: 20)" in text
    assert "(default: None)" not in text


def test_help_shows_our_options_and_the_chosen_ones_of_trainer(capsys, monkeypatch):
    text = help_of("evaluate", capsys, monkeypatch)
    shown = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    assert {"model", "index", "dataset", "preset", "limit", "num_neighbors", "exclude", *SHOWN} <= shown
    assert not {"save_steps", "push_to_hub", "no_reset_optimizer"} & shown


def test_a_version_is_told(capsys):
    with pytest.raises(SystemExit) as exit_status:
        run_main("--version")
    assert exit_status.value.code == 0
    assert re.fullmatch(r"tttnn \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["adapt"], f"invalid choice: 'adapt' (choose from {', '.join(map(repr, COMMANDS))})"),
        (["build-index"], "required: source, --output"),
        (["build-index", "a", "--output", "b", "--batch-size", "many"], "invalid int value: 'many'"),
        (
            ["build-index", "a", "--output", "b", "--preset", "hnsw"],
            "invalid choice: 'hnsw' (choose from 'flat', 'ivf'",
        ),
        (
            ["build-index", "a", "--output", "b", "--preset", "ivf", "--factory", "SQ8"],
            "not allowed with argument --preset",
        ),
        (["add", "an-index"], "required: source"),
        (["push", "an-index"], "required: repo_id"),
        (["pull", "user/index"], "required: --output"),
        (["pull", "user/index", "--output", "a", "--shards", "first"], "invalid int value: 'first'"),
        (["import-tttlm", "--output", "a"], "required: --index-files, --data-files"),
        (["retrieve", "an-index"], "required: text"),
        (["retrieve", "an-index", "x", "--texts", "far"], "invalid choice: 'far' (choose from 'local', 'remote')"),
        (["evaluate"], "required: --model, --dataset, --index"),
        (
            ["evaluate", "--model", "m", "--index", "i", "--dataset", "d", "--order", "sideways"],
            "invalid choice: 'sideways' (choose from 'nearest', 'farthest', 'random')",
        ),
    ],
)
def test_a_wrong_use_is_told_with_exit_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_status:
        run_main(*arguments)
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


# --- build-index ---


def test_a_folder_becomes_an_index(build, corpus, tmp_path, capsys):
    assert build(corpus) == 0
    output = capsys.readouterr()
    assert output.out == f"Indexed 10 rows of 10 documents in 1 shard: {tmp_path / 'built'}\n"
    index = open_index(tmp_path / "built")
    assert [index.documents([row])[0].id for row in range(len(index))] == [f"{number}.txt" for number in range(10)]
    assert [index.documents([row])[0].text for row in range(len(index))] == TEXTS
    # a bar on standard error alone counts the documents
    assert re.search(r"Embedding: 10row", output.err)


def test_several_compressed_files_become_one_index(build, tmp_path):
    paths = [write_rows(tmp_path / f"0{part}.jsonl.zst", TEXTS[5 * part : 5 * part + 5], "body") for part in (0, 1)]
    assert build(*paths, "--text-column", "body", "--shard-size", 4, "--max-documents", 9, "--batch-size", 2) == 0
    index = open_index(tmp_path / "built")
    assert [shard.vectors.ntotal for shard in index.shards] == [4, 4, 1]
    assert [index.documents([row])[0].text for row in range(9)] == TEXTS[:9]
    ids = [index.documents([row])[0].id for row in range(9)]
    assert ids == [f"00.jsonl.zst:{line}" for line in range(1, 6)] + [f"01.jsonl.zst:{line}" for line in range(1, 5)]


def test_the_options_of_the_embedder_reach_the_index(build, corpus, tmp_path):
    assert build(corpus, "--max-seq-length", 8, "--device", "cpu") == 0
    assert json.loads((tmp_path / "built" / MANIFEST).read_text())["embedder"]["max_seq_length"] == 8


def test_prompts_reach_the_index(build, corpus, tmp_path):
    assert build(corpus, "--query-prompt", "query: ", "--document-prompt", "passage: ") == 0
    found = json.loads((tmp_path / "built" / MANIFEST).read_text())["embedder"]
    assert (found["query_prompt"], found["document_prompt"]) == ("query: ", "passage: ")


def test_what_was_indexed_is_named_without_the_folders_above_it(build, corpus, tmp_path):
    assert build(corpus, write_rows(tmp_path / "more.jsonl", ["x"])) == 0
    assert json.loads((tmp_path / "built" / MANIFEST).read_text())["sources"] == ["corpus", "more.jsonl"]


def test_passages_are_counted_beside_their_documents(build, tmp_path, capsys):
    assert (
        build(write_rows(tmp_path / "rows.jsonl", ["one two three four five six " * 10, "short"]), "--passages", 30)
        == 0
    )
    rows, documents = map(int, re.search(r"^Indexed (\d+) rows of (\d+) documents", capsys.readouterr().out).groups())
    assert rows > 3
    assert documents == 2
    index = open_index(tmp_path / "built")
    assert (
        "".join(document.text for document in index.documents(range(rows - 1))) == "one two three four five six " * 10
    )


@pytest.mark.parametrize(
    ("options", "preset", "kind"),
    [
        (["--preset", "ivf"], "ivf", "IndexIVFFlat"),
        (["--factory", "SQ8", "--recall-target", 0.5], "SQ8", "IndexScalarQuantizer"),
    ],
)
def test_vectors_are_stored_as_it_is_asked(build, tmp_path, capsys, options, preset, kind):
    texts = [f"{TEXTS[row % 10]} {row}" for row in range(90)]
    assert build(write_rows(tmp_path / "rows.jsonl", texts), *options) == 0
    assert re.search(r"^Indexed 90 rows of 90 documents in 1 shard, recall@20 [01]\.\d{3}: ", capsys.readouterr().out)
    manifest = json.loads((tmp_path / "built" / MANIFEST).read_text())
    assert manifest["storage"]["preset"] == preset
    assert manifest["recall"]["target"] == (0.95 if preset == "ivf" else 0.5)
    assert type(open_index(tmp_path / "built").shards[0].vectors).__name__ == kind


def test_a_second_build_of_the_same_corpus_has_nothing_to_do(build, corpus, tmp_path, capsys):
    assert build(corpus) == 0
    files = {path: path.read_bytes() for path in (tmp_path / "built").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert build(corpus) == 0
    output = capsys.readouterr()
    expected = f"Nothing to do: the index holds 10 rows of 10 documents in 1 shard: {tmp_path / 'built'}\n"
    assert output.out == expected
    assert {path: path.read_bytes() for path in (tmp_path / "built").rglob("*") if path.is_file()} == files


def test_an_index_of_another_corpus_is_not_overwritten(build, corpus, tmp_path, capsys):
    assert build(corpus) == 0
    (corpus / "more.txt").write_text("more")
    assert build(corpus) == 1
    assert f"'{tmp_path / 'built'}' is there already" in capsys.readouterr().err
    assert len(open_index(tmp_path / "built")) == 10


def test_ids_come_from_a_named_column(build, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one", "key": "first"}\n{"text": "two", "key": 2}\n')
    assert build(path, "--id-column", "key") == 0
    index = open_index(tmp_path / "built")
    assert [index.documents([row])[0].id for row in range(2)] == ["first", "2"]


def test_a_hub_data_set_becomes_an_index(build, tmp_path, monkeypatch):
    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return iter([{"text": text, "meta": {"from": "hub"}} for text in TEXTS])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert build("user/corpus", "--split", "validation", "--revision", "v1") == 0
    expected = {"path": "user/corpus", "split": "validation", "revision": "v1", "streaming": True}
    assert asked.items() >= expected.items()
    (document,) = open_index(tmp_path / "built").documents([3])
    assert (document.text, document.metadata) == (TEXTS[3], {"from": "hub"})


def write_bytes(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda folder: folder / "missing", [], "There is no file or folder at"),
        (lambda folder: folder, [], "The corpus holds no document"),
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--text-column", "body"], "no column `body`"),
        (lambda folder: write_rows(folder / "a.jsonl", [3]), [], "text of a.jsonl:1 is int, not a string"),
        (lambda folder: write_bytes(folder / "a.jsonl", b'{"text": "x"}\n{"te'), [], "a.jsonl:2 is not JSON"),
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--shard-size", "0"], "`shard_size` is 0"),
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--embedder", "/missing/folder"], "/missing/folder"),
        (lambda folder: write_bytes(folder / "a.txt", b"caf\xe9"), [], "a.txt"),
        (lambda folder: write_bytes(folder / "a.jsonl.zst", b"no frame"), [], "a.jsonl.zst"),
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--batch-size", "0"], "batch_size"),
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--max-documents", "-1"], "limit"),
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--passages", "0"], "Passages of 0 tokens"),
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--recall-target", "2"], "`recall_target` is 2.0"),
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--factory", "Nothing"], "'Nothing'"),
    ],
)
def test_a_bad_corpus_is_told_and_leaves_no_index(make, options, message, build, tmp_path, capsys):
    folder = tmp_path / "bad corpus"
    folder.mkdir()
    source = make(folder)
    assert (
        build(source, *options) == 1
        if "--embedder" not in options
        else run_main("build-index", source, "--output", tmp_path / "built", *options)
    )
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("tttnn build-index: error: ")
    assert message in output.err.splitlines()[-1]
    assert not (tmp_path / "built").exists()


def test_an_index_is_not_overwritten(build, corpus, tmp_path, capsys):
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "precious").write_text("kept")
    assert build(corpus) == 1
    assert f"'{tmp_path / 'built'}' is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["precious"]


# --- add ---


def test_documents_are_added_behind_those_of_the_index(build, tmp_path, capsys):
    assert build(write_rows(tmp_path / "first.jsonl", TEXTS[:7]), "--shard-size", 5) == 0
    capsys.readouterr()
    more = write_rows(tmp_path / "more.jsonl", TEXTS[7:], "body")
    assert run_main("add", tmp_path / "built", more, "--text-column", "body", "--batch-size", 2) == 0
    output = capsys.readouterr()
    expected = f"Added 3 rows; the index holds 10 rows of 10 documents in 3 shards: {tmp_path / 'built'}\n"
    assert output.out == expected
    assert re.search(r"Embedding: 3row", output.err)
    index = open_index(tmp_path / "built")
    assert [document.text for document in index.documents(range(10))] == TEXTS
    assert json.loads((tmp_path / "built" / MANIFEST).read_text())["sources"] == ["first.jsonl", "more.jsonl"]


def test_documents_are_added_with_an_embedder_that_moved(build, embedder_folder, tmp_path, capsys):
    more = write_rows(tmp_path / "more.jsonl", TEXTS[5:])
    assert build(write_rows(tmp_path / "first.jsonl", TEXTS[:5])) == 0
    rename_embedder(tmp_path / "built")
    assert run_main("add", tmp_path / "built", more) == 1
    assert "/moved/elsewhere" in capsys.readouterr().err
    assert run_main("add", tmp_path / "built", more, "--embedder", embedder_folder) == 0
    assert len(open_index(tmp_path / "built")) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{built}", "{folder}/missing"], "There is no file or folder at"),
        (["{built}", "{folder}/empty"], "The corpus holds no document"),
        (["{folder}/empty", "{folder}/rows.jsonl"], f"holds no `{MANIFEST}`"),
        (["{folder}/missing", "{folder}/rows.jsonl"], f"holds no `{MANIFEST}`"),
    ],
)
def test_a_wrong_addition_is_told_and_leaves_the_index(arguments, message, build, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert build(write_rows(tmp_path / "rows.jsonl", TEXTS)) == 0
    files = {path: path.read_bytes() for path in (tmp_path / "built").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_main("add", *(each.format(built=tmp_path / "built", folder=tmp_path) for each in arguments)) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("tttnn add: error: ")
    assert message in output.err.splitlines()[-1]
    assert {path: path.read_bytes() for path in (tmp_path / "built").rglob("*") if path.is_file()} == files


# --- import-tttlm ---


def test_published_files_become_an_index(tmp_path, capsys):
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    for number, part in enumerate((vectors[:4], vectors[4:])):
        flat = faiss.IndexFlatL2(2)
        flat.add(part)
        faiss.write_index(flat, str(tmp_path / f"0{number}.jsonl.index"))
    data = [write_rows(tmp_path / "00.jsonl", TEXTS[:4]), write_rows(tmp_path / "01.jsonl.zst", TEXTS[4:6])]
    files = sorted(tmp_path.glob("*.index"))
    output = tmp_path / "built"
    assert run_main("import-tttlm", "--index-files", *files, "--data-files", *data, "--output", output) == 0
    assert capsys.readouterr().out == f"Imported 6 rows of 6 documents in 2 shards: {output}\n"
    index = open_index(output)
    assert [document.text for document in index.documents(range(6))] == TEXTS[:6]
    assert [row for _, row in index.search(vectors[4:5], 3)[0]] == [4, 3, 5]


def test_published_files_are_stored_as_a_preset_says(tmp_path, capsys, embedder_folder):
    vectors = Embedder(embedder_folder).encode_document(TEXTS)
    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    faiss.write_index(flat, str(tmp_path / "00.jsonl.index"))
    files = ["--index-files", tmp_path / "00.jsonl.index", "--data-files", write_rows(tmp_path / "00.jsonl", TEXTS)]
    options = ["--preset", "ivf", "--recall-target", 0.5, "--embedder", embedder_folder, "--device", "cpu"]
    assert run_main("import-tttlm", *files, "--output", tmp_path / "built", *options) == 0
    assert capsys.readouterr().out.startswith(f"Imported {len(TEXTS)} rows")
    manifest = read_manifest(tmp_path / "built")
    assert (manifest.storage.preset, manifest.recall.target) == ("ivf", 0.5)


def test_published_files_that_do_not_fit_are_told(tmp_path, capsys):
    flat = faiss.IndexFlatL2(2)
    flat.add(np.zeros((3, 2), dtype=np.float32))
    faiss.write_index(flat, str(tmp_path / "00.jsonl.index"))
    files = ["--index-files", tmp_path / "00.jsonl.index", "--data-files", write_rows(tmp_path / "00.jsonl", TEXTS)]
    assert run_main("import-tttlm", *files, "--output", tmp_path / "built") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("tttnn import-tttlm: error: ")
    assert not (tmp_path / "built").exists()


# --- retrieve ---


QUERY = "the captain and the whale"


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


def rename_embedder(index):
    manifest = json.loads((index / MANIFEST).read_text())
    manifest["embedder"]["name"] = "/moved/elsewhere"
    (index / MANIFEST).write_text(json.dumps(manifest))


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


# --- evaluate ---


def test_an_evaluation_prints_and_keeps_what_the_trainer_finds(evaluation, documents, make_trainer, tmp_path, capsys):
    assert run_main(*evaluation, "--score_every_neighbor") == 0
    output = capsys.readouterr()
    _, records = journal_in(tmp_path / "run")
    trainer = make_trainer(output_dir=str(tmp_path / "other run"), score_every_neighbor=True)
    trainer.evaluate(documents)
    for record, other in zip(records, trainer.records, strict=True):
        assert record["neighbor_ids"] == other.neighbor_ids
        assert record["nll"] == pytest.approx(other.nll, rel=1e-6)
        assert len(record["nll"]) == 5
    ids = [f"test.jsonl:{line}" for line in (1, 2, 3)]
    assert table_in(output.out)[2:] == [
        [
            name,
            str(record["num_bytes"]),
            f"{pooled([record], 0):.4f}",
            f"{pooled([record], -1):.4f}",
            f"{record['nll'][-1] / record['nll'][0]:.3f}",
        ]
        for name, record in zip(ids, records, strict=True)
    ]
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert results["eval_bits_per_byte_before"] == pytest.approx(pooled(records, 0))
    assert results["eval_bits_per_byte"] == pytest.approx(pooled(records, -1))
    assert results["eval_bits_per_byte_ratio"] == pytest.approx(pooled(records, -1) / pooled(records, 0))
    assert results["eval_num_documents"] == 3
    assert f"{pooled(records, 0):.4f} -> {pooled(records, -1):.4f} bits per byte" in output.out
    # the bars are on standard error alone
    assert "Documents: 100%" in output.err
    assert "3/3" in output.err
    assert "Documents:" not in output.out
    picture = tmp_path / "run" / "curve.png"
    assert output.out.splitlines()[-1] == str(picture)
    with Image.open(picture) as image:
        image.verify()


def test_without_every_score_there_is_no_picture(evaluation, tmp_path, capsys):
    assert run_main(*evaluation, "--limit", 2, "--disable_tqdm", "True") == 0
    output = capsys.readouterr()
    assert len(table_in(output.out)) == 2 + 2
    assert not (tmp_path / "run" / "curve.png").exists()
    assert all(len(record["nll"]) == 2 for record in journal_in(tmp_path / "run")[1])
    assert "Documents:" not in output.err


def test_over_a_hundred_documents_are_told_in_one_line(evaluation, tmp_path, capsys):
    write_rows(tmp_path / "test.jsonl", ["a b"] * 101)
    assert run_main(*evaluation, "--num_neighbors", 1, "--max_distance", 0, "--disable_tqdm", "True") == 0
    output = capsys.readouterr().out
    assert "Pooled over 101 documents" in output
    assert "|" not in output


def test_a_folder_and_named_ids_are_evaluated(evaluation, corpus, tmp_path):
    for number in range(2, 10):
        (corpus / f"{number}.txt").unlink()
    assert run_main(*evaluation, "--dataset", corpus, "--exclude", "id") == 0
    _, records = journal_in(tmp_path / "run")
    assert [record["id"] for record in records] == ["0.txt", "1.txt"]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"body": TEXTS[0], "key": "row 0"}) + "\n")
    columns = ["--text_column", "body", "--id_column", "key", "--query", "document", "--exclude", "id"]
    assert run_main(*evaluation, "--dataset", path, "--output_dir", tmp_path / "rows", *columns) == 0
    _, (record,) = journal_in(tmp_path / "rows")
    assert record["id"] == "row 0"
    assert record["num_bytes"] == len(TEXTS[0].encode())
    assert 0 not in record["neighbor_ids"]  # it is not its own neighbor


def test_a_hub_data_set_is_evaluated(evaluation, documents, tmp_path, monkeypatch):
    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return iter([{"text": text, "id": f"hub-{row}"} for row, text in enumerate(documents)])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert run_main(*evaluation, "--dataset", "user/test-set", "--limit", 2) == 0
    assert asked.items() >= {"path": "user/test-set", "split": "test", "streaming": True}.items()
    assert [record["id"] for record in journal_in(tmp_path / "run")[1]] == ["hub-0", "hub-1"]


def test_the_preset_is_the_authors_setting_and_options_override_it():
    """Values: section 1 of the project's notes on the official code; 16.0 is 4.0 squared."""
    parts = ["--model", "m", "--index", "i", "--dataset", "d", "--use_cpu"]
    arguments, args, _ = parse_evaluation(EvaluateArguments, [*parts, "--preset", "tttlm"])
    assert (arguments.model, arguments.index, arguments.dataset, arguments.preset) == ("m", "i", "d", "tttlm")
    expected = {
        "num_neighbors": 50,
        "order": "nearest",
        "query": "document",
        "max_length": 1024,
        "max_distance": 16.0,
        "chunks_per_neighbor": None,
        "score_every_neighbor": True,
        "reset_optimizer": False,
        "disable_dropout": False,
        "drop_near_copies": False,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "num_train_epochs": 1,
        "gradient_accumulation_steps": 1,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    overrides = ["--learning_rate", "5e-6", "--max-length", "2048", "--chunks_per_neighbor", "2", "--reset_optimizer"]
    # before and after `--preset`
    _, args, _ = parse_evaluation(
        EvaluateArguments, [*parts, *overrides, "--preset=tttlm", "--disable_dropout", "True"]
    )
    expected |= {
        "learning_rate": 5e-6,
        "max_length": 2048,
        "chunks_per_neighbor": 2,
        "reset_optimizer": True,
        "disable_dropout": True,
    }
    assert {name: getattr(args, name) for name in expected} == expected


def test_without_a_preset_the_defaults_are_ours():
    parts = ["--model", "m", "--index", "i", "--dataset", "d", "--use_cpu"]
    _, args, _ = parse_evaluation(EvaluateArguments, parts)
    found = (args.num_neighbors, args.query, args.reset_optimizer, args.chunks_per_neighbor, args.disable_dropout)
    assert found == (20, "prefix", True, 1, True)
    _, args, _ = parse_evaluation(EvaluateArguments, [*parts, "--chunks_per_neighbor", "all", "--adam_beta1", "0.5"])
    assert (args.chunks_per_neighbor, args.adam_beta1) == (None, 0.5)


def test_a_flag_is_switched_off_as_the_help_says(capsys, monkeypatch):
    assert "--NAME false" in help_of("evaluate", capsys, monkeypatch)
    parts = ["--model", "m", "--index", "i", "--dataset", "d", "--use_cpu"]
    _, args, _ = parse_evaluation(EvaluateArguments, [*parts, "--disable_dropout", "false"])
    assert not args.disable_dropout
    _, args, _ = parse_evaluation(EvaluateArguments, [*parts, "--preset", "tttlm", "--score_every_neighbor", "false"])
    assert not args.score_every_neighbor


def test_the_preset_is_evaluated(evaluation, documents, tmp_path):
    """Every score is kept, all chunks of 8 tokens are trained on, and the optimizer is carried."""
    assert run_main(*evaluation, "--preset", "tttlm", "--max_length", 8, "--num_neighbors", 3) == 0
    settings, records = journal_in(tmp_path / "run")
    assert (settings["query"], settings["reset_optimizer"], settings["chunks_per_neighbor"]) == (
        "document",
        False,
        None,
    )
    assert [record["num_bytes"] for record in records] == [len(text.encode()) for text in documents]
    assert {len(record["nll"]) for record in records} <= {1, 2, 3, 4}
    assert [path.name for path in (tmp_path / "run").glob("*.safetensors")] == ["journal-eval-optimizer-2.safetensors"]


def test_revisions_precision_and_embedder_reach_what_is_loaded(monkeypatch):
    asked = {}
    for kind in (AutoModelForCausalLM, AutoTokenizer, NeighborRetriever):
        monkeypatch.setattr(
            kind, "from_pretrained", lambda name, kind=kind, **options: asked.update({kind: (name, options)})
        )
    load_parts(
        EvaluateArguments(
            "user/model",
            "d",
            "user/index",
            dtype="bfloat16",
            model_revision="m1",
            index_revision="i1",
            index_shards=[0, 3],
            index_texts="remote",
            embedder="e",
        )
    )
    assert isinstance(asked[NeighborRetriever][1].pop("cache"), NeighborCache)
    assert asked == {
        AutoModelForCausalLM: ("user/model", {"revision": "m1", "dtype": "bfloat16"}),
        AutoTokenizer: ("user/model", {"revision": "m1"}),
        NeighborRetriever: (
            "user/index",
            {"revision": "i1", "shards": [0, 3], "texts": "remote", "embedder": "e"},
        ),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/missing/model"], "/missing/model"),
        (["--dataset", "/missing/test.jsonl"], "There is no file or folder at '/missing/test.jsonl'"),
        (["--preset", "tttln"], "There is no preset 'tttln'. Pass one of tttlm."),
        (["--num_neighbors", "0"], "`num_neighbors` is 0"),
        (["--num_neighbors", "11"], "the index holds 10 documents"),
        (["--top_k", "3"], "`top_k` is 3, fewer than the 4 of `num_neighbors`"),
        (["--max_steps", "5"], "`max_steps` is 5, which has no meaning here"),
        (["--limit", "0"], "The limit is 0 documents"),
        (["--text_column", "body"], "has no column `body`"),
        (["--id_column", "key"], "has no column `key`"),
        (["--no_such_option", "1"], "--no_such_option"),
        (["--lr_scheduler_type", "sideways"], "sideways"),
        (["--dtype", "float33"], "float33"),
        (["--limit", "-1"], "limit"),
        (["--chunks_per_neighbor", "some"], "chunks_per_neighbor"),
        (["--learning_rate", "1e30"], "training diverged"),
    ],
)
def test_a_wrong_evaluation_is_told(options, message, evaluation, capsys):
    assert run_main(*evaluation, *options) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("tttnn evaluate: error: ")
    assert message in output.err.splitlines()[-1]


# --- again ---


def test_a_second_run_tells_the_same_and_does_nothing(evaluation, tmp_path, capsys, monkeypatch):
    assert run_main(*evaluation) == 0
    first = capsys.readouterr().out
    journal = (tmp_path / "run" / "journal-eval.jsonl").read_bytes()
    monkeypatch.setattr(NeighborRetriever, "retrieve", lambda *arguments: pytest.fail("a document was done again"))
    assert run_main(*evaluation) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "run" / "journal-eval.jsonl").read_bytes() == journal


def test_more_documents_go_on_where_fewer_ended(evaluation, tmp_path, capsys):
    assert run_main(*evaluation, "--limit", 1) == 0
    journal = (tmp_path / "run" / "journal-eval.jsonl").read_bytes()
    assert run_main(*evaluation) == 0
    assert (tmp_path / "run" / "journal-eval.jsonl").read_bytes().startswith(journal)
    capsys.readouterr()
    assert run_main(*evaluation, "--limit", 2) == 0
    assert "Pooled over 2 documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learning_rate", "0.01"], "`learning_rate` was 0.001 and is now 0.01"),
        (["--seed", "1", "--num_neighbors", "5"], "different: num_neighbors, seed"),
        (["--preset", "tttlm"], "written with other settings"),
    ],
)
def test_a_second_run_with_other_settings_is_refused(options, message, evaluation, tmp_path, capsys):
    assert run_main(*evaluation, "--limit", 1) == 0
    journal = (tmp_path / "run" / "journal-eval.jsonl").read_bytes()
    capsys.readouterr()
    assert run_main(*evaluation, *options) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert str(tmp_path / "run" / "journal-eval.jsonl") in output.err
    assert (tmp_path / "run" / "journal-eval.jsonl").read_bytes() == journal


def test_a_second_run_on_other_documents_is_refused(evaluation, documents, tmp_path, capsys):
    assert run_main(*evaluation) == 0
    write_rows(tmp_path / "test.jsonl", documents[::-1])
    capsys.readouterr()
    assert run_main(*evaluation) == 1
    assert "the data set has changed" in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_document_does_not_hold_up_the_next(evaluation, capsys):
    assert run_main(*evaluation, "--num_neighbors", 11) == 1
    assert run_main(*evaluation, "--num_neighbors", 10) == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_killed(evaluation, documents, tmp_path, capsys):
    write_rows(tmp_path / "test.jsonl", [f"{number} {documents[number % 3]}" for number in range(12)])
    slow = [*evaluation, "--num_neighbors", "10", "--score_every_neighbor", "--disable_tqdm", "True"]
    journal = tmp_path / "run" / "journal-eval.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "tttnn", *map(str, slow)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf_home")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        # a header and a record
        while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = journal.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    done = kept.count(b"\n") - 1
    assert 1 <= done < 12
    assert run_main(*slow) == 0
    resumed = capsys.readouterr().out
    # what was done is not done again
    assert journal.read_bytes().startswith(kept)
    assert [record["index"] for record in journal_in(tmp_path / "run")[1]] == list(range(12))
    assert run_main(*slow, "--output_dir", tmp_path / "in one go") == 0
    assert table_in(resumed) == table_in(capsys.readouterr().out)
    one_go = journal_in(tmp_path / "in one go")[1]
    assert [record["nll"] for record in journal_in(tmp_path / "run")[1]] == [record["nll"] for record in one_go]


@pytest.mark.parametrize("option", [["--private"], ["--license", "mit"]], ids=lambda option: option[0])
def test_an_option_of_a_push_without_a_push_is_told_before_the_work(build, corpus, tmp_path, capsys, option):
    assert build(corpus, *option) == 1
    assert f"`{option[0]}` was passed without `--push-to-hub`" in capsys.readouterr().err
    assert not (tmp_path / "built").exists()


def test_privacy_and_licence_reach_the_push(build, corpus, tmp_path, monkeypatch):
    pushed = []

    def push(*arguments, **options):
        pushed.append((arguments, options))
        return SimpleNamespace(commit_url="")

    monkeypatch.setattr("tttnn.index.hub.transfer.push_index", push)
    assert build(corpus, "--push-to-hub", "user/index", "--private", "--license", "mit") == 0
    assert pushed == [((str(tmp_path / "built"), "user/index", True), {"license": "mit"})]


@pytest.mark.parametrize("place", ["index", "deep/index", "."])
def test_an_index_inside_of_its_corpus_is_told_before_the_work(corpus, place, monkeypatch, capsys):
    before = sorted(corpus.rglob("*"))
    monkeypatch.chdir(corpus.parent)
    for source in ("corpus", "corpus/../corpus", corpus):
        assert run_main("build-index", source, "--output", corpus / place) == 1
        assert run_main("add", corpus / place, source) == 1
        output = capsys.readouterr().err
        assert output.count("would lie in the folder") == 2
    assert sorted(corpus.rglob("*")) == before


def test_an_index_beside_its_corpus_is_built(corpus, embedder_folder, tmp_path):
    beside = tmp_path / "corpus-index"  # which begins as the corpus does
    assert run_main("build-index", corpus, "--output", beside, "--embedder", embedder_folder) == 0
    assert (beside / MANIFEST).is_file()


def test_a_local_embedder_named_by_a_relative_path_is_found_at_the_next_query(
    corpus, embedder_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(embedder_folder.parent)
    assert run_main("build-index", corpus, "--output", tmp_path / "built", "--embedder", embedder_folder.name) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run_main("retrieve", "built", QUERY, "--top-k", 1) == 0
    assert "The whale" in capsys.readouterr().out
