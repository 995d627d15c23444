"""Writing an index: the files of its shards, and the manifest that describes them."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.index.manifest import (
    SHARD_FILES,
    TEXTS,
    VECTORS,
    VIEWER,
    FileEntry,
    ShardEntry,
)
from tttnn.index.texts import TextStore, document_to_line
from tttnn.index.vectors import import_faiss


# Of the viewer's files; memory holds one group.
ROWS_PER_GROUP = 1000
BYTES_PER_GROUP = 8 << 20
ROWS_PER_COPY = 16_384


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

    def finish(self, vectors: Any) -> ShardEntry:  # noqa: ANN401
        """
        Write the other files.

        Args:
            vectors (`faiss.Index`):
                Of the rows.

        Returns:
            `ShardEntry`: the shard's entry in the manifest: rows, documents, and size and sha256 of each file.
        """
        self.texts.close()
        self._write_viewer()
        import_faiss().write_index(vectors, str(self.folder / VECTORS.format(self.number)))
        files = {
            name.format(self.number): FileEntry.of(self.folder / name.format(self.number)) for name in SHARD_FILES
        }
        return ShardEntry(self.num_rows, self.num_documents, files)

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


class TextWriter:
    """
    Writes the two files of a `TextStore`, document by document.

    Args:
        path (`Path`):
            The `.jsonl` file to write; its folder exists.
        num_rows (`int`, *optional*, defaults to `0`):
            Lines of the file that are kept, and gone on after; what comes behind them is dropped.

    Raises:
        `FileNotFoundError`: If lines are kept, and there is no file.
        `ValueError`: If there are fewer.
    """

    def __init__(self, path: Path, num_rows: int = 0) -> None:
        self.path = path
        self._file = path.open("r+b" if num_rows else "wb")
        self._offsets = array("q", [0])
        for line in islice(self._file, num_rows):
            if line.endswith(b"\n"):
                self._offsets.append(self._offsets[-1] + len(line))
        if len(self._offsets) - 1 < num_rows:
            self._file.close()
            raise InputError(f"'{path}' should hold {num_rows} lines, but has {len(self._offsets) - 1}.")
        self._file.seek(self._offsets[-1])
        self._file.truncate()

    def go_past(self, documents: Iterator[Document]) -> bool:
        """
        Go past the lines that are kept.

        Args:
            documents (`Iterator[Document]`):
                As many are taken as there are lines.

        Returns:
            `bool`: whether the lines are these documents.
        """
        self._file.seek(0)
        same = True
        for line in islice(self._file, len(self._offsets) - 1):
            document = next(documents, None)
            same = same and document is not None and document_to_line(document) == line
        self._file.seek(self._offsets[-1])
        return same

    def add(self, document: Document) -> None:
        """
        Append a document.

        Args:
            document (`Document`):
                The document.
        """
        self._offsets.append(self._offsets[-1] + self._file.write(document_to_line(document)))

    def flush(self) -> None:
        """Hand all lines to the operating system, so that they outlive this process."""
        self._file.flush()

    def close(self) -> None:
        """Write the offsets, and close the files."""
        self._file.close()
        np.save(self.path.with_suffix(".offsets.npy"), np.array(self._offsets, dtype=np.int64))


class VectorWriter:
    """
    Keeps the vectors of a shard on disk until it is whole, so that memory need not hold them while it grows.

    Args:
        path (`Path`):
            The shard's Faiss file; the vectors lie beside it, row after row.
        dimension (`int`):
            Of a vector.
        num_rows (`int`, *optional*, defaults to `0`):
            Rows that are kept, and gone on after; what comes behind them is dropped.

    Raises:
        `FileNotFoundError`: If rows are kept, and there is no file.
        `ValueError`: If there are fewer.
    """

    def __init__(self, path: Path, dimension: int, num_rows: int = 0) -> None:
        self.path = path.with_suffix(".vectors")
        self.dimension = dimension
        self._file = self.path.open("r+b" if num_rows else "wb")
        size = num_rows * dimension * 4
        if (found := self._file.seek(0, os.SEEK_END)) < size:
            self._file.close()
            raise InputError(f"'{self.path}' should hold {num_rows} rows, but has {found // (dimension * 4)}.")
        self._file.seek(size)
        self._file.truncate()

    def add(self, vectors: np.ndarray) -> None:
        """
        Append vectors.

        Args:
            vectors (`np.ndarray`):
                float32 of shape `(n, dimension)`.
        """
        self._file.write(vectors.tobytes())
        self._file.flush()

    def index(self) -> Any:  # noqa: ANN401
        """
        Make an index of all vectors.

        Returns:
            `faiss.IndexFlatL2`: in memory, which it takes once.
        """
        self._file.close()
        index = import_faiss().IndexFlatL2(self.dimension)
        # added at once, for an index that grows is copied
        index.add(np.memmap(self.path, np.float32, "r").reshape(-1, self.dimension))
        return index

    def remove(self) -> None:
        """Remove the file."""
        self._file.close()
        self.path.unlink()
