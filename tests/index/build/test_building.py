"""A build may be killed at any step, and ends with the files of one that was not; documents are added to it later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import faiss
import numpy as np
import pytest
from build_program import WordEmbedder, files_of, make_documents
from conftest import TEXTS

import tttnn.index.build.blocks
import tttnn.index.build.from_documents
import tttnn.index.build.unfinished
from tttnn import Document, Embedder
from tttnn.files import locked
from tttnn.index.build.from_documents import IndexSettings, add_documents, build_index, index_in_memory
from tttnn.index.build.save import write_index
from tttnn.index.build.unfinished import UnfinishedIndex
from tttnn.index.build.workspace import STATE, VIEWERS, WORK, work_file
from tttnn.index.manifest import MANIFEST, OFFSETS, SHARD_FILES, VECTORS, VIEWER, Storage, read_manifest
from tttnn.index.manifest import TEXTS as TEXTS_FILE
from tttnn.index.opening import open_index


PROGRAM = Path(__file__).parents[2] / "build_program.py"
KINDS = ["build flat", "add flat", "build scale", "add scale", "import", "shards flat", "shards scale"]
DOCUMENTS = make_documents(50)
MORE = make_documents(30, seed=1)
SETTINGS = IndexSettings(shard_size=20)


class Interrupt(Exception):
    """Stands for Ctrl-C."""


def interrupting(number, dimension=32):
    """An embedder that is interrupted at its block of that number, from 0."""
    embedder = WordEmbedder(dimension)

    def wait():
        nonlocal number
        number -= 1
        if number < 0:
            raise Interrupt

    embedder.wait = wait
    return embedder


@pytest.fixture
def folder(tmp_path):
    """Where an index is to be."""
    return tmp_path / "index"


@pytest.fixture
def interrupted(folder):
    """A build of `DOCUMENTS` of which one shard is finished and the second is under way."""
    with pytest.raises(Interrupt):
        build_index(DOCUMENTS, interrupting(1), folder, SETTINGS)
    return folder


@pytest.fixture
def under_way(folder, monkeypatch):
    """A build of `DOCUMENTS` in blocks of 7, of which one shard is finished and the second has a block."""
    monkeypatch.setattr(tttnn.index.build.blocks, "BLOCK_DOCUMENTS", 7)
    with pytest.raises(Interrupt):
        build_index(DOCUMENTS, interrupting(4), folder, SETTINGS)
    return folder


def whole(tmp_path, documents=DOCUMENTS, settings=SETTINGS, **options):
    """The files of an uninterrupted build."""
    build_index(documents, WordEmbedder(), tmp_path / "whole" / "index", settings, **options)
    return files_of(tmp_path / "whole" / "index")


def lose(path):
    path.unlink()


def empty(path):
    os.truncate(path, 0)


def zero(path):
    """What a machine leaves that lost its power: a file of the right size without its content."""
    path.write_bytes(bytes(path.stat().st_size))


def lose_a_key(path):
    path.write_text('{"shards": []}')


# --- killed at any step ---


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What builds did that were killed at each of their steps and started again."""
    folder = tmp_path_factory.mktemp("killed")
    result = subprocess.run(
        [sys.executable, PROGRAM, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_build_ends_with_the_files_of_an_uninterrupted_one_and_leaves_nothing_else(killed, kind):
    expected = killed[kind]["whole"]
    assert {name.split("/")[0] for name in expected["files"]} == {"index", ".index.lock"}
    # its last step removes the empty hidden folder: the index is there, and another import is told so
    last = str(len(expected["steps"]) - 1)
    assert expected["steps"][-1] == "rmdir .unfinished"
    for step, again in killed[kind]["killed"].items():
        if kind != "import" or step != last:
            assert again.get("files") == expected["files"], (expected["steps"][int(step)], again.get("error"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:4])
def test_what_is_embedded_is_not_embedded_again(killed, kind):
    # noted at the start, after each block of 25 rows, and at the end of each shard of 40 and of the corpus
    noted = [0, 0, 25, 40, 40, 65, 80, 80] + ([100, 100, 100] if kind.startswith("build") else [90, 90, 90])
    noted += 5 * noted[-1:] if "scale" in kind else []  # the preset, what was trained, and each of three shards
    expected = killed[kind]["whole"]
    assert expected["steps"].count("rename state.json.tmp") == len(noted) - 1
    for step, again in killed[kind]["killed"].items():
        before = expected["steps"][: int(step)]
        if step != str(len(expected["steps"]) - 1):
            num_rows = noted[before.count("rename state.json.tmp")]
            assert again["embedded"] == expected["embedded"][num_rows:], expected["steps"][int(step)]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["flat", "scale"])
def test_a_build_by_shards_ends_with_the_files_of_one_at_once(killed, preset):
    assert killed[f"shards {preset}"]["whole"]["files"] == killed[f"build {preset}"]["whole"]["files"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["flat", "scale"])
def test_a_kill_at_any_step_of_every_part_of_a_build_was_tried(killed, preset):
    steps = killed[f"build {preset}"]["whole"]["steps"]
    tried = " ".join(steps[int(step)] for step in killed[f"build {preset}"]["killed"])
    parts = ["embed", "shard-00000", "shard-00002", "state.json", "tttnn_index.json", "rename train-"]
    parts += ["write trained.faiss.tmp", "write shard-00000.faiss.tmp"] if preset == "scale" else []
    assert [part for part in parts if part not in tried] == []


@pytest.mark.slow
def test_a_second_build_into_the_same_folder_is_refused_while_the_first_is_under_way(killed):
    found = killed["two at once"]
    assert found["second"]["error"].startswith("StateError: Another process is writing")
    assert (found["first"], found["third"]) == (0, False), "the first left an index of the same corpus"


@pytest.mark.parametrize("call", [build_index, add_documents], ids=["build", "add"])
def test_a_folder_that_is_locked_is_not_touched(folder, call):
    build_index(DOCUMENTS, WordEmbedder(), folder)
    before = files_of(folder)
    with locked(folder), pytest.raises(RuntimeError, match="Another process is writing"):
        call(MORE, WordEmbedder(), folder)
    assert files_of(folder) == before


@pytest.mark.parametrize("batch_size", [4, 32])
def test_an_interrupted_build_with_a_transformer_ends_with_the_same_files(embedder, tmp_path, batch_size, monkeypatch):
    monkeypatch.setattr(tttnn.index.build.blocks, "BLOCK_DOCUMENTS", 5)
    documents = [Document(f"{row}", text * (1 + row % 3)) for row, text in enumerate(TEXTS * 3)]
    build_index(documents, Embedder(embedder), tmp_path / "whole", IndexSettings(shard_size=12), batch_size)
    interrupted, calls = Embedder(embedder), []

    def encode(*args, **options):
        calls.append(args)
        if len(calls) == 6:  # of the probe, three blocks of the first shard, and two of the second
            raise Interrupt
        return Embedder.encode_document(interrupted, *args, **options)

    monkeypatch.setattr(interrupted, "encode_document", encode)
    with pytest.raises(Interrupt):
        build_index(documents, interrupted, tmp_path / "index", IndexSettings(shard_size=12), batch_size)
    assert len(json.loads((tmp_path / "index" / WORK / STATE).read_text())["shards"]) == 1
    build_index(documents, Embedder(embedder), tmp_path / "index", IndexSettings(shard_size=12), batch_size)
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")


# --- what a build makes ---


def test_the_rows_of_all_shards_are_the_corpus_in_its_order(folder):
    embedder = WordEmbedder()
    assert build_index(DOCUMENTS, embedder, folder, SETTINGS)
    index = open_index(folder)
    assert [(shard.start, len(shard)) for shard in index.shards] == [(0, 20), (20, 20), (40, 10)]
    assert index.documents(range(50)) == DOCUMENTS
    stored = np.concatenate([shard.vectors.reconstruct_n(0, len(shard)) for shard in index.shards])
    np.testing.assert_array_equal(stored, embedder.encode_query([document.text for document in DOCUMENTS]))


def test_the_manifest_says_what_was_built(folder):
    build_index(iter(DOCUMENTS), WordEmbedder(), folder, SETTINGS, sources=["a/corpus", "b.jsonl"])
    manifest = read_manifest(folder)
    assert manifest.sources == ["a/corpus", "b.jsonl"]
    assert (manifest.num_rows, manifest.num_documents) == (50, 50)
    assert manifest.storage == Storage("flat", "Flat", {}, 20)
    assert (manifest.recall, manifest.passage_tokens) == (None, None)
    assert manifest.faiss_version == faiss.__version__
    assert manifest.embedder.name == "words of 32"


def test_a_corpus_of_whole_shards_has_no_empty_one(folder):
    build_index(DOCUMENTS[:40], WordEmbedder(), folder, SETTINGS)
    assert [shard.rows for shard in read_manifest(folder).shards] == [20, 20]


def test_a_stream_is_read_one_block_ahead_of_what_is_embedded(folder, monkeypatch):
    monkeypatch.setattr(tttnn.index.build.blocks, "BLOCK_DOCUMENTS", 7)
    read, ahead = [], []
    embedder = WordEmbedder(wait=lambda: ahead.append(len(read) - sizes[-1]))
    sizes, encode = [0], embedder.encode_document

    def noting(texts, *args, **options):
        vectors = encode(texts, *args, **options)
        sizes.append(len(embedder.documents))
        return vectors

    def stream():
        for document in DOCUMENTS:
            read.append(document)
            yield document

    embedder.encode_document = noting
    build_index(stream(), embedder, folder, SETTINGS)
    # shards of 20, 20 and 10 rows, each in blocks of 7
    assert ahead == [7, 7, 6, 7, 7, 6, 7, 3]


def long_documents():
    """Four documents, three of which have more than the 64 tokens that the embedder reads."""
    return [Document(f"{number}", "^" * number) for number in (10, 65, 200, 5000)]


@pytest.mark.parametrize("shard_size", [1, 100])
def test_a_build_and_an_addition_warn_once_of_the_share_of_documents_that_were_truncated(
    embedder, folder, shard_size, caplog
):
    build_index(long_documents(), Embedder(embedder), folder, IndexSettings(shard_size=shard_size))
    add_documents([Document("new", "^" * 65)], Embedder(embedder), folder)
    first, second = caplog.messages
    assert first.startswith("3 of 4 texts (75%) are longer than the 64 tokens") and "--passages" in first
    assert second.startswith("1 of 1 texts (100%)")


def test_an_index_in_memory_warns_of_truncated_documents_too(embedder, caplog):
    index_in_memory(long_documents(), Embedder(embedder))
    assert [message[:12] for message in caplog.messages] == ["3 of 4 texts"]


def test_passages_are_read_whole_and_give_no_warning(embedder, folder, caplog):
    build_index(long_documents(), Embedder(embedder), folder, IndexSettings(passage_tokens=64))
    assert caplog.messages == []


def test_the_documents_of_passages_are_counted(embedder, folder):
    documents = [Document(f"{row}", text) for row, text in enumerate(TEXTS)]
    build_index(documents, Embedder(embedder), folder, IndexSettings(shard_size=7, passage_tokens=16))
    manifest = read_manifest(folder)
    assert manifest.passage_tokens == 16
    assert manifest.num_documents == len(TEXTS) < manifest.num_rows
    index = open_index(folder)
    texts = {document.id: "" for document in documents}
    for passage in index.documents(range(len(index))):
        texts[passage.id] += passage.text
    assert list(texts.values()) == TEXTS


@pytest.mark.parametrize("value", ["a text", None, 0, [1]])
def test_documents_with_a_field_named_passage_are_counted_too(folder, value):
    build_index(
        [Document(f"{row}", text, {"passage": value}) for row, text in enumerate("abc")], WordEmbedder(), folder
    )
    assert read_manifest(folder).num_documents == 3


@pytest.mark.parametrize("target", [0, -1, 1.01])
def test_a_recall_that_is_no_share_is_refused(target):
    with pytest.raises(ValueError, match="`recall_target` is"):
        IndexSettings(recall_target=target)


def test_the_index_in_memory_finds_what_the_one_on_disk_finds(folder):
    embedder = WordEmbedder()
    build_index(DOCUMENTS, embedder, folder)
    queries = embedder.encode_query([document.text for document in MORE])
    in_memory = index_in_memory(DOCUMENTS, embedder)
    assert in_memory.search(queries, 50) == open_index(folder).search(queries, 50)
    assert in_memory.documents(range(50)) == DOCUMENTS


# --- again, or otherwise ---


@pytest.mark.parametrize("preset", ["flat", "ivf", "scale", "IVF2,SQ8"])
def test_the_same_corpus_is_not_embedded_again(folder, preset):
    settings = IndexSettings(preset, 20)
    assert build_index(DOCUMENTS, WordEmbedder(), folder, settings) is True
    before, times = files_of(folder), {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = WordEmbedder()
    assert build_index(iter(DOCUMENTS), again, folder, settings) is False
    assert again.documents == []
    assert files_of(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


@pytest.mark.parametrize("pattern", SHARD_FILES)
def test_an_index_that_is_not_whole_is_not_taken_for_built(folder, pattern):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    path = folder / pattern.format(1)
    for problem, damage in (("1 bytes", lambda path: os.truncate(path, 1)), ("is missing", lose)):
        damage(path)
        with pytest.raises(ValueError, match=f"{path}' .*{problem}.*To rebuild it, remove '{folder}'"):
            build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)


CHANGED = {
    "text": [Document("0/0", "other", {"topic": 0}), *DOCUMENTS[1:]],
    "id": [*DOCUMENTS[:-1], Document("other", DOCUMENTS[-1].text, DOCUMENTS[-1].metadata)],
    "metadata": [*DOCUMENTS[:-1], Document(DOCUMENTS[-1].id, DOCUMENTS[-1].text)],
    "order": DOCUMENTS[::-1],
    "more": [*DOCUMENTS, *MORE],
    "fewer": DOCUMENTS[:-1],
    "half": DOCUMENTS[:20],
}


@pytest.mark.parametrize("change", CHANGED)
def test_an_index_of_another_corpus_is_an_error_and_is_left_as_it_is(folder, change):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    before = files_of(folder.parent)
    with pytest.raises(FileExistsError, match="is there already"):
        build_index(CHANGED[change], WordEmbedder(), folder, SETTINGS)
    assert files_of(folder.parent) == before


@pytest.mark.parametrize(
    ("settings", "dimension"),
    [
        (IndexSettings("flat", 20), 32),
        (IndexSettings("scale", 20), 32),
        (IndexSettings("ivf", 25), 32),
        (IndexSettings("ivf", 20, recall_target=0.5), 32),
        (IndexSettings("ivf", 20), 16),
    ],
    ids=["preset", "factory", "shard_size", "recall_target", "embedder"],
)
def test_an_index_of_other_settings_is_an_error_and_is_left_as_it_is(folder, settings, dimension):
    build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings("ivf", 20))
    before = files_of(folder.parent)
    with pytest.raises(FileExistsError, match="is there already"):
        build_index(DOCUMENTS, WordEmbedder(dimension), folder, settings)
    assert files_of(folder.parent) == before


def test_an_exact_index_meets_every_target(folder):
    build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings(recall_target=0.5))
    assert build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings(recall_target=1.0)) is False


