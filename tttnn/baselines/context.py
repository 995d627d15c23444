"""Neighbors in the context window, in the place of training on them or beside it."""

import copy
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel

from tttnn.baselines.adapters import AdapterTrainer
from tttnn.checks import context_length
from tttnn.neighbors import Neighbor
from tttnn.records import DocumentRecord
from tttnn.scoring import ScoredText, window_nll
from tttnn.steps import in_model
from tttnn.windows import prefix_token_id


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
            raise ValueError(f"`context_length` is {self.context_length} tokens. Pass at least 1.")


def lay_out_context(neighbors: list[list[int]], prefix_id: int, max_tokens: int) -> list[int]:
    """
    Put the tokens of neighbors into one sequence, the nearest last, so that it stands next to the text.

    Each neighbor begins with the prefix token. Where they do not all fit, the farthest are left out, and the last one
    that is taken keeps its beginning.

    Args:
        neighbors (`list[list[int]]`):
            Tokens of each, nearest first.
        prefix_id (`int`):
            The token before each (see `prefix_token_id`).
        max_tokens (`int`):
            Room for all.

    Returns:
        `list[int]`: at most `max_tokens` tokens.
    """
    context: list[int] = []
    for token_ids in neighbors:
        room = max_tokens - len(context) - 1
        if room < 1:
            break
        if token_ids:
            context = [prefix_id, *token_ids[:room], *context]
    return context


@torch.no_grad()
def score_in_context(
    model: PreTrainedModel, scored_text: ScoredText, context: list[int], prefix_id: int, max_length: int
) -> float:
    """
    Score a text after a context that is read once; the model is put into eval mode.

    Every window of the text has the whole context before it, parted from it by the prefix token.

    Args:
        model (`PreTrainedModel`):
            A causal language model.
        scored_text (`ScoredText`):
            The text's windows.
        context (`list[int]`):
            Tokens before each window; with none, this is `score`.
        prefix_id (`int`):
            See `prefix_token_id`.
        max_length (`int`):
            Tokens of the context in one forward pass.

    Returns:
        `float`: nats.
    """
    model.eval()
    device = next(model.parameters()).device
    past: Any = None
    for first in range(0, len(context), max_length):
        chunk = torch.tensor([context[first : first + max_length]], device=device)
        past = model(input_ids=chunk, past_key_values=past, use_cache=True).past_key_values
    total = 0.0
    for number, window in enumerate(scored_text.windows):
        input_ids = window.input_ids if number == 0 or not context else [prefix_id, *window.input_ids]
        # each window begins after the context, not after the window before
        logits = model(
            input_ids=torch.tensor([input_ids], device=device), past_key_values=copy.deepcopy(past), use_cache=True
        ).logits
        total += window_nll(logits[0], window).item()
    return total


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
            raise ValueError(
                f"`trainable` is 'prefix', which takes the place of the context that {self.method} reads first. "
                "Choose another, lora say."
            )
        self.limit = context_length(self.model)
        self.context_length = (context or ContextArguments()).context_length or self._default_length()
        if self.limit is not None and self.context_length > self.limit - 2:
            raise ValueError(
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
