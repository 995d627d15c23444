"""`evaluate`, `predict`, `adapt` and `train` of `TestTimeTrainer`: what they give, and to whom."""

import copy
import hashlib
import json
import logging
import math

import datasets
import numpy as np
import pytest
import torch
from conftest import TEXTS
from transformers import AutoModelForCausalLM, EvalPrediction, TrainerCallback
from transformers.trainer_utils import PredictionOutput

from tttnn import Document, Neighbor, TestTimeCallback, TestTimeTrainer
from tttnn.methods import Context, Dynamic, Prefix, Query


NEIGHBORS = ["The white whale was seen.", "import json", "Let x be a rational number.", "The captain wrote."]
DOCUMENTS = ["The captain saw the whale from the boat.", "def load(path):\n    return json.load(path)\n"]
TIMES = ("runtime", "per_second", "seconds_")


class ListRetriever:
    """Answers its n-th query with its n-th answer, a list of texts or an error; the last answer again and again."""

    def __init__(self, *answers):
        self.answers = answers or (NEIGHBORS,)
        self.queries, self.top_ks = [], []

    def retrieve(self, texts, top_k):
        answer = self.answers[min(len(self.queries), len(self.answers) - 1)]
        self.queries += texts
        self.top_ks.append(top_k)
        if isinstance(answer, BaseException):
            raise answer
        items = [item if isinstance(item, Neighbor) else None for item in answer]
        made = [item or Neighbor(row, answer[row], row + 0.5) for row, item in enumerate(items)]
        return [made[:top_k] for _ in texts]


@pytest.fixture
def make(make_trainer):
    def make(*answers, **overrides):
        defaults = {"retriever": ListRetriever(*answers), "eval_dataset": DOCUMENTS}
        return make_trainer(**{**defaults, **overrides})

    return make


def timeless(metrics):
    return {name: value for name, value in metrics.items() if not any(time in name for time in TIMES)}


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# --- metrics ---


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary_per_token(make, model, tokenizer):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    trainer = make(query="document", learning_rate=0.0)
    metrics = trainer.evaluate()
    tokens = [len(tokenizer(text)["input_ids"]) for text in DOCUMENTS]
    num_bytes = [len(text.encode()) for text in DOCUMENTS]
    nats = math.log(model.config.vocab_size)
    assert [record.nll for record in trainer.records] == [pytest.approx([n * nats, n * nats]) for n in tokens]
    expected = sum(tokens) * nats / sum(num_bytes) / math.log(2)
    assert metrics["eval_bits_per_byte_before"] == pytest.approx(expected)
    assert metrics["eval_bits_per_byte"] == pytest.approx(expected)
    assert metrics["eval_bits_per_byte_ratio"] == pytest.approx(1.0)
    assert metrics["eval_byte_perplexity"] == pytest.approx(2**expected)
    # words by hand: 8, and "def", "load(path):", "return", "json.load(path)" and the empty string at the end
    assert metrics["eval_word_perplexity"] == pytest.approx(math.exp(sum(tokens) * nats / (8 + 5)))


def test_metrics_pool_sums_of_all_documents(make, documents):
    trainer = make(eval_dataset=documents)
    metrics = trainer.evaluate()
    assert len({record.num_bytes for record in trainer.records}) == 3, "else sums and means would agree"
    num_bytes = sum(record.num_bytes for record in trainer.records)
    before, after = (sum(record.nll[place] for record in trainer.records) for place in (0, 1))
    assert after != before
    assert metrics["eval_bits_per_byte_before"] == pytest.approx(before / num_bytes / math.log(2))
    assert metrics["eval_bits_per_byte"] == pytest.approx(after / num_bytes / math.log(2))
    assert metrics["eval_bits_per_byte_ratio"] == pytest.approx(after / before)
    assert metrics["eval_num_bytes"] == num_bytes
    assert metrics["eval_num_documents"] == 3
    assert (metrics["eval_num_untrained"], metrics["eval_num_with_near_copies"]) == (0, 0)
    for phase in ("retrieve", "train", "score"):
        seconds = sum(record.seconds[phase] for record in trainer.records)
        assert 0 < metrics[f"eval_seconds_{phase}"] == pytest.approx(seconds)


def test_two_evaluations_give_identical_metrics(make):
    trainer = make(order="random")
    first, second = trainer.evaluate(), trainer.evaluate()
    assert timeless(first) == timeless(second)


def test_the_real_retriever_serves(make_trainer, documents):
    trainer = make_trainer(eval_dataset=documents)
    trainer.evaluate()
    for record in trainer.records:
        assert len(record.neighbor_ids) == 4
        assert record.distances == sorted(record.distances)
        assert set(record.neighbor_ids) <= set(range(len(TEXTS)))