def test_a_folder_that_holds_something_else_is_an_error_and_is_left_as_it_is(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is there already"):
        build_index(DOCUMENTS, WordEmbedder(), folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_built_into(folder):
    folder.mkdir()
    assert build_index(DOCUMENTS, WordEmbedder(), folder) is True


@pytest.fixture
def to_be_named(folder, monkeypatch):
    """A build that lacks its manifest only."""
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(UnfinishedIndex, "finish", raise_interrupt)
        build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    return folder


@pytest.mark.parametrize("damage", [lose, empty, zero])
@pytest.mark.parametrize("pattern", [VECTORS, TEXTS_FILE, OFFSETS])
def test_a_build_that_lost_a_file_before_its_manifest_is_no_index(to_be_named, pattern, damage):
    damage(to_be_named / pattern.format(1))
    with pytest.raises(ValueError, match=rf"index' is damaged .*{Path(pattern.format(1)).name}'.* Remove "):
        build_index(DOCUMENTS, WordEmbedder(), to_be_named, SETTINGS)
    assert not (to_be_named / MANIFEST).exists()


def test_what_somebody_put_into_the_folder_of_a_build_stays(to_be_named):
    (to_be_named / "thesis.tex").write_text("years of work")
    (to_be_named / WORK / "mine.txt").write_text("mine")
    assert build_index(DOCUMENTS, WordEmbedder(), to_be_named, SETTINGS) is True
    assert (to_be_named / "thesis.tex").read_text() == "years of work"
    assert [(path.name, path.read_text()) for path in (to_be_named / WORK).iterdir()] == [("mine.txt", "mine")]
    assert len(open_index(to_be_named)) == 50


def test_a_file_under_the_name_of_one_for_viewers_is_not_overwritten(to_be_named):
    mine = to_be_named / VIEWER.format(1)
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="train-00001.parquet' is in the way"):
        build_index(DOCUMENTS, WordEmbedder(), to_be_named, SETTINGS)
    assert mine.read_text() == "mine"
    mine.unlink()
    assert build_index(DOCUMENTS, WordEmbedder(), to_be_named, SETTINGS) is True


# --- what `load_dataset` sees ---


def rows_of(folder, cache):
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache)).num_rows


