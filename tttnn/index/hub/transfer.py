"""Indexes on the Hub: opened from there shard by shard, pulled into a folder, or pushed."""

import copy
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers

from tttnn.documents import HUB_ID
from tttnn.errors import HubError, InputError
from tttnn.files import locked
from tttnn.index.build.workspace import check_vacant, is_under_way, settle
from tttnn.index.hub.card import CARD, GENERATED, index_card
from tttnn.index.hub.remote_texts import RemoteFile, RemoteTexts, locate_files
from tttnn.index.hub.retry import persist
from tttnn.index.integrity import check_file
from tttnn.index.manifest import MANIFEST, OFFSETS, SHARD_FILES, TEXTS, VIEWER, Manifest, ShardEntry, read_manifest


PULL_FAILED = "The index '{}' (revision '{}') could not be downloaded"
PULL_AGAIN = (
    "Check the connection and run it again: files that have arrived are not fetched a second time. An index in a "
    "local folder needs no Hub."
)
PUSH_AGAIN = "Run it again: files that have arrived are not sent again."


def fetch_index(
    repo_id: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    shards: Sequence[int] | None = None,
    texts: str = "local",
) -> tuple[Path, Callable[[int, ShardEntry], RemoteTexts] | None]:
    """
    Find the folder of an index, and download what is asked for if it is on the Hub.

    An interrupted download resumes at the next call.

    Args:
        repo_id (`str` or `Path`):
            A local folder, or the id of a dataset repo.
        revision (`str`, *optional*):
            Branch, tag or commit of the repo.
        token (`str` or `bool`, *optional*):
            Token for a private repo.
        cache_dir (`str` or `Path`, *optional*):
            Folder of the downloads. By default the Hub's cache.
        local_files_only (`bool`, *optional*, defaults to `False`):
            Whether to use only what is in the Hub's cache.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards to fetch. By default all.
        texts (`str`, *optional*, defaults to `"local"`):
            `"local"`, or `"remote"` to leave the texts on the Hub. They are located at once, except with
            `local_files_only`, which asks nothing.

    Returns:
        `tuple[Path, Callable | None]`: the folder, and `open_texts` for `open_index` if the texts stay on the Hub.

    Raises:
        `FileNotFoundError`: If there is neither a folder nor an id, or it is not in the Hub's cache and the Hub may
            not be asked.
        `ConnectionError`: If the Hub cannot be reached or fails, after six tries.
        `HfHubHTTPError`: If the Hub refuses: an unknown repo, or a token without access.
        `ValueError`: If `texts` is something else, there is no such shard, or the repo's manifest is damaged.
    """
    if (folder := _local_folder(repo_id, texts)) is not None:
        return folder, None

    place: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    snapshot = _fetch(str(repo_id), revision, [MANIFEST], **place)
    numbers = read_manifest(snapshot).chosen_shards(shards)
    patterns = [name for name in SHARD_FILES if name != VIEWER and not (name == TEXTS and texts == "remote")]
    # all files come from one commit, whatever is pushed meanwhile
    commit = snapshot.name
    _fetch(str(repo_id), commit, [pattern.format(number) for pattern in patterns for number in numbers], **place)
    if texts == "local":
        return snapshot, None
    headers, names = build_hf_headers(token=token), [TEXTS.format(number) for number in numbers]
    urls = [hf_hub_url(str(repo_id), name, repo_type="dataset", revision=commit) for name in names]
    files = {number: RemoteFile(url, headers) for number, url in zip(numbers, urls, strict=True)}
    if not local_files_only:
        locate_files(files.values())

    def open_texts(number: int, entry: ShardEntry) -> RemoteTexts:
        size = entry.files[TEXTS.format(number)].bytes
        return RemoteTexts(files[number], snapshot / OFFSETS.format(number), entry.rows, size)

    return snapshot, open_texts