def test_a_dictionary_of_data_sets_is_evaluated_one_by_one(make):
    trainer = make(eval_dataset={"prose": DOCUMENTS[:1], "code": DOCUMENTS[1:]})
    metrics = trainer.evaluate()
    alone = make(eval_dataset=None).evaluate(DOCUMENTS[:1])
    assert metrics["eval_prose_bits_per_byte"] == alone["eval_bits_per_byte"]
    assert {"eval_code_bits_per_byte", "eval_code_bits_per_byte_before", "eval_code_num_documents"} <= set(metrics)
    given = make(eval_dataset=None).evaluate({"code": DOCUMENTS[1:]})
    assert given["eval_code_bits_per_byte"] == metrics["eval_code_bits_per_byte"]
    assert trainer.evaluate("prose")["eval_bits_per_byte"] == alone["eval_bits_per_byte"]


@pytest.mark.parametrize(
    "dataset",
    [
        DOCUMENTS,
        tuple(DOCUMENTS),
        [{"text": text} for text in DOCUMENTS],
        [Document(str(row), text) for row, text in enumerate(DOCUMENTS)],
        datasets.Dataset.from_dict({"text": DOCUMENTS}),
        datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset(),
        (text for text in DOCUMENTS),
    ],
    ids=["texts", "tuple", "rows", "documents", "dataset", "iterable dataset", "generator"],
)
def test_data_sets_of_any_kind_give_the_same(make, dataset):
    trainer = make()
    expected = trainer.evaluate()["eval_bits_per_byte"]
    assert trainer.evaluate(dataset)["eval_bits_per_byte"] == expected


def test_a_text_column_of_another_name_is_read(make):
    trainer = make(text_column="content")
    trainer.evaluate([{"content": DOCUMENTS[0], "text": "not this"}])
    assert trainer.records[0].num_bytes == make_num_bytes(trainer, DOCUMENTS[0])
    assert trainer.records[0].metadata == {"text": "not this"}


