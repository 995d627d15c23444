"""The manifest of an index: what its files are, how long, and with which checksums; nothing is read before it fits."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from tttnn.errors import InputError
from tttnn.files import sha256_of
from tttnn.index.vectors import import_faiss


logger = logging.getLogger(__name__)

MANIFEST = "tttnn_index.json"
FORMAT_VERSION = 2
VECTORS, TEXTS, OFFSETS = "index/shard-{:05d}.faiss", "texts/shard-{:05d}.jsonl", "texts/shard-{:05d}.offsets.npy"
# "train" in its name lets `load_dataset` find the split
VIEWER = "data/train-{:05d}.parquet"
SHARD_FILES = (VECTORS, TEXTS, OFFSETS, VIEWER)
# Opened, every value is checked; more than this many shards or bytes are not a description of an index.
MAX_MANIFEST_BYTES = 256 << 20


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """
    Read the manifest of an index, and make sure that it is one.

    Args:
        folder (`str` or `Path`):
            The index.

    Returns:
        `dict[str, Any]`: the manifest.

    Raises:
        `FileNotFoundError`: If the folder has no manifest.
        `ValueError`: If it is damaged, or of another format.
    """
    return parse_manifest(manifest_bytes(folder), Path(folder) / MANIFEST)


def manifest_bytes(folder: str | Path) -> bytes:
    """
    Read the manifest of an index as it is.

    Args:
        folder (`str` or `Path`):
            The index.

    Returns:
        `bytes`: the file, for `parse_manifest`.

    Raises:
        `FileNotFoundError`: If the folder has no manifest.
        `ValueError`: If the file is too large to be one.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"'{folder}' holds no `{MANIFEST}`, so it is no index. Build one: `tttnn build-index`."
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputError(f"'{path}' has {path.stat().st_size} bytes, which no manifest has. Fetch the index anew.")
    return path.read_bytes()


