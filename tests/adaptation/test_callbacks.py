"""Which events callbacks see, and what the shipped callbacks do."""

import functools
import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import GivenRetriever
from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from tttnn import NeighborEarlyStoppingCallback, TestTimeCallback
from tttnn.adaptation.callbacks import JournalCallback
from tttnn.adaptation.progress import DocumentProgressCallback
from tttnn.records import DocumentRecord


NEIGHBORS = ["The white whale was seen.", "import json", "Let x be a rational number.", "The captain wrote."]
DOCUMENTS = ["The captain saw the whale from the boat.", "def load(path):\n    return json.load(path)\n"]
STEP = ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]


def recorder(base):
    """Make a callback of a base class that notes the name of every event, and what came with it."""

    class Recorder(base):
        def __init__(self):
            self.names, self.seen = [], []
            for name in dir(base):
                if name.startswith("on_"):
                    setattr(self, name, functools.partial(self.note, name))

        def note(self, name, args, state, control, **kwargs):
            self.names.append(name)
            self.seen.append((name, state.global_step, kwargs))

        def logs(self):
            return [kwargs["logs"] for name, _, kwargs in self.seen if name == "on_log"]

    return Recorder()


@pytest.fixture
def make(make_trainer):
    def make(callbacks, num_neighbors=3, **overrides):
        defaults = {"retriever": GivenRetriever(NEIGHBORS), "eval_dataset": DOCUMENTS}
        return make_trainer(callbacks=callbacks, num_neighbors=num_neighbors, **{**defaults, **overrides})

    return make


def with_losses(trainer, losses):
    """Let the trainer see these losses, and train on nothing."""
    losses = iter(losses)
    trainer.training_step = lambda model, inputs: torch.tensor(next(losses))
    return trainer


# --- events ---


def test_a_plain_callback_sees_one_training_run_per_evaluation(make):
    events = recorder(TrainerCallback)
    make([events], logging_steps=1).evaluate()
    step = [*STEP, "on_log"]
    assert events.names == ["on_init_end", "on_train_begin", *step * 6, "on_train_end", "on_log", "on_evaluate"]


def test_our_callback_sees_documents_around_their_steps(make):
    events = recorder(TestTimeCallback)
    make([events]).evaluate()
    document = ["on_document_begin", "on_steps_begin", *STEP * 3, "on_document_end"]
    assert events.names == [
        *("on_init_end", "on_train_begin", "on_evaluation_begin"),
        *document * 2,
        *("on_evaluation_end", "on_train_end", "on_log", "on_evaluate"),
    ]


def test_predict_sends_its_own_last_event(make):
    events = recorder(TestTimeCallback)
    make([events], num_neighbors=1).predict(DOCUMENTS[:1])
    document = ["on_document_begin", "on_steps_begin", *STEP, "on_document_end"]
    evaluation = ["on_evaluation_begin", *document, "on_evaluation_end"]
    assert events.names == ["on_init_end", "on_train_begin", *evaluation, "on_train_end", "on_predict"]


def test_adapt_is_one_document(make):
    events = recorder(TestTimeCallback)
    with make([events], num_neighbors=2).adapt(DOCUMENTS[0]):
        document = ["on_document_begin", "on_steps_begin", *STEP * 2, "on_document_end"]
        assert events.names == ["on_init_end", "on_train_begin", *document, "on_train_end"]
    assert events.names[-1] == "on_train_end"


def test_accumulated_gradients_are_substeps(make):
    events = recorder(TrainerCallback)
    make([events], gradient_accumulation_steps=2, eval_dataset=DOCUMENTS[:1]).evaluate()
    # three neighbors: two in the first step, one in the second
    two = ["on_step_begin", "on_substep_end", *STEP[1:]]
    assert events.names == ["on_init_end", "on_train_begin", *two, *STEP, "on_train_end", "on_log", "on_evaluate"]