def make_num_bytes(trainer, text):
    """Bytes of the second half of a text's tokens."""
    token_ids = trainer.processing_class(text)["input_ids"]
    return len(trainer.processing_class.decode(token_ids[len(token_ids) // 2 :]).encode())


def test_compute_metrics_sees_scores_and_bytes_and_adds_to_the_metrics(make):
    trainer, seen = make(), []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"gain": float((prediction.predictions[:, 0] - prediction.predictions[:, -1]).sum()), "eval_one": 1}

    trainer.compute_metrics = compute_metrics
    metrics = trainer.evaluate()
    (prediction,) = seen
    assert isinstance(prediction, EvalPrediction)
    assert prediction.predictions.tolist() == [record.nll for record in trainer.records]
    assert prediction.label_ids.tolist() == [record.num_bytes for record in trainer.records]
    assert metrics["eval_gain"] == pytest.approx(sum(record.nll[0] - record.nll[1] for record in trainer.records))
    assert metrics["eval_one"] == 1


# --- predict ---


def test_predict_gives_scores_and_bytes_in_the_documented_shapes(make):
    # three neighbors for the first document, one for the second
    trainer = make(NEIGHBORS[:3], NEIGHBORS[:1], score_every_neighbor=True)
    output = trainer.predict(DOCUMENTS)
    assert isinstance(output, PredictionOutput)
    assert (output.predictions.shape, output.predictions.dtype) == ((2, 4), np.float64)
    assert (output.label_ids.shape, output.label_ids.dtype) == ((2,), np.int64)
    first, second = trainer.records
    assert (len(first.nll), len(second.nll)) == (4, 2)
    assert output.predictions.tolist() == [first.nll, [*second.nll, second.nll[-1], second.nll[-1]]]
    assert output.label_ids.tolist() == [make_num_bytes(trainer, text) for text in DOCUMENTS]


def test_predict_has_the_metrics_of_evaluate_under_its_own_prefix(make):
    trainer = make()
    expected = timeless(trainer.evaluate())
    metrics = timeless(trainer.predict(DOCUMENTS).metrics)
    assert {name.replace("eval_", "test_"): value for name, value in expected.items() if name != "epoch"} == metrics


# --- records ---


def test_a_record_holds_what_happened_to_a_document(make, tokenizer):
    trainer = make(NEIGHBORS, num_neighbors=3, order="farthest", score_every_neighbor=True)
    rows = [{"text": "Größe and the whale, the white whale", "id": 7, "year": 1851, "meta": {"source": "a.txt"}}]
    trainer.evaluate(rows)
    (record,) = trainer.records
    assert (record.index, record.id, record.status, record.error) == (0, "7", "trained", None)
    assert record.metadata == {"year": 1851, "source": "a.txt"}
    assert record.digest == hashlib.sha256(rows[0]["text"].encode()).hexdigest()[:16]
    assert record.num_bytes == make_num_bytes(trainer, rows[0]["text"])
    assert record.neighbor_ids == [2, 1, 0]
    assert record.distances == [2.5, 1.5, 0.5]
    assert record.overlaps == [0.0, 0.0, 0.0]
    assert record.near_copies == []
    assert (len(record.nll), len(record.train_loss)) == (4, 3)
    assert all(map(math.isfinite, [*record.nll, *record.train_loss]))
    assert set(record.seconds) == {"retrieve", "train", "score", "model", "total"}
    assert all(seconds > 0 for seconds in record.seconds.values())


def test_the_first_training_loss_is_that_of_the_untouched_model(make, model, tokenizer):
    trainer = make()
    trainer.evaluate()
    input_ids = torch.tensor([tokenizer(NEIGHBORS[0])["input_ids"]])
    with torch.no_grad():
        logits = model.eval()(input_ids=input_ids).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, input_ids[0, 1:]).item()
    assert [record.train_loss[0] for record in trainer.records] == pytest.approx([expected, expected], rel=1e-5)


def test_the_prefix_is_the_query_and_the_rest_is_scored(make, tokenizer):
    trainer = make()
    text = "The captain saw the whale."
    trainer.evaluate([text])
    token_ids = tokenizer(text)["input_ids"]
    half = len(token_ids) // 2
    assert trainer.retriever.queries == [tokenizer.decode(token_ids[:half])]
    assert trainer.records[0].num_bytes == len(tokenizer.decode(token_ids[half:]).encode())


def test_of_a_long_document_the_first_1024_tokens_are_the_query(make, tokenizer):
    trainer, text = make(), "The whale! " * 800
    trainer.evaluate([text])
    token_ids = tokenizer(text)["input_ids"]
    assert len(token_ids) > 3000
    assert trainer.retriever.queries == [tokenizer.decode(token_ids[:1024])]
    assert trainer.records[0].num_bytes == len(tokenizer.decode(token_ids[1024:]).encode())


def test_a_whole_document_is_query_and_scored(make):
    trainer = make(query="document")
    trainer.evaluate()
    assert trainer.retriever.queries == DOCUMENTS
    assert [record.num_bytes for record in trainer.records] == [len(text.encode()) for text in DOCUMENTS]


# --- steps ---


def test_every_neighbor_is_scored_where_asked_for(make):
    trainer = make(score_every_neighbor=True)
    trainer.evaluate()
    curve = trainer.records[0].nll
    assert len(curve) == 5
    assert len(set(curve)) == 5
    last = make()
    last.evaluate()
    assert last.records[0].nll == [curve[0], curve[-1]]


def test_neighbors_without_a_token_repeat_the_last_score_and_make_no_step(make):
    trainer = make(["", NEIGHBORS[0], ""], score_every_neighbor=True)
    trainer.evaluate(DOCUMENTS[:1])
    before, empty, after, again = trainer.records[0].nll
    assert before == empty != after == again
    assert math.isnan(trainer.records[0].train_loss[0])
    assert trainer.state.global_step == 1
    alone = make([NEIGHBORS[0]])
    alone.evaluate(DOCUMENTS[:1])
    assert alone.records[0].nll == [before, after]


def test_only_empty_neighbors_leave_the_score_and_say_trained(make):
    trainer = make(["", ""], score_every_neighbor=True)
    metrics = trainer.evaluate(DOCUMENTS[:1])
    assert len(trainer.records[0].nll) == 3
    assert len(set(trainer.records[0].nll)) == 1
    assert metrics["eval_bits_per_byte_ratio"] == 1.0


def test_accumulated_neighbors_make_one_step_and_share_its_score(make):
    trainer = make(NEIGHBORS[:3], score_every_neighbor=True, gradient_accumulation_steps=2)
    trainer.evaluate(DOCUMENTS[:1])
    before, first, second, third = trainer.records[0].nll
    assert before == first != second != third
    assert len(trainer.records[0].train_loss) == 3
    assert trainer.state.global_step == 2


def test_an_accumulated_neighbor_without_a_target_does_not_spoil_the_step(make, tokenizer):
    assert len(tokenizer("e")["input_ids"]) == 1
    trainer = make(["e", NEIGHBORS[0]], gradient_accumulation_steps=2)
    trainer.evaluate(DOCUMENTS[:1])
    record = trainer.records[0]
    assert [math.isnan(loss) for loss in record.train_loss] == [True, False]
    assert all(map(math.isfinite, record.nll))
    assert record.nll[0] != record.nll[1]


def test_an_accumulated_step_takes_the_mean_gradient_of_its_neighbors(make, model, tokenizer):
    """By an optimizer that only subtracts the gradient."""
    trainer = make(NEIGHBORS[:2], gradient_accumulation_steps=2, max_grad_norm=0.0, weight_decay=0.5)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": 1.0})
    reference = copy.deepcopy(model).eval()
    for text in NEIGHBORS[:2]:
        input_ids = torch.tensor([tokenizer(text)["input_ids"]])
        (reference(input_ids, labels=input_ids).loss / 2).backward()
    with trainer.adapt("x") as adapted:
        for (name, parameter), original in zip(adapted.named_parameters(), reference.parameters(), strict=True):
            # every parameter decays, biases and norms too
            expected = original - (original.grad + 0.5 * original)
            assert torch.allclose(parameter, expected, atol=1e-6), name


def test_two_passes_train_twice_on_each_neighbor(make):
    trainer = make(NEIGHBORS[:2], num_train_epochs=2, score_every_neighbor=True)
    trainer.evaluate(DOCUMENTS[:1])
    record = trainer.records[0]
    assert record.neighbor_ids == [0, 1]
    assert (len(record.train_loss), len(record.nll), trainer.state.global_step) == (4, 5, 4)
    assert record.train_loss[2] < record.train_loss[0], "the second time a neighbor is known"


def test_all_chunks_are_trained_on_where_asked_for(make, tokenizer):
    chunks = math.ceil(len(tokenizer(NEIGHBORS[0])["input_ids"]) / 4)
    assert chunks >= 3
    for asked, steps in ((None, chunks), (2, 2), (1, 1), (1000, chunks)):
        trainer = make(NEIGHBORS[:1], max_length=4, chunks_per_neighbor=asked, score_every_neighbor=True)
        trainer.evaluate(DOCUMENTS[:1])
        assert trainer.state.global_step == steps
        assert len(trainer.records[0].train_loss) == 1
        assert len(trainer.records[0].nll) == 2, "a score per neighbor, not per chunk"


def test_more_neighbors_than_asked_for_are_not_trained_on(make):
    class Generous(ListRetriever):
        def retrieve(self, texts, top_k):
            return super().retrieve(texts, 4)

    trainer = make(retriever=Generous(), num_neighbors=2)
    trainer.evaluate()
    assert [record.neighbor_ids for record in trainer.records] == [[0, 1], [0, 1]]


def test_windows_and_chunks_are_capped_at_the_context_of_the_model(make, model):
    lengths = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    trainer = make(["the whale " * 200], max_length=10_000)
    assert trainer.max_length == 64
    trainer.evaluate(["the whale and the crew " * 100])
    assert max(lengths) == 64


# --- selection ---


def test_documents_are_kept_from_their_own_neighborhood(make_trainer, documents, retriever):
    """Documents of the corpus itself: the nearest neighbor of each is itself, unless it is excluded."""
    rows = [{"text": TEXTS[row], "id": f"row {row}"} for row in (0, 2)]
    settings = {"query": "document", "num_neighbors": 3, "eval_dataset": rows}
    trainer = make_trainer(**settings)
    trainer.evaluate()
    assert [record.neighbor_ids[0] for record in trainer.records] == [0, 2]
    without = make_trainer(exclude="id", **settings)
    without.evaluate()
    for record, other in zip(trainer.records, without.records, strict=True):
        assert other.neighbor_ids[:2] == record.neighbor_ids[1:]
        assert len(other.neighbor_ids) == 3, "another takes its place"


def test_near_copies_are_counted_and_dropped_if_asked_for(make):
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    trainer = make([text, "other words"], num_neighbors=1, query="document", eval_dataset=[text, DOCUMENTS[0]])
    metrics = trainer.evaluate()
    assert [record.near_copies for record in trainer.records] == [[0], []]
    assert (trainer.records[0].neighbor_ids, trainer.records[0].overlaps) == ([0], [1.0])
    assert metrics["eval_num_with_near_copies"] == 1
    without = make([text, "other words"], num_neighbors=1, query="document", drop_near_copies=True)
    metrics = without.evaluate([text])
    assert (without.records[0].neighbor_ids, without.records[0].near_copies) == ([1], [0])
    assert metrics["eval_num_with_near_copies"] == 1


def test_a_copy_of_the_query_is_a_near_copy_of_the_document_and_not_of_the_scored_text(make, tokenizer):
    text = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon"
    token_ids = tokenizer(text)["input_ids"]
    query = tokenizer.decode(token_ids[: len(token_ids) // 2])
    trainer = make([query], num_neighbors=1)
    trainer.evaluate([text])
    assert (trainer.records[0].near_copies, trainer.records[0].overlaps) == ([0], [0.0])


class OwnRetriever:
    """Gives passages of the document with this id, and one of another."""

    def retrieve(self, texts, top_k):
        passages = [("alpha beta gamma", "doc"), ("delta epsilon", "doc"), ("something else", "other")]
        return [
            [Neighbor(i, text, float(i), {"id": id}) for i, (text, id) in enumerate(passages[:top_k])] for _ in texts
        ]


def test_a_document_among_its_own_neighbors_is_warned_of_counted_and_excluded_if_asked_for(make, caplog):
    document = Document("doc", "alpha beta gamma delta epsilon zeta eta theta iota kappa")
    logger = logging.getLogger("tttnn.adaptation.output")
    trainer = make(retriever=OwnRetriever(), num_neighbors=3)
    logger.addHandler(caplog.handler)
    try:
        metrics = trainer.evaluate([document])
    finally:
        logger.removeHandler(caplog.handler)
    assert trainer.records[0].own_neighbors == [0, 1]
    assert metrics["eval_num_with_own_neighbors"] == 1
    assert "1 of 1 documents are among their own neighbors: 2 neighbors" in caplog.text
    assert "`--exclude id`" in caplog.text
    without = make(retriever=OwnRetriever(), num_neighbors=1, top_k=3, exclude="id")
    assert without.evaluate([document])["eval_num_with_own_neighbors"] == 0
    assert without.records[0].neighbor_ids == [2]


def test_a_changed_length_is_used(make):
    trainer = make(num_neighbors=1, max_length=32)
    trainer.evaluate()
    trainer.args.max_length = 4
    trainer.evaluate()
    assert [record.num_trained_tokens for record in trainer.records] == [4, 4]


def test_a_retriever_that_gives_texts_is_told_what_to_give(make):
    class Texts:
        def retrieve(self, texts, top_k):
            return [["a text"] for _ in texts]

    with pytest.raises(TypeError, match="gave a str as a neighbor. Let `retrieve` give a list of `Neighbor`"):
        make(retriever=Texts()).evaluate()


def test_filters_leave_fewer_neighbors(make):
    trainer = make(max_distance=1.5)  # they lie at 0.5, 1.5, 2.5 and 3.5
    trainer.evaluate()
    assert [record.distances for record in trainer.records] == [[0.5, 1.5]] * 2


def test_with_a_filter_twice_as_many_candidates_are_retrieved(make):
    for settings, top_k in (
        ({}, 4),
        ({"exclude": "id"}, 8),
        ({"drop_near_copies": True}, 8),
        ({"max_distance": 1.0}, 4),
        ({"top_k": 50, "exclude": "id"}, 50),
    ):
        trainer = make(num_neighbors=4, **settings)
        trainer.evaluate()
        assert trainer.retriever.top_ks == [top_k, top_k]


def test_a_filter_takes_no_more_candidates_than_a_small_index_holds(make_trainer, documents):
    trainer = make_trainer(num_neighbors=6, drop_near_copies=True, eval_dataset=documents)  # of 10
    trainer.evaluate()
    assert [len(record.neighbor_ids) for record in trainer.records] == [6, 6, 6]


def test_a_random_order_differs_between_documents_and_seeds_and_not_between_runs(make):
    orders = []
    for seed in (1, 1, 2):
        trainer = make([f"neighbor {row}" for row in range(8)], num_neighbors=8, order="random", seed=seed)
        trainer.evaluate()
        orders.append([record.neighbor_ids for record in trainer.records])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1]
    assert all(sorted(order) == list(range(8)) for order in orders[0])


# --- untrained documents ---


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ConnectionError("no route"), "ConnectionError: no route"),
        (ConnectionResetError("gone"), "ConnectionResetError: gone"),
        (TimeoutError("too slow"), "TimeoutError: too slow"),
        ([], "no neighbor was retrieved"),
    ],
    ids=["ConnectionError", "ConnectionResetError", "TimeoutError", "empty list"],
)
def test_a_failed_retrieval_leaves_a_document_untrained_counted_and_named(make, caplog, answer, reason):
    trainer = make(answer, NEIGHBORS, score_every_neighbor=True)
    metrics = trainer.evaluate([{"text": DOCUMENTS[0], "id": "moby"}, DOCUMENTS[1]])
    failed, trained = trainer.records
    assert (failed.status, trained.status) == ("untrained", "trained")
    assert reason in failed.error
    assert trained.error is None
    assert (len(failed.nll), failed.neighbor_ids, failed.train_loss) == (1, [], [])
    assert metrics["eval_num_untrained"] == 1
    assert metrics["eval_num_documents"] == 2
    # not dropped from a mean: its score counts before and after
    num_bytes = failed.num_bytes + trained.num_bytes
    before, after = failed.nll[0] + trained.nll[0], failed.nll[0] + trained.nll[-1]
    assert metrics["eval_bits_per_byte_before"] == pytest.approx(before / num_bytes / math.log(2))
    assert metrics["eval_bits_per_byte"] == pytest.approx(after / num_bytes / math.log(2))
    assert "'moby'" in caplog.text
    assert reason in caplog.text


