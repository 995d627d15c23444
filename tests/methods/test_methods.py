"""Neighbors in context, dynamic evaluation and no adaptation, against plain loops without cache or trainer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXTS
from methods_program import make_method
from reference import chunk_loss, rolling_nll, tokenize
from transformers import TrainerCallback

from tttnn import NeighborEarlyStoppingCallback
from tttnn.adaptation.scoring import lay_out_context
from tttnn.methods import METHODS, ContextArguments, KnnArguments, TrainableArguments, make_trainable


PREFIX = 0  # <|endoftext|> of the tokenizer
LONG = TEXTS[2] * 3  # 105 tokens or so: several windows
ONE_WINDOW = "The whale, the white whale."
EVERY_MODEL = pytest.mark.parametrize("model", ["gpt2", "llama", "gpt_neo"], indirect=True)


@pytest.fixture
def make(model, tokenizer, tmp_path):
    """Make the trainer of a method on the tiny model."""

    def make(name, texts=TEXTS[5:9], **overrides):
        return make_method(name, model, tokenizer, texts, tmp_path / "run", **overrides)

    return make


def nll_of(trainer, text):
    trainer.evaluate([text])
    return trainer.records[0].nll


def windows_of(tokens, length):
    """Inputs and targets of rolling windows; a short last one is filled up to the left."""
    stream = [PREFIX, *tokens]
    found = []
    for start in range(1, len(stream), length):
        end = min(start + length, len(stream))
        found.append((stream[max(0, end - 1 - length) : end - 1], stream[start:end]))
    return found


@torch.no_grad()
def window_nll(model, inputs, targets):
    """One forward pass over all of it, without a cache, in eval mode."""
    model.eval()
    logits = model(torch.tensor([inputs]), use_cache=False).logits[0, -len(targets) :]
    return F.cross_entropy(logits.double(), torch.tensor(targets), reduction="sum").item()


def plain_context_nll(model, tokenizer, text, neighbors, room, length, chunk=32):
    """Score a text with its neighbors, nearest first in the list, in front of every window."""
    context = []
    for neighbor in neighbors:
        piece = [PREFIX, *tokenize(tokenizer, neighbor)[:chunk]][: room - len(context)]
        if len(piece) > 1:  # a prefix token alone says nothing
            context = piece + context
    total = 0.0
    for number, (inputs, targets) in enumerate(windows_of(tokenize(tokenizer, text), length)):
        parting = [PREFIX] if number and context else []
        total += window_nll(model, context + parting + inputs, targets)
    return total


def plain_step(model, optimizer, chunks):
    model.eval()  # no dropout
    for chunk in chunks:
        (chunk_loss(model, chunk) / len(chunks)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def plain_optimizer(model, rate=1e-2):
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)


def plain_dynamic_nll(model, tokenizer, text, length=32, group=1, max_steps=10**6):
    """Score a group of windows, step on it, score the next; no step on the last."""
    model = copy.deepcopy(model)
    optimizer, total, steps = plain_optimizer(model), 0.0, 0
    windows = windows_of(tokenize(tokenizer, text), length)
    for first in range(0, len(windows), group):
        current = windows[first : first + group]
        total += sum(window_nll(model, *window) for window in current)
        if first + group < len(windows) and steps < max_steps:
            plain_step(model, optimizer, [targets for _, targets in current])
            steps += 1
    return total


# context


def test_the_nearest_neighbor_stands_next_to_the_text():
    assert lay_out_context([[1, 2, 3], [4, 5]], 0, 100) == [0, 4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (9, [0, 6, 0, 4, 5, 0, 1, 2, 3]),
        (8, [0, 4, 5, 0, 1, 2, 3]),  # a prefix token alone is not worth its place
        (7, [0, 4, 5, 0, 1, 2, 3]),
        (6, [0, 4, 0, 1, 2, 3]),  # the farther one keeps its beginning
        (4, [0, 1, 2, 3]),
        (3, [0, 1, 2]),
        (1, []),
    ],
)
def test_the_farthest_neighbors_are_left_out_first(room, expected):
    assert lay_out_context([[1, 2, 3], [4, 5], [6, 7]], 0, room) == expected


@EVERY_MODEL
@pytest.mark.parametrize("max_length", [32, 48])
def test_the_score_in_context_is_that_of_whole_forward_passes(model, tokenizer, make, max_length):
    """Of 64 positions, 32 leave 31 beside the parting token; 48 leave too few, so that half of 48 are taken."""
    room, length = {32: (31, 32), 48: (24, 39)}[max_length]
    expected = plain_context_nll(model, tokenizer, LONG, TEXTS[5:9], room, length, chunk=max_length)
    before, after = nll_of(make("context", max_length=max_length), LONG)
    assert after == pytest.approx(expected, rel=1e-5)
    assert before == pytest.approx(rolling_nll(model, tokenizer, LONG, max_length), rel=1e-6)
    assert abs(after - before) > 0.01


def test_a_given_context_length_takes_from_the_windows_only_what_is_missing(model, tokenizer, make):
    trainer = make("context", max_length=48, method_options={"context": ContextArguments(40)})
    expected = plain_context_nll(model, tokenizer, LONG, TEXTS[5:9], 40, 23, chunk=48)
    assert nll_of(trainer, LONG)[1] == pytest.approx(expected, rel=1e-5)


def test_several_chunks_of_a_neighbor_go_into_the_context(model, tokenizer, make):
    trainer = make("context", [LONG], max_length=8, chunks_per_neighbor=2)
    expected = plain_context_nll(model, tokenizer, ONE_WINDOW, [LONG], 55, 8, chunk=16)
    assert nll_of(trainer, ONE_WINDOW)[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("length", [63, 64, 1000])
def test_a_context_without_room_for_the_text_is_refused(make, length):
    with pytest.raises(ValueError, match=f"`context_length` is {length} tokens.*Pass at most 62"):
        make("context", method_options={"context": ContextArguments(length)})


def test_the_longest_context_leaves_windows_of_one_token(model, tokenizer, make):
    trainer = make("context", method_options={"context": ContextArguments(62)})
    expected = plain_context_nll(model, tokenizer, ONE_WINDOW, TEXTS[5:9], 62, 1)
    assert nll_of(trainer, ONE_WINDOW)[1] == pytest.approx(expected, rel=1e-5)


def test_a_negative_context_length_is_refused():
    with pytest.raises(ValueError, match="`context_length` is -1 tokens. Pass at least 0"):
        ContextArguments(-1)


def test_neighbors_without_a_token_leave_the_score_as_it_was(make):
    before, after = nll_of(make("context", ["", ""], max_length=64), LONG)
    assert after == before


def test_context_takes_no_step(model, make):
    weights = copy.deepcopy(model.state_dict())
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append("step")

    trainer = make("context", callbacks=[Look()])
    nll_of(trainer, LONG)
    assert not seen
    assert trainer.records[0].status == "scored"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@EVERY_MODEL
def test_context_and_training_trains_first_and_then_scores_in_context(model, tokenizer, make):
    trained = copy.deepcopy(model)
    optimizer = plain_optimizer(trained)
    for neighbor in TEXTS[5:9]:
        plain_step(trained, optimizer, [tokenize(tokenizer, neighbor)[:32]])
    expected = plain_context_nll(trained, tokenizer, LONG, TEXTS[5:9], 31, 32)
    untrained = plain_context_nll(model, tokenizer, LONG, TEXTS[5:9], 31, 32)
    weights = copy.deepcopy(model.state_dict())
    before, after = nll_of(make("context+ttt"), LONG)
    assert after == pytest.approx(expected, rel=1e-5)
    assert abs(after - untrained) > 0.1
    assert before == pytest.approx(rolling_nll(model, tokenizer, LONG, 32), rel=1e-6)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_order_of_training_does_not_change_that_of_the_context(model, tokenizer, make):
    """At a rate of nearly zero nothing is left of training but its order."""
    expected = plain_context_nll(model, tokenizer, LONG, TEXTS[5:9], 31, 32)
    after = nll_of(make("context+ttt", order="farthest", learning_rate=1e-12), LONG)[1]
    assert after == pytest.approx(expected, rel=1e-5)


def test_context_behind_a_trained_prefix_is_refused(model, tokenizer, tmp_path):
    """PEFT would put the prefix in the place of the context, and nothing would tell."""
    trainable = TrainableArguments("prefix", num_virtual_tokens=4)
    adapted = make_trainable(model, trainable)
    with pytest.raises(ValueError, match="`trainable` is 'prefix', which takes the place of the context"):
        make_method("context+ttt", adapted, tokenizer, TEXTS, tmp_path, method_options={"trainable": trainable})


# dynamic evaluation


@EVERY_MODEL
def test_dynamic_evaluation_is_a_plain_loop_of_score_and_step(model, tokenizer, make):
    before, after = nll_of(make("dynamic"), LONG)
    assert after == pytest.approx(plain_dynamic_nll(model, tokenizer, LONG), rel=1e-5)
    assert before == pytest.approx(rolling_nll(model, tokenizer, LONG, 32), rel=1e-6)
    assert abs(after - before) > 0.1


@pytest.mark.parametrize("group", [2, 3, 50])
def test_dynamic_evaluation_steps_on_groups_of_windows(model, tokenizer, make, group):
    after = nll_of(make("dynamic", max_length=16, gradient_accumulation_steps=group), LONG)[1]
    assert after == pytest.approx(plain_dynamic_nll(model, tokenizer, LONG, 16, group), rel=1e-5)


def test_dynamic_evaluation_trains_on_every_window_but_the_last(tokenizer, make):
    trainer = make("dynamic")
    nll_of(trainer, LONG)
    assert trainer.records[0].num_trained_tokens == (len(tokenize(tokenizer, LONG)) - 1) // 32 * 32


def test_a_callback_that_stops_dynamic_evaluation_leaves_the_rest_to_be_scored(model, tokenizer, make):
    class StopAfterTwo(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 2

    after = nll_of(make("dynamic", max_length=16, callbacks=[StopAfterTwo()]), LONG)[1]
    expected = plain_dynamic_nll(model, tokenizer, LONG, 16, max_steps=2)
    assert after == pytest.approx(expected, rel=1e-5)
    assert after != pytest.approx(plain_dynamic_nll(model, tokenizer, LONG, 16), rel=1e-4)


def test_early_stopping_stops_dynamic_evaluation(model, tokenizer, make):
    """A change of at least 1000 nats never comes, so that the second step is the last."""
    callback = NeighborEarlyStoppingCallback(patience=1, min_delta=1000)
    after = nll_of(make("dynamic", max_length=16, callbacks=[callback]), LONG)[1]
    assert after == pytest.approx(plain_dynamic_nll(model, tokenizer, LONG, 16, max_steps=2), rel=1e-5)


def test_a_text_of_one_window_is_scored_before_any_step(make):
    trainer = make("dynamic")
    before, after = nll_of(trainer, ONE_WINDOW)
    assert after == before
    assert trainer.records[0].num_trained_tokens == 0


def test_an_empty_text_beside_another_scores_nothing(make):
    trainer = make("dynamic")
    trainer.evaluate(["", ONE_WINDOW])
    assert trainer.records[0].nll == [0.0, 0.0]


def test_dynamic_evaluation_begins_each_text_with_the_model_as_it_came(model, tokenizer, make):
    weights = copy.deepcopy(model.state_dict())
    trainer = make("dynamic")
    trainer.evaluate([LONG, TEXTS[4] * 2])
    expected = [plain_dynamic_nll(model, tokenizer, text) for text in (LONG, TEXTS[4] * 2)]
    assert [record.nll[1] for record in trainer.records] == pytest.approx(expected, rel=1e-5)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_several_passes_of_dynamic_evaluation_are_refused(make):
    with pytest.raises(ValueError, match="`num_train_epochs` is 2, but dynamic evaluation goes through a text once"):
        make("dynamic", num_train_epochs=2)


# none


def test_no_adaptation_scores_once_and_asks_nobody(model, tokenizer, make):
    trainer = make("none")
    trainer.retriever = None
    assert nll_of(trainer, LONG) == pytest.approx([rolling_nll(model, tokenizer, LONG, 32)], rel=1e-6)
    assert trainer.records[0].status == "scored"
    assert trainer.records[0].neighbor_ids == []


def test_dynamic_evaluation_asks_no_retriever(make):
    trainer = make("dynamic")
    trainer.retriever = None
    assert len(nll_of(trainer, LONG)) == 2


# all


@pytest.mark.parametrize("name", ["context", "context+ttt", "knn-lm", "dynamic", "none"])
def test_every_method_has_the_score_before_of_test_time_training(make, name):
    own = {"knn": KnnArguments([0.5], [10.0])} if name == "knn-lm" else {}
    expected = nll_of(make("ttt", max_length=40), LONG)[0]
    assert nll_of(make(name, max_length=40, method_options=own), LONG)[0] == expected


@pytest.mark.parametrize("name", [name for name in METHODS if "experts" not in METHODS[name].own_options])
def test_tokens_that_are_read_are_counted_as_the_model_sees_them(name, model, make_trainer, documents):
    seen = []

    def look(module, args, kwargs):
        if not module.training:
            seen.append(kwargs["input_ids"].numel())

    trainer = make_trainer(method=METHODS[name](), max_length=16)
    with model.register_forward_pre_hook(look, with_kwargs=True):
        trainer.evaluate(documents)
    assert sum(record.num_read_tokens for record in trainer.records) == sum(seen) > 0
