"""Which parameters are trained: all of them, some of the model's own, or those of a PEFT adapter."""

from dataclasses import asdict
from typing import Any

from tttnn.adaptation.requirements import is_peft, num_positions
from tttnn.adaptation.scoring import ScoredText
from tttnn.adaptation.trainable import THROUGH_PEFT, TrainableArguments
from tttnn.adaptation.trainer import TestTimeTrainer
from tttnn.errors import InputError
from tttnn.records import DocumentRecord


class AdapterTrainer(TestTimeTrainer):
    """
    A `TestTimeTrainer` for comparisons: whatever is trained, 'before' is the score of the base model.

    An untrained prefix changes what a model says, and takes room in its context; here the first score is made without
    adapter, in windows of the base model's length.

    Args:
        trainable (`TrainableArguments`, *optional*):
            What `make_trainable` made the model with, for the journal. By default all parameters.
        kwargs:
            Those of `TestTimeTrainer`.
    """

    def __init__(self, *, trainable: TrainableArguments | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trainable = trainable or TrainableArguments()
        if (self.trainable.trainable in THROUGH_PEFT) != is_peft(self.model):
            raise InputError(
                f"`trainable` is {self.trainable.trainable!r}, and the model is a {type(self.model).__name__}. Pass "
                "what `make_trainable` made of it, with the same arguments."
            )

    def method_settings(self) -> dict[str, Any]:
        """Name the method and what it trains (see `EpisodeTrainer.method_settings`)."""
        return {**super().method_settings(), **asdict(self.trainable)}

    def _score_before(self, scored_text: ScoredText, record: DocumentRecord) -> None:
        if self.trainable.trainable not in THROUGH_PEFT:
            super()._score_before(scored_text, record)
            return
        length = min(self.args.max_length, num_positions(self.model) or self.args.max_length)
        with self.model.disable_adapter():  # type: ignore[operator]
            super()._score_before(scored_text.cut(length), record)