def parse_manifest(content: bytes, path: str | Path) -> dict[str, Any]:
    """
    Parse a manifest, and check every part that is relied upon.

    Args:
        content (`bytes`):
            The file, which may come from anybody.
        path (`str` or `Path`):
            Where it was, for errors.

    Returns:
        `dict[str, Any]`: the manifest.

    Raises:
        `ValueError`: If it is damaged, or of another format.
    """
    try:
        manifest = json.loads(content)
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"'{path}' is not a manifest ({error!r:.200}). Fetch or build the index anew.") from None
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"'{path}' has format_version {version!r:.100}; this tttnn reads {FORMAT_VERSION}. Install the tttnn that "
            "wrote it, or build the index anew."
        )
    try:
        _check_embedder(manifest["embedder"])
        _check_storage(manifest["storage"])
        _need(manifest["metric"] == "squared_l2", "metric", manifest["metric"])
        _need(_digest(manifest["corpus_digest"]), "corpus_digest", manifest["corpus_digest"])
        sources, tokens = manifest["sources"], manifest["passage_tokens"]
        _need(type(sources) is list and all(type(name) is str for name in sources), "sources", sources)
        _need(tokens is None or _whole(tokens), "passage_tokens", tokens)
        _check_recall(manifest["recall"])
        shards = manifest["shards"]
        _need(type(shards) is list and shards != [], "shards", shards)
        for number, shard in enumerate(shards):
            _check_shard(shard, number)
        _need(manifest["num_rows"] == sum(shard["rows"] for shard in shards), "num_rows", manifest["num_rows"])
        documents = sum(shard["documents"] for shard in shards)
        _need(manifest["num_documents"] == documents, "num_documents", manifest["num_documents"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(
            f"'{path}' lacks a part or is damaged ({error!r:.200}). Fetch or build the index anew."
        ) from None
    return manifest


def _need(condition: bool, name: str, value: object) -> None:
    if not condition:
        raise InputError(f"`{name}` is {value!r:.100}")


def _whole(value: object) -> bool:
    return type(value) is int and 0 < value < 2**48


def _digest(value: object) -> bool:
    return type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _check_embedder(embedder: dict[str, Any]) -> None:
    for name in ("name", "query_prompt", "document_prompt"):
        _need(type(embedder[name]) is str, f"embedder.{name}", embedder[name])
    _need(embedder["revision"] is None or type(embedder["revision"]) is str, "embedder.revision", embedder["revision"])
    _need(_whole(embedder["dimension"]), "embedder.dimension", embedder["dimension"])
    limit, probe = embedder["max_seq_length"], embedder["probe"]
    _need(limit is None or _whole(limit), "embedder.max_seq_length", limit)
    if probe is not None:  # that of an index made of vectors that came from elsewhere
        finite = type(probe) is list and all(map(_finite, probe)) and any(probe)
        _need(finite and len(probe) == embedder["dimension"], "embedder.probe", probe)


def _check_storage(storage: dict[str, Any]) -> None:
    for name in ("preset", "factory"):
        _need(type(storage[name]) is str, f"storage.{name}", storage[name])
    _need(_whole(storage["shard_size"]), "storage.shard_size", storage["shard_size"])
    search = storage["search"]
    _need(type(search) is dict and {*search} <= {"nprobe", "k_factor"}, "storage.search", search)
    _need(all(map(_whole, search.values())), "storage.search", search)


def _check_recall(recall: dict[str, Any] | None) -> None:
    if recall is not None:
        for name in ("recall", "target"):
            _need(_finite(recall[name]) and 0 <= recall[name] <= 1, f"recall.{name}", recall[name])
        for name in ("top_k", "num_queries", "num_rows"):
            _need(_whole(recall[name]), f"recall.{name}", recall[name])


def _check_shard(shard: dict[str, Any], number: int) -> None:
    _need(_whole(shard["rows"]), f"rows of shard {number}", shard["rows"])
    documents, files = shard["documents"], shard["files"]
    _need(type(documents) is int and 0 <= documents <= shard["rows"], f"documents of shard {number}", documents)
    # names are known beforehand, so that none leads out of the folder
    _need({*files} == {name.format(number) for name in SHARD_FILES}, f"files of shard {number}", [*files])
    for name, file in files.items():
        _need(type(file["bytes"]) is int and file["bytes"] >= 0, f"bytes of {name}", file["bytes"])
        _need(_digest(file["sha256"]), f"sha256 of {name}", file["sha256"])


def public_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """
    Leave out of a manifest what is this machine's own: the path of an embedder that is a local folder.

    Args:
        manifest (`dict[str, Any]`):
            Of an index.

    Returns:
        `dict[str, Any]`: with `./minilm`, say, in the place of the path, which is neither on the Hub nor loaded.
    """
    embedder, path = manifest["embedder"], Path(manifest["embedder"]["name"])
    name = f"./{path.name}" if path.is_absolute() else embedder["name"]
    return {**manifest, "embedder": {**embedder, "name": name}}


def check_file(path: Path, expected: dict[str, Any], verify: bool = False) -> None:
    """
    Make sure that a file is the one that the manifest describes.

    Args:
        path (`Path`):
            The file.
        expected (`dict[str, Any]`):
            Its `bytes` and `sha256`.
        verify (`bool`, *optional*, defaults to `False`):
            Whether to hash it even where an earlier open on this machine has found it whole.

    Raises:
        `FileNotFoundError`: If it is missing.
        `ValueError`: If size or checksum differ.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"'{path}' is missing, though the manifest names it. Fetch the whole index (`tttnn pull`), "
            "or open those of its shards that are there."
        )
    # in the Hub's cache a link to the file: removed alone, it would be put back without a download
    status = path.resolve().stat()
    if status.st_size != expected["bytes"]:
        raise InputError(
            f"'{path}' has {status.st_size} bytes, and the manifest says {expected['bytes']}: it is damaged or not "
            f"fetched to its end. Remove '{path.resolve()}', and fetch or build the index anew."
        )
    # Hashing a large index takes minutes, so a file found whole once is only looked at again after a change.
    stamp = f"{path.resolve()}\n{status.st_size} {status.st_mtime_ns} {status.st_ino}\n{expected['sha256']}"
    name = hashlib.sha256(stamp.encode()).hexdigest()
    stamp_file = Path(constants.HF_HOME) / "tttnn" / "verified" / name
    if stamp_file.exists() and not verify:
        return
    found = sha256_of(path)
    if found != expected["sha256"]:
        raise InputError(
            f"'{path}' is damaged: its sha256 is {found}, and the manifest says {expected['sha256']}. Remove "
            f"'{path.resolve()}', and fetch or build the index anew."
        )
    try:
        stamp_file.parent.mkdir(parents=True, exist_ok=True)
        stamp_file.touch()
    except OSError as error:
        logger.info("'%s' was verified, but that cannot be kept for the next time: %s", path, error)


def describe_file(path: Path) -> dict[str, Any]:
    """
    Describe a file in the way of the manifest.

    Args:
        path (`Path`):
            The file.

    Returns:
        `dict[str, Any]`: `bytes` and `sha256`.
    """
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def make_manifest(
    shards: list[dict[str, Any]],
    embedder: dict[str, Any],
    storage: dict[str, Any],
    passage_tokens: int | None = None,
    sources: Sequence[str] = (),
    recall: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Describe an index.

    Args:
        shards (`list[dict[str, Any]]`):
            The entry of each, as `ShardWriter.finish` gives it.
        embedder (`dict[str, Any]`):
            What `Embedder.describe` says.
        storage (`dict[str, Any]`):
            `preset`, `factory`, `shard_size` and `search`.
        passage_tokens (`int`, *optional*):
            Most tokens of a passage, where rows are passages.
        sources (`Sequence[str]`, *optional*):
            What was indexed, by name.
        recall (`dict[str, Any]`, *optional*):
            What was measured; none for an exact index.

    Returns:
        `dict[str, Any]`: the manifest, JSON-able.
    """
    digests = [shard["files"][TEXTS.format(number)]["sha256"] for number, shard in enumerate(shards)]
    return {
        "format_version": FORMAT_VERSION,
        "library_versions": {name: version(name) for name in ("tttnn", "sentence-transformers", "transformers")},
        "faiss_version": import_faiss().__version__,
        "sources": list(sources),
        "embedder": embedder,
        "metric": "squared_l2",
        "passage_tokens": passage_tokens,
        "storage": storage,
        "recall": recall,
        "num_documents": sum(shard["documents"] for shard in shards),
        "num_rows": sum(shard["rows"] for shard in shards),
        "corpus_digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "shards": shards,
    }


def chosen_shards(manifest: dict[str, Any], shards: Sequence[int] | None) -> list[int]:
    """
    Check which shards are asked for.

    Args:
        manifest (`dict[str, Any]`):
            Of the index.
        shards (`Sequence[int]`, *optional*):
            Their numbers. By default all.

    Returns:
        `list[int]`: the numbers, in order.

    Raises:
        `ValueError`: If none is asked for, or one that is not there.
    """
    count = len(manifest["shards"])
    numbers = sorted({*range(count)} if shards is None else {*shards})
    if not numbers or numbers[0] < 0 or numbers[-1] >= count:
        raise InputError(f"The shards {numbers} were asked for, but the index has shards 0 to {count - 1}.")
    return numbers