def test_no_file_for_viewers_is_in_place_before_the_manifest_names_it(folder, monkeypatch, tmp_path):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(UnfinishedIndex, "finish", raise_interrupt)
        add_documents(MORE, WordEmbedder(), folder)
    assert rows_of(folder, tmp_path / "before") == 50
    assert len(open_index(folder, verify=True)) == 50
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(tttnn.index.build.unfinished, "settle", raise_interrupt)
        add_documents(MORE, WordEmbedder(), folder)
    assert rows_of(folder, tmp_path / "between") == 50
    assert len(open_index(folder, verify=True)) == 80
    assert add_documents(MORE, WordEmbedder(), folder) == 30
    assert rows_of(folder, tmp_path / "after") == 80


def test_a_build_under_way_is_no_data_set(to_be_named, tmp_path):
    with pytest.raises(datasets.exceptions.DataFilesNotFoundError):
        rows_of(to_be_named, tmp_path)


def test_how_a_data_set_is_read_may_be_set_by_its_owner(folder):
    build_index(DOCUMENTS, WordEmbedder(), folder)
    (folder / VIEWERS).write_text("mine")
    add_documents(MORE, WordEmbedder(), folder)
    assert (folder / VIEWERS).read_text() == "mine"


# --- a folder of somebody's own where the build would be ---


