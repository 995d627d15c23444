"""Faiss indexes of document vectors: built shard by shard, described by a manifest, opened without a copy."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from huggingface_hub import constants
from tqdm.auto import tqdm

from tttnn.corpus import Document, TextStore
from tttnn.embedding import Embedder


logger = logging.getLogger(__name__)

MANIFEST = "tttnn_index.json"
FORMAT_VERSION = 1
SHARD_FILES = ("index/shard-{:05d}.faiss", "texts/shard-{:05d}.jsonl", "texts/shard-{:05d}.offsets.npy")
# Faiss answers large batches by a matrix product, whose rounding reorders near-equal neighbors: in small blocks, a
# batch of queries gives exactly what each query alone gives.
QUERIES_PER_SEARCH = 16


def import_faiss() -> ModuleType:
    """
    Import Faiss, which comes in a build for CPUs and one for GPUs and so is an extra.

    Returns:
        `ModuleType`: the module `faiss`.

    Raises:
        `ImportError`: If neither is installed.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError(
            "Faiss is missing. Install it: `pip install tttnn[cpu]`, or `pip install tttnn[gpu]`."
        ) from None
    return faiss


@dataclass
class Shard:
    """A part of an index: a Faiss index, and the documents of its rows, in memory or in a store."""

    vectors: Any
    documents: Sequence[Document] | TextStore


