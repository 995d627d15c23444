"""The journal: records on disk, under the settings that their numbers depend on, from which a run resumes."""

import fcntl
import glob
import json
import os
from datetime import date, time, timedelta
from decimal import Decimal
from io import FileIO
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import numpy as np

from tttnn.documents import Document
from tttnn.errors import InputError, StateError
from tttnn.files import json_form
from tttnn.records import DocumentRecord, digest


JOURNAL_VERSION = 4
READ_VERSIONS = (2, 3, 4)  # the lines of version 2 have no checksum
# Settings that journals of a version do not name, and what they were in its runs.
IN_VERSION_3: dict[str, Any] = {
    **{"prompt": "none", "window_length": None, "stride": None, "mix": "none", "train_on": "neighbors"},
    **{"selector": "nearest", "distinct": None, "passage_length": None},
}
DEFAULTS: dict[int, dict[str, Any]] = {
    2: {"cut": "tokens", "router_aux_loss": False, **IN_VERSION_3},
    3: IN_VERSION_3,
    4: {},
}
# Settings that journals of before December 2026 do not name, and that cannot be told from them.
LATER = ("window_tokens", "stride_tokens", "tokenizer_digest", "prefix_token", "config_digest")
RANDOM_DISTANCES = "random-distances.json"  # stands beside a journal, for the report
EVALUATION = "evaluation.json"  # stands beside a journal: what was evaluated on what


def check_same(record: DocumentRecord, document: Document, exclude: str | None) -> None:
    """
    Make sure that a record from a journal is of the document that now has its index.

    Its id and `source`, which change with the name of a file, may be others, unless neighbors are excluded by them.
    """
    # a value that JSON has only as `str` writes it may be written otherwise the next time: a set, an object
    ignored = {"source", *(str(name) for name, value in document.metadata.items() if not _has_one_form(value))}
    before, now = (
        {name: value for name, value in json_form(metadata).items() if name not in ignored}
        for metadata in (record.metadata, document.metadata)
    )
    if exclude is not None:
        before[exclude] = record.id if exclude == "id" else record.metadata.get(exclude)
        now[exclude] = json_form(document.value(exclude))
    changed = [
        name for name in {**before, **now} if (name in before, before.get(name)) != (name in now, now.get(name))
    ]
    if record.digest != digest(document.text):
        changed = ["the text", *changed]
    if changed:
        raise InputError(
            f"Document {record.index} ('{document.id}') is not the one in the journal ('{record.id}'): the data set "
            f"has changed (different: {', '.join(changed)}). Choose another folder, or remove the journal."
        )


