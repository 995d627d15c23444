"""Dynamic evaluation: a step on each window of a document once it is scored."""

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from tttnn import adaptation
from tttnn.adaptation import Method, TrainableArguments
from tttnn.errors import InputError


if TYPE_CHECKING:
    from tttnn.adaptation import Episode, TestTimeTrainer, TokenNll, Window


@dataclass(frozen=True)
class Dynamic(Method):
    """
    Scores each window of a document, and then takes a step on it, before it scores the next: `--method dynamic`.

    A token is scored before any step on it. The last window is not trained on, since nothing is scored after it, and
    so a text of one window is only scored. With `gradient_accumulation_steps`, that many windows are scored and then
    make one step.

    Source: Krause et al., [Dynamic Evaluation of Neural Sequence Models](https://huggingface.co/papers/1709.07432);
    with AdamW in the place of their update rule.
    """

    name = "dynamic"
    description = "score a window, take a step on it, continue with the next; no neighbors"
    generates = False
    retrieves = False
    own_options = {"trainable": TrainableArguments}

    def prepared_for(self, trainer: "TestTimeTrainer") -> Method:
        """Refuse several passes: the second would train on what is scored after it."""
        if trainer.args.num_train_epochs != 1:
            raise InputError(
                f"`num_train_epochs` is {trainer.args.num_train_epochs}, but dynamic evaluation goes through a text "
                "once and scores each window before it trains on it. Leave it at 1."
            )
        return super().prepared_for(trainer)

    def score_after(self, episode: "Episode") -> None:
        """Score and train window by window (see `Method.score_after`)."""
        size = episode.trainer.args.gradient_accumulation_steps
        windows = _windows(episode)
        scores = [_read(episode, windows[:size])]
        scored = size
        # the windows of a group, all scored by now, make a step, and then those of the next group are scored
        num_groups = -(-len(windows) // size)
        scored_windows = windows[: (num_groups - 1) * size]
        chunks = [[window.target_ids[window.num_known :]] for window in scored_windows]
        if not chunks:
            episode.record.status = "scored"  # a text of one window leaves nothing to train for
        for _ in episode.train_on(chunks):
            scores.append(_read(episode, windows[scored : scored + size]))
            scored += size
        # more than one group is left if a callback stopped the training
        scores.append(_read(episode, windows[scored:]))
        known, of_text = (np.concatenate(parts) for parts in zip(*scores, strict=True))
        episode.add_score(adaptation.TokenNll(known, of_text), perf_counter())


def _windows(episode: "Episode") -> "list[Window]":
    """Cut the scored text into windows that predict `max_length` tokens each, after all that fits before them."""
    text = episode.scored_text
    stride = min(episode.trainer.max_length, text.max_length)
    return adaptation.scoring_windows(
        text.token_ids, text.prefix_id, text.max_length, text.prompt_ids, stride, fill=False
    )


def _read(episode: "Episode", windows: "list[Window]") -> "TokenNll":
    start = perf_counter()
    nll = episode.read(windows)
    episode.record.seconds["score"] += perf_counter() - start
    return nll
