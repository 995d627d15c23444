"""Documents run one by one through the public door."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import GivenRetriever

from tttnn import Document, JournalCallback, TestTimeCallback, TestTimeTrainingArguments
from tttnn.adaptation import Method, split_document
from tttnn.journal import read_journal
from tttnn.methods import Context, ContextArguments
from tttnn.selection import SELECTORS, Sift, select


def same(record, other):
    return {**vars(record), "seconds": None} == {**vars(other), "seconds": None}


def test_documents_run_one_by_one_have_the_records_of_an_evaluation(trainer, documents):
    trainer.evaluate(documents)
    with trainer.episodes() as episodes:
        records = [episodes.run(Document(f"row {index}", text)) for index, text in enumerate(documents)]
    assert all(map(same, records, trainer.records))


@pytest.mark.parametrize("form", [str, lambda text: {"text": text}, lambda text: Document("own id", text)])
def test_a_document_is_a_text_a_row_or_a_document(trainer, documents, form):
    with trainer.episodes() as episodes:
        assert episodes.run(form(documents[1])).num_bytes > 0


def test_the_index_seeds_a_document_and_not_its_place(make_trainer, documents):
    trainer = make_trainer(order="random")
    trainer.evaluate(documents)
    with trainer.episodes() as episodes:
        record = episodes.run(documents[2], index=2)
    assert record.nll == trainer.records[2].nll
    assert record.neighbor_ids == trainer.records[2].neighbor_ids


def test_each_document_begins_from_the_same_weights(trainer, documents):
    before = copy.deepcopy(trainer.model.state_dict())
    with trainer.episodes() as episodes:
        first, second = (episodes.run(documents[0], index=0) for _ in range(2))
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(tensor, before[name]), f"`{name}` was not restored"
    assert first.nll == second.nll
    assert first.nll[0] != first.nll[1]


def test_a_document_that_nothing_is_found_for_is_scored_with_the_original_model(make_trainer, documents):
    with make_trainer(retriever=GivenRetriever([])).episodes() as episodes:
        record = episodes.run(documents[0])
    assert (record.status, len(record.nll)) == ("untrained", 1)
    assert "no neighbor was retrieved" in record.error


def test_episodes_are_closed_by_an_error(trainer, documents):
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(KeyError), trainer.episodes() as episodes:
        episodes.run(documents[0])
        with torch.no_grad():
            next(trainer.model.parameters()).add_(1.0)
        raise KeyError
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    trainer.evaluate(documents[:1])


def test_episodes_inside_a_callback_are_refused(make_trainer, documents):
    class Nested(TestTimeCallback):
        def on_document_end(self, args, state, control, record, **kwargs):
            with pytest.raises(RuntimeError, match="An episode is running"), trainer.episodes():
                pass
            self.was_called = True

    callback = Nested()
    trainer = make_trainer(callbacks=[callback])
    trainer.evaluate(documents[:1])
    assert callback.was_called


def test_a_method_of_the_users_own_serves(make_trainer, documents):
    class Twice(Method):
        """Scores the original model two times."""

        name, description, retrieves, trains = "twice", "no adaptation", False, False

    trainer = make_trainer(method=Twice())
    trainer.evaluate(documents)
    for record in trainer.records:
        assert record.status == "scored"
        assert record.nll[0] == record.nll[1]


def test_a_retriever_says_what_it_is_to_the_journal(make_trainer, documents, tmp_path):
    class Described(GivenRetriever):
        def describe(self):
            return {"index": "three texts", "version": 7}

    trainer = make_trainer(retriever=Described(documents), callbacks=[JournalCallback(tmp_path)])
    trainer.evaluate(documents)
    line = (tmp_path / "journal-eval.jsonl").read_text().splitlines()[0]
    assert '"retriever": "Described", "index": "three texts", "num_indexed": null, "version": 7' in line.replace(
        "test_a_retriever_says_what_it_is_to_the_journal.<locals>.", ""
    )


def weighted(*weights):
    """The nearest neighbors, with these weights."""

    def selector(candidates, document, scored_text, **options):
        selection = select(candidates, document, scored_text, **options)
        selection.weights = list(weights[: len(selection.neighbors)])
        return selection

    return selector


def test_a_weight_of_two_is_a_learning_rate_twice_as_high(make_trainer, model, documents):
    """In steps of plain gradient descent without clipping or decay."""
    scores = []
    for selector, rate in ((weighted(2.0, 2.0, 2.0, 2.0), 0.05), (select, 0.1), (select, 0.05)):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        trainer = make_trainer(selector=selector, optimizers=(optimizer, None), max_grad_norm=0.0)
        trainer.evaluate(documents)
        scores.append([record.nll[-1] for record in trainer.records])
        assert trainer.records[0].weights == ([2.0] * 4 if selector is not select else [])
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert scores[0] != pytest.approx(scores[2], rel=1e-4)


def test_the_loss_of_a_weighted_neighbor_is_recorded_without_its_weight(make_trainer, documents):
    first = []
    for selector in (weighted(3.0, 1.0, 1.0, 1.0), select):
        trainer = make_trainer(selector=selector)
        trainer.evaluate(documents)
        first.append([record.train_loss[0] for record in trainer.records])
    assert first[0] == pytest.approx(first[1], rel=1e-6)


def test_a_selector_is_named_in_the_journal(make_trainer, documents, tmp_path):
    make_trainer(selector=weighted(1.0), num_neighbors=1, callbacks=[JournalCallback(tmp_path)]).evaluate(documents)
    assert '"selector": "weighted.<locals>.selector"' in (tmp_path / "journal-eval.jsonl").read_text()


class Chooser:
    """A selector without a representation of its own."""

    def __init__(self, number=1):
        self.number, self.words, self.thing = number, {"b", "a"}, object()

    def __call__(self, *args, **options):
        return select(*args, **options)


@pytest.mark.parametrize(
    ("make_selector", "name"),
    [
        (lambda: partial(select, distinct=None), "partial(select, distinct=None)"),
        (Chooser, "Chooser(number=1, words={'a', 'b'}, thing=object)"),
        (lambda: Chooser(2).__call__, "Chooser(number=2, words={'a', 'b'}, thing=object).__call__"),
        (lambda: Sift(alpha=2.0), "Sift(regularization=0.01, alpha=2.0)"),
    ],
    ids=["partial", "object", "method", "dataclass"],
)
def test_a_run_with_a_selector_of_any_kind_resumes(make_trainer, documents, tmp_path, make_selector, name):
    for _ in range(2):
        trainer = make_trainer(selector=make_selector(), callbacks=[JournalCallback(tmp_path)])
        trainer.evaluate(documents)
    settings, _ = read_journal(tmp_path / "journal-eval.jsonl")
    assert settings["selector"] == name


# --- selectors by name ---


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_by_name_is_the_one_of_that_name(make_trainer, retriever, documents, name):
    trainer = make_trainer(selector=name)
    trainer.evaluate(documents)
    for record, text in zip(trainer.records, documents, strict=True):
        query, scored = split_document(trainer.processing_class, text, "prefix", "text")
        candidates = retriever.retrieve([query], 4 if name == "nearest" else 10)[0]  # the corpus holds ten
        expected = SELECTORS[name](
            candidates,
            Document("d", text),
            scored,
            num_neighbors=4,
            order="nearest",
            seed=0,
            vectors=lambda left, query=query: retriever.vectors(query, left),
        )
        assert record.neighbor_ids == [neighbor.id for neighbor in expected.neighbors]
        assert record.weights == pytest.approx(expected.weights or [])


def test_an_unknown_selector_is_refused(make_trainer):
    with pytest.raises(ValueError, match="`selector` is 'best'. Pass one of 'nearest', 'sift', 'hull'"):
        make_trainer(selector="best")


def test_a_selector_by_name_and_another_one_beside_it_are_refused(make_trainer, tmp_path):
    args = TestTimeTrainingArguments(output_dir=str(tmp_path), selector="sift", use_cpu=True)
    with pytest.raises(ValueError, match="`args.selector` is 'sift', and `selector` is passed too"):
        make_trainer(args=args, selector=select)


@pytest.mark.parametrize("name", ["sift", "hull"])
def test_a_retriever_without_vectors_serves_the_nearest_only(make_trainer, documents, name):
    with pytest.raises(ValueError, match="Vectors are needed, and GivenRetriever has no method `vectors`"):
        make_trainer(retriever=GivenRetriever(documents), selector=name).evaluate(documents)
    make_trainer(retriever=GivenRetriever(documents)).evaluate(documents)


@pytest.mark.parametrize(
    ("query", "vectors", "message"),
    [
        (np.ones(3), np.ones((2, 3)), r"vectors of shape \(2, 3\) for 3 neighbors"),
        (np.ones(3), np.ones((3, 4)), r"one of shape \(3,\) for the query"),
        (np.ones((1, 3)), np.ones((3, 3)), "for the query"),
        (np.ones(3), np.full((3, 3), np.nan), "not finite"),
        (np.full(3, np.inf), np.ones((3, 3)), "not finite"),
    ],
)
def test_vectors_that_cannot_be_are_refused(make_trainer, documents, query, vectors, message):
    class Wrong(GivenRetriever):
        def vectors(self, text, neighbors):
            return query, vectors

    with pytest.raises(ValueError, match=message):
        make_trainer(retriever=Wrong(documents), selector="sift").evaluate(documents)


@pytest.mark.parametrize("weights", [(0.0, 1.0, 1.0, 1.0), (1.0, 1.0), (math.nan, 1.0, 1.0, 1.0)])
def test_weights_that_cannot_be_are_refused_before_a_step(make_trainer, documents, weights):
    trainer = make_trainer(selector=weighted(*weights))
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(ValueError, match="The selector gave"):
        trainer.evaluate(documents)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


class Repeating(GivenRetriever):
    """Of three texts the second is the query but for a little, and the others are of no use."""

    def vectors(self, text, neighbors):
        rows = np.eye(4, dtype=np.float32)[[neighbor.id for neighbor in neighbors]]
        return np.array([0.01, 1, 0.01, 0], np.float32), rows


def test_a_neighbor_that_is_picked_again_is_trained_on_again(make_trainer, documents):
    trainer = make_trainer(retriever=Repeating(documents), selector="sift", num_neighbors=3)
    trainer.evaluate(documents[:1])
    (record,) = trainer.records
    assert record.neighbor_ids == [1, 1, 1]
    assert len(record.train_loss) == len(record.overlaps) == len(record.distances) == 3
    assert record.train_loss[2] < record.train_loss[0]


def test_a_neighbor_that_is_picked_again_is_read_once(make_trainer, documents):
    scores = []
    for retriever, options in ((Repeating(documents), {"selector": "sift"}), (GivenRetriever(documents[1:2]), {})):
        method = Context(context=ContextArguments(30))
        trainer = make_trainer(retriever=retriever, num_neighbors=3, method=method, **options)
        trainer.evaluate(documents[:1])
        scores.append(trainer.records[0].nll)
    assert scores[0] == scores[1]
