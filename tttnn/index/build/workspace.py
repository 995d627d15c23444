"""Where an index is made: in a folder beside its own, from which it is moved when it is whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tttnn.errors import InputError
from tttnn.index.manifest import MANIFEST, FileEntry, ShardEntry, read_manifest


FOLDERS = ("index", "texts", "data")
# What a build has in its folder, beside those and the manifest. A state is there from its first step to its last.
STATE, STORAGE, CONVERTED = "unfinished.json", "storage.json", "converted"


def unfinished_folder(folder: Path) -> Path:
    """Name the folder in which an index for `folder` (`Path`) is made, which is beside it."""
    return folder.with_name(folder.name + ".unfinished")


def check_vacant(folder: Path) -> None:
    """
    Make sure that nothing would be overwritten.

    Args:
        folder (`Path`):
            To be written.

    Raises:
        `FileExistsError`: If it is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"'{folder}' is there already. Choose another folder, or remove it first; `tttnn add` appends documents "
            "to an index."
        )


def check_own(unfinished: Path) -> None:
    """
    Make sure that a folder is a build's own.

    Args:
        unfinished (`Path`):
            In which an index is to be made.

    Raises:
        `FileExistsError`: If it is there with something else.
    """
    if unfinished.is_dir():
        names = {path.name for path in unfinished.iterdir()} - {STATE + ".tmp"}  # of a kill at the first step
        own = not names or STATE in names or MANIFEST in names
    else:
        own = not unfinished.exists()
    if not own:
        raise FileExistsError(
            f"An index would be made in '{unfinished}', but that is there already, and is no interrupted build. Move "
            "or remove it, or choose another folder for the index."
        )


@contextmanager
def intact(unfinished: Path) -> Iterator[None]:
    """
    Read what a build left in its folder, and take an error for damage: a machine that goes down loses the last writes.

    Args:
        unfinished (`Path`):
            The build's.

    Raises:
        `ValueError`: If a file is missing or is not what it should be.
    """
    try:
        yield
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{unfinished}' is damaged ({type(error).__name__}: {error}). Remove it, and start again."
        ) from error


def check_sizes(files: dict[str, FileEntry], *folders: Path) -> None:
    """
    Make sure that files are there whole; they are not read.

    Args:
        files (`dict[str, FileEntry]`):
            Their entries in the manifest.
        folders (`Path`):
            In one of which each should be; the first that has it counts.

    Raises:
        `FileNotFoundError`: If one is in none of them.
        `ValueError`: If one has another size.
    """
    for name, entry in files.items():
        sizes = [(folder / name).stat().st_size for folder in folders if (folder / name).is_file()]
        if not sizes:
            raise FileNotFoundError(f"'{name}' is missing")
        if sizes[0] != entry.bytes:
            raise InputError(f"'{name}' should have {entry.bytes} bytes, but has {sizes[0]}")


def move_index(unfinished: Path, folder: Path) -> None:
    """
    Put finished files into their folder, and last the manifest, for it makes the index.

    A kill leaves what is still to be moved, and the next call moves it.

    Args:
        unfinished (`Path`):
            With a manifest.
        folder (`Path`):
            Made if it is not there.

    Raises:
        `FileExistsError`: If another index or something else has come into the folder meanwhile.
        `ValueError`: If a file is neither here nor there, or is cut.
    """
    with intact(unfinished):
        shards = read_manifest(unfinished).shards
    files = {name: entry for shard in shards[_num_present(folder, shards) :] for name, entry in shard.files.items()}
    here = [name for name in files if (unfinished / name).is_file()]  # others were moved before a kill
    # an index without files for viewers may be saved again
    needed = {name: entry for name, entry in files.items() if name in here or not name.startswith("data/")}
    with intact(unfinished):
        check_sizes(needed, unfinished, folder)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in here:
        os.replace(unfinished / name, folder / name)
    # first all else, so that a kill after the manifest has moved leaves nothing that looks like a build under way
    _clear(unfinished)
    os.replace(unfinished / MANIFEST, folder / MANIFEST)
    _remove_empty(unfinished)


def _num_present(folder: Path, shards: list[ShardEntry]) -> int:
    """Count the shards of the index in a folder, which is to hold nothing but the beginning of what comes there."""
    there = read_manifest(folder).shards if (folder / MANIFEST).is_file() else []
    if there:
        free = there == shards[: len(there)]
    else:
        names = {name for shard in shards for name in shard.files}
        free = all(path.is_dir() or path.relative_to(folder).as_posix() in names for path in folder.rglob("*"))
    if not free:
        raise FileExistsError(
            f"An interrupted build of '{folder}' lacks only its move there, but that folder now holds something else. "
            "Remove or move the one or the other."
        )
    return len(there)


def remove_build(unfinished: Path) -> None:
    """Remove what a build left in its folder (`Path`), and the folder where nothing else is in it."""
    if unfinished.is_dir():
        (unfinished / MANIFEST).unlink(missing_ok=True)
        _clear(unfinished)
        _remove_empty(unfinished)


def _clear(unfinished: Path) -> None:
    """Remove what a build made, but for the manifest; last its state, by which the folder is known to be its own."""
    for name in (*FOLDERS, CONVERTED):
        if (unfinished / name).is_dir():
            shutil.rmtree(unfinished / name)
    for name in (MANIFEST + ".tmp", STORAGE + ".tmp", STORAGE, STATE + ".tmp", STATE):
        (unfinished / name).unlink(missing_ok=True)


def _remove_empty(unfinished: Path) -> None:
    if not any(unfinished.iterdir()):
        unfinished.rmdir()
