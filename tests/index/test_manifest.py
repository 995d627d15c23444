"""No file of an index is read before it is found as the manifest says, and no manifest is believed unchecked."""

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from made_indexes import OPENED_FILES, change_manifest, description, flip, index_of_ten

from tttnn.index.build.save import write_index
from tttnn.index.manifest import MANIFEST, parse_manifest, read_manifest
from tttnn.index.opening import open_index


@pytest.fixture
def folder(tmp_path):
    """An index of three shards of 4, 3 and 3 documents."""
    return write_index(index_of_ten(), tmp_path / "index")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """A manifest to be copied and changed."""
    return json.loads((write_index(index_of_ten(), tmp_path_factory.mktemp("good") / "index") / MANIFEST).read_bytes())


# --- files ---


@pytest.mark.parametrize("name", OPENED_FILES)
@pytest.mark.parametrize("position", [0, -1], ids=["first byte", "last byte"])
def test_a_changed_byte_is_an_error_that_names_the_file(folder, name, position):
    flip(folder / name, position)
    with pytest.raises(ValueError, match=f"{name}' is damaged"):
        open_index(folder)


@pytest.mark.parametrize("name", OPENED_FILES)
def test_a_byte_changed_after_a_good_open_is_an_error_that_names_the_file(folder, name):
    open_index(folder)
    flip(folder / name, -1)
    os.utime(folder / name, ns=(0, 0))
    with pytest.raises(ValueError, match=f"{name}' is damaged"):
        open_index(folder)


@pytest.mark.parametrize("name", OPENED_FILES)
def test_verify_finds_a_byte_that_changed_without_a_trace(folder, name):
    open_index(folder)
    times = (folder / name).stat().st_atime_ns, (folder / name).stat().st_mtime_ns
    flip(folder / name, -16)  # a vector, a text, the offset of the last line
    os.utime(folder / name, ns=times)
    open_index(folder)  # the stamp is that of the whole file
    with pytest.raises(ValueError, match=f"{name}' is damaged"):
        open_index(folder, verify=True)


def test_verify_finds_a_damaged_viewer_file(folder):
    flip(folder / "data" / "train-00001.parquet", 100)
    with pytest.raises(ValueError, match="data/train-00001.parquet' is damaged"):
        open_index(folder, verify=True)


def test_an_index_opens_without_its_viewer_files(folder):
    shutil.rmtree(folder / "data")
    assert len(open_index(folder, verify=True)) == 10


def test_a_damaged_file_stays_an_error_at_every_open(folder):
    flip(folder / OPENED_FILES[0], -1)
    for _ in range(2):
        with pytest.raises(ValueError, match="is damaged"):
            open_index(folder)
    flip(folder / OPENED_FILES[0], -1)
    assert len(open_index(folder)) == 10


def test_a_damaged_file_of_a_closed_shard_is_of_no_account(folder):
    flip(folder / OPENED_FILES[0], -1)
    assert len(open_index(folder, verify=True, shards=[0, 2])) == 7


def test_a_whole_file_is_hashed_once_and_again_when_asked(folder, monkeypatch):
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    open_index(folder)
    assert {Path(name).name for name in hashed} == {
        f"shard-0000{shard}.{suffix}" for shard in range(3) for suffix in ("faiss", "jsonl", "offsets.npy")
    }
    hashed.clear()
    open_index(folder)
    assert hashed == []
    open_index(folder, verify=True)
    assert len(hashed) == 12  # those of the viewer as well


def test_another_file_in_the_place_of_a_whole_one_is_hashed(folder, tmp_path):
    open_index(folder)
    path = folder / OPENED_FILES[0]
    status = path.stat()
    shutil.copy(path, tmp_path / "other")
    flip(tmp_path / "other", -1)
    os.utime(tmp_path / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(tmp_path / "other", path)  # same size, same time, another inode
    with pytest.raises(ValueError, match="is damaged"):
        open_index(folder)


def test_an_index_opens_where_the_stamps_cannot_be_kept(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "/proc/nowhere")
    assert len(open_index(folder)) == 10


@pytest.mark.parametrize("name", OPENED_FILES)
@pytest.mark.parametrize("keep", [0, 1, -1], ids=["nothing", "one byte", "all but one byte"])
def test_a_truncated_file_is_an_error_that_names_it_and_both_sizes(folder, name, keep):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:keep])
    message = f"{name}' has {len(content[:keep])} bytes, and the manifest says {len(content)}"
    with pytest.raises(ValueError, match=message):
        open_index(folder)


