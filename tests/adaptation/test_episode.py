"""Documents run one by one through the public door."""

import copy

import pytest
import torch
from conftest import GivenRetriever

from tttnn import Document, JournalCallback, TestTimeCallback
from tttnn.adaptation import Method
from tttnn.selection import select


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