@pytest.mark.parametrize("documents", [MORE, []], ids=["documents", "no document"])
@pytest.mark.parametrize("name", ["mine.txt", "texts/mine.txt", TEXTS_FILE.format(0)])
def test_a_hidden_folder_that_is_no_build_is_an_error_and_is_left_as_it_is(folder, name, documents):
    mine = folder / WORK / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="index' is there already"):
        build_index(documents, WordEmbedder(), folder)
    assert files_of(folder.parent).keys() == {f"index/{WORK}/{name}", ".index.lock"}
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", [WORK, TEXTS_FILE.format(1), VECTORS.format(7), VIEWER.format(1)])
def test_nothing_is_added_where_another_file_has_a_name_of_the_build(folder, name):
    build_index(DOCUMENTS, WordEmbedder(), folder)
    (folder / name).write_text("mine")
    before = files_of(folder.parent)
    with pytest.raises(FileExistsError, match=f"{name}' is in the way"):
        add_documents(MORE, WordEmbedder(), folder)
    assert files_of(folder.parent) == before
    assert (folder / name).read_text() == "mine"


def test_a_kill_before_the_first_note_is_no_obstacle(folder):
    (folder / WORK).mkdir(parents=True)
    (folder / WORK / (STATE + ".tmp")).write_text("{")
    assert build_index(DOCUMENTS, WordEmbedder(), folder) is True
    assert not (folder / WORK).exists()


# --- an interrupted build ---