def test_every_chunk_is_a_step(make, tokenizer):
    events = recorder(TrainerCallback)
    make([events], num_neighbors=1, max_length=4, chunks_per_neighbor=None, eval_dataset=DOCUMENTS[:1]).evaluate()
    chunks = math.ceil(len(tokenizer(NEIGHBORS[0])["input_ids"]) / 4)
    assert chunks > 1
    assert events.names.count("on_step_end") == chunks


def test_a_document_without_neighbors_has_no_step(make):
    events = recorder(TestTimeCallback)
    make([events], retriever=GivenRetriever([]), eval_dataset=DOCUMENTS[:1]).evaluate()
    document = ["on_document_begin", "on_document_end"]
    evaluation = ["on_evaluation_begin", *document, "on_evaluation_end"]
    assert events.names == ["on_init_end", "on_train_begin", *evaluation, "on_train_end", "on_log", "on_evaluate"]


@pytest.mark.parametrize(
    "accumulation",
    [1, pytest.param(2)],
)
def test_steps_look_to_callbacks_and_loggers_as_those_of_trainer_itself(
    make, model, tokenizer, tmp_path, accumulation
):
    """The same neighbors as a training set of transformers' own Trainer: the same events, and the same logs."""
    plain = TrainingArguments(
        str(tmp_path),
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
        average_tokens_across_devices=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ours = recorder(TrainerCallback)
    settings = {"lr_scheduler_type": "linear", "weight_decay": 0.0, "gradient_accumulation_steps": accumulation}
    trainer = make([ours], num_neighbors=4, logging_steps=1, eval_dataset=DOCUMENTS[:1], **settings)
    expected_events, rows = recorder(TrainerCallback), [tokenizer(text)["input_ids"] for text in NEIGHBORS]
    rows = [{"input_ids": row, "labels": row} for row in rows]
    trainer.evaluate()
    reference = Trainer(model, plain, train_dataset=rows, callbacks=[expected_events])
    reference.model_accepts_loss_kwargs = False  # a step's loss is the mean over its neighbors, not over their tokens
    reference.train()

    steps = [name for name in expected_events.names if "epoch" not in name and name != "on_save"]
    last = len(steps) - 1 - steps[::-1].index("on_step_end")
    assert steps[: last + 2] == ours.names[: last + 2]
    count = 4 // accumulation
    for mine, expected in zip(ours.logs()[:count], expected_events.logs()[:count], strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert float(mine[name]) == pytest.approx(float(expected[name]), rel=1e-3), name


def test_callbacks_are_given_the_parts_of_the_trainer(make):
    events = recorder(TestTimeCallback)
    trainer = make([events], num_neighbors=2)
    trainer.evaluate()
    for name, _, kwargs in events.seen[1:]:
        assert kwargs["model"] is trainer.model, name
        assert kwargs["processing_class"] is trainer.processing_class, name
        assert kwargs["optimizer"] is trainer.optimizer, name
        assert name not in STEP or kwargs["lr_scheduler"] is not None, name
    assert [step for name, step, _ in events.seen if name == "on_step_end"] == [1, 2, 3, 4]


def test_records_fill_up_between_the_events_of_a_document(make, model):
    seen = []
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    class Look(TestTimeCallback):
        def is_adapted(self, model):
            return any(not torch.equal(parameter, initial[name]) for name, parameter in model.named_parameters())

        def on_document_begin(self, args, state, control, record, model, **kwargs):
            seen.append((record.index, list(record.nll), list(record.train_loss), self.is_adapted(model)))

        def on_document_end(self, args, state, control, record, model, **kwargs):
            seen.append((record.index, len(record.nll), len(record.train_loss), self.is_adapted(model)))

    make([Look()], score_every_neighbor=True).evaluate()
    assert seen == [(0, [], [], False), (0, 4, 3, True), (1, [], [], False), (1, 4, 3, True)]


def test_logging_steps_give_loss_rate_and_gradient_norm(make):
    events = recorder(TrainerCallback)
    trainer = make([events], num_neighbors=4, logging_steps=1, lr_scheduler_type="linear", learning_rate=0.004)
    trainer.evaluate(DOCUMENTS[:1])
    *logs, metrics = events.logs()
    assert [row["loss"] for row in logs] == trainer.records[0].train_loss
    assert [row["learning_rate"] for row in logs] == pytest.approx([0.004, 0.003, 0.002, 0.001])
    assert all(isinstance(row["grad_norm"], float) and row["grad_norm"] > 0 for row in logs)
    assert "eval_bits_per_byte" in metrics
    assert trainer.state.log_history[0]["loss"] == trainer.records[0].train_loss[0]


def test_each_document_has_a_schedule_from_the_start(make):
    events = recorder(TrainerCallback)
    make([events], num_neighbors=2, logging_steps=1, lr_scheduler_type="linear", learning_rate=0.002).evaluate()
    rates = [row["learning_rate"] for row in events.logs()[:-1]]
    assert rates == pytest.approx([0.002, 0.001, 0.002, 0.001])


def test_a_carried_optimizer_has_a_schedule_per_document_too(make):
    events = recorder(TrainerCallback)
    settings = {"lr_scheduler_type": "linear", "learning_rate": 0.002, "reset_optimizer": False}
    make([events], num_neighbors=2, logging_steps=1, **settings).evaluate()
    rates = [row["learning_rate"] for row in events.logs()[:-1]]
    assert rates == pytest.approx([0.002, 0.001, 0.002, 0.001])


def test_without_clipping_no_gradient_norm_is_logged(make):
    events = recorder(TrainerCallback)
    make([events], num_neighbors=1, logging_steps=1, max_grad_norm=0.0).evaluate(DOCUMENTS[:1])
    assert set(events.logs()[0]) >= {"loss", "learning_rate"}
    assert "grad_norm" not in events.logs()[0]


def test_logging_every_second_step_logs_every_second_step(make):
    events = recorder(TrainerCallback)
    make([events], num_neighbors=4, logging_steps=2).evaluate(DOCUMENTS[:1])
    assert [step for name, step, _ in events.seen if name == "on_log"] == [2, 4, 4]


def test_a_logger_that_opens_its_file_when_training_begins_works(make):
    class Logger(TrainerCallback):
        """As the callback of TensorBoard: a writer from the beginning of training on, none after it."""

        def __init__(self):
            self.writer, self.written = None, []

        def on_train_begin(self, args, state, control, **kwargs):
            assert state.is_world_process_zero
            self.writer = self.written.append

        def on_log(self, args, state, control, logs, **kwargs):
            if state.is_world_process_zero and self.writer is not None:
                self.writer(dict(logs))

        def on_train_end(self, args, state, control, **kwargs):
            self.writer = None

    logger = Logger()
    make([logger], num_neighbors=2, logging_steps=1).evaluate()
    assert len([row for row in logger.written if "loss" in row]) == 4


@pytest.mark.parametrize("event", ["on_train_begin", "on_document_begin", "on_step_end", "on_document_end"])
@pytest.mark.parametrize("action", ["evaluate", "adapt"])
def test_an_episode_within_an_episode_is_refused_and_the_trainer_stays_of_use(make, event, action):
    class Again(TestTimeCallback):
        def __init__(self):
            setattr(self, event, self.again)

        def again(self, *args, **kwargs):
            if action == "evaluate":
                trainer.evaluate()
            else:
                with trainer.adapt(DOCUMENTS[0]):
                    pass

    again = Again()
    trainer = make([again])
    with pytest.raises(RuntimeError, match=r"An episode is running.*Call them before or after it"):
        trainer.evaluate()
    trainer.remove_callback(again)
    assert trainer.evaluate() is not None


# --- stopping ---


@pytest.mark.parametrize(
    "event", ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log"]
)
def test_should_training_stop_ends_the_document_after_this_step_and_no_other(make, event):
    class Stop(TestTimeCallback):
        def __init__(self):
            self.stopped = False
            setattr(self, event, self.stop)

        def stop(self, args, state, control, **kwargs):
            if state.global_step >= (1 if event in ("on_step_end", "on_log") else 0) and not self.stopped:
                self.stopped = control.should_training_stop = True

    trainer = make([Stop()], logging_steps=1)
    trainer.evaluate()
    assert [len(record.train_loss) for record in trainer.records] == [1, 3]
    assert [record.status for record in trainer.records] == ["trained", "trained"]
    assert [len(record.nll) for record in trainer.records] == [2, 2]


def test_a_callback_may_return_a_control_of_its_own(make):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            return TrainerControl(should_training_stop=state.global_step == 2)

    trainer = make([Stop()])
    trainer.evaluate()
    assert [len(record.train_loss) for record in trainer.records] == [2, 3]


def test_stopping_in_the_middle_of_a_neighbor_ends_the_document(make):
    class Stop(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1
            control.should_training_stop = True

    stop = Stop()
    trainer = make([stop], max_length=4, chunks_per_neighbor=None, eval_dataset=DOCUMENTS[:1])
    trainer.evaluate()
    assert stop.steps == 1
    assert len(trainer.records[0].train_loss) == 1


def test_a_stopped_document_names_the_neighbors_it_was_trained_on(make):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    trainer = make([Stop()], eval_dataset=DOCUMENTS[:1])
    trainer.evaluate()
    record = trainer.records[0]
    assert len(record.train_loss) == 1
    assert (record.neighbor_ids, record.distances, record.overlaps) == ([0], [0.0], [0.0])


# losses of five neighbors -> how many are trained on
EARLY_STOPS = [
    # 2.0 is the lowest; 2.5 and 2.25 are not lower
    ({"patience": 2}, [3.0, 2.0, 2.5, 2.25, 1.0], 4),
    ({"patience": 1}, [3.0, 2.0, 2.5, 2.25, 1.0], 3),
    # 2.25 is not lower than 2.0, but 1.0 is, before a third
    ({"patience": 3}, [3.0, 2.0, 2.5, 2.25, 1.0], 5),
    # as low as the lowest is not lower
    ({"patience": 2}, [2.0, 2.0, 2.0, 1.0, 0.5], 3),
    ({"patience": 1}, [5.0, 4.0, 3.0, 2.0, 1.0], 5),
    # 2.75 does not undercut 3.0 by more than a half, 2.25 does; 2.0 and 1.875 do not undercut 2.25 by a half
    ({"patience": 2, "min_delta": 0.5}, [3.0, 2.75, 2.25, 2.0, 1.875], 5),
    ({"patience": 1, "min_delta": 0.5}, [3.0, 2.75, 2.25, 2.0, 1.875], 2),
    ({}, [1.0, 2.0, 3.0, 4.0, 5.0], 4),
]


@pytest.mark.parametrize(("settings", "losses", "trained"), EARLY_STOPS)
def test_early_stopping_stops_as_worked_out_by_hand(make, settings, losses, trained):
    texts = [f"neighbor {row}" for row in range(5)]
    trainer = make([NeighborEarlyStoppingCallback(**settings)], num_neighbors=5, retriever=GivenRetriever(texts))
    # the second document has falling losses: what the first one lost is forgotten
    with_losses(trainer, [*losses[:trained], 9.0, 8.0, 7.0, 6.0, 5.0]).evaluate()
    assert [record.train_loss for record in trainer.records] == [losses[:trained], [9.0, 8.0, 7.0, 6.0, 5.0]]


def test_early_stopping_is_off_by_default(make):
    trainer = make(None, num_neighbors=4)
    assert not any(isinstance(c, NeighborEarlyStoppingCallback) for c in trainer.callback_handler.callbacks)
    with_losses(trainer, [1.0, 2.0, 3.0, 4.0] * 2).evaluate()
    assert [len(record.train_loss) for record in trainer.records] == [4, 4]


def test_early_stopping_does_not_count_neighbors_without_a_loss(make, tokenizer):
    word = next(word for word in ("whale", "the", "e") if len(tokenizer(word)["input_ids"]) == 1)
    texts = ["neighbor 0", word, "", word, "neighbor 4", "neighbor 5"]
    trainer = make([NeighborEarlyStoppingCallback(patience=1)], num_neighbors=6, retriever=GivenRetriever(texts))
    with_losses(trainer, [3.0, math.nan, math.nan, 2.0, 2.5]).evaluate(DOCUMENTS[:1])
    assert trainer.records[0].train_loss == pytest.approx([3.0, math.nan, math.nan, math.nan, 2.0, 2.5], nan_ok=True)


def test_early_stopping_judges_a_neighbor_by_the_mean_of_its_chunks(make, tokenizer):
    text = "neighbor number one"
    length = math.ceil(len(tokenizer(text)["input_ids"]) / 2)
    retriever = GivenRetriever([text, text, text])
    settings = {"max_length": length, "chunks_per_neighbor": None, "retriever": retriever}
    trainer = make([NeighborEarlyStoppingCallback(patience=1)], **settings)
    # means 3, 2, 1: each neighbor is better than the one before, though its first chunk alone is not
    with_losses(trainer, [3.0, 3.0, 3.5, 0.5, 2.0, 0.0]).evaluate(DOCUMENTS[:1])
    assert trainer.records[0].train_loss == [3.0, 2.0, 1.0]


def test_early_stopping_judges_the_query_apart_from_the_neighbors(make):
    # a query of 6 tokens is three chunks, and each neighbor is one
    settings = {"max_length": 2, "train_on": "both", "retriever": GivenRetriever(["x y", "x y"])}
    trainer = make([NeighborEarlyStoppingCallback(patience=2)], **settings)
    # of all five losses the third and fourth are no lower than the second; of the query's each is the lowest so far
    with_losses(trainer, [2.0, 1.0, 9.0, 8.0, 7.0]).evaluate([6 * "0" + 6 * "1"])
    assert trainer.records[0].train_loss == [2.0, 1.0]
    assert trainer.records[0].query_train_loss == [9.0, 8.0, 7.0]


def test_early_stopping_leaves_train_alone(make, tokenizer):
    row = tokenizer(NEIGHBORS[0])["input_ids"]
    trainer = make([NeighborEarlyStoppingCallback(patience=1)], num_train_epochs=3)
    trainer.train_dataset = [{"input_ids": row, "labels": row}] * 2
    with_losses(trainer, [1.0, 2.0, 3.0] * 2).evaluate()
    trainer.training_step = lambda model, inputs, *rest: torch.tensor(9.0)
    trainer.train()
    assert trainer.state.global_step == 6


def test_early_stopping_needs_patience():
    with pytest.raises(ValueError, match=r"`patience` is 0.*Pass 1 or more"):
        NeighborEarlyStoppingCallback(patience=0)


# --- progress bars ---


def test_progress_bars_count_documents_and_steps(make, capsys):
    trainer = make([], disable_tqdm=False)
    trainer.evaluate()
    error = capsys.readouterr().err
    assert "Documents: 100%" in error
    assert "2/2" in error
    record = trainer.records[-1]
    assert f"{record.bits_per_byte(0):.3f} -> {record.bits_per_byte(-1):.3f} bits per byte" in error
    assert "Steps on its neighbors" in error


def estimates_in(output):
    return re.findall("About .*", output)


@pytest.mark.parametrize(
    ("seconds", "num_documents", "estimates"),
    [
        # three documents of 240 s each, after the first one
        (240.0, 4, ["About 12 minutes: 3 documents x 5 steps, if each takes as long as the first one."]),
        (9000.0, 2, ["About 2.5 hours: 1 document x 5 steps, if each takes as long as the first one."]),
        (30.0, 4, []),
        (240.0, 1, []),
    ],
)
def test_long_work_is_estimated_once_after_its_first_document(capsys, seconds, num_documents, estimates):
    state = TrainerState()
    bar, records = DocumentProgressCallback(), {}
    bar.on_evaluation_begin(None, state, None, records=records, documents=range(num_documents))
    for index in range(num_documents):
        record = DocumentRecord(index, "", "", {}, num_bytes=8, num_words=1, nll=[1.0], seconds={"total": seconds})
        bar.on_document_begin(None, state, None, record=record)
        bar.on_steps_begin(None, state, None, num_steps=5)
        bar.on_document_end(SimpleNamespace(world_size=1), state, None, record=record)
        records[index] = record
    bar.on_evaluation_end(None, state, None)
    assert estimates_in(capsys.readouterr().err) == estimates


def test_documents_of_an_earlier_run_are_not_estimated(capsys):
    state = TrainerState()
    bar = DocumentProgressCallback()
    bar.on_evaluation_begin(None, state, None, records=dict.fromkeys(range(6)), documents=range(10))
    record = DocumentRecord(6, "", "", {}, num_bytes=8, num_words=1, nll=[1.0], seconds={"total": 60.0})
    bar.on_document_begin(None, state, None, record=record)
    bar.on_document_end(SimpleNamespace(world_size=1), state, None, record=record)
    bar.on_evaluation_end(None, state, None)
    assert estimates_in(capsys.readouterr().err) == [
        "About 3 minutes: 3 documents, if each takes as long as the first one."
    ]


def test_of_two_processes_a_bar_counts_what_both_have_taken_and_half_the_time(capsys):
    state, args = TrainerState(), SimpleNamespace(world_size=2)
    bar = DocumentProgressCallback()
    bar.on_evaluation_begin(None, state, None, records={}, documents=range(10))
    counts = []
    for index in (1, 2, 7):  # the other process has taken 0 and 3 to 6
        record = DocumentRecord(index, "", "", {}, num_bytes=8, num_words=1, nll=[1.0], seconds={"total": 60.0})
        bar.on_document_begin(args, state, None, record=record)
        bar.on_document_end(args, state, None, record=record)
        counts.append(bar.document_bar.n)
    bar.on_evaluation_end(None, state, None)
    assert counts == [2, 3, 8]
    assert estimates_in(capsys.readouterr().err) == [  # 8 of 60 s, by two
        "About 4 minutes: 8 documents, if each takes as long as the first one."
    ]


def test_the_first_document_that_is_trained_on_is_what_an_estimate_is_made_of(make, capsys, monkeypatch):
    class Failing(GivenRetriever):
        def retrieve(self, texts, top_k):
            if not self.queries:
                self.queries += texts
                raise ConnectionError("not there yet")
            return super().retrieve(texts, top_k)

    monkeypatch.setattr("tttnn.adaptation.progress.LONG_WORK", 0)
    make([], disable_tqdm=False, retriever=Failing(NEIGHBORS), eval_dataset=[*DOCUMENTS, "import sys"]).evaluate()
    [estimate] = estimates_in(capsys.readouterr().err)
    assert ": 1 document x 3 steps, " in estimate


def test_disabled_progress_bars_do_not_show(make, capsys):
    make([]).evaluate()
    assert "Documents" not in capsys.readouterr().err


def test_progress_bars_are_closed_after_an_error(make):
    trainer = make([], disable_tqdm=False)
    trainer.compute_loss = None  # a TypeError in the first step
    open_before = set(tqdm._instances)
    with pytest.raises(TypeError):
        trainer.evaluate()
    assert set(tqdm._instances) <= open_before


def test_the_bar_of_train_is_put_aside_for_an_evaluation_only(make):
    trainer = make([], disable_tqdm=False)
    bars = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ProgressCallback)]
    assert len(bars) == 1
    trainer.evaluate()
    assert [c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressCallback)] == bars
    with trainer.adapt(DOCUMENTS[0]):
        pass
    assert [c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressCallback)] == bars


def test_shipped_callbacks_are_test_time_callbacks():
    for callback in (NeighborEarlyStoppingCallback, JournalCallback, DocumentProgressCallback):
        assert issubclass(callback, TestTimeCallback)


def test_the_callback_handler_of_transformers_still_fails_on_events_it_does_not_know():
    """Why our events are not sent through it; if this fails one day, they can be."""
    handler = CallbackHandler([TrainerCallback()], None, None, None, None)
    with pytest.raises(AttributeError):
        handler.call_event("on_document_begin", None, None, TrainerControl())
