"""The folder of an index under way: what is no part of the index, or not yet, and how a build is told from others."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tttnn.errors import InputError
from tttnn.files import sync
from tttnn.index.manifest import MANIFEST, VECTORS, VIEWER, read_manifest


# In the folder of an index; what is in it is no part of the index.
WORK = ".unfinished"
STATE, TRAINED = "state.json", "trained.faiss"
PLAN = "plan.json"  # of an index that several processes build
SEARCH_FOLDERS = ("index", "texts")
VIEWER_FOLDER = "data"  # made at the very end
# While a build is under way: without it `load_dataset` would read the texts of a folder that holds no Parquet yet.
VIEWERS = ".huggingface.yaml"
ONLY_PARQUET = """configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
"""


def work_file(folder: Path, pattern: str, number: int) -> Path:
    """Name the place of a file of a shard that is not under its own name yet: vectors, and what viewers read."""
    return folder / WORK / Path(pattern.format(number)).name


def show_only_parquet(folder: Path) -> None:
    """Keep `load_dataset` from all but the files for viewers."""
    if not (folder / VIEWERS).exists():
        (folder / VIEWERS).write_text(ONLY_PARQUET, encoding="utf-8")


def check_vacant(folder: Path) -> None:
    """Make sure that nothing would be overwritten; what a kill at the first step of a build left is nothing."""
    if (folder / WORK / PLAN).is_file():
        raise FileExistsError(
            f"'{folder}' is being built by shards. Go on with `--shards`, end it with `tttnn build-index --finish "
            f"{folder}`, or remove it."
        )
    nothing = {STATE + ".tmp", PLAN + ".tmp"}
    if folder.exists() and (not folder.is_dir() or names_in(folder) - {WORK} or names_in(folder / WORK) - nothing):
        raise FileExistsError(
            f"'{folder}' is there already. Choose another folder, or remove it first; `tttnn add` appends documents "
            "to an index."
        )


def names_in(folder: Path) -> set[str]:
    """List what is in a folder, or name a file."""
    if folder.is_dir():
        return {path.name for path in folder.iterdir()}
    return {folder.name} if folder.exists() else set()


def is_under_way(folder: Path) -> bool:
    """Whether a folder holds an interrupted build."""
    return (folder / WORK / STATE).is_file()


@dataclass(frozen=True)
class Settled:
    """A call whose manifest was in place when it was interrupted: it is ended now, and its shards are in the index."""

    first_shard: int

    @property
    def is_addition(self) -> bool:
        """Whether it had added documents to an index; otherwise it had made the index."""
        return self.first_shard > 0


def settle(folder: Path) -> Settled | None:
    """
    End a call that was interrupted after its manifest was in place; `None` if there was no such call.

    Only the files for viewers are still to be moved: `load_dataset` must not read them before the manifest names them.
    """
    work = folder / WORK
    if not (folder / MANIFEST).is_file() or not work.is_dir():
        return None
    shards, settled = read_manifest(folder).shards, None
    if is_under_way(folder):
        settled = Settled(read_state(folder)["first_shard"])
        if settled.first_shard >= len(shards):
            return None
        (folder / VIEWER_FOLDER).mkdir(exist_ok=True)
        for number in range(settled.first_shard, len(shards)):
            if (viewer := work_file(folder, VIEWER, number)).is_file():
                os.replace(viewer, folder / VIEWER.format(number))
        sync(folder / VIEWER_FOLDER)
    clear(folder)
    return settled


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state of an interrupted build."""
    with intact(folder):
        state: dict[str, Any] = json.loads((folder / WORK / STATE).read_bytes())
        state["first_shard"] = int(state["first_shard"])
        return state


@contextmanager
def intact(folder: Path) -> Iterator[None]:
    """Read what a build left; an error is damage: a machine that loses its power loses what was written last."""
    try:
        yield
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The interrupted build in '{folder}' is damaged ({type(error).__name__}: {error}). Remove '{folder}' and "
            f"start again; if documents were being added, remove '{folder / WORK}' and the files that its manifest "
            "does not name."
        ) from error


def clear(folder: Path) -> None:
    """Remove what a build made beside the index; last its state, by which it is known to be a build."""
    work = folder / WORK
    if (work / PLAN).is_file():
        for path in work.glob("[0-9]*/"):  # shards of several processes, and what those left that died
            shutil.rmtree(path)
    patterns = [Path(re.sub(r"{.*}", "*", name)).name for name in (VECTORS, VIEWER)]
    for pattern in (*patterns, "*.tmp", TRAINED, "shard-*.lock", "stored-*.json", PLAN):
        for path in work.glob(pattern):
            path.unlink()
    if (folder / VIEWERS).is_file() and (folder / VIEWERS).read_text(encoding="utf-8") == ONLY_PARQUET:
        (folder / VIEWERS).unlink()
    (work / STATE).unlink(missing_ok=True)
    if not names_in(work):
        work.rmdir()
