"""The rows of a file, in the format that its name says."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tttnn.errors import InputError


ROWS_FILE = re.compile(r".*\.(?:(jsonl|ndjson|json|csv|tsv)(?:\.(gz|zst))?|parquet)", re.IGNORECASE | re.DOTALL)
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", None: None}
DIALECTS = {"csv": "excel", "tsv": "excel-tab"}
LINES_RULE = "Each line of a .jsonl file holds one object."
JSON_RULE = "A .json file holds a list of rows or texts, one row, or an object with one list of rows."


class NoRowsError(InputError):
    """A JSON file holds something else than rows: settings, for example."""


def is_rows_file(name: str) -> bool:
    """Whether a file of this name holds rows, and not one text."""
    return ROWS_FILE.fullmatch(name) is not None


def begins_anywhere(name: str) -> bool:
    """Whether a reader can begin inside of a file of rows of this name without reading what is before."""
    return _kind(name) in (("jsonl", None), ("ndjson", None), (None, None))


def read_rows(
    path: Path, name: str, text_column: str, first: int = 0, byte: int | None = None
) -> Iterator[tuple[str, Any]]:
    """
    Read the rows of a file, each with its id `NAME:NUMBER`; all but `.json` files are streamed.

    `first` and `byte` are what `row_places` gave for the row to begin with.
    """
    kind, compression = _kind(path.name)
    with _readable(path):
        if kind is None:
            yield from enumerated(_parquet_rows(path, first), name, first)
            return
        with _opened(path, compression, byte or 0) as stream:
            if kind == "json":
                yield from islice(_json_rows(stream.read(), name, text_column), first, None)
            elif kind in DIALECTS:
                yield from islice(_csv_rows(stream, name, kind), first, None)
            else:
                lines = stream if byte is not None else islice(stream, first, None)
                yield from _line_rows(lines, name, first)


def row_places(path: Path, name: str, text_column: str) -> Iterator[tuple[int, int | None]]:
    """Give for each row of a file how many are before it, lines without one included, and how many bytes, if known."""
    kind, compression = _kind(path.name)
    with _readable(path):
        if kind is None:
            import pyarrow.parquet

            yield from ((row, None) for row in range(pyarrow.parquet.read_metadata(path).num_rows))
            return
        with _opened(path, compression) as stream:
            if kind == "json":
                rows: Iterable[Any] = _json_rows(stream.read(), name, text_column)
            elif kind in DIALECTS:
                rows = _csv_rows(stream, name, kind)
            else:
                byte = 0
                for number, line in enumerate(stream):  # not parsed: this is the speed of the disk
                    if not line.isspace():
                        yield number, None if compression else byte
                    byte += len(line)
                return
            yield from ((row, None) for row, _ in enumerate(rows))


def _kind(name: str) -> tuple[str | None, str | None]:
    """Give the kind of a file of rows and its compression; `None` for Parquet."""
    match = ROWS_FILE.fullmatch(name.lower())
    return (match[1], match[2]) if match else (None, None)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into an error that names it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"'{path}' cannot be read ({error}). It is damaged, or not what its name says.") from None


@contextmanager
def _opened(path: Path, compression: str | None, byte: int = 0) -> Iterator[io.BufferedReader]:
    import pyarrow

    # of the zstd readers, this one notices a file that was cut short
    with pyarrow.input_stream(str(path), compression=COMPRESSIONS[compression]) as opened:
        if byte:
            opened.seek(byte)
        yield io.BufferedReader(opened, buffer_size=1 << 20)


def enumerated(rows: Iterable[Any], name: str, first: int = 0) -> Iterator[tuple[str, Any]]:
    """Give each row with the id `NAME:NUMBER`, counted from 1; `first` are before."""
    return ((f"{name}:{number}", row) for number, row in enumerate(rows, first + 1))


def _parquet_rows(path: Path, first: int) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        group = 0
        while group < len(counts) and counts[group] <= first:  # whole groups are passed over
            first -= counts[group]
            group += 1
        batches = file.iter_batches(batch_size=256, row_groups=range(group, len(counts)))
        yield from islice((row for batch in batches for row in batch.to_pylist()), first, None)


def _line_rows(lines: Iterable[bytes], name: str, first: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in enumerated(lines, name, first):
        if line.strip():
            row = _parse(line, where)
            if not isinstance(row, dict):
                raise InputError(f"{where} is a JSON {type(row).__name__}, not an object. Write one object a line.")
            yield where, row


def _json_rows(data: bytes, name: str, text_column: str) -> Iterator[tuple[str, Any]]:
    """Read a list of rows or texts, one row, an object with one list of rows, or lines as of a `.jsonl` file."""
    try:
        value = _parse(data, name, JSON_RULE)
    except InputError as error:
        if not _is_object(next(filter(bytes.strip, io.BytesIO(data)), b"")):
            raise NoRowsError(str(error)) from None
        yield from _line_rows(io.BytesIO(data), name)
        return
    if isinstance(value, dict):
        lists = [rows for rows in value.values() if isinstance(rows, list) and _has_column(rows, text_column)]
        if text_column not in value and len(lists) != 1:
            raise NoRowsError(
                f"{name} has neither the column `{text_column}` nor one list of objects with it; its keys are "
                f"{sorted(value)}. Name the right column. {JSON_RULE}"
            )
        value = [value] if text_column in value else lists[0]
    if not isinstance(value, list) or value and not isinstance(value[0], dict | str):
        raise NoRowsError(f"{name} is a JSON {type(value).__name__} without rows. {JSON_RULE}")
    for where, row in enumerated(value, name):
        if not isinstance(row, dict | str):
            raise InputError(f"{where} is a JSON {type(row).__name__}, neither an object nor a string. Drop it.")
        yield where, row


def _has_column(rows: list[Any], column: str) -> bool:
    return bool(rows) and isinstance(rows[0], dict) and column in rows[0]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(_parse(line, ""), dict)
    except InputError:
        return False


def _parse(data: bytes, where: str, rule: str = LINES_RULE) -> Any:  # noqa: ANN401
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}). {rule}") from None


def _csv_rows(stream: Any, name: str, kind: str) -> Iterator[tuple[str, dict[str, str]]]:  # noqa: ANN401
    csv.field_size_limit((1 << 31) - 1)  # for the whole process; the default refuses texts of 128 kB
    rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), dialect=DIALECTS[kind], strict=True)
    try:
        columns = rows.fieldnames or []
        if len({*columns}) < len(columns):
            raise InputError(f"'{name}' has two columns of one name: {columns}. Rename one.")
        for where, row in enumerated(rows, name):
            if None in row:
                raise InputError(f"{where} has more fields than the first line, {len(columns)}. Check its quotes.")
            yield where, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not {kind} in UTF-8 after {rows.line_num} lines ({error}). Convert it.") from None
