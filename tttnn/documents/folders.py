"""Files, folders of files and saved data sets, and the documents in them, from any of them on."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tttnn.documents.formats import NoRowsError, enumerated, is_rows_file, read_rows, row_places
from tttnn.documents.rows import Document, check_text, document_from
from tttnn.errors import InputError


logger = logging.getLogger(__name__)

NAMES_IN_WARNING = 5

Item = TypeVar("Item")


class RowPlace(NamedTuple):
    """Where a document is: the name of its file, how many rows of it are before, and how many bytes, if known."""

    file: str
    row: int
    byte: int | None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path matches a pattern; `**/` may stand for no folder, and `/` at the end for all that is in it."""
    forms = (form + "*" * form.endswith("/") for pattern in patterns for form in (pattern, pattern.replace("**/", "")))
    return any(fnmatchcase(name, form) for form in forms)


class Files:
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
        self.roots = {path: path if path.is_dir() and not is_saved(path) else path.parent for path in sources}
        self.common = Path(os.path.commonpath([path.parent for path in sources])) if sources else Path()
        self.num_skipped: Counter[str] = Counter()
        self.skipped: dict[str, list[str]] = defaultdict(list)
        self.unmatched: list[Path] = []
        if (include or exclude) and all(path != root for path, root in self.roots.items()):
            raise InputError(
                "`include_files` and `exclude_files` choose files of a folder, and no source is a folder."
            )

    def read(self, source: Path, start: RowPlace | None = None) -> Iterator[Document]:
        """Read a source, from a place on: a file, a saved data set, or a folder."""
        in_folder = self.roots[source] == source
        for path, name in self._each(source):
            if start is None or name == start.file:
                yield from self._unless_empty(self._documents(path, name, in_folder, start), name, in_folder)
                start = None

    def places(self, source: Path) -> Iterator[RowPlace]:
        """Give the place of each document of a source; no document is made, and rows are parsed only where needed."""
        in_folder = self.roots[source] == source
        for path, name in self._each(source):
            yield from self._unless_empty(self._places(path, name, in_folder), name, in_folder)

    def sizes(self, source: Path) -> Iterator[tuple[str, int, list[Path]]]:
        """Name the files and saved data sets of a source, and give their sizes and their files."""
        for path, name in self._each(source):
            inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            yield name, sum(file.stat().st_size for file in inside), inside

    def _each(self, source: Path) -> Iterator[tuple[Path, str]]:
        """List the files and saved data sets of a source with their names."""
        if self.roots[source] != source:
            yield source, self._name(source, source)
            return
        path = None
        for path in self._walk(source, source, {source.resolve()}):
            yield path, self._name(path, source)
        if path is None and (self.include or self.exclude):
            self.unmatched.append(source)

    def _unless_empty(self, items: Iterator[Item], name: str, in_folder: bool) -> Iterator[Item]:
        """Skip a JSON file of a folder that has no rows; a source that is one is an error."""
        try:
            yield from items
        except NoRowsError:
            if not in_folder:
                raise
            self._skip(name, "JSON without rows")

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
                if not is_saved(path):
                    yield from self._walk(path, source, visited)
                elif chosen:
                    yield path
            elif not path.is_file():
                self._skip(name, "a broken link, or not a regular file")
            elif chosen:
                yield path

    def _documents(self, path: Path, name: str, in_folder: bool, start: RowPlace | None) -> Iterator[Document]:
        check_text(name, f"the file name {name!a}")
        first, byte = (start.row, start.byte) if start else (0, None)
        rows: Iterable[tuple[str, Any]]
        if path.is_dir():
            saved, where = self._saved_rows(path, name)
            rows = enumerated(saved.select(range(first, len(saved))), where, first)
        elif path.stat().st_size == 0:
            return self._skip(name, "empty")
        elif is_rows_file(path.name):
            rows = read_rows(path, name, self.columns[0], first, byte)
        else:
            rows = self._text(path, name, in_folder)
        for where, row in rows:
            document = document_from(row, where, *self.columns)
            document.metadata.setdefault("source", name)
            yield document

    def _places(self, path: Path, name: str, in_folder: bool) -> Iterator[RowPlace]:
        places: Iterable[tuple[int, int | None]]
        if path.is_dir():
            places = ((row, None) for row in range(len(self._saved_rows(path, name)[0])))
        elif path.stat().st_size == 0:
            return self._skip(name, "empty")
        elif is_rows_file(path.name):
            places = row_places(path, name, self.columns[0])
        else:
            places = [(0, None) for _ in self._text(path, name, in_folder)]
        for row, byte in places:
            yield RowPlace(name, row, byte)

    def _saved_rows(self, folder: Path, name: str) -> tuple[Any, str]:
        """Open a saved data set, and give what its rows are called."""
        from datasets import DatasetDict, load_from_disk

        rows = load_from_disk(str(folder))
        if not isinstance(rows, DatasetDict):
            return rows, name
        if self.split not in rows:
            raise InputError(f"'{folder}' has no split '{self.split}', but {sorted(rows)}. Choose one of these.")
        return rows[self.split], f"{name}/{self.split}"

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
