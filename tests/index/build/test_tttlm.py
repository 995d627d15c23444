"""Faiss files and the texts that they were made of become an index, row by row and bit by bit."""

import copy
import json

import faiss
import numpy as np
import pytest
import zstandard
from build_program import files_of
from conftest import save_bert

import tttnn.index.build.tttlm
import tttnn.index.build.unfinished
from tttnn import Embedder, NeighborRetriever
from tttnn.embedding import TTTLM
from tttnn.files import locked
from tttnn.index.build.from_documents import IndexSettings
from tttnn.index.build.tttlm import import_tttlm_index
from tttnn.index.build.unfinished import UnfinishedIndex
from tttnn.index.build.workspace import WORK
from tttnn.index.manifest import MANIFEST, Storage, read_manifest
from tttnn.index.opening import open_index


DIMENSION = 24
SIZES = (30, 45, 7)
VECTORS = [np.random.default_rng(size).normal(size=(size, DIMENSION)).astype(np.float32) for size in SIZES]


def fail(*_args, **_options):
    raise OSError("the disk is full")


def lines_of(number):
    return [
        json.dumps({"text": f"text {row} of file {number}\nΣ", "meta": {"pile_set_name": f"set {row % 3}"}})
        for row in range(SIZES[number])
    ]


def write_lines(path, lines):
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(zstandard.compress(content) if path.suffix == ".zst" else content)


@pytest.fixture(params=[".jsonl", ".jsonl.zst"])
def published(request, tmp_path):
    """Files as the method's authors published them: `00.jsonl.index` and so on, and the texts of the Pile."""
    return publish(tmp_path, request.param)


@pytest.fixture
def files(tmp_path):
    return publish(tmp_path, ".jsonl")


def publish(tmp_path, suffix):
    indexes, texts = [], []
    for number, vectors in enumerate(VECTORS):
        index = faiss.IndexFlatL2(DIMENSION)
        index.add(vectors)
        indexes.append(tmp_path / f"{number:02}.jsonl.index")
        faiss.write_index(index, str(indexes[-1]))
        texts.append(tmp_path / f"{number:02}{suffix}")
        write_lines(texts[-1], lines_of(number))
    return indexes, texts


def test_row_i_of_a_shard_is_line_i_of_its_file(published, tmp_path):
    import_tttlm_index(*published, tmp_path / "index")
    index = open_index(tmp_path / "index")
    documents = index.documents(range(sum(SIZES)))
    lines = [json.loads(line) for number in range(3) for line in lines_of(number)]
    assert [document.text for document in documents] == [line["text"] for line in lines]
    assert [document.metadata["pile_set_name"] for document in documents] == [
        line["meta"]["pile_set_name"] for line in lines
    ]
    name = published[1][1].name
    assert (documents[30].id, documents[30].metadata["source"]) == (f"{name}:1", name)
    assert [(shard.start, len(shard)) for shard in index.shards] == [(0, 30), (30, 45), (75, 7)]


def test_vectors_come_unchanged(published, tmp_path):
    import_tttlm_index(*published, tmp_path / "index")
    for shard, vectors in zip(open_index(tmp_path / "index").shards, VECTORS, strict=True):
        np.testing.assert_array_equal(shard.vectors.reconstruct_n(0, len(vectors)), vectors)


def test_neighbors_are_those_of_brute_force(files, tmp_path):
    import_tttlm_index(*files, tmp_path / "index")
    vectors, queries = np.concatenate(VECTORS), np.random.default_rng(9).normal(size=(20, DIMENSION))
    found = open_index(tmp_path / "index").search(queries.astype(np.float32), 10)
    for pairs, query in zip(found, queries, strict=True):
        distances = ((vectors - query) ** 2).sum(axis=1)
        assert [row for _, row in pairs] == np.argsort(distances)[:10].tolist()
        np.testing.assert_allclose([distance for distance, _ in pairs], np.sort(distances)[:10], rtol=1e-5)


