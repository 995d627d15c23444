"""When training on a document stops."""

import math
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from tttnn.adaptation.callbacks import TestTimeCallback
from tttnn.errors import InputError
from tttnn.records import DocumentRecord


class NeighborEarlyStoppingCallback(TestTimeCallback):
    """
    Stop training on a document when the training loss of its neighbors stops falling.

    Each neighbor is another text, so its loss is no signal for the scored text, and nothing has shown that stopping
    by it helps. What limits the harm of training is the mixture with the model before, `mix="unadapted"`. Steps on the
    query (`train_on`) are judged apart from those on neighbors.

    Args:
        patience (`int`, *optional*, defaults to `3`):
            Neighbors in a row whose loss may fail to be the lowest so far.
        min_delta (`float`, *optional*, defaults to `0.0`):
            Nats per token by which a loss must undercut the lowest to count.
    """

    def __init__(self, patience: int = 3, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise InputError(f"`patience` is {patience}, but at least one neighbor must be tried. Pass 1 or more.")
        self.patience = patience
        self.min_delta = min_delta
        self.record: DocumentRecord | None = None
        self.first = 0  # of the losses that are compared

    def settings(self) -> dict[str, Any]:
        """Name patience and least change."""
        return {"early_stopping": (self.patience, self.min_delta)}

    def on_document_begin(self, *_: Any, record: DocumentRecord, **kwargs: Any) -> None:
        """Look at the losses of this document from here on."""
        self.record = record

    def on_steps_begin(self, *_: Any, record: DocumentRecord, **kwargs: Any) -> None:
        """Compare the losses of these steps only: neighbors and query are other texts."""
        self.first = len(record.train_loss)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop where no loss has been the lowest for `patience` neighbors."""
        if self.record is None:  # a step of `train`
            return
        losses = [loss for loss in self.record.train_loss[self.first :] if not math.isnan(loss)]
        best = 0
        for position, loss in enumerate(losses):
            if loss < losses[best] - self.min_delta:
                best = position
        if len(losses) - 1 - best >= self.patience:
            control.should_training_stop = True

    def on_document_end(self, *_: Any, record: DocumentRecord, **kwargs: Any) -> None:
        """Forget the document."""
        self.record = None
