"""The manifest of an index: what its files are, how long, and with which checksums; nothing is read before it fits."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tttnn.errors import InputError
from tttnn.files import sha256_of, to_json
from tttnn.index.vectors import faiss_version


logger = logging.getLogger(__name__)

MANIFEST = "tttnn_index.json"
FORMAT_VERSION = 2
METRIC = "squared_l2"
VECTORS, TEXTS, OFFSETS = "index/shard-{:05d}.faiss", "texts/shard-{:05d}.jsonl", "texts/shard-{:05d}.offsets.npy"
# "train" in its name lets `load_dataset` find the split
VIEWER = "data/train-{:05d}.parquet"
SEARCH_FILES = (VECTORS, TEXTS, OFFSETS)  # what a search needs of a shard
SHARD_FILES = (*SEARCH_FILES, VIEWER)
# Every value of a manifest is checked; a larger file cannot be one.
MAX_MANIFEST_BYTES = 256 << 20


@dataclass(frozen=True)
class FileEntry:
    """A file of an index: its size and its sha256."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """Describe a file on disk."""
        return cls(path.stat().st_size, sha256_of(path))

    @classmethod
    def from_json(cls, content: dict[str, Any], name: str) -> "FileEntry":
        """Check the entry of the file `name`."""
        size, digest = content["bytes"], content["sha256"]
        _need(type(size) is int and size >= 0, f"bytes of {name}", size)
        return cls(size, _digest(digest, f"sha256 of {name}"))


@dataclass(frozen=True)
class ShardEntry:
    """A shard of an index: how many rows of how many documents, and its files by name."""

    rows: int
    documents: int
    files: dict[str, FileEntry]

    @classmethod
    def from_json(cls, content: dict[str, Any], number: int) -> "ShardEntry":
        """Check the entry of the shard `number`."""
        rows = _count(content["rows"], f"rows of shard {number}")
        documents, files = content["documents"], content["files"]
        _need(type(documents) is int and 0 <= documents <= rows, f"documents of shard {number}", documents)
        # names are known beforehand, so that none leads out of the folder
        _need({*files} == {name.format(number) for name in SHARD_FILES}, f"files of shard {number}", [*files])
        return cls(rows, documents, {name: FileEntry.from_json(file, name) for name, file in files.items()})


@dataclass(frozen=True)
class Storage:
    """How vectors are stored (a preset, and the name for Faiss's factory), and the settings of search."""

    preset: str
    factory: str
    search: dict[str, int]
    shard_size: int

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Storage":
        """Check the part `storage` of a manifest."""
        search = content["search"]
        _need(type(search) is dict and {*search} <= {"nprobe", "k_factor"}, "storage.search", search)
        return cls(
            _text(content["preset"], "storage.preset"),
            _text(content["factory"], "storage.factory"),
            {name: _count(value, "storage.search") for name, value in search.items()},
            _count(content["shard_size"], "storage.shard_size"),
        )


@dataclass(frozen=True)
class Recall:
    """The share of the `top_k` nearest rows that a search finds, measured with queries that did not choose it."""

    top_k: int
    recall: float
    target: float
    num_queries: int
    num_rows: int

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Recall":
        """Check the part `recall` of a manifest."""
        for name in ("recall", "target"):
            _need(_finite(content[name]) and 0 <= content[name] <= 1, f"recall.{name}", content[name])
        for name in ("top_k", "num_queries", "num_rows"):
            _count(content[name], f"recall.{name}")
        return cls(*(content[field.name] for field in fields(cls)))


@dataclass(frozen=True)
class EmbedderDescription:
    """What `Embedder.describe` said when the index was built; an imported index names its `model` and has no probe."""

    name: str
    revision: str | None
    pooling: list[str]
    normalized: bool
    max_seq_length: int | None
    dimension: int
    query_prompt: str
    document_prompt: str
    probe: list[float] | None
    model: str | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "EmbedderDescription":
        """Check the part `embedder` of a manifest."""
        revision, model, limit = content["revision"], content.get("model"), content["max_seq_length"]
        pooling, normalized, probe = content["pooling"], content["normalized"], content["probe"]
        dimension = _count(content["dimension"], "embedder.dimension")
        _need(revision is None or type(revision) is str, "embedder.revision", revision)
        _need(model is None or type(model) is str, "embedder.model", model)
        _need(limit is None or _whole(limit), "embedder.max_seq_length", limit)
        _need(type(pooling) is list and all(type(mode) is str for mode in pooling), "embedder.pooling", pooling)
        _need(type(normalized) is bool, "embedder.normalized", normalized)
        if probe is not None:
            finite = type(probe) is list and all(map(_finite, probe)) and any(probe)
            _need(finite and len(probe) == dimension, "embedder.probe", probe)
        name, query, document = (
            _text(content[part], f"embedder.{part}") for part in ("name", "query_prompt", "document_prompt")
        )
        return cls(name, revision, pooling, normalized, limit, dimension, query, document, probe, model)

    def to_json(self) -> dict[str, Any]:
        """Give what `Embedder.from_description` and `Embedder.check` take."""
        content = asdict(self)
        model = content.pop("model")
        if model is None:
            return content
        return {"name": content.pop("name"), "revision": content.pop("revision"), "model": model, **content}


@dataclass(frozen=True)
class Manifest:
    """What an index is: `from_json` checks every field that is relied upon, whoever wrote the file."""

    library_versions: dict[str, str]
    faiss_version: str
    sources: list[str]
    embedder: EmbedderDescription
    passage_tokens: int | None
    storage: Storage
    recall: Recall | None
    corpus_digest: str
    shards: list[ShardEntry]

    @classmethod
    def of(
        cls,
        shards: Sequence[ShardEntry],
        embedder: EmbedderDescription,
        storage: Storage,
        passage_tokens: int | None = None,
        sources: Sequence[str] = (),
        recall: Recall | None = None,
    ) -> "Manifest":
        """Describe an index of these shards, made with the libraries that are installed."""
        digests = [shard.files[TEXTS.format(number)].sha256 for number, shard in enumerate(shards)]
        return cls(
            library_versions={name: version(name) for name in ("tttnn", "sentence-transformers", "transformers")},
            faiss_version=faiss_version(),
            sources=[*sources],
            embedder=embedder,
            passage_tokens=passage_tokens,
            storage=storage,
            recall=recall,
            corpus_digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
            shards=[*shards],
        )

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Manifest":
        """Check every field of a manifest; a wrong one is an `InputError`, a missing one a `KeyError`."""
        embedder, storage = EmbedderDescription.from_json(content["embedder"]), Storage.from_json(content["storage"])
        _need(content["metric"] == METRIC, "metric", content["metric"])
        digest = _digest(content["corpus_digest"], "corpus_digest")
        sources, tokens, recall = content["sources"], content["passage_tokens"], content["recall"]
        _need(type(sources) is list and all(type(name) is str for name in sources), "sources", sources)
        _need(tokens is None or _whole(tokens), "passage_tokens", tokens)
        versions, faiss = content["library_versions"], _text(content["faiss_version"], "faiss_version")
        texts = type(versions) is dict and all(type(value) is str for value in versions.values())
        _need(texts, "library_versions", versions)
        shards = content["shards"]
        _need(type(shards) is list and shards != [], "shards", shards)
        manifest = cls(
            versions,
            faiss,
            sources,
            embedder,
            tokens,
            storage,
            None if recall is None else Recall.from_json(recall),
            digest,
            [ShardEntry.from_json(shard, number) for number, shard in enumerate(shards)],
        )
        for name, counted in (("num_rows", manifest.num_rows), ("num_documents", manifest.num_documents)):
            _need(content[name] == counted, name, content[name])
        return manifest

    def to_json(self) -> dict[str, Any]:
        """Give the content of the file, in the order of its keys."""
        content = asdict(self)
        start = ("library_versions", "faiss_version", "sources")
        return {
            "format_version": FORMAT_VERSION,
            **{name: content[name] for name in start},
            "embedder": self.embedder.to_json(),
            "metric": METRIC,
            **{name: content[name] for name in ("passage_tokens", "storage", "recall")},
            "num_documents": self.num_documents,
            "num_rows": self.num_rows,
            **{name: content[name] for name in ("corpus_digest", "shards")},
        }

    def to_bytes(self) -> bytes:
        """Give the bytes of the file."""
        return to_json(self.to_json())

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def num_documents(self) -> int:
        """Documents of all shards; fewer than rows where rows are passages."""
        return sum(shard.documents for shard in self.shards)

    @property
    def files(self) -> dict[str, FileEntry]:
        """All files by name."""
        return {name: file for shard in self.shards for name, file in shard.files.items()}

    def public(self) -> "Manifest":
        """Name a local embedder `./minilm`, without the folders above it: such a name is never loaded."""
        path = Path(self.embedder.name)
        if not path.is_absolute():
            return self
        return replace(self, embedder=replace(self.embedder, name=f"./{path.name}"))

    def chosen_shards(self, shards: Sequence[int] | None) -> list[int]:
        """Check the numbers of shards that are asked for, by default all, and give them in order."""
        count = len(self.shards)
        numbers = sorted({*range(count)} if shards is None else {*shards})
        if not numbers or numbers[0] < 0 or numbers[-1] >= count:
            raise InputError(f"The shards {numbers} were asked for, but the index has shards 0 to {count - 1}.")
        return numbers


def read_manifest(folder: str | Path) -> Manifest:
    """
    Read the manifest of an index, and make sure that it is one.

    Args:
        folder (`str` or `Path`):
            The index.

    Returns:
        `Manifest`: every field is checked.

    Raises:
        `FileNotFoundError`: If the folder has no manifest.
        `ValueError`: If it is damaged, or of another format.
    """
    return parse_manifest(manifest_bytes(folder), Path(folder) / MANIFEST)


def manifest_bytes(folder: str | Path) -> bytes:
    """Read the manifest of an index as it is, for `parse_manifest`."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"'{folder}' holds no `{MANIFEST}`, so it is no index. Build one: `tttnn build-index`."
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputError(f"'{path}' has {path.stat().st_size} bytes, which no manifest has. Fetch the index again.")
    return path.read_bytes()


def parse_manifest(content: bytes, path: str | Path) -> Manifest:
    """Parse a manifest, which may come from anybody; `path` says in errors where it was."""
    try:
        parsed = json.loads(content)
        version = parsed["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"'{path}' is not a manifest ({error!r:.200}). Fetch or rebuild the index.") from None
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"'{path}' has format_version {version!r:.100}; this tttnn reads {FORMAT_VERSION}. Install the tttnn that "
            "wrote it, or rebuild the index."
        )
    try:
        return Manifest.from_json(parsed)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(
            f"'{path}' lacks a part or is damaged ({error!r:.200}). Fetch or rebuild the index."
        ) from None


def _need(condition: bool, name: str, value: object) -> None:
    if not condition:
        raise InputError(f"`{name}` is {value!r:.100}")


def _text(value: object, name: str) -> str:
    _need(type(value) is str, name, value)
    return value  # type: ignore[return-value]


def _whole(value: object) -> bool:
    return type(value) is int and 0 < value < 2**48


def _count(value: object, name: str) -> int:
    _need(_whole(value), name, value)
    return value  # type: ignore[return-value]


def _digest(value: object, name: str) -> str:
    _need(type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None, name, value)
    return value  # type: ignore[return-value]


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