def test_an_interrupted_build_goes_on_from_its_last_finished_shard(interrupted, tmp_path):
    assert not (interrupted / MANIFEST).exists()
    again = WordEmbedder()
    assert build_index(DOCUMENTS, again, interrupted, SETTINGS) is True
    assert again.documents == [document.text for document in DOCUMENTS[20:]]
    assert files_of(interrupted) == whole(tmp_path)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_an_interrupted_build_goes_on_inside_a_shard(folder, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(tttnn.index.build.blocks, "BLOCK_DOCUMENTS", 7)
    with pytest.raises(Interrupt):
        build_index(DOCUMENTS, interrupting(blocks), folder, SETTINGS)
    again = WordEmbedder()
    assert build_index(DOCUMENTS, again, folder, SETTINGS) is True
    # blocks of 7, 7, 6 rows in a shard of 20
    assert again.documents == [document.text for document in DOCUMENTS[{1: 7, 2: 14, 4: 27}[blocks] :]]
    assert files_of(folder) == whole(tmp_path)


def test_a_build_does_not_go_on_inside_a_shard_with_another_corpus(folder, monkeypatch):
    monkeypatch.setattr(tttnn.index.build.blocks, "BLOCK_DOCUMENTS", 7)
    with pytest.raises(Interrupt):
        build_index(DOCUMENTS, interrupting(4), folder, SETTINGS)
    other = [*DOCUMENTS[:26], Document("other", "text"), *DOCUMENTS[27:]]
    for documents in (other, DOCUMENTS[:26]):
        with pytest.raises(ValueError, match="not that of the interrupted build .* up to row 27 they differ"):
            build_index(documents, WordEmbedder(), folder, SETTINGS)


def unfinished_files(number):
    return [f"{WORK}/{Path(pattern.format(number)).name}" for pattern in (VECTORS, VIEWER)]


@pytest.mark.parametrize("damage", [lose, empty, zero])
@pytest.mark.parametrize(
    "name",
    [TEXTS_FILE.format(0), OFFSETS.format(0), *unfinished_files(0), TEXTS_FILE.format(1), unfinished_files(1)[0]],
)
def test_files_that_the_disk_lost_are_missed(under_way, name, damage):
    damage(under_way / name)
    with pytest.raises(ValueError, match="index' is damaged .*Remove .* and start again") as refused:
        build_index(DOCUMENTS, WordEmbedder(), under_way, SETTINGS)
    assert Path(name).name in str(refused.value)


def test_files_of_an_adding_that_the_disk_lost_are_missed_and_the_index_stays(folder, tmp_path):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    with pytest.raises(Interrupt):
        add_documents(MORE, interrupting(1), folder)
    zero(work_file(folder, VECTORS, 3))
    with pytest.raises(ValueError, match="shard-00003.faiss' is not what was written.*if documents were being added"):
        add_documents(MORE, WordEmbedder(), folder)
    assert len(open_index(folder, verify=True)) == 50


@pytest.mark.parametrize("preset", ["ivf", "scale"])
@pytest.mark.parametrize("name", ["shard-00000.faiss", "trained.faiss"])
def test_damaged_vectors_are_not_converted(folder, preset, name, monkeypatch):
    settings = IndexSettings(preset, 20)
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(tttnn.index.build.unfinished, "converted", raise_interrupt)
        build_index(DOCUMENTS, WordEmbedder(), folder, settings)
    zero(folder / WORK / name)
    with pytest.raises(ValueError, match=f"{name}' is not what was written"):
        build_index(DOCUMENTS, WordEmbedder(), folder, settings)
    assert not (folder / MANIFEST).exists()


def test_damaged_files_that_were_converted_are_not_named_by_a_manifest(folder, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(tttnn.index.build.unfinished, "measure", raise_interrupt)
        build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings("scale", 20))
    zero(folder / VECTORS.format(1))
    with pytest.raises(ValueError, match=f"{VECTORS.format(1)}' is not what was written"):
        build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings("scale", 20))


@pytest.mark.parametrize("damage", [empty, lose_a_key])
def test_a_damaged_state_is_an_error_that_says_what_to_remove(under_way, damage):
    damage(under_way / WORK / STATE)
    with pytest.raises(ValueError, match="index' is damaged .*Remove .* and start again"):
        build_index(DOCUMENTS, WordEmbedder(), under_way, SETTINGS)


def test_a_build_that_lost_its_state_is_not_taken_for_one(under_way):
    (under_way / WORK / STATE).unlink()
    with pytest.raises(FileExistsError, match="index' is there already"):
        build_index(DOCUMENTS, WordEmbedder(), under_way, SETTINGS)


def test_what_a_state_names_is_on_disk_before_it_and_the_manifest_comes_last(folder, monkeypatch):
    """Each file that was written since the last note is synced, then its folder, then the state that names it."""
    synced, written = [], []
    real, write = tttnn.files.sync, tttnn.files.write_json
    for module in ("files", "index.vectors", "index.build.writers", "index.build.workspace", "index.build.unfinished"):
        monkeypatch.setattr(f"tttnn.{module}.sync", lambda path: (real(path), synced.append(path)))

    def noting(path, content, *place):
        written.append((path.name, [*synced]))
        write(path, content, *place)

    monkeypatch.setattr(tttnn.index.build.unfinished, "write_json", noting)
    build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings("ivf", 50))
    assert [name for name, _ in written].count(MANIFEST) == 1 and written[-1][0] == MANIFEST
    files = [folder / name for name in read_manifest(folder).files if not name.startswith(("data", "index"))]
    files += [work_file(folder, VIEWER, 0), folder / WORK / "shard-00000.faiss.tmp"]
    before = written[-1][1]
    for path in files:
        parent = folder / "index" if path.suffix == ".tmp" else path.parent
        assert path in before and parent in before[before.index(path) :], path
    assert folder in synced[synced.index(folder / WORK / (MANIFEST + ".tmp")) :]


def test_a_shard_has_as_many_rows_as_half_a_gibibyte_holds(folder, monkeypatch):
    monkeypatch.setattr("tttnn.index.vectors.MAX_SHARD_BYTES", 2000)  # for the 512 MiB
    build_index(DOCUMENTS, WordEmbedder(), folder)
    manifest = read_manifest(folder)
    assert manifest.storage.shard_size == 15  # of 4 * 32 bytes
    assert [shard.rows for shard in manifest.shards] == [15, 15, 15, 5]


