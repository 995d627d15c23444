"""Which parameters each method trains, by their names, and what comes of it, by a plain loop over the same ones."""

import builtins
import copy
import sys

import peft
import pytest
import torch
from conftest import TEXTS
from methods_program import make_method
from reference import Settings, adapted_nll, rolling_nll

from tttnn import TestTimeCallback
from tttnn.methods import TrainableArguments, make_trainable


KINDS = ["full", "lora", "ia3", "layernorm", "bias", "last-layers", "prefix"]
NEIGHBORS = TEXTS[5:8]
TEXT = TEXTS[2] * 2  # 70 tokens or so


def gpt2_names(kind):
    """The parameters that a kind trains in the tiny GPT-2 of two blocks, as they are called there."""
    blocks = [f"transformer.h.{number}." for number in (0, 1)]
    norms = [f"{block}{norm}." for block in blocks for norm in ("ln_1", "ln_2")] + ["transformer.ln_f."]
    linears = [
        f"{block}{name}." for block in blocks for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    own = [name + end for name in norms + linears for end in ("weight", "bias")]
    return {
        "full": {"transformer.wte.weight", "transformer.wpe.weight", *own},
        "bias": {name for name in own if name.endswith("bias")},
        "last-layers": {name for name in own if name.startswith(blocks[1])},
        "lora": {f"base_model.model.{name}lora_{matrix}.default.weight" for name in linears for matrix in "AB"},
        "ia3": {
            f"base_model.model.{block}{name}.ia3_l.default"
            for block in blocks
            for name in ("attn.c_attn", "mlp.c_proj")
        },
        "layernorm": {
            f"base_model.model.{norm}ln_tuning_layers.default.{end}" for norm in norms for end in ("weight", "bias")
        },
        "prefix": {"prompt_encoder.default.embedding.weight"},
    }[kind]


def arguments_of(kind):
    return TrainableArguments(kind, lora_rank=4, num_last_layers=1, num_virtual_tokens=8)


@pytest.fixture
def make(model, tokenizer, tmp_path):
    """Make a trainer of a kind on a copy of the model."""

    def make(kind, **overrides):
        options = {"trainable": arguments_of(kind)}
        adapted = make_trainable(copy.deepcopy(model), options["trainable"], seed=5)
        return make_method("ttt", adapted, tokenizer, NEIGHBORS, tmp_path / "run", method_options=options, **overrides)

    return make


class ChangedCallback(TestTimeCallback):
    """Notes the names of parameters that differ at the end of a document."""

    def __init__(self, model):
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.names = set()

    def on_document_end(self, args, state, control, record, model, **kwargs):
        self.names = {name for name, weight in model.named_parameters() if not torch.equal(weight, self.weights[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_named_parameters_are_trained_and_all_are_restored(make, kind):
    trainer = make(kind)
    assert {name for name, weight in trainer.model.named_parameters() if weight.requires_grad} == gpt2_names(kind)
    changed = ChangedCallback(trainer.model)
    trainer.add_callback(changed)
    state = copy.deepcopy(trainer.model.state_dict())
    trainer.evaluate([TEXT])
    assert changed.names == gpt2_names(kind)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, state[name]), f"`{name}` was not restored"
    assert {name for name, weight in trainer.model.named_parameters() if weight.requires_grad} == gpt2_names(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [16, 60, 1000])
def test_the_score_before_is_that_of_the_base_model(model, tokenizer, make, kind, max_length):
    """A prefix of 8 leaves 56 of 64 positions; the base model has all."""
    trainer = make(kind, max_length=max_length, num_neighbors=1)
    trainer.evaluate([TEXT])
    expected = rolling_nll(model, tokenizer, TEXT, min(max_length, 64))
    assert trainer.records[0].nll[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"stride": 5}, {"window_length": 40}])
def test_the_score_before_a_prefix_is_that_of_other_runs_of_a_long_document(make, options):
    long = TEXT * 4
    scores = []
    for kind in ("full", "prefix"):
        trainer = make(kind, max_length=16, num_neighbors=1, query="prefix", **options)
        trainer.evaluate([long])
        scores.append(trainer.records[0].nll[0])
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)


PATTERNS = {"bias": "bias", "last-layers": ".h.1.", "layernorm": ".ln_"}


