"""The journal: records on disk, under the settings that their numbers depend on, from which a run goes on."""

import glob
import json
from io import FileIO
from pathlib import Path
from typing import Any

from tttnn.documents import Document
from tttnn.errors import InputError, StateError
from tttnn.records import DocumentRecord, digest


JOURNAL_VERSION = 2
RANDOM_DISTANCES = "random-distances.json"  # stands beside a journal, for the report

EVALUATION = "evaluation.json"  # stands beside a journal: what was evaluated on what


def check_same(record: DocumentRecord, document: Document) -> None:
    """
    Make sure that a record from a journal is of the document that now has its index.

    Args:
        record (`DocumentRecord`):
            From the journal.
        document (`Document`):
            From the data set.

    Raises:
        `ValueError`: If their texts differ.
    """
    if record.digest != digest(document.text):
        raise InputError(
            f"Document {record.index} ('{document.id}') is not the one in the journal ('{record.id}'): the data set "
            "has changed. Choose another folder, or remove the journal."
        )


def read_journal(path: str | Path) -> tuple[dict[str, Any], list[DocumentRecord]]:
    """
    Read a journal, for a report.

    Args:
        path (`str` or `Path`):
            The file of process 0; those of the others are read with it.

    Returns:
        `tuple`: the settings, and the records in the order of their documents; a line that was cut by a kill is left
        out.

    Raises:
        `ValueError`: If it is not a journal, or the processes had different settings.
    """
    journal = Journal(path)
    settings: dict[str, Any] = {}
    records: dict[int, DocumentRecord] = {}
    for file in journal.files():
        theirs, found = _parse(file)
        if settings and theirs and theirs != settings:
            raise InputError(f"'{file}' has other settings than '{path}'. Move away the one that is not of this run.")
        settings = settings or theirs
        records |= {record.index: record for record in found}
    return settings, [records[index] for index in sorted(records)]


def _parse(path: Path) -> tuple[dict[str, Any], list[DocumentRecord]]:
    """Read the settings and whole records of one file; nothing of one that ends before its first record."""
    header, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    if not header or not lines:
        return {}, []
    try:
        first = json.loads(header)
        if first["tttnn_journal"] != JOURNAL_VERSION:
            raise InputError(f"version {first['tttnn_journal']}")
        return first["settings"], [DocumentRecord.from_json(line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' is no journal of this version of tttnn ({error!r}). Move it away.") from None


class Journal:
    """
    Records on disk, a JSON line each, written as documents are finished and read again on the next start.

    The first line holds the settings of the run; a journal is only gone on with under the same settings. Each process
    writes a file of its own, and all are read.

    Args:
        path (`str` or `Path`):
            The file of process 0; process 1 writes `NAME.rank1.jsonl` beside it, and so on.
        rank (`int`, *optional*, defaults to `0`):
            Number of this process.
    """

    def __init__(self, path: str | Path, rank: int = 0) -> None:
        self.first = Path(path)
        self.path = self.first if rank == 0 else self.first.with_name(f"{self.first.stem}.rank{rank}.jsonl")
        self._file: FileIO | None = None

    def open(self, settings: dict[str, Any]) -> dict[int, DocumentRecord]:
        """
        Begin a journal, or go on with one.

        Args:
            settings (`dict[str, Any]`):
                What the numbers depend on; JSON-able.

        Returns:
            `dict[int, DocumentRecord]`: the documents that are done, by index.

        Raises:
            `ValueError`: If the journal was written under other settings, or is not a journal.
        """
        settings = json.loads(json.dumps(settings, default=str))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        done: dict[int, DocumentRecord] = {}
        for path in self.files():
            done |= {record.index: record for record in self._read(path, settings)}
        content = self.path.read_bytes() if self.path.is_file() else b""
        # a line cut by a kill is not there: the document is done again
        whole = content[: content.rfind(b"\n") + 1] if content.count(b"\n") > 1 else b""
        # unbuffered: after a failed write nothing is left to fail again on closing
        file = self._file = self.path.open("r+b" if content else "wb", buffering=0)
        file.seek(len(whole))
        file.truncate()
        if not whole:
            self._write(json.dumps({"tttnn_journal": JOURNAL_VERSION, "settings": settings}))
        return done

    def files(self) -> list[Path]:
        """List the files of all processes that are there."""
        ranks = self.first.parent.glob(f"{glob.escape(self.first.stem)}.rank*.jsonl")
        return [path for path in [self.first, *sorted(ranks)] if path.is_file()]

    def _read(self, path: Path, settings: dict[str, Any]) -> list[DocumentRecord]:
        theirs, records = _parse(path)
        if not records:
            return []  # nothing is done, so nothing to protect
        different = [name for name in {**theirs, **settings} if theirs.get(name) != settings.get(name)]
        if different:
            name = different[0]
            raise InputError(
                f"'{path}' was written with other settings: `{name}` was {theirs.get(name)!r} and is now "
                f"{settings.get(name)!r} (different: {', '.join(different)}). Choose another folder, or remove it."
            )
        return records

    def append(self, record: DocumentRecord) -> None:
        """
        Add a finished document.

        Args:
            record (`DocumentRecord`):
                Written at once.

        Raises:
            `OSError`: If the disk is full or the file cannot be written; what was written before stays readable.
        """
        self._write(record.to_json())

    def _write(self, line: str) -> None:
        if self._file is None:
            raise StateError("The journal is not open.")
        try:
            rest = line.encode("utf-8") + b"\n"
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"The journal '{self.path}' could not be written ({error.strerror}). Its finished documents are kept: "
                "make room and start again to resume",
            ) from error

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file is not None:
            self._file.close()
