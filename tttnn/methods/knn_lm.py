"""kNN-LM over the retrieved neighbors: their own hidden states vote for the next token."""

import math
from dataclasses import dataclass, field, replace
from itertools import product
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tttnn import adaptation
from tttnn.adaptation import Method
from tttnn.errors import InputError


if TYPE_CHECKING:
    from tttnn.adaptation import Episode


@dataclass
class KnnArguments:
    """
    How the two distributions of kNN-LM are mixed.

    With more than one pair of weight and temperature, the pair is chosen on validation documents.

    Args:
        knn_lambda (`list[float]`, *optional*):
            Weight of the neighbors' votes, from 0 up to below 1.
        knn_temperature (`list[float]`, *optional*):
            A vote weighs exp(-d / temperature), with d the squared L2 distance of hidden states.
        knn_k (`int`, *optional*, defaults to `1024`):
            Nearest hidden states that vote.

    Raises:
        `ValueError`: If a value is out of range.
    """

    knn_lambda: list[float] = field(
        default_factory=lambda: [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5],
        metadata={"help": "Weights of the neighbors' votes to choose from on the validation documents."},
    )
    knn_temperature: list[float] = field(
        default_factory=lambda: [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0],
        metadata={"help": "Temperatures of the votes to choose from on the validation documents."},
    )
    knn_k: int = field(default=1024, metadata={"help": "Nearest hidden states that vote."})

    def __post_init__(self) -> None:
        if not self.knn_lambda or not all(0 <= value < 1 for value in self.knn_lambda):
            raise InputError(f"`knn_lambda` is {self.knn_lambda}. Pass weights from 0 up to below 1.")
        if not self.knn_temperature or not all(0 < value < math.inf for value in self.knn_temperature):
            raise InputError(f"`knn_temperature` is {self.knn_temperature}. Pass temperatures above 0.")
        if self.knn_k < 1:
            raise InputError(f"`knn_k` is {self.knn_k}. Pass at least 1.")

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Pairs of weight and temperature, temperature by temperature."""
        return [(weight, temperature) for temperature, weight in product(self.knn_temperature, self.knn_lambda)]


@dataclass(frozen=True)
class KnnLM(Method):
    """
    Mixes the model with the votes of its neighbors' hidden states, and takes no step: `--method knn-lm`.

    A datastore is made for each document of the tokens that training would take of its neighbors,
    `chunks_per_neighbor` chunks each. The probability of a token is lambda times that of the votes plus 1 - lambda
    times that of the model.

    Args:
        knn (`KnnArguments`):
            One pair of lambda and temperature to evaluate. With several, to choose from, a record has a score for
            each, in the order of `candidates`, after the score before; metrics are those of the last.

    Source: Khandelwal et al., [kNN-LM](https://huggingface.co/papers/1911.00172).
    """

    name = "knn-lm"
    description = "the neighbors' hidden states vote for the next token"
    generates = False
    trains = False
    stays_in_float32 = True  # distances of hidden states differ
    chooses = True
    own_options = {"knn": KnnArguments}

    knn: KnnArguments = field(default_factory=KnnArguments)

    def settings(self) -> dict[str, Any]:
        """Name the method and its weights."""
        return {**super().settings(), **vars(self.knn)}

    def candidates(self) -> list[Method]:
        """List the method with each pair of weight and temperature, temperature by temperature."""
        return [replace(self, knn=KnnArguments([weight], [heat], self.knn.knn_k)) for weight, heat in self.knn.pairs]

    def score_adapted(self, episode: "Episode") -> None:
        """Append the score under each pair of weight and temperature, all from one pass."""
        from tttnn.methods.datastore import mixed_nlls

        start, trainer = perf_counter(), episode.trainer
        prefix_id = adaptation.prefix_token_id(trainer.processing_class)
        chunks = [sum(episode.chunks_of(neighbor), []) for neighbor in episode.distinct_neighbors]
        windows = []
        for chunk in chunks:
            windows += adaptation.scoring_windows(chunk, prefix_id, trainer.max_length)
        with trainer.compute_loss_context_manager(), adaptation.in_model(episode.record):
            nlls = mixed_nlls(episode.model, windows, episode.scored_text.windows, self.knn)
        read = (*windows, *episode.scored_text.windows)
        episode.record.num_read_tokens += sum(len(window.input_ids) for window in read)
        *others, last = nlls
        for nll in others:
            episode.append_score(nll)
        episode.add_score(last, start)
