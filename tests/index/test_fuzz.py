"""Thousands of damaged indexes: each is refused with a clear error, or opens as what it was."""

import copy
import hashlib
import json
import os
import resource
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from build_program import WordEmbedder, make_documents
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tttnn import Document, NeighborRetriever
from tttnn.index.build.from_documents import IndexSettings, add_documents, build_index
from tttnn.index.build.writers import TextWriter
from tttnn.index.hub.card import index_card
from tttnn.index.manifest import MANIFEST, OFFSETS, SHARD_FILES, TEXTS, VECTORS, parse_manifest
from tttnn.index.opening import open_index
from tttnn.index.texts import TextStore


def thorough(number):
    """Try `number` examples together with the slow tests, a tenth of them without: see `conftest`."""
    number = number * settings().max_examples // 100
    return settings(max_examples=number, deadline=None, derandomize=True, database=None)


PRESETS = ["flat", "ivf", "scale"]
DOCUMENTS = make_documents(60)
QUERIES = WordEmbedder().encode_query([document.text for document in make_documents(4, seed=1)])
ALL_LISTS = {"nprobe": 60, "k_factor": 10}
HEADER_BYTES = 100

INTEGERS = st.integers() | st.sampled_from([0, 1, -1, 2, 30, 60, 2**31, 2**48, 2**63, 2**64, 10**400])
NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "index/shard-00000.faiss",
    "index/shard-00001.faiss",
    "",
    "a" * 64,
    "\x00",
    "é",
]
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=8) | st.sampled_from(NAMES)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(NAMES), inner),
    max_leaves=5,
)
PLACES = st.integers(0, 2**20)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """An index of two shards for each preset."""
    folders = {}
    for preset in PRESETS:
        folders[preset] = tmp_path_factory.mktemp("fuzz") / preset
        build_index(DOCUMENTS, WordEmbedder(), folders[preset], IndexSettings(preset, 40))
    return folders


@pytest.fixture(scope="module")
def answers(indexes):
    """What each index finds when it looks into all lists."""
    found = {}
    for preset, folder in indexes.items():
        index = open_index(folder)
        index.set_search(ALL_LISTS)
        found[preset] = index.search(QUERIES, 10)
    return found


def refused_or_right(folder, answer):
    """Open an index; whether it is refused. Where it opens, all that it holds must be right."""
    try:
        index = open_index(folder, verify=True)
    except (ValueError, FileNotFoundError) as error:
        assert str(error)
        return True
    assert index.documents(range(len(index))) == DOCUMENTS
    assert all(len(pairs) <= 10 for pairs in index.search(QUERIES, 10))
    index.set_search(ALL_LISTS)
    assert index.search(QUERIES, 10) == answer
    return False


