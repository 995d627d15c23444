"""Several processes build an index in one folder, with the files of one process, whoever dies and whoever is late."""

import json
import os
import signal
import time
from contextlib import contextmanager

import pytest
from build_program import WordEmbedder, files_of, make_documents, write_corpus

import tttnn.index.build.blocks
import tttnn.index.build.by_shards
import tttnn.index.build.plan
from tttnn import Embedder
from tttnn.documents import Corpus
from tttnn.files import try_lock
from tttnn.index.build.by_shards import build_shards, finish_index
from tttnn.index.build.from_documents import IndexSettings, build_index
from tttnn.index.build.unfinished import UnfinishedIndex
from tttnn.index.build.workspace import WORK
from tttnn.index.manifest import read_manifest


SETTINGS = IndexSettings(shard_size=20)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tttnn.index.build.blocks, "BLOCK_DOCUMENTS", 7)
    monkeypatch.setattr(tttnn.index.build.plan, "PLACED_DOCUMENTS", 3)


@pytest.fixture
def corpus(tmp_path):
    """Fifty documents: shards of 20, 20 and 10."""
    return write_corpus(tmp_path / "corpus.jsonl", make_documents(50))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shared" / "index"


def whole(tmp_path, corpus, settings=SETTINGS, embedder=None):
    """The files of one process."""
    build_index(corpus, embedder or WordEmbedder(), tmp_path / "whole" / "index", settings, sources=["c"])
    return files_of(tmp_path / "whole")


def build(folder, corpus, *numbers, settings=SETTINGS, embedder=None):
    shards = slice(numbers[0], numbers[0] + 1) if numbers else slice(None)
    return build_shards(corpus, embedder or WordEmbedder(), folder, settings, shards, sources=["c"])


class Died(Exception):
    """Stands for the end of a process."""


def dying(block):
    """An embedder whose process dies at its block of that number, from 0."""
    embedder = WordEmbedder()

    def wait():
        nonlocal block
        block -= 1
        if block < 0:
            raise Died

    embedder.wait = wait
    return embedder


@pytest.mark.parametrize("preset", ["flat", "ivf", "scale", "IVF2,SQ8"])
def test_shards_in_any_order_make_the_index_of_one_process(tmp_path, folder, corpus, preset, monkeypatch):
    settings = IndexSettings(preset, 20)
    assert build(folder, corpus, 2, settings=settings) == ([2], [0, 1], 3)
    assert not (folder / "tttnn_index.json").exists()
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert build(folder, corpus, settings=settings) == ([0, 1], [], 3)
    assert finish_index(folder, WordEmbedder()) is True
    assert files_of(folder.parent) == whole(tmp_path, corpus, settings)
    assert finish_index(folder) is False
    assert build(folder, corpus, settings=settings) == ([], [], 0)


@pytest.mark.parametrize("tokens", [5, 60])
def test_shards_of_passages_begin_inside_of_documents(tmp_path, folder, embedder, tokens):
    documents = [document for document in make_documents(9)]
    corpus = write_corpus(tmp_path / "corpus.jsonl", documents)
    settings, embedder = IndexSettings(shard_size=4, passage_tokens=tokens), Embedder(embedder)
    num_shards = build(folder, corpus, 1, settings=settings, embedder=embedder).num_shards
    assert num_shards >= 3
    build(folder, corpus, settings=settings, embedder=embedder)
    finish_index(folder)
    assert files_of(folder.parent) == whole(tmp_path, corpus, settings, embedder)
    assert read_manifest(folder).num_documents == 9


def test_a_corpus_of_several_files_with_a_limit_is_divided(tmp_path, folder):
    (tmp_path / "files").mkdir()
    for number in range(4):
        write_corpus(tmp_path / "files" / f"{number}.jsonl", make_documents(9, seed=number))
    (tmp_path / "files" / "note.txt").write_text("one text more")
    corpus = Corpus(tmp_path / "files", limit=35)
    assert build(folder, corpus, settings=IndexSettings(shard_size=10)) == ([0, 1, 2, 3], [], 4)
    finish_index(folder)
    assert files_of(folder.parent) == whole(tmp_path, corpus, IndexSettings(shard_size=10))


