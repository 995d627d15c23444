"""The loss and the scores of logits made a few rows at a time, against those of all logits."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, TEXTS, GivenRetriever
from test_architectures import nll_of, small_model
from transformers import AutoModelForCausalLM

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation import ScoredText, score
from tttnn.adaptation.head import head_loss
from tttnn.adaptation.windows import encode


CHANGES_LOGITS = {
    "gemma2": {"final_logit_softcapping": 30.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 8.0},
}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Seven rows of 400 logits at a time, so that every text has several parts."""
    monkeypatch.setattr("tttnn.adaptation.head.MAX_LOGITS", 7 * 400)


def make_trainer(model, tokenizer, tmp_path, texts=TEXTS[:3], **arguments):
    args = TestTimeTrainingArguments(
        **{"num_neighbors": 3, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, **arguments},
        output_dir=str(tmp_path),
    )
    return TestTimeTrainer(model, args, GivenRetriever(texts), processing_class=tokenizer)


@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_and_its_gradients_are_those_of_cross_entropy(bias):
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 400, bias=bias), torch.randn(1, 30, 8, requires_grad=True)
    labels = torch.randint(400, (1, 27))  # three virtual tokens stand before them
    labels[0, 5:9] = -100
    inputs = [hidden, *head.parameters()]
    ours = head_loss(head, hidden, labels)
    expected = F.cross_entropy(head(hidden)[0, 3:-1], labels[0, 1:])
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    pairs = zip(torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * expected, inputs), strict=True)
    for gradient, of_all in pairs:
        assert torch.allclose(gradient, of_all, rtol=1e-5, atol=1e-7)


def test_a_frozen_head_gets_no_gradient_and_hands_one_on():
    head, hidden = torch.nn.Linear(8, 400).requires_grad_(False), torch.randn(1, 30, 8, requires_grad=True)
    head_loss(head, hidden, torch.randint(400, (1, 30))).backward()
    assert head.weight.grad is None and hidden.grad.abs().sum() > 0


def test_without_a_target_the_loss_is_nan_and_the_gradient_zero():
    head, hidden = torch.nn.Linear(8, 400), torch.randn(1, 1, 8, requires_grad=True)
    loss = head_loss(head, hidden, torch.tensor([[3]]))
    loss.backward()
    assert math.isnan(loss.item())
    assert not hidden.grad.any() and not head.weight.grad.any()


@pytest.mark.parametrize("model", CONFIGS, indirect=True)
def test_a_run_has_the_numbers_of_one_with_all_logits(model, tokenizer, tmp_path, documents):
    trainers = [make_trainer(copy.deepcopy(model), tokenizer, tmp_path) for _ in range(2)]
    assert trainers[0].head is not None
    trainers[1].hands_out_logits = False
    for trainer in trainers:
        trainer.evaluate(documents)
    for ours, expected in zip(trainers[0].records, trainers[1].records, strict=True):
        assert ours.nll == pytest.approx(expected.nll, rel=1e-5)
        assert ours.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
        assert ours.nll[0] != ours.nll[1]


def test_no_more_logits_than_a_few_rows_are_made(model, tokenizer, tmp_path, documents, monkeypatch):
    sizes, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *inputs: sizes.append(linear(*inputs).shape) or linear(*inputs))
    trainer = make_trainer(model, tokenizer, tmp_path)
    trainer.evaluate(documents[:1])  # long enough for a batch of windows, and for several parts of each
    rows = [math.prod(size[:-1]) for size in sizes if size[-1] == len(tokenizer)]
    made_up = 16  # the probes of the trainer
    assert rows and max(rows) <= max(7, made_up)


@pytest.mark.parametrize("kind", CHANGES_LOGITS)
def test_a_model_that_changes_its_logits_makes_them_itself(kind, tokenizer, tmp_path):
    model = small_model(kind, len(tokenizer), **CHANGES_LOGITS[kind])
    trainer = make_trainer(model, tokenizer, tmp_path, TEXTS[:1], num_neighbors=1, max_length=16)
    assert trainer.head is None
    trainer.evaluate(TEXTS[3:4])
    chunk = encode(tokenizer, TEXTS[0])[:16]
    model.eval()
    assert trainer.records[0].train_loss[0] == pytest.approx(nll_of(model, chunk[:-1], chunk[1:]) / 15, rel=1e-5)


@pytest.mark.parametrize("kind", CHANGES_LOGITS)
def test_the_same_model_without_that_does_not(kind, tokenizer, tmp_path):
    nothing = dict.fromkeys(CHANGES_LOGITS[kind], None if kind == "gemma2" else 1.0)
    assert make_trainer(small_model(kind, len(tokenizer), **nothing), tokenizer, tmp_path).head is not None


@pytest.mark.parametrize("kind", [*CHANGES_LOGITS, "llama"])
def test_logits_before_the_targets_are_left_out(kind, tokenizer):
    model, seen = small_model(kind, len(tokenizer)), []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    (window,) = (text := ScoredText.from_text(TEXTS[0][20:60], tokenizer, 60, TEXTS[0][:20])).windows
    window = window._replace(target_ids=text.token_ids, num_known=0)
    ours = score(model, [window])
    handle.remove()
    assert seen == [len(text.token_ids)] and len(window.input_ids) > len(text.token_ids)
    assert ours.total == pytest.approx(nll_of(model, window.input_ids, text.token_ids), rel=1e-5)


@pytest.mark.parametrize("mix, reads_known", [("none", False), ("unadapted", True)])
def test_the_prompt_is_scored_only_for_a_mixture(model, tokenizer, tmp_path, documents, mix, reads_known):
    trainer, seen = make_trainer(model, tokenizer, tmp_path, mix=mix), []
    with trainer.episodes() as episodes, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tttnn.adaptation.episode.score", lambda *a, **o: seen.append(score(*a, **o)) or seen[-1])
        episodes.run(documents[0])
    assert all((len(nll.known) > 0) == reads_known and len(nll.scored) > 0 for nll in seen)


def test_a_hook_that_changes_the_logits_in_training_is_obeyed(model, tokenizer, tmp_path):
    trainer = make_trainer(model, tokenizer, tmp_path, TEXTS[:1], num_neighbors=1, max_length=16, disable_dropout=True)
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: output / 2 if module.training else None
    )
    trainer.evaluate(TEXTS[3:4])
    chunk = encode(tokenizer, TEXTS[0])[:16]
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([chunk])).logits[0, :-1] / 2
    expected = F.cross_entropy(logits, torch.tensor(chunk[1:])).item()
    assert trainer.records[0].train_loss[0] == pytest.approx(expected, rel=1e-5)


def test_a_head_with_an_adapter_is_left_to_the_model(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = CONFIGS["llama"](len(tokenizer))
    models = [
        get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(target_modules=names))
        for names in (["q_proj"], ["q_proj", "lm_head"])
    ]
    heads = [make_trainer(model, tokenizer, tmp_path).head for model in models]
    assert type(heads[0]) is torch.nn.Linear and heads[1] is None
