"""Documents shared by processes: each takes the next one that nobody has."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import torch
from accelerate.utils import gather_object

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.files import json_form


class SharedPositions:
    """
    Positions in a list that all processes have: each process takes the next one that nobody has.

    The store of the process group counts for all processes, on whichever nodes they are. What a process that died had
    taken is missing when the others meet; the launcher then ends all, and the journal knows what was finished.

    Args:
        number (`int`):
            Length of the list.
        name (`str`, *optional*):
            The same in all processes, and used once; `None` without a process group.
    """

    def __init__(self, number: int, name: str | None = None) -> None:
        self.number, self.name = number, name
        self.taken: list[int] = []  # by this process
        self._next = 0

    def __iter__(self) -> Iterator[int]:
        while (position := self._add(1) - 1) < self.number:
            self.taken.append(position)
            yield position

    def close(self) -> None:
        """Leave nothing to take, for no process."""
        self._add(self.number)

    def _add(self, amount: int) -> int:
        if self.name is None:
            self._next += amount
            return self._next
        # the only counter over nodes that torch has; `tests/adaptation/test_sharing.py` holds it
        store = torch.distributed.distributed_c10d._get_default_store()
        return int(store.add(f"tttnn/{self.name}", amount))


def share(documents: Sequence[Document], settings: dict[str, Any], world_size: int) -> SharedPositions:
    """Share a list of documents among processes, once it is clear that all have the same list and settings."""
    if world_size == 1:
        return SharedPositions(len(documents))
    contents = hashlib.sha256()
    for document in documents:
        contents.update(hashlib.sha256(document.text.encode("utf-8")).digest())
    # one word of the first process, so that all count under the same name, which no list had before
    runs = gather_object([(len(documents), contents.hexdigest(), json_form(settings), uuid4().hex)])
    number, digest, first_settings, name = runs[0]
    for rank, (other_number, other_digest, other_settings, _) in enumerate(runs):
        if (other_number, other_digest) != (number, digest):
            raise InputError(
                f"The processes have different documents: process 0 has {number}, and process {rank} has "
                f"{other_number}{'' if other_number != number else ' others'}. Give every process the same documents "
                "in the same order; they are shared out by themselves."
            )
        if different := [key for key, value in first_settings.items() if other_settings.get(key) != value]:
            raise InputError(
                f"The processes have different settings: `{different[0]}` is {first_settings[different[0]]!r} in "
                f"process 0 and {other_settings.get(different[0])!r} in process {rank} (different: "
                f"{', '.join(different)}). Start all of them with the same command."
            )
    return SharedPositions(number, name)
