"""The score of a text: its negative log-likelihood in nats, beside the bytes and words that it has."""

import copy
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tttnn.adaptation.windows import Window, encode, prefix_token_id, scoring_windows


@dataclass(frozen=True)
class ScoredText:
    """
    A text made ready to be scored again and again.

    Args:
        windows (`list[Window]`):
            Rolling windows that predict each of its tokens once.
        num_bytes (`int`):
            Its length in UTF-8.
        num_words (`int`):
            Its words as lm-evaluation-harness counts them: `len(re.split(r"\\s+", text))`.
    """

    windows: list[Window]
    num_bytes: int
    num_words: int

    @classmethod
    def from_text(cls, text: str, processing_class: PreTrainedTokenizerBase, max_length: int) -> "ScoredText":
        """
        Tokenize a text and cut it into windows.

        Args:
            text (`str`):
                What is scored. An empty one has no window, no byte and one word.
            processing_class (`PreTrainedTokenizerBase`):
                The model's tokenizer.
            max_length (`int`):
                Tokens in a window.

        Returns:
            `ScoredText`: ready for `score`.
        """
        windows = scoring_windows(encode(processing_class, text), prefix_token_id(processing_class), max_length)
        return cls(windows, len(text.encode("utf-8")), len(re.split(r"\s+", text)))

    def cut(self, max_length: int) -> "ScoredText":
        """
        Cut the same text into windows of another length.

        Args:
            max_length (`int`):
                Tokens in a window.

        Returns:
            `ScoredText`: with the same tokens, bytes and words.
        """
        token_ids = [token_id for window in self.windows for token_id in window.target_ids]
        prefix_id = self.windows[0].input_ids[0] if self.windows else 0
        return ScoredText(scoring_windows(token_ids, prefix_id, max_length), self.num_bytes, self.num_words)


@torch.no_grad()
def score(model: PreTrainedModel, scored_text: ScoredText, batch_size: int = 1) -> float:
    """
    Sum the negative log-likelihood of a text's tokens under a model, which is put into eval mode.

    Args:
        model (`PreTrainedModel`):
            A causal language model.
        scored_text (`ScoredText`):
            The text's windows.
        batch_size (`int`, *optional*, defaults to `1`):
            Windows in one forward pass.

    Returns:
        `float`: nats, from float32 log-probabilities, summed in float64. Equal to the rolling log-likelihood of
        lm-evaluation-harness, but for its sign.
    """
    model.eval()
    device = next(model.parameters()).device
    sums = []
    windows = scored_text.windows  # of one length each, so that a batch needs no padding
    for batch in (windows[first : first + batch_size] for first in range(0, len(windows), batch_size)):
        logits = model(input_ids=torch.tensor([window.input_ids for window in batch], device=device)).logits
        for row, window in zip(logits, batch, strict=True):
            sums.append(window_nll(row, window))
    # fetched once, for a fetch waits for the device; added up in float64, which not every device has
    return math.fsum(torch.stack(sums).tolist()) if sums else 0.0


def window_nll(logits: torch.Tensor, window: Window) -> torch.Tensor:
    """Sum the nll of a window's targets, in nats: the last rows of `logits` (`(tokens, vocabulary)`) predict them."""
    targets = torch.tensor(window.target_ids, device=logits.device)
    return torch.nn.functional.cross_entropy(logits[-len(targets) :].float(), targets, reduction="none").sum()


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
        past = model(input_ids=chunk, past_key_values=past, use_cache=True).get("past_key_values")
        if past is None:  # Mamba and RWKV have a state in its place: every window reads the whole context again
            break
    total = 0.0
    for number, window in enumerate(scored_text.windows):
        input_ids = window.input_ids if number == 0 or not context else [prefix_id, *window.input_ids]
        if past is None:
            logits = model(input_ids=torch.tensor([[*context, *input_ids]], device=device), use_cache=False).logits
        else:
            # each window begins after the context, not after the window before
            ids, cache = torch.tensor([input_ids], device=device), copy.deepcopy(past)
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        total += window_nll(logits[0], window).item()
    return total


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Give the mean cross-entropy in nats of each token after the first, given those before it.

    `logits` are of shape `(1, tokens, vocabulary)`; those of virtual tokens may stand before them. `labels` are -100
    for a token that is no target; without any target the loss is NaN.
    """
    targets = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].flatten()
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, -2)[-len(targets) :], targets.to(logits.device))
