"""The n-gram cache and the unadapted model mixed into the scores of an episode."""

import math

import pytest
import torch
from conftest import GivenRetriever

from tttnn.methods import (
    Context,
    ContextAndTraining,
    ContextArguments,
    Dynamic,
    KnnArguments,
    KnnLM,
    NoAdaptation,
    Prefix,
    TestTimeTraining,
)


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


@pytest.mark.parametrize("mix", ["unadapted", "both"])
@pytest.mark.parametrize("prompt", ["context", "none"])
@pytest.mark.parametrize("method", [None, Context()])
def test_a_document_is_at_most_one_bit_worse_than_before(make_trainer, documents, method, mix, prompt):
    """The rate is so high that every document is much worse without the mixture."""
    trainer = make_trainer(method=method, learning_rate=0.5, mix=mix, prompt=prompt)
    trainer.evaluate(documents)
    for record in trainer.records:
        assert record.nll[-1] <= record.nll[0] + math.log(2) + 1e-6
    if method is None:
        assert all(record.unmixed_nll[-1] > record.nll[0] + 10 for record in trainer.records)


@pytest.mark.parametrize("mix", ["cache", "unadapted", "both"])
def test_the_scores_without_the_mixture_are_recorded(make_trainer, documents, mix):
    plain = make_trainer(score_every_neighbor=True)
    mixed = make_trainer(score_every_neighbor=True, mix=mix)
    for trainer in (plain, mixed):
        trainer.evaluate(documents)
    for one, other in zip(plain.records, mixed.records, strict=True):
        assert one.unmixed_nll == []
        assert other.unmixed_nll == pytest.approx(one.nll)
        assert len(other.nll) == len(other.unmixed_nll)


def test_a_curve_counts_the_neighbors_that_are_trained_on_by_then(make_trainer, documents):
    curve = scores(make_trainer(score_every_neighbor=True, mix="cache"), documents)
    for number in (1, 3):
        for points, (_, after) in zip(
            curve, scores(make_trainer(num_neighbors=number, mix="cache"), documents), strict=True
        ):
            assert points[number] == pytest.approx(after)


def test_a_model_that_did_not_change_is_mixed_with_itself(make_trainer, documents):
    options = {"learning_rate": 0.0, "weight_decay": 0.0, "mix": "unadapted"}
    for before, after in scores(make_trainer(**options), documents):
        assert after == pytest.approx(before)


def test_neighbors_that_take_the_place_of_the_prompt_are_mixed_all_the_same(make_trainer, documents):
    method = Context(context=ContextArguments(12))
    for before, after in scores(make_trainer(method=method, mix="both", window_length=20), documents):
        assert after <= before + math.log(2) + 1e-6


def test_the_ngrams_of_neighbors_are_mixed_though_none_is_read(make_trainer, documents):
    method = Context(context=ContextArguments(0))
    trainer = make_trainer(method=method, retriever=GivenRetriever(documents), num_neighbors=3, mix="cache")
    trainer.evaluate(documents)
    for record in trainer.records:
        assert record.unmixed_nll[1] == pytest.approx(record.unmixed_nll[0])
        assert record.nll[1] < record.nll[0] / 2
        assert record.num_trained_tokens == 0


@pytest.mark.parametrize("mix", ["none", "unadapted"])
def test_neighbors_with_which_nothing_is_done_are_refused(make_trainer, mix):
    with pytest.raises(ValueError, match="nothing would be done with the neighbors"):
        make_trainer(method=Context(context=ContextArguments(0)), mix=mix)


def test_neighbors_that_are_trained_on_need_not_be_read(make_trainer, documents):
    method = ContextAndTraining(context=ContextArguments(0))
    neighbors = GivenRetriever(documents)
    both, trained = (make_trainer(method=how, retriever=neighbors) for how in (method, TestTimeTraining()))
    assert scores(both, documents) == scores(trained, documents)


def test_every_pair_of_knn_lm_is_mixed(make_trainer, documents):
    pairs = KnnLM(knn=KnnArguments([0.1, 0.3], [10.0]))
    both = scores(make_trainer(method=pairs, mix="cache"), documents)
    for place, weight in ((1, 0.1), (2, 0.3)):
        alone = scores(make_trainer(method=KnnLM(knn=KnnArguments([weight], [10.0])), mix="cache"), documents)
        assert [nll[place] for nll in both] == pytest.approx([nll[1] for nll in alone])


@pytest.mark.parametrize("method", [NoAdaptation(), Prefix()])
def test_methods_that_adapt_nothing_are_not_mixed_with_themselves(make_trainer, method):
    with pytest.raises(ValueError, match=f"the method {method.name} adapts nothing"):
        make_trainer(method=method, retriever=None, mix="unadapted")


def test_the_mixture_leaves_the_model_as_it_was(make_trainer, documents):
    trainer = make_trainer(mix="cache")
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.evaluate(documents)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])