@pytest.mark.parametrize("name", OPENED_FILES)
def test_a_missing_file_is_an_error_that_names_it(folder, name):
    open_index(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}' is missing"):
        open_index(folder)


def test_shards_that_changed_places_are_an_error(folder):
    first, second = folder / "index/shard-00001.faiss", folder / "index/shard-00002.faiss"
    assert first.stat().st_size == second.stat().st_size
    os.rename(first, folder / "other")
    os.rename(second, first)
    os.rename(folder / "other", second)
    with pytest.raises(ValueError, match="shard-00001.faiss' is damaged"):
        open_index(folder)


# --- manifests ---


def test_a_folder_without_a_manifest_is_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}' holds no `tttnn_index.json`"):
        open_index(tmp_path)


def test_a_good_manifest_comes_back_as_it_is(folder):
    assert read_manifest(folder).to_bytes() == (folder / MANIFEST).read_bytes()


@pytest.mark.parametrize(
    "version", [0, 1, 3, "2", 2.0, True, None, [2], "2" * 10_000], ids=lambda value: str(value)[:5]
)
def test_another_format_version_is_an_error_that_names_both(folder, version):
    change_manifest(folder, format_version=version)
    with pytest.raises(ValueError, match="tttnn_index.json' has format_version .*; this tttnn reads 2") as error:
        open_index(folder)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"format_version": 2, "shards": [',
        b"[]",
        b"null",
        b"2",
        b"\xff\xfe\xfa",
        b'{"format_version": 2}',
        b"[" * 100_000,
    ],
    ids=["empty", "no version", "cut", "list", "null", "number", "not text", "no shards", "deep"],
)
def test_a_broken_manifest_is_an_error_that_names_it(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match="tttnn_index.json"):
        open_index(folder)


def test_a_manifest_that_is_too_large_is_not_read(folder):
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate((256 << 20) + 1)  # of holes, which take no disk
    with pytest.raises(ValueError, match=r"tttnn_index.json' has 268435457 bytes"):
        open_index(folder)


def test_a_changed_byte_of_the_manifest_is_a_clear_error_or_of_no_account(folder):
    content = (folder / MANIFEST).read_bytes()
    outcomes = {"opened": 0, "error": 0}
    for position in range(0, len(content), 23):
        flip(folder / MANIFEST, position)
        try:
            open_index(folder)
            outcomes["opened"] += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error), f"byte {position}: {error}"
            outcomes["error"] += 1
        (folder / MANIFEST).write_bytes(content)
    # most of a manifest is checksums and what they belong to
    assert outcomes["error"] > outcomes["opened"] > 0


def test_a_manifest_that_names_other_rows_is_an_error(folder):
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    shards[2]["rows"] = 4
    change_manifest(folder, shards=shards, num_rows=11)
    with pytest.raises(ValueError, match="Shard 2 of .* should hold 4 rows .* has 3 vectors"):
        open_index(folder)


def test_a_manifest_that_names_another_dimension_is_an_error(folder):
    change_manifest(folder, embedder=description(9))
    with pytest.raises(ValueError, match="rows of dimension 9, but has 4 vectors of dimension 8"):
        open_index(folder)


def test_a_manifest_that_names_another_preset_is_an_error(folder):
    change_manifest(folder, storage={"preset": "ivf", "factory": "IVF1,Flat", "shard_size": 4, "search": {}})
    with pytest.raises(
        ValueError, match=r"shard-00000.faiss' is of the kind b'IxF2', not of that of the preset 'ivf'"
    ):
        open_index(folder)


