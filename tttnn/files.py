"""Files that are whole or not there: JSON, checksums, locks."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.errors import StateError


def finite(value: Any) -> Any:  # noqa: ANN401
    """Put None in the place of NaN and infinities, at any depth: JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_default(value: object) -> Any:  # noqa: ANN401
    """Give JSON numbers and lists for those of NumPy, and a string for anything else, such as a date."""
    return finite(value.tolist()) if isinstance(value, np.number | np.bool_ | np.ndarray) else str(value)


def json_form(value: Any) -> Any:  # noqa: ANN401
    """Give a value as it comes back from a file of the index or the journal."""
    return json.loads(json.dumps(finite(value), default=json_default))


def to_json(content: dict[str, Any]) -> bytes:
    """Give the bytes of a file for what is JSON-able (`dict[str, Any]`)."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def sha256_of(path: Path) -> str:
    """Hash a file (`Path`) to 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk before what comes next: a machine may lose its power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any], work: Path | None = None) -> None:
    """Write a JSON file, by way of the folder `work`; it is there whole or not at all, whatever happens."""
    unfinished = (work or path.parent) / (path.name + ".tmp")
    unfinished.write_bytes(to_json(content))
    sync(unfinished)
    os.replace(unfinished, path)
    sync(path.parent)


@contextmanager
def try_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a file, and tell whether it is held; the system gives it back when the process ends, however it does."""
    from filelock import FileLock, Timeout

    path.touch()  # FileLock would take some of its errors for another process
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing into a folder: a hidden file beside it is locked."""
    path = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise OSError(f"The folder '{folder}' cannot be written ({error}). Choose another one.") from error
    with try_lock(path, wait=wait) as is_held:
        if not is_held:
            raise StateError(f"Another process is writing '{folder}'. Wait until it ends, then start again.")
        yield
