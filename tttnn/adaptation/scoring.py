"""The score of a text: the negative log-likelihood of its tokens in nats, beside the bytes and words that it has."""

import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tttnn.adaptation.head import keeps_logits, last_row_only, token_nll
from tttnn.adaptation.windows import Window, default_stride, encode, encode_after, prefix_token_id, scoring_windows


READ_LENGTH = 1024  # tokens in one forward pass over a longer window, so that not all logits are in memory at once


@dataclass(frozen=True)
class ScoredText:
    """
    A text made ready to be scored again and again.

    Args:
        token_ids (`list[int]`):
            Its tokens.
        prompt_ids (`list[int]`):
            The tokens before it that the model reads first.
        prefix_id (`int`):
            The token before all of them (see `prefix_token_id`).
        max_length (`int`):
            Tokens in a window.
        stride (`int`):
            Tokens that each window after the first predicts.
        num_bytes (`int`):
            Its length in UTF-8.
        num_words (`int`):
            Its words as lm-evaluation-harness counts them: `len(re.split(r"\\s+", text))`.
    """

    token_ids: list[int]
    prompt_ids: list[int]
    prefix_id: int
    max_length: int
    stride: int
    num_bytes: int
    num_words: int

    @classmethod
    def from_text(
        cls,
        text: str,
        processing_class: PreTrainedTokenizerBase,
        max_length: int,
        prompt: str | None = None,
        stride: int | None = None,
    ) -> "ScoredText":
        """
        Tokenize a text.

        Args:
            text (`str`):
                What is scored. An empty one has no window, no byte and one word.
            processing_class (`PreTrainedTokenizerBase`):
                The model's tokenizer.
            max_length (`int`):
                Tokens in a window.
            prompt (`str`, *optional*):
                What stands before the text and is read first. By default nothing, and windows roll: each has one token
                of context.
            stride (`int`, *optional*):
                Tokens that each window after the first predicts. By default half a window after a prompt.

        Returns:
            `ScoredText`: ready for `score`.
        """
        if prompt is None:
            prompt_ids: list[int] = []
            token_ids, stride = encode(processing_class, text), max_length
        else:
            prompt_ids, token_ids = encode_after(processing_class, prompt, text)
            stride = stride or default_stride(max_length)
        num_words = len(re.split(r"\s+", text))
        prefix_id = prefix_token_id(processing_class)
        return cls(token_ids, prompt_ids, prefix_id, max_length, stride, len(text.encode("utf-8")), num_words)

    @cached_property
    def windows(self) -> list[Window]:
        """The windows that predict each token of the text once (see `scoring_windows`)."""
        return scoring_windows(self.token_ids, self.prefix_id, self.max_length, self.prompt_ids, self.stride)

    def cut(self, max_length: int, stride: int | None = None) -> "ScoredText":
        """
        Cut the same text into windows of another length.

        Args:
            max_length (`int`):
                Tokens in a window.
            stride (`int`, *optional*):
                Tokens that each window after the first predicts. By default as before, or all of a window that rolls,
                or half of one that has become shorter than that.

        Returns:
            `ScoredText`: with the same tokens, bytes and words.
        """
        if stride is None:
            rolls = self.stride == self.max_length
            stride = max_length if rolls else min(self.stride, default_stride(max_length))
        return replace(self, max_length=max_length, stride=stride)


