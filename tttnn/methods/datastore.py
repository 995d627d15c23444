"""The datastore of kNN-LM: hidden states of the neighbors' tokens, and how they vote."""

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from transformers import PreTrainedModel

from tttnn.adaptation import TokenNll, Window
from tttnn.methods.knn_lm import KnnArguments


class Datastore:
    """Hidden states of a text's tokens, `(tokens, hidden size)`, each with the token that followed."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys
        self.values = values

    def log_probabilities(
        self, queries: torch.Tensor, targets: torch.Tensor, temperatures: list[float], k: int
    ) -> torch.Tensor:
        """
        Say how probable the votes of the `k` nearest states make the targets, at each temperature.

        Gives logarithms of shape `(temperatures, targets)`, float32; minus infinity for a target without a vote.

        Source: Khandelwal et al., [kNN-LM](https://huggingface.co/papers/1911.00172), equation 2.
        """
        # the matrix product that cdist takes for many rows loses the digits of small distances
        distances = torch.cdist(queries, self.keys, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest, places = distances.topk(min(k, len(self.keys)), largest=False)
        misses = self.values[places] != targets[:, None]
        rows = []
        for temperature in temperatures:
            weights = (-nearest / temperature).log_softmax(-1)
            rows.append(weights.masked_fill(misses, -torch.inf).logsumexp(-1))
        return torch.stack(rows)


@torch.no_grad()
def read_windows(model: PreTrainedModel, windows: list[Window]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Give, window by window, the hidden states that predict its targets, the targets and their log-probabilities."""
    model.eval()
    device = next(model.parameters()).device
    for window in windows:
        input_ids = torch.tensor([window.input_ids], device=device)
        targets = torch.tensor(window.target_ids[window.num_known :], device=device)
        output = model(input_ids=input_ids, output_hidden_states=True)
        logits = output.logits[0, -len(targets) :].float()
        states = output.hidden_states[-1][0, -len(targets) :].float()
        yield states, targets, logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def mixed_nlls(
    model: PreTrainedModel, neighbors: list[Window], scored: list[Window], knn: KnnArguments
) -> list[TokenNll]:
    """Give the nll of the scored tokens under each pair of weight and temperature."""
    stored = [(states, targets) for states, targets, _ in read_windows(model, neighbors)]
    datastore = Datastore(*map(torch.cat, zip(*stored, strict=True))) if stored else None
    rows: list[list[np.ndarray]] = [[] for _ in knn.pairs]
    for states, targets, from_model in read_windows(model, scored):
        votes = from_model.expand(len(knn.knn_temperature), -1)  # no datastore leaves the model as it is
        if datastore is not None:
            votes = datastore.log_probabilities(states, targets, knn.knn_temperature, knn.knn_k)
        # on the host, because float64 is not on every device
        from_model, votes = from_model.double().cpu(), votes.double().cpu()
        for parts, (vote, weight) in zip(rows, product(votes, knn.knn_lambda), strict=True):
            parts.append(-torch.logaddexp(from_model + math.log1p(-weight), vote + _log(weight)).numpy())
    return [TokenNll(np.zeros(0), np.concatenate([np.zeros(0), *parts])) for parts in rows]


def _log(value: float) -> float:
    return math.log(value) if value else -math.inf
