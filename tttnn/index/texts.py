"""Texts of an index in files, read at random through a memory map."""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError  # of the reader of NumPy files

import numpy as np

from tttnn.documents import Document, check_text
from tttnn.errors import InputError
from tttnn.files import finite, json_default


def document_to_line(document: Document) -> bytes:
    """
    Write a document as a line of a text store.

    Args:
        document (`Document`):
            Of metadata that JSON lacks, NaN and infinities become null, at any depth, and all else (dates, say) a
            string.

    Returns:
        `bytes`: a JSON object with `id`, `text` and `metadata` in UTF-8, and a line end.
    """
    row = {"id": document.id, "text": document.text, "metadata": document.metadata}
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=json_default)
    except ValueError:
        line = json.dumps(finite(row), ensure_ascii=False, default=json_default)
    return line.encode("utf-8") + b"\n"


def document_from_line(line: bytes, where: str) -> Document:
    """
    Read a line of a text store.

    Args:
        line (`bytes`):
            What `document_to_line` gave.
        where (`str`):
            Where it stands, for errors.

    Returns:
        `Document`: the document.

    Raises:
        `ValueError`: If the line is something else.
    """
    try:
        row = json.loads(line)
        if type(row) is dict and row.keys() == {"id", "text", "metadata"} and type(row["metadata"]) is dict:
            return Document(check_text(row["id"], "its id"), check_text(row["text"], "its text"), row["metadata"])
        problem = "it is no object of `id`, `text` and `metadata`"
    except (ValueError, TypeError, RecursionError) as error:
        problem = str(error)
    raise InputError(f"{where} is damaged ({problem}). Fetch or build the index anew.")


def read_offsets(path: Path, num_rows: int, num_bytes: int) -> np.ndarray:
    """
    Open the file of a store that says where each line begins.

    Args:
        path (`Path`):
            An int64 array in NumPy's format: the byte offset of each line, and of the end.
        num_rows (`int`):
            Lines of the store.
        num_bytes (`int`):
            Its size.

    Returns:
        `np.ndarray`: of shape `(num_rows + 1,)`, memory-mapped.

    Raises:
        `ValueError`: If it is something else, or does not fit the store.
    """
    try:
        offsets = np.lib.format.open_memmap(path, mode="r")
        fits = offsets.dtype == np.int64 and offsets.shape == (num_rows + 1,) and offsets[-1] == num_bytes > 0
    except (ValueError, EOFError, TypeError, SyntaxError, TokenError, MemoryError, OverflowError):
        fits = False
    if not fits:
        raise InputError(f"'{path}' does not hold the offsets of {num_rows} lines. Fetch or build the index anew.")
    return offsets


def line_of(offsets: np.ndarray, row: int, where: str) -> tuple[int, int]:
    """
    Find a line of a store.

    Args:
        offsets (`np.ndarray`):
            What `read_offsets` gave.
        row (`int`):
            From 0.
        where (`str`):
            Where it stands, for errors.

    Returns:
        `tuple[int, int]`: its first byte, and the byte past its end.

    Raises:
        `ValueError`: If the offsets are damaged.
    """
    start, end = int(offsets[row]), int(offsets[row + 1])
    if not 0 <= start < end <= offsets[-1]:
        raise InputError(f"The offsets of {where} are damaged: {start} to {end}. Fetch or build the index anew.")
    return start, end


class TextStore:
    """
    Documents of a shard on disk, read at random through a memory map.

    A store is two files: `NAME.jsonl`, an object `{"id", "text", "metadata"}` a line in UTF-8, and
    `NAME.offsets.npy`, the int64 byte offset of each line and of the end. Opening it reads neither.

    Args:
        path (`str` or `Path`):
            The `.jsonl` file; the offsets lie beside it.
        num_rows (`int`):
            Its lines.

    Raises:
        `ValueError`: If the offsets do not span the file.
    """

    def __init__(self, path: str | Path, num_rows: int) -> None:
        self.path = Path(path)
        self.offsets = read_offsets(self.path.with_suffix(".offsets.npy"), num_rows, self.path.stat().st_size)
        with self.path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, row: int) -> Document:
        start, end = line_of(self.offsets, row, f"row {row} of '{self.path}'")
        return document_from_line(self.bytes[start:end], f"Row {row} of '{self.path}'")

    def fetch(self, rows: Sequence[int]) -> list[Document]:
        """
        Read documents.

        Args:
            rows (`Sequence[int]`):
                Rows of the shard.

        Returns:
            `list[Document]`: in the order of `rows`.

        Raises:
            `ValueError`: If a line is damaged.
        """
        return [self[row] for row in rows]
