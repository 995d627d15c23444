"""The nearest neighbors that no rule excludes, and which of them copy the test document or come from it."""

import random
from collections.abc import Iterable
from typing import Any

from tttnn.documents import Document, is_position
from tttnn.errors import InputError
from tttnn.files import json_form
from tttnn.neighbors import Neighbor, Selection
from tttnn.selection.near_copies import NEAR_COPY_OVERLAP, ngrams_of, overlap_of


ORDERS = ("nearest", "farthest", "random")


def select(
    candidates: list[Neighbor],
    document: Document,
    scored_text: str,
    *,
    num_neighbors: int,
    order: str = "nearest",
    seed: int = 0,
    max_distance: float | None = None,
    exclude: str | None = None,
    drop_near_copies: bool = False,
) -> Selection:
    """
    Choose the neighbors to train on: the nearest that no rule excludes, in the given order.

    A neighbor is a near-copy if it overlaps by at least one half with the scored text, with the whole document, or
    with the part before the scored text.

    A neighbor comes from the test document itself if it has the document's id. If the id only counts rows
    (`is_position`), or if only the `source` is the same, it must also be a near-copy or stand in the document.

    Args:
        candidates (`list[Neighbor]`):
            What was retrieved, nearest first.
        document (`Document`):
            The test document.
        scored_text (`str`):
            The part of it that is scored.
        num_neighbors (`int`):
            Neighbors wanted; there may be fewer.
        order (`str`, *optional*, defaults to `"nearest"`):
            `"nearest"` first, `"farthest"` first (of the chosen ones), or `"random"`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random order.
        max_distance (`float`, *optional*):
            Drop neighbors whose squared L2 distance is larger.
        exclude (`str`, *optional*):
            Drop neighbors that share this field with the document: `"id"`, `"source"` or another of its metadata.
            Values are compared as JSON has them, so that a date equals the one that was read from an index.
        drop_near_copies (`bool`, *optional*, defaults to `False`):
            Drop near-copies.

    Returns:
        `Selection`: at most `num_neighbors` neighbors.
    """
    selection, scored = Selection(), ngrams_of(scored_text)
    others = {document.text, document.text.removesuffix(scored_text)} - {scored_text}
    parts = [scored, *map(ngrams_of, others)]
    excluded = None if exclude is None else json_form(document.value(exclude))
    chosen: list[tuple[Neighbor, float]] = []
    for neighbor in candidates:
        if len(chosen) == num_neighbors:
            break
        if max_distance is not None and neighbor.distance > max_distance:
            continue
        if exclude is not None and excluded is not None and _value(neighbor, exclude) == excluded:
            continue
        ngrams = ngrams_of(neighbor.text)
        is_copy = max(overlap_of(ngrams, part) for part in parts) >= NEAR_COPY_OVERLAP
        if is_copy:
            selection.near_copies.append(neighbor.id)
            if drop_near_copies:
                continue
        if _comes_from(neighbor, document, is_copy):
            selection.own.append(neighbor.id)
        chosen.append((neighbor, overlap_of(ngrams, scored)))
    if order == "farthest":
        chosen.reverse()
    elif order == "random":
        random.Random(seed).shuffle(chosen)
    selection.neighbors = [neighbor for neighbor, _ in chosen]
    selection.overlaps = [shared for _, shared in chosen]
    return selection


def _value(neighbor: Neighbor, name: str) -> Any:  # noqa: ANN401
    """Look up a field of a neighbor as JSON has it; ids are strings, as those of documents."""
    value = json_form(neighbor.metadata.get(name))
    return str(value) if name == "id" and value is not None else value


def _comes_from(neighbor: Neighbor, document: Document, is_copy: bool) -> bool:
    """Whether a neighbor is the document, a part of it, or another version."""
    same_id = _value(neighbor, "id") == document.id
    if same_id and not is_position(document.id):
        return True
    source = json_form(document.value("source"))
    same_source = bool(source) and _value(neighbor, "source") == source
    text = neighbor.text.strip()
    return (same_id or same_source) and (is_copy or bool(text) and text in document.text)


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
        if exclude is not None and json_form(document.value(exclude)) is None:
            raise InputError(
                f"`exclude` is {exclude!r}, but document '{document.id}' has no such field. Choose one of "
                f"{', '.join(['id', *document.metadata])}."
            )