FAISS = "index/shard-00000.faiss"
WRONG_VALUES = [
    ("embedder", None, None),
    ("embedder", ["name"], 3),
    ("embedder", ["revision"], 3),
    ("embedder", ["dimension"], "8"),
    ("embedder", ["dimension"], 0),
    ("embedder", ["dimension"], True),
    ("embedder", ["dimension"], 2**60),
    ("embedder", ["max_seq_length"], 0),
    ("embedder", ["max_seq_length"], 64.0),
    ("embedder", ["query_prompt"], None),
    ("embedder", ["document_prompt"], ["x"]),
    ("embedder", ["probe"], "12345678"),
    ("embedder", ["probe"], [1.0] * 7),
    ("embedder", ["probe"], [0.0] * 8),
    ("embedder", ["probe"], [1.0] * 7 + [float("nan")]),
    ("embedder", ["probe"], [1.0] * 7 + [float("inf")]),
    ("embedder", ["probe"], [1.0] * 7 + ["1"]),
    ("storage", None, []),
    ("storage", ["preset"], None),
    ("storage", ["factory"], 1),
    ("storage", ["shard_size"], -1),
    ("storage", ["search"], []),
    ("storage", ["search"], {"nprobe": 0}),
    ("storage", ["search"], {"nprobe": "many"}),
    ("storage", ["search"], {"other": 1}),
    ("metric", None, "inner_product"),
    ("corpus_digest", None, "0" * 63),
    ("corpus_digest", None, "G" * 64),
    ("corpus_digest", None, "0" * 64 + "\n"),
    ("passage_tokens", None, 0),
    ("passage_tokens", None, "128"),
    ("recall", None, []),
    ("recall", None, {"recall": 1.5, "target": 0.95, "top_k": 20, "num_queries": 200, "num_rows": 10}),
    ("recall", None, {"recall": 1.0, "target": None, "top_k": 20, "num_queries": 200, "num_rows": 10}),
    ("recall", None, {"recall": 1.0, "target": 0.95, "top_k": 0, "num_queries": 200, "num_rows": 10}),
    ("num_rows", None, 11),
    ("num_documents", None, 9),
    ("shards", None, []),
    ("shards", None, {}),
    ("shards", None, "shards"),
    ("shards", [0], 4),
    ("shards", [0, "rows"], 0),
    ("shards", [0, "rows"], 4.0),
    ("shards", [0, "documents"], -1),
    ("shards", [0, "documents"], 5),
    ("shards", [0, "files"], []),
    ("shards", [0, "files", FAISS, "bytes"], -1),
    ("shards", [0, "files", FAISS, "bytes"], "45"),
    ("shards", [0, "files", FAISS, "sha256"], None),
    ("shards", [0, "files", FAISS, "sha256"], "A" * 64),
]


@pytest.mark.parametrize(("part", "path", "value"), WRONG_VALUES)
def test_a_wrong_value_in_a_manifest_is_an_error(manifest, part, path, value):
    changed = copy.deepcopy(manifest)
    place, *names = [part, *(path or [])]
    inside = changed
    for name in names:
        inside, place = inside[place], name
    inside[place] = value
    with pytest.raises(ValueError, match="here/tttnn_index.json' lacks a part or is damaged"):
        parse_manifest(json.dumps(changed).encode(), "here/tttnn_index.json")


@pytest.mark.parametrize(
    "part",
    [
        "embedder",
        "storage",
        "metric",
        "corpus_digest",
        "passage_tokens",
        "recall",
        "shards",
        "num_rows",
        "num_documents",
    ],
)
def test_a_manifest_without_a_part_is_an_error_that_names_it(manifest, part):
    with pytest.raises(ValueError, match=f"lacks a part or is damaged .*{part}"):
        content = {name: value for name, value in manifest.items() if name != part}
        parse_manifest(json.dumps(content).encode(), "here")


@pytest.mark.parametrize(
    "name", ["../outside.faiss", "/etc/passwd", "index/shard-00001.faiss", "index//shard-00000.faiss"]
)
def test_a_file_with_a_name_of_its_own_is_an_error(manifest, name):
    changed = copy.deepcopy(manifest)
    files = changed["shards"][0]["files"]
    files[name] = files.pop(FAISS)
    with pytest.raises(ValueError, match="files of shard 0"):
        parse_manifest(json.dumps(changed).encode(), "here")


def test_an_error_shows_the_beginning_of_a_value_only(manifest):
    with pytest.raises(ValueError, match="is damaged") as error:
        parse_manifest(json.dumps(manifest | {"metric": "x" * 100_000}).encode(), "here")
    assert len(str(error.value)) < 500


# --- what others may see ---


def public(content):
    """The public manifest of what a file says."""
    return parse_manifest(json.dumps(content).encode(), "here").public().to_json()


def test_a_public_manifest_names_the_folder_of_a_local_embedder_without_the_folders_above_it(manifest):
    local = manifest | {"embedder": description(8, name="/home/ann/models/minilm")}
    assert public(local) == manifest | {"embedder": description(8, name="./minilm")}


@pytest.mark.parametrize("name", ["sentence-transformers/all-MiniLM-L6-v2", "tttlm", "gpt2"])
def test_a_public_manifest_of_a_public_embedder_is_the_manifest(manifest, name):
    named = manifest | {"embedder": description(8, name=name)}
    assert public(named) == named


def test_a_public_manifest_is_made_public_once(manifest):
    once = public(manifest | {"embedder": description(8, name="/home/ann/models/minilm")})
    assert public(once) == once
