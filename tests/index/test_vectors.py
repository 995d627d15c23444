"""Names of Faiss indexes follow from the number of rows, and only files of squared L2 distances are opened."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from tttnn.index.vectors import (
    FILE_KINDS,
    check_factory,
    default_shard_size,
    factory_for,
    num_training_rows,
    read_vectors,
    trained_index,
    tune,
)


VECTORS = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    """Write a Faiss index to a file, with rows or without."""

    def write(index, add=True):
        if add:
            index.train(VECTORS)
            index.add(VECTORS)
        faiss.write_index(index, str(tmp_path / "some.faiss"))
        return tmp_path / "some.faiss"

    return write


@pytest.mark.parametrize(
    ("preset", "num_rows", "factory"),
    [
        ("flat", 10**6, "Flat"),
        ("ivf", 10**6, "IVF4000,Flat"),  # 4 * 1000
        ("ivf", 25_000_000, "IVF20000,Flat"),  # 4 * 5000
        ("ivf", 10_000, "IVF256,Flat"),  # 10000 / 39, which is less than 4 * 100
        ("ivf", 78, "IVF2,Flat"),
        ("ivf", 77, "IVF1,Flat"),
        ("ivf", 1, "IVF1,Flat"),
        ("scale", 10**6, "IVF4000,RaBitQfs,Refine(SQfp16)"),
        ("scale", 1, "IVF1,RaBitQfs,Refine(SQfp16)"),
        ("IVF7,PQ4x4", 10**6, "IVF7,PQ4x4"),
    ],
)
def test_the_number_of_lists_follows_from_the_number_of_rows(preset, num_rows, factory):
    assert factory_for(preset, num_rows, 16) == factory


@pytest.mark.parametrize(("dimension", "rows"), [(1024, 131_072), (384, 349_525), (2**29, 1)])
def test_a_shard_takes_as_many_rows_as_fill_half_a_gibibyte(dimension, rows):
    assert default_shard_size(dimension) == rows


@pytest.mark.parametrize(
    ("num_rows", "dimension", "expected"),
    [
        (10**6, 384, 256_000),  # 64 for each of 4000 lists
        (10**6, 1024, 131_072),  # 512 MiB / (4 * 1024)
        (1000, 384, 1000),  # 64 * round(4 * 31.6) is more than there are
        (1, 384, 1),
        (5, 2**40, 1),
    ],
)
def test_an_index_is_trained_on_64_rows_a_list_as_far_as_memory_goes(num_rows, dimension, expected):
    assert num_training_rows(num_rows, dimension) == expected


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "IVF4,RaBitQfs,Refine(SQfp16)", "PQ4x4", "PCA8,Flat"])
def test_a_trained_index_is_empty_and_of_squared_l2_distances(factory):
    index = trained_index(factory, VECTORS)
    assert (index.ntotal, index.d, index.is_trained, index.metric_type) == (0, 16, True, faiss.METRIC_L2)


@pytest.mark.parametrize("factory", ["IVF4,Flat", "IVF4,RaBitQfs,Refine(SQfp16)", "PQ4x4"])
def test_training_is_the_same_each_time(factory):
    first, second = (faiss.serialize_index(trained_index(factory, VECTORS)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("factory", "number"),
    [("nonsense", 300), ("", 300), ("IVF,Flat", 300), ("PQ5", 300), ("PQ4", 10), ("IVF400,Flat", 300)],
    ids=["unknown", "empty", "no number", "not a divisor", "too few for a code book", "too few for the lists"],
)
def test_an_index_that_faiss_cannot_make_is_an_error_that_says_so(factory, number):
    with pytest.raises(ValueError, match=rf"cannot make the index {factory!r} from {number} vectors of dimension 16"):
        trained_index(factory, VECTORS[:number])


@pytest.mark.parametrize("factory", ["LSH", "IDMap,Flat", "NSG8,Flat", "IVF4,PQ4x4+4x4"])
def test_an_index_of_a_kind_that_is_not_read_is_not_made(factory):
    with pytest.raises(ValueError, match=r"which is not read\. Choose another factory|cannot make the index"):
        check_factory(factory, 16)


@pytest.mark.parametrize("preset", FILE_KINDS)
def test_the_file_of_a_preset_opens_as_one_of_that_preset_only(preset, write):
    path = write(faiss.index_factory(16, factory_for(preset, 300, 16)))
    assert (read_vectors(path, preset).ntotal, read_vectors(path, preset).d) == (300, 16)
    for other in {*FILE_KINDS} - {preset}:
        with pytest.raises(ValueError, match=f"some.faiss' is of the kind .* not of that of the preset '{other}'"):
            read_vectors(path, other)


@pytest.mark.parametrize("preset", ["flat", "scale"])
def test_vectors_that_are_stored_whole_are_mapped(preset, write):
    path = write(faiss.index_factory(16, factory_for(preset, 300, 16)))
    index = read_vectors(path, preset)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert index.ntotal == 300


@pytest.mark.parametrize(
    ("index", "preset"),
    [
        (faiss.IndexFlatIP(16), "flat"),
        (faiss.IndexFlat(16, faiss.METRIC_L1), "flat"),
        (faiss.index_factory(16, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT), "ivf"),
        (faiss.index_factory(16, "HNSW8", faiss.METRIC_INNER_PRODUCT), "HNSW8"),
    ],
    ids=["flat products", "flat L1", "lists", "graph"],
)
def test_a_file_of_other_distances_is_refused(index, preset, write):
    path = write(index)
    with pytest.raises(ValueError, match="some.faiss' is (not an index of squared L2 distances|of the kind)"):
        read_vectors(path, preset)


@pytest.mark.parametrize(("factory", "preset"), [("IVF4,Flat", "ivf"), ("PQ4x4", "PQ4x4"), ("SQ8", "SQ8")])
def test_a_file_that_is_not_trained_is_refused(factory, preset, write):
    with pytest.raises(ValueError, match="some.faiss' is not an index of squared L2 distances"):
        read_vectors(write(faiss.index_factory(16, factory), add=False), preset)


@pytest.mark.parametrize("preset", [*FILE_KINDS, "HNSW8"])
@pytest.mark.parametrize("content", [b"", b"Ix", b"IxF2", b"IwFl", b"IxRF", b'{"a": 1}', b"IHNf" + bytes(10)])
def test_what_is_no_faiss_file_is_refused(content, preset, tmp_path):
    path = tmp_path / "some.faiss"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="some.faiss' is of the kind|Faiss cannot read '.*some.faiss'"):
        read_vectors(path, preset)


def test_an_index_that_names_another_file_is_refused(tmp_path):
    lists = faiss.index_factory(16, "IVF4,Flat")
    lists.train(VECTORS)
    elsewhere = faiss.OnDiskInvertedLists(4, lists.code_size, str(tmp_path / "lists"))
    lists.replace_invlists(elsewhere, False)
    lists.add(VECTORS)
    faiss.write_index(lists, str(tmp_path / "some.faiss"))
    with pytest.raises(ValueError, match="some.faiss"):
        read_vectors(tmp_path / "some.faiss", "ivf")


# --- how thoroughly to search ---


def lists_of(number):
    index = faiss.index_factory(16, f"IVF{number},Flat")
    index.train(VECTORS)
    return index


def tuned(index, recalls, target):
    """The choice, and the settings that were measured; `recalls` gives the recalls of each, by `k_factor`."""
    measured = []

    def measure(search, k_factors):
        measured.append((search, *k_factors))
        return recalls[len(measured) - 1]

    return tune(index, measure, target), measured


def test_the_first_settings_that_reach_the_target_are_taken():
    (search, recall), measured = tuned(lists_of(16), [[0.5], [0.7], [0.9], [0.99]], 0.9)
    assert (search, recall) == ({"nprobe": 4}, 0.9)
    assert measured == [({"nprobe": 1}, 1), ({"nprobe": 2}, 1), ({"nprobe": 4}, 1)]


def test_where_none_reaches_the_target_the_best_is_taken():
    (search, recall), measured = tuned(lists_of(5), [[0.5], [0.8], [0.7], [0.8]], 0.9)
    assert (search, recall) == ({"nprobe": 2}, 0.8)
    assert [settings["nprobe"] for settings, _ in measured] == [1, 2, 4, 5], "the last are all lists there are"


def test_more_candidates_are_ranked_again_before_more_lists_are_looked_into():
    index = trained_index("IVF2,RaBitQfs,Refine(SQfp16)", VECTORS)
    (search, recall), measured = tuned(index, [[0.5, 0.6, 0.6], [0.7, 0.95, 0.97]], 0.9)
    assert (search, recall) == ({"nprobe": 2, "k_factor": 8}, 0.95)
    assert measured == [({"nprobe": 1}, 4, 8, 16), ({"nprobe": 2}, 4, 8, 16)], "each number of lists once"


def test_an_index_without_settings_is_measured_once():
    (search, recall), measured = tuned(trained_index("PQ4x4", VECTORS), [[0.5]], 0.9)
    assert (search, recall, measured) == ({}, 0.5, [({}, 1)])