def places_of(value, path=()):
    """The paths to all values inside of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places_of(inner, (*path, key))


def part_of(manifest, place):
    """The container and the key of one of the values in a manifest."""
    # the numbers of the probe are many and alike
    paths = [
        path for path in places_of(manifest) if path[:2] != ("embedder", "probe") or len(path) < 3 or path[2] in (0, 1)
    ]
    *path, key = paths[place % len(paths)]
    for step in path:
        manifest = manifest[step]
    return manifest, key


def replaced(manifest, place, value):
    container, key = part_of(manifest, place)
    container[key] = value


def deleted(manifest, place, _):
    container, key = part_of(manifest, place)
    del container[key]


def renamed(manifest, place, value):
    container, key = part_of(manifest, place)
    if isinstance(container, dict):
        container[str(value)] = container.pop(key)
    else:
        container.append(container[key])


def exchanged(manifest, place, other):
    container, key = part_of(manifest, place)
    others, name = part_of(manifest, other if isinstance(other, int) else 7 * place)
    container[key], others[name] = copy.deepcopy(others[name]), copy.deepcopy(container[key])


def stepped(manifest, place, _):
    container, key = part_of(manifest, place)
    if isinstance(container[key], int):
        container[key] += 1
    elif isinstance(container[key], str):
        container[key] = container[key][::-1]


CHANGES = st.tuples(st.sampled_from([replaced, replaced, deleted, renamed, exchanged, stepped]), PLACES, VALUES)


def as_bytes(manifest):
    try:
        return json.dumps(manifest).encode()
    except ValueError:  # a number of too many digits
        return b"1" * 5000


# --- manifests ---


@pytest.mark.parametrize("preset", PRESETS)
@thorough(700)
@given(changes=st.lists(CHANGES, min_size=1, max_size=2))
def test_a_changed_manifest_is_refused_or_opens_the_right_index(preset, indexes, answers, changes):
    path = indexes[preset] / MANIFEST
    content = path.read_bytes()
    manifest = json.loads(content)
    for change, place, value in changes:
        change(manifest, place, value)
    try:
        path.write_bytes(as_bytes(manifest))
        refused_or_right(indexes[preset], answers[preset])
    finally:
        path.write_bytes(content)


@thorough(1000)
@given(place=PLACES, value=st.integers(0, 255), cut=st.booleans(), insert=st.booleans())
def test_a_manifest_of_damaged_bytes_is_refused_or_opens_the_right_index(indexes, answers, place, value, cut, insert):
    path = indexes["ivf"] / MANIFEST
    content = path.read_bytes()
    # not the probe, which is most of the file
    outside = [*range(content.index(b'"probe"') + 30), *range(content.index(b'"metric"'), len(content))]
    place = outside[place % len(outside)]
    try:
        path.write_bytes(content[:place] + (b"" if cut else bytes([value]) + content[place + (not insert) :]))
        refused_or_right(indexes["ivf"], answers["ivf"])
    finally:
        path.write_bytes(content)


@thorough(2000)
@example(content=b"[" * 100_000)
@example(content=b'{"format_version":' * 900 + b"2" + b"}" * 900)
@example(content=b'{"format_version": 2' + b"0" * 5000 + b"}")
@example(content=b"\xff\xfe{")
@example(content=b"null")
@given(content=st.binary(max_size=50) | VALUES.map(as_bytes))
def test_bytes_that_are_no_manifest_are_refused(content):
    with pytest.raises(ValueError, match=r"'some/tttnn_index.json'"):
        parse_manifest(content, "some/tttnn_index.json")


@pytest.mark.parametrize("depth", [*range(900, 1000, 3)])
def test_deep_values_are_refused(depth, indexes):
    manifest = json.loads((indexes["flat"] / MANIFEST).read_bytes())
    manifest["format_version"] = "HERE"
    content = json.dumps(manifest).replace('"HERE"', "[" * depth + "]" * depth).encode()
    with pytest.raises(ValueError, match=r"'some/tttnn_index.json'"):
        parse_manifest(content, "some/tttnn_index.json")


@thorough(1500)
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_a_manifest_that_parses_serves_where_it_is_used(indexes, changes):
    manifest = json.loads((indexes["scale"] / MANIFEST).read_bytes())
    for change, place, value in changes:
        change(manifest, place, value)
    try:
        manifest = parse_manifest(as_bytes(manifest), "tttnn_index.json")
    except ValueError:
        return
    assert index_card(manifest, "user/name").startswith("---\n")
    try:
        WordEmbedder().check(manifest.embedder.to_json())
    except ValueError as error:
        assert "Pass the embedder that built it" in str(error)


# --- files ---


@pytest.mark.parametrize("name", SHARD_FILES)
@pytest.mark.parametrize("preset", PRESETS)
@thorough(60)
@given(place=PLACES, bit=st.integers(0, 7), shard=st.integers(0, 1))
def test_a_flipped_bit_of_a_file_is_refused(preset, name, indexes, place, bit, shard):
    path = indexes[preset] / name.format(shard)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[place % len(content)] ^= 1 << bit
    try:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=path.name):
            open_index(indexes[preset], verify=True)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", SHARD_FILES)
@pytest.mark.parametrize("preset", PRESETS)
@thorough(40)
@given(place=PLACES, more=st.binary(max_size=20))
def test_a_file_of_another_length_is_refused(preset, name, indexes, place, more):
    path = indexes[preset] / name.format(0)
    content = path.read_bytes()
    try:
        path.write_bytes(content + more if more else content[: place % len(content)])
        with pytest.raises(ValueError, match=f"{path.name}.* bytes, and the manifest says {len(content)}"):
            open_index(indexes[preset], verify=True)
    finally:
        path.write_bytes(content)


# --- texts whose checksum nobody compares: those of a store on its own ---


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A text store of 20 documents."""
    path = tmp_path_factory.mktemp("store") / "shard.jsonl"
    writer = TextWriter(path)
    for row in range(20):
        writer.add(Document(f"{row}", "text é\n" * row, {"row": row}))
    writer.close()
    return path


def fetched(path):
    """Each row of a damaged store: a document or a `ValueError`."""
    try:
        texts = TextStore(path, 20)
    except ValueError:
        return []
    found = []
    for row in range(20):
        try:
            (document,) = texts.fetch([row])
            assert type(document.id) is type(document.text) is str
            found.append(document)
        except ValueError as error:
            assert "is damaged" in str(error) or "are damaged" in str(error)
    return found


@thorough(500)
@given(place=PLACES, value=st.integers(0, 255))
def test_a_changed_byte_of_a_text_store_gives_documents_or_clear_errors(store, place, value):
    content = store.read_bytes()
    place %= len(content)
    try:
        store.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        assert len(fetched(store)) >= 19, "the others are as they were"
    finally:
        store.write_bytes(content)


