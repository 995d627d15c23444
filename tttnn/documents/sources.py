"""Documents of files, folders and data sets of the Hub, one at a time."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tttnn.documents.folders import NAMES_IN_WARNING, Files, RowPlace
from tttnn.documents.formats import begins_anywhere, is_rows_file
from tttnn.documents.rows import Document, document_from
from tttnn.errors import HubError, InputError, InputTypeError


logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]*\w/[\w-][\w.-]*")
SAMPLED, SAMPLE_BYTES = 1000, 1 << 16  # files of which the beginning and the end tell a corpus from another


def read_documents(
    source: str | Path | Sequence[str | Path],
    text_column: str = "text",
    id_column: str | None = None,
    split: str = "train",
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    limit: int | None = None,
    include_files: Sequence[str] = (),
    exclude_files: Sequence[str] = (),
    dataset_config: str | None = None,
    quiet: bool = False,
) -> Iterator[Document]:
    """
    Read documents from files, folders or data sets of the Hub, one at a time.

    Files of rows are `.jsonl`, `.ndjson`, `.json`, `.csv` and `.tsv`, also with `.gz` or `.zst` after it, and
    `.parquet`; any other file is one text. A `.json` file holds a list of rows or texts, one row, an object with one
    list of rows, or lines as a `.jsonl` file.

    A folder gives all its files, sorted by path, without hidden ones. It skips empty files, files that are not UTF-8
    text, JSON files without rows, and links to folders that it reads anyway; a warning counts and names them. A folder
    that `datasets` saved with `save_to_disk` is read as the data set.

    The id of a document is a field of its row, or else the name of its file with the row's number. A name is relative
    to the source folder; of a source file it is the file's own. If another source has a file of the same name, the
    name is relative to the folder that holds all the sources.

    Args:
        source (`str`, `Path` or a sequence of them):
            A file, a folder, or the id of a data set on the Hub, which is streamed. Several are read one after
            another.
        text_column (`str`, *optional*, defaults to `"text"`):
            The field with the text.
        id_column (`str`, *optional*):
            The field with the id. By default `id`, or else file and row number.
        split (`str`, *optional*, defaults to `"train"`):
            The split of a data set from the Hub or from `save_to_disk`.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub data set.
        token (`str` or `bool`, *optional*):
            Token for a private Hub data set.
        limit (`int`, *optional*):
            Stop after this number of documents.
        include_files (`Sequence[str]`, *optional*):
            Read only files of a folder whose path in it matches one of these patterns: `["*.md", "docs/*"]`. `*` also
            matches `/`, as in `allow_patterns` of huggingface_hub. By default all.
        exclude_files (`Sequence[str]`, *optional*):
            Skip files and folders whose path matches one of these patterns.
        dataset_config (`str`, *optional*):
            The configuration of a Hub data set.
        quiet (`bool`, *optional*, defaults to `False`):
            Whether to leave out the warnings of what is skipped, for example when documents are only counted.

    Returns:
        `Iterator[Document]`: the documents, in the order of the source.

    Raises:
        `FileNotFoundError`: If a source looks like a path and nothing is there.
        `ValueError`: If a file is damaged or not what its name says, a column is missing, a source is given twice, or
            an option does not fit the sources.
        `TypeError`: If a text is not a string.
    """
    return iter(
        Corpus(
            source,
            text_column,
            id_column,
            split,
            revision,
            token=token,
            limit=limit,
            include_files=include_files,
            exclude_files=exclude_files,
            dataset_config=dataset_config,
            quiet=quiet,
        )
    )


class Place(NamedTuple):
    """Where a document of a corpus is: the number of its source, and the place in it."""

    source: int
    row: RowPlace


class Corpus:
    """
    The documents of files, folders and data sets of the Hub, read as often as needed, from any document on.

    Args:
        source (`str`, `Path` or a sequence of them):
            As `read_documents` takes it, and so are the other arguments.

    Raises:
        `FileNotFoundError`: If a source looks like a path and nothing is there.
        `ValueError`: If a source is given twice, or an option does not fit the sources.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        text_column: str = "text",
        id_column: str | None = None,
        split: str = "train",
        revision: str | None = None,
        *,
        token: str | bool | None = None,
        limit: int | None = None,
        include_files: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        dataset_config: str | None = None,
        quiet: bool = False,
    ) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"The limit is {limit} documents. Pass at least 1.")
        for patterns in (include_files, exclude_files):
            if isinstance(patterns, str):
                raise InputTypeError(
                    f"A list of patterns is needed, and the string {patterns!r} was given. Pass a list."
                )
        self.sources = [source] if isinstance(source, str | Path) else [*source]
        self.paths = [_find(item) for item in self.sources]
        if len({path or item for path, item in zip(self.paths, self.sources, strict=True)}) < len(self.sources):
            raise InputError(f"A source is given twice: {[str(item) for item in self.sources]}. Pass each one once.")
        if dataset_config is not None and None not in self.paths:
            raise InputError("`dataset_config` chooses a configuration of a Hub data set, and every source is a path.")
        self.columns, self.split, self.revision, self.token = (text_column, id_column), split, revision, token
        self.limit, self.patterns = limit, ([*include_files], [*exclude_files])
        self.dataset_config, self.quiet = dataset_config, quiet
        self._files()

    def __iter__(self) -> Iterator[Document]:
        files = self._files()
        yield from islice(self._read(files, 0), self.limit)
        if not self.quiet:
            files.report()

    def read_from(self, place: Place) -> Iterator[Document]:
        """
        Read the corpus from a document on.

        Args:
            place (`Place`):
                Where it is, as `places` gave it. JSON lines, Parquet files and saved data sets are opened there; other
                files and data sets of the Hub are read from their beginning.

        Yields:
            `Document`: that one and all after it; `limit` is left to the caller.
        """
        yield from self._read(self._files(), place.source, place.row)

    def count(self) -> int:
        """
        Count the documents; lines are counted, not parsed.

        Returns:
            `int`: how many a reader gets.

        Raises:
            `ValueError`: If a file is damaged or not what its name says.
        """
        return sum(1 for _ in islice(self._places(self._files()), self.limit))

    def places(self, every: int = 1) -> tuple[list[Place], int]:
        """
        Find out where documents are; lines are counted, not parsed.

        Args:
            every (`int`, *optional*, defaults to `1`):
                Give the place of the first document and of each one that comes `every` documents later.

        Returns:
            `tuple[list[Place], int]`: the places, and the number of documents.

        Raises:
            `ValueError`: If a file is damaged or not what its name says.
        """
        places, number, files, from_begin = list[Place](), 0, self._files(), dict[str, None]()
        for place in islice(self._places(files), self.limit):
            if number % every == 0:
                places.append(place)
                if place.row.row and place.row.byte is None and not self._begins_anywhere(place):
                    from_begin[place.row.file] = None
            number += 1
        if not self.quiet:
            files.report()
            if from_begin:
                logger.warning(
                    "A part that begins inside of one of these is found by reading it from its beginning: %s. Plain "
                    "`.jsonl` files, Parquet files, or many smaller ones are opened where a part begins.",
                    ", ".join([*from_begin][:NAMES_IN_WARNING]) + ", ..." * (len(from_begin) > NAMES_IN_WARNING),
                )
        return places, number

    def describe(self) -> dict[str, Any]:
        """
        Say which corpus this is, without reading all of it.

        Returns:
            `dict[str, Any]`: JSON-able; equal for the same names of files, sizes, beginnings and ends of at most
            `SAMPLED` of them, and options.
        """
        files, sizes, paths = self._files(), hashlib.sha256(), list[Path]()
        for path in self.paths:
            for name, size, inside in files.sizes(path) if path else ():
                sizes.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
                paths += inside
        hub = [str(item) for item, path in zip(self.sources, self.paths, strict=True) if path is None]
        return {
            "files": sizes.hexdigest(),
            "contents": _sample(paths[:: (len(paths) - 1) // SAMPLED + 1]),
            "data_sets": [*hub, self.split, self.revision, self.dataset_config],
            "columns": [*self.columns],
            "limit": self.limit,
            "patterns": [*self.patterns],
        }

    def _files(self) -> Files:
        return Files([path for path in self.paths if path], self.columns, self.split, *self.patterns)

    def _read(self, files: Files, first: int, start: RowPlace | None = None) -> Iterator[Document]:
        """Read the sources from the one of that number on, and this one from a place on."""
        for item, path in [*zip(self.sources, self.paths, strict=True)][first:]:
            if path is not None:
                yield from files.read(path, start)
            else:
                row = start.row if start else 0
                rows = self._load(item)
                for position, value in enumerate(rows.skip(row) if row else rows, row):
                    yield document_from(value, f"{self._name(item)} {position}", *self.columns)
            start = None

    def _places(self, files: Files) -> Iterator[Place]:
        for number, (item, path) in enumerate(zip(self.sources, self.paths, strict=True)):
            rows: Iterable[RowPlace]
            if path is not None:
                rows = files.places(path)
            else:
                data = self._load(item)
                splits = data.info.splits or {}  # a count that the data set names saves reading it
                counted = range(splits[self.split].num_examples) if self.split in splits else data
                rows = (RowPlace(self._name(item), row, None) for row, _ in enumerate(counted))
            yield from (Place(number, row) for row in rows)

    def _begins_anywhere(self, place: Place) -> bool:
        """Whether a reader can begin there: inside of a plain file of lines or Parquet, or of a saved data set."""
        path = self.paths[place.source]
        return path is not None and (begins_anywhere(place.row.file) or not is_rows_file(place.row.file))

    def _name(self, item: str | Path) -> str:
        return "/".join(filter(None, (str(item), self.dataset_config, self.split)))

    def _load(self, item: str | Path) -> Any:  # noqa: ANN401
        """Open a data set of the Hub as a stream."""
        from datasets import load_dataset

        options = {"split": self.split, "revision": self.revision, "token": self.token, "streaming": True}
        if self.dataset_config is not None:
            options["name"] = self.dataset_config
        try:
            return load_dataset(str(item), **options)
        except ConnectionError as error:
            raise HubError(
                f"The data set '{item}' cannot be read ({error}). Check its name and your connection, or pass files."
            ) from error


def _sample(paths: Sequence[Path]) -> str:
    """Hash the beginnings and ends of files."""
    contents = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            contents.update(file.read(SAMPLE_BYTES))
            file.seek(max(path.stat().st_size - SAMPLE_BYTES, 0))
            contents.update(file.read(SAMPLE_BYTES))
    return contents.hexdigest()


def _find(item: str | Path) -> Path | None:
    """Give the absolute path of a source, `None` for a data set on the Hub."""
    path = Path(item).expanduser()
    if str(item) and path.exists():
        return Path(os.path.abspath(path))
    if isinstance(item, Path) or not HUB_ID.fullmatch(item) or is_rows_file(item):
        raise FileNotFoundError(
            f"There is no file or folder at '{item}', and an id on the Hub reads 'user/name'. Check the path."
        )
    return None
