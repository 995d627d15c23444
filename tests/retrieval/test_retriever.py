"""`NeighborRetriever`: what it finds, how it is saved and opened, and which embedder it takes."""

import copy
import json
import os
import random
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import TEXTS
from sentence_transformers import SentenceTransformer

from tttnn import Document, Embedder, Neighbor, NeighborRetriever
from tttnn.documents import as_documents
from tttnn.index.build.from_documents import IndexSettings, build_index, index_in_memory
from tttnn.index.build.passages import split_into_passages
from tttnn.index.build.save import write_index
from tttnn.index.manifest import MANIFEST
from tttnn.retrieval.cache import NeighborCache


ODD_TEXTS = ["naïve café, 東京 👩‍👩‍👧", "one\ntwo\r\nthree\u2028four", "NUL \0 here", "", " \t\n", '{"text": "\\n"}']


def sentences(number, seed):
    """Texts of 3 to 40 words drawn from `TEXTS`."""
    rng, words = random.Random(seed), " ".join(TEXTS).split()
    return [" ".join(rng.choices(words, k=rng.randint(3, 40))) for _ in range(number)]


CORPUS = sentences(60, seed=0)
QUERIES = sentences(40, seed=24)  # of the first 40 seeds that whose neighbors lie the farthest apart


@pytest.fixture(scope="module")
def corpus_retriever(embedder):
    return NeighborRetriever.from_documents(CORPUS, embedder)


@pytest.fixture(scope="module")
def distances(embedder):
    """Squared L2 distances of every query to every document, by sentence-transformers and NumPy in float64."""
    documents, queries = (embedder.encode(texts).astype(np.float64) for texts in (CORPUS, QUERIES))
    distances = ((queries[:, None] - documents[None]) ** 2).sum(axis=2)
    # farther apart than the error of float32, so that order can be compared without tolerance
    assert np.diff(np.sort(distances, axis=1)).min() > 1e-5
    return distances


@pytest.fixture
def saved(retriever, tmp_path):
    return retriever.save_pretrained(tmp_path / "saved")


@pytest.fixture
def with_and_without_cache(retriever, tmp_path):
    return retriever, NeighborRetriever(retriever.index, retriever.embedder, NeighborCache(tmp_path / "cache"))


@pytest.fixture
def other_embedder(embedder):
    """Same architecture, tokenizer and dimension, other weights."""
    other = copy.deepcopy(embedder)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return other


def rows(found):
    return [[neighbor.id for neighbor in neighbors] for neighbors in found]


# --- retrieving ---


@pytest.mark.parametrize("top_k", [1, 7, 60])
def test_neighbors_equal_a_brute_force_search_in_numpy_in_order(corpus_retriever, distances, top_k):
    found = corpus_retriever.retrieve(QUERIES, top_k=top_k)
    assert rows(found) == np.argsort(distances, axis=1)[:, :top_k].tolist()
    for neighbors, expected in zip(found, np.sort(distances, axis=1), strict=True):
        assert [neighbor.distance for neighbor in neighbors] == pytest.approx(expected[:top_k], rel=1e-4, abs=1e-5)
        assert [neighbor.text for neighbor in neighbors] == [CORPUS[neighbor.id] for neighbor in neighbors]


