"""Neighbors in the context window, in the place of training on them or beside it."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from tttnn.adaptation.requirements import context_length
from tttnn.adaptation.scoring import ScoredText, lay_out_context, score_in_context
from tttnn.adaptation.steps import in_model
from tttnn.adaptation.windows import prefix_token_id
from tttnn.errors import InputError
from tttnn.methods.base import AdapterTrainer
from tttnn.neighbors import Neighbor
from tttnn.records import DocumentRecord


@dataclass
class ContextArguments:
    """
    How much of the model's context the neighbors get.

    Args:
        context_length (`int`, *optional*):
            Tokens of neighbors before each scoring window, at most. By default the model's context less `max_length`,
            or half of `max_length` where that is more; then windows are shorter by what the neighbors take of them.

    Raises:
        `ValueError`: If it is not positive.
    """

    context_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of neighbors before each scoring window. Default: what max_length leaves of the model's "
            "context, or half of max_length."
        },
    )

    def __post_init__(self) -> None:
        if self.context_length is not None and self.context_length < 1:
            raise InputError(f"`context_length` is {self.context_length} tokens. Pass at least 1.")


class ContextTrainer(AdapterTrainer):
    """
    Scores a document with its neighbors in the context window, and takes no step: `--method context`.

    The neighbors contribute the tokens that training would take, `chunks_per_neighbor` chunks of each, nearest next to
    the text (see `lay_out_context`). The windows of the text and the score before are those of every other method.

    Args:
        context (`ContextArguments`, *optional*):
            How much of the model's context the neighbors get.
        kwargs:
            Those of `AdapterTrainer`.

    Raises:
        `ValueError`: If the model's context has no room for neighbors and text, or its prefix is trained.
    """

    method = "context"
    trains = False

    def __init__(self, *, context: ContextArguments | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.trainable.trainable == "prefix":
            # PEFT puts the prefix into the place of the keys and values of what was read before
            raise InputError(
                f"`trainable` is 'prefix', which takes the place of the context that {self.method} reads first. "
                "Choose another, lora say."
            )
        self.limit = context_length(self.model)
        self.context_length = (context or ContextArguments()).context_length or self._default_length()
        if self.limit is not None and self.context_length > self.limit - 2:
            raise InputError(
                f"`context_length` is {self.context_length} tokens, and the model reads {self.limit} at once: no "
                f"token is left for the text. Pass at most {self.limit - 2}."
            )

    def _default_length(self) -> int:
        if self.limit is None:
            return self.args.num_neighbors * (self.max_length + 1)
        return max(self.limit - self.max_length - 1, self.max_length // 2)

    def method_settings(self) -> dict[str, Any]:
        """Name the method and the room for neighbors (see `EpisodeTrainer.method_settings`)."""
        return {**super().method_settings(), "context_length": self.context_length}

    def _score_after(self, neighbors: list[Neighbor], scored_text: ScoredText, record: DocumentRecord) -> None:
        start, prefix_id = perf_counter(), prefix_token_id(self.processing_class)
        nearest_first = sorted(neighbors, key=lambda neighbor: neighbor.distance)
        token_ids = [sum(self._chunks(neighbor), []) for neighbor in nearest_first]
        context = lay_out_context(token_ids, prefix_id, self.context_length)
        windows = scored_text
        if context and self.limit is not None:
            # one token more parts the context from the window
            windows = scored_text.cut(min(self.max_length, self.limit - len(context) - 1))
        with self.compute_loss_context_manager(), in_model(record):
            nll = score_in_context(self.model, windows, context, prefix_id, self.max_length)
        self._keep_score(nll, windows, record, start)


class ContextAndTrainingTrainer(ContextTrainer):
    """Trains on the neighbors, and then scores with them in the context window too: `--method context+ttt`."""

    method = "context+ttt"
    trains = True
