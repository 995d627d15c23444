"""The n-gram cache mixed into the scores of an episode."""

import math

import pytest
import torch
from conftest import GivenRetriever

from tttnn.methods import Context, Dynamic, KnnArguments, KnnLM, NoAdaptation, Prefix


KNN = KnnLM(knn=KnnArguments([0.3], [10.0]))


def scores(trainer, documents):
    trainer.evaluate(documents)
    return [record.nll for record in trainer.records]


def test_the_first_score_is_not_mixed_and_the_others_are(make_trainer, documents):
    plain = scores(make_trainer(score_every_neighbor=True), documents)
    mixed = scores(make_trainer(score_every_neighbor=True, mix="cache"), documents)
    for one, other in zip(plain, mixed, strict=True):
        assert len(one) == len(other) == 5
        assert one[0] == other[0]
        assert all(left != right for left, right in zip(one[1:], other[1:], strict=True))


@pytest.mark.parametrize(
    ("method", "prompt"),
    [
        *((method, "context") for method in (None, Context(), KNN, Dynamic(), Prefix(), NoAdaptation())),
        *((method, "none") for method in (None, Context(), KNN, Dynamic(), NoAdaptation())),
    ],
)
def test_the_mixture_costs_one_bit_at_most(make_trainer, documents, method, prompt):
    options = {"method": method, "learning_rate": 0.0, "weight_decay": 0.0, "prompt": prompt}
    plain = scores(make_trainer(**options), documents)
    mixed = scores(make_trainer(**options, mix="cache"), documents)
    for one, other in zip(plain, mixed, strict=True):
        assert len(other) == 2
        assert other[1] <= one[-1] + math.log(2) + 1e-6


def test_a_neighbor_that_holds_the_text_makes_it_likely(make_trainer, documents):
    options = {"retriever": GivenRetriever(documents), "num_neighbors": 3, "learning_rate": 0.0, "weight_decay": 0.0}
    for before, after in scores(make_trainer(**options, mix="cache"), documents):
        assert after < before / 2


def test_the_baseline_is_mixed_with_what_repeats_in_the_document(make_trainer):
    trainer = make_trainer(method=Prefix(), retriever=None, mix="cache")
    ((before, after),) = scores(trainer, ["abc def " * 12])
    assert after < before / 2


def test_a_prompt_longer_than_the_window_is_mixed_all_the_same(make_trainer, documents):
    trainer = make_trainer(mix="cache", window_length=8)
    for record_scores in scores(trainer, documents):
        assert all(math.isfinite(nll) for nll in record_scores)


def test_a_document_of_one_token_is_mixed(make_trainer):
    trainer = make_trainer(method=Prefix(), retriever=None, mix="cache")
    ((before, after),) = scores(trainer, ["a"])
    assert after <= before + math.log(2)


def test_every_pair_of_knn_lm_is_mixed(make_trainer, documents):
    pairs = KnnLM(knn=KnnArguments([0.1, 0.3], [10.0]))
    both = scores(make_trainer(method=pairs, mix="cache"), documents)
    for place, weight in ((1, 0.1), (2, 0.3)):
        alone = scores(make_trainer(method=KnnLM(knn=KnnArguments([weight], [10.0])), mix="cache"), documents)
        assert [nll[place] for nll in both] == pytest.approx([nll[1] for nll in alone])


def test_the_mixture_leaves_the_model_as_it_was(make_trainer, documents):
    trainer = make_trainer(mix="cache")
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.evaluate(documents)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])
