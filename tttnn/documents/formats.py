"""The rows of a file, in the format that its name says."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
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


def read_rows(path: Path, name: str, text_column: str) -> Iterator[tuple[str, Any]]:
    """Read the rows of a file, each with its id `NAME:NUMBER`; all but `.json` files are streamed."""
    import pyarrow

    match = ROWS_FILE.fullmatch(path.name.lower())
    kind, compression = match.groups() if match else (None, None)
    try:
        if kind is None:
            yield from enumerated(_parquet_rows(path), name)
            return
        # of the zstd readers, this one notices a file that was cut short
        with pyarrow.input_stream(str(path), compression=COMPRESSIONS[compression]) as opened:
            stream = io.BufferedReader(opened, buffer_size=1 << 20)
            if kind == "json":
                yield from _json_rows(stream.read(), name, text_column)
            elif kind in DIALECTS:
                yield from _csv_rows(stream, name, kind)
            else:
                yield from _line_rows(stream, name)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"'{path}' cannot be read ({error}). It is damaged, or not what its name says.") from None


def enumerated(rows: Iterable[Any], name: str) -> Iterator[tuple[str, Any]]:
    """Give each row with the id `NAME:NUMBER`, counted from 1."""
    return ((f"{name}:{number}", row) for number, row in enumerate(rows, 1))


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _line_rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in enumerated(lines, name):
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