@pytest.mark.parametrize("shard_size", [1, 7, 59])
def test_neighbors_from_several_shards_equal_those_from_one(corpus_retriever, embedder, tmp_path, shard_size):
    folder = tmp_path / "index"
    build_index(as_documents(CORPUS), Embedder(embedder), folder, IndexSettings(shard_size=shard_size))
    assert len(list((folder / "index").iterdir())) == -(-60 // shard_size)
    found = NeighborRetriever.from_pretrained(folder, embedder=embedder).retrieve(QUERIES[:5], top_k=20)
    expected = corpus_retriever.retrieve(QUERIES[:5], top_k=20)
    assert rows(found) == rows(expected)
    for neighbors, others in zip(found, expected, strict=True):
        for neighbor, other in zip(neighbors, others, strict=True):
            assert (neighbor.text, neighbor.metadata) == (other.text, other.metadata)
            assert neighbor.distance == pytest.approx(other.distance, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("number", [1, 16, 17, 40])
def test_a_batch_of_queries_finds_what_each_finds_alone(corpus_retriever, distances, number):
    found = corpus_retriever.retrieve(QUERIES[:number], top_k=20)
    assert rows(found) == [rows(corpus_retriever.retrieve([query], top_k=20))[0] for query in QUERIES[:number]]


def test_documents_with_the_same_text_are_ordered_by_row(embedder):
    # batches of one: padding beside longer texts would change a vector's last bits
    retriever = NeighborRetriever.from_documents(["a b", "c", "a b", "c", "a b"], embedder, batch_size=1)
    assert rows(retriever.retrieve(["a b"], top_k=4))[0][:3] == [0, 2, 4]
    assert rows(retriever.retrieve(["c"], top_k=2)) == [[1, 3]]


def test_a_document_is_its_own_nearest_neighbor(corpus_retriever):
    nearest = [neighbors[0] for neighbors in corpus_retriever.retrieve(CORPUS, top_k=1)]
    assert [neighbor.id for neighbor in nearest] == list(range(60))
    assert max(neighbor.distance for neighbor in nearest) < 1e-4


def test_many_queries_are_embedded_in_one_call(corpus_retriever, monkeypatch):
    calls, model = [], corpus_retriever.embedder.model
    encode = model.encode_query
    monkeypatch.setattr(model, "encode_query", lambda texts, **named: calls.append(texts) or encode(texts, **named))
    corpus_retriever.retrieve(QUERIES, top_k=3)
    assert [sorted(texts) for texts in calls] == [sorted(QUERIES)]


def test_queries_get_the_prompt_of_queries_and_documents_that_of_documents(embedder):
    prompted = Embedder(embedder, query_prompt="query: ", document_prompt="passage: ")
    found = NeighborRetriever.from_documents(TEXTS, prompted).retrieve(["the whale"], top_k=10)[0]
    (query,) = embedder.encode(["query: the whale"]).astype(np.float64)
    documents = embedder.encode([f"passage: {text}" for text in TEXTS]).astype(np.float64)
    distances = ((documents - query) ** 2).sum(axis=1)
    assert [neighbor.id for neighbor in found] == np.argsort(distances).tolist()
    assert [neighbor.distance for neighbor in found] == pytest.approx(np.sort(distances), rel=1e-4, abs=1e-5)
    assert [neighbor.text for neighbor in found] == [TEXTS[neighbor.id] for neighbor in found]


def test_a_neighbor_holds_row_text_distance_and_metadata(embedder):
    documents = [
        {"text": "far away and quite another thing", "id": "far"},
        {"text": "x", "id": 7, "meta": {"source": "a", "id": 8}},
    ]
    neighbor = NeighborRetriever.from_documents(documents, embedder).retrieve(["x"], top_k=1)[0][0]
    assert isinstance(neighbor, Neighbor)
    assert (neighbor.id, neighbor.text, neighbor.metadata) == (1, "x", {"id": "7", "source": "a"})
    assert neighbor.distance == pytest.approx(0, abs=1e-6)
    assert (type(neighbor.id), type(neighbor.distance)) == (int, float)


def test_the_distance_is_squared(embedder):
    near, far = embedder.encode(["near", "a far one"]).astype(np.float64)
    found = NeighborRetriever.from_documents(["near"], embedder).retrieve(["a far one"], top_k=1)
    expected = ((near - far) ** 2).sum()
    assert abs(expected - 1) > 0.1
    assert found[0][0].distance == pytest.approx(expected, rel=1e-4)


def test_an_empty_query_finds_what_one_space_finds(corpus_retriever):
    empty, space = corpus_retriever.retrieve(["", " "], top_k=5)
    assert empty == space


def test_an_empty_document_is_found(embedder):
    found = NeighborRetriever.from_documents(["some words", ""], embedder).retrieve([" "], top_k=1)
    assert (found[0][0].id, found[0][0].text) == (1, "")


def test_no_queries_have_no_neighbors(retriever):
    assert retriever.retrieve([], top_k=3) == []


def test_queries_may_come_in_a_tuple(retriever):
    assert retriever.retrieve(("x", "y"), top_k=2) == retriever.retrieve(["x", "y"], top_k=2)


@pytest.mark.parametrize("top_k", [0, -1, 11, 50])
def test_a_top_k_outside_of_the_index_is_an_error_that_names_both(retriever, top_k):
    with pytest.raises(ValueError, match=f"`top_k` is {top_k}, but the index holds 10 documents"):
        retriever.retrieve(["x"], top_k=top_k)


@pytest.mark.parametrize("top_k", [2.5, "3", None])
def test_a_top_k_that_is_no_whole_number_is_a_type_error(retriever, top_k):
    with pytest.raises(TypeError):
        retriever.retrieve(["x"], top_k=top_k)


def test_one_string_instead_of_a_list_is_a_type_error(retriever):
    with pytest.raises(TypeError, match=r"`texts` is one string.*Pass `\[text\]`"):
        retriever.retrieve("x", top_k=1)


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["x"]])
def test_a_query_that_is_no_string_is_a_type_error_that_names_it(with_and_without_cache, text):
    for retriever in with_and_without_cache:
        with pytest.raises(TypeError, match=f"row 1 is {type(text).__name__}, not a string"):
            retriever.retrieve(["fine", text], top_k=1)


