"""Documents with stable ids, and readers of the usual formats."""

import io
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tttnn.errors import InputError, InputTypeError


logger = logging.getLogger(__name__)

RECORD_SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet")
HUB_ID = re.compile(r"[\w.-]*\w/[\w-][\w.-]*(?<!\.jsonl)(?<!\.jsonl\.zst)(?<!\.parquet)")


@dataclass(frozen=True)
class Document:
    """
    A text of a corpus or of a test set.

    Args:
        id (`str`):
            The document's own id, stable between runs: a field of its row, or its file and line.
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


def document_from_row(
    row: dict[str, Any], where: str, text_column: str = "text", id_column: str | None = None
) -> Document:
    """
    Turn a row of a data set into a document.

    Args:
        row (`dict[str, Any]`):
            The row's fields.
        where (`str`):
            Where the row stands; serves as its id where it brings none.
        text_column (`str`, *optional*, defaults to `"text"`):
            The field with the text.
        id_column (`str`, *optional*):
            The field with the id. By default `id` where there is one, else `where`.

    Returns:
        `Document`: the text, its id, and every other field as metadata.

    Raises:
        `ValueError`: If a named column is missing, or the text holds a lone surrogate.
        `TypeError`: If the text is not a string.
    """
    for column in (text_column, id_column):
        if column is not None and column not in row:
            raise InputError(f"{where} has no column `{column}`; its columns are {sorted(row)}. Name the right one.")
    text, given = row[text_column], row.get(id_column or "id")
    metadata = {name: value for name, value in row.items() if name not in (text_column, id_column or "id")}
    for name in ("meta", "metadata"):
        if isinstance(metadata.get(name), dict):
            metadata |= metadata.pop(name)
    return _checked(Document(where if given is None else str(given), text, metadata), where, text_column)


def _checked(document: Document, where: str, text_column: str = "text") -> Document:
    check_text(document.text, where)
    check_text(document.id, f"the id of {where}")
    other = json.dumps(document.metadata, ensure_ascii=False, default=str)
    check_text(other, f"{where}, outside of its `{text_column}`,")
    return document


def as_documents(
    rows: Iterable[Any], text_column: str = "text", id_column: str | None = None, name: str = "row"
) -> Iterator[Document]:
    """
    Read documents from strings, dictionaries, a `datasets` data set, or documents.

    Args:
        rows (`Iterable`):
            `str`, `dict` or `Document` items; a `Dataset` or `IterableDataset` iterates over dictionaries.
        text_column (`str`, *optional*, defaults to `"text"`):
            The field with the text.
        id_column (`str`, *optional*):
            The field with the id.
        name (`str`, *optional*, defaults to `"row"`):
            What an item is called in ids and errors, followed by its position.

    Yields:
        `Document`: one per item, in order.

    Raises:
        `TypeError`: If an item or its text is of another type.
        `ValueError`: If a column is missing, or a text holds a lone surrogate.
    """
    if isinstance(rows, str):
        raise InputTypeError("A list of texts is needed, and one string was given. Put it into a list.")
    if isinstance(rows, dict):
        raise InputTypeError(f"A dictionary with {sorted(rows)} was given, several splits perhaps. Pass one of them.")
    for position, row in enumerate(rows):
        where = f"{name} {position}"
        if isinstance(row, Document):
            yield _checked(row, where)
        elif isinstance(row, dict):
            yield document_from_row(row, where, text_column, id_column)
        else:
            yield Document(where, check_text(row, where))


def read_documents(
    source: str | Path | Sequence[str | Path],
    text_column: str = "text",
    id_column: str | None = None,
    split: str = "train",
    revision: str | None = None,
    token: str | bool | None = None,
    limit: int | None = None,
) -> Iterator[Document]:
    """
    Read documents from files, folders or data sets of the Hub, one at a time.

    Args:
        source (`str`, `Path` or a sequence of them):
            A `.jsonl`, `.jsonl.zst` or `.parquet` file of rows; any other file is one text. A folder: all its files,
            sorted by path, hidden ones left out, and those that are not UTF-8 text skipped with a warning. Anything
            else: the id of a data set on the Hub, which is streamed. Several are read one after another.
        text_column (`str`, *optional*, defaults to `"text"`):
            The field with the text.
        id_column (`str`, *optional*):
            The field with the id. By default `id`, or else the file and line.
        split (`str`, *optional*, defaults to `"train"`):
            The split of a Hub data set.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub data set.
        token (`str` or `bool`, *optional*):
            Token for a private Hub data set.
        limit (`int`, *optional*):
            Stop after that many documents.

    Returns:
        `Iterator[Document]`: the documents, in the order of the source.

    Raises:
        `FileNotFoundError`: If a source looks like a path and nothing is there.
        `ValueError`, `TypeError`: As `document_from_row`, or if a line is not JSON.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The limit is {limit} documents. Pass at least 1.")
    paths, root = _find(source)

    def read() -> Iterator[Document]:
        for item, path in paths.items():
            if path.is_dir():
                yield from _read_folder(path, root, text_column, id_column)
            elif path.is_file():
                name = Path(os.path.abspath(path)).relative_to(root).as_posix()
                try:
                    yield from _read_file(path, name, text_column, id_column)
                except UnicodeDecodeError as error:
                    raise InputError(f"'{path}' is not UTF-8 text ({error}). Convert it, or leave it out.") from None
            else:
                from datasets import load_dataset

                rows = load_dataset(str(item), split=split, revision=revision, token=token, streaming=True)
                yield from as_documents(rows, text_column, id_column, name=f"{item}/{split}")

    return islice(read(), limit)


