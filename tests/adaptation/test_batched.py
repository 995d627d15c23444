"""Documents in batches: what comes of each is what comes of it alone."""

import copy
import logging

import peft
import pytest
import torch
from conftest import CONFIGS, TEXTS
from methods_program import make_method
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MambaConfig, MixtralConfig, OPTConfig

from tttnn import JournalCallback, Neighbor, NeighborEarlyStoppingCallback, TestTimeCallback
from tttnn.adaptation import batched, internals
from tttnn.adaptation.stacked import StackedAdapters
from tttnn.methods import ContextArguments, TrainableArguments, make_trainable
from tttnn.neighbors import Selection


# of 10 to 70 tokens, with 4, 0, 2, 1 and 3 neighbors
DOCUMENTS = [TEXTS[2] * 2, TEXTS[9], TEXTS[4], TEXTS[6][:30], TEXTS[7] * 2]
NUM_NEIGHBORS = [4, 0, 2, 1, 3]
# the third has no token, the fourth has one
NEIGHBORS = [TEXTS[0] * 3, TEXTS[3], "", "a"]

MORE = {
    "gpt_neox": lambda n: GPTNeoXConfig(
        vocab_size=n,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "mixtral": lambda n: MixtralConfig(
        vocab_size=n,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "mamba": lambda n: MambaConfig(
        vocab_size=n, hidden_size=32, num_hidden_layers=2, state_size=4, bos_token_id=0, eos_token_id=0, pad_token_id=0
    ),
    "opt": lambda n: OPTConfig(
        vocab_size=n,
        max_position_embeddings=64,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    ),
}


class SomeRetriever:
    """Gives each document of `DOCUMENTS` its number of neighbors, by the first words of its query."""

    def retrieve(self, texts, top_k):
        answers = []
        for text in texts:
            (number,) = [n for n, document in zip(NUM_NEIGHBORS, DOCUMENTS, strict=True) if document[:8] == text[:8]]
            chosen = NEIGHBORS[:number] if number != 2 else NEIGHBORS[1:3]
            answers.append([Neighbor(row, neighbor, float(row)) for row, neighbor in enumerate(chosen)])
        return answers


def lora_of(name, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config((CONFIGS | MORE)[name](len(tokenizer))).eval()
    return make_trainable(model, TrainableArguments("lora", lora_rank=4), seed=5)


@pytest.fixture
def make(tokenizer, tmp_path):
    """Make a trainer that trains LoRA, on a fresh model, or on `model`."""

    def make(batch_documents, name="gpt2", method="ttt", model=None, options=None, callbacks=None, **overrides):
        options = {"trainable": TrainableArguments("lora", lora_rank=4)} | (options or {})
        settings = {
            "query": "prefix",
            "disable_dropout": True,
            "chunks_per_neighbor": None,
            "weight_decay": 0.1,
            "batch_documents": batch_documents,
        }
        trainer = make_method(
            method,
            model or lora_of(name, tokenizer),
            tokenizer,
            [],
            tmp_path / "run",
            callbacks,
            options,
            **(settings | overrides),
        )
        trainer.retriever = SomeRetriever()
        return trainer

    return make


def records_of(trainer):
    trainer.evaluate(DOCUMENTS)
    return trainer.records


def assert_same(records, expected):
    """Compare all but the seconds; scores and losses to 1e-5."""
    assert len(records) == len(expected)
    for record, other in zip(records, expected, strict=True):
        values, wanted = (dict(vars(item)) for item in (record, other))
        for name in ("nll", "unmixed_nll", "train_loss", "query_train_loss"):
            assert values.pop(name) == pytest.approx(wanted.pop(name), rel=1e-5, nan_ok=True), name
        assert values.pop("seconds").keys() == wanted.pop("seconds").keys()
        assert values == wanted


@pytest.mark.parametrize("batch_documents", [2, 5, "auto"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gpt_neo", "gpt_neox"])
def test_a_batch_gives_what_one_by_one_gives(make, name, batch_documents):
    expected = records_of(make(1, name))
    assert_same(records_of(make(batch_documents, name)), expected)
    # the document with four neighbors learned something, and the one without any is counted
    assert abs(expected[0].nll[1] - expected[0].nll[0]) > 1e-4 * expected[0].nll[0]
    assert [record.status for record in expected] == ["trained", "untrained", "trained", "trained", "trained"]


def test_positions_that_come_from_a_mask_are_the_same(make):
    assert_same(records_of(make(5, "opt")), records_of(make(1, "opt")))


@pytest.mark.parametrize(("name", "targets"), [("mixtral", ["q_proj", "o_proj"]), ("mamba", ["in_proj", "x_proj"])])
def test_experts_and_states_give_the_same_where_lora_is_on_other_layers(make, tokenizer, name, targets):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MORE[name](len(tokenizer))).eval()
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
    runs = []
    for number in (1, 5):
        torch.manual_seed(1)
        adapted = peft.get_peft_model(copy.deepcopy(model), lora)
        runs.append(records_of(make(number, model=adapted, options={"trainable": None})))
    assert_same(*reversed(runs))


def test_lora_on_all_layers_of_a_mixture_of_experts_is_refused(make):
    with pytest.raises(ValueError, match="of the parameters of experts.* name the layers of attention"):
        make(2, "mixtral")


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_train_epochs": 2, "lr_scheduler_type": "linear", "warmup_steps": 1},
        {"train_on": "both"},
        {"train_on": "query"},
        {"mix": "both"},
        {"prompt": "none"},
        {"query": "document"},
        {"optim": "sgd", "max_grad_norm": 0.0},
        {"optim": "adamw_torch", "max_grad_norm": 0.1},
        {"activation_checkpointing": True},
        {"method": "context+ttt", "options": {"context": ContextArguments(20)}},
    ],
    ids=str,
)
def test_the_arguments_mean_the_same_in_a_batch(make, overrides):
    assert_same(records_of(make(3, **overrides)), records_of(make(1, **overrides)))


def test_a_document_without_a_query_is_counted_as_untrained(make):
    runs = []
    for number in (1, 2):
        trainer = make(number, train_on="query")
        trainer.evaluate(["A", "The river is wide and slow."])
        runs.append(trainer.records)
    assert_same(*reversed(runs))
    assert [record.status for record in runs[1]] == ["untrained", "trained"]


class Selected:
    """A selector that weighs its neighbors."""

    def __call__(self, candidates, *_, **__):
        return Selection(candidates, weights=[0.5 + place for place in range(len(candidates))])


def test_weights_of_neighbors_reach_the_loss(make):
    runs = []
    for number in (1, 5):
        trainer = make(number)
        trainer.selector = Selected()
        runs.append(records_of(trainer))
    assert_same(*reversed(runs))
    assert runs[0][0].weights == [0.5, 1.5, 2.5, 3.5]


def test_an_adapter_that_was_trained_before_is_where_each_document_begins(make, tokenizer):
    torch.manual_seed(1)
    model = lora_of("llama", tokenizer)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    runs = [records_of(make(number, model=copy.deepcopy(model), options={"trainable": None})) for number in (1, 5)]
    assert_same(*reversed(runs))


def test_a_document_that_has_finished_does_not_change(tokenizer, make):
    """Its parameters stay to the bit, and the moments and steps of its optimizer too."""
    trainer = make(5)
    rows = [torch.ones(3), torch.ones(3)]
    optimizer = internals.make_row_optimizer(trainer, rows)
    for row in rows:
        row.grad = torch.ones(3)
    optimizer.step()
    state = copy.deepcopy(optimizer.state[rows[1]])
    before = rows[1].clone()
    rows[1].grad = None
    optimizer.step()
    assert torch.equal(rows[1], before)
    assert all(torch.equal(optimizer.state[rows[1]][name], value) for name, value in state.items())
    assert optimizer.state[rows[0]]["step"] == 2


def test_a_batch_has_its_own_adapters_at_the_end_of_each_document(make):
    """`on_document_end` sees the model adapted to its document."""

    class Adapters(TestTimeCallback):
        def __init__(self):
            self.seen = []

        def on_document_end(self, args, state, control, record, model, **kwargs):
            named = model.named_parameters()
            self.seen.append(torch.cat([weight.detach().flatten() for _, weight in named if weight.requires_grad]))

    seen = []
    for number in (1, 5):
        callback = Adapters()
        # Adam would make rounding of gradients near 0 as large as a step
        records_of(make(number, callbacks=[callback], optim="sgd", learning_rate=1.0))
        seen.append(callback.seen)
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen[1][0], seen[1][4], atol=1e-3)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_restored(trainer, state, modules):
    assert [(name, id(module)) for name, module in trainer.model.named_modules()] == modules
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, state[name]), f"`{name}` was not restored"
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_model_leaves_a_batch_as_it_came(make):
    trainer = make(3)
    state, modules = state_of(trainer.model), [(name, id(item)) for name, item in trainer.model.named_modules()]
    records_of(trainer)
    assert_restored(trainer, state, modules)


