"""Neighbors in the context window, in the place of training on them or beside it."""

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from tttnn.adaptation import (
    Episode,
    Method,
    TestTimeTrainer,
    TrainableArguments,
    context_length,
    in_model,
    lay_out_context,
    prefix_token_id,
    score_in_context,
)
from tttnn.errors import InputError


@dataclass
class ContextArguments:
    """
    How much of the model's context the neighbors get.

    Args:
        context_length (`int`, *optional*):
            Tokens of neighbors before each scoring window, at most. By default the model's context less `max_length`,
            or half of `max_length` if that is more; then windows are shorter by what the neighbors take of them.

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


@dataclass(frozen=True)
class Context(Method):
    """
    Scores a document with its neighbors in the context window, and takes no step: `--method context`.

    The neighbors contribute the tokens that training would take, `chunks_per_neighbor` chunks of each, nearest next to
    the text (see `lay_out_context`). The windows of the text and the score before are those of every other method.

    Args:
        context (`ContextArguments`, *optional*):
            How much of the model's context the neighbors get.
    """

    name = "context"
    description = "neighbors in the context window, no step"
    trains = False
    own_options = {"context": ContextArguments}

    context: ContextArguments = field(default_factory=ContextArguments)

    def prepared_for(self, trainer: TestTimeTrainer) -> Method:
        """Fill in the room for neighbors; refuse one that leaves no token, and a prefix in the context's place."""
        super().prepared_for(trainer)
        if self.trainable is not None and self.trainable.trainable == "prefix":
            # PEFT puts the prefix into the place of the keys and values of what was read before
            raise InputError(
                f"`trainable` is 'prefix', which takes the place of the context that {self.name} reads first. Choose "
                "another, for example lora."
            )
        limit = context_length(trainer.model)
        length = self.context.context_length
        if length is None and limit is None:
            length = trainer.args.num_neighbors * (trainer.max_length + 1)
        elif length is None and limit is not None:
            length = max(limit - trainer.max_length - 1, trainer.max_length // 2)
        if limit is not None and length is not None and length > limit - 2:
            raise InputError(
                f"`context_length` is {length} tokens, and the model reads {limit} at once: no token is left for the "
                f"text. Pass at most {limit - 2}."
            )
        return replace(self, context=ContextArguments(length))

    def settings(self) -> dict[str, Any]:
        """Name the method and the room for neighbors."""
        return {**super().settings(), "context_length": self.context.context_length}

    def score_adapted(self, episode: Episode) -> None:
        """Score the document after its neighbors."""
        start, trainer = perf_counter(), episode.trainer
        prefix_id, limit = prefix_token_id(trainer.processing_class), context_length(trainer.model)
        nearest_first = sorted(episode.distinct_neighbors, key=lambda neighbor: neighbor.distance)
        token_ids = [sum(episode.chunks_of(neighbor), []) for neighbor in nearest_first]
        context = lay_out_context(token_ids, prefix_id, self.context.context_length or 0)
        windows = episode.scored_text
        if context and limit is not None:
            # one token more parts the context from the window
            windows = windows.cut(min(trainer.max_length, limit - len(context) - 1))
        with trainer.compute_loss_context_manager(), in_model(episode.record):
            nll = score_in_context(episode.model, windows, context, prefix_id, trainer.max_length)
        episode.add_score(nll, start, windows)


@dataclass(frozen=True)
class ContextAndTraining(Context):
    """Trains on the neighbors, and then scores with them in the context window too: `--method context+ttt`."""

    name = "context+ttt"
    description = "both"
    trains = True
    own_options = {"trainable": TrainableArguments, "context": ContextArguments}
