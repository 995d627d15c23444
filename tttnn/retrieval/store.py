"""Blobs on disk by key, in a file of bounded size."""

import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TypeVar


logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Entries = dict[bytes, tuple[int, bytes]]

LOCK_SECONDS = 10  # how long one process waits for another
# Codes of what is wrong with the disk or its use, and not with the file. (A UnicodeDecodeError is of the file: sqlite3
# decodes messages, which quote what is damaged.)
UNUSABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, size INTEGER, content BLOB, checksum INTEGER, used INTEGER);
CREATE INDEX IF NOT EXISTS by_use ON entries (used);
"""
READ = "SELECT size, content, checksum FROM entries WHERE key = ?"
# another process may have written a larger entry meanwhile
WRITE = """
INSERT INTO entries VALUES (?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET (size, content, checksum, used)
    = (excluded.size, excluded.content, excluded.checksum, excluded.used) WHERE excluded.size >= entries.size
"""
NUM_BYTES = """
SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""
DROP_A_TENTH = """
DELETE FROM entries WHERE key IN (SELECT key FROM entries ORDER BY used LIMIT 1 + (SELECT COUNT(*) FROM entries) / 10)
"""


class Store:
    """
    A size and a blob by key, in an SQLite file of at most `max_bytes`: the least recently used entries go first.

    It is a cache: if nothing can be read or written, nothing is kept. Each access opens the file, so that processes,
    threads and forks can share it, and it can be deleted at any time. SQLite's rollback journal, unlike its
    write-ahead log, also serves hosts that share a home directory.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes

    def get(self, keys: Iterable[bytes]) -> Entries:
        """Read the entries of keys, as far as they are there and whole."""

        def read(connection: sqlite3.Connection) -> Entries:
            rows = {key: connection.execute(READ, (key,)).fetchone() for key in keys}
            return {key: row[:2] for key, row in rows.items() if row is not None and _is_whole(key, *row)}

        def touch(connection: sqlite3.Connection) -> None:
            now = time.time_ns()
            connection.executemany("UPDATE entries SET used = ? WHERE key = ?", [(now, key) for key in entries])

        none: Entries = {}
        entries = self._run(read, none)
        if entries:
            self._run(touch, None)  # by itself: a file that cannot be written can still be read
        return entries

    def put(self, entries: Entries) -> None:
        """Write entries, but not over larger ones."""

        def write(connection: sqlite3.Connection) -> None:
            now = time.time_ns()
            connection.executemany(
                WRITE, [(key, *entry, _checksum(key, *entry), now) for key, entry in entries.items()]
            )
            while connection.execute(NUM_BYTES).fetchone()[0] > self.max_bytes:
                if connection.execute(DROP_A_TENTH).rowcount == 0:
                    break

        self._run(write, None)

    def _run(self, work: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """Do work in a transaction, or give `otherwise`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=LOCK_SECONDS)) as connection, connection:
                connection.text_factory = bytes  # a damaged blob may look like text that cannot be decoded
                connection.executescript(SCHEMA)
                return work(connection)
        except sqlite3.ProgrammingError:
            raise
        except (OSError, sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) or (
                isinstance(error, sqlite3.DatabaseError) and error.sqlite_errorcode & 0xFF in UNUSABLE
            ):
                logger.info("The cache '%s' cannot be used: %s", self.path, error)
            else:
                self._set_aside(error)
        return otherwise

    def _set_aside(self, error: Exception) -> None:
        damaged = self.path.with_name(f"{self.path.name}.damaged")
        logger.warning("The cache '%s' is damaged (%s). It is moved to '%s' and rebuilt.", self.path, error, damaged)
        try:
            os.replace(self.path, damaged)
            self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
        except OSError as failure:
            logger.info("The damaged cache '%s' cannot be moved: %s", self.path, failure)


def _checksum(key: bytes, size: int, content: bytes) -> int:
    # with the key, because a damaged index of the file may lead to the entry of another one
    return zlib.crc32(b"%b %d %b" % (key, size, content))


def _is_whole(key: bytes, size: object, content: object, checksum: object) -> bool:
    # damage can change the types, too
    return isinstance(size, int) and isinstance(content, bytes) and _checksum(key, size, content) == checksum