def test_the_manifest_says_that_the_vectors_came_from_elsewhere(files, tmp_path):
    import_tttlm_index(*files, tmp_path / "index")
    manifest = read_manifest(tmp_path / "index")
    assert manifest.sources == ["00.jsonl", "01.jsonl", "02.jsonl"]
    assert (manifest.num_documents, manifest.num_rows, manifest.recall) == (82, 82, None)
    assert manifest.storage == Storage("flat", "Flat", {}, 2**29 // 96)
    embedder = manifest.embedder
    assert (embedder.name, embedder.model, embedder.max_seq_length) == ("tttlm", TTTLM[0], 512)
    assert (embedder.dimension, embedder.probe) == (DIMENSION, None)


def test_an_embedder_of_another_dimension_cannot_query_it(files, tmp_path, embedder):
    import_tttlm_index(*files, tmp_path / "index")
    with pytest.raises(ValueError, match="built with the embedder 'tttlm', whose dimension is 24; .* has 32"):
        NeighborRetriever.from_pretrained(tmp_path / "index", embedder=embedder)


def test_metadata_named_passage_counts_as_a_document(files, tmp_path):
    write_lines(files[1][2], [json.dumps({"text": "a", "passage": "b"})] * 7)
    import_tttlm_index(*files, tmp_path / "index")
    assert read_manifest(tmp_path / "index").num_documents == 82


# --- stored otherwise than exactly ---


@pytest.fixture(scope="module")
def of_this_dimension(tokenizer, tmp_path_factory):
    """A folder of an embedder of as many dimensions as the files have."""
    return save_bert(tokenizer, tmp_path_factory.mktemp("embedder"), DIMENSION, 512)


@pytest.mark.parametrize("preset", ["ivf", "scale", "IVF2,SQ8"])
def test_vectors_are_stored_as_a_preset_says_with_the_recall_measured(files, tmp_path, preset, of_this_dimension):
    import_tttlm_index(*files, tmp_path / "index", IndexSettings(preset, recall_target=0.9), of_this_dimension)
    manifest = read_manifest(tmp_path / "index")
    assert manifest.storage.preset == preset
    assert (manifest.recall.target, manifest.recall.num_rows) == (0.9, 82)
    assert manifest.recall.recall > 0.7
    assert (manifest.embedder.name, manifest.embedder.probe) == ("tttlm", None)
    index, vectors = open_index(tmp_path / "index"), np.concatenate(VECTORS)
    assert [len(shard) for shard in index.shards] == [*SIZES]
    assert all(type(shard.vectors) is not faiss.IndexFlatL2 for shard in index.shards)
    found = index.search(vectors, 1)
    assert [pairs[0][1] for pairs in found] == [*range(82)]
    assert [document.text for document in index.documents([30])] == ["text 0 of file 1\nΣ"]


def no_manifest(monkeypatch):
    """Interrupt an import before its manifest."""
    monkeypatch.setattr(UnfinishedIndex, "finish", fail)


@pytest.mark.parametrize("part", ["measure", "replace"])
def test_an_import_that_was_interrupted_while_it_converted_ends_with_the_same_files(
    files, tmp_path, of_this_dimension, monkeypatch, part
):
    given = (IndexSettings("scale"), of_this_dimension)
    import_tttlm_index(*files, tmp_path / "whole", *given)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(tttnn.index.build.unfinished, part, fail)
        import_tttlm_index(*files, tmp_path / "index", *given)
    with monkeypatch.context() as patch:
        patch.setattr(tttnn.index.build.tttlm, "_counted", fail)
        patch.setattr(tttnn.index.build.unfinished, "trained_for", fail)
        patch.setattr(tttnn.index.build.unfinished, "converted", fail)
        import_tttlm_index(*files, tmp_path / "index", *given)
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")


def test_another_preset_is_chosen_while_the_exact_vectors_are_there(files, tmp_path, of_this_dimension, monkeypatch):
    import_tttlm_index(*files, tmp_path / "whole", IndexSettings("ivf"), of_this_dimension)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(tttnn.index.build.unfinished, "measure", fail)
        import_tttlm_index(*files, tmp_path / "index", IndexSettings("scale"), of_this_dimension)
    import_tttlm_index(*files, tmp_path / "index", IndexSettings("ivf"), of_this_dimension)
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (IndexSettings(), IndexSettings("ivf")),
        (IndexSettings("ivf", recall_target=0.3), IndexSettings("ivf", recall_target=0.9)),
    ],
    ids=["preset", "recall target"],
)
def test_an_import_of_other_settings_than_those_of_the_one_that_its_manifest_names_is_an_error(
    files, tmp_path, of_this_dimension, monkeypatch, first, other
):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(tttnn.index.build.unfinished, "settle", fail)
        import_tttlm_index(*files, tmp_path / "index", first, of_this_dimension)
    with pytest.raises(FileExistsError, match="is there already"):
        import_tttlm_index(*files, tmp_path / "index", other, of_this_dimension)
    assert read_manifest(tmp_path / "index").storage.preset == first.preset