def test_a_retriever_that_answers_nothing_at_all_leaves_documents_untrained(make):
    class Silent(ListRetriever):
        def retrieve(self, texts, top_k):
            return []

    assert make(retriever=Silent()).evaluate()["eval_num_untrained"] == 2


def test_filters_that_leave_nobody_leave_a_document_untrained(make):
    trainer = make(max_distance=0.25)
    metrics = trainer.evaluate()
    assert metrics["eval_num_untrained"] == 2
    assert metrics["eval_bits_per_byte_ratio"] == 1.0
    assert {record.error for record in trainer.records} == {
        "no neighbor was retrieved, or none was left by the filters"
    }


@pytest.mark.parametrize(
    "error", [ValueError("bad"), OSError("disk"), KeyError("x"), MemoryError(), RuntimeError("r")]
)
def test_every_other_error_of_a_retriever_propagates(make, error):
    trainer = make(NEIGHBORS, error)
    with pytest.raises(type(error)) as caught:
        trainer.evaluate()
    assert caught.value is error


def test_a_connection_that_fails_while_training_is_no_failed_retrieval(make):
    class Fail(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise ConnectionError("the logger's server")

    with pytest.raises(ConnectionError, match="the logger's server"):
        make(callbacks=[Fail()]).evaluate()


# --- adapt ---


def test_adapt_hands_out_the_model_adapted(make, model):
    trainer, before = make(), weights(model)
    with trainer.adapt(DOCUMENTS[0]) as adapted:
        assert adapted is model
        assert not same(weights(adapted), before)
    assert same(weights(model), before)
    assert trainer.retriever.queries == [DOCUMENTS[0]], "the whole text is the query"


def test_adapt_is_the_same_each_time_and_with_the_neighbors_given(make, model):
    trainer, seen = make(num_neighbors=2), []
    given = [Neighbor(9, text, 1.0) for text in NEIGHBORS[:2]]
    for neighbors in (None, None, NEIGHBORS[:2], given, tuple(given), [NEIGHBORS[0], given[1]]):
        with trainer.adapt(DOCUMENTS[0], neighbors=neighbors):
            seen.append(weights(model))
    assert all(same(seen[0], other) for other in seen[1:])


def test_adapt_depends_on_its_seed_and_not_on_the_generators_around_it(make, model):
    seen = []
    for seed, around in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(around)
        with make(seed=seed, disable_dropout=False).adapt(DOCUMENTS[0]):
            seen.append(weights(model))
    assert same(seen[0], seen[1])
    assert not same(seen[0], seen[2])


def test_adapt_trains_on_given_neighbors_as_they_come(make, model):
    trainer, seen = make(num_neighbors=1, order="farthest"), []
    for neighbors in (NEIGHBORS[:2], NEIGHBORS[1::-1], NEIGHBORS[:1]):
        with trainer.adapt(DOCUMENTS[0], neighbors=neighbors):
            seen.append(weights(model))
    assert trainer.retriever.queries == [], "neighbors found elsewhere are not looked for"
    assert not same(seen[0], seen[1])
    assert not same(seen[0], seen[2]), "both were trained on, `num_neighbors` is for retrieving"


def test_adapt_takes_steps_on_the_text_too_where_it_is_trained_on(make, model):
    whole, seen = weights(model), {}
    for train_on in ("neighbors", "query", "both"):
        trainer = make(train_on=train_on, num_neighbors=2)
        with trainer.adapt(DOCUMENTS[0]):
            seen[train_on] = weights(model)
            record = trainer.adaptation
        assert trainer.retriever.queries == ([] if train_on == "query" else [DOCUMENTS[0]])
        assert len(record.train_loss) == (0 if train_on == "query" else 2)
        assert (record.query_train_loss == []) == (train_on == "neighbors")
    # the neighbors come first, and then the text, as if both were neighbors
    with make().adapt(DOCUMENTS[0], neighbors=[*NEIGHBORS[:2], DOCUMENTS[0]]):
        assert same(weights(model), seen["both"])
    with make().adapt(DOCUMENTS[0], neighbors=[DOCUMENTS[0]]):
        assert same(weights(model), seen["query"])
    assert same(weights(model), whole)


def test_adapt_refuses_neighbors_that_no_step_is_taken_on(make):
    with pytest.raises(ValueError, match="`train_on` is 'query': no step would be"):
        make(train_on="query").adapt(DOCUMENTS[0], neighbors=NEIGHBORS).__enter__()


@pytest.mark.parametrize("method", [Context(), Prefix(), Query(), Dynamic()])
def test_adapt_refuses_a_method_that_takes_no_step_on_neighbors(make, method):
    with pytest.raises(ValueError, match=f"the method '{method.name}' does not. Pass"):
        make(method=method).adapt(DOCUMENTS[0]).__enter__()


def test_adapt_generates_inside(make, model, tokenizer):
    trainer = make(learning_rate=0.05)
    inputs = tokenizer("The", return_tensors="pt")

    def generate():
        return model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()

    before = generate()
    with trainer.adapt("The", neighbors=["whale whale whale whale whale whale whale"] * 3):
        inside = generate()
    assert generate() == before != inside
    assert tokenizer.decode(inside[0]).count("whale") >= 2


def test_adapt_saves_a_copy_inside(make, model, tmp_path):
    trainer = make()
    with trainer.adapt(DOCUMENTS[0]) as adapted:
        adapted.save_pretrained(tmp_path / "adapted")
        inside = weights(adapted)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "adapted")
    assert same(inside, weights(saved))
    assert not same(weights(model), inside)
    assert saved.config.use_cache is True
    assert saved.config.resid_pdrop == 0.1, "dropout is off in training, not in what is saved"


