"""Texts of an index, read at random: from a memory map, or piece by piece from the Hub."""

import json
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError  # of the reader of NumPy files
from urllib.parse import urljoin, urlsplit

import httpx2
import numpy as np
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, http_backoff

from tttnn.corpus import Document, check_text


PARALLEL_REQUESTS = 10
MAX_REDIRECTS = 5
RETRIED = (408, 429, 500, 502, 503, 504)  # by `http_backoff`, which heeds Retry-After


def document_to_line(document: Document) -> bytes:
    """
    Write a document as a line of a text store.

    Args:
        document (`Document`):
            Metadata that JSON lacks (dates, say) becomes a string.

    Returns:
        `bytes`: a JSON object with `id`, `text` and `metadata` in UTF-8, and a line end.
    """
    row = {"id": document.id, "text": document.text, "metadata": document.metadata}
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8") + b"\n"


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
    raise ValueError(f"{where} is damaged ({problem}). Fetch or build the index anew.")


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
        raise ValueError(f"'{path}' does not hold the offsets of {num_rows} lines. Fetch or build the index anew.")
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
        raise ValueError(f"The offsets of {where} are damaged: {start} to {end}. Fetch or build the index anew.")
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
        documents = []
        for row in rows:
            start, end = line_of(self.offsets, row, f"row {row} of '{self.path}'")
            documents.append(document_from_line(self.bytes[start:end], f"Row {row} of '{self.path}'"))
        return documents


class RemoteTexts:
    """
    Documents of a shard that stay on the Hub, of which each is fetched by a request for its bytes.

    Where the Hub sends the requests for a file on to a store, the first says so, and the others go there at once.

    Args:
        url (`str`):
            The `.jsonl` file, at a commit.
        headers (`dict[str, str]`):
            Of each request to the Hub itself.
        offsets (`str` or `Path`):
            The `.offsets.npy` file, which is local.
        num_rows (`int`):
            Lines of the file.
        num_bytes (`int`):
            Its size.

    Raises:
        `ValueError`: If the offsets do not span the file.
    """

    def __init__(self, url: str, headers: dict[str, str], offsets: str | Path, num_rows: int, num_bytes: int) -> None:
        self.url = url
        self.headers = headers
        self.offsets = read_offsets(Path(offsets), num_rows, num_bytes)
        self._location = url

    def fetch(self, rows: Sequence[int]) -> list[Document]:
        """
        Fetch documents, several at a time.

        Args:
            rows (`Sequence[int]`):
                Rows of the shard.

        Returns:
            `list[Document]`: in the order of `rows`.

        Raises:
            `ConnectionError`: If the Hub cannot be reached or does not serve, after five more tries.
            `HfHubHTTPError`: If it refuses: an unknown repo, or a token without access.
            `ValueError`: If a line is damaged.
        """
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            # the first alone, for it tells the others where to go
            return [self._fetch(row) for row in rows[:1]] + list(pool.map(self._fetch, rows[1:]))

    def _fetch(self, row: int) -> Document:
        where = f"Row {row} of '{self.url}'"
        start, end = line_of(self.offsets, row, where)
        try:
            response = self._request(start, end)
        except httpx2.HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in RETRIED:
                raise
            raise ConnectionError(f"{where} could not be fetched ({error}). Try again later.") from error
        if response.status_code != 206 or len(response.content) != end - start:
            raise ConnectionError(
                f"{where}: {end - start} bytes were asked for, and the answer is {len(response.content)} with status "
                f"{response.status_code}. Try again, or use the texts locally: `texts='local'`."
            )
        return document_from_line(response.content, where)

    def _request(self, start: int, end: int) -> httpx2.Response:
        """Ask for a range of bytes, at the place where the last answer came from."""
        asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        url, may_have_expired = self._location, self._location != self.url
        for _ in range(MAX_REDIRECTS):
            # a token is for the Hub, and not for the stores to which it sends on
            own = self.headers if urlsplit(url).netloc == urlsplit(self.url).netloc else {}
            response = http_backoff("GET", url, headers={**own, **asked}, follow_redirects=False)
            if response.has_redirect_location:
                url = urljoin(url, response.headers["Location"])
            elif response.is_client_error and may_have_expired:
                # the address of a store is good for a while only
                url, may_have_expired = self.url, False
                self._location = url
            else:
                break
        hf_raise_for_status(response)
        self._location = url
        return response


class TextWriter:
    """
    Writes the two files of a `TextStore`, document by document.

    Args:
        path (`Path`):
            The `.jsonl` file to write; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._offsets = [0]

    def add(self, document: Document) -> None:
        """
        Append a document.

        Args:
            document (`Document`):
                The document.
        """
        self._offsets.append(self._offsets[-1] + self._file.write(document_to_line(document)))

    def close(self) -> None:
        """Write the offsets, and close the files."""
        self._file.close()
        np.save(self.path.with_suffix(".offsets.npy"), np.array(self._offsets, dtype=np.int64))