def test_an_import_that_was_interrupted_after_its_manifest_needs_no_embedder(
    files, tmp_path, of_this_dimension, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(tttnn.index.build.unfinished, "settle", fail)
        import_tttlm_index(*files, tmp_path / "index", IndexSettings("ivf"), of_this_dimension)
    monkeypatch.setattr("tttnn.embedding._tttlm", None)
    monkeypatch.setattr(tttnn.index.build.tttlm, "read_documents", fail)
    import_tttlm_index(*files, tmp_path / "index", IndexSettings("ivf"))
    assert len(open_index(tmp_path / "index", verify=True)) == 82
    assert not (tmp_path / "index" / WORK).exists()


def test_a_folder_that_is_not_empty_is_told_before_an_embedder_is_loaded(files, tmp_path, monkeypatch):
    monkeypatch.setattr("tttnn.embedding._tttlm", None)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        import_tttlm_index(*files, tmp_path / "index", IndexSettings("ivf"))


def test_an_embedder_that_gives_another_vector_for_the_first_text_is_warned_of(
    files, tmp_path, of_this_dimension, caplog
):
    same = Embedder(of_this_dimension)
    texts = [json.loads(line)["text"] for line in lines_of(0)]
    index = faiss.IndexFlatL2(DIMENSION)
    index.add(same.encode_document(texts))
    faiss.write_index(index, str(files[0][0]))
    import_tttlm_index(*files, tmp_path / "same", IndexSettings("ivf", recall_target=0.1), of_this_dimension)
    assert "gives another vector" not in caplog.text
    index.reset()
    index.add(same.encode_document(texts[::-1]))
    faiss.write_index(index, str(files[0][0]))
    loaded = Embedder.from_description(read_manifest(tmp_path / "same").embedder.to_json(), of_this_dimension)
    import_tttlm_index(*files, tmp_path / "other", IndexSettings("ivf", recall_target=0.1), loaded)
    assert f"The embedder '{of_this_dimension}' gives another vector for the first text of" in caplog.text


def test_exact_vectors_need_no_embedder_and_others_that_of_the_files(files, tmp_path, monkeypatch, embedder):
    loaded = []
    monkeypatch.setattr("tttnn.embedding._tttlm", lambda *given: loaded.append(given) or copy.deepcopy(embedder))
    import_tttlm_index(*files, tmp_path / "index")
    assert loaded == []
    with pytest.raises(ValueError, match="whose dimension is 24; 'tttlm' has 32"):
        import_tttlm_index(*files, tmp_path / "other", IndexSettings("ivf"))
    assert loaded == [(None, None)]
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (IndexSettings(shard_size=4), "shards and documents are those of the files"),
        (IndexSettings(passage_tokens=4), "shards and documents are those of the files"),
        (IndexSettings("no such index"), "Faiss cannot make the index 'no such index'"),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_is_written(files, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        import_tttlm_index(*files, tmp_path / "index", settings)
    assert not (tmp_path / "index" / WORK).exists()


# --- files that do not belong together ---


def assert_nothing(tmp_path):
    assert not (tmp_path / "index" / MANIFEST).exists()


@pytest.mark.parametrize("number", [0, 44, 46], ids=["none", "too few", "too many"])
def test_another_number_of_texts_is_an_error_that_names_both(published, tmp_path, number):
    lines = lines_of(1)
    write_lines(published[1][1], (lines + lines)[:number])
    with pytest.raises(ValueError, match=f"holds {number} documents, but its index holds 45 vectors"):
        import_tttlm_index(*published, tmp_path / "index")
    assert_nothing(tmp_path)


def test_after_an_error_the_right_file_goes_on_from_the_finished_shard(published, tmp_path, monkeypatch):
    import_tttlm_index(*published, tmp_path / "whole")
    write_lines(published[1][1], lines_of(1)[:-1])
    with pytest.raises(ValueError, match="holds 44 documents"):
        import_tttlm_index(*published, tmp_path / "index")
    write_lines(published[1][1], lines_of(1))
    read, read_documents = [], tttnn.index.build.tttlm.read_documents
    monkeypatch.setattr(
        tttnn.index.build.tttlm, "read_documents", lambda path: [read.append(path), read_documents(path)][1]
    )
    import_tttlm_index(*published, tmp_path / "index")
    assert read == published[1][1:]
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")
    assert not (tmp_path / "index" / WORK).exists()


def test_a_file_that_is_cut_short_is_an_error_that_names_it(tmp_path):
    indexes, texts = publish(tmp_path, ".jsonl.zst")
    texts[0].write_bytes(texts[0].read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"00.jsonl.zst"):
        import_tttlm_index(indexes, texts, tmp_path / "index")
    assert_nothing(tmp_path)


def test_another_dimension_is_an_error_that_names_both(files, tmp_path):
    index = faiss.IndexFlatL2(8)
    index.add(np.zeros((45, 8), np.float32))
    faiss.write_index(index, str(files[0][1]))
    with pytest.raises(ValueError, match=r"01.jsonl.index' has dimension 8, and '.*00.jsonl.index' has 24"):
        import_tttlm_index(*files, tmp_path / "index")
    assert_nothing(tmp_path)


@pytest.mark.parametrize("kind", ["IVF2,Flat", "SQ8", "HNSW8"])
def test_vectors_that_are_not_stored_exactly_are_refused(files, tmp_path, kind):
    index = faiss.index_factory(DIMENSION, kind)
    index.train(VECTORS[1])
    index.add(VECTORS[1])
    faiss.write_index(index, str(files[0][1]))
    with pytest.raises(ValueError, match="01.jsonl.index' is of the kind .* not of that of the preset 'flat'"):
        import_tttlm_index(*files, tmp_path / "index")
    assert_nothing(tmp_path)


def test_other_distances_are_refused(files, tmp_path):
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(VECTORS[0])
    faiss.write_index(index, str(files[0][0]))
    with pytest.raises(ValueError, match="00.jsonl.index"):
        import_tttlm_index(*files, tmp_path / "index")
    assert_nothing(tmp_path)


def test_index_files_that_are_none_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match="00.jsonl' is of the kind"):
        import_tttlm_index(files[1], files[1], tmp_path / "index")
    assert_nothing(tmp_path)


@pytest.mark.parametrize(("number", "others"), [(3, 2), (2, 3), (0, 0)])
def test_other_numbers_of_files_are_refused(files, tmp_path, number, others):
    with pytest.raises(ValueError, match=f"{number} index files and {others} data files were given"):
        import_tttlm_index(files[0][:number], files[1][:others], tmp_path / "index")


@pytest.mark.parametrize("kind", [0, 1])
def test_a_missing_file_is_named_before_anything_is_read(files, tmp_path, kind):
    files[kind][2].unlink()
    with pytest.raises(FileNotFoundError, match=f"There is no file '{files[kind][2]}'"):
        import_tttlm_index(*files, tmp_path / "index")
    assert not (tmp_path / "index" / WORK).exists()


# --- where it is written ---


def test_a_hidden_folder_that_is_no_interrupted_import_is_left_as_it_is(files, tmp_path):
    (mine := tmp_path / "index" / WORK / "mine.txt").parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="index' is there already"):
        import_tttlm_index(*files, tmp_path / "index")
    assert mine.read_text() == "mine"
    assert_nothing(tmp_path)


