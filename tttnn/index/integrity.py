"""Files that are as the manifest says: whole, and safe for Faiss to read; what was found out is remembered."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants

from tttnn.errors import InputError
from tttnn.files import sha256_of
from tttnn.index.manifest import VECTORS, FileEntry, Manifest
from tttnn.index.vectors import STORAGE_PRESETS


logger = logging.getLogger(__name__)


def check_file(path: Path, expected: FileEntry, verify: bool = False) -> None:
    """
    Make sure that a file is the one that the manifest describes.

    It is hashed if no earlier open on this machine has found it whole, or if `verify` is set.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"'{path}' is missing, though the manifest names it. Fetch the whole index (`tttnn pull`), "
            "or open those of its shards that are there."
        )
    # in the Hub's cache a link to the file: removed alone, it would be put back without a download
    status = path.resolve().stat()
    if status.st_size != expected.bytes:
        raise InputError(
            f"'{path}' has {status.st_size} bytes, and the manifest says {expected.bytes}: it is damaged, or its "
            f"download did not end. Remove '{path.resolve()}', and fetch or rebuild the index."
        )
    # Hashing a large index takes minutes, so a file found whole once is only looked at again after a change.
    stamp = f"{path.resolve()}\n{status.st_size} {status.st_mtime_ns} {status.st_ino}\n{expected.sha256}"
    name = hashlib.sha256(stamp.encode()).hexdigest()
    stamp_file = Path(constants.HF_HOME) / "tttnn" / "verified" / name
    if stamp_file.exists() and not verify:
        return
    digest = sha256_of(path)
    if digest != expected.sha256:
        raise InputError(
            f"'{path}' is damaged: its sha256 is {digest}, and the manifest says {expected.sha256}. Remove "
            f"'{path.resolve()}', and fetch or rebuild the index."
        )
    try:
        stamp_file.parent.mkdir(parents=True, exist_ok=True)
        stamp_file.touch()
    except OSError as error:
        logger.info("'%s' was verified, but that cannot be kept for the next time: %s", path, error)


def check_trust(folder: Path, manifest: Manifest, numbers: Sequence[int]) -> None:
    """Make sure that the Faiss files of shards are of a preset, or were built on this machine."""
    files = [manifest.shards[number].files[VECTORS.format(number)] for number in numbers]
    if manifest.storage.preset not in STORAGE_PRESETS and not all(_built_here(file).exists() for file in files):
        raise InputError(
            f"'{folder}' was made by the factory {manifest.storage.preset!r}, and not on this machine. Only files of "
            f"the presets {', '.join(STORAGE_PRESETS)} are checked before Faiss reads them; a forged file of another "
            "kind can crash this process. If you trust its maker, pass `trust_index=True` (`--trust-index`)."
        )


def note_built(file: FileEntry) -> None:
    """Remember the checksum of a Faiss file that was built on this machine, which its builder may open."""
    try:
        _built_here(file).parent.mkdir(parents=True, exist_ok=True)
        _built_here(file).touch()
    except OSError as error:
        logger.info("The index was built here, but that cannot be kept (%s): open it with `trust_index=True`.", error)


def _built_here(file: FileEntry) -> Path:
    return Path(constants.HF_HOME) / "tttnn" / "built" / file.sha256