@pytest.mark.parametrize("place", ["read", "clip", "load"])
def test_the_model_leaves_a_batch_that_fails_as_it_came(make, monkeypatch, place):
    trainer = make(3)
    state, modules = state_of(trainer.model), [(name, id(item)) for name, item in trainer.model.named_modules()]
    calls, real = [], getattr(StackedAdapters, place)

    def fail(self, *arguments):
        calls.append(place)
        if len(calls) == 4:
            raise OSError("broken")
        return real(self, *arguments)

    monkeypatch.setattr(StackedAdapters, place, fail)
    with pytest.raises(OSError, match="broken"):
        records_of(trainer)
    assert_restored(trainer, state, modules)


def test_a_loss_that_is_not_finite_names_its_document(make):
    trainer = make(5, learning_rate=1e30, max_grad_norm=0.0)
    state, modules = state_of(trainer.model), [(name, id(item)) for name, item in trainer.model.named_modules()]
    with pytest.raises(RuntimeError, match=r"of document \d .* is nan: training diverged"):
        records_of(trainer)
    assert_restored(trainer, state, modules)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=repr)
def test_out_of_memory_halves_the_batch_and_loses_nothing(make, monkeypatch, caplog, error):
    expected = records_of(make(1))
    real, sizes = StackedAdapters.read, []

    def read(self, model, texts):
        sizes.append(len(texts))
        if len(texts) > 2 and len(sizes) > 2:  # not of the check before, and not of the first step
            raise error
        return real(self, model, texts)

    monkeypatch.setattr(StackedAdapters, "read", read)
    with caplog.at_level(logging.WARNING, logger="tttnn.adaptation.batched"):
        monkeypatch.setattr(batched.logger, "propagate", True)
        records = records_of(make(4))
    assert_same(records, expected)
    assert max(sizes[4:]) == 2
    assert "There is no memory for 3 documents at once" in caplog.text
    assert "with 2 at once; nothing is lost" in caplog.text