def fetch_manifest(
    repo_id: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """
    Find the folder of an index, and download nothing but its manifest if it is on the Hub.

    Args:
        repo_id (`str` or `Path`):
            A local folder, or the id of a dataset repo.
        revision (`str`, *optional*):
            Branch, tag or commit of the repo.
        token (`str` or `bool`, *optional*):
            Token for a private repo.
        cache_dir (`str` or `Path`, *optional*):
            Folder of the downloads. By default the Hub's cache.
        local_files_only (`bool`, *optional*, defaults to `False`):
            Whether to use only what is in the Hub's cache.

    Returns:
        `Path`: a folder for `read_manifest`.

    Raises:
        `FileNotFoundError`: If there is neither a folder nor an id.
        `ConnectionError`: If the Hub cannot be reached or does not serve, after a few tries.
        `HfHubHTTPError`: If it refuses: an unknown repo, or a token without access.
    """
    if (folder := _local_folder(repo_id, "local")) is not None:
        return folder
    place: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    return _fetch(str(repo_id), revision, [MANIFEST], **place)


def _fetch(
    repo_id: str, revision: str | None, names: Sequence[str], present: Collection[str] = (), **place: Any
) -> Path:
    """Download files of a repo; `present` names those that it is known to have."""
    problem = PULL_FAILED.format(repo_id, revision or "main")

    def step() -> Path:
        options = {"repo_type": "dataset", "revision": revision, "allow_patterns": [*names], **place}
        folder = Path(snapshot_download(repo_id, **options))
        # huggingface_hub asks for the list of files six times, and then returns a folder that is there as it is
        if lost := [name for name in names if name in present and not (folder / name).is_file()]:
            raise HubError(f"{problem} ({len(lost)} files have not arrived, '{lost[0]}' first). {PULL_AGAIN}")
        return folder

    try:
        return persist(step, problem, PULL_AGAIN, partly_repeated=True)
    except LocalEntryNotFoundError as error:  # the Hub was not asked
        reason = "`local_files_only` is set" if place.get("local_files_only") else "`HF_HUB_OFFLINE` is set"
        raise FileNotFoundError(
            f"There is no folder '{repo_id}', and the index '{repo_id}' (revision '{revision or 'main'}') is not "
            f"complete in the Hub's cache. The Hub was not asked, because {reason}. Check the name (`--index`), or "
            f"run it once without that setting to download the index. {error}"
        ) from error


def _local_folder(repo_id: str | Path, texts: str) -> Path | None:
    if texts not in ("local", "remote"):
        raise InputError(f"`texts` is {texts!r}. Pass 'local', or 'remote' to leave the texts on the Hub.")
    folder = Path(repo_id).expanduser()
    if folder.is_dir():
        if texts == "remote":
            raise InputError(f"`texts` is 'remote', but '{repo_id}' is a local folder. Pass 'local'.")
        return folder
    if isinstance(repo_id, Path) or folder.exists() or not HUB_ID.fullmatch(repo_id):
        raise FileNotFoundError(
            f"There is no folder '{repo_id}', and it is not an id on the Hub, such as 'user/name'. Check the path."
        )
    return None


def pull_index(
    repo_id: str,
    folder: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    shards: Sequence[int] | None = None,
) -> Path:
    """
    Download an index, or some of its shards, into a folder, with the Parquet files and the card.

    The manifest is written last, after all files have been checked, so that an interrupted pull leaves no index. The
    next call resumes it.

    Args:
        repo_id (`str`):
            The id of a dataset repo.
        folder (`str` or `Path`):
            New or empty, or that of an earlier pull of the same index, which is completed.
        revision (`str`, *optional*):
            Branch, tag or commit of the repo.
        token (`str` or `bool`, *optional*):
            Token for a private repo.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards that are wanted. By default all.

    Returns:
        `Path`: the folder.

    Raises:
        `FileExistsError`: If the folder contains something else.
        `ValueError`: If there is no such shard, or the repo's manifest or a file is damaged.
        `FileNotFoundError`: If the repo contains no index, or lacks a file of it.
        `ConnectionError`: If the Hub cannot be reached or fails, after six tries.
        `HfHubHTTPError`: If the Hub refuses: an unknown repo, or a token without access.
        `RuntimeError`: If another process is writing there.
    """
    folder, step = Path(folder), partial(HfApi(token=token).dataset_info, repo_id, revision=revision)
    # all files come from one commit, whatever is pushed meanwhile
    info = persist(step, PULL_FAILED.format(repo_id, revision or "main"), PULL_AGAIN)
    present = {file.rfilename for file in info.siblings or []}
    if MANIFEST not in present:
        raise FileNotFoundError(f"The repo '{repo_id}' has no `{MANIFEST}`, so it is not an index. Check its name.")
    fetch = partial(_fetch, repo_id, info.sha, present=present, token=token)
    with TemporaryDirectory() as aside, locked(folder.resolve()):
        fetch([MANIFEST], local_dir=aside)
        manifest = read_manifest(aside)
        settle(folder)
        _check_pull_folder(folder, Path(aside) / MANIFEST, repo_id)
        numbers = manifest.chosen_shards(shards)
        files = {name: entry for number in numbers for name, entry in manifest.shards[number].files.items()}
        fetch([*files, CARD], local_dir=folder)
        for name, entry in files.items():
            check_file(folder / name, entry)
        fetch([MANIFEST], local_dir=folder)
    return folder


def _check_pull_folder(folder: Path, manifest: Path, repo_id: str) -> None:
    """Make sure that a folder is empty, or contains the index of a manifest or an interrupted pull."""
    if (folder / MANIFEST).is_file():
        if (folder / MANIFEST).read_bytes() != manifest.read_bytes():
            raise FileExistsError(
                f"'{folder}' contains another index than '{repo_id}', or another version of it. Choose another "
                f"folder. To update a folder that was pulled, remove its `{MANIFEST}` and pull again: files that are "
                "the same are not fetched a second time."
            )
    elif not (folder / ".cache" / "huggingface").is_dir():  # of an interrupted pull
        check_vacant(folder)


def push_index(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
) -> CommitInfo:
    """
    Upload an index to a dataset repo of the Hub.

    One commit adds all files and removes those of an earlier index: whoever opens the repo meanwhile gets the earlier
    one. Files that the Hub has received are not sent again, so that the next call resumes an interrupted upload. A
    card that somebody has written is kept. Of a local embedder's path only the last part is uploaded.

    Args:
        folder (`str` or `Path`):
            A whole index.
        repo_id (`str`):
            The id of the repo; it is created if it does not exist.
        private (`bool`, *optional*):
            Whether a new repo is private. By default the user's or organization's setting.
        token (`str` or `bool`, *optional*):
            Token with the right to write. By default the saved one.
        revision (`str`, *optional*):
            Branch to push to; it is created if it does not exist. By default `main`.
        commit_message (`str`, *optional*):
            Message of the commit. By default `Upload index`.
        license (`str`, *optional*):
            The license of the corpus, by its name on the Hub. By default that of the earlier card, or `unknown`.

    Returns:
        `CommitInfo`: the commit.

    Raises:
        `FileNotFoundError`: If the folder contains no whole index.
        `ValueError`: If its manifest or a file is damaged.
        `RuntimeError`: If another process is writing there.
        `ConnectionError`: If the Hub cannot be reached or fails, or a file cannot be sent, after six tries.
        `HfHubHTTPError`: If the Hub refuses: a token without the right to write.
    """
    folder, api = Path(folder), HfApi(token=token)
    if is_under_way(folder):
        with locked(folder.resolve()):
            settle(folder)
    _whole_files(folder, read_manifest(folder))  # before the lock: in the Hub's cache its file would be in the way
    ask = partial(persist, problem=f"The push to '{repo_id}' failed", advice=PUSH_AGAIN)
    with locked(folder.resolve()):  # nobody adds documents meanwhile
        manifest = read_manifest(folder).public()
        additions = [CommitOperationAdd(name, folder / name) for name in _whole_files(folder, manifest)]
        additions.append(CommitOperationAdd(MANIFEST, manifest.to_bytes()))
        ask(partial(api.create_repo, repo_id, repo_type="dataset", private=private, exist_ok=True))
        if revision is not None:
            ask(partial(api.create_branch, repo_id, branch=revision, repo_type="dataset", exist_ok=True))

        def commit() -> CommitInfo:
            present = api.list_repo_files(repo_id, repo_type="dataset", revision=revision)
            card = _card_to_push(folder, repo_id, manifest, license, present, api, revision)
            changes, message = _changes(additions, present, card), commit_message or "Upload index"
            return api.create_commit(repo_id, changes, commit_message=message, repo_type="dataset", revision=revision)

        return ask(commit, partly_repeated=True)


def _changes(
    additions: list[CommitOperationAdd], present: list[str], card: bytes | None
) -> list[CommitOperationAdd | CommitOperationDelete]:
    names = {addition.path_in_repo for addition in additions}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(name) for name in present if _is_of_an_index(name) and name not in names
    ]
    # copies keep the hashes, but not the state of an earlier try, whose commit may have been made without an answer
    operations += map(copy.copy, additions)
    return operations if card is None else [*operations, CommitOperationAdd(CARD, card)]