def test_an_index_of_any_shard_size_will_do_where_none_is_asked_for(folder):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    assert build_index(DOCUMENTS, WordEmbedder(), folder) is False


@pytest.mark.parametrize(
    ("settings", "dimension", "name"),
    [
        (IndexSettings(shard_size=10), 32, "shard_size"),
        (IndexSettings(), 32, "shard_size"),
        (IndexSettings(shard_size=20, passage_tokens=3), 32, "passage_tokens"),
        (IndexSettings(shard_size=20), 16, "embedder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_interrupted_build_does_not_go_on_with_other_settings(interrupted, settings, dimension, name, tmp_path):
    with pytest.raises(ValueError, match=rf"an interrupted build with other settings \({name}\)"):
        build_index(DOCUMENTS, WordEmbedder(dimension), interrupted, settings)
    build_index(DOCUMENTS, WordEmbedder(), interrupted, SETTINGS)
    assert files_of(interrupted) == whole(tmp_path)


def test_a_build_that_has_embedded_nothing_takes_other_settings(folder, tmp_path):
    with pytest.raises(Interrupt):
        build_index(DOCUMENTS, interrupting(0), folder, IndexSettings(shard_size=7))
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    assert files_of(folder) == whole(tmp_path)


def test_an_interrupted_build_may_be_stored_otherwise_than_it_was_begun(interrupted, tmp_path):
    settings, again = IndexSettings("scale", 20, recall_target=0.5), WordEmbedder()
    build_index(DOCUMENTS, again, interrupted, settings)
    assert again.documents == [document.text for document in DOCUMENTS[20:]]
    assert files_of(interrupted) == whole(tmp_path, settings=settings)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("trained_for", "ivf", "scale"),
        ("measure", "ivf", "scale"),
        ("measure", "scale", "flat"),
        ("Manifest", "ivf", "scale"),
        ("Manifest", "scale", "flat"),
        ("Manifest", "flat", "ivf"),
    ],
)
def test_what_was_made_for_an_earlier_preset_is_dropped(folder, name, first, second, monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        if name == "Manifest":
            patch.setattr(tttnn.index.build.from_documents, "Manifest", NoManifest)
        else:
            patch.setattr(tttnn.index.build.unfinished, name, raise_interrupt)
        build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings(first, 20))
    again, settings = WordEmbedder(), IndexSettings(second, 20)
    build_index(DOCUMENTS, again, folder, settings)
    assert again.documents == []
    assert files_of(folder) == whole(tmp_path, settings=settings)


@pytest.mark.parametrize("change", ["text", "order", "fewer rows than are finished"])
def test_an_interrupted_build_does_not_go_on_with_another_corpus(interrupted, change, tmp_path):
    with pytest.raises(ValueError, match="not that of the interrupted build .* up to row 20 they differ"):
        build_index(CHANGED.get(change, DOCUMENTS[:15]), WordEmbedder(), interrupted, SETTINGS)
    build_index(DOCUMENTS, WordEmbedder(), interrupted, SETTINGS)
    assert files_of(interrupted) == whole(tmp_path)


@pytest.mark.parametrize("change", ["more", "half"])
def test_what_comes_after_the_finished_shards_may_be_another_corpus(interrupted, change, tmp_path):
    build_index(CHANGED[change], WordEmbedder(), interrupted, SETTINGS)
    assert files_of(interrupted) == whole(tmp_path, CHANGED[change])


@pytest.mark.parametrize("preset", ["flat", "ivf"])
@pytest.mark.parametrize("number", [40, 50], ids=["full", "not full"])
def test_a_corpus_that_grew_after_its_end_was_embedded_is_an_error(folder, preset, number, monkeypatch, tmp_path):
    settings = IndexSettings(preset, 20)
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(tttnn.index.build.from_documents, "Manifest", NoManifest)
        build_index(DOCUMENTS[:number], WordEmbedder(), folder, settings)
    with pytest.raises(ValueError, match=f"that one had {number} rows, and this one has more"):
        build_index([*DOCUMENTS[:number], *MORE], WordEmbedder(), folder, settings)
    build_index(DOCUMENTS[:number], WordEmbedder(), folder, settings)
    assert files_of(folder) == whole(tmp_path, DOCUMENTS[:number], settings)


def raise_interrupt(*_args, **_options):
    raise Interrupt


class NoManifest:
    """Stands for a kill just before the manifest is written."""

    of = staticmethod(raise_interrupt)


# --- more documents ---


@pytest.mark.parametrize("preset", ["flat", "ivf", "scale", "IVF2,SQ8", "PCA8,Flat"])
def test_added_documents_get_the_next_rows_and_the_files_of_the_others_stay(folder, preset):
    build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings(preset, 20), sources=["first"])
    before, old = files_of(folder), read_manifest(folder)
    embedder = WordEmbedder()
    assert add_documents(iter(MORE), embedder, folder, sources=["second"]) == 30
    assert embedder.documents == [document.text for document in MORE]
    after, new = files_of(folder), read_manifest(folder)
    assert {name: after[name] for name in before if name != MANIFEST} == {
        name: digest for name, digest in before.items() if name != MANIFEST
    }
    index = open_index(folder)
    assert [(shard.start, len(shard)) for shard in index.shards] == [(0, 20), (20, 20), (40, 10), (50, 20), (70, 10)]
    assert index.documents(range(80)) == [*DOCUMENTS, *MORE]
    assert (new.num_rows, new.num_documents, new.sources) == (80, 80, ["first", "second"])
    assert (new.embedder, new.storage, new.recall) == (old.embedder, old.storage, old.recall)
    assert new.corpus_digest != old.corpus_digest
    assert [*folder.parent.glob("index*")] == [folder]


