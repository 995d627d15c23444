"""Indexes on the Hub: fetched shard by shard, left there but for a few bytes, or pushed."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.utils import build_hf_headers

from tttnn.cards import CARD, GENERATED, index_card
from tttnn.corpus import HUB_ID
from tttnn.index import chosen_shards
from tttnn.manifest import MANIFEST, SHARD_FILES, TEXTS, VIEWER, check_file, read_manifest


Remote = Callable[[str], tuple[str, dict[str, str]]]


def fetch_index(
    repo_id: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    shards: Sequence[int] | None = None,
    texts: str = "local",
) -> tuple[Path, Remote | None]:
    """
    Find the folder of an index, and download what is asked for if it lies on the Hub.

    An interrupted download goes on at the next call.

    Args:
        repo_id (`str` or `Path`):
            A local folder, or the id of a dataset repo.
        revision (`str`, *optional*):
            Branch, tag or commit of the repo.
        token (`str` or `bool`, *optional*):
            Token for a private repo.
        cache_dir (`str` or `Path`, *optional*):
            Where downloads are kept. By default the Hub cache.
        local_files_only (`bool`, *optional*, defaults to `False`):
            Whether to use the Hub cache only.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards that are wanted. By default all.
        texts (`str`, *optional*, defaults to `"local"`):
            `"local"`, or `"remote"` to leave the texts on the Hub.

    Returns:
        `tuple[Path, Callable | None]`: the folder, and what `open_index` needs for texts that stay on the Hub.

    Raises:
        `FileNotFoundError`: If there is neither a folder nor an id.
        `ValueError`: If `texts` is something else, or there is no such shard, or the repo's manifest is damaged.
    """
    if (folder := _local_folder(repo_id, texts)) is not None:
        return folder, None

    download = partial(
        snapshot_download,
        str(repo_id),
        repo_type="dataset",
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    snapshot = Path(download(revision=revision, allow_patterns=[MANIFEST]))
    patterns = [name for name in SHARD_FILES if name != VIEWER and not (name == TEXTS and texts == "remote")]
    numbers = chosen_shards(read_manifest(snapshot), shards)
    # by the commit, so that all files are of one, whatever is pushed meanwhile
    commit = snapshot.name
    names = [pattern.format(number) for pattern in patterns for number in numbers]
    download(revision=commit, allow_patterns=names)
    if texts == "local":
        return snapshot, None
    headers = build_hf_headers(token=token)
    return snapshot, lambda name: (hf_hub_url(str(repo_id), name, repo_type="dataset", revision=commit), headers)


def _local_folder(repo_id: str | Path, texts: str) -> Path | None:
    if texts not in ("local", "remote"):
        raise ValueError(f"`texts` is {texts!r}. Pass 'local', or 'remote' to leave the texts on the Hub.")
    folder = Path(repo_id).expanduser()
    if folder.is_dir():
        if texts == "remote":
            raise ValueError(f"`texts` is 'remote', but '{repo_id}' is a local folder. Pass 'local'.")
        return folder
    if isinstance(repo_id, Path) or folder.exists() or not HUB_ID.fullmatch(repo_id):
        raise FileNotFoundError(
            f"There is no folder '{repo_id}', and an id on the Hub reads 'user/name'. Check the path."
        )
    return None


def pull_index(
    repo_id: str,
    folder: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    shards: Sequence[int] | None = None,
) -> Path:
    """
    Download an index into a folder: with the files for viewers and the card, or some of its shards.

    An interrupted download goes on at the next call.

    Args:
        repo_id (`str`):
            The id of a dataset repo.
        folder (`str` or `Path`):
            Made if it is not there.
        revision (`str`, *optional*):
            Branch, tag or commit of the repo.
        token (`str` or `bool`, *optional*):
            Token for a private repo.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards that are wanted. By default all.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError`: If there is no such shard, or the repo's manifest is damaged.
        `FileNotFoundError`: If the repo holds no index.
        `ConnectionError`: If the Hub cannot be reached.
    """
    folder = Path(folder)
    try:
        # all files of one commit, whatever is pushed meanwhile
        commit = HfApi(token=token).dataset_info(repo_id, revision=revision).sha
    except httpx2.TransportError as error:
        raise ConnectionError(f"'{repo_id}' could not be reached on the Hub ({error}). Try again later.") from error

    def fetch(names: list[str]) -> None:
        snapshot_download(
            repo_id, repo_type="dataset", revision=commit, token=token, local_dir=folder, allow_patterns=names
        )

    fetch([MANIFEST, CARD])
    numbers = chosen_shards(read_manifest(folder), shards)
    fetch([name.format(number) for name in SHARD_FILES for number in numbers])
    return folder


def push_index(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
) -> CommitInfo:
    """
    Upload an index to a dataset repo of the Hub.

    All comes with one commit, which also takes out the files of an earlier index: whoever opens the repo meanwhile
    gets the earlier one. Files that the Hub has received are not sent again, so that an interrupted upload goes on at
    the next call. A card that somebody has written is kept.

    Args:
        folder (`str` or `Path`):
            A whole index.
        repo_id (`str`):
            The id of the repo, made if it is not there.
        private (`bool`, *optional*):
            Whether a new repo is private. By default the user's or organization's setting.
        token (`str` or `bool`, *optional*):
            Token with the right to write. By default the saved one.
        revision (`str`, *optional*):
            Branch to push to, made if it is not there. By default `main`.
        commit_message (`str`, *optional*):
            Of the commit.
        license (`str`, *optional*):
            The licence of the corpus, by its name on the Hub. By default that of the card before, or `unknown`.

    Returns:
        `CommitInfo`: of the commit.

    Raises:
        `FileNotFoundError`: If the folder holds no whole index.
        `ValueError`: If its manifest or a file is damaged.
        `ConnectionError`: If the Hub cannot be reached, or a file could not be sent.
    """
    folder, api, message = Path(folder), HfApi(token=token), commit_message or "Upload index"
    manifest = read_manifest(folder)
    files = _whole_files(folder, manifest)
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
        present = api.list_repo_files(repo_id, repo_type="dataset", revision=revision)
        card = _card_to_push(folder, repo_id, manifest, license, present, api, revision)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name) for name in present if _is_of_an_index(name) and name not in files
        ]
        operations += [CommitOperationAdd(name, folder / name) for name in (*files, MANIFEST)]
        operations += [] if card is None else [CommitOperationAdd(CARD, card)]
        return api.create_commit(repo_id, operations, commit_message=message, repo_type="dataset", revision=revision)
    except (httpx2.TransportError, RuntimeError) as error:  # the latter where the upload of a file failed
        raise ConnectionError(
            f"The push to '{repo_id}' broke off ({error} {error.__cause__ or ''}). Start it again: files already sent "
            "are not sent again."
        ) from error


def _is_of_an_index(name: str) -> bool:
    """Whether an index has a file of this name; others in the repo are somebody's own."""
    numbers = re.findall(r"\d+", name)
    return any(name == pattern.format(int(number)) for pattern in SHARD_FILES for number in numbers)


def _whole_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    files = {name: entry for shard in manifest["shards"] for name, entry in shard["files"].items()}
    for name, entry in files.items():
        check_file(folder / name, entry)
    return list(files)


def _card_to_push(
    folder: Path,
    repo_id: str,
    manifest: dict[str, Any],
    license: str | None,
    present: list[str],
    api: HfApi,
    revision: str | None,
) -> bytes | None:
    """Give the card in the folder, or else a new one; none where somebody has written the one in the repo."""
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
