"""Neighbors in the context window, in the place of training on them or beside it."""

import math
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tttnn import adaptation
from tttnn.adaptation import Method, TrainableArguments
from tttnn.errors import InputError


if TYPE_CHECKING:
    from tttnn.adaptation import Episode, TestTimeTrainer, TestTimeTrainingArguments


@dataclass
class ContextArguments:
    """
    How much of the model's context the neighbors get.

    Args:
        context_length (`int`, *optional*):
            Tokens of neighbors before each scoring window, at most. By default, with the prompt in context, what the
            document leaves of a window, or half a window if that is more; without it the model's context less
            `max_length`, or half of `max_length`. Windows are shorter by what the neighbors take of them. 0: none are
            read, and only an n-gram cache uses them (`mix="cache"`).

    Raises:
        `ValueError`: If it is negative.
    """

    context_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of neighbors before each scoring window. Default: what the document (without the prompt "
            "in context: max_length) leaves of the model's context, or half of it. 0: none, with `--mix cache`."
        },
    )

    def __post_init__(self) -> None:
        if self.context_length is not None and self.context_length < 0:
            raise InputError(f"`context_length` is {self.context_length} tokens. Pass at least 0.")


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

    def prepared_for(self, trainer: "TestTimeTrainer") -> Method:
        """Fill in the room for neighbors; refuse one that leaves no token, and a prefix in the context's place."""
        super().prepared_for(trainer)
        if self.trainable is not None and self.trainable.trainable == "prefix":
            # PEFT puts the prefix into the place of the keys and values of what was read before
            raise InputError(
                f"`trainable` is 'prefix', which takes the place of the context that {self.name} reads first. Choose "
                "another, for example lora."
            )
        if not (self.trains or self.needs_neighbors(trainer.args)):
            raise InputError(
                f"`context_length` is 0 and `mix` is {trainer.args.mix!r}: nothing would be done with the neighbors. "
                "Pass `mix='cache'`, which counts their n-grams, or choose another method."
            )
        limit = _limit(trainer)
        length = self.context.context_length
        if length is None and trainer.args.prompt == "none":
            # with the prompt in context it depends on the document
            length = trainer.args.num_neighbors * (trainer.max_length + 1)
            if limit is not None:
                length = max(limit - trainer.max_length - 1, trainer.max_length // 2)
        if limit is not None and length is not None and length > limit - 2:
            raise InputError(
                f"`context_length` is {length} tokens, and {limit} are read at once: no token is left for the text. "
                f"Pass at most {limit - 2}."
            )
        return replace(self, context=ContextArguments(length))

    def needs_neighbors(self, args: "TestTimeTrainingArguments") -> bool:
        """Retrieve none that would not be read, counted or trained on."""
        trained_on = self.trains and args.train_on != "query"
        return self.context.context_length != 0 or args.mix in ("cache", "both") or trained_on

    def settings(self) -> dict[str, Any]:
        """Name the method and the room for neighbors."""
        return {**super().settings(), "context_length": self.context.context_length}

    def lay_before(self, episode: "Episode", room: int | None) -> list[int]:
        """Lay the neighbors before the prompt, as many as fit, nearest last."""
        length = self.context.context_length
        if length is None:
            length = episode.trainer.args.num_neighbors * (episode.trainer.max_length + 1)
        return _lay_out(episode, length if room is None else max(min(length, room), 0))

    def score_adapted(self, episode: "Episode") -> None:
        """Score the document after its neighbors."""
        start, text = perf_counter(), episode.scored_text
        context = _lay_out(episode, self._room(episode))
        limit = _limit(episode.trainer)
        if context and limit is not None:
            # one token more parts the context from each window
            text = text.cut(min(text.max_length, limit - len(context) - 1))
        windows = text.windows
        if context:
            # the first window begins with that token if it has the whole prompt
            has_one = bool(windows) and windows[0].num_known == len(text.prompt_ids)
            windows = windows[:has_one] + [
                window._replace(input_ids=[text.prefix_id, *window.input_ids]) for window in windows[has_one:]
            ]
        episode.add_score(episode.read(windows, context), start, text)

    def _room(self, episode: "Episode") -> int:
        """Say how many tokens of neighbors are read before the document."""
        if self.context.context_length is not None:
            return self.context.context_length
        text = episode.scored_text
        left = text.max_length - len(text.prompt_ids) - len(text.token_ids) - 1
        return max(left, text.max_length // 2)


def _lay_out(episode: "Episode", room: int) -> list[int]:
    """Put the neighbors into one sequence of at most `room` tokens, nearest last."""
    # neighbors that were passed as texts have no distance, and stay in their order
    nearest_first = sorted(episode.distinct_neighbors, key=lambda item: (math.isnan(item.distance), item.distance))
    token_ids = [sum(episode.chunks_of(neighbor), []) for neighbor in nearest_first]
    return adaptation.lay_out_context(token_ids, episode.scored_text.prefix_id, room)


def _limit(trainer: "TestTimeTrainer") -> int | None:
    """Say how many tokens neighbors and text may have together; `None` for a model without positions."""
    return trainer.window_length if trainer.args.prompt == "context" else adaptation.context_length(trainer.model)


@dataclass(frozen=True)
class ContextAndTraining(Context):
    """Trains on the neighbors, and then scores with them in the context window too: `--method context+ttt`."""

    name = "context+ttt"
    description = "both"
    trains = True
    own_options = {"trainable": TrainableArguments, "context": ContextArguments}