def _find(source: str | Path | Sequence[str | Path]) -> tuple[dict[str | Path, Path], Path]:
    """Give the path of each source, and the folder in which the names of their files begin."""
    paths = {item: Path(item).expanduser() for item in ([source] if isinstance(source, str | Path) else source)}
    for item, path in paths.items():
        if not str(item) or not path.exists() and (isinstance(item, Path) or not HUB_ID.fullmatch(item)):
            raise FileNotFoundError(
                f"There is no file or folder at '{item}', and an id on the Hub reads 'user/name'. Check the path."
            )
    # so that names tell files of several sources apart, and are the same wherever the corpus lies
    local = [Path(os.path.abspath(path)) for path in paths.values() if path.exists()]
    if len(paths) == 1 and local and local[0].is_dir():
        return paths, local[0]
    return paths, Path(os.path.commonpath([path.parent for path in local])) if local else Path()


def _read_folder(folder: Path, root: Path, text_column: str, id_column: str | None) -> Iterator[Document]:
    skipped = []
    for path in _files_in(folder):
        name = Path(os.path.abspath(path)).relative_to(root).as_posix()
        try:
            yield from _read_file(path, name, text_column, id_column)
        except UnicodeDecodeError:
            skipped.append(name)
    if skipped:
        logger.warning("Skipped %d files that are not UTF-8 text: %s", len(skipped), ", ".join(skipped[:5]))


def _files_in(folder: Path) -> Iterator[Path]:
    """List the files that are not hidden, those of a folder in its place, so that memory holds no list of them all."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files_in(path)
        elif path.is_file():
            yield path


def _read_file(path: Path, name: str, text_column: str, id_column: str | None) -> Iterator[Document]:
    check_text(name, f"the file name {name!a}")
    if not path.name.endswith(RECORD_SUFFIXES):
        yield Document(name, path.read_bytes().decode("utf-8"), {"source": name})
        return
    for where, row in _read_rows(path, name):
        document = document_from_row(row, where, text_column, id_column)
        document.metadata.setdefault("source", name)
        yield document


def _read_rows(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                rows = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
                yield from ((f"{name}:{number}", row) for number, row in enumerate(rows, 1))
        else:
            # of the zstd readers, this one tells a file that was cut short
            with pyarrow.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as stream:
                for number, line in enumerate(io.BufferedReader(stream, buffer_size=1 << 20), 1):
                    if line.strip():
                        yield f"{name}:{number}", _parse_line(line, f"{name}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"'{path}' cannot be read ({error}). It is damaged, or not what its name says.") from None


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}). Each line of a .jsonl file holds one object.") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} is a JSON {type(row).__name__}, not an object. Write one object a line.")
    return row