@pytest.mark.parametrize("preset", ["flat", "ivf", "scale"])
def test_added_documents_are_found(folder, preset):
    embedder = WordEmbedder()
    build_index(DOCUMENTS, embedder, folder, IndexSettings(preset, 20))
    add_documents(MORE, embedder, folder)
    index = open_index(folder)
    index.set_search({"nprobe": 50, "k_factor": 10})
    queries = embedder.encode_query([document.text for document in MORE])
    assert [pairs[0][1] for pairs in index.search(queries, 1)] == list(range(50, 80))


@pytest.mark.parametrize("preset", ["ivf", "scale"])
def test_added_shards_are_divided_by_the_centroids_of_the_others(folder, preset):
    build_index(make_documents(200), WordEmbedder(), folder, IndexSettings(preset, 100))
    add_documents(MORE, WordEmbedder(), folder)
    found = []
    for number in range(3):
        index = faiss.read_index(str(folder / VECTORS.format(number)))  # to which the lists belong
        lists = faiss.try_extract_index_ivf(index)
        assert lists.nlist > 1
        found.append(lists.quantizer.reconstruct_n(0, lists.nlist))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.parametrize("preset", ["flat", "scale"])
def test_documents_may_be_added_again_and_again(folder, preset):
    build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings(preset, 20))
    for row in range(3):
        assert add_documents(MORE[row : row + 1], WordEmbedder(), folder) == 1
    assert open_index(folder).documents([50, 51, 52]) == MORE[:3]


def test_added_documents_are_cut_into_passages_as_the_others_were(embedder, folder):
    build_index([Document("0", TEXTS[0])], Embedder(embedder), folder, IndexSettings(passage_tokens=16))
    rows = len(open_index(folder))
    added = add_documents([Document("1", TEXTS[4])], Embedder(embedder), folder)
    index = open_index(folder)
    assert added > 1 and len(index) == rows + added
    passages = index.documents(range(rows, rows + added))
    assert "".join(passage.text for passage in passages) == TEXTS[4]
    assert [(passage.id, passage.metadata["passage"]) for passage in passages] == [("1", n) for n in range(added)]
    assert read_manifest(folder).num_documents == 2


@pytest.mark.parametrize("preset", ["flat", "ivf", "scale"])
def test_adding_goes_on_from_its_last_finished_shard(folder, preset, tmp_path):
    for path in (folder, tmp_path / "whole"):
        build_index(DOCUMENTS, WordEmbedder(), path, IndexSettings(preset, 20))
    before = files_of(folder)
    with pytest.raises(Interrupt):
        add_documents(MORE, interrupting(1), folder)
    assert before.items() <= files_of(folder).items(), "the files of the index stay"
    assert len(open_index(folder, verify=True)) == 50
    embedder = WordEmbedder()
    assert add_documents(MORE, embedder, folder) == 30
    assert embedder.documents == [document.text for document in MORE[20:]]
    add_documents(MORE, WordEmbedder(), tmp_path / "whole")
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_an_interrupted_adding_does_not_go_on_with_other_documents(folder):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    with pytest.raises(Interrupt):
        add_documents(MORE, interrupting(1), folder)
    before = files_of(folder)
    with pytest.raises(ValueError, match="not that of the interrupted build"):
        add_documents(MORE[::-1], WordEmbedder(), folder)
    assert files_of(folder) == before


@pytest.fixture
def interrupted_at(folder, monkeypatch):
    """Add documents, interrupted before the manifest or just after it."""

    def interrupted_at(place, documents):
        build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
        with monkeypatch.context() as patch, pytest.raises(Interrupt):
            if place == "before":
                patch.setattr(UnfinishedIndex, "finish", raise_interrupt)
            else:
                patch.setattr(tttnn.index.build.unfinished, "settle", raise_interrupt)
            add_documents(documents, WordEmbedder(), folder)

    return interrupted_at


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_adding_that_was_interrupted_at_its_manifest_embeds_nothing(folder, place, interrupted_at):
    interrupted_at(place, MORE)
    embedder = WordEmbedder()
    assert add_documents(MORE, embedder, folder) == 30
    assert embedder.documents == []
    assert len(open_index(folder, verify=True)) == 80
    assert not (folder / WORK).exists()


def test_an_adding_that_was_interrupted_after_its_manifest_is_ended_and_other_documents_wait(folder, interrupted_at):
    interrupted_at("after", MORE)
    with pytest.raises(ValueError, match="had added 30 rows .* other or more documents. Start again"):
        add_documents(DOCUMENTS[:1], WordEmbedder(), folder)
    assert open_index(folder).documents(range(50, 80)) == MORE
    assert add_documents(DOCUMENTS[:1], WordEmbedder(), folder) == 1