def test_a_query_with_a_lone_surrogate_is_an_error_that_names_it(with_and_without_cache):
    for retriever in with_and_without_cache:
        with pytest.raises(ValueError, match=r"row 1 holds the lone surrogate U\+D800"):
            retriever.retrieve(["fine", "\ud800"], top_k=1)


def test_a_query_whose_vector_is_not_finite_is_an_error(corpus_retriever, monkeypatch):
    monkeypatch.setattr(
        corpus_retriever.embedder.model, "encode_query", lambda texts, **named: np.full((len(texts), 32), np.inf)
    )
    with pytest.raises(ValueError, match=r"not finite for rows \[0\]"):
        corpus_retriever.retrieve(["x"], top_k=1)


# --- what it says of itself ---


def test_it_describes_the_index_for_the_journal_of_a_run(retriever, saved):
    assert retriever.describe() == {"index": retriever.index.digest, "num_indexed": len(TEXTS), "passage_length": None}
    opened = NeighborRetriever.from_pretrained(saved)
    assert opened.describe() == {"index": opened.index.digest, "num_indexed": len(TEXTS), "passage_length": None}


def test_a_part_of_an_index_describes_itself_and_not_the_whole(retriever):
    whole, part = retriever.describe(), retriever.subset(0.5).describe()
    assert part["num_indexed"] == 5
    assert part["index"] != whole["index"]


def test_its_repr_shows_rows_shards_storage_embedder_and_source(retriever, saved, embedder):
    name = embedder.transformers_model.config._name_or_path
    start = f"NeighborRetriever(DocumentIndex(rows=10, shards=1, storage='IndexFlatL2', embedder='{name}'"
    assert repr(retriever) == f"{start}, source='memory'))"
    assert repr(NeighborRetriever.from_pretrained(saved)) == f"{start}, source='{saved}'))"
    assert repr(retriever.subset(0.5)).endswith("source='0.5 of memory'))")


class Elsewhere:
    """An `Index` that is not one of shards in this process: it has what the protocol names, and nothing else."""

    def __init__(self, index):
        names = ("search", "documents", "vectors", "row_at", "embedder", "digest", "search_key", "is_prefixed")
        self.source = "a cluster"
        self._length = len(index)
        for name in names:
            setattr(self, name, getattr(index, name))

    def __len__(self):
        return self._length

    def __repr__(self):
        return "Elsewhere()"


@pytest.mark.parametrize("is_cached", [False, True])
def test_any_index_of_the_protocol_serves(retriever, tmp_path, is_cached):
    other = NeighborRetriever(
        Elsewhere(retriever.index), retriever.embedder, NeighborCache(tmp_path) if is_cached else None
    )
    assert other.retrieve(TEXTS[:2], top_k=3) == retriever.retrieve(TEXTS[:2], top_k=3)
    assert other.random_distances(TEXTS[:2]) == retriever.random_distances(TEXTS[:2])
    assert other.describe() == retriever.describe()
    assert repr(other) == "NeighborRetriever(Elsewhere())"


def test_an_index_elsewhere_is_not_saved_pushed_or_divided(retriever, tmp_path):
    other = NeighborRetriever(Elsewhere(retriever.index), retriever.embedder)
    for action in (
        lambda: other.save_pretrained(tmp_path / "saved"),
        lambda: other.push_to_hub("user/index"),
        lambda: other.subset(0.5),
    ):
        with pytest.raises(
            TypeError, match="an index of the type Elsewhere. Only an index that this process has opened"
        ):
            action()
    assert not (tmp_path / "saved").exists()