def test_out_of_memory_of_a_single_document_is_an_error(make, monkeypatch):
    def read(self, model, texts):
        if model.training:
            raise MemoryError("no memory")
        return real(self, model, texts)

    real = StackedAdapters.read
    monkeypatch.setattr(StackedAdapters, "read", read)
    with pytest.raises(MemoryError, match="no memory"):
        records_of(make(4))


def test_a_journal_of_one_by_one_is_resumed_in_batches(make, tmp_path):
    """How many documents are trained at once changes no number, and so it is not among the journal's settings."""
    expected = records_of(make(1))
    run = make(1, callbacks=[JournalCallback()])
    run.evaluate(DOCUMENTS)
    path = tmp_path / "run" / "journal-eval.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))  # the settings, and two documents
    trained = []

    class Note(TestTimeCallback):
        def on_document_begin(self, *_, record, **kwargs):
            trained.append(record.index)

    assert_same(records_of(make(2, callbacks=[JournalCallback(), Note()])), expected)
    assert len(trained) == 3
    assert len(path.read_text().splitlines()) == len(lines)


def test_the_seconds_of_a_batch_are_shared_among_its_documents(make):
    records = records_of(make(5))
    for record in records:
        assert record.seconds["total"] >= record.seconds["train"] + record.seconds["score"]
    assert [record.seconds["train"] > 0 for record in records] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "dynamic"}, "the method dynamic does something else. Choose ttt"),
        ({"method": "query"}, "the method query does something else. Choose ttt .`train_on='query'`"),
        ({"score_every_neighbor": True}, "`score_every_neighbor` is True, but with `batch_documents` documents are"),
        ({"gradient_accumulation_steps": 2}, "`gradient_accumulation_steps` is 2, but with .* Leave"),
        ({"reset_optimizer": False}, "`reset_optimizer` is False"),
        ({"disable_dropout": False}, "`disable_dropout` is False"),
        ({"optim": "adafactor"}, "`optim` is 'adafactor'.*must be one of adamw_torch"),
    ],
    ids=str,
)
def test_what_has_no_batches_is_refused_with_what_to_do(make, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        make(2, **overrides)
    assert "Set `batch_documents` to 1" in str(error.value)


@pytest.mark.parametrize("kind", ["full", "ia3", "layernorm", "bias", "last-layers", "prefix"])
def test_other_parameters_than_lora_are_refused(make, model, kind):
    arguments = TrainableArguments(kind, num_virtual_tokens=8, num_last_layers=1)
    adapted = make_trainable(model, arguments)
    with pytest.raises(ValueError, match=f"trains LoRA, and `trainable` is '{kind}'. Choose lora"):
        make(2, model=adapted, options={"trainable": arguments})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "is a variant"),
        ({"modules_to_save": ["ln_f"]}, "ln_f.* is trained too"),
        ({"target_modules": ["wte", "c_attn"]}, "lora_embedding_A.* is trained too"),
    ],
    ids=str,
)
def test_adapters_of_other_kinds_are_refused(make, model, config, message):
    settings = {"task_type": "CAUSAL_LM", "fan_in_fan_out": True, "target_modules": ["c_attn"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(settings | config)))
    with pytest.raises(ValueError, match=message):
        make(2, model=adapted, options={"trainable": None})