def test_adapt_nests(make, model):
    trainer = make()
    outside = weights(model)
    with trainer.adapt(DOCUMENTS[0]):
        first = weights(model)
        with trainer.adapt(DOCUMENTS[1], neighbors=[NEIGHBORS[3]]):
            assert not same(weights(model), first)
            assert not same(weights(model), outside)
        assert same(weights(model), first)
        with pytest.raises(ZeroDivisionError), trainer.adapt(DOCUMENTS[1]):
            1 / 0  # noqa: B018
        assert same(weights(model), first)
        assert not any(module.training for module in model.modules())
    assert same(weights(model), outside)


def test_an_evaluation_inside_adapt_begins_with_the_adapted_model(make, model):
    trainer = make()
    after = trainer.evaluate(DOCUMENTS[:1])["eval_bits_per_byte"]
    query = trainer.retriever.queries[0]
    with trainer.adapt(query):
        inside = weights(model)
        assert trainer.evaluate(DOCUMENTS[:1])["eval_bits_per_byte_before"] == pytest.approx(after, rel=1e-6)
        assert same(weights(model), inside)


def test_adapt_leaves_the_records_of_the_last_evaluation(make):
    trainer = make()
    trainer.evaluate()
    records = list(trainer.records)
    with trainer.adapt(DOCUMENTS[0]):
        assert trainer.records == records


