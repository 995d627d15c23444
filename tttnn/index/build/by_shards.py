"""An index built by any number of processes that share its folder: each takes the shards that nobody has."""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from tttnn.documents import Corpus, Document
from tttnn.embedding import Embedder
from tttnn.errors import InputError, StateError
from tttnn.files import locked, sync, try_lock, write_json
from tttnn.index.build.from_documents import IndexSettings, is_index_of, rows_of
from tttnn.index.build.plan import Plan, make_plan, read_plan
from tttnn.index.build.unfinished import UnfinishedIndex
from tttnn.index.build.workspace import (
    PLAN,
    SEARCH_FOLDERS,
    WORK,
    check_vacant,
    intact,
    is_under_way,
    read_state,
    settle,
    work_file,
)
from tttnn.index.manifest import (
    MANIFEST,
    OFFSETS,
    TEXTS,
    VECTORS,
    VIEWER,
    FileEntry,
    ShardEntry,
)
from tttnn.index.vectors import check_factory, default_shard_size


SHARD, LOCK, STORED = "{:05d}", "shard-{:05d}.lock", "stored-{:05d}.json"  # in the hidden folder of the build
NAMED_SHARDS = 8  # in a message


class ShardProgress(NamedTuple):
    """
    What a call of `build_shards` has done, and what is left.

    Args:
        built (`list[int]`):
            Numbers of the shards that the call has built.
        missing (`list[int]`):
            Numbers of all shards that are not built yet; others may be at them.
        num_shards (`int`):
            Shards of the whole index.
    """

    built: list[int]
    missing: list[int]
    num_shards: int


def build_shards(
    corpus: Corpus,
    embedder: Embedder,
    folder: str | Path,
    settings: IndexSettings | None = None,
    shards: slice = slice(None),
    batch_size: int | None = None,
    *,
    sources: Sequence[str] = (),
    show_progress_bar: bool = False,
) -> ShardProgress:
    """
    Build some shards of an index, in a folder that several processes and machines may share.

    The first call finds out where each shard begins in the corpus; with passages, it cuts the whole corpus for that.
    Each call then takes the shards of its range that are neither built nor held by a living process. Shards of a
    process that died are left to the next call. On the same machine it resumes inside of the shard. `finish_index`
    makes the index of all shards, which is that of `build_index` to the byte.

    Args:
        corpus (`Corpus`):
            The same in every call.
        embedder (`Embedder`):
            Makes the vectors; the same in every call.
        folder (`str` or `Path`):
            New, empty, or the folder of the same build.
        settings (`IndexSettings`, *optional*):
            As `build_index` takes them; the same in every call.
        shards (`slice`, *optional*):
            Numbers of the shards to take, for example `slice(0, 50)`. By default all that nobody has.
        batch_size (`int`, *optional*):
            Texts in one forward pass of the embedder.
        sources (`Sequence[str]`, *optional*):
            What the corpus is called, for the index card.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the embedded rows on a bar.

    Returns:
        `ShardProgress`: what was built, and what is missing.

    Raises:
        `FileExistsError`: If the folder holds something else.
        `ValueError`: If there is no document, or corpus or settings are not those of the build.
    """
    settings, folder = settings or IndexSettings(), Path(folder).resolve()
    check_factory(settings.preset, embedder.dimension)
    with locked(folder, wait=True):
        settle(folder)
        if (folder / MANIFEST).is_file():
            rows = rows_of(corpus, embedder, settings.passage_tokens)
            if not is_index_of(folder, rows, settings, embedder.describe()):
                check_vacant(folder)
            return ShardProgress([], [], 0)
        plan = _agree(folder, corpus, embedder, settings, sources, show_progress_bar)
    wanted = range(plan.num_shards)[shards]
    left = [number for number in wanted if not _is_built(folder, number)]
    built: list[int] = []
    bar = tqdm(desc="Embedding", unit="row", total=sum(map(plan.rows_of, left)), disable=not show_progress_bar)
    with embedder.reported_truncation(), bar:
        while left:  # again, for what others have left meanwhile
            done = [number for number in left if _build(folder, plan, number, corpus, embedder, batch_size, bar)]
            built += done
            left = [number for number in left if not _is_built(folder, number)] if done else []
    missing = [number for number in range(plan.num_shards) if not _is_built(folder, number)]
    return ShardProgress(built, missing, plan.num_shards)


def _agree(
    folder: Path, corpus: Corpus, embedder: Embedder, settings: IndexSettings, sources: Sequence[str], shown: bool
) -> Plan:
    """Read the plan of the build in a folder, if it is of this corpus and these settings, or make it."""
    if (folder / WORK / PLAN).is_file():
        plan = read_plan(folder)
        plan.check(folder, corpus, embedder, settings)
        return plan
    if is_under_way(folder):
        raise FileExistsError(
            f"'{folder}' holds an interrupted build of one process. End it without `--shards`, or remove it."
        )
    check_vacant(folder)
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    size = settings.shard_size or default_shard_size(embedder.dimension)
    plan = make_plan(corpus, embedder, settings, size, sources, show_progress_bar=shown)
    write_json(folder / WORK / PLAN, plan.to_json())
    return plan


def _is_built(folder: Path, number: int) -> bool:
    return (folder / WORK / SHARD.format(number)).is_dir()