def test_a_model_without_adapters_is_refused(make, model):
    with pytest.raises(ValueError, match="needs LoRA, and the model has no adapter"):
        make(2, model=model, options={"trainable": None})


def test_lora_inside_of_experts_is_refused(make, tokenizer):
    """A module that gets a part of the tokens cannot know whose they are."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"](len(tokenizer))).eval()

    class Expert(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.expert = torch.nn.Linear(32, 32)

        def forward(self, x):
            flat = x.view(-1, 32)
            return (
                torch.where(flat[:, :1] > 0, flat, 0)
                .index_add(0, (chosen := (flat[:, 0] > 0).nonzero().flatten()), self.expert(flat[chosen]))
                .view_as(x)
            )

    model.model.layers[0].mlp = Expert()
    trainer = make(2, model=make_trainable(model, TrainableArguments("lora", lora_rank=4)))
    state = state_of(trainer.model)
    with pytest.raises(ValueError, match=r"mlp\.expert' gets inputs .* In a mixture of experts"):
        records_of(trainer)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_model_that_mixes_up_documents_is_refused(make, tokenizer):
    model = lora_of("llama", tokenizer)

    class Mixed(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(dim=0, keepdim=True)

    model.get_base_model().model.layers[0].mlp = Mixed()
    with pytest.raises(ValueError, match="says something else of a text when it reads a longer one beside it"):
        records_of(make(2, model=model))


def test_positions_that_depend_on_the_longest_text_are_refused(make, tokenizer):
    model = lora_of("llama", tokenizer)
    model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 16}
    with pytest.raises(ValueError, match="`max_length` is 32, and the model reads texts of more than 16"):
        make(2, model=model)
    make(2, model=model, max_length=16)


def test_early_stopping_is_refused(make):
    with pytest.raises(ValueError, match="`NeighborEarlyStoppingCallback` stops the training"):
        make(2, callbacks=[NeighborEarlyStoppingCallback()])


def test_a_callback_that_stops_a_document_is_an_error(make):
    class Stop(TestTimeCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    with pytest.raises(RuntimeError, match="A callback stopped the training of a document"):
        records_of(make(2, callbacks=[Stop()]))


@pytest.mark.parametrize("value", ["many", 0, -1, 1.5, None, ""])
def test_other_numbers_of_documents_are_refused(make, value):
    with pytest.raises(ValueError, match="`batch_documents` is"):
        make(value)
