"""Writing an index: the files of its shards, and the manifest that describes them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.corpus import Document
from tttnn.index import DocumentIndex
from tttnn.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SHARD_FILES,
    TEXTS,
    VECTORS,
    VIEWER,
    check_file,
    read_manifest,
    sha256_of,
    to_json,
)
from tttnn.moving import FOLDERS, STATE, check_own, check_vacant, locked, move_index, remove_build
from tttnn.quantization import default_shard_size, import_faiss
from tttnn.texts import TextStore, TextWriter


# Of the viewer's files; memory holds one group.
ROWS_PER_GROUP = 1000
BYTES_PER_GROUP = 8 << 20
ROWS_PER_COPY = 16_384
FLAT_STORAGE: dict[str, Any] = {"preset": "flat", "factory": "Flat", "search": {}}


class ShardWriter:
    """
    Writes the files of one shard: its texts as they come, and the others at its end.

    Args:
        folder (`Path`):
            With the folders `index`, `texts` and `data`.
        number (`int`):
            Of the shard.
        of_passages (`bool`, *optional*, defaults to `False`):
            Whether rows are passages, of which the first of each document counts it.
        num_rows (`int`, *optional*, defaults to `0`):
            Texts that are there already, and that `go_past` compares with the corpus before others are added.
    """

    def __init__(self, folder: Path, number: int, of_passages: bool = False, num_rows: int = 0) -> None:
        self.folder = folder
        self.number = number
        self.of_passages = of_passages
        self.num_rows = num_rows
        self.num_documents = 0
        self.texts = TextWriter(folder / TEXTS.format(number), num_rows)

    def go_past(self, documents: Iterator[Document]) -> bool:
        """
        Go past the documents whose texts are there already.

        Args:
            documents (`Iterator[Document]`):
                As many are taken as there are texts.

        Returns:
            `bool`: whether they are the same.
        """
        return self.texts.go_past(map(self._counted, documents))

    def add(self, documents: Iterable[Document]) -> None:
        """
        Append documents.

        Args:
            documents (`Iterable[Document]`):
                The documents of the next rows.
        """
        for document in documents:
            self.texts.add(self._counted(document))
            self.num_rows += 1
        self.texts.flush()

    def _counted(self, document: Document) -> Document:
        self.num_documents += not (self.of_passages and document.metadata["passage"] > 0)
        return document

    def finish(self, vectors: Any) -> dict[str, Any]:  # noqa: ANN401
        """
        Write the other files.

        Args:
            vectors (`faiss.Index`):
                Of the rows.

        Returns:
            `dict[str, Any]`: the shard's entry in the manifest: rows, documents, and size and sha256 of each file.
        """
        self.texts.close()
        self._write_viewer()
        import_faiss().write_index(vectors, str(self.folder / VECTORS.format(self.number)))
        files = {
            name.format(self.number): describe_file(self.folder / name.format(self.number)) for name in SHARD_FILES
        }
        return {"rows": self.num_rows, "documents": self.num_documents, "files": files}

    def _write_viewer(self) -> None:
        import pyarrow
        import pyarrow.parquet

        store = TextStore(self.folder / TEXTS.format(self.number), self.num_rows)
        schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "text", "metadata")])
        path = self.folder / VIEWER.format(self.number)
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as viewer:
            for group in _groups(store.offsets):
                documents = store.fetch(group)
                columns = {
                    "id": [document.id for document in documents],
                    "text": [document.text for document in documents],
                    "metadata": [json.dumps(document.metadata, ensure_ascii=False) for document in documents],
                }
                viewer.write_table(pyarrow.table(columns, schema))


def _groups(offsets: np.ndarray) -> Iterator[range]:
    """Divide rows, of whose lines the offsets are given, into groups that are small."""
    first, num_rows = 0, len(offsets) - 1
    while first < num_rows:
        fitting = int(np.searchsorted(offsets, offsets[first] + BYTES_PER_GROUP, side="right")) - 1
        last = min(max(fitting, first + 1), first + ROWS_PER_GROUP, num_rows)
        yield range(first, last)
        first = last


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write what is JSON-able (`dict[str, Any]`) to a file (`Path`), which is there whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(to_json(content))
    os.replace(unfinished, path)


def write_index(index: DocumentIndex, folder: str | Path) -> Path:
    """
    Write an index to a folder: one in memory as it is, one on disk by copying its files.

    Args:
        index (`DocumentIndex`):
            With all its shards and local texts.
        folder (`str` or `Path`):
            New or empty; written beside under another name first, so that it never holds half an index.

    Returns:
        `Path`: the folder.

    Raises:
        `FileExistsError`: If the folder is there and not empty, or `NAME.saving` beside it is somebody's own.
        `RuntimeError`: If another process is writing there.
        `FileNotFoundError`: If files of an index on disk are missing, those of shards that were not fetched say.
    """
    folder = Path(folder).resolve()
    with locked(folder):
        check_vacant(folder)
        _write(index, folder)
    return folder


def _write(index: DocumentIndex, folder: Path) -> None:
    unfinished = folder.with_name(folder.name + ".saving")  # not that of a build, which may be gone on with
    check_own(unfinished)
    remove_build(unfinished)  # what a kill left
    unfinished.mkdir(exist_ok=True)
    write_json(unfinished / STATE, {})
    for name in FOLDERS:
        (unfinished / name).mkdir(exist_ok=True)
    if index.folder is not None:
        manifest = read_manifest(index.folder)
        for name, entry in (pair for shard in manifest["shards"] for pair in shard["files"].items()):
            if not name.startswith("data/") or (index.folder / name).is_file():  # the viewer's files are not fetched
                check_file(index.folder / name, entry)
                shutil.copyfile(index.folder / name, unfinished / name)
    else:
        shards = [_write_shard(index, number, unfinished) for number in range(len(index.shards))]
        storage = {**FLAT_STORAGE, "shard_size": default_shard_size(index.shards[0].vectors.d)}
        manifest = make_manifest(shards, index.embedder, storage, index.passage_tokens)
    write_json(unfinished / MANIFEST, manifest)
    move_index(unfinished, folder)


def _write_shard(index: DocumentIndex, number: int, folder: Path) -> dict[str, Any]:
    shard, vectors = index.shards[number], import_faiss().IndexFlatL2(index.shards[number].vectors.d)
    writer = ShardWriter(folder, number, index.passage_tokens is not None)
    writer.add(shard.documents[row] for row in range(len(shard)))
    for first in range(0, len(shard), ROWS_PER_COPY):
        vectors.add(shard.vectors.reconstruct_n(first, min(ROWS_PER_COPY, len(shard) - first)))
    return writer.finish(vectors)