def _build(
    folder: Path, plan: Plan, number: int, corpus: Corpus, embedder: Embedder, batch_size: int | None, bar: tqdm
) -> bool:
    """Build a shard, unless it is built or another process is at it."""
    with try_lock(folder / WORK / LOCK.format(number)) as is_held:
        if not is_held or _is_built(folder, number):
            return False
        # of this machine: where a file system shares no locks, another one may be at the same shard
        place = folder / WORK / f"{SHARD.format(number)}@{socket.gethostname()}"
        start, count = plan.starts[number], plan.rows_of(number)
        rows = islice(
            rows_of(corpus.read_from(start.place), embedder, plan.settings["passage_tokens"]), start.skip, None
        )
        build = UnfinishedIndex(place, plan.build_settings, plan.shard_size, number)
        build.embed(_counted(rows, count, number), embedder, batch_size, bar, number * plan.shard_size)
        try:
            os.rename(place, folder / WORK / SHARD.format(number))  # whole or not at all; never over another
        except OSError:
            if not _is_built(folder, number):
                raise
            shutil.rmtree(place)
            return False
        sync(folder / WORK)
    return True


def _counted(rows: Iterator[Document], count: int, number: int) -> Iterator[Document]:
    """Give the rows of a shard, of which the plan knows the number."""
    given = 0
    for row in islice(rows, count):
        given += 1
        yield row
    if given < count:
        raise InputError(
            f"Shard {number} has {count} rows by the plan of the build, and the corpus gave {given}: it has changed "
            "since. Bring it back as it was, or remove the build and start again."
        )


def finish_index(
    folder: str | Path, embedder: Embedder | str | None = None, device: str | Sequence[str] | None = None
) -> bool:
    """
    Make an index of the shards that `build_shards` has built.

    What a preset needs is trained once, on a sample of all rows. Several calls at once share the conversion of the
    shards, on any machines; a call that was killed leaves its shard to another. The manifest is written last.

    Args:
        folder (`str` or `Path`):
            The folder of the build.
        embedder (`Embedder` or `str`, *optional*):
            The embedder of the build, or its path if that has changed. It embeds the queries by which the recall of a
            preset is measured; `flat` needs none.
        device (`str` or `Sequence[str]`, *optional*):
            Where it runs. By default the fastest device.

    Returns:
        `bool`: whether this call wrote the manifest.

    Raises:
        `FileNotFoundError`: If the folder holds no such build.
        `RuntimeError`: If shards are missing.
        `ValueError`: If the build is damaged.
    """
    folder = Path(folder).resolve()
    if not (folder / MANIFEST).is_file():
        read_plan(folder)  # before a lock is made beside a folder that is none
    with _unless_finished(folder) as is_open:
        if not is_open:
            return False
        plan = read_plan(folder)
        build, preset = _assembled(folder, plan), plan.settings["preset"]
        if preset == "flat":
            build.finish(plan.manifest(build.shards, build.store_exactly(), None))
            return True
        build.train(preset)
    try:
        for wait in (False, True):  # then those that others were at, who may have died
            for number in range(plan.num_shards):
                _convert(folder, build, number, wait=wait)
    except FileNotFoundError:
        if not (folder / MANIFEST).is_file():  # with it another call has cleared up
            raise
    with _unless_finished(folder) as is_open:
        if not is_open:
            return False
        if not isinstance(embedder, Embedder):
            embedder = Embedder.from_description(plan.settings["embedder"], embedder, device)
        build.stored = [entry for number in range(plan.num_shards) if (entry := _stored(folder, number))]
        storage, recall = build.store(preset, embedder, plan.settings["recall_target"])
        build.finish(plan.manifest(build.shards, storage, recall))
    return True


@contextmanager
def _unless_finished(folder: Path) -> Iterator[bool]:
    """Keep other processes from finishing an index, and tell whether there is something left to finish."""
    with locked(folder, wait=True):
        settle(folder)
        yield not (folder / MANIFEST).is_file()


def _assembled(folder: Path, plan: Plan) -> UnfinishedIndex:
    """Put the files of all shards where a build by one process has them."""
    if is_under_way(folder):
        return UnfinishedIndex(folder, plan.build_settings, plan.shard_size, verified=True)
    if missing := [number for number in range(plan.num_shards) if not _is_built(folder, number)]:
        named = ", ".join(map(str, missing[:NAMED_SHARDS])) + ", ..." * (len(missing) > NAMED_SHARDS)
        raise StateError(
            f"{len(missing)} of the {plan.num_shards} shards of '{folder}' are not built: {named}. Build them first, "
            "with the command that built the others; `--shards :` takes all that nobody has."
        )
    for name in SEARCH_FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    shards = []
    for number in range(plan.num_shards):
        place = folder / WORK / SHARD.format(number)
        state = read_state(place)
        with intact(folder):
            [entry] = state["shards"]
            shards.append(ShardEntry.from_json(entry, number))
        moved = {place / name.format(number): folder / name.format(number) for name in (TEXTS, OFFSETS)}
        moved |= {work_file(place, name, number): work_file(folder, name, number) for name in (VECTORS, VIEWER)}
        for source, target in moved.items():
            if source.is_file():  # not after a kill in the middle of this
                os.replace(source, target)
    return UnfinishedIndex(folder, plan.build_settings, plan.shard_size, shards=shards, verified=True)


def _convert(folder: Path, build: UnfinishedIndex, number: int, *, wait: bool) -> None:
    """Turn a shard into the storage that was trained, unless it is done, or another process is at it."""
    if (folder / MANIFEST).is_file() or _stored(folder, number) is not None:
        return
    with try_lock(folder / WORK / LOCK.format(number), wait=wait) as is_held:
        if is_held and not (folder / MANIFEST).is_file() and _stored(folder, number) is None:
            write_json(folder / WORK / STORED.format(number), asdict(build.convert(number)))


def _stored(folder: Path, number: int) -> FileEntry | None:
    """Give the Faiss file that a shard was turned into."""
    path = folder / WORK / STORED.format(number)
    if not path.is_file():
        return None
    with intact(folder):
        return FileEntry.from_json(json.loads(path.read_bytes()), path.name)
