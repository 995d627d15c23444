"""The commands that make and extend indexes: `build-index`, `add` and `import-tttlm`."""

import json
import re
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from commands import rename_embedder, run_main, write_rows
from conftest import TEXTS

from tttnn import Embedder
from tttnn.index import open_index, read_manifest
from tttnn.index.manifest import MANIFEST


def test_a_folder_becomes_an_index(build, corpus, tmp_path, capsys):
    assert build(corpus) == 0
    output = capsys.readouterr()
    assert output.out == f"Indexed 10 rows of 10 documents in 1 shard: {tmp_path / 'built'}\n"
    index = open_index(tmp_path / "built")
    assert [index.documents([row])[0].id for row in range(len(index))] == [f"{number}.txt" for number in range(10)]
    assert [index.documents([row])[0].text for row in range(len(index))] == TEXTS
    # a bar on standard error alone counts the documents
    assert re.search(r"10/10 \[", output.err)


def test_several_compressed_files_become_one_index(build, tmp_path):
    paths = [write_rows(tmp_path / f"0{part}.jsonl.zst", TEXTS[5 * part : 5 * part + 5], "body") for part in (0, 1)]
    assert build(*paths, "--text-column", "body", "--shard-size", 4, "--limit", 9, "--batch-size", 2) == 0
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


def test_shards_and_then_a_finish_make_the_index_of_one_command(build, corpus, embedder_folder, tmp_path, capsys):
    options = ["--shard-size", 4, "--preset", "ivf"]
    assert build(corpus, *options) == 0
    expected = {path.name: path.read_bytes() for path in (tmp_path / "built").rglob("*") if path.is_file()}
    output = tmp_path / "shards"
    command = ["build-index", corpus, "--output", output, "--embedder", embedder_folder, *options, "--shards"]
    capsys.readouterr()
    assert run_main(*command, "1:2") == 0
    assert capsys.readouterr().out == f"Built 1 of 3 shards: {output}. 2 are not built yet, or others are at them.\n"
    assert run_main("build-index", "--finish", output) == 1
    assert "2 of the 3 shards" in capsys.readouterr().err
    assert run_main(*command, ":") == 0
    assert capsys.readouterr().out.endswith(f"All are built: `tttnn build-index --finish {output}` makes the index.\n")
    assert run_main("build-index", "--finish", output, "--device", "cpu") == 0
    assert capsys.readouterr().out.startswith("Indexed 10 rows of 10 documents in 3 shards, recall@10 ")
    assert {path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()} == expected
    assert run_main("build-index", "--finish", output) == 0
    assert run_main(*command, ":") == 0
    assert capsys.readouterr().out.count("Nothing to do: the index holds 10 rows of 10 documents in 3 shards") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "A corpus and `--output` are needed"),
        (["corpus"], "A corpus and `--output` are needed"),
        (["--finish", "x", "corpus"], "takes what it needs from its folder, and `source` was passed"),
        (["--finish", "x", "--shard-size", 4], "and `shard-size` was passed"),
        (["--finish", "x", "--preset", "scale"], "and `preset` was passed"),
        (["--finish", "x"], "'x' holds no index that is built by shards."),
        (["corpus", "--output", "x", "--shards", ":", "--push-to-hub", "a/b"], "Pass `--push-to-hub` with `--finish`"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_main("build-index", *words) == 1
    assert message in capsys.readouterr().err.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("value", ["3", "5:5", "7:2", "a:b", "-1:2", ""])
def test_what_is_no_range_of_shards_is_refused(value, capsys):
    with pytest.raises(SystemExit):
        run_main("build-index", "corpus", "--output", "x", f"--shards={value}")
    assert "is no range of shards. Pass for example 0:50" in capsys.readouterr().err


def test_an_index_of_another_corpus_is_not_overwritten(build, corpus, tmp_path, capsys):
    assert build(corpus) == 0
    (corpus / "more.txt").write_text("more")
    assert build(corpus) == 1
    assert f"'{tmp_path / 'built'}' is there already" in capsys.readouterr().err
    assert len(open_index(tmp_path / "built")) == 10


def test_files_of_a_folder_are_chosen_by_patterns(build, corpus, tmp_path):
    for name in ("a.py", "b.py", "tests/c.py", "d.md"):
        (corpus / name).parent.mkdir(exist_ok=True)
        (corpus / name).write_text(name)
    patterns = ["--include-files", "*.py", "--include-files", "7.*", "--exclude_files", "tests", "--exclude-files=b.*"]
    assert build(corpus, *patterns) == 0
    index = open_index(tmp_path / "built")
    assert [document.id for document in index.documents(range(len(index)))] == ["7.txt", "a.py"]


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
    assert build("user/corpus", "--split", "validation", "--dataset-revision", "v1", "--dataset-config", "de") == 0
    expected = {"path": "user/corpus", "name": "de", "split": "validation", "revision": "v1", "streaming": True}
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
        (lambda folder: write_rows(folder / "a.jsonl", TEXTS), ["--limit", "-1"], "limit"),
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
    assert not (tmp_path / "built" / MANIFEST).exists()


def test_an_index_is_not_overwritten(build, corpus, tmp_path, capsys):
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "precious").write_text("kept")
    assert build(corpus) == 1
    assert f"'{tmp_path / 'built'}' is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["precious"]


