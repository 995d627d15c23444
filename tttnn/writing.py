"""Writing an index: the files of its shards, and the manifest that describes them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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
from tttnn.quantization import import_faiss
from tttnn.texts import TextStore, TextWriter


FOLDERS = ("index", "texts", "data")
ROWS_PER_GROUP = 1000  # of the viewer's files
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
            for first in range(0, self.num_rows, ROWS_PER_GROUP):
                documents = store.fetch(range(first, min(first + ROWS_PER_GROUP, self.num_rows)))
                columns = {
                    "id": [document.id for document in documents],
                    "text": [document.text for document in documents],
                    "metadata": [json.dumps(document.metadata, ensure_ascii=False) for document in documents],
                }
                viewer.write_table(pyarrow.table(columns, schema))


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


def move_index(unfinished: Path, folder: Path) -> None:
    """
    Put finished files into their folder, and last the manifest, for it makes the index.

    A kill leaves what is still to be moved, and the next call moves it.

    Args:
        unfinished (`Path`):
            With a manifest.
        folder (`Path`):
            Made if it is not there.

    Raises:
        `FileExistsError`: If another index or something else has come into the folder meanwhile.
    """
    shards = read_manifest(unfinished)["shards"]
    _check_place(folder, shards)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in (name for shard in shards for name in shard["files"]):
        if (unfinished / name).is_file():  # else moved before a kill
            os.replace(unfinished / name, folder / name)
    # first all else, so that a kill after the manifest has moved leaves nothing that looks like a build under way
    for path in unfinished.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MANIFEST:
            path.unlink()
    os.replace(unfinished / MANIFEST, folder / MANIFEST)
    unfinished.rmdir()


def _check_place(folder: Path, shards: list[dict[str, Any]]) -> None:
    """Make sure that a folder holds nothing but the beginning of what is to be there."""
    if (folder / MANIFEST).is_file():
        there = read_manifest(folder)["shards"]
        free = there == shards[: len(there)]
    else:
        names = {name for shard in shards for name in shard["files"]}
        free = all(path.is_dir() or path.relative_to(folder).as_posix() in names for path in folder.rglob("*"))
    if not free:
        raise FileExistsError(
            f"An interrupted build of '{folder}' lacks only its move there, but that folder now holds something else. "
            "Remove or move the one or the other."
        )


def unfinished_folder(folder: Path) -> Path:
    """Name the folder in which an index for `folder` (`Path`) is made, which is beside it."""
    return folder.with_name(folder.name + ".unfinished")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Keep other processes from writing an index into a folder.

    Args:
        folder (`Path`):
            Beside it lies a hidden file, which is locked.

    Raises:
        `RuntimeError`: If another process is writing there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another process is writing '{folder}'. Wait for it to end, and start again to go on."
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_vacant(folder: Path) -> None:
    """
    Make sure that nothing would be overwritten.

    Args:
        folder (`Path`):
            To be written.

    Raises:
        `FileExistsError`: If it is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"'{folder}' is there already. Choose another folder, or remove it first; `tttnn add` appends documents "
            "to an index."
        )


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
        `FileExistsError`: If the folder is there and not empty.
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
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in FOLDERS:
        (unfinished / name).mkdir(parents=True)
    if index.folder is not None:
        manifest = read_manifest(index.folder)
        for name, entry in (pair for shard in manifest["shards"] for pair in shard["files"].items()):
            if not name.startswith("data/") or (index.folder / name).is_file():  # the viewer's files are not fetched
                check_file(index.folder / name, entry)
                shutil.copyfile(index.folder / name, unfinished / name)
    else:
        shards = [_write_shard(index, number, unfinished) for number in range(len(index.shards))]
        storage = {**FLAT_STORAGE, "shard_size": max(map(len, index.shards))}
        manifest = make_manifest(shards, index.embedder, storage, index.passage_tokens)
    write_json(unfinished / MANIFEST, manifest)
    move_index(unfinished, folder)


def _write_shard(index: DocumentIndex, number: int, folder: Path) -> dict[str, Any]:
    shard, vectors = index.shards[number], import_faiss().IndexFlatL2(index.shards[number].vectors.d)
    writer = ShardWriter(folder, number, index.passage_tokens is not None)
    for first in range(0, len(shard), ROWS_PER_COPY):
        size = min(ROWS_PER_COPY, len(shard) - first)
        writer.add(index.documents(range(shard.start + first, shard.start + first + size)))
        vectors.add(shard.vectors.reconstruct_n(first, size))
    return writer.finish(vectors)
