"""Texts of an index in files, read at random through a memory map."""

import json
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError  # of the reader of NumPy files
from typing import Protocol

import numpy as np

from tttnn.documents import Document, check_text
from tttnn.errors import InputError
from tttnn.files import finite, json_default


PARALLEL_FETCHES = 20


def document_to_line(document: Document) -> bytes:
    """Write a document as a line of JSON; NaN and infinities become null, and what JSON lacks becomes text."""
    row = {"id": document.id, "text": document.text, "metadata": document.metadata}
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=json_default)
    except ValueError:
        line = json.dumps(finite(row), ensure_ascii=False, default=json_default)
    return line.encode("utf-8") + b"\n"


def document_from_line(line: bytes, where: str) -> Document:
    """Read what `document_to_line` gave; `where` says in errors where it stands."""
    try:
        row = json.loads(line)
        if type(row) is dict and row.keys() == {"id", "text", "metadata"} and type(row["metadata"]) is dict:
            return Document(check_text(row["id"], "its id"), check_text(row["text"], "its text"), row["metadata"])
        problem = "it is no object of `id`, `text` and `metadata`"
    except (ValueError, TypeError, RecursionError) as error:
        problem = str(error)
    raise InputError(f"{where} is damaged ({problem}). Fetch or rebuild the index.")


def read_offsets(path: Path, num_rows: int, num_bytes: int) -> np.ndarray:
    """Open the int64 array of where each line of a store of that size begins, and where the last one ends."""
    try:
        offsets = np.lib.format.open_memmap(path, mode="r")
        fits = offsets.dtype == np.int64 and offsets.shape == (num_rows + 1,) and offsets[-1] == num_bytes > 0
    except (ValueError, EOFError, TypeError, SyntaxError, TokenError, MemoryError, OverflowError):
        fits = False
    if not fits:
        raise InputError(f"'{path}' does not hold the offsets of {num_rows} lines. Fetch or rebuild the index.")
    return offsets


def line_of(offsets: np.ndarray, row: int, where: str) -> tuple[int, int]:
    """Find the first byte of a line, and the byte past its end."""
    start, end = int(offsets[row]), int(offsets[row + 1])
    if not 0 <= start < end <= offsets[-1]:
        raise InputError(f"The offsets of {where} are damaged: {start} to {end}. Fetch or rebuild the index.")
    return start, end


class TextSource(Protocol):
    """Where the documents of a shard are: in memory, on disk, on the Hub."""

    def fetch(self, rows: Sequence[int]) -> list[Document]:
        """Read the documents of rows of the shard, in their order."""


class TextList(list[Document]):
    """Documents in memory."""

    def fetch(self, rows: Sequence[int]) -> list[Document]:
        """Give the documents of rows."""
        return [self[row] for row in rows]


class TextStore:
    """
    Documents of a shard on disk, read at random through a memory map; opening it reads nothing.

    A store is two files: `NAME.jsonl`, an object `{"id", "text", "metadata"}` a line in UTF-8, and
    `NAME.offsets.npy`, the int64 byte offset of each line and of the end.
    """

    def __init__(self, path: str | Path, num_rows: int) -> None:
        self.path = Path(path)
        self.offsets = read_offsets(self.path.with_suffix(".offsets.npy"), num_rows, self.path.stat().st_size)
        with self.path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def fetch(self, rows: Sequence[int]) -> list[Document]:
        """Read the documents of rows."""
        return [self._read(row) for row in rows]

    def _read(self, row: int) -> Document:
        start, end = line_of(self.offsets, row, f"row {row} of '{self.path}'")
        return document_from_line(self.bytes[start:end], f"Row {row} of '{self.path}'")


def fetch_places(places: Sequence[tuple[TextSource, int]]) -> list[Document]:
    """Read documents, each by its source and its row there; what is not on this machine is fetched many at a time."""

    def read(place: tuple[TextSource, int]) -> Document:
        return place[0].fetch([place[1]])[0]

    if all(isinstance(source, TextList | TextStore) for source, _ in places):
        return [read(place) for place in places]
    # One row of each source goes first: if a store's address has expired, it gets the new one for the others.
    first = {id(places[number][0]): number for number in reversed(range(len(places)))}.values()
    others = [number for number in range(len(places)) if number not in first]
    documents: dict[int, Document] = {}
    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        for numbers in ([*first], others):
            documents |= zip(numbers, pool.map(read, [places[number] for number in numbers]), strict=True)
    return [documents[number] for number in range(len(places))]
