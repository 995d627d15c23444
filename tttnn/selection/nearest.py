"""Which of the retrieved neighbors are trained on, in which order, and which of them copy the scored text."""

import random
from collections.abc import Iterable

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.neighbors import Neighbor, Selection
from tttnn.selection.near_copies import NEAR_COPY_OVERLAP, overlap_of, words_of


ORDERS = ("nearest", "farthest", "random")


def select(
    candidates: list[Neighbor],
    document: Document,
    scored_text: str,
    num_neighbors: int,
    order: str = "nearest",
    seed: int = 0,
    max_distance: float | None = None,
    exclude: str | None = None,
    drop_near_copies: bool = False,
) -> Selection:
    """
    Choose the neighbors to train on: the nearest that no rule excludes, in the order asked for.

    Args:
        candidates (`list[Neighbor]`):
            What was retrieved, nearest first.
        document (`Document`):
            The test document.
        scored_text (`str`):
            The part of it that is scored.
        num_neighbors (`int`):
            Neighbors wanted; fewer may be left.
        order (`str`, *optional*, defaults to `"nearest"`):
            `"nearest"` first, `"farthest"` first (of the chosen ones), or `"random"`.
        seed (`int`, *optional*, defaults to `0`):
            Of the random order.
        max_distance (`float`, *optional*):
            Drop neighbors whose squared L2 distance is larger.
        exclude (`str`, *optional*):
            Drop neighbors that share this field with the document: `"id"`, `"source"` or another of its metadata.
        drop_near_copies (`bool`, *optional*, defaults to `False`):
            Drop near-copies of the scored text.

    Returns:
        `Selection`: at most `num_neighbors` neighbors.
    """
    selection, words = Selection(), words_of(scored_text)
    excluded = None if exclude is None else document.value(exclude)
    chosen: list[tuple[Neighbor, float]] = []
    for neighbor in candidates:
        if len(chosen) == num_neighbors:
            break
        if max_distance is not None and neighbor.distance > max_distance:
            continue
        if exclude is not None and excluded is not None and neighbor.metadata.get(exclude) == excluded:
            continue
        shared = overlap_of(words, words_of(neighbor.text))
        if shared >= NEAR_COPY_OVERLAP:
            selection.near_copies.append(neighbor.id)
            if drop_near_copies:
                continue
        chosen.append((neighbor, shared))
    if order == "farthest":
        chosen.reverse()
    elif order == "random":
        random.Random(seed).shuffle(chosen)
    selection.neighbors = [neighbor for neighbor, _ in chosen]
    selection.overlaps = [shared for _, shared in chosen]
    return selection


def check_exclude(documents: Iterable[Document], exclude: str | None) -> None:
    """
    Make sure that each document has the field by which its neighbors are excluded.

    Args:
        documents (`Iterable[Document]`):
            Test documents.
        exclude (`str`, *optional*):
            The field.

    Raises:
        `ValueError`: If a document lacks it: nothing would be excluded, and nobody would know.
    """
    for document in documents if exclude is not None else ():
        if exclude is not None and document.value(exclude) is None:
            raise InputError(
                f"`exclude` is {exclude!r}, but document '{document.id}' has no such field. Choose one of "
                f"{', '.join(['id', *document.metadata])}."
            )
