"""Writing the files of a shard, so that what is written is known by its checksum and can be added to after a kill."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.files import sync
from tttnn.index.build.workspace import work_file
from tttnn.index.faiss_files import FLAT_HEADER, flat_header
from tttnn.index.manifest import OFFSETS, SHARD_FILES, TEXTS, VECTORS, VIEWER, FileEntry, ShardEntry
from tttnn.index.texts import TextStore, document_to_line


# Of the viewer's files; memory holds one group.
ROWS_PER_GROUP = 1000
BYTES_PER_GROUP = 8 << 20
COPY_BYTES = 1 << 20


class GrowingFile:
    """A file that grows after a head; what is behind the head is known by size and checksum at any time."""

    def __init__(self, path: Path, head: bytes = b"", written: FileEntry | None = None) -> None:
        self.path, self.size, self._digest = path, 0, hashlib.sha256()
        self._file = path.open("wb" if written is None else "r+b")
        if written is None:
            self._file.write(head)
            return
        self._file.seek(len(head))
        while chunk := self._file.read(min(COPY_BYTES, written.bytes - self.size)):
            self._digest.update(chunk)
            self.size += len(chunk)
        if FileEntry(self.size, self._digest.hexdigest()) != written:
            self._file.close()
            raise InputError(f"'{path}' does not begin with the {written.bytes} bytes that were written")
        self._file.seek(len(head) + self.size)
        self._file.truncate()

    def write(self, content: bytes) -> None:
        """Append bytes."""
        self._file.write(content)
        self._digest.update(content)
        self.size += len(content)

    def entry(self) -> FileEntry:
        """Have all on disk, and describe it."""
        self._file.flush()
        sync(self.path)
        return FileEntry(self.size, self._digest.hexdigest())

    def close(self, head: bytes = b"") -> None:
        """Write the head again, which may have depended on the end, and have all on disk."""
        self._file.seek(0)
        self._file.write(head)
        self._file.close()
        sync(self.path)


class TextWriter:
    """Writes the two files of a `TextStore`, document by document, after what is written of them already."""

    def __init__(self, path: Path, written: FileEntry | None = None) -> None:
        self._file = GrowingFile(path, written=written)
        self._offsets = array("q", [0])
        for line in self._lines():
            self._offsets.append(self._offsets[-1] + len(line))

    def _lines(self) -> Iterator[bytes]:
        with self._file.path.open("rb") as lines:
            place = 0
            while place < self._file.size:
                yield (line := lines.readline())
                place += len(line)

    def go_past(self, documents: Iterator[Document]) -> bool:
        """Take as many documents as there are lines, and tell whether the lines are these documents."""
        expected = (next(documents, None) for _ in range(len(self._offsets) - 1))
        pairs = zip(self._lines(), expected, strict=True)
        return all([document is not None and document_to_line(document) == line for line, document in pairs])

    def add(self, document: Document) -> None:
        """Append a document."""
        line = document_to_line(document)
        self._file.write(line)
        self._offsets.append(self._offsets[-1] + len(line))

    def entry(self) -> FileEntry:
        """Have all lines on disk, and describe them."""
        return self._file.entry()

    def close(self) -> None:
        """Write the offsets, and have both files on disk."""
        self._file.close()
        offsets = self._file.path.with_suffix(".offsets.npy")
        np.save(offsets, np.array(self._offsets, dtype=np.int64))
        sync(offsets)


@dataclass(frozen=True)
class Growing:
    """What is written of a shard that is under way."""

    rows: int
    documents: int
    texts: FileEntry
    vectors: FileEntry

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Growing":
        """Check the part `growing` of a state."""
        texts, vectors = (FileEntry.from_json(content[name], name) for name in ("texts", "vectors"))
        return cls(int(content["rows"]), int(content["documents"]), texts, vectors)


class ShardWriter:
    """Writes a shard: texts under their name, exact vectors as a Faiss file and what viewers read beside the state."""

    def __init__(
        self, folder: Path, number: int, dimension: int, of_passages: bool, growing: Growing | None = None
    ) -> None:
        self.folder, self.number, self.dimension, self.of_passages = folder, number, dimension, of_passages
        self.num_rows, self.num_documents = (growing.rows, growing.documents) if growing else (0, 0)
        self.texts = TextWriter(folder / TEXTS.format(number), growing.texts if growing else None)
        path, head = work_file(folder, VECTORS, number), bytes(FLAT_HEADER.size)
        self.vectors = GrowingFile(path, head, growing.vectors if growing else None)

    def add(self, documents: Iterable[Document]) -> None:
        """Append documents; of passages the first of each document counts it."""
        for document in documents:
            self.texts.add(document)
            self.num_rows += 1
            self.num_documents += not (self.of_passages and document.metadata["passage"] > 0)

    def growing(self) -> Growing:
        """Have all on disk, and say what there is."""
        return Growing(self.num_rows, self.num_documents, self.texts.entry(), self.vectors.entry())

    def finish(self) -> ShardEntry:
        """Write the other files, and describe all."""
        self.texts.close()
        self.vectors.close(flat_header(self.num_rows, self.dimension))
        names, viewer = [self.folder / name.format(self.number) for name in (TEXTS, OFFSETS)], self._write_viewer()
        paths = dict(zip(SHARD_FILES, (self.vectors.path, *names, viewer), strict=True))
        files = {name.format(self.number): FileEntry.of(path) for name, path in paths.items()}
        return ShardEntry(self.num_rows, self.num_documents, files)

    def _write_viewer(self) -> Path:
        import pyarrow
        import pyarrow.parquet

        store = TextStore(self.folder / TEXTS.format(self.number), self.num_rows)
        schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "text", "metadata")])
        path = work_file(self.folder, VIEWER, self.number)
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as viewer:
            for group in _groups(store.offsets):
                documents = store.fetch(group)
                columns = {
                    "id": [document.id for document in documents],
                    "text": [document.text for document in documents],
                    "metadata": [json.dumps(document.metadata, ensure_ascii=False) for document in documents],
                }
                viewer.write_table(pyarrow.table(columns, schema))
        sync(path)
        return path


def _groups(offsets: np.ndarray) -> Iterator[range]:
    """Divide rows, of whose lines the offsets are given, into groups that are small."""
    first, num_rows = 0, len(offsets) - 1
    while first < num_rows:
        fitting = int(np.searchsorted(offsets, offsets[first] + BYTES_PER_GROUP, side="right")) - 1
        last = min(max(fitting, first + 1), first + ROWS_PER_GROUP, num_rows)
        yield range(first, last)
        first = last