# --- building in memory ---


@pytest.mark.parametrize(
    "documents",
    [
        ["x", "y"],
        [{"text": "x"}, {"text": "y"}],
        [Document("row 0", "x"), Document("row 1", "y")],
        datasets.Dataset.from_dict({"text": ["x", "y"]}),
        datasets.Dataset.from_dict({"text": ["x", "y"]}).to_iterable_dataset(),
    ],
    ids=["strings", "rows", "documents", "Dataset", "IterableDataset"],
)
def test_documents_come_in_many_forms(embedder, documents):
    found = NeighborRetriever.from_documents(documents, embedder).retrieve(["y"], top_k=2)[0]
    assert [(neighbor.id, neighbor.text, neighbor.metadata) for neighbor in found] == [
        (1, "y", {"id": "row 1"}),
        (0, "x", {"id": "row 0"}),
    ]


def test_text_and_id_may_stand_in_other_columns(embedder):
    retriever = NeighborRetriever.from_documents(
        [{"body": "x", "key": 3}], embedder, text_column="body", id_column="key"
    )
    assert retriever.retrieve(["x"], top_k=1)[0][0].metadata == {"id": "3"}


def test_an_embedder_may_be_named_by_its_folder(embedder):
    folder = embedder.transformers_model.config._name_or_path
    named = NeighborRetriever.from_documents(["x", "y"], folder)
    assert named.embedder.name == folder
    assert rows(named.retrieve(["y"], top_k=2)) == [[1, 0]]


@pytest.mark.parametrize("documents", [[], (text for text in [])])
def test_an_empty_corpus_is_an_error(embedder, documents):
    with pytest.raises(ValueError, match="holds no document"):
        NeighborRetriever.from_documents(documents, embedder)


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ("one text", TypeError, "one string was given"),
        (["x", None], TypeError, "row 1 is NoneType"),
        ([{"text": "x"}, {"body": "y"}], ValueError, r"row 1 has no column `text`; its columns are \['body'\]"),
        (datasets.Dataset.from_dict({"body": ["x"]}), ValueError, "row 0 has no column `text`"),
        (["x", "\udc00"], ValueError, r"row 1 holds the lone surrogate U\+DC00"),
    ],
    ids=["string", "null", "row without text", "data set without text", "lone surrogate"],
)
def test_a_bad_document_is_an_error_that_names_it(embedder, documents, error, message):
    with pytest.raises(error, match=message):
        NeighborRetriever.from_documents(documents, embedder)


def test_without_faiss_the_pip_line_is_told(embedder, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install tttnn\[cpu\]"):
        NeighborRetriever.from_documents(["x"], embedder)
    with pytest.raises(ImportError, match=r"pip install tttnn\[cpu\]"):
        NeighborRetriever.from_pretrained(saved)


# --- saving and opening ---


def test_an_opened_index_gives_the_neighbors_and_texts_of_the_one_in_memory(embedder, tmp_path):
    documents = [
        {"text": text, "meta": {"source": f"é {row}", "n": row}} for row, text in enumerate(ODD_TEXTS + TEXTS)
    ]
    memory = NeighborRetriever.from_documents(documents, embedder)
    opened = NeighborRetriever.from_pretrained(memory.save_pretrained(tmp_path / "saved"))
    assert len(opened) == len(memory) == 16
    found = opened.retrieve(ODD_TEXTS + TEXTS, top_k=16)
    assert found == memory.retrieve(ODD_TEXTS + TEXTS, top_k=16)
    assert {neighbor.id: neighbor.text for neighbor in found[0]} == dict(enumerate(ODD_TEXTS + TEXTS))


def test_a_document_of_five_megabytes_is_found_whole(embedder, tmp_path):
    large = "naïve 東京\n\0 " * 312_500
    assert 5_000_000 <= len(large.encode())
    # its first words stand for it, as a slow tokenizer is no subject of this test
    index = index_in_memory([Document("large", large[:500]), Document("small", "x")], Embedder(embedder))
    index.shards[0].documents[0] = Document("large", large)
    folder = write_index(index, tmp_path / "saved")
    (found,) = NeighborRetriever.from_pretrained(folder, embedder=embedder).retrieve([large[:500]], top_k=1)
    assert found[0].text == large


def test_neighbors_from_some_shards_keep_their_ids(corpus_retriever, embedder, tmp_path):
    build_index(as_documents(CORPUS), Embedder(embedder), tmp_path / "index", IndexSettings(shard_size=25))
    part = NeighborRetriever.from_pretrained(tmp_path / "index", shards=[0, 2], embedder=embedder)
    assert len(part) == 35
    whole = corpus_retriever.retrieve(QUERIES[:5], top_k=60)
    expected = [[row for row in found if not 25 <= row < 50] for found in rows(whole)]
    assert rows(part.retrieve(QUERIES[:5], top_k=35)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": "remote"}, "is 'remote', but '.*saved' is a local folder"),
        ({"texts": "nowhere"}, "`texts` is 'nowhere'. Pass 'local', or 'remote'"),
        ({"shards": [1]}, "but the index has shards 0 to 0"),
    ],
)
def test_a_wrong_option_of_opening_is_an_error(saved, options, message):
    with pytest.raises(ValueError, match=message):
        NeighborRetriever.from_pretrained(saved, **options)


