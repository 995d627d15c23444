"""Scores equal those of lm-evaluation-harness, and follow by hand where a model is known."""

import copy
import math

import pytest
import torch
from conftest import CONFIGS, TEXTS
from lm_eval.api import metrics as harness_metrics
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tttnn.adaptation.scoring import ScoredText, score
from tttnn.records import DocumentRecord, summarize


TOLERANCE = 1e-5  # relative, on the nll
L = 16

ODD_TEXTS = {
    "empty": "",
    "one token": "a",
    "one space": " ",
    "white space": " \n\t \r\n  \v\f",
    "NUL": "\0",
    "NUL inside": "the whale\0\0the crew",
    "exactly L": " whale" * L,
    "L + 1": " whale" * (L + 1),
    "L - 1": " whale" * (L - 1),
    "2 L": " whale" * (2 * L),
    "2 L + 1": " whale" * (2 * L + 1),
    "many windows": TEXTS[2] * 9,
    "multi-byte": "Größe, naïve café, 東京, Ελλάδα, 🐋🐳",
    "combining": "e\u0301 \u200b\u200d\ufeff \u202e abc",
    "Unicode spaces": "a\u00a0b\u3000c\u2028d\x1ce",
    "a special token": "the whale<|endoftext|>the crew",
    "a special token first": "<|endoftext|>the crew",
    "a special token last": "the crew<|endoftext|>",
    "code": TEXTS[0],
    "no space": "x" * 300,
}


def scored(model, tokenizer, text, max_length=L, batch_size=1):
    return score(model, ScoredText.from_text(text, tokenizer, max_length).windows, batch_size).total


def harness_nll(model, tokenizer, texts, max_length=L, **arguments):
    """The harness's own rolling log-likelihood, from copies, as it changes what it is given."""
    harness = HFLM(
        pretrained=copy.deepcopy(model),
        tokenizer=copy.deepcopy(tokenizer),
        max_length=max_length,
        batch_size=1,
        **arguments,
    )
    requests = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(texts)]
    return [-float(value) for value in harness.loglikelihood_rolling(requests, disable_tqdm=True)]