def test_a_process_that_died_leaves_its_shards_to_the_next_call_which_resumes_inside(tmp_path, folder, corpus):
    with pytest.raises(Died):
        build(folder, corpus, embedder=dying(5))  # shard 0 has three blocks; shard 1 has two
    embedder = WordEmbedder()
    assert build(folder, corpus, embedder=embedder) == ([1, 2], [], 3)
    assert embedder.documents == [document.text for document in corpus][34:]
    finish_index(folder)
    assert files_of(folder.parent) == whole(tmp_path, corpus)


def test_another_machine_builds_the_shard_of_one_that_died_from_its_beginning(tmp_path, folder, corpus, monkeypatch):
    with pytest.raises(Died):
        build(folder, corpus, embedder=dying(5))
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    embedder = WordEmbedder()
    assert build(folder, corpus, embedder=embedder) == ([1, 2], [], 3)
    assert embedder.documents == [document.text for document in corpus][20:]
    finish_index(folder)
    assert files_of(folder.parent) == whole(tmp_path, corpus)  # and what the other left is gone


def test_a_shard_that_another_process_is_at_is_left_to_it(folder, corpus):
    build(folder, corpus, 0)
    with try_lock(folder / WORK / "shard-00001.lock") as is_held:
        assert is_held
        assert build(folder, corpus) == ([2], [1], 3)
    assert build(folder, corpus) == ([1], [], 3)


def test_two_at_one_shard_do_no_harm_where_a_file_system_shares_no_locks(tmp_path, folder, corpus, monkeypatch):
    """While machine a embeds the second block of a shard, machine b builds the whole shard."""

    @contextmanager
    def unshared(path, *, wait=False):
        yield True

    monkeypatch.setattr(tttnn.index.build.by_shards, "try_lock", unshared)
    host, calls = ["a"], []
    monkeypatch.setattr("socket.gethostname", lambda: host[0])

    def build_by_another():
        calls.append(host[0])
        if calls == ["a", "a"]:
            host[0] = "b"
            assert build(folder, corpus, 0) == ([0], [1, 2], 3)
            host[0] = "a"

    assert build(folder, corpus, embedder=WordEmbedder(wait=build_by_another)) == ([1, 2], [], 3)
    assert calls[:6] == ["a", "a", "a", "a", "a", "a"]
    finish_index(folder)
    assert files_of(folder.parent) == whole(tmp_path, corpus)


def forked(action):
    """Begin an action in another process."""
    process = os.fork()
    if process == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return process


def test_two_processes_at_all_shards_and_a_third_that_is_killed_make_the_index_of_one(tmp_path, folder, corpus):
    settings = IndexSettings("scale", 5)
    began, go_on = os.pipe(), os.pipe()

    def wait():
        os.write(began[1], b".")
        os.read(go_on[0], 1)

    killed = forked(lambda: build(folder, corpus, settings=settings, embedder=WordEmbedder(wait=wait)))
    assert os.read(began[0], 1) == b"."  # it holds shard 0
    slowly = {"embedder": WordEmbedder(wait=lambda: time.sleep(0.002))}
    both = [forked(lambda: build(folder, corpus, settings=settings, **slowly)) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in both] == [0, 0]
    assert [number for number in range(10) if not (folder / WORK / f"{number:05}").is_dir()] == [0]
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert build(folder, corpus, settings=settings) == ([0], [], 10)
    both = [forked(lambda: finish_index(folder, WordEmbedder())) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in both] == [0, 0]
    assert files_of(folder.parent) == whole(tmp_path, corpus, settings)


def test_a_finish_that_died_is_resumed_without_training_or_converting_again(tmp_path, folder, corpus, monkeypatch):
    settings = IndexSettings("scale", 20)
    build(folder, corpus, settings=settings)
    original, converted = UnfinishedIndex.convert, []

    def convert(self, place):
        if place == 1 and not converted[:2] == [0, 1]:
            converted.append(1)
            raise Died
        converted.append(place)
        return original(self, place)

    monkeypatch.setattr(UnfinishedIndex, "convert", convert)
    with pytest.raises(Died):
        finish_index(folder, WordEmbedder())
    monkeypatch.setattr("tttnn.index.build.unfinished.trained_for", None)  # a call would fail
    assert finish_index(folder, WordEmbedder())
    assert converted == [0, 1, 1, 2]
    monkeypatch.undo()
    assert files_of(folder.parent) == whole(tmp_path, corpus, settings)