def test_an_opened_index_is_saved_with_all_its_files(saved, tmp_path):
    again = NeighborRetriever.from_pretrained(saved).save_pretrained(tmp_path / "again")
    files = {path.relative_to(saved): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()} == files


def test_a_part_of_an_index_is_neither_saved_nor_pushed(retriever, tmp_path):
    with pytest.raises(ValueError, match="This is a part of an index, drawn by `subset`. Save the whole one"):
        retriever.subset(0.5).save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match="This is a part of an index"):
        retriever.subset(0.5).push_to_hub("user/part")
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_which_some_shards_are_open_is_neither_saved_nor_pushed(embedder, tmp_path):
    build_index(as_documents(TEXTS), Embedder(embedder), tmp_path / "index", IndexSettings(shard_size=4))
    part = NeighborRetriever.from_pretrained(tmp_path / "index", shards=[1], embedder=embedder)
    message = r"Only 1 of the 3 shards of '.*index' are open, .* Open all of them: `from_pretrained` without `shards`"
    with pytest.raises(ValueError, match=message):
        part.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match=message):
        part.push_to_hub("user/part")
    assert not (tmp_path / "part").exists()


def test_an_index_whose_shards_are_all_named_is_whole(saved, embedder, tmp_path):
    opened = NeighborRetriever.from_pretrained(saved, shards=[0], embedder=embedder)
    assert len(NeighborRetriever.from_pretrained(opened.save_pretrained(tmp_path / "again"))) == len(TEXTS)


def test_a_folder_may_be_named_by_a_string_or_a_path(saved, retriever):
    for folder in (saved, str(saved), str(saved) + "/"):
        assert NeighborRetriever.from_pretrained(folder).retrieve(["x"], 3) == retriever.retrieve(["x"], 3)


def test_verify_is_passed_on(saved):
    NeighborRetriever.from_pretrained(saved)
    path = saved / "texts" / "shard-00000.jsonl"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = path.read_bytes()
    path.write_bytes(content.replace(b"whale", b"while"))
    os.utime(path, ns=times)
    NeighborRetriever.from_pretrained(saved)  # the time says that nothing has changed
    with pytest.raises(ValueError, match="shard-00000.jsonl' is damaged"):
        NeighborRetriever.from_pretrained(saved, verify=True)


def test_saving_into_a_folder_with_something_in_it_is_an_error(saved, retriever):
    with pytest.raises(FileExistsError, match="is there already"):
        retriever.save_pretrained(saved)


def test_the_embedder_is_loaded_at_the_first_query_and_once(saved, monkeypatch):
    loaded = []

    class Counted(Embedder):
        def __init__(self, model, *arguments):
            loaded.append(model)
            super().__init__(model, *arguments)

    monkeypatch.setattr("tttnn.retrieval.retriever.Embedder", Counted)
    opened = NeighborRetriever.from_pretrained(saved)
    assert loaded == []
    for _ in range(2):
        opened.retrieve(["x"], top_k=1)
    assert loaded == [json.loads((saved / MANIFEST).read_text())["embedder"]["name"]]