def _has_one_form(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is written to JSON in the same way by every process."""
    if isinstance(value, dict):
        return all(map(_has_one_form, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_has_one_form, value))
    kinds = (
        str,
        int,
        float,
        type(None),
        bytes,
        Decimal,
        UUID,
        PurePath,
        date,
        time,
        timedelta,
        np.generic,
        np.ndarray,
    )
    return isinstance(value, kinds)


def read_journal(path: str | Path) -> tuple[dict[str, Any], list[DocumentRecord]]:
    """Read the settings of a journal and the records of all its processes; a line that a kill has cut is left out."""
    settings: dict[str, Any] = {}
    records: dict[int, DocumentRecord] = {}
    for file in Journal(path).files():
        file_settings, file_records = _parse(file)
        if settings and file_settings and _different(file_settings, settings):
            raise InputError(f"'{file}' has other settings than '{path}'. Move away the one that is not of this run.")
        settings = settings or file_settings
        records |= {record.index: record for record in file_records}
    return settings, [records[index] for index in sorted(records)]


def _different(some: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Name the settings that are not the same, as far as both name them; the rules, which follow from others, last."""
    some, others = ({**settings, "rules": settings.get("rules", 1)} for settings in (some, others))
    return [
        name
        for name in sorted({**some, **others}, key=lambda name: name == "rules")
        if some.get(name) != others.get(name) and not (name in LATER and not (name in some and name in others))
    ]


def _parse(path: Path) -> tuple[dict[str, Any], list[DocumentRecord]]:
    """Read the settings and whole records of one file; nothing of one that ends before its first record."""
    lines = path.read_bytes().split(b"\n")[:-1]
    if len(lines) < 2 or not lines[0]:
        return {}, []
    try:
        header = json.loads(lines[0])
        if (version := header["tttnn_journal"]) not in READ_VERSIONS:
            raise InputError(f"version {version}")
        rows = [_checked(line, number, path, version) for number, line in enumerate(lines, 1)]
        settings = DEFAULTS[version] | header["settings"]
        return settings, [DocumentRecord.from_json(row) for row in rows[1:]]
    except DamagedLineError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' is no journal of this version of tttnn ({error!r}). Move it away.") from None


class DamagedLineError(InputError):
    """A line of a journal is not as it was written."""


def _with_checksum(line: str) -> str:
    """Add to a JSON object the digest of what it is without it."""
    return f'{line[:-1]}, "checksum": "{digest(line)}"}}'


def _checked(line: bytes, number: int, path: Path, version: int) -> bytes:
    """Give a line without its checksum, if it is as it was written."""
    content, mark, end = line.rpartition(b', "checksum": "')
    if not mark and version == 2:
        return line
    content += b"}"
    if digest(content.decode("utf-8", "replace")).encode() + b'"}' != end:
        raise DamagedLineError(
            f"Line {number} of '{path}' is damaged: its checksum is not that of its content. Remove the line, and its "
            "document is run again; if it is the first line, move the journal away."
        )
    return content


class Journal:
    """
    Records on disk, a JSON line each, written as documents are finished and read again on the next start.

    The first line holds the settings of the run; a run resumes only under the same settings. Each process writes its
    own file and locks it, and all files are read. Each line carries a checksum.

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
        Begin or resume a journal under settings that are JSON-able; give the records of the documents that are done.
        """
        settings = json.loads(json.dumps(settings, default=str))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # unbuffered: after a failed write nothing is left to fail again on closing
        file = self._file = FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed, or its process ends
        except BlockingIOError:
            self.close()
            raise StateError(
                f"Another process is writing '{self.path}'. Wait until it ends, or choose another folder."
            ) from None
        done: dict[int, DocumentRecord] = {}
        for path in self.files():
            done |= {record.index: record for record in self._read(path, settings)}
        content = self.path.read_bytes()
        # a line that a kill has cut does not count: the document is run again
        whole = content[: content.rfind(b"\n") + 1] if content.count(b"\n") > 1 else b""
        file.seek(len(whole))
        file.truncate()
        if not whole:
            header = {"tttnn_journal": JOURNAL_VERSION, "settings": settings}
            self._write(_with_checksum(json.dumps(header)))
        return done

    def files(self) -> list[Path]:
        """List the files of all processes that are there."""
        ranks = self.first.parent.glob(f"{glob.escape(self.first.stem)}.rank*.jsonl")
        return [path for path in [self.first, *sorted(ranks)] if path.is_file()]

    def _read(self, path: Path, settings: dict[str, Any]) -> list[DocumentRecord]:
        written, records = _parse(path)
        if not records:
            return []  # nothing is done, so nothing to protect
        different = _different(written, settings)
        if different == ["rules"]:
            raise InputError(
                f"'{path}' was written by another version of tttnn, which gives other numbers for such a run. Choose "
                "another folder, or remove it."
            )
        if different:
            name = different[0]
            raise InputError(
                f"'{path}' was written with other settings: `{name}` was {written.get(name)!r} and is now "
                f"{settings.get(name)!r} (different: {', '.join(different)}). Choose another folder, or remove it."
            )
        return records

    def append(self, record: DocumentRecord) -> None:
        """Add a finished document; what was written before stays readable if the disk is full."""
        self._write(_with_checksum(record.to_json()))

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
        """Close the file, if it was opened; its lock ends with that."""
        if self._file is not None:
            self._file.close()
