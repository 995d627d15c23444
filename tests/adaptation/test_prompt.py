"""What stands before the scored text: windows with the prompt in context, and what reads them."""

import pytest
import torch
from conftest import TEXTS
from transformers import LlamaConfig, LlamaForCausalLM

from tttnn.adaptation import ScoredText, TestTimeTrainingArguments, lay_out_context, score, scoring_windows
from tttnn.adaptation.requirements import reads_in_parts
from tttnn.adaptation.windows import encode, encode_after, split_document
from tttnn.methods import METHODS, Context, ContextArguments, Dynamic, Prefix, Query


def nll_of(model, token_ids, number):
    """Nats of the last `number` tokens, each given all before it, in one forward pass without a cache."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([token_ids[:-1]]), use_cache=False).logits[0]
    chosen = logits.log_softmax(-1)[torch.arange(len(token_ids) - 1), torch.tensor(token_ids[1:])]
    return -chosen[-number:].double().sum().item()


def test_the_first_window_holds_the_prompt_and_fills_up_with_the_text():
    window, second = scoring_windows([5, 6, 7, 8], 0, 5, [1, 2], stride=2)
    assert window == ([0, 1, 2, 5, 6], [1, 2, 5, 6, 7], 2)
    assert second == ([1, 2, 5, 6, 7], [8], 0)


def test_a_prompt_that_leaves_less_than_a_stride_keeps_its_last_tokens():
    windows = scoring_windows([7, 8, 9], 0, 4, [1, 2, 3, 4, 5], stride=2)
    assert windows == [([3, 4, 5, 7], [4, 5, 7, 8], 2), ([4, 5, 7, 8], [9], 0)]


@pytest.mark.parametrize("num_prompt", [0, 1, 5, 30])
@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 8, 9, 40])
def test_each_token_is_predicted_once_after_what_stands_before_it(num_prompt, stride, num_tokens):
    tokens, prompt = list(range(100, 100 + num_tokens)), list(range(1, num_prompt + 1))
    sequence = [0, *prompt, *tokens]
    windows = scoring_windows(tokens, 0, 8, prompt, stride)
    assert [token for window in windows for token in window.target_ids[window.num_known :]] == tokens
    for window in windows:
        end = sequence.index(window.target_ids[-1])
        assert window.input_ids == sequence[end - len(window.input_ids) : end]
        assert len(window.input_ids) <= 8


@pytest.mark.parametrize("model", ["gpt2", "llama", "gpt_neo"], indirect=True)
def test_the_score_is_that_of_the_rest_after_the_prompt(model, tokenizer):
    text, prompt = "def load(path):\n    return 1\n", "import json\n"
    ready = ScoredText.from_text(text, tokenizer, 64, prompt)
    whole = [ready.prefix_id, *ready.prompt_ids, *ready.token_ids]
    assert score(model, ready.windows).total == pytest.approx(nll_of(model, whole, len(ready.token_ids)), abs=1e-4)


@pytest.mark.parametrize("model", ["gpt2", "llama", "gpt_neo"], indirect=True)
def test_reading_in_parts_gives_the_score_of_reading_at_once(model, tokenizer, monkeypatch):
    assert reads_in_parts(model, tokenizer)
    ready = ScoredText.from_text("def load(path):\n    return 1\n", tokenizer, 64, "import json\n")
    at_once = score(model, ready.windows, context=[0, 5, 6, 7, 8])
    monkeypatch.setattr("tttnn.adaptation.scoring.READ_LENGTH", 3)
    in_parts = score(model, ready.windows, context=[0, 5, 6, 7, 8], in_parts=True)
    assert in_parts.scored == pytest.approx(at_once.scored, abs=1e-5)
    assert in_parts.known == pytest.approx(at_once.known, abs=1e-5)


def test_the_baseline_is_the_score_before_of_every_method(make_trainer, documents):
    trained, baseline = make_trainer(), make_trainer(method=Prefix(), retriever=None)
    trained.evaluate(documents)
    baseline.evaluate(documents)
    for one, other in zip(trained.records, baseline.records, strict=True):
        assert other.nll == one.nll[:1]


def test_steps_on_the_query_need_no_neighbors_and_change_the_score(make_trainer, documents):
    trainer = make_trainer(method=Query(), retriever=None)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.evaluate(documents)
    for record in trainer.records:
        assert record.nll[0] != record.nll[1] and record.query_train_loss and not record.train_loss
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_steps_on_both_end_with_the_query(make_trainer, documents):
    one, both = (make_trainer(train_on=name, score_every_neighbor=True) for name in ("neighbors", "both"))
    one.evaluate(documents)
    both.evaluate(documents)
    for alone, record in zip(one.records, both.records, strict=True):
        assert record.nll[:-1] == pytest.approx(alone.nll, rel=1e-6)
        assert record.train_loss == alone.train_loss and record.query_train_loss


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_dynamic_evaluation_without_a_step_is_the_baseline(make_trainer, documents, accumulated):
    options = {"learning_rate": 0.0, "weight_decay": 0.0, "max_length": 4, "gradient_accumulation_steps": accumulated}
    trainer = make_trainer(method=Dynamic(), retriever=None, **options)
    trainer.evaluate(documents)
    for record in trainer.records:
        assert record.status == "trained"
        assert record.nll[1] == pytest.approx(record.nll[0], rel=1e-5)


def test_dynamic_evaluation_scores_each_token_in_a_window_shorter_than_a_chunk(make_trainer, documents):
    options = {"learning_rate": 0.0, "weight_decay": 0.0, "max_length": 32, "window_length": 8, "stride": 8}
    trainer = make_trainer(method=Dynamic(), retriever=None, **options)
    trainer.evaluate(documents)
    for record in trainer.records:
        assert record.nll[1] == pytest.approx(record.nll[0], rel=0.2)  # other windows, the same tokens


def test_a_context_that_fills_the_window_is_refused(make_trainer):
    with pytest.raises(ValueError, match="`context_length` is 20 tokens, and 16 are read at once"):
        make_trainer(method=Context(context=ContextArguments(20)), window_length=16)


def test_neighbors_and_a_long_text_share_the_window(make_trainer, documents, tokenizer):
    trainer = make_trainer(method=Context(), window_length=24)
    trainer.evaluate(documents)
    for record, document in zip(trainer.records, documents, strict=True):
        query, text = split_document(tokenizer, document, "prefix")
        assert record.num_scored_tokens == 2 * len(encode_after(tokenizer, query, text)[1])


def test_neighbors_are_parted_from_a_prompt_that_lost_its_beginning(make_trainer, tokenizer):
    document = TEXTS[2] * 2
    trainer = make_trainer(method=Context())
    trainer.evaluate([document])
    query, text = split_document(tokenizer, document, "prefix")
    prompt_ids, token_ids = encode_after(tokenizer, query, text)
    neighbors = trainer.retriever.retrieve([query], 4)[0]
    context = lay_out_context([encode(tokenizer, neighbor.text)[:32] for neighbor in neighbors], 0, 32)
    length = 64 - len(context) - 1  # the token that parts
    sequence, stride, nll = [0, *prompt_ids, *token_ids], length // 2, 0.0
    for start in range(len(prompt_ids), len(sequence) - 1, stride):
        end = min(start + stride, len(sequence) - 1)
        assert end > length, "no window begins with the document"
        nll += nll_of(trainer.model, [*context, 0, *sequence[end - length : end + 1]], end - start)
    assert trainer.records[0].nll[1] == pytest.approx(nll, rel=1e-5)


def test_longrope_is_not_read_in_parts(tokenizer):
    """Beyond the original length a part would be read with other positions than the whole."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, rope_parameters=rope, **sizes)
    torch.manual_seed(0)
    assert not reads_in_parts(LlamaForCausalLM(config), tokenizer)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    assert reads_in_parts(LlamaForCausalLM(config), tokenizer)


