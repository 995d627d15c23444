"""Documents of files, folders and data sets of the Hub, one at a time."""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from tttnn.documents.formats import NoRowsError, enumerated, is_rows_file, read_rows
from tttnn.documents.rows import Document, as_documents, check_text, document_from
from tttnn.errors import HubError, InputError, InputTypeError


logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]*\w/[\w-][\w.-]*")
NAMES_IN_WARNING = 5


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
    if limit is not None and limit < 1:
        raise InputError(f"The limit is {limit} documents. Pass at least 1.")
    for patterns in (include_files, exclude_files):
        if isinstance(patterns, str):
            raise InputTypeError(f"A list of patterns is needed, and the string {patterns!r} was given. Pass a list.")
    sources = [source] if isinstance(source, str | Path) else [*source]
    paths = [_find(item) for item in sources]
    if len({path or item for path, item in zip(paths, sources, strict=True)}) < len(sources):
        raise InputError(f"A source is given twice: {[str(item) for item in sources]}. Pass each one once.")
    if dataset_config is not None and None not in paths:
        raise InputError("`dataset_config` chooses a configuration of a Hub data set, and every source is a path.")
    files = _Files([path for path in paths if path], (text_column, id_column), split, include_files, exclude_files)

    def read() -> Iterator[Document]:
        for item, path in zip(sources, paths, strict=True):
            if path is not None:
                yield from files.read(path)
                continue
            from datasets import load_dataset

            options = {"split": split, "revision": revision, "token": token, "streaming": True}
            if dataset_config is not None:
                options["name"] = dataset_config
            name = "/".join(filter(None, (str(item), dataset_config, split)))
            try:
                rows = load_dataset(str(item), **options)
            except ConnectionError as error:
                raise HubError(
                    f"The data set '{item}' cannot be read ({error}). Check its name and your connection, or pass "
                    "files."
                ) from error
            yield from as_documents(rows, text_column, id_column, name)

    def read_and_report() -> Iterator[Document]:
        yield from islice(read(), limit)
        if not quiet:
            files.report()

    return read_and_report()


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


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path matches a pattern; `**/` may stand for no folder, and `/` at the end for all that is in it."""
    forms = (form + "*" * form.endswith("/") for pattern in patterns for form in (pattern, pattern.replace("**/", "")))
    return any(fnmatchcase(name, form) for form in forms)


class _Files:
    """Reads the sources that are paths, and remembers what it skips."""

    def __init__(
        self,
        sources: list[Path],
        columns: tuple[str, str | None],
        split: str,
        include: Sequence[str],
        exclude: Sequence[str],
    ) -> None:
        self.columns, self.split, self.include, self.exclude = columns, split, include, exclude
        # the folder in which the names of a source's files begin
        self.roots = {path: path if path.is_dir() and not _is_saved(path) else path.parent for path in sources}
        self.common = Path(os.path.commonpath([path.parent for path in sources])) if sources else Path()
        self.num_skipped: Counter[str] = Counter()
        self.skipped: dict[str, list[str]] = defaultdict(list)
        self.unmatched: list[Path] = []
        if (include or exclude) and all(path != root for path, root in self.roots.items()):
            raise InputError(
                "`include_files` and `exclude_files` choose files of a folder, and no source is a folder."
            )

    def read(self, source: Path) -> Iterator[Document]:
        """Read a source: a file, a saved data set, or a folder, in which what has no documents is skipped."""
        if self.roots[source] != source:
            yield from self._documents(source, self._name(source, source))
            return
        path = None
        for path in self._walk(source, source, {source.resolve()}):
            name = self._name(path, source)
            try:
                yield from self._documents(path, name, in_folder=True)
            except NoRowsError:
                self._skip(name, "JSON without rows")
        if path is None and (self.include or self.exclude):
            self.unmatched.append(source)

    def report(self) -> None:
        """Warn of what was skipped, once for each reason, and of patterns that leave nothing."""
        for source in self.unmatched:
            logger.warning("The patterns leave no file of '%s'.", source)
        for reason, count in self.num_skipped.items():
            names = ", ".join(self.skipped[reason]) + ", ..." * (count > NAMES_IN_WARNING)
            logger.warning("Skipped %d %s (%s): %s", count, "file" if count == 1 else "files", reason, names)

    def _skip(self, name: str, reason: str) -> None:
        self.num_skipped[reason] += 1
        if self.num_skipped[reason] <= NAMES_IN_WARNING:
            self.skipped[reason].append(name)

    def _name(self, path: Path, source: Path) -> str:
        """Name a file by its place in its source, or in the folder of all sources if another one has that name too."""
        name = path.relative_to(self.roots[source])
        for other, root in self.roots.items():
            places = (root / name, self.common / name)
            if other != source and any(place.is_relative_to(other) and place.exists() for place in places):
                return path.relative_to(self.common).as_posix()
        return name.as_posix()

    def _walk(self, folder: Path, source: Path, visited: set[Path]) -> Iterator[Path]:
        """List the files and saved data sets of a folder, and those of its folders in their place."""
        for path in sorted(folder.iterdir()):  # so that memory holds no list of all files
            name = path.relative_to(source).as_posix()
            if path.name.startswith(".") or path.name == "__pycache__" or _matches(name, self.exclude):
                continue
            chosen = not self.include or _matches(name, self.include)
            if path.is_dir():
                target = path.resolve()
                if target in visited or path.is_symlink() and target.is_relative_to(source.resolve()):
                    self._skip(name, "a link to a folder that is read under another name")
                    continue
                visited.add(target)
                if not _is_saved(path):
                    yield from self._walk(path, source, visited)
                elif chosen:
                    yield path
            elif not path.is_file():
                self._skip(name, "a broken link, or not a regular file")
            elif chosen:
                yield path

    def _documents(self, path: Path, name: str, in_folder: bool = False) -> Iterator[Document]:
        check_text(name, f"the file name {name!a}")
        rows: Iterable[tuple[str, Any]]
        if path.is_dir():
            rows = self._saved_rows(path, name)
        elif path.stat().st_size == 0:
            return self._skip(name, "empty")
        elif is_rows_file(path.name):
            rows = read_rows(path, name, self.columns[0])
        else:
            rows = self._text(path, name, in_folder)
        for where, row in rows:
            document = document_from(row, where, *self.columns)
            document.metadata.setdefault("source", name)
            yield document

    def _saved_rows(self, folder: Path, name: str) -> Iterator[tuple[str, Any]]:
        from datasets import DatasetDict, load_from_disk

        rows = load_from_disk(str(folder))
        if not isinstance(rows, DatasetDict):
            return enumerated(rows, name)
        if self.split not in rows:
            raise InputError(f"'{folder}' has no split '{self.split}', but {sorted(rows)}. Choose one of these.")
        return enumerated(rows[self.split], f"{name}/{self.split}")

    def _text(self, path: Path, name: str, in_folder: bool) -> list[tuple[str, str]]:
        """Read a file that is one text; in a folder, other files are none."""
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            if not in_folder:
                raise InputError(f"'{path}' is not UTF-8 text ({error}). Convert it, or leave it out.") from None
            text = "\0"
        if in_folder and "\0" in text:
            self._skip(name, "not UTF-8 text")
            return []
        return [(name, text)]