@pytest.mark.parametrize("place", ["a-file/index", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_told_as_one(place, corpus, embedder_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "a-file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    assert run_main("build-index", corpus, "--output", place, "--embedder", embedder_folder) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"tttnn build-index: error: The folder '{tmp_path / place}' cannot be written (")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "`--device` is 'cuda', but torch finds 0 devices of that kind here."),
        ("cpu:1", "`--device` is 'cpu:1', but torch finds 1 devices of that kind here."),
        ("gpu", "`--device` is 'gpu', which torch does not know."),
    ],
)
@pytest.mark.parametrize("command", ["build-index", "add", "import-tttlm"])
def test_a_device_that_is_not_there_is_told_before_the_work(
    command, device, message, corpus, index_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    words = {
        "build-index": [corpus, "--output", tmp_path / "built"],
        "add": [index_folder, corpus],
        "import-tttlm": ["--index-files", "a", "--data-files", "b", "--output", tmp_path / "built"],
    }
    assert run_main(command, *words[command], "--device", device) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tttnn {command}: error: {message} Pass ")


# --- add ---


def test_documents_are_added_behind_those_of_the_index(build, tmp_path, capsys):
    assert build(write_rows(tmp_path / "first.jsonl", TEXTS[:7]), "--shard-size", 5) == 0
    capsys.readouterr()
    more = write_rows(tmp_path / "more.jsonl", TEXTS[7:], "body")
    assert run_main("add", tmp_path / "built", more, "--text-column", "body", "--batch-size", 2) == 0
    output = capsys.readouterr()
    expected = f"Added 3 rows; the index holds 10 rows of 10 documents in 3 shards: {tmp_path / 'built'}\n"
    assert output.out == expected
    assert re.search(r"3/3 \[", output.err)
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
    assert not (tmp_path / "built" / MANIFEST).exists()


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
    assert pushed == [((str(tmp_path / "built"), "user/index"), {"private": True, "license": "mit"})]


@pytest.mark.parametrize("place", ["index", "deep/index", "."])
def test_an_index_inside_of_its_corpus_is_told_before_the_work(corpus, place, monkeypatch, capsys):
    before = sorted(corpus.rglob("*"))
    monkeypatch.chdir(corpus.parent)
    for source in ("corpus", "corpus/../corpus", corpus):
        assert run_main("build-index", source, "--output", corpus / place) == 1
        assert run_main("add", corpus / place, source) == 1
        output = capsys.readouterr().err
        assert output.count("would be inside the folder") == 2
    assert sorted(corpus.rglob("*")) == before


def test_an_index_beside_its_corpus_is_built(corpus, embedder_folder, tmp_path):
    beside = tmp_path / "corpus-index"  # which begins as the corpus does
    assert run_main("build-index", corpus, "--output", beside, "--embedder", embedder_folder) == 0
    assert (beside / MANIFEST).is_file()