def other_tokenizer(tokenizer, post_processor=None, **tokens):
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    if post_processor is not None:
        special_tokens = [(token, made.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=post_processor, special_tokens=special_tokens
        )
    return made


def sharp_model(name, size):
    """A tiny model whose weights are large enough to tell tokens and positions apart."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=list(CONFIGS))
def sharp(request, tokenizer):
    return sharp_model(request.param, len(tokenizer))


@pytest.mark.parametrize("max_length", [4, L, 64])
def test_the_score_is_that_of_lm_evaluation_harness(sharp, tokenizer, max_length):
    found = {name: scored(sharp, tokenizer, text, max_length) for name, text in ODD_TEXTS.items()}
    theirs = harness_nll(sharp, tokenizer, ODD_TEXTS.values(), max_length)
    assert found == pytest.approx(dict(zip(ODD_TEXTS, theirs, strict=True)), rel=TOLERANCE)
    # the windows matter: half as long, they give another score
    text = ODD_TEXTS["many windows"]
    assert abs(scored(sharp, tokenizer, text, max_length // 2) / found["many windows"] - 1) > 10 * TOLERANCE


def test_the_score_is_that_of_the_harness_for_every_length_around_the_windows(tokenizer):
    model = sharp_model("llama", len(tokenizer))
    texts = [" whale" * count for count in range(4 * 5 + 2)]
    found = [scored(model, tokenizer, text, 5) for text in texts]
    assert found == pytest.approx(harness_nll(model, tokenizer, texts, 5), rel=TOLERANCE)
    assert found[0] == 0.0


@pytest.mark.parametrize(
    ("tokens", "prefix"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, "<s>"),
        ({"eos_token": "</s>"}, "</s>"),
        ({"bos_token": "<s>"}, "<s>"),
    ],
    ids=["BOS and EOS", "EOS only", "BOS only"],
)
def test_the_score_begins_with_bos_or_else_eos_as_in_the_harness(tokenizer, tokens, prefix):
    other = other_tokenizer(tokenizer, **tokens)
    other.add_special_tokens({"pad_token": "<pad>"})
    model = sharp_model("llama", len(other) + 2)
    texts = [*TEXTS[:3], "a", "", " whale" * (L + 1)]
    found = [scored(model, other, text) for text in texts]
    assert found == pytest.approx(harness_nll(model, other, texts), rel=TOLERANCE)
    ids = torch.tensor([[other.convert_tokens_to_ids(prefix)]])
    log_probabilities = model(ids).logits[0, 0].log_softmax(-1)
    assert found[3] == pytest.approx(-log_probabilities[other.convert_tokens_to_ids("a")].item(), rel=TOLERANCE)


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
def test_special_tokens_that_a_tokenizer_adds_are_not_scored(tokenizer, template):
    """The harness scores a BOS that the tokenizer adds by itself, unless it is told `add_bos_token=False`."""
    adding = other_tokenizer(tokenizer, template, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    model = sharp_model("llama", len(adding))
    texts = [*TEXTS[:3], "a", "", "<s>", "<s>a", " whale" * (L + 1)]
    found = [scored(model, adding, text) for text in texts]
    assert found == pytest.approx(harness_nll(model, adding, texts, add_bos_token=False), rel=TOLERANCE)
    assert found[:3] != pytest.approx(harness_nll(model, adding, texts[:3]), rel=100 * TOLERANCE)


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_windows_scored_together_score_as_one_by_one(sharp, tokenizer, batch_size):
    for text in ODD_TEXTS.values():
        assert scored(sharp, tokenizer, text, L, batch_size) == pytest.approx(
            scored(sharp, tokenizer, text), rel=TOLERANCE
        )


def test_a_batch_holds_no_more_windows_than_asked_for(tokenizer):
    model = sharp_model("gpt2", len(tokenizer))
    sizes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    # ten windows: in the last one, of one new token, the model still reads L tokens
    scored(model, tokenizer, " whale" * (9 * L + 1), L, 4)
    assert sizes == [4, 4, 2]


def test_a_model_that_knows_nothing_scores_the_logarithm_of_its_vocabulary(tokenizer, model):
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    assert scored(model, tokenizer, " whale" * 50) == pytest.approx(50 * math.log(len(tokenizer)), rel=1e-6)


def test_a_score_is_without_dropout_and_without_gradients(tokenizer, model):
    expected = scored(model, tokenizer, TEXTS[0])
    model.train()
    assert scored(model, tokenizer, TEXTS[0]) == scored(model, tokenizer, TEXTS[0]) == expected
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_with_adapters_scores_as_the_model_that_they_are_merged_into(tokenizer):
    torch.manual_seed(2)
    config = LoraConfig(
        r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    bare = sharp_model("llama", len(tokenizer))
    wrapped = get_peft_model(copy.deepcopy(bare), config)
    found = [scored(wrapped, tokenizer, text) for text in TEXTS]
    assert found != pytest.approx([scored(bare, tokenizer, text) for text in TEXTS], rel=100 * TOLERANCE)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    assert found == pytest.approx(harness_nll(merged, tokenizer, TEXTS), rel=TOLERANCE)


def test_a_low_precision_model_is_summed_in_high_precision(tokenizer):
    """A bfloat16 sum over many tokens would stall; only the logits are of the model's precision."""
    model = sharp_model("llama", len(tokenizer)).to(torch.bfloat16)
    text = " ".join(TEXTS) * 3
    nll = 0.0
    for window in ScoredText.from_text(text, tokenizer, L).windows:
        with torch.no_grad():
            logits = model(torch.tensor([window.input_ids])).logits[0, -len(window.target_ids) :]
        log_probabilities = logits.double().log_softmax(-1)
        nll -= sum(row[target].item() for row, target in zip(log_probabilities, window.target_ids, strict=True))
    assert scored(model, tokenizer, text) == pytest.approx(nll, rel=1e-6)


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_bytes_and_words_are_counted_as_in_the_harness(tokenizer, text):
    counted = ScoredText.from_text(text, tokenizer, L)
    assert counted.num_bytes == ConfigurableTask.count_bytes(text)
    assert counted.num_words == ConfigurableTask.count_words(text)


@pytest.mark.parametrize(
    ("text", "num_bytes", "num_words"),
    [
        ("", 0, 1),
        ("two words", 9, 2),
        (" edges count ", 13, 4),
        ("Größe 東京", 14, 2),
        ("\0", 1, 1),
        ("a\u3000b", 5, 2),
    ],
)
def test_bytes_and_words_by_hand(tokenizer, text, num_bytes, num_words):
    counted = ScoredText.from_text(text, tokenizer, L)
    assert (counted.num_bytes, counted.num_words) == (num_bytes, num_words)


def test_pooled_metrics_are_the_aggregations_of_the_harness(tokenizer):
    model = sharp_model("gpt2", len(tokenizer))
    texts = [*TEXTS, "", " ", "Größe"]
    log_likelihoods = [-nll for nll in harness_nll(model, tokenizer, texts)]
    records = []
    for index, text in enumerate(texts):
        ready = ScoredText.from_text(text, tokenizer, L)
        before = 1.25 * score(model, ready.windows).total
        nll = [before, score(model, ready.windows).total]
        records.append(DocumentRecord(index, "", "", {}, ready.num_bytes, ready.num_words, nll=nll))
    by_bytes = [(ll, len(text.encode())) for ll, text in zip(log_likelihoods, texts, strict=True)]
    by_words = [(ll, ConfigurableTask.count_words(text)) for ll, text in zip(log_likelihoods, texts, strict=True)]
    found = summarize(records)
    assert found["bits_per_byte"] == pytest.approx(harness_metrics.bits_per_byte(by_bytes), rel=TOLERANCE)
    assert found["byte_perplexity"] == pytest.approx(harness_metrics.weighted_perplexity(by_bytes), rel=TOLERANCE)
    assert math.log(found["word_perplexity"]) == pytest.approx(
        math.log(harness_metrics.weighted_perplexity(by_words)), rel=TOLERANCE
    )
    assert found["bits_per_byte_before"] == pytest.approx(1.25 * found["bits_per_byte"], rel=TOLERANCE)
    assert found["bits_per_byte_ratio"] == pytest.approx(0.8, rel=TOLERANCE)


def test_an_untrained_document_scores_in_the_trainer_as_in_the_harness(make_trainer, tiny_models, tokenizer):
    """From the document to the metric: with no neighbor the trainer is a plain evaluation."""

    class NoNeighbors:
        def retrieve(self, texts, top_k):
            return [[] for _ in texts]

    texts = [*TEXTS, ODD_TEXTS["many windows"]]
    trainer = make_trainer(retriever=NoNeighbors(), query="document")
    metrics = trainer.evaluate(texts)
    theirs = harness_nll(tiny_models["gpt2"], tokenizer, texts, 32)
    assert [record.nll for record in trainer.records] == [pytest.approx([nll], rel=TOLERANCE) for nll in theirs]
    items = [(-nll, len(text.encode())) for nll, text in zip(theirs, texts, strict=True)]
    assert metrics["eval_bits_per_byte"] == pytest.approx(harness_metrics.bits_per_byte(items), rel=TOLERANCE)
    assert metrics["eval_bits_per_byte_before"] == metrics["eval_bits_per_byte"]