@pytest.mark.parametrize("kind", ["bias", "last-layers", "layernorm", "lora", "ia3", "prefix"])
def test_training_is_a_plain_loop_over_these_parameters(model, tokenizer, make, kind):
    """The norms of PEFT's layer are those of the model; its other adapters are set up here once more."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the plain loop is in train mode
    plain = copy.deepcopy(model)
    if kind in PATTERNS:
        for name, weight in plain.named_parameters():
            weight.requires_grad_(PATTERNS[kind] in name)
    else:
        config = {
            "lora": peft.LoraConfig(
                r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
            ),
            "ia3": peft.IA3Config(
                target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
            ),
            "prefix": peft.PrefixTuningConfig(num_virtual_tokens=8),
        }[kind]
        config.task_type = "CAUSAL_LM"
        torch.manual_seed(5)
        plain = peft.get_peft_model(plain, config)
    if kind == "prefix":
        begin_as_bos(plain, model, 8)
    settings = Settings(56 if kind == "prefix" else 32, 1e-2, score_every_neighbor=False)
    ((_, expected),) = adapted_nll(plain.eval(), tokenizer, [(TEXT, NEIGHBORS)], settings)
    trainer = make(kind, max_length=settings.max_length, disable_dropout=True)
    trainer.evaluate([TEXT])
    before, after = trainer.records[0].nll
    assert after == pytest.approx(expected, rel=1e-6)
    assert abs(after - before) > 10 * abs(after - expected)
    assert after != before


@torch.no_grad()
def begin_as_bos(plain, model, num_tokens):
    """Set a prefix to the keys and values of BOS tokens: by position, then layer by layer, keys before values."""
    past = model(torch.zeros((1, num_tokens), dtype=torch.long), use_cache=True).past_key_values
    pairs = [tensor for layer in past.layers for tensor in (layer.keys, layer.values)]
    rows = [tensor[0].permute(1, 0, 2).reshape(num_tokens, -1) for tensor in pairs]
    plain.prompt_encoder.default.embedding.weight.copy_(torch.cat(rows, dim=1))


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_biases_of_a_model_without_any_are_refused(make):
    with pytest.raises(ValueError, match="`trainable` is 'bias', but this LlamaForCausalLM has no such parameter"):
        make("bias")


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_all_norms_of_another_architecture_are_trained(make):
    names = {name for name, weight in make("layernorm").model.named_parameters() if weight.requires_grad}
    norms = [
        f"layers.{number}.{norm}" for number in (0, 1) for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    expected = {f"base_model.model.model.{norm}.ln_tuning_layers.default.weight" for norm in [*norms, "norm"]}
    assert names == expected


@pytest.mark.parametrize("model", ["llama", "gpt_neo"], indirect=True)
def test_lora_leaves_the_head_alone(make):
    names = [name for name, weight in make("lora").model.named_parameters() if weight.requires_grad]
    assert names
    assert not [name for name in names if "lm_head" in name or "wte" in name]


def test_the_seed_decides_how_an_adapter_begins(model):
    begun = [make_trainable(copy.deepcopy(model), arguments_of("lora"), seed) for seed in (1, 1, 2)]
    first, same, other = (adapted.state_dict() for adapted in begun)
    (name, *_) = [name for name in first if "lora_A" in name]
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


def test_making_an_adapter_leaves_the_random_generator(model):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_trainable(model, arguments_of("lora"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("num_tokens", [63, 64, 70])
def test_a_prefix_that_leaves_no_room_for_a_text_is_refused(model, num_tokens):
    """Windows of a negative length would score nothing, and so perfectly."""
    with pytest.raises(ValueError, match=f"`num_virtual_tokens` is {num_tokens}, and the model reads 64.*at most 62"):
        make_trainable(model, TrainableArguments("prefix", num_virtual_tokens=num_tokens))


@pytest.mark.parametrize("kind", ["lora", "ia3", "layernorm", "prefix"])
def test_an_adapter_without_peft_names_the_extra(model, monkeypatch, kind):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "peft":
            raise ImportError("no peft")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install tttnn\[peft\]"):
        make_trainable(model, TrainableArguments(kind))


@pytest.mark.parametrize("kind", ["full", "bias"])
def test_what_needs_no_peft_does_without(model, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert make_trainable(model, TrainableArguments(kind)) is model


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainable": "adapter"}, "`trainable` is 'adapter'. Pass one of 'full', 'lora'"),
        ({"lora_rank": 0}, "`lora_rank` is 0. Pass at least 1"),
        ({"num_last_layers": 0}, "`num_last_layers` is 0"),
        ({"num_virtual_tokens": -1}, "`num_virtual_tokens` is -1"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainableArguments(**values)
