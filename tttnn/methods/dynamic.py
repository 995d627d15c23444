"""Dynamic evaluation and no adaptation at all: methods without neighbors."""

from time import perf_counter
from typing import Any

from tttnn.adaptation.scoring import ScoredText, score
from tttnn.adaptation.steps import in_model
from tttnn.errors import InputError
from tttnn.methods.base import AdapterTrainer
from tttnn.neighbors import Neighbor
from tttnn.records import DocumentRecord


class NoAdaptationTrainer(AdapterTrainer):
    """Scores the model as it came, once, and retrieves nothing: `--method none`."""

    method = "none"
    retrieves = False
    trains = False

    def _adapt_and_score(self, neighbors: list[Neighbor], scored_text: ScoredText, record: DocumentRecord) -> None:
        return


class DynamicTrainer(AdapterTrainer):
    """
    Scores each window of a document, and then takes a step on it, before it scores the next: `--method dynamic`.

    A token is scored before any step on it. The last window is not trained on, for nothing is scored after it, and
    so a text of one window is only scored. With
    `gradient_accumulation_steps`, that many windows are scored and then make one step.

    Args:
        kwargs:
            Those of `AdapterTrainer`; a retriever is not used.

    Raises:
        `ValueError`: If several passes are asked for: the second would train on what is scored after it.

    Source: Krause et al., [Dynamic Evaluation of Neural Sequence Models](https://huggingface.co/papers/1709.07432);
    with AdamW in the place of their update rule.
    """

    method = "dynamic"
    retrieves = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.num_train_epochs != 1:
            raise InputError(
                f"`num_train_epochs` is {self.args.num_train_epochs}, but dynamic evaluation goes through a text once "
                "and scores each window before it trains on it. Leave it at 1."
            )

    def _adapt_and_score(self, neighbors: list[Neighbor], scored_text: ScoredText, record: DocumentRecord) -> None:
        windows, size = scored_text.windows, self.args.gradient_accumulation_steps
        nll = self._score_windows(scored_text, 0, size, record)
        scored = size
        # the windows of a group, all scored by now, make a step, and then those of the next group are scored
        num_groups = -(-len(windows) // size)
        chunks = [[window.target_ids] for window in windows[: (num_groups - 1) * size]]
        if not chunks:
            record.status = "scored"  # a text of one window leaves nothing to train for
        for _ in self._train_on_chunks(chunks, record):
            nll += self._score_windows(scored_text, scored, scored + size, record)
            scored += size
        # more than one group is left where a callback stopped the training
        nll += self._score_windows(scored_text, scored, len(windows), record)
        self._keep_score(nll, scored_text, record, perf_counter())

    def _score_windows(self, scored_text: ScoredText, first: int, last: int, record: DocumentRecord) -> float:
        start = perf_counter()
        part = ScoredText(scored_text.windows[first:last], 0, 0)
        with self.compute_loss_context_manager(), in_model(record):
            nll = score(self.model, part, self.args.per_device_eval_batch_size)
        record.seconds["score"] += perf_counter() - start
        return nll