def test_the_embedder_is_loaded_with_the_settings_of_the_index(embedder, tmp_path):
    name = embedder.transformers_model.config._name_or_path
    mine = Embedder(name, max_seq_length=8, query_prompt="query: ", document_prompt="passage: ")
    folder = NeighborRetriever.from_documents(TEXTS, mine).save_pretrained(tmp_path / "saved")
    for given in (None, name):
        loaded = NeighborRetriever.from_pretrained(folder, embedder=given).embedder
        assert (loaded.max_seq_length, loaded.query_prompt, loaded.document_prompt) == (8, "query: ", "passage: ")


def test_the_embedder_may_be_given_in_three_ways(saved, embedder, retriever):
    expected = retriever.retrieve(TEXTS, top_k=10)
    for given in (embedder, Embedder(embedder), embedder.transformers_model.config._name_or_path):
        assert NeighborRetriever.from_pretrained(saved, embedder=given).retrieve(TEXTS, top_k=10) == expected


def test_an_embedder_with_other_weights_is_an_error(saved, other_embedder):
    with pytest.raises(ValueError, match="maps the same text .*% away. Pass the embedder that built it"):
        NeighborRetriever.from_pretrained(saved, embedder=other_embedder)


def test_an_embedder_of_another_dimension_is_an_error(saved, embedder):
    narrow = copy.deepcopy(embedder)
    narrow.truncate_dim = 16
    with pytest.raises(ValueError, match="dimension is 32; .* has 16"):
        NeighborRetriever.from_pretrained(saved, embedder=narrow)


def test_an_embedder_with_another_max_seq_length_is_an_error(saved, embedder):
    short = copy.deepcopy(embedder)
    short.max_seq_length = 32
    with pytest.raises(ValueError, match="max_seq_length is 64; .* has 32"):
        NeighborRetriever.from_pretrained(saved, embedder=Embedder(short))


def test_opening_leaves_a_given_model_as_it_was(saved, embedder):
    mine = copy.deepcopy(embedder)
    mine.max_seq_length = 32
    earlier = NeighborRetriever.from_documents(CORPUS, mine)
    before = earlier.retrieve(QUERIES, top_k=3)
    with pytest.raises(ValueError, match="max_seq_length is 64; .* has 32"):
        NeighborRetriever.from_pretrained(saved, embedder=mine)
    assert mine.max_seq_length == 32
    assert earlier.retrieve(QUERIES, top_k=3) == before


def test_weights_that_change_under_the_name_of_the_embedder_are_an_error(embedder, other_embedder, tmp_path):
    embedder.save(str(tmp_path / "embedder"))
    folder = NeighborRetriever.from_documents(TEXTS, str(tmp_path / "embedder")).save_pretrained(tmp_path / "index")
    other_embedder.save(str(tmp_path / "embedder"))
    opened = NeighborRetriever.from_pretrained(folder)
    with pytest.raises(ValueError, match="maps the same text .*% away"):
        opened.retrieve(["x"], top_k=1)
    with pytest.raises(ValueError, match="maps the same text .*% away"):
        opened.retrieve(["x"], top_k=1)


def test_an_embedder_that_cannot_be_loaded_is_an_error_that_names_it_and_the_way_out(embedder, tmp_path):
    embedder.save(str(tmp_path / "gone"))
    folder = NeighborRetriever.from_documents(TEXTS, str(tmp_path / "gone")).save_pretrained(tmp_path / "index")
    (tmp_path / "gone").rename(tmp_path / "moved")
    opened = NeighborRetriever.from_pretrained(folder)
    message = f"built with the embedder '{tmp_path / 'gone'}', which cannot be loaded.*embedder=..."
    with pytest.raises(RuntimeError, match=message):
        opened.retrieve(["x"], top_k=1)
    moved = NeighborRetriever.from_pretrained(folder, embedder=str(tmp_path / "moved"))
    assert moved.retrieve([TEXTS[3]], top_k=1)[0][0].text == TEXTS[3]