@pytest.mark.parametrize("error", [ConnectionError("no route"), TimeoutError("slow"), ValueError("bad")])
def test_adapt_raises_where_retrieving_fails(make, error):
    with pytest.raises(type(error)) as caught, make(error).adapt(DOCUMENTS[0]):
        pytest.fail("nothing was adapted")
    assert caught.value is error


@pytest.mark.parametrize(("answer", "neighbors"), [([], None), (NEIGHBORS, []), (NEIGHBORS, ())])
def test_adapt_raises_where_there_is_no_neighbor(make, answer, neighbors):
    with pytest.raises(ValueError, match="no neighbor to train on"), make(answer).adapt("x", neighbors=neighbors):
        pytest.fail("nothing was adapted")


def test_adapt_with_neighbors_of_its_own_needs_no_retriever(make, model):
    before = weights(model)
    with make(retriever=None).adapt("x", neighbors=NEIGHBORS):
        assert not same(weights(model), before)


def test_adapt_needs_a_retriever_or_neighbors(make):
    with pytest.raises(RuntimeError, match="no retriever. Pass"), make(retriever=None).adapt("x"):
        pytest.fail("nothing was adapted")


# --- train, and then evaluate ---


@pytest.fixture
def train_rows(tokenizer):
    rows = [tokenizer(text)["input_ids"] for text in TEXTS[:3]]
    return [{"input_ids": row, "labels": row} for row in rows]