def _is_of_an_index(name: str) -> bool:
    """Whether an index has a file of this name; other files in the repo are not touched."""
    numbers = re.findall(r"\d+", name)
    return any(name == pattern.format(int(number)) for pattern in SHARD_FILES for number in numbers)


def _whole_files(folder: Path, manifest: Manifest) -> list[str]:
    for name, entry in manifest.files.items():
        check_file(folder / name, entry)
    return [*manifest.files]


def _card_to_push(
    folder: Path,
    repo_id: str,
    manifest: Manifest,
    license: str | None,
    present: list[str],
    api: HfApi,
    revision: str | None,
) -> bytes | None:
    """Give the card in the folder, or a new one; None if somebody has written the one in the repo."""
    cards = []
    if (folder / CARD).is_file():
        cards.append((folder / CARD).read_text(encoding="utf-8"))
        if GENERATED not in cards[0]:
            return cards[0].encode("utf-8")
    if CARD in present:
        path = api.hf_hub_download(repo_id, CARD, repo_type="dataset", revision=revision)
        cards.append(Path(path).read_text(encoding="utf-8"))
        if GENERATED not in cards[-1]:
            return None
    metadata = [DatasetCard(card, ignore_metadata_errors=True).data.to_dict() for card in reversed(cards)]
    earlier = next((data["license"] for data in metadata if data.get("license")), "unknown")
    return index_card(manifest, repo_id, license or earlier).encode("utf-8")