class DocumentIndex:
    """
    Shards of document vectors, searched as one.

    Args:
        shards (`list[Shard]`):
            In the order of their rows.
        embedder (`dict[str, Any]`):
            What `Embedder.describe` said of the embedder that made the vectors.
        digest (`str`):
            What tells the index from another: the sha256 of its manifest, or of its texts if it is in memory.
    """

    def __init__(self, shards: list[Shard], embedder: dict[str, Any], digest: str) -> None:
        self.shards = shards
        self.embedder = embedder
        self.digest = digest
        self.starts = np.cumsum([0] + [shard.vectors.ntotal for shard in shards])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def document(self, row: int) -> Document:
        """
        Fetch the document of a row.

        Args:
            row (`int`):
                A global row, from 0 to `len(index) - 1`.

        Returns:
            `Document`: the document.

        Raises:
            `IndexError`: If there is no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"Row {row} was asked for, but the index holds rows 0 to {len(self) - 1}.")
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.shards[shard].documents[row - int(self.starts[shard])]

    def search(self, queries: np.ndarray, top_k: int) -> list[list[tuple[float, int]]]:
        """
        Find the nearest rows of each query.

        Args:
            queries (`np.ndarray`):
                float32 of shape `(n, dimension)`.
            top_k (`int`):
                Rows wanted for each query.

        Returns:
            `list[list[tuple[float, int]]]`: for each query at most `top_k` pairs of squared L2 distance and global
            row, nearest first, equal distances by row.
        """
        found: list[list[tuple[float, int]]] = [[] for _ in queries]
        for number, start in enumerate(self.starts[:-1]):
            for first in range(0, len(queries), QUERIES_PER_SEARCH):
                distances, rows = self._search_shard(number, queries[first : first + QUERIES_PER_SEARCH], top_k)
                for offset, (near, ids) in enumerate(zip(distances.tolist(), rows.tolist(), strict=True)):
                    # an inverted-file index pads with -1 where its probed lists hold too few rows
                    found[first + offset] += [(d, int(start) + i) for d, i in zip(near, ids, strict=True) if i >= 0]
        return [sorted(pairs)[:top_k] for pairs in found]

    def _search_shard(self, number: int, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        vectors = self.shards[number].vectors
        return vectors.search(queries, min(top_k, vectors.ntotal))


def build_shards(
    documents: Iterable[Document],
    embedder: Embedder,
    shard_size: int,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> Iterator[Shard]:
    """
    Embed documents and put their vectors into exact Faiss indexes, one shard at a time.

    Args:
        documents (`Iterable[Document]`):
            Read as they are needed: memory holds one shard.
        embedder (`Embedder`):
            Makes the vectors.
        shard_size (`int`):
            Documents in a shard.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts in one forward pass of the embedder.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the embedded documents on a bar.

    Yields:
        `Shard`: with an `IndexFlatL2`, whose distances are squared L2.

    Raises:
        `ValueError`: If there is no document, or `shard_size` is not positive.
    """
    for name, value in (("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` is {value} documents. Pass 1 or more.")
    faiss, iterator, embedded = import_faiss(), iter(documents), 0
    with tqdm(desc="Embedding", unit="document", disable=not show_progress_bar) as progress:
        while rows := list(islice(iterator, shard_size)):
            vectors = faiss.IndexFlatL2(embedder.dimension)
            # blocks keep the bar moving; each is long enough for the embedder to sort by length inside it
            for first in range(0, len(rows), 8 * batch_size):
                block = rows[first : first + 8 * batch_size]
                texts = [document.text for document in block]
                vectors.add(embedder.encode(texts, batch_size, first_row=embedded + first))
                progress.update(len(block))
            embedded += len(rows)
            yield Shard(vectors, rows)
    if not embedded:
        raise ValueError("The corpus holds no document. Check its path, its split and the limit.")


def write_index(shards: Iterable[Shard], embedder: dict[str, Any], folder: str | Path) -> Path:
    """
    Write an index: per shard a Faiss file, a text store and a Parquet file, and last the manifest.

    Args:
        shards (`Iterable[Shard]`):
            Written as they come.
        embedder (`dict[str, Any]`):
            What `Embedder.describe` says.
        folder (`str` or `Path`):
            New or empty; written beside under another name first, so that it never holds half an index.

    Returns:
        `Path`: the folder.

    Raises:
        `FileExistsError`: If the folder is there and not empty.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' is there already. Choose another folder, or remove it first.")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in ("index", "data", "texts"):
        (unfinished / name).mkdir(parents=True)
    table = [_write_shard(shard, number, unfinished) for number, shard in enumerate(shards)]
    manifest = {
        "format_version": FORMAT_VERSION,
        "library_versions": {name: version(name) for name in ("tttnn", "sentence-transformers", "transformers")},
        "faiss_version": import_faiss().__version__,
        "embedder": embedder,
        "metric": "squared_l2",
        "num_documents": sum(shard["rows"] for shard in table),
        "corpus_digest": hashlib.sha256("".join(shard["texts_sha256"] for shard in table).encode()).hexdigest(),
        "shards": table,
    }
    (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    # an existing folder stays the same one, in which a process may be; the manifest goes last, for it makes the index
    folder.mkdir(exist_ok=True)
    for name in ("index", "data", "texts", MANIFEST):
        (unfinished / name).rename(folder / name)
    unfinished.rmdir()
    return folder


def _write_shard(shard: Shard, number: int, folder: Path) -> dict[str, Any]:
    import pyarrow
    import pyarrow.parquet

    vectors = folder / "index" / f"shard-{number:05d}.faiss"
    import_faiss().write_index(shard.vectors, str(vectors))
    rows = [shard.documents[row] for row in range(shard.vectors.ntotal)]
    texts = TextStore.write(folder / "texts" / f"shard-{number:05d}.jsonl", rows)
    # "train" in its name lets `load_dataset` find the split
    viewer = folder / "data" / f"train-{number:05d}.parquet"
    columns = {
        "id": [row.id for row in rows],
        "text": [row.text for row in rows],
        "metadata": [json.dumps(row.metadata, ensure_ascii=False, default=str) for row in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), viewer, compression="zstd", row_group_size=1000)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in (vectors, *texts, viewer)
    }
    return {
        "rows": len(rows),
        "texts_sha256": files[texts[0].relative_to(folder).as_posix()]["sha256"],
        "files": files,
    }