@pytest.mark.parametrize(("method", "train_on"), [("query", "neighbors"), ("ttt", "query"), ("context+ttt", "query")])
def test_a_document_of_one_token_has_no_query_to_train_on(make_trainer, method, train_on):
    trainer = make_trainer(method=METHODS[method](), train_on=train_on)
    trainer.evaluate(["a"])
    assert trainer.records[0].num_trained_tokens == 0
    assert trainer.records[0].status == "untrained"
    assert "the query is empty" in trainer.records[0].error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "context", "query": "document"}, "nothing of it stands before"),
        ({"prompt": "none", "stride": 4}, "`stride` is 4"),
        ({"prompt": "none", "window_length": 4}, "`window_length` is 4"),
        ({"train_on": "both", "query": "document"}, "`train_on` is 'both'"),
        ({"prompt": "some"}, "`prompt` is 'some'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TestTimeTrainingArguments(**options)


def test_a_window_longer_than_the_context_is_refused(make_trainer):
    with pytest.raises(ValueError, match="`window_length` is 65, and the model reads 64 tokens at once"):
        make_trainer(window_length=65)
    assert make_trainer(window_length=64).window_length == 64


def test_the_whole_document_as_a_query_and_the_preset_have_no_prompt():
    assert TestTimeTrainingArguments(query="document").prompt == "none"
    assert TestTimeTrainingArguments.from_preset("tttlm", query="prefix").prompt == "none"
    assert TestTimeTrainingArguments().prompt == "context"


def test_a_stride_beyond_the_window_is_refused(make_trainer):
    with pytest.raises(ValueError, match="`stride` is 65, but a window has 64 tokens"):
        make_trainer(stride=65)
