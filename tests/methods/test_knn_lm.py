"""kNN-LM against plain NumPy in float64: every distance, every vote, every mixture written out."""

import math

import numpy as np
import pytest
import torch
from conftest import TEXTS
from methods_program import make_method
from reference import tokenize

from tttnn.methods import KnnArguments, KnnLM


PREFIX = 0  # <|endoftext|> of the tokenizer
TEXT = TEXTS[2] * 2
LENGTH = 32


@pytest.fixture
def make(model, tokenizer, tmp_path):
    def make(knn, texts=TEXTS[5:9], **overrides):
        return make_method(
            "knn-lm", model, tokenizer, texts, tmp_path / "run", method_options={"knn": knn}, **overrides
        )

    return make


def nll_of(trainer, text=TEXT):
    trainer.evaluate([text])
    return trainer.records[0].nll


@torch.no_grad()
def states_of(model, tokens):
    """For each token of a text: the final hidden state that predicts it, and the logits, over rolling windows."""
    model.eval()
    stream, states, logits = [PREFIX, *tokens], [], []
    for start in range(1, len(stream), LENGTH):
        end = min(start + LENGTH, len(stream))
        inputs = torch.tensor([stream[max(0, end - 1 - LENGTH) : end - 1]])
        hidden = model.base_model(inputs, use_cache=False).last_hidden_state[0, start - end :]
        states += hidden.double().numpy().tolist()
        logits += model.lm_head(hidden).double().numpy().tolist()
    return np.array(states).reshape(len(tokens), -1), np.array(logits).reshape(len(tokens), -1)


def plain_nll(model, tokenizer, neighbors, weight, temperature, k, num_chunks=1):
    """The nll of `TEXT` in a loop over its tokens."""
    keys, values = [], []
    for neighbor in neighbors:
        tokens = tokenize(tokenizer, neighbor)[: num_chunks * LENGTH]
        keys += states_of(model, tokens)[0].tolist()
        values += tokens
    tokens = tokenize(tokenizer, TEXT)
    total = 0.0
    for token, state, logits in zip(tokens, *states_of(model, tokens), strict=True):
        exponentials = np.exp(logits - logits.max())
        from_model = exponentials[token] / exponentials.sum()
        distances = ((np.array(keys) - state) ** 2).sum(axis=1)
        nearest = np.argsort(distances, kind="stable")[:k]
        votes = np.exp(-(distances[nearest] - distances[nearest].min()) / temperature)
        from_neighbors = (
            sum(v for v, place in zip(votes, nearest, strict=True) if values[place] == token) / votes.sum()
        )
        total -= math.log(weight * from_neighbors + (1 - weight) * from_model)
    return total


@pytest.mark.parametrize("model", ["gpt2", "llama", "gpt_neo"], indirect=True)
def test_every_pair_of_weight_and_temperature_is_the_plain_mixture(model, tokenizer, make):
    knn = KnnArguments([0.1, 0.5], [1.0, 30.0], 1024)
    expected = [
        plain_nll(model, tokenizer, TEXTS[5:9], weight, temperature, 1024)
        for weight, temperature in [(0.1, 1.0), (0.5, 1.0), (0.1, 30.0), (0.5, 30.0)]
    ]
    found = nll_of(make(knn))[1:]
    assert found == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 1) for value in found}) == 4


def test_only_the_nearest_states_vote(model, tokenizer, make):
    found = nll_of(make(KnnArguments([0.5], [10.0], 3)))[1]
    assert found == pytest.approx(plain_nll(model, tokenizer, TEXTS[5:9], 0.5, 10.0, 3), rel=1e-5)
    assert found != pytest.approx(plain_nll(model, tokenizer, TEXTS[5:9], 0.5, 10.0, 1024), rel=1e-3)


def test_several_chunks_of_a_neighbor_are_stored(model, tokenizer, make):
    neighbors = [TEXTS[3] * 4]
    found = nll_of(make(KnnArguments([0.5], [10.0]), neighbors, chunks_per_neighbor=2))[1]
    assert found == pytest.approx(plain_nll(model, tokenizer, neighbors, 0.5, 10.0, 1024, num_chunks=2), rel=1e-5)


def test_a_weight_of_zero_is_the_model(make):
    before, after = nll_of(make(KnnArguments([0.0], [10.0])))
    assert after == pytest.approx(before, rel=1e-6)


def test_a_neighbor_that_is_the_text_makes_it_likely(make):
    """Each state finds itself at distance 0: at a low temperature the right token has nearly all votes."""
    before, after = nll_of(make(KnnArguments([0.99], [1e-6]), [TEXT], chunks_per_neighbor=None))
    assert after < before / 20


def test_neighbors_without_a_token_leave_the_model_as_it_is(make):
    before, *after = nll_of(make(KnnArguments([0.1, 0.5], [1.0]), ["", ""]))
    assert after == pytest.approx([before, before], rel=1e-6)


def test_an_empty_text_beside_another_scores_nothing(make):
    trainer = make(KnnArguments([0.1], [1.0]))
    trainer.evaluate(["", TEXT])
    assert trainer.records[0].nll == [0.0, 0.0]


def test_the_candidates_are_in_the_order_of_their_scores():
    candidates = KnnLM(knn=KnnArguments([0.1, 0.5], [1.0, 30.0], 7)).candidates()
    assert [candidate.knn for candidate in candidates] == [
        KnnArguments([0.1], [1.0], 7),
        KnnArguments([0.5], [1.0], 7),
        KnnArguments([0.1], [30.0], 7),
        KnnArguments([0.5], [30.0], 7),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"knn_lambda": [1.0]}, "`knn_lambda` is .*from 0 up to below 1"),
        ({"knn_lambda": []}, "`knn_lambda` is "),
        ({"knn_temperature": [0.0]}, "`knn_temperature` is .*above 0"),
        ({"knn_temperature": [math.nan]}, "`knn_temperature` is "),
        ({"knn_k": 0}, "`knn_k` is 0. Pass at least 1"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        KnnArguments(**values)
