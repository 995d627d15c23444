"""How long a model takes for a token, by a short probe."""

import copy
import itertools
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from tttnn import adaptation
from tttnn.adaptation import CurveRow
from tttnn.documents import Document


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tttnn.adaptation import TestTimeTrainer, TestTimeTrainingArguments


TRIES = 2  # the best of which counts
PROBE_TEXT = "the old captain saw a white whale at break of day and called"


class Speed(NamedTuple):
    """
    Seconds that a model takes for a token.

    Args:
        read (`float`):
            Of a forward pass.
        trained (`float`):
            Of a training step.
    """

    read: float
    trained: float

    def predict(self, row: CurveRow) -> float:
        """
        Predict the seconds of a document.

        Args:
            row (`CurveRow`):
                Says how many tokens are read and trained.

        Returns:
            `float`: seconds in the model, without retrieval.
        """
        return row.tokens_read * self.read + row.tokens_trained * self.trained


def measure_speed(
    model: "PreTrainedModel", processing_class: "PreTrainedTokenizerBase", args: "TestTimeTrainingArguments"
) -> Speed:
    """
    Time a forward pass and a training step of `max_length` tokens, on the device and in the precision of `args`.

    The model is left as it was: weights, gradients (dropped, as by `restored`), modes, device and random generators.

    Args:
        model (`PreTrainedModel`):
            The model.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args (`TestTimeTrainingArguments`):
            How it will be run.

    Returns:
        `Speed`: the better of two tries of each.
    """
    args, device = copy.copy(args), model.device
    args.learning_rate, args.gradient_accumulation_steps, args.num_train_epochs = 0.0, 1, 1
    args.batch_documents = 1
    # nothing is logged, and no bar is shown
    args.report_to, args.logging_strategy, args.disable_tqdm = [], "no", True
    with adaptation.random_states_kept():
        try:
            trainer = adaptation.TestTimeTrainer(model, args, processing_class=processing_class)
            encoded = processing_class(PROBE_TEXT, add_special_tokens=False, verbose=False)["input_ids"]
            # a vocabulary of other signs than letters may have no token for the text
            encoded = encoded or [adaptation.prefix_token_id(processing_class)]
            token_ids = list(itertools.islice(itertools.cycle(encoded), trainer.max_length))
            with trainer.episodes():
                episode = adaptation.Episode(trainer, Document("probe", PROBE_TEXT), 0, query="document")
                window = adaptation.Window(token_ids[:-1], token_ids[1:])
                read = _best_seconds(trainer, lambda: episode.read([window])) / len(window.input_ids)
                trained = _best_seconds(trainer, lambda: [*episode.train_on([[token_ids]])]) / len(token_ids)
        finally:
            model.to(device)  # type: ignore[arg-type]
    return Speed(read, trained)


def _best_seconds(trainer: "TestTimeTrainer", work: Callable[[], object]) -> float:
    """Time some work on the trainer's device."""
    import torch

    seconds = []
    for _ in range(TRIES):
        start = perf_counter()
        work()
        if trainer.args.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(perf_counter() - start)
    return min(seconds)