def test_an_embedder_that_is_not_on_the_hub_is_an_error_that_names_it(saved):
    path = saved / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["embedder"] |= {"name": "user/nothing", "revision": "v1"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(RuntimeError, match="built with the embedder 'user/nothing', which cannot be loaded"):
        NeighborRetriever.from_pretrained(saved).retrieve(["x"], top_k=1)


def test_an_index_from_anybody_does_not_choose_a_folder_here(saved, embedder, monkeypatch):
    path = saved / MANIFEST
    embedder.save(str(saved.parent / "model"))
    manifest = json.loads(path.read_text())
    manifest["embedder"]["name"] = "../model"
    path.write_text(json.dumps(manifest))
    monkeypatch.chdir(saved)
    with pytest.raises(ValueError, match=r"'\.\./model', a relative path, .* is not followed.*embedder="):
        NeighborRetriever.from_pretrained(saved).retrieve(["x"], top_k=1)
    assert len(NeighborRetriever.from_pretrained(saved, embedder="../model").retrieve(["x"], top_k=1)) == 1


@pytest.mark.parametrize("name", ["nothing", "./nothing", "deep/er/nothing", "~/nothing"])
def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"'{name}'"):
        NeighborRetriever.from_pretrained(name)


def test_a_path_object_is_never_an_id_of_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        NeighborRetriever.from_pretrained(tmp_path / "nothing")


def test_a_file_is_no_index(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="file"):
        NeighborRetriever.from_pretrained(tmp_path / "file")


def test_a_folder_without_an_index_is_an_error_that_names_the_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no `tttnn_index.json`"):
        NeighborRetriever.from_pretrained(tmp_path)


def test_a_model_given_for_the_embedder_keeps_its_type(saved, embedder):
    opened = NeighborRetriever.from_pretrained(saved, embedder=embedder)
    assert isinstance(opened.embedder.model, SentenceTransformer)
    assert opened.embedder.model is embedder


# --- vectors, for selectors ---


@pytest.mark.parametrize("preset", ["flat", "ivf", "scale"])
def test_vectors_are_those_that_distances_are_measured_by(embedder, tmp_path, preset):
    settings = IndexSettings(preset, shard_size=23)
    build_index(as_documents(CORPUS), Embedder(embedder), tmp_path / "index", settings)
    retriever = NeighborRetriever.from_pretrained(tmp_path / "index", embedder=embedder)
    neighbors = retriever.retrieve(QUERIES[:1], top_k=20)[0]
    query, vectors = retriever.vectors(QUERIES[0], neighbors)
    assert (query.dtype, query.shape, vectors.dtype, vectors.shape) == (np.float32, (32,), np.float32, (20, 32))
    expected = [neighbor.distance for neighbor in neighbors]
    assert np.square(vectors - query).sum(axis=1) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    exact = embedder.encode([neighbor.text for neighbor in neighbors])
    assert vectors == pytest.approx(exact, abs=2e-3 if preset == "scale" else 1e-5)  # half precision


def test_vectors_that_a_compression_has_changed_are_embedded_again(embedder, tmp_path, monkeypatch):
    build_index(as_documents(CORPUS), Embedder(embedder), tmp_path / "index", IndexSettings("SQ4"))
    retriever = NeighborRetriever.from_pretrained(tmp_path / "index", embedder=embedder)
    neighbors = retriever.retrieve(QUERIES[:1], top_k=5)[0]
    stored = retriever.index.vectors([neighbor.id for neighbor in neighbors])
    exact = embedder.encode([neighbor.text for neighbor in neighbors])
    assert np.abs(stored - exact).max() > 1e-2
    assert retriever.vectors(QUERIES[0], neighbors)[1] == pytest.approx(exact, abs=1e-5)


def test_vectors_are_of_the_query_and_the_neighbors_with_the_prompts_of_each(embedder):
    prompted = Embedder(embedder, query_prompt="query: ", document_prompt="passage: ")
    retriever = NeighborRetriever.from_documents(TEXTS, prompted)
    query, vectors = retriever.vectors("the whale", retriever.retrieve(["the whale"], top_k=3)[0])
    assert query == pytest.approx(embedder.encode(["query: the whale"])[0], abs=1e-5)
    rows = [neighbor.id for neighbor in retriever.retrieve(["the whale"], top_k=3)[0]]
    assert vectors == pytest.approx(embedder.encode([f"passage: {TEXTS[row]}" for row in rows]), abs=1e-5)


# --- the best passage of each document ---

LONG = [" ".join(CORPUS[first : first + 6]) for first in range(0, 60, 6)]


