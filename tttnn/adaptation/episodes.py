"""Documents one after another: an episode of each, from the same weights, which are restored after it."""

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from tttnn.adaptation.adaptation_cache import AdaptationCache
from tttnn.adaptation.batched import DocumentBatches
from tttnn.adaptation.batching import check_batching, check_reading_together
from tttnn.adaptation.callbacks import dispatch
from tttnn.adaptation.episode import Episode
from tttnn.adaptation.restore import Snapshot
from tttnn.adaptation.steps import OptimizerState, check_weights
from tttnn.documents import Document, as_documents, check_text
from tttnn.errors import InputError
from tttnn.neighbors import Neighbor, as_neighbors
from tttnn.records import DocumentRecord


if TYPE_CHECKING:
    from tttnn.adaptation.trainer import TestTimeTrainer

logger = logging.get_logger(__name__)


class Episodes:
    """
    Documents one after another, each from the same weights; `TestTimeTrainer.episodes` opens it.

    Args:
        trainer (`TestTimeTrainer`):
            Ready to train.
        snapshot (`Snapshot`):
            The state to which each document returns the model.
        optimizer (`OptimizerState`):
            That of the optimizer.
    """

    def __init__(self, trainer: "TestTimeTrainer", snapshot: Snapshot, optimizer: OptimizerState) -> None:
        self.trainer = trainer
        self._snapshot = snapshot
        self._optimizer = optimizer
        self._num_run = 0
        self._clock = perf_counter()

    def run(self, document: Document | dict[str, Any] | str, index: int | None = None) -> DocumentRecord:
        """
        Score a document, let the method do its work, score it again, and restore the model.

        A document that no neighbor was found for is scored with the original model, and its record says so.

        Args:
            document (`Document`, `dict` or `str`):
                A document, a row, or a text.
            index (`int`, *optional*):
                Its position in the data set, which seeds it. By default the number of documents run before it.

        Returns:
            `DocumentRecord`: what happened.

        Raises:
            `RuntimeError`: If there is no retriever, or a loss or score is not finite. The model is restored when
                `episodes` closes.
        """
        episode = self.begin(document, index)
        record, method = episode.record, self.trainer.method
        if record.error is None:
            record.status = "trained" if method.trains else "scored"
            method.score_after(episode)
        return self.finish(episode)

    def run_all(self, documents: Iterable[tuple[int, Document]]) -> Iterator[DocumentRecord]:
        """
        Run documents, in batches if `batch_documents` asks for that.

        Args:
            documents (`Iterable[tuple[int, Document]]`):
                Each with its position in the data set.

        Yields:
            `DocumentRecord`: of each document, when it is finished.

        Raises:
            `RuntimeError`: As `run`; or if a callback stops the training of a document in a batch.
            `ValueError`: If `batch_documents` is not 1 and the method, the arguments or the model have no batches.
        """
        if self.trainer.args.batch_documents == 1:
            for index, document in documents:
                yield self.run(document, index)
            return
        check_batching(self.trainer)
        check_reading_together(self.trainer)
        yield from DocumentBatches(self).run(documents)

    def begin(self, document: Document | dict[str, Any] | str, index: int | None = None) -> Episode:
        """Retrieve for a document and score it; the first part of `run`."""
        index = self._num_run if index is None else index
        document = next(as_documents([document], self.trainer.args.text_column, name=f"document {index}, item"))
        method, episode = self.trainer.method, Episode(self.trainer, document, index)
        record = episode.record
        dispatch(self.trainer, "on_document_begin", record=record)
        if method.needs_neighbors(self.trainer.args):
            self._retrieve(episode)
        method.score_before(episode)
        if record.error is not None:
            record.status = "untrained"
            logger.warning(f"Document {index} ('{document.id}') could not be trained on: {record.error}.")
        return episode

    def finish(self, episode: Episode) -> DocumentRecord:
        """Close the record of a document and restore the model; the last part of `run`."""
        record = episode.record
        self.add_total(record)
        dispatch(self.trainer, "on_document_end", record=record)
        self._num_run += 1
        self._restore()
        return record

    def add_total(self, *records: DocumentRecord, shares: Sequence[float] = (1.0,)) -> None:
        """Add the seconds since the last call to the total of a document, or by `shares` to those of several."""
        now = perf_counter()
        for record, share in zip(records, shares, strict=True):
            record.seconds["total"] += (now - self._clock) * share / sum(shares)
        self._clock = now

    def _retrieve(self, episode: Episode) -> None:
        """Retrieve neighbors; a retriever that fails leaves the document untrained, and counted so."""
        try:
            episode.retrieve()
            if not episode.neighbors:
                episode.record.error = "no neighbor was retrieved, or none was left by the filters"
        except (ConnectionError, TimeoutError) as error:
            episode.record.error = f"{type(error).__name__}: {error}"

    def _restore(self) -> None:
        if not self.trainer.method.trains:
            self._snapshot.restore_random_states()
            return
        self._snapshot.restore()
        if self.trainer.args.reset_optimizer:
            self._optimizer.reset()

    def prepare(
        self, text: str, neighbors: Sequence[Neighbor | str] | None = None, cache: AdaptationCache | None = None
    ) -> Episode:
        """
        Do for a text what the method does before its last score, and leave the model so, without a score.

        `TestTimeTrainer.adapt` and `adapted_episode` are thin over this.

        Args:
            text (`str`):
                The whole of it is the query.
            neighbors (`Sequence[Neighbor | str]`, *optional*):
                Neighbors that were found elsewhere. By default they are retrieved, if the method uses any.
            cache (`AdaptationCache`, *optional*):
                What was learned from the same neighbors before is taken from it, and what is learned goes into it.

        Returns:
            `Episode`: `changed` says whether the model was changed, `reused` whether by what was in the cache.

        Raises:
            `ValueError`: If `neighbors` are passed to a method that does not use them, or are none.
            `RuntimeError`: If there is no retriever, or a loss is not finite.
            `ConnectionError`, `TimeoutError`: If retrieving fails.
        """
        method, trainer = self.trainer.method, self.trainer
        episode = Episode(trainer, Document("adapt", check_text(text, "`text`")), 0, query="document")
        dispatch(trainer, "on_document_begin", record=episode.record)
        if neighbors is not None:
            self._check_passed()
            episode.neighbors = as_neighbors(neighbors)
            episode.weights = [1.0] * len(episode.neighbors)
        elif method.needs_neighbors(trainer.args):
            episode.retrieve()
        key = None if cache is None else cache.key_of(episode)
        kept = None if cache is None or key is None else cache.get(key)
        if kept is not None:
            kept.give_back(self._snapshot.tensors, episode)
        else:
            episode.changed = method.adapt(episode)
            if episode.changed:
                check_weights(self._snapshot.parameters)
            if episode.changed and cache is not None and key is not None:
                cache.put(key, self._snapshot.tensors, episode)
        dispatch(trainer, "on_document_end", record=episode.record)
        return episode

    def learn_ahead(self, texts: Sequence[str], cache: AdaptationCache) -> None:
        """Take the steps of `prepare` for several texts at once, and keep what was learned for each in a cache."""
        trainer, episodes = self.trainer, dict[str, Episode]()
        for text in texts:
            episode = Episode(trainer, Document("adapt", check_text(text, "`text`")), 0, query="document")
            if trainer.method.needs_neighbors(trainer.args):
                episode.retrieve()
            key = cache.key_of(episode)
            if key is not None and cache.get(key) is None:
                episodes[key] = episode
        batches, keys = DocumentBatches(self), [*episodes]
        while keys:
            batch = {key: episodes[key] for key in keys[: batches.size]}
            del keys[: len(batch)]
            rows = batches.train([*batch.values()])
            for key, episode in batch.items():
                if id(episode) in rows:
                    rows.pop(id(episode))()
                    check_weights(self._snapshot.parameters)
                    cache.put(key, self._snapshot.tensors, episode, is_ahead=True)
            self._restore()

    def _check_passed(self) -> None:
        """Refuse neighbors that would not be used."""
        method, args = self.trainer.method, self.trainer.args
        if not (method.needs_neighbors(args) and (method.trains or not method.starts)):
            reason = f"the method '{method.name}' takes no step on neighbors, and reads none"
            if method.trains and args.train_on == "query":
                reason = "`train_on` is 'query': no step would be taken on them"
            raise InputError(f"`neighbors` were passed, and {reason}. Leave them out, or pass `train_on='both'`.")