def test_a_folder_that_is_not_empty_is_left_as_it_is(files, tmp_path):
    import_tttlm_index(*files, tmp_path / "index")
    before = files_of(tmp_path / "index")
    with pytest.raises(FileExistsError, match="is there already"):
        import_tttlm_index(*files, tmp_path / "index")
    assert files_of(tmp_path / "index") == before


def test_a_folder_that_is_locked_is_not_touched(files, tmp_path):
    with locked(tmp_path / "index"), pytest.raises(RuntimeError, match="Another process is writing"):
        import_tttlm_index(*files, tmp_path / "index")
    assert_nothing(tmp_path)


def test_an_interrupted_import_does_not_resume_with_other_files(files, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        no_manifest(patch)
        import_tttlm_index(*files, tmp_path / "index")
    with pytest.raises(ValueError, match="interrupted build"):
        import_tttlm_index(files[0][::-1], files[1][::-1], tmp_path / "index")
    import_tttlm_index(*files, tmp_path / "index")
    assert len(open_index(tmp_path / "index")) == 82


def test_an_import_that_lacks_its_manifest_only_reads_no_text(files, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        no_manifest(patch)
        import_tttlm_index(*files, tmp_path / "index")
    monkeypatch.setattr(tttnn.index.build.tttlm, "read_documents", fail)
    import_tttlm_index(*files, tmp_path / "index")
    assert len(open_index(tmp_path / "index")) == 82


@pytest.mark.parametrize("number", [0, 2])
def test_vectors_of_an_import_that_the_disk_lost_are_missed(files, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        no_manifest(patch)
        import_tttlm_index(*files, tmp_path / "index")
    path = tmp_path / "index" / f"index/shard-{number:05d}.faiss"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match=f"shard-{number:05d}.faiss' is not what was written"):
        import_tttlm_index(*files, tmp_path / "index")