def open_index(folder: str | Path, verify: bool = False) -> DocumentIndex:
    """
    Open an index without reading its vectors or texts into memory.

    Args:
        folder (`str` or `Path`):
            What `write_index` wrote.
        verify (`bool`, *optional*, defaults to `False`):
            Whether to hash every file even where an earlier open on this machine has found it whole.

    Returns:
        `DocumentIndex`: memory-mapped.

    Raises:
        `FileNotFoundError`: If the folder has no manifest, or a file that the manifest names is missing.
        `ValueError`: If the manifest is of another format, or a file is not as the manifest says.
    """
    faiss, folder = import_faiss(), Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"'{folder}' holds no `{MANIFEST}`, so it is no index. Build one: `tttnn build-index`."
        )
    content = path.read_bytes()
    manifest, shards = _parse_manifest(content, path), []
    for number, entry in enumerate(manifest["shards"]):
        files = [name.format(number) for name in SHARD_FILES]
        # the files for viewers are not opened here, and may be left out
        viewers = [name for name in entry["files"] if verify and name not in files and (folder / name).is_file()]
        for name in files + viewers:
            _check_file(folder / name, entry["files"][name], verify)
        # the flag that maps Flat storage; IO_FLAG_MMAP does not
        vectors = faiss.read_index(str(folder / files[0]), faiss.IO_FLAG_MMAP_IFC)
        documents = TextStore(folder / files[1])
        dimension = manifest["embedder"]["dimension"]
        if (vectors.ntotal, len(documents), vectors.d) != (entry["rows"], entry["rows"], dimension):
            raise ValueError(
                f"Shard {number} of '{folder}' should hold {entry['rows']} rows of dimension {dimension}, but has "
                f"{vectors.ntotal} vectors of dimension {vectors.d} and {len(documents)} texts. Build the index anew."
            )
        shards.append(Shard(vectors, documents))
    return DocumentIndex(shards, manifest["embedder"], hashlib.sha256(content).hexdigest())


def _parse_manifest(content: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        version = manifest.get("format_version")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"'{path}' is not a manifest ({error}). Fetch or build the index anew.") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"'{path}' has format_version {version}; this tttnn reads {FORMAT_VERSION}. Install the tttnn that wrote "
            "it, or build the index anew."
        )
    try:
        parts: list[tuple[Any, Any]] = [(manifest["embedder"]["name"], str), (manifest["embedder"]["dimension"], int)]
        for number, shard in enumerate(manifest["shards"]):
            parts.append((shard["rows"], int))
            for name in SHARD_FILES:
                file = shard["files"][name.format(number)]
                parts += [(file["bytes"], int), (file["sha256"], str)]
        wrong = [part for part, kind in parts if type(part) is not kind]
        if wrong or not manifest["shards"]:
            raise TypeError(f"it holds {wrong[0]!r} where another type belongs" if wrong else "it has no shard")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' lacks a part or is damaged ({error!r}). Fetch or build the index anew.") from None
    return manifest


def _check_file(path: Path, expected: dict[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is missing, though the manifest names it. Fetch or build the index anew.")
    status = path.resolve().stat()
    if status.st_size != expected["bytes"]:
        raise ValueError(
            f"'{path}' has {status.st_size} bytes, and the manifest says {expected['bytes']}: it is damaged or not "
            "fetched to its end. Fetch or build the index anew."
        )
    # Hashing a large index takes minutes, so a file found whole once is only looked at again after a change.
    stamp = f"{path.resolve()}\n{status.st_size} {status.st_mtime_ns} {status.st_ino}\n{expected['sha256']}"
    name = hashlib.sha256(stamp.encode()).hexdigest()
    stamp_file = Path(constants.HF_HOME) / "tttnn" / "verified" / name
    if stamp_file.exists() and not verify:
        return
    found = _sha256(path)
    if found != expected["sha256"]:
        raise ValueError(
            f"'{path}' is damaged: its sha256 is {found}, and the manifest says {expected['sha256']}. Fetch or build "
            "the index anew."
        )
    try:
        stamp_file.parent.mkdir(parents=True, exist_ok=True)
        stamp_file.touch()
    except OSError as error:
        logger.info("'%s' was verified, but that cannot be kept for the next time: %s", path, error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
