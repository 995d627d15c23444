"""What every selector has in common: which candidates are left out, and what is reported of those that are chosen."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tttnn.documents import Document, is_position
from tttnn.errors import InputError
from tttnn.files import json_form
from tttnn.neighbors import Neighbor, Selection
from tttnn.selection.near_copies import NEAR_COPY_OVERLAP, ngrams_of, overlap_of


ORDERS = ("nearest", "farthest", "random")
DISTINCT = ("text", "document")


class Sieve:
    """
    The rules of a run, applied to the candidates of one document.

    A candidate is looked at when it is asked for: its words are not counted if nobody needs them.

    Args:
        document (`Document`):
            The test document.
        scored_text (`str`):
            The part of it that is scored.
        max_distance, exclude, drop_near_copies, distinct (*optional*):
            As in `tttnn.selection.select`.
    """

    def __init__(
        self,
        document: Document,
        scored_text: str,
        max_distance: float | None = None,
        exclude: str | None = None,
        drop_near_copies: bool = False,
        distinct: str | None = None,
    ) -> None:
        self.document = document
        self.max_distance = max_distance
        self.exclude = exclude
        self.excluded = None if exclude is None else json_form(document.value(exclude))
        self.drop_near_copies = drop_near_copies
        self.distinct = distinct
        self.scored = ngrams_of(scored_text)
        others = {document.text, document.text.removesuffix(scored_text)} - {scored_text}
        self.parts = [self.scored, *map(ngrams_of, others)]
        self.dropped: list[int] = []  # near-copies that were left out
        self._known: dict[str, set[int]] = {}  # the n-grams of texts

    def left_of(self, candidates: Iterable[Neighbor]) -> Iterator[Neighbor]:
        """Give the candidates that no rule leaves out, in their order."""
        texts: set[str] = set()
        documents: set[tuple[str, str]] = set()
        for neighbor in candidates:
            if self.max_distance is not None and neighbor.distance > self.max_distance:
                continue
            if self.excluded is not None and _value(neighbor, self.exclude or "") == self.excluded:
                continue
            home = _home(neighbor) if self.distinct == "document" else None
            if (self.distinct is not None and neighbor.text in texts) or home in documents:
                continue
            if self.drop_near_copies and self._is_copy(neighbor):
                self.dropped.append(neighbor.id)
                continue
            if self.distinct is not None:
                texts.add(neighbor.text)
            if home is not None:
                documents.add(home)
            yield neighbor

    def selection(
        self, chosen: Sequence[Neighbor], order: str, seed: int, weights: Sequence[float] | None = None
    ) -> Selection:
        """
        Report on the chosen neighbors, and put them into the order of training.

        `chosen` is in the order `"nearest"`; a neighbor that stands there twice is trained on twice.
        """
        copies = [neighbor.id for neighbor in chosen if self._is_copy(neighbor)]
        own = [neighbor.id for neighbor in chosen if self._is_own(neighbor)]
        places = [*range(len(chosen))]
        if order == "farthest":
            places.reverse()
        elif order == "random":
            random.Random(seed).shuffle(places)
        neighbors = [chosen[place] for place in places]
        return Selection(
            neighbors,
            [overlap_of(self._ngrams(neighbor), self.scored) for neighbor in neighbors],
            [*self.dropped, *dict.fromkeys(copies)],
            [*dict.fromkeys(own)],
            None if weights is None else [weights[place] for place in places],
        )

    def _ngrams(self, neighbor: Neighbor) -> set[int]:
        if neighbor.text not in self._known:
            self._known[neighbor.text] = ngrams_of(neighbor.text)
        return self._known[neighbor.text]

    def _is_copy(self, neighbor: Neighbor) -> bool:
        return max(overlap_of(self._ngrams(neighbor), part) for part in self.parts) >= NEAR_COPY_OVERLAP

    def _is_own(self, neighbor: Neighbor) -> bool:
        """Whether a neighbor is the document, a part of it, or another version."""
        document = self.document
        same_id = _value(neighbor, "id") == document.id
        if same_id and not is_position(document.id):
            return True
        source = json_form(document.value("source"))
        same_source = bool(source) and _value(neighbor, "source") == source
        text = neighbor.text.strip()
        return (same_id or same_source) and (self._is_copy(neighbor) or bool(text) and text in document.text)


def _value(neighbor: Neighbor, name: str) -> Any:  # noqa: ANN401
    """Look up a field of a neighbor as JSON has it; ids are strings, as those of documents."""
    value = json_form(neighbor.metadata.get(name))
    return str(value) if name == "id" and value is not None else value


def _home(neighbor: Neighbor) -> tuple[str, str] | None:
    """Tell the document of a neighbor, of which it may be a passage; sources may count their rows alike."""
    name = _value(neighbor, "id")
    return None if name is None else (name, repr(_value(neighbor, "source")))


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