@thorough(500)
@given(place=PLACES, value=st.integers(0, 255), cut=st.booleans())
def test_changed_bytes_of_offsets_give_documents_or_clear_errors(store, place, value, cut):
    path = store.with_suffix(".offsets.npy")
    content = path.read_bytes()
    place %= len(content)
    try:
        path.write_bytes(content[:place] + (b"" if cut else bytes([value]) + content[place + 1 :]))
        fetched(store)
    finally:
        path.write_bytes(content)


@thorough(500)
@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 2000), min_size=20, max_size=20))
def test_any_offsets_give_documents_or_clear_errors(store, numbers):
    path = store.with_suffix(".offsets.npy")
    content = path.read_bytes()
    try:
        np.save(path, np.array([*numbers, store.stat().st_size], dtype=np.int64))
        fetched(store)
    finally:
        path.write_bytes(content)


# --- Faiss files that somebody made to fit their manifest ---


def forge(folder, name, content):
    """Write a file, and its size and checksum into the manifest."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["shards"][0]["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def open_and_search(folder):
    """What became of a forged index."""
    try:
        index = open_index(folder)
        for pairs in index.search(QUERIES, 10):
            index.documents([row for _, row in pairs])
    except (ValueError, IndexError, RuntimeError) as error:
        return "memory" if "bad_alloc" in str(error) else type(error).__name__
    return "opened"


def in_a_child(action, items):
    """Do something with each item in a separate process, and after a crash in another; what became of each."""
    found = []
    while len(found) < len(items):
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            faiss.omp_set_num_threads(1)  # the threads of the parent are not here
            for item in items[len(found) :]:
                signal.alarm(30)
                os.write(writing, f"{action(item)}\n".encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as lines:
            found += lines.read().split()
        status = os.waitpid(process, 0)[1]
        if status:
            found.append(f"status-{status}")
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_a_forged_header_of_a_faiss_file_does_not_crash(preset, indexes, tmp_path):
    folder = shutil.copytree(indexes[preset], tmp_path / "index")
    name = VECTORS.format(0)
    content = (folder / name).read_bytes()
    forged = []
    for place in range(HEADER_BYTES):
        for value in (content[place] ^ 1, content[place] ^ 0x80, 0, 0xFF):
            forged.append(content[:place] + bytes([value]) + content[place + 1 :])

    def attempt(damaged):
        forge(folder, name, damaged)
        return open_and_search(folder)

    found = in_a_child(attempt, forged)
    assert {*found} <= {"opened", "InputError", "RuntimeError"}
    # the four bytes of the kind, the dimension and the number of rows are compared
    assert {result for result, damaged in zip(found, forged, strict=True) if damaged[:16] != content[:16]} <= {
        "InputError"
    }


def places_of_numbers(content):
    """Where the numbers of a Faiss file may stand: in its headers, and before each list."""
    middle = [place for kind in (b"ilar", b"ilbl", b"IxSQ") if (place := content.find(kind)) >= 0]
    return sorted({*range(200), *(place + step for place in middle for step in range(-60, 120)), len(content) - 4})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_forged_size_takes_no_memory_and_does_not_crash(preset, indexes, tmp_path):
    folder = shutil.copytree(indexes[preset], tmp_path / "index")
    name = VECTORS.format(0)
    content = (folder / name).read_bytes()
    forged = []
    for place in places_of_numbers(content):
        for number in (2**20, 2**31 - 1, 2**40, 2**63 - 1, 2**64 - 1):
            forged.append(content[:place] + number.to_bytes(8, "little") + content[place + 8 :])
    forged = [damaged[: len(content)] for damaged in forged]

    def attempt(damaged):
        forge(folder, name, damaged)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        return open_and_search(folder)

    assert {*in_a_child(attempt, forged)} <= {"opened", "InputError"}


def replace_part(content, kind, other):
    place = content.index(kind)
    return content[:place] + other + content[place + 4 :]


@pytest.mark.parametrize(
    ("preset", "kind", "other"),
    [
        ("ivf", b"IxF2", b"IxPq"),
        ("ivf", b"ilar", b"ilod"),
        ("ivf", b"full", b"abcd"),
        ("scale", b"Iwrn", b"IwPf"),
        ("scale", b"IxF2", b"IHNf"),
        ("scale", b"ilbl", b"ilar"),
        ("scale", b"IxSQ", b"IxF2"),
    ],
)
def test_a_part_of_another_kind_is_refused_before_faiss_reads_it(preset, kind, other, indexes, tmp_path, monkeypatch):
    folder = shutil.copytree(indexes[preset], tmp_path / "index")
    name = VECTORS.format(0)
    forge(folder, name, replace_part((folder / name).read_bytes(), kind, other))
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("Faiss read it"))
    with pytest.raises(ValueError, match=f"cannot read .*{name}'.*damaged or forged|lists have the form"):
        open_index(folder)


@pytest.mark.parametrize("preset", PRESETS)
def test_bytes_after_the_end_of_a_faiss_file_are_refused(preset, indexes, tmp_path):
    folder = shutil.copytree(indexes[preset], tmp_path / "index")
    name = VECTORS.format(0)
    forge(folder, name, (folder / name).read_bytes() + b"more")
    with pytest.raises(ValueError, match="4 bytes follow its end"):
        open_index(folder)


def test_lists_that_hold_other_rows_than_the_file_claims_are_refused(indexes, tmp_path):
    folder = shutil.copytree(indexes["ivf"], tmp_path / "index")
    name = VECTORS.format(0)
    content = bytearray((folder / name).read_bytes())
    place = content.index(b"full") + 12  # the length of the first list
    content[place : place + 8] = (int.from_bytes(content[place : place + 8], "little") + 1).to_bytes(8, "little")
    forge(folder, name, bytes(content))
    with pytest.raises(ValueError, match="its lists do not hold 40 rows"):
        open_index(folder)


# --- factories, whose files are not checked ---


@pytest.fixture
def from_elsewhere(tmp_path, monkeypatch):
    """An index of a factory that was built on another machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "other_home"))
    build_index(DOCUMENTS, WordEmbedder(), tmp_path / "index", IndexSettings("IVF2,SQ8", 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "index"


def test_an_index_of_a_factory_opens_where_it_was_built(tmp_path):
    build_index(DOCUMENTS, WordEmbedder(), tmp_path / "index", IndexSettings("IVF2,SQ8", 40))
    assert len(open_index(tmp_path / "index")) == 60
    assert len(open_index(shutil.copytree(tmp_path / "index", tmp_path / "copy"))) == 60
    add_documents(make_documents(5, seed=1), WordEmbedder(), tmp_path / "index")
    assert len(open_index(tmp_path / "index")) == 65


def test_an_index_of_a_factory_that_was_built_elsewhere_must_be_trusted(from_elsewhere):
    with pytest.raises(ValueError, match=r"not on this machine.* pass `trust_index=True` \(`--trust-index`\)"):
        open_index(from_elsewhere)
    with pytest.raises(ValueError, match="pass `trust_index=True`"):
        add_documents(make_documents(5, seed=1), WordEmbedder(), from_elsewhere)
    assert len(open_index(from_elsewhere, trust_index=True)) == 60
    trusting = NeighborRetriever.from_pretrained(from_elsewhere, embedder=WordEmbedder(), trust_index=True)
    assert len(trusting) == 60
    assert add_documents(make_documents(5, seed=1), WordEmbedder(), from_elsewhere, trust_index=True) == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_a_faiss_file_of_other_rows_that_fits_its_manifest_is_refused(preset, indexes, tmp_path):
    folder = shutil.copytree(indexes[preset], tmp_path / "index")
    forge(folder, VECTORS.format(0), (folder / VECTORS.format(1)).read_bytes())
    with pytest.raises(ValueError, match="Shard 0 of .* should hold 40 rows of dimension 32, but has 20 vectors"):
        open_index(folder)


@pytest.mark.parametrize("name", [TEXTS, OFFSETS])
def test_texts_of_another_shard_that_fit_their_manifest_are_refused(name, indexes, tmp_path):
    folder = shutil.copytree(indexes["flat"], tmp_path / "index")
    forge(folder, name.format(0), (folder / name.format(1)).read_bytes())
    with pytest.raises(ValueError, match="does not hold the offsets of 40 lines"):
        open_index(folder)


# --- several threads ---


@pytest.mark.parametrize("preset", PRESETS)
def test_each_of_eight_threads_gets_its_own_neighbors(preset, indexes):
    retriever = NeighborRetriever.from_pretrained(indexes[preset], embedder=WordEmbedder())
    texts = [document.text for document in make_documents(80, seed=2)]
    expected = [retriever.retrieve([text], top_k=5)[0] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: retriever.retrieve([text], top_k=5)[0], texts * 4))
    assert found == expected * 4


def test_each_of_eight_threads_gets_its_own_neighbors_with_a_transformer(retriever):
    texts = [document.text for document in make_documents(16, seed=2)]
    expected = [retriever.retrieve([text], top_k=5)[0] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: retriever.retrieve([text], top_k=5)[0], texts * 2))
    assert found == expected * 2