def test_after_train_the_full_rate_is_back(make, train_rows, model):
    rates = []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    trainer = make(num_neighbors=2, lr_scheduler_type="linear", learning_rate=0.003, callbacks=[Rates()])
    trainer.train_dataset = train_rows
    untrained, before = weights(model), trainer.evaluate()["eval_bits_per_byte_before"]
    rates.clear()
    trainer.train()
    assert rates == pytest.approx([0.003, 0.002, 0.001])
    assert trainer.optimizer.param_groups[0]["lr"] == 0.0
    trained = weights(model)
    assert not same(trained, untrained)
    rates.clear()
    metrics = trainer.evaluate()
    assert rates == pytest.approx([0.003, 0.0015] * 2)
    assert metrics["eval_bits_per_byte_before"] != before
    assert metrics["eval_bits_per_byte"] != metrics["eval_bits_per_byte_before"]
    assert same(weights(model), trained), "an evaluation leaves what `train` has learned"
    assert trainer.state.max_steps == 3


def test_train_after_an_evaluation_is_train_without_one(make, train_rows, model):
    initial, seen = copy.deepcopy(model.state_dict()), []
    for evaluated in (False, True):
        model.load_state_dict(initial)
        trainer = make(lr_scheduler_type="linear")
        trainer.train_dataset = train_rows
        if evaluated:
            trainer.evaluate()
            with trainer.adapt(DOCUMENTS[0]):
                pass
        torch.manual_seed(0)
        trainer.train()
        assert trainer.state.global_step == 3
        seen.append(weights(model))
    assert same(*seen)


