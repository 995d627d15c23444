"""What a model has learned from neighbors, kept for the next text that has the same ones."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from tttnn.adaptation.settings import run_settings
from tttnn.errors import InputError
from tttnn.records import digest


if TYPE_CHECKING:
    from tttnn.adaptation.episode import Episode

logger = logging.get_logger(__name__)


class Adaptation:
    """
    Copies of the tensors that steps have changed, and what the record of these steps says.

    Where the steps were taken ahead, together with those of other texts, the first one to use it has asked for them.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], episode: "Episode", *, is_ahead: bool) -> None:
        self.copies = [tensor.detach().clone() for tensor in tensors]
        record = episode.record
        self.losses = list(record.train_loss), list(record.query_train_loss)
        self._ahead = record if is_ahead else None
        self.num_bytes = sum(copy.numel() * copy.element_size() for copy in self.copies)

    @torch.no_grad()
    def give_back(self, tensors: Sequence[torch.Tensor], episode: "Episode") -> None:
        """Write the copies into the model."""
        torch._foreach_copy_([*tensors], self.copies)
        train_loss, query_train_loss = self.losses
        episode.record.train_loss, episode.record.query_train_loss = list(train_loss), list(query_train_loss)
        episode.changed = True
        ahead, self._ahead = self._ahead, None
        episode.reused = ahead is None
        if ahead is not None:
            episode.ahead_seconds = ahead.seconds["train"]
            episode.record.num_trained_tokens = ahead.num_trained_tokens
            for phase in ("train", "model"):
                episode.record.seconds[phase] += ahead.seconds[phase]


class AdaptationCache:
    """
    Keeps what a model has learned, so that a text with the same neighbors takes no step.

    An adaptation is found again by the texts of its neighbors in their order and their weights, by the text itself if
    the method uses it, and by all that the numbers of a run depend on: method, settings, weights of the model. What
    it gives is, to the bit, what the steps would have given again; up to rounding, where they were taken together with
    those of other texts (`TestTimeTrainer.learn_ahead`). The oldest used ones are dropped first.

    Args:
        max_bytes (`int`, *optional*, defaults to 2 GiB):
            Of the copies, which lie on the model's device. An adaptation has the size of the trained parameters and
            the buffers: 540 MB for all of a model with 135 million parameters, a few MB for a LoRA adapter.

    Raises:
        `ValueError`: If `max_bytes` is less than 1.
    """

    def __init__(self, max_bytes: int = 1 << 31) -> None:
        if max_bytes < 1:
            raise InputError(f"`max_bytes` is {max_bytes}. Pass at least 1, or no cache.")
        self.max_bytes = max_bytes
        self._kept: OrderedDict[str, Adaptation] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Of all copies."""
        return sum(adaptation.num_bytes for adaptation in self._kept.values())

    def key_of(self, episode: "Episode") -> str | None:
        """Name what the adaptation of a text depends on; `None` if the method changes nothing."""
        method, args = episode.trainer.method, episode.trainer.args
        if not (method.trains or method.starts):
            return None
        uses_query = method.starts or not method.retrieves or args.train_on != "neighbors"
        texts = [neighbor.text for neighbor in episode.neighbors]
        content = [texts, episode.weights, episode.query if uses_query else None, run_settings(episode.trainer)]
        return digest(json.dumps(content, default=str))

    def get(self, key: str) -> Adaptation | None:
        """Give the adaptation of a key, if it is kept, and count it as used."""
        adaptation = self._kept.get(key)
        if adaptation is not None:
            self._kept.move_to_end(key)
        return adaptation

    def put(self, key: str, tensors: Sequence[torch.Tensor], episode: "Episode", *, is_ahead: bool = False) -> None:
        """Keep an adaptation, and drop the oldest ones for it; one that is larger than the bound is not kept."""
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if num_bytes > self.max_bytes:
            logger.warning_once(
                f"An adaptation has {num_bytes:,} bytes, and the cache of adaptations at most {self.max_bytes:,}: "
                "none is kept. Pass a larger `max_bytes`, or train less, for example LoRA."
            )
            return
        while self._kept and self.num_bytes + num_bytes > self.max_bytes:
            self._kept.popitem(last=False)
        self._kept[key] = Adaptation(tensors, episode, is_ahead=is_ahead)

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
