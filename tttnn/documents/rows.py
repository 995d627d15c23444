"""Documents, and the texts, rows and tables that they are made of."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from tttnn.errors import InputError, InputTypeError
from tttnn.files import json_default


# "row 3", "data.jsonl:3"
POSITION = re.compile(r"row \d+|.+\.\w+:\d+", re.DOTALL)
KEYS_IN_MESSAGE = 10


@dataclass(frozen=True)
class Document:
    """
    A text of a corpus or of a test set.

    Args:
        id (`str`):
            Stable between runs: a field of the document's row, or its file and row number.
        text (`str`):
            The text, free of lone surrogates.
        metadata (`dict[str, Any]`, *optional*):
            The row's other fields, JSON-able; a field `meta` or `metadata` that holds a dictionary is merged in.
    """

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> Any:  # noqa: ANN401
        """Look up `"id"` or a key of `metadata`; `None` where the document has no such field."""
        return self.id if name == "id" else self.metadata.get(name)


@runtime_checkable
class _Arrow(Protocol):
    """A column or a table that Arrow reads: of pandas, polars, pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


@runtime_checkable
class _Table(_Arrow, Protocol):
    """A table: it iterates over its columns or their names."""

    columns: Any


@runtime_checkable
class _Keyed(Protocol):
    """What `dict(...)` reads by its keys."""

    def keys(self) -> Any: ...  # noqa: ANN401

    def __getitem__(self, key: Any, /) -> Any: ...  # noqa: ANN401


def is_position(document_id: str) -> bool:
    """
    Tell whether an id only counts rows, so that two documents with this id need not be the same.

    Args:
        document_id (`str`):
            The id of a document.

    Returns:
        `bool`: true for `"row 3"` and `"data.jsonl:3"`; false for ids from a field of a row and for names of files.
    """
    return POSITION.fullmatch(document_id) is not None


def check_text(text: object, where: str) -> str:
    """
    Make sure that a text is a string that UTF-8 can encode.

    Args:
        text (`object`):
            What should be a text.
        where (`str`):
            Where it stands, for the error message: `"row 3"`.

    Returns:
        `str`: the text, unchanged.

    Raises:
        `TypeError`: If it is not a string.
        `ValueError`: If it holds a lone surrogate, which neither UTF-8 nor a tokenizer can encode.
    """
    if not isinstance(text, str):
        raise InputTypeError(f"The text of {where} is {type(text).__name__}, not a string. Convert or drop it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text of {where} holds the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}, which UTF-8 cannot encode. Replace it, for example with "
            "`text.encode('utf-8', 'replace').decode('utf-8')`."
        ) from None
    return text


def as_documents(
    rows: Iterable[Any], text_column: str = "text", id_column: str | None = None, name: str = "row"
) -> Iterator[Document]:
    """
    Read documents from strings, dictionaries, a `datasets` data set, a DataFrame, or documents.

    Args:
        rows (`Iterable`):
            `str`, `dict` or `Document` items; a `Dataset` or `IterableDataset` iterates over dictionaries. Of a table
            (pandas, polars, pyarrow) the rows are read.
        text_column (`str`, *optional*, defaults to `"text"`):
            The field with the text.
        id_column (`str`, *optional*):
            The field with the id. By default `id`, or else the item's position.
        name (`str`, *optional*, defaults to `"row"`):
            What an item is called in ids and errors, followed by its position.

    Yields:
        `Document`: one per item, in order.

    Raises:
        `TypeError`: If an item or its text is of another type, or `rows` are a string, bytes, a set, or a mapping such
            as a `DatasetDict`.
        `ValueError`: If a column is missing, or a text holds a lone surrogate.
    """
    for position, item in enumerate(_items(rows)):
        yield document_from(item, f"{name} {position}", text_column, id_column)


def document_from(item: object, where: str, text_column: str = "text", id_column: str | None = None) -> Document:
    """Make a document of a string, a row or a document; `where` is its id where it has none."""
    if isinstance(item, Document):
        return _checked(item, where, text_column)
    if not isinstance(item, Mapping):
        return Document(where, check_text(item, where))
    row = dict(item)
    for column in (text_column, id_column):
        if column is not None and column not in row:
            raise InputError(
                f"{where} has no column `{column}`; its columns are {sorted(map(str, row))}. Name the right one, or "
                "leave the file out with `exclude_files`."
            )
    value = row.get(id_column or "id")
    metadata = {name: item for name, item in row.items() if name not in (text_column, id_column or "id")}
    for name in ("meta", "metadata"):
        if isinstance(metadata.get(name), dict):
            metadata |= metadata.pop(name)
    return _checked(Document(where if value is None else str(value), row[text_column], metadata), where, text_column)


def _items(rows: Iterable[Any]) -> Iterable[Any]:
    """Give what can be documents, in order; what would be iterated by its keys is refused."""
    kind = type(rows).__name__
    if isinstance(rows, str):
        raise InputTypeError("A list of texts is needed, and one string was given. Put it into a list.")
    if isinstance(rows, bytes | bytearray | memoryview):
        raise InputTypeError(f"A list of texts is needed, and {kind} were given. Decode them, and put them in a list.")
    if isinstance(rows, Set):
        raise InputTypeError(f"A {kind} has no order, and documents need one. Pass a list: `sorted(texts)`.")
    if isinstance(rows, _Table):
        return _rows_of(rows)
    if isinstance(rows, Mapping) or isinstance(rows, _Keyed) and not isinstance(rows, _Arrow):
        raise InputTypeError(
            f"A {kind} with the keys {[*rows.keys()][:KEYS_IN_MESSAGE]} was given, and its keys are no documents. "
            "Pass one of its splits, or a list of rows."
        )
    return rows


def _rows_of(table: _Table) -> Iterator[dict[str, Any]]:
    """Read a table row by row."""
    import pyarrow

    try:
        batches = pyarrow.table(table).to_batches(max_chunksize=256)
    except (pyarrow.ArrowException, ValueError) as error:
        raise InputTypeError(
            f"The rows of this {type(table).__name__} cannot be read ({error}). Pass them as a list of dictionaries."
        ) from error
    return (row for batch in batches for row in batch.to_pylist())


def _checked(document: Document, where: str, text_column: str) -> Document:
    check_text(document.text, where)
    check_text(document.id, f"the id of {where}")
    elsewhere = f"{where}, outside of its `{text_column}`,"
    try:
        other = json.dumps(document.metadata, ensure_ascii=False, default=json_default)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{elsewhere} cannot be written as JSON ({error}). Convert or drop that field.") from None
    check_text(other, elsewhere)
    return document
