"""Texts that stay on the Hub: documents are fetched by their bytes, many at a time."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from tttnn.documents import Document
from tttnn.errors import HubError
from tttnn.index.hub.retry import TRANSIENT, persist
from tttnn.index.texts import document_from_line, line_of, read_offsets


PARALLEL_REQUESTS = 20
MAX_REDIRECTS = 5
ADVICE = "Try again later, or use the texts locally: `texts='local'`."


class RemoteFile:
    """A file on the Hub, read in parts; requests go at once to the store to which the Hub redirected the last one."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.url = url
        self.headers = headers
        self._location = url

    def locate(self) -> None:
        """Ask the Hub where it keeps the file."""

        def ask() -> None:
            with self._answer("HEAD", {}) as response:
                response.read()  # an empty body, but reading it leaves the connection open for the next request

        persist(ask, f"'{self.url}' could not be found", ADVICE)

    def read(self, start: int, end: int, where: str) -> bytes:
        """Read the bytes from `start` up to `end`, and no more; `where` names them in errors."""

        def ask() -> tuple[httpx2.Response, bytes]:
            with self._answer("GET", {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}) as response:
                return response, _read_at_most(end - start, response)

        response, content = persist(ask, f"{where} could not be fetched", ADVICE)
        if len(content) != end - start:
            length = response.headers.get("Content-Length", len(content))
            raise HubError(
                f"{where}: {end - start} bytes were asked for, and the answer has {length} with status "
                f"{response.status_code}. {ADVICE}"
            )
        return content

    @contextmanager
    def _answer(self, method: str, range_headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """Ask where the last answer came from; the body is not read yet."""
        # Not `http_stream_backoff`: it waits as long as a server says, without a limit, and a connection that breaks
        # while the body is read makes it fail with "generator didn't stop after throw()".
        stream = partial(get_session().stream, follow_redirects=False, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        url, may_have_expired = self._location, self._location != self.url
        for _ in range(MAX_REDIRECTS):
            # the token is for the Hub, and not for the stores to which it redirects
            hub_headers = self.headers if self._is_the_hubs(url) else {}
            with stream(method, url, headers={**hub_headers, **range_headers}) as response:
                if response.has_redirect_location:
                    url = urljoin(url, response.headers["Location"])
                    if method == "GET" or self._is_the_hubs(url):  # a store need not answer a HEAD
                        continue
                elif response.is_client_error and response.status_code not in TRANSIENT and may_have_expired:
                    # the address of a store expires after a while
                    self._location = url = self.url
                    may_have_expired = False
                    continue
                hf_raise_for_status(response)
                self._location = url
                yield response
                return
        raise HubError(f"'{self.url}' was redirected {MAX_REDIRECTS} times, at last to '{url}'. {ADVICE}")

    def _is_the_hubs(self, url: str) -> bool:
        return urlsplit(url).netloc == urlsplit(self.url).netloc


def _read_at_most(size: int, response: httpx2.Response) -> bytes:
    """Read an answer, but not that of a server without ranges, and not much past the bytes asked for."""
    content = b""
    if response.status_code == 206 and response.headers.get("Content-Length", str(size)) == str(size):
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > size:
                break
    return content


class RemoteTexts:
    """Documents of a shard whose texts stay on the Hub: each is fetched by a request for its bytes."""

    def __init__(self, file: RemoteFile, offsets: str | Path, num_rows: int, num_bytes: int) -> None:
        self.file = file
        self.offsets = read_offsets(Path(offsets), num_rows, num_bytes)

    def fetch(self, rows: Sequence[int]) -> list[Document]:
        """Fetch the documents of rows, one after the other; an index asks for many rows at a time."""
        return [self._read(row) for row in rows]

    def _read(self, row: int) -> Document:
        where = f"Row {row} of '{self.file.url}'"
        start, end = line_of(self.offsets, row, where)
        return document_from_line(self.file.read(start, end, where), where)


def locate_files(files: Iterable[RemoteFile]) -> None:
    """
    Ask where files are kept, many at a time.

    This is done when an index is opened: at the first query, 20 neighbors in 20 shards would cost 40 requests, because
    each file has its own address. It costs a request without a body for each shard.
    """
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        list(pool.map(RemoteFile.locate, files))