def test_shards_that_are_missing_are_named(folder, corpus):
    build(folder, corpus, 1)
    with pytest.raises(RuntimeError, match=r"2 of the 3 shards of '.*' are not built: 0, 2\. Build them first"):
        finish_index(folder)


def test_a_folder_without_a_build_is_not_finished(folder):
    with pytest.raises(FileNotFoundError, match="holds no index that is built by shards"):
        finish_index(folder)
    assert not folder.parent.exists()


def test_a_range_past_the_end_builds_what_there_is(folder, corpus):
    assert build_shards(corpus, WordEmbedder(), folder, SETTINGS, slice(2, 50)) == ([2], [0, 1], 3)
    assert build_shards(corpus, WordEmbedder(), folder, SETTINGS, slice(60, 70)) == ([], [0, 1], 3)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (IndexSettings(shard_size=10), "shard_size"),
        (IndexSettings("scale", 20), "preset"),
        (IndexSettings(shard_size=20, recall_target=0.5), "recall_target"),
    ],
)
def test_a_call_with_other_settings_is_refused(folder, corpus, settings, name):
    build(folder, corpus, 0)
    with pytest.raises(ValueError, match=rf"being built with other settings \({name}\)"):
        build(folder, corpus, settings=settings)
    with pytest.raises(ValueError, match=r"being built with other settings \(embedder\)"):
        build(folder, corpus, embedder=WordEmbedder(16))


def test_a_call_with_another_corpus_is_refused(tmp_path, folder, corpus):
    build(folder, corpus, 0)
    with pytest.raises(ValueError, match=r"being built of another corpus \(limit differ\)"):
        build(folder, Corpus(tmp_path / "corpus.jsonl", limit=30))
    write_corpus(tmp_path / "corpus.jsonl", make_documents(51))
    with pytest.raises(ValueError, match=r"being built of another corpus \(files, contents differ\)"):
        build(folder, corpus)


def test_a_shard_for_which_the_corpus_has_too_few_rows_is_not_built(tmp_path, folder, corpus, monkeypatch):
    monkeypatch.setattr("tttnn.documents.sources.SAMPLE_BYTES", 0)  # as in the middle of a larger file
    build(folder, corpus, 0)
    path = tmp_path / "corpus.jsonl"
    content = path.read_bytes().rstrip().rsplit(b"\n", 1)[0] + b"\n"
    path.write_bytes(content + b"\n" * (path.stat().st_size - len(content)))  # as long as before
    with pytest.raises(ValueError, match="Shard 2 has 10 rows by the plan of the build, and the corpus gave 9"):
        build(folder, corpus)
    with pytest.raises(RuntimeError, match="1 of the 3 shards .* are not built: 2"):
        finish_index(folder)


def test_a_corpus_without_documents_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="The corpus holds no document"):
        build(folder, Corpus(tmp_path / "empty"))


def test_builds_by_shards_and_by_one_process_do_not_mix(folder, corpus, tmp_path):
    build(folder, corpus, 0)
    with pytest.raises(FileExistsError, match="is being built by shards"):
        build_index(corpus, WordEmbedder(), folder, SETTINGS)
    with pytest.raises(Died):
        build_index(corpus, dying(1), tmp_path / "one", SETTINGS)
    with pytest.raises(FileExistsError, match="holds an interrupted build of one process"):
        build(tmp_path / "one", corpus)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is there already"):
        build(tmp_path / "mine", corpus)


def test_a_damaged_plan_is_an_error_that_says_what_to_remove(folder, corpus):
    build(folder, corpus, 0)
    (folder / WORK / "plan.json").write_text(json.dumps({"starts": []}))
    with pytest.raises(ValueError, match="interrupted build in .* is damaged"):
        build(folder, corpus)
