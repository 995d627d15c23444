"""Presets reach the recall that they state: distances, recall and shards against NumPy and Faiss."""

import hashlib
import json
import logging
import shutil
import weakref

import faiss
import numpy as np
import pytest
from build_program import WordEmbedder, files_of, make_documents

import tttnn.index.build.compress
from tttnn import Document
from tttnn.index.build.from_documents import IndexSettings, build_index
from tttnn.index.build.workspace import STATE, WORK
from tttnn.index.manifest import MANIFEST, VECTORS, Recall, read_manifest
from tttnn.index.opening import open_index
from tttnn.index.search import DocumentIndex, search_shards
from tttnn.index.shard import Shard
from tttnn.index.texts import TextList
from tttnn.index.vectors import read_vectors


DOCUMENTS = make_documents(600)
TEXTS = [document.text for document in DOCUMENTS]
PRESETS = ["flat", "ivf", "scale"]
FACTORIES = [
    "SQ8",
    "SQfp16",
    "PQ4x4",
    "PQ4x4fs",
    "RaBitQ",
    "HNSW8",
    "HNSW8,SQ8",
    "PCA8,Flat",
    "OPQ4,PQ4x4",
    "PCA8,IVF4,Flat",
    "IVF4,SQ8",
    "IVF4,PQ4x4",
    "IVF4,PQ4x4fs",
    "IVF4,RaBitQ",
    "IVF4,RaBitQfs",
    "IVF4_HNSW8,Flat",
    "PQ4x4,RFlat",
    "PCA8,IVF4,SQ8,RFlat",
]


def squared_distances(vectors, queries):
    differences = vectors[None].astype(np.float64) - queries[:, None].astype(np.float64)
    return (differences**2).sum(axis=2)


@pytest.fixture(scope="module")
def embedder():
    return WordEmbedder()


@pytest.fixture(scope="module")
def vectors(embedder):
    return embedder.encode_query(TEXTS)


