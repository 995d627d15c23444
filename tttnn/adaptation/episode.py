"""An episode: the neighbors of one document, its score, a step on each neighbor, its score again."""

import math
from time import perf_counter
from typing import Any

import numpy as np
from transformers import set_seed
from transformers.utils import logging

from tttnn.adaptation.scoring import ScoredText, score
from tttnn.adaptation.steps import NeighborTrainer, in_model, raise_not_finite
from tttnn.adaptation.windows import split_document
from tttnn.documents import Document, check_text
from tttnn.errors import StateError
from tttnn.neighbors import Neighbor, Retriever, Selection
from tttnn.records import DocumentRecord, digest
from tttnn.retrieval.retriever import NeighborRetriever
from tttnn.selection.nearest import select


logger = logging.get_logger(__name__)


class EpisodeTrainer(NeighborTrainer):
    """
    A `NeighborTrainer` that goes through whole documents; what `TestTimeTrainer` and the baselines share.

    A method that is compared with test-time training sets `method`, `retrieves` and `trains`, and overrides
    `_score_after`, which scores the document once the method has done its work.
    """

    method = "ttt"
    retrieves = True
    trains = True

    retriever: Retriever | None
    _clock: float

    def method_settings(self) -> dict[str, Any]:
        """
        Say what the method's numbers depend on beside `args`, for the journal.

        Returns:
            `dict[str, Any]`: `method`, and by name what the method has of its own.
        """
        return {"method": self.method}

    def _run_episode(self, index: int, document: Document) -> DocumentRecord:
        set_seed(self._seed(index))
        query, text = split_document(self.processing_class, document.text, self.args.query)
        scored_text = ScoredText.from_text(text, self.processing_class, self.max_length)
        counts = (scored_text.num_bytes, scored_text.num_words)
        record = DocumentRecord(index, digest(document.text), document.id, document.metadata, *counts)
        self._dispatch("on_document_begin", record)
        selection = Selection()
        try:
            if self.retrieves:
                selection = self._retrieve(document, query, text, record)
                if not selection.neighbors:
                    record.error = "no neighbor was retrieved, or none was left by the filters"
        except (ConnectionError, TimeoutError) as error:
            record.error = f"{type(error).__name__}: {error}"
        self._score_before(scored_text, record)
        if record.error is None:
            record.status = "trained" if self.trains else "scored"
            self._adapt_and_score(selection.neighbors, scored_text, record)
        else:
            record.status = "untrained"
            logger.warning(f"Document {index} ('{document.id}') stays untrained: {record.error}.")
        now = perf_counter()
        record.seconds["total"], self._clock = now - self._clock, now
        self._dispatch("on_document_end", record)
        return record

    def _retrieve(self, document: Document, query: str, scored_text: str, record: DocumentRecord) -> Selection:
        args, start = self.args, perf_counter()
        if self.retriever is None:
            raise StateError("The trainer has no retriever. Pass it `retriever=`, for example a NeighborRetriever.")
        found = self.retriever.retrieve([query], self._num_candidates())
        candidates = found[0] if found else []
        for neighbor in candidates:
            check_text(neighbor.text, f"neighbor {neighbor.id}")
        selection = select(
            candidates,
            document,
            scored_text,
            num_neighbors=args.num_neighbors,
            order=args.order,
            seed=self._seed(record.index),
            max_distance=args.max_distance,
            exclude=args.exclude,
            drop_near_copies=args.drop_near_copies,
        )
        record.neighbor_ids = [neighbor.id for neighbor in selection.neighbors]
        record.distances = [neighbor.distance for neighbor in selection.neighbors]
        record.overlaps, record.near_copies = selection.overlaps, selection.near_copies
        record.own_neighbors = selection.own
        record.seconds["retrieve"] += perf_counter() - start
        return selection

    def _adapt_and_score(self, neighbors: list[Neighbor], scored_text: ScoredText, record: DocumentRecord) -> None:
        """Train on the neighbors, and append a score to the record after each one or after the last."""
        if self.trains:
            for num_neighbors, changed in self._train_on(neighbors, record):
                if self.args.score_every_neighbor:
                    # the score is the same between the neighbors of one step, and after neighbors without a token
                    record.nll += [record.nll[-1]] * (num_neighbors - changed)
                    if changed:
                        self._score_after(neighbors, scored_text, record)
            for field in (record.neighbor_ids, record.distances, record.overlaps):
                del field[len(record.train_loss) :]  # those that a callback stopped before
        if not (self.trains and self.args.score_every_neighbor):
            self._score_after(neighbors, scored_text, record)

    def _score_before(self, scored_text: ScoredText, record: DocumentRecord) -> None:
        """Append the score of the model as it came."""
        self._score(scored_text, record)

    def _score_after(self, neighbors: list[Neighbor], scored_text: ScoredText, record: DocumentRecord) -> None:
        """Append the score that the method leads to."""
        self._score(scored_text, record)

    def _score(self, scored_text: ScoredText, record: DocumentRecord) -> None:
        start = perf_counter()
        with self.compute_loss_context_manager(), in_model(record):
            nll = score(self.model, scored_text, self.args.per_device_eval_batch_size)
        self._keep_score(nll, scored_text, record, start)

    def _keep_score(self, nll: float, scored_text: ScoredText, record: DocumentRecord, start: float) -> None:
        """Append a score that was begun at `start`, in nats."""
        if not math.isfinite(nll):
            raise_not_finite(f"score of document {record.index} ('{record.id}')", nll)
        record.nll.append(nll)
        record.num_scored_tokens += sum(len(window.target_ids) for window in scored_text.windows)
        record.seconds["score"] += perf_counter() - start

    def _num_candidates(self) -> int:
        if self.args.top_k is not None or not isinstance(self.retriever, NeighborRetriever):
            return self.args.num_candidates
        return max(self.args.num_neighbors, min(self.args.num_candidates, len(self.retriever)))  # few have no spare

    def _seed(self, index: int) -> int:
        return int(np.random.SeedSequence([self.args.seed, index]).generate_state(1)[0])