def test_evaluating_after_train_was_cut_in_the_middle_of_a_step_still_trains(make, train_rows):
    """Accelerate skips steps while gradients accumulate; an interrupted `train` may leave it in that state."""

    class Cut(TrainerCallback):
        def on_substep_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    trainer = make(gradient_accumulation_steps=2)
    trainer.train_dataset = train_rows
    cut = Cut()
    trainer.add_callback(cut)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(cut)
    try:
        trainer.evaluate()
    finally:
        trainer.accelerator.gradient_state._set_sync_gradients(True)  # of the whole process, other tests included
    assert [len(set(record.nll)) for record in trainer.records] == [2, 2], "the score did not change"


def test_an_evaluation_where_gradients_are_switched_off_trains_all_the_same(make):
    trainer = make()
    expected = timeless(trainer.evaluate())
    with torch.no_grad():
        assert timeless(trainer.evaluate()) == expected
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert timeless(trainer.evaluate()) == expected


def test_activation_checkpointing_gives_the_same_and_is_off_again(make, model):
    trainer = make()
    trainer.evaluate()
    expected = [record.nll for record in trainer.records]
    checkpointed = make(activation_checkpointing=True)
    inside = []

    class Look(TestTimeCallback):
        def on_document_end(self, args, state, control, model, **kwargs):
            inside.append(model.is_activation_checkpointing)

    checkpointed.add_callback(Look())
    checkpointed.evaluate()
    assert [record.nll for record in checkpointed.records] == [pytest.approx(nll, rel=1e-6) for nll in expected]
    assert inside == [True, True]
    assert not model.is_activation_checkpointing


def test_mixed_precision_trains_and_scores_in_it(make, model):
    trainer = make()
    trainer.evaluate()
    mixed = make(bf16=True)
    mixed.evaluate()
    for record, other in zip(trainer.records, mixed.records, strict=True):
        assert record.nll != other.nll
        assert other.nll == pytest.approx(record.nll, rel=0.02)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_several_windows_in_one_forward_pass_give_the_same(make):
    text = "The captain saw the whale from the boat, and the crew was tired of the sea. " * 12
    scores = []
    for size in (1, 3):
        trainer = make(per_device_eval_batch_size=size, max_length=16, eval_dataset=[text])
        trainer.evaluate()
        scores.append(trainer.records[0].nll)
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_the_metrics_can_be_saved_by_trainer(make, tmp_path):
    trainer = make()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    saved = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert saved["eval_bits_per_byte"] == metrics["eval_bits_per_byte"]


def test_the_data_loader_gives_all_documents_with_their_positions(make):
    pairs = list(make(eval_dataset=[f"text {row}" for row in range(5)]).get_eval_dataloader())
    assert [(index, document.text) for index, document in pairs] == [(row, f"text {row}") for row in range(5)]


def test_a_collator_of_the_users_own_makes_the_inputs(make_trainer, model, tokenizer):
    seen = []

    def collator(rows):
        seen.append(rows)
        return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}

    args = make_trainer(num_neighbors=1).args
    trainer = TestTimeTrainer(model, args, ListRetriever(), processing_class=tokenizer, data_collator=collator)
    trainer.evaluate(DOCUMENTS[:1])
    ids = tokenizer(NEIGHBORS[0])["input_ids"]
    assert seen == [[{"input_ids": ids, "labels": ids}]]


def test_a_trainer_shows_what_it_is_made_of(make_trainer, retriever):
    # tokens and positions: 400 x 32 + 64 x 32; each of two layers: 2 x 64, 3168 + 1056, 4224 + 4128; the last norm: 64
    assert repr(make_trainer(num_neighbors=7)) == (
        "TestTimeTrainer(model=GPT2LMHeadModel with 40,320 parameters, method='ttt', "
        f"retriever={retriever!r}, num_neighbors=7, learning_rate=0.001)"
    )