class TokenNll(NamedTuple):
    """
    The negative log-likelihood of each token.

    Args:
        known (`np.ndarray`):
            Of the tokens of the prompt that are read, in nats, float64 of shape `(tokens,)`.
        scored (`np.ndarray`):
            Of the tokens of the text, likewise.
    """

    known: np.ndarray
    scored: np.ndarray

    @property
    def total(self) -> float:
        """Nats of the text."""
        return math.fsum(self.scored)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    windows: list[Window],
    batch_size: int = 1,
    *,
    context: Sequence[int] = (),
    in_parts: bool = False,
    head: torch.nn.Linear | None = None,
) -> TokenNll:
    """
    Score the targets of windows under a model, which is put into eval mode.

    Args:
        model (`PreTrainedModel`):
            A causal language model.
        windows (`list[Window]`):
            Of a `ScoredText`.
        batch_size (`int`, *optional*, defaults to `1`):
            Windows in one forward pass. More than one must be rolling windows of one length, but for a shorter one
            that is alone.
        context (`Sequence[int]`, *optional*):
            Tokens that stand before each window; windows are then read one by one.
        in_parts (`bool`, *optional*, defaults to `False`):
            Whether context and long windows may be read part by part through a key-value cache (see
            `reads_in_parts`). Then the context is read once.
        head (`torch.nn.Linear`, *optional*):
            The model's output layer, if the logits are what it gives (see `TestTimeTrainer.head`): it is then applied
            a few rows at a time. By default the model makes the logits, only those of targets if it can.

    Returns:
        `TokenNll`: from float32 log-probabilities. The sum over the text, of rolling windows, is the log-likelihood of
        lm-evaluation-harness but for its sign.
    """
    model.eval()
    rows: list[torch.Tensor] = []
    if context or batch_size == 1:
        past: object = None
        if context and in_parts:
            *_, (_, past) = _parts(model, list(context), [], None, head)
        before = [] if past is not None else list(context)
        for window in windows:
            token_ids = [*before, *window.input_ids]
            if past is None and (not in_parts or len(token_ids) <= READ_LENGTH):
                rows += _nlls(model, [token_ids], [window.target_ids], head)[0]
            else:  # each window begins after the context, not after the window before
                rows += [nll for nll, _ in _parts(model, token_ids, window.target_ids, copy.deepcopy(past), head)]
    else:  # windows of one length, so that a batch needs no padding
        for batch in (windows[first : first + batch_size] for first in range(0, len(windows), batch_size)):
            targets = [window.target_ids for window in batch]
            rows += _nlls(model, [window.input_ids for window in batch], targets, head)[0]
    # fetched once, for a fetch waits for the device; float64, which not every device has
    values = torch.cat(rows).cpu().numpy().astype(np.float64) if rows else np.zeros(0)
    places = [place < window.num_known for window in windows for place in range(len(window.target_ids))]
    is_known = np.array(places, dtype=bool)
    return TokenNll(values[is_known], values[~is_known])


def _parts(
    model: PreTrainedModel,
    token_ids: list[int],
    target_ids: list[int],
    past: object,
    head: torch.nn.Linear | None,
) -> Iterator[tuple[torch.Tensor, object]]:
    """Read tokens part by part through a key-value cache; give the nll of the targets and the cache of each part."""
    first = len(token_ids) - len(target_ids)
    for start in range(0, len(token_ids), READ_LENGTH):
        part = token_ids[start : start + READ_LENGTH]
        targets = target_ids[max(start - first, 0) : max(start - first + len(part), 0)]
        (nll,), output = _nlls(model, [part], [targets], head, past_key_values=past, use_cache=True)
        past = output.past_key_values
        yield nll, past


def _nlls(
    model: PreTrainedModel,
    rows: list[list[int]],
    target_ids: list[list[int]],
    head: torch.nn.Linear | None,
    **options: Any,  # noqa: ANN401
) -> tuple[list[torch.Tensor], Any]:
    """Read rows of tokens, and give the nll in nats of the targets that their last positions predict."""
    if head is None and keeps_logits(model):
        options["logits_to_keep"] = max(1, *map(len, target_ids))
    with last_row_only(head) as seen:
        output = model(input_ids=_tensor(model, rows), **options)
    # a compiled model may pass over the hook; then it has made all logits
    values, head = (seen[0], head) if seen else (output.logits, None)
    targets = [torch.tensor(ids, dtype=torch.long, device=values.device) for ids in target_ids]
    return [token_nll(row, ids, head) for row, ids in zip(values, targets, strict=True)], output


def _tensor(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, device=next(model.parameters()).device)


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


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Give the mean cross-entropy in nats of each token after the first, given those before it.

    Args:
        logits (`torch.Tensor`):
            Of shape `(rows, tokens, vocabulary)`; with one row, those of virtual tokens may stand before them.
        labels (`torch.Tensor`):
            Of shape `(rows, tokens)`: the tokens, and -100 for one that is no target.

    Returns:
        `torch.Tensor`: the mean over all targets, float32; NaN without any.
    """
    targets = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].flatten()
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, -2)[-len(targets) :], targets.to(logits.device))