def best_passages(embedder, index, query, length, top_k):
    """The passage nearest to a query of each of its documents, by sentence-transformers and NumPy."""
    (vector,) = embedder.encode([query]).astype(np.float64)
    found = []
    for _, row in index.search(embedder.encode([query]), top_k)[0]:
        passages = list(split_into_passages([Document("d", LONG[row])], Embedder(embedder), length))
        texts = [passage.text for passage in passages]
        distances = ((embedder.encode(texts).astype(np.float64) - vector) ** 2).sum(axis=1)
        found.append((distances.min(), row, texts[distances.argmin()]))
    return sorted(found)


@pytest.mark.parametrize("cached", [False, True])
def test_the_nearest_passage_takes_the_place_of_its_document(embedder, tmp_path, cached):
    index = NeighborRetriever.from_documents(LONG, embedder).index
    for _ in range(2):  # the second time from the cache
        cache = NeighborCache(tmp_path / "cache") if cached else None
        retriever = NeighborRetriever(index, Embedder(embedder), cache, passage_length=20)
        found = retriever.retrieve(QUERIES[:6], top_k=7)
        for query, neighbors in zip(QUERIES, found, strict=False):
            expected = best_passages(embedder, index, query, 20, 7)
            assert [(neighbor.id, neighbor.text) for neighbor in neighbors] == [item[1:] for item in expected]
            distances = [neighbor.distance for neighbor in neighbors]
            assert distances == pytest.approx([item[0] for item in expected], rel=1e-4, abs=1e-5)
            for neighbor in neighbors:
                assert neighbor.text in LONG[neighbor.id]
                assert {"id", "passage", "start_line", "end_line"} <= {*neighbor.metadata}
        query, vectors = retriever.vectors(QUERIES[0], found[0])
        measured = np.square(vectors - query).sum(axis=1)
        assert measured == pytest.approx([neighbor.distance for neighbor in found[0]], rel=1e-4, abs=1e-5)
    assert retriever.retrieve([], top_k=3) == []


def test_one_cache_keeps_documents_passages_of_each_length_and_queries_apart(embedder, tmp_path):
    prompted = Embedder(embedder, query_prompt="query: ", document_prompt="passage: ")
    index = NeighborRetriever.from_documents(LONG, prompted).index
    query = next(split_into_passages([Document("d", LONG[0])], prompted, 20)).text  # a query that is also a passage
    for length in (None, 20, 40, None, 20):
        with_cache = NeighborRetriever(index, prompted, NeighborCache(tmp_path / "cache"), length)
        without = NeighborRetriever(index, prompted, None, length)
        found, expected = (retriever.retrieve([query], top_k=4)[0] for retriever in (with_cache, without))
        assert [(item.id, item.text) for item in found] == [(item.id, item.text) for item in expected]
        assert [item.distance for item in found] == pytest.approx([item.distance for item in expected], rel=1e-5)


def test_what_is_in_the_cache_is_not_embedded_again(embedder, tmp_path, monkeypatch):
    index, cache = NeighborRetriever.from_documents(LONG, embedder).index, NeighborCache(tmp_path / "cache")
    first = NeighborRetriever(index, Embedder(embedder), cache, 20).retrieve(QUERIES[:2], top_k=3)
    retriever = NeighborRetriever(index, Embedder(embedder), cache, 20)
    monkeypatch.setattr(retriever.embedder.model, "encode_document", None)
    assert retriever.retrieve(QUERIES[:2], top_k=3) == first


def test_the_length_of_passages_is_described_and_kept_by_a_part_of_the_index(embedder, tmp_path):
    folder = NeighborRetriever.from_documents(LONG, embedder).save_pretrained(tmp_path / "index")
    retriever = NeighborRetriever.from_pretrained(folder, embedder=embedder, passage_length=20)
    assert retriever.describe()["passage_length"] == 20
    assert retriever.subset(0.5).describe()["passage_length"] == 20


def test_a_length_of_passages_that_the_embedder_does_not_read_is_refused_before_the_first_query(embedder):
    index = NeighborRetriever.from_documents(LONG, embedder).index
    with pytest.raises(ValueError, match="Passages of 65 tokens were asked for"):
        NeighborRetriever(index, Embedder(embedder), passage_length=65).prepare(1)


def test_passages_of_passages_are_refused(embedder):
    index = NeighborRetriever.from_documents(LONG, embedder, passage_tokens=30).index
    with pytest.raises(ValueError, match="the rows of the index are passages of 30 tokens already"):
        NeighborRetriever(index, Embedder(embedder), passage_length=20)