@pytest.fixture(scope="module")
def queries(embedder):
    return embedder.encode_query([document.text for document in make_documents(40, seed=1)])


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Build an index of `DOCUMENTS` in shards of 250, 250 and 100 rows, once for each preset."""
    folders = {}

    def build(preset):
        if preset not in folders:
            folders[preset] = tmp_path_factory.mktemp("index") / "index"
            build_index(DOCUMENTS, WordEmbedder(), folders[preset], IndexSettings(preset, 250))
        return folders[preset]

    return build


def read_into_memory(folder):
    """The same files, read by Faiss without a map."""
    manifest, shards, start = read_manifest(folder), [], 0
    for number, entry in enumerate(manifest.shards):
        vectors = faiss.read_index(str(folder / VECTORS.format(number)))
        shards.append(Shard(vectors, TextList(DOCUMENTS[start : start + entry.rows]), start))
        start += entry.rows
    return DocumentIndex(shards, manifest.embedder.to_json(), "", manifest.storage.search)


@pytest.mark.parametrize("preset", [*PRESETS, *FACTORIES])
def test_a_mapped_index_finds_just_what_its_files_find_in_memory(preset, build, queries):
    mapped, in_memory = open_index(build(preset), trust_index=True), read_into_memory(build(preset))
    for top_k in (1, 20, 300):
        found = mapped.search(queries, top_k)
        assert found == in_memory.search(queries, top_k)
        rows = sorted({row for pairs in found for _, row in pairs})
        assert mapped.documents(rows) == in_memory.documents(rows) == [DOCUMENTS[row] for row in rows]


@pytest.mark.parametrize("preset", ["ivf", "scale", "IVF4,SQ8", "IVF4,PQ4x4fs,Refine(SQ8)"])
def test_the_manifest_says_how_thoroughly_to_search(preset, build):
    index, search = open_index(build(preset), trust_index=True), read_manifest(build(preset)).storage.search
    assert search.keys() == ({"nprobe"} if index.shards[0].exact is None else {"nprobe", "k_factor"})
    assert (index.nprobe, index.k_factor) == (search["nprobe"], search.get("k_factor", 1))


# --- against NumPy ---


def test_inverted_files_that_look_into_all_lists_find_what_brute_force_finds(build, vectors, queries):
    index = open_index(build("ivf"))
    index.set_search({"nprobe": 600})
    distances = squared_distances(vectors, queries)
    for found, expected in zip(index.search(queries, 20), distances, strict=True):
        assert [row for _, row in found] == np.argsort(expected, kind="stable")[:20].tolist()
        np.testing.assert_allclose([distance for distance, _ in found], np.sort(expected)[:20], rtol=1e-5)


def test_the_distances_of_scale_are_those_of_its_vectors_of_half_precision(build, vectors, queries):
    halves = squared_distances(vectors.astype(np.float16), queries)
    for found, expected in zip(open_index(build("scale")).search(queries, 20), halves, strict=True):
        rows = [row for _, row in found]
        np.testing.assert_allclose([distance for distance, _ in found], expected[rows], rtol=1e-5)
        assert found == sorted(found) and len(set(rows)) == 20


def test_scale_that_ranks_every_row_again_finds_what_brute_force_over_half_precision_finds(build, vectors, queries):
    index = open_index(build("scale"))
    index.set_search({"nprobe": 600, "k_factor": 30})
    halves = squared_distances(vectors.astype(np.float16), queries)
    for found, expected in zip(index.search(queries, 20), halves, strict=True):
        assert [row for _, row in found] == np.argsort(expected, kind="stable")[:20].tolist()


def test_scale_keeps_vectors_of_half_precision_beside_those_of_few_bits(build, vectors):
    shard = open_index(build("scale")).shards[0]
    # ten bits of fraction; Faiss and NumPy may round to either side
    np.testing.assert_allclose(shard.exact.reconstruct_n(0, 250), vectors[:250], rtol=2**-10)
    assert shard.lists.code_size < 32 / 2, "less than four bits a dimension"


def recorded_queries(embedder):
    """First halves of 400 texts, drawn with the seed 1: those that search is tuned on, and those of the recall."""
    chosen = np.random.default_rng(1).choice(len(TEXTS), 400, replace=False)
    queries = embedder.encode_query([TEXTS[row][: len(TEXTS[row]) // 2] for row in chosen])
    return queries[: len(queries) // 2], queries[len(queries) // 2 :]


def recall_of(folder, search, queries, vectors):
    index = open_index(folder, trust_index=True)
    index.set_search(search)
    nearest = np.argsort(squared_distances(vectors, queries), axis=1)[:, :20]
    found = [{row for _, row in pairs} for pairs in index.search(queries, 20)]
    return np.mean([len(these & {*those}) / 20 for these, those in zip(found, nearest.tolist(), strict=True)])


@pytest.mark.parametrize("preset", ["ivf", "scale", "SQ8", "PQ4x4", "IVF4,SQ8"])
def test_the_recorded_recall_is_what_numpy_finds(preset, build, embedder, vectors):
    manifest = read_manifest(build(preset))
    tuning, measuring = recorded_queries(embedder)
    recall, search = manifest.recall, manifest.storage.search
    assert recall == Recall(
        top_k=20,
        recall=pytest.approx(recall_of(build(preset), search, measuring, vectors), abs=1e-9),
        target=0.95,
        num_queries=200,
        num_rows=600,
    )
    assert 0 < recall.recall <= 1


@pytest.mark.parametrize("preset", ["ivf", "scale"])
def test_the_settings_are_the_cheapest_that_reach_the_target(preset, build, embedder, vectors):
    search = read_manifest(build(preset)).storage.search
    tuning, _ = recorded_queries(embedder)
    assert recall_of(build(preset), search, tuning, vectors) >= 0.95
    assert search["nprobe"] > 1
    cheaper = {**search, "nprobe": 2 ** ((search["nprobe"] - 1).bit_length() - 1)}
    assert recall_of(build(preset), cheaper, tuning, vectors) < 0.95


def test_queries_are_first_halves_of_texts(tmp_path):
    class Noting(WordEmbedder):
        def encode_query(self, texts, batch_size=None):
            self.queries = [*texts]
            return super().encode_query(texts)

    embedder = Noting()
    build_index(DOCUMENTS[:100], embedder, tmp_path / "index", IndexSettings("ivf", 40))
    assert len({*embedder.queries}) == 100
    assert {*embedder.queries} == {text[: len(text) // 2] for text in TEXTS[:100]}


# --- shards against one index ---


@pytest.mark.parametrize("preset", ["ivf", "scale", "PQ4x4", "IVF4,PQ4x4fs"])
def test_any_number_of_shards_finds_the_same_to_the_bit(preset, build, queries, tmp_path):
    build_index(DOCUMENTS, WordEmbedder(), tmp_path / "index", IndexSettings(preset, 600))
    whole, parts = open_index(tmp_path / "index"), open_index(build(preset), trust_index=True)
    assert (len(whole.shards), len(parts.shards)) == (1, 3)
    for top_k in (1, 20):
        assert whole.search(queries, top_k) == parts.search(queries, top_k)


@pytest.mark.parametrize("preset", ["ivf", "scale", "IVF4,PQ4x4fs", "PCA8,IVF4,SQ8,RFlat"])
def test_a_query_alone_finds_what_it_finds_among_others(preset, build, queries):
    index = open_index(build(preset), trust_index=True)
    assert index.search(queries, 20) == [index.search(query[None], 20)[0] for query in queries]


@pytest.mark.parametrize("preset", ["scale", "PCA8,IVF4,SQ8,RFlat"])
def test_several_numbers_of_candidates_are_searched_as_each_by_itself(preset, build, queries):
    index = open_index(build(preset), trust_index=True)
    together = search_shards(index.shards, queries, 20, index.nprobe, [1, 2, 5])
    for k_factor, found in zip([1, 2, 5], together, strict=True):
        index.set_search({"nprobe": index.nprobe, "k_factor": k_factor})
        assert index.search(queries, 20) == found
    assert together[0] != together[1] != together[2]


def test_two_indexes_of_the_same_shards_search_each_as_thoroughly_as_it_is_told(build, queries):
    shards = open_index(build("ivf")).shards
    few, many = DocumentIndex(shards, {}, "", {"nprobe": 1}), DocumentIndex(shards, {}, "", {"nprobe": 600})
    found = few.search(queries, 300)
    assert many.search(queries, 300) != found
    assert few.search(queries, 300) == found


@pytest.mark.parametrize("preset", ["ivf", "scale", "PCA8,IVF4,SQ8,RFlat", "IVF4,PQ4x4fs"])
def test_a_search_leaves_to_others_what_is_set_in_the_shards(preset, build, queries):
    """Threads search the same Faiss objects with different settings."""
    shards = open_index(build(preset), trust_index=True).shards
    lists = [faiss.try_extract_index_ivf(shard.lists) for shard in shards]
    before = [each.nprobe for each in lists]
    few, all_lists = (DocumentIndex(shards, {}, "", {"nprobe": nprobe}) for nprobe in (3, 4))
    assert few.search(queries, 300) != all_lists.search(queries, 300)
    assert [each.nprobe for each in lists] == before and not {3, 4} & {*before}


def test_of_exact_and_of_compressed_shards_two_are_open_at_most(tmp_path, monkeypatch):
    opened, most = {"flat": [], "scale": []}, {"flat": [], "scale": []}

    def noting(path, preset):
        index = read_vectors(path, preset)
        opened[preset].append(weakref.ref(index))
        most[preset].append(sum(reference() is not None for reference in opened[preset]))
        return index

    monkeypatch.setattr(tttnn.index.build.compress, "read_vectors", noting)
    build_index(DOCUMENTS, WordEmbedder(), tmp_path / "index", IndexSettings("scale", 100))
    assert min(map(len, opened.values())) > 6
    assert [max(most["flat"]), max(most["scale"])] == [2, 2], "one, and that which comes after it"


@pytest.mark.parametrize("preset", ["ivf", "scale", "IVF4,SQ8", "IVF4,RaBitQfs", "PCA8,IVF4,Flat"])
@pytest.mark.parametrize("every_list", [True, False], ids=["every list", "some lists"])
def test_shards_find_what_one_faiss_index_of_all_rows_finds(preset, every_list, build, vectors, queries):
    whole = faiss.read_index(str(build(preset) / VECTORS.format(0)))
    whole.reset()
    whole.add(vectors)
    index, lists = open_index(build(preset), trust_index=True), faiss.try_extract_index_ivf(whole)
    if isinstance(whole, faiss.IndexRefine):
        lists, whole.k_factor = faiss.try_extract_index_ivf(whole.base_index), 4
    lists.nprobe = lists.nlist if every_list else 2
    index.set_search({"nprobe": lists.nprobe, "k_factor": 4} if index.shards[0].exact else {"nprobe": lists.nprobe})
    distances, rows = whole.search(queries, 10)
    found = index.search(queries, 10)
    assert [[row for _, row in pairs] for pairs in found] == rows.tolist()
    np.testing.assert_allclose([[distance for distance, _ in pairs] for pairs in found], distances, rtol=1e-5)


@pytest.mark.parametrize("preset", ["ivf", "scale", "PQ4x4"])
def test_rows_may_be_converted_in_any_number_of_pieces(preset, build, tmp_path, monkeypatch):
    monkeypatch.setattr(tttnn.index.build.compress, "ROWS_PER_COPY", 17)
    build_index(DOCUMENTS, WordEmbedder(), tmp_path / "index", IndexSettings(preset, 250))
    assert files_of(tmp_path / "index") == files_of(build(preset))


# --- at the limits ---


def test_a_target_that_is_missed_is_warned_of_and_stays_in_the_manifest(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="tttnn"):
        build_index(DOCUMENTS, WordEmbedder(), tmp_path / "index", IndexSettings("PQ2x2", recall_target=0.99))
    recall = read_manifest(tmp_path / "index").recall
    assert recall.recall < 0.9 and recall.target == 0.99
    (record,) = caplog.records
    assert f"finds {100 * recall.recall:.1f} %, less than the 99.0 % that were asked for" in record.getMessage()
    assert "No settings of search reached them. Take the preset 'flat'" in record.getMessage()


def test_a_target_that_only_the_queries_of_the_choice_reach_may_be_asked_for_higher(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tttnn.index.build.compress, "tune", lambda trained, measure, target: ({"nprobe": 1}, target))
    with caplog.at_level(logging.WARNING, logger="tttnn"):
        build_index(DOCUMENTS, WordEmbedder(), tmp_path / "index", IndexSettings("ivf", recall_target=0.99))
    (record,) = caplog.records
    assert (
        "missed them with others. Ask for more (`--recall-target`), or take the preset 'flat'" in record.getMessage()
    )


@pytest.mark.parametrize("preset", ["ivf", "scale"])
def test_a_target_that_is_reached_is_not_warned_of(preset, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="tttnn"):
        build_index(DOCUMENTS, WordEmbedder(), tmp_path / "index", IndexSettings(preset, recall_target=0.8))
    recall = read_manifest(tmp_path / "index").recall
    assert recall.recall >= recall.target == 0.8
    assert caplog.records == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("preset", ["ivf", "scale"])
@pytest.mark.parametrize("number", [1, 2, 3, 40])
def test_an_index_of_few_documents_finds_them_all(preset, number, tmp_path, embedder):
    build_index(DOCUMENTS[:number], WordEmbedder(), tmp_path / "index", IndexSettings(preset, 2))
    index = open_index(tmp_path / "index")
    found = index.search(embedder.encode_query(TEXTS[:number]), number)
    assert [pairs[0][1] for pairs in found] == list(range(number))
    assert [sorted(row for _, row in pairs) for pairs in found] == [list(range(number))] * number
    assert read_manifest(tmp_path / "index").recall.num_rows == number


@pytest.mark.parametrize("preset", ["ivf", "scale"])
def test_documents_without_a_text_are_indexed_and_queried(preset, tmp_path):
    build_index(
        [Document(str(row), "") for row in range(5)], WordEmbedder(), tmp_path / "index", IndexSettings(preset)
    )
    assert len(open_index(tmp_path / "index")) == 5


def test_a_factory_that_faiss_cannot_train_is_an_error_and_the_embedded_shards_stay(tmp_path):
    with pytest.raises(ValueError, match="Faiss cannot make the index 'PQ8x8' from 30 vectors of dimension 32"):
        build_index(DOCUMENTS[:30], WordEmbedder(), tmp_path / "index", IndexSettings("PQ8x8", 20))
    assert len(json.loads((tmp_path / "index" / WORK / STATE).read_text())["shards"]) == 2
    assert not (tmp_path / "index" / MANIFEST).exists()


def exchange(folder, number, index):
    """Put another Faiss index into the place of a shard's, with a manifest that fits it."""
    name = VECTORS.format(number)
    faiss.write_index(index, str(folder / name))
    manifest = json.loads((folder / MANIFEST).read_text())
    content = (folder / name).read_bytes()
    manifest["shards"][number]["files"][name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("preset", ["ivf", "scale"])
@pytest.mark.parametrize("change", ["other number of lists", "other centroids"])
def test_shards_that_are_divided_differently_are_refused(preset, change, build, vectors, tmp_path):
    folder = shutil.copytree(build(preset), tmp_path / "index")
    nlist = open_index(folder).shards[0].lists.nlist
    factory = {"ivf": "IVF{},Flat", "scale": "IVF{},RaBitQfs,Refine(SQfp16)"}[preset]
    other = faiss.index_factory(vectors.shape[1], factory.format(nlist - 1 if "number" in change else nlist))
    other.train(vectors[::-1][: len(vectors) // 2] * 2)
    other.add(vectors[250:500])
    exchange(folder, 1, other)
    with pytest.raises(ValueError, match="begin at rows 0 and 250 are stored in different ways"):
        open_index(folder)


def test_shards_of_two_presets_are_refused(build, vectors, tmp_path):
    folder = shutil.copytree(build("IVF4,SQ8"), tmp_path / "index")
    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors[250:500])
    exchange(folder, 1, flat)
    with pytest.raises(ValueError, match="are stored in different ways"):
        open_index(folder, trust_index=True)


def test_a_shard_that_names_rows_of_another_is_damaged(build, vectors, tmp_path):
    folder = shutil.copytree(build("ivf"), tmp_path / "index")
    index = faiss.read_index(str(folder / VECTORS.format(0)))
    shifted = faiss.clone_index(index)
    shifted.reset()
    shifted.add_with_ids(vectors[:250], np.arange(250) + 200)
    exchange(folder, 0, shifted)
    with pytest.raises(ValueError, match="begins at row 0 has 250 rows, but names its row 4..: it is damaged"):
        open_index(folder).search(vectors[200:240], 20)
