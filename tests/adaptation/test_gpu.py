"""On a CUDA device: the same numbers as on the CPU, weights restored to the bit, batches equal to one by one."""

import copy

import pytest
import torch
from conftest import CONFIGS, TEXTS, GivenRetriever
from reference import Settings, adapted_nll
from transformers import AutoModelForCausalLM

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation import choose_precision
from tttnn.methods import METHODS, TrainableArguments, make_trainable


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
DOCUMENTS = [TEXTS[2], TEXTS[4] * 2, TEXTS[7] * 3]


@pytest.fixture
def evaluate(tokenizer, tmp_path):
    """Evaluate a method with a tiny model of one seed; give the records, the trainer and the weights before."""

    def evaluate(method="ttt", device="cuda", name="gpt2", trainable=None, **overrides):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name](len(tokenizer))).eval()
        options = {}
        if trainable:
            options["trainable"] = trainable
            model = make_trainable(model, trainable, seed=5)
        settings = {"num_neighbors": 4, "max_length": 32, "learning_rate": 1e-2, "disable_dropout": True}
        args = TestTimeTrainingArguments(
            output_dir=str(tmp_path / "run"), disable_tqdm=True, use_cpu=device == "cpu", **(settings | overrides)
        )
        retriever = GivenRetriever(TEXTS[:4])
        trainer = TestTimeTrainer(
            model, args, retriever, method=METHODS[method](**options), processing_class=tokenizer
        )
        assert trainer.args.device.type == device
        before = copy.deepcopy(trainer.model.state_dict())
        trainer.evaluate(DOCUMENTS)
        return trainer.records, trainer, before

    return evaluate


def assert_same(records, expected, tolerance=1e-4):
    for record, other in zip(records, expected, strict=True):
        assert record.nll == pytest.approx(other.nll, rel=tolerance)
        assert record.status == other.status


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gpt_neo"])
@pytest.mark.parametrize("mix", ["none", "both"])
def test_scores_are_those_of_the_cpu(evaluate, name, mix):
    records, _, _ = evaluate(name=name, mix=mix)
    assert_same(records, evaluate(name=name, mix=mix, device="cpu")[0])
    assert any(abs(record.nll[-1] - record.nll[0]) > 1e-2 * record.nll[0] for record in records)


@pytest.mark.parametrize("method", ["context", "context+ttt", "dynamic", "knn-lm", "query"])
def test_other_methods_score_as_on_the_cpu(evaluate, method):
    assert_same(evaluate(method)[0], evaluate(method, device="cpu")[0])


@pytest.mark.parametrize("method", ["ttt", "dynamic", "query"])
@pytest.mark.parametrize("bf16", [False, True])
def test_weights_are_restored_to_the_bit(evaluate, method, bf16):
    _, trainer, before = evaluate(method, bf16=bf16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("batch_documents", [3, "auto"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_batch_gives_what_one_by_one_gives(evaluate, name, batch_documents):
    lora = TrainableArguments("lora", lora_rank=4)
    records, _, _ = evaluate(name=name, trainable=lora, batch_documents=batch_documents)
    assert_same(records, evaluate(name=name, trainable=lora, batch_documents=1)[0], 1e-5)
    assert_same(records, evaluate(name=name, trainable=lora, device="cpu")[0])


def test_the_preset_is_the_loop_of_the_authors(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = CONFIGS["gpt2"](len(tokenizer))
    config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    model = AutoModelForCausalLM.from_config(config).to("cuda")
    settings = Settings(32, learning_rate=2e-5, first_chunks=None, carry_optimizer=True)
    curves = adapted_nll(copy.deepcopy(model), tokenizer, [(text, TEXTS[:4]) for text in DOCUMENTS], settings)
    args = TestTimeTrainingArguments.from_preset(
        "tttlm", output_dir=str(tmp_path), num_neighbors=4, max_length=32, query="document", disable_tqdm=True
    )
    trainer = TestTimeTrainer(model, args, GivenRetriever(TEXTS[:4]), processing_class=tokenizer)
    trainer.evaluate(DOCUMENTS)
    for record, curve in zip(trainer.records, curves, strict=True):
        assert record.nll == pytest.approx(curve, rel=1e-5)


def test_generated_words_are_those_of_the_adapted_model(evaluate, tokenizer):
    _, trainer, before = evaluate()
    inputs = tokenizer(TEXTS[2], return_tensors="pt").to("cuda")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with trainer.adapt(TEXTS[2]) as model:
        changed = copy.deepcopy(model)
        words = model.generate(**inputs, **options)
    assert torch.equal(words, changed.generate(**inputs, **options))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_an_error_in_an_episode_leaves_the_weights_as_they_were(evaluate):
    _, trainer, before = evaluate()
    with pytest.raises(RuntimeError, match="given up"), trainer.adapt(TEXTS[2]):
        raise RuntimeError("given up")
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_the_precision_is_chosen_with_a_reason(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"](len(tokenizer))).to("cuda")
    args = TestTimeTrainingArguments(output_dir=str(tmp_path), max_length=32)
    choice = choose_precision(model, tokenizer, args, TEXTS[2])
    assert choice.precision in ("float32", "bf16")
    assert choice.reason