def test_an_adding_that_was_interrupted_after_its_manifest_says_what_is_not_added_yet(folder, interrupted_at):
    interrupted_at("after", MORE[:25])
    with pytest.raises(ValueError, match="had added 25 rows .* Start again with those that are not in the index yet"):
        add_documents(MORE, WordEmbedder(), folder)
    assert add_documents(MORE[25:], WordEmbedder(), folder) == 5
    assert open_index(folder).documents(range(50, 80)) == MORE


def test_an_adding_that_was_interrupted_before_its_manifest_waits_for_its_documents(folder, interrupted_at):
    interrupted_at("before", MORE[:25])
    with pytest.raises(ValueError, match="not that of the interrupted build .* up to row 20 they differ"):
        add_documents(DOCUMENTS[:1], WordEmbedder(), folder)
    with pytest.raises(ValueError, match="that one had 25 rows, and this one has more"):
        add_documents(MORE, WordEmbedder(), folder)
    assert len(open_index(folder)) == 50
    assert add_documents(MORE[:25], WordEmbedder(), folder) == 25


@pytest.mark.parametrize("preset", ["flat", "ivf"])
def test_documents_that_were_added_last_are_not_added_again(folder, preset):
    build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings(preset, 20))
    assert add_documents(MORE, WordEmbedder(), folder) == 30
    before = files_of(folder.parent)
    assert add_documents(iter(MORE), WordEmbedder(), folder) == 0
    assert files_of(folder.parent) == before


@pytest.mark.parametrize("change", [slice(0, 20), slice(20, 29), slice(None, None, -1)], ids=str)
def test_part_of_the_documents_that_were_added_last_is_added(folder, change):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    add_documents(MORE, WordEmbedder(), folder)
    assert add_documents(MORE[change], WordEmbedder(), folder) == len(MORE[change])
    assert open_index(folder).documents(range(80, 80 + len(MORE[change]))) == MORE[change]


def test_documents_that_were_added_before_the_last_are_added(folder):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    for documents in (MORE[:20], MORE[20:], MORE[:20]):
        assert add_documents(documents, WordEmbedder(), folder) == len(documents)


def test_documents_added_to_an_index_from_memory_share_a_shard(folder):
    write_index(index_in_memory(DOCUMENTS[:3], WordEmbedder()), folder)
    add_documents(MORE, WordEmbedder(), folder)
    assert [shard.rows for shard in read_manifest(folder).shards] == [3, 30]


def test_another_embedder_cannot_add(folder):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    before = files_of(folder.parent)
    with pytest.raises(ValueError, match="Pass the embedder that built it"):
        add_documents(MORE, WordEmbedder(16), folder)
    assert files_of(folder.parent) == before


def test_adding_nothing_is_an_error_and_changes_nothing(folder):
    build_index(DOCUMENTS, WordEmbedder(), folder, SETTINGS)
    before = files_of(folder.parent)
    with pytest.raises(ValueError, match="The corpus holds no document"):
        add_documents([], WordEmbedder(), folder)
    assert files_of(folder.parent) == before


def test_there_must_be_an_index_to_add_to(folder):
    with pytest.raises(FileNotFoundError, match="holds no `tttnn_index.json`"):
        add_documents(MORE, WordEmbedder(), folder)
    assert [*folder.parent.glob("index*")] == []


def test_a_damaged_first_shard_is_not_built_on(folder):
    build_index(DOCUMENTS, WordEmbedder(), folder, IndexSettings("ivf", 20))
    path = folder / VECTORS.format(0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        add_documents(MORE, WordEmbedder(), folder)


@pytest.mark.parametrize("factory", ["LSH", "IDMap,Flat", "IVF4,No", "PQ7x8"])
def test_a_factory_that_cannot_serve_is_told_before_anything_is_embedded(factory, tmp_path, monkeypatch):
    embedder = WordEmbedder()
    monkeypatch.setattr(embedder, "encode_document", lambda *args, **named: pytest.fail("embedded"))
    monkeypatch.setattr(embedder, "describe", lambda: {})
    with pytest.raises(ValueError, match="Choose another"):
        build_index(iter(DOCUMENTS), embedder, tmp_path / "index", IndexSettings(factory))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("passage_tokens", [None, 4])
def test_a_build_shows_its_progress_batch_by_batch_with_a_total(embedder, tmp_path, capsys, passage_tokens):
    documents = [Document(str(number), text) for number, text in enumerate(TEXTS)]
    settings = IndexSettings(passage_tokens=passage_tokens)
    bars = []

    class Bar(tttnn.index.build.from_documents.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.steps = []
            bars.append(self)

        def update(self, n=1):
            self.steps.append(n)
            super().update(n)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tttnn.index.build.from_documents, "tqdm", Bar)
        build_index(documents, Embedder(embedder), tmp_path / "index", settings, 4, show_progress_bar=True)
    (bar,) = bars
    num_rows = read_manifest(tmp_path / "index").num_rows
    assert bar.total == bar.n == num_rows
    assert max(bar.steps) == 4


def test_a_build_tells_how_many_texts_were_truncated(embedder, tmp_path, caplog):
    documents = [Document("long", "whale " * 200), Document("short", "whale")]
    build_index(documents, Embedder(embedder), tmp_path / "index")
    assert "1 of 2 texts (50%) are longer than the 64 tokens" in caplog.text
    assert "`--passages`" in caplog.text
    caplog.clear()
    build_index(documents, Embedder(embedder), tmp_path / "passages", IndexSettings(passage_tokens=32))
    assert "longer" not in caplog.text
