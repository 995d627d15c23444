"""Which of the retrieved neighbors are trained on, in which order, and which of them copy the scored text."""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tttnn.corpus import Document
from tttnn.neighbors import Neighbor


ORDERS = ("nearest", "farthest", "random")
NGRAM_LENGTH = 13
NEAR_COPY_OVERLAP = 0.5


@dataclass
class Selection:
    """
    The neighbors of one document that are trained on.

    Args:
        neighbors (`list[Neighbor]`):
            In the order of training.
        overlaps (`list[float]`):
            Of each, its overlap with the scored text (see `overlap`).
        near_copies (`list[int]`):
            Ids of the neighbors that overlap it by at least one half, those that were dropped for it included.
    """

    neighbors: list[Neighbor] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    near_copies: list[int] = field(default_factory=list)


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
    selection, words = Selection(), _words(scored_text)
    excluded = None if exclude is None else document.value(exclude)
    chosen: list[tuple[Neighbor, float]] = []
    for neighbor in candidates:
        if len(chosen) == num_neighbors:
            break
        if max_distance is not None and neighbor.distance > max_distance:
            continue
        if exclude is not None and excluded is not None and neighbor.metadata.get(exclude) == excluded:
            continue
        shared = _overlap(words, _words(neighbor.text))
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
            raise ValueError(
                f"`exclude` is {exclude!r}, but document '{document.id}' has no such field. Choose one of "
                f"{', '.join(['id', *document.metadata])}."
            )


def overlap(text: str, other: str) -> float:
    """
    Measure how much of the shorter of two texts stands in the other.

    Words are runs of letters and digits, in lower case. Of the distinct 13-grams of words of the text that has fewer,
    the share is taken that the other text has too: 1 if one text contains the other. Texts under 13 words overlap
    only if all their words are the same.

    Args:
        text (`str`):
            A text.
        other (`str`):
            Another.

    Returns:
        `float`: from 0 to 1.
    """
    return _overlap(_words(text), _words(other))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _overlap(words: list[str], others: list[str]) -> float:
    if min(len(words), len(others)) < NGRAM_LENGTH:
        return float(words == others and bool(words))
    grams, other_grams = _ngrams(words), _ngrams(others)
    return len(grams & other_grams) / min(len(grams), len(other_grams))


def _ngrams(words: list[str]) -> set[int]:
    return {hash(tuple(words[start : start + NGRAM_LENGTH])) for start in range(len(words) - NGRAM_LENGTH + 1)}
