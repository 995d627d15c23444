"""`TestTimeGenerator`: words of the adapted model, with the prompt in context; the weights are then as before."""

import copy
from functools import partial

import pytest
import torch
from conftest import TEXTS
from transformers import GenerationConfig, StoppingCriteria, TextStreamer

from tttnn import Neighbor, TestTimeGenerator
from tttnn.adaptation import AdaptationCache
from tttnn.generation import Prompt, read_prompt
from tttnn.methods import Context, Dynamic, KnnLM, Prefix, Query, TestTimeTraining, TrainableArguments, make_trainable


WHALES = ["whale whale whale whale whale whale whale"] * 3
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"


class Stop(Exception):  # noqa: N818
    """What a client that goes away raises."""


class GoneAfter(StoppingCriteria):
    """Raises after some tokens."""

    def __init__(self, number):
        self.number = number

    def __call__(self, input_ids, scores, **kwargs):
        self.number -= 1
        if self.number < 0:
            raise Stop
        return False


def weights(model):
    return copy.deepcopy(model.state_dict())


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def greedy(model, token_ids, number):
    """The plain way."""
    inputs = torch.tensor([token_ids])
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=number, do_sample=False)
    return output[0, len(token_ids) :].tolist()


@pytest.fixture
def chatting(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def generate(make_trainer):
    """Generate with a trainer of these settings."""

    def make(prompts, *args, cache=None, neighbors=None, adapts=True, seed=0, settings=None, **options):
        generator = TestTimeGenerator(make_trainer(**(settings or {})), cache)
        options = {"max_new_tokens": 8, "do_sample": False} | options
        return generator(prompts, *args, neighbors=neighbors, adapts=adapts, seed=seed, **options)

    return make


def test_the_words_are_those_of_generate_inside_adapt(generate, make_trainer, model, tokenizer):
    prompt, trainer = "The captain", make_trainer(learning_rate=0.05)
    token_ids = tokenizer(prompt)["input_ids"]
    before = greedy(model, token_ids, 8)
    with trainer.adapt(prompt, neighbors=WHALES):
        inside = greedy(model, token_ids, 8)
    generation = generate(prompt, neighbors=WHALES, settings={"learning_rate": 0.05})
    assert inside != before, "or the test shows nothing"
    assert prompt + generation.text == tokenizer.decode([*token_ids, *inside], skip_special_tokens=True)
    assert generation.is_adapted
    assert [neighbor.text for neighbor in generation.neighbors] == WHALES
    assert greedy(model, token_ids, 8) == before


def test_without_adapting_the_words_are_those_of_the_model(generate, model, tokenizer):
    generation = generate("The captain", adapts=False)
    token_ids = tokenizer("The captain")["input_ids"]
    assert "The captain" + generation.text == tokenizer.decode([*token_ids, *greedy(model, token_ids, 8)])
    assert not generation.is_adapted
    assert generation.neighbors == []
    assert generation.seconds["train"] == 0


def test_neighbors_that_are_read_stand_before_the_prompt_nearest_last(generate, model, tokenizer):
    neighbors = [Neighbor(0, "the crew", 0.5), Neighbor(1, "white whale", 0.1)]
    generation = generate("The captain", neighbors=neighbors, settings={"method": Context()})
    crew, whale, prompt = (tokenizer(text)["input_ids"] for text in ("the crew", "white whale", "The captain"))
    token_ids = [0, *crew, 0, *whale, 0, *prompt]
    assert "The captain" + generation.text == tokenizer.decode([*prompt, *greedy(model, token_ids, 8)])
    assert generation.num_context_tokens == len(token_ids) - len(prompt)
    assert generation.num_prompt_tokens == len(prompt)
    assert generation.is_adapted


def test_neighbors_that_are_read_leave_room_for_prompt_and_new_tokens(generate, tokenizer):
    generation = generate("The captain", neighbors=[" ".join(TEXTS)], settings={"method": Context(), "max_length": 64})
    number = generation.num_context_tokens + generation.num_prompt_tokens
    assert number == 64 - 8, "the model reads 64 tokens"
    assert generation.num_new_tokens == [8]


@pytest.mark.parametrize("settings", [{"method": Prefix()}, {"method": Query()}, {"train_on": "both"}, {}])
def test_each_method_generates_and_restores(generate, model, settings):
    whole = weights(model)
    generation = generate(TEXTS[0][:20], settings=settings)
    assert generation.is_adapted == (not isinstance(settings.get("method"), Prefix))
    assert len(generation.neighbors) == (0 if "method" in settings else 4)
    assert same(weights(model), whole)


@pytest.mark.parametrize("method", [Dynamic(), KnnLM()])
def test_a_method_that_changes_only_scores_is_refused(make_trainer, method):
    with pytest.raises(ValueError, match=f"'{method.name}' changes scores, and not what the model generates"):
        TestTimeGenerator(make_trainer(method=method))


def test_a_mixture_is_said_to_have_no_part(make_trainer, caplog):
    TestTimeGenerator(make_trainer(mix="both"))
    assert "`mix` is 'both': a mixture changes scores only" in caplog.text


def test_the_same_neighbors_again_take_no_step(make_trainer):
    generator = TestTimeGenerator(make_trainer(learning_rate=0.05))
    options = {"max_new_tokens": 8, "do_sample": False, "seed": 0}
    first = generator("The captain", neighbors=WHALES, **options)
    again = generator("The captain", neighbors=WHALES, **options)
    other_prompt = generator("The crew", neighbors=WHALES, **options)
    other_neighbors = generator("The captain", neighbors=WHALES[:2], **options)
    assert [g.is_reused for g in (first, again, other_prompt, other_neighbors)] == [False, True, True, False]
    assert again.text == first.text
    assert again.record.train_loss == first.record.train_loss
    assert again.seconds["train"] == 0


def test_several_prompts_learned_at_once_are_each_as_alone(make_trainer, model):
    """Alone is the trainer's own way, with another cache; the adapters agree to 1e-5."""
    lora = make_trainable(model, TrainableArguments("lora", lora_rank=4), seed=5)
    whole = weights(lora)
    prompts = ["The captain saw the whale", "import json", "The crew was at the boats"]
    options = {"max_new_tokens": 8, "do_sample": False, "seed": 0}
    settings = {"train_on": "both", "model": lora}
    alone, together = AdaptationCache(), AdaptationCache()
    expected = TestTimeGenerator(make_trainer(**settings), alone)(prompts, **options)
    generator = TestTimeGenerator(make_trainer(batch_documents=2, **settings), together)
    generations = generator(prompts, **options)
    assert [generation.text for generation in generations] == [generation.text for generation in expected]
    for one, other in zip(generations, expected, strict=True):
        assert one.record.train_loss == pytest.approx(other.record.train_loss, abs=1e-5)
        assert one.record.query_train_loss == pytest.approx(other.record.query_train_loss, abs=1e-5)
        assert one.record.num_trained_tokens == other.record.num_trained_tokens
        assert one.is_adapted
        assert not one.is_reused
        assert 0 < one.seconds["train"] < one.seconds["total"]
    for one, other in zip(together._kept.values(), alone._kept.values(), strict=True):
        assert all(map(partial(torch.allclose, rtol=0, atol=1e-5), one.copies, other.copies))
    assert [generation.is_reused for generation in generator(prompts, **options)] == [True] * 3
    assert same(weights(lora), whole)


def test_what_cannot_be_learned_at_once_is_refused(make_trainer, model):
    with pytest.raises(ValueError, match="`batch_documents` is for methods that train LoRA"):
        make_trainer(batch_documents=2, method=Prefix())
    with pytest.raises(ValueError, match="`batch_documents` needs LoRA"):
        make_trainer().learn_ahead(["The captain"], AdaptationCache())


@pytest.mark.parametrize("train_on", ["query", "both"])
def test_what_was_learned_from_another_prompt_is_not_used_again(make_trainer, train_on):
    generator = TestTimeGenerator(make_trainer(train_on=train_on))
    prompts = ["The captain saw the whale", "The crew was at the boats", "The captain saw the whale"]
    generations = generator(prompts, max_new_tokens=2, seed=0)
    assert [generation.is_reused for generation in generations] == [False, False, True]


def test_what_a_model_learned_is_not_used_for_another(make_trainer, model):
    generator = TestTimeGenerator(make_trainer())
    generator("The captain", max_new_tokens=2)
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
    assert not generator("The captain", max_new_tokens=2).is_reused


def test_the_cache_keeps_what_was_used_last(make_trainer, model):
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    size += sum(tensor.numel() * tensor.element_size() for tensor in model.buffers())
    cache = AdaptationCache(max_bytes=2 * size)
    generator = TestTimeGenerator(make_trainer(), cache)

    def is_reused(number):
        return generator("The captain", neighbors=[TEXTS[number]], max_new_tokens=1).is_reused

    assert [is_reused(number) for number in (0, 1, 0, 2, 0, 1)] == [False, False, True, False, True, False]
    assert len(cache) == 2
    assert cache.num_bytes <= 2 * size
    cache.clear()
    assert cache.num_bytes == 0


def test_an_adaptation_that_is_too_large_is_not_kept(make_trainer, caplog):
    cache = AdaptationCache(max_bytes=1000)
    TestTimeGenerator(make_trainer(), cache)("The captain", max_new_tokens=1)
    assert len(cache) == 0
    assert "none is kept" in caplog.text
    with pytest.raises(ValueError, match="`max_bytes` is 0"):
        AdaptationCache(0)


@pytest.mark.parametrize("number", [0, 3])
def test_the_model_is_restored_when_generating_is_interrupted(generate, model, number):
    whole = weights(model)
    with pytest.raises(Stop):
        generate("The captain", stopping_criteria=[GoneAfter(number)])
    assert same(weights(model), whole)
    assert generate("The captain").is_adapted, "and it can go on"


def test_a_batch_is_its_prompts_one_by_one(generate):
    prompts = ["The captain", "def parse_args("]
    assert [g.text for g in generate(prompts)] == [generate(prompt).text for prompt in prompts]


def test_sampling_follows_its_seed_alone(make_trainer):
    generator = TestTimeGenerator(make_trainer())

    def sampled(seed, around):
        torch.manual_seed(around)
        return generator("The", seed=seed, do_sample=True, max_new_tokens=12).text

    assert sampled(1, 0) == sampled(1, 5)
    assert sampled(1, 0) != sampled(2, 0)
    assert sampled(None, 0) == sampled(None, 0) != sampled(None, 1)


def test_an_error_of_the_callers_own_code_is_theirs(generate, tokenizer):
    class Closed(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            raise ValueError("I/O operation on closed file")

    with pytest.raises(ValueError, match="^I/O operation on closed file$"):
        generate("The captain", streamer=Closed(tokenizer))
    with pytest.raises(ValueError, match="The options of the generation cannot be: .*not used by the model"):
        generate("The captain", nosuch=3)


def test_tokens_need_a_text_only_where_neighbors_are_found_by_it(generate):
    tokens = Prompt("", [0, 70, 80])
    with pytest.raises(ValueError, match="has no text, and its neighbors are found by it"):
        generate(tokens)
    assert generate(tokens, adapts=False).num_prompt_tokens == 3
    assert generate(tokens, query="The whale").is_adapted


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_that_the_model_does_not_have_is_refused(generate, token):
    with pytest.raises(ValueError, match=f"{token} is no token of the model, which has 0 to 399"):
        generate(Prompt("The captain", [0, token]))


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_that_numpy_does_not_take_is_refused(generate, seed):
    with pytest.raises(ValueError, match=f"`seed` is {seed}. Pass 0 to 4294967295"):
        generate("The captain", seed=seed)


def test_texts_end_at_strings_of_the_config(generate):
    whole = generate("The captain", max_new_tokens=12).text
    end = whole[3:5]
    text = generate("The captain", max_new_tokens=12, stop_strings=[end]).text
    assert end in text and len(text) < len(whole)


def test_two_samples_without_a_seed_differ(make_trainer):
    generator = TestTimeGenerator(make_trainer())
    first, second = (generator("The", do_sample=True, max_new_tokens=12) for _ in range(2))
    assert first.seed != second.seed
    assert first.text != second.text


def test_the_generation_config_is_honored(generate, model, tokenizer):
    config = GenerationConfig(max_new_tokens=5, do_sample=False, num_return_sequences=2, num_beams=2)
    generation = generate("The captain", config, max_new_tokens=6)
    assert len(generation.texts) == 2, "two beams"
    assert generation.num_new_tokens == [6, 6], "an option overrides the config"
    assert config.max_new_tokens == 5, "which stays as it was"
    assert generation.text == generation.texts[0]


def test_an_end_of_text_ends_the_text(generate, model):
    # all logits but that of the end are pushed down
    bias = [([token], -100.0) for token in range(1, model.config.vocab_size)]
    generation = generate("The captain", adapts=False, sequence_bias=bias)
    assert generation.finish_reasons == ["stop"]
    assert generation.num_new_tokens == [1]
    assert generation.text == ""
    assert generate("The captain", adapts=False, sequence_bias=[([0], -100.0)]).finish_reasons == ["length"]


def test_tokens_are_streamed_as_they_come(generate, tokenizer, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    generation = generate("The captain", streamer=streamer)
    assert capsys.readouterr().out.strip() == generation.text.strip()


def test_the_neighbors_of_a_chat_are_those_of_its_last_user_message(make_trainer, chatting, retriever):
    messages = [
        {"role": "user", "content": "def load(path):"},
        {"role": "assistant", "content": "json"},
        {"role": "user", "content": [{"type": "text", "text": "the white "}, {"type": "text", "text": "whale"}]},
    ]
    generation = TestTimeGenerator(make_trainer(processing_class=chatting))(messages, max_new_tokens=2)
    (expected,) = retriever.retrieve(["the white whale"], top_k=4)
    assert [neighbor.id for neighbor in generation.neighbors] == [neighbor.id for neighbor in expected]
    laid_out = "<user>def load(path):\n<assistant>json\n<user>the white whale\n<assistant>"
    assert read_prompt(chatting, messages).token_ids == chatting(laid_out)["input_ids"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "The prompt is empty"),
        (" \n", "The prompt is empty"),
        ([], "There is no prompt"),
        ([{"role": "system", "content": "x"}], "no message of the user"),
        ([{"role": "user", "content": " "}], "no message of the user"),
        ([{"role": "user"}], "Give each a `role` and a `content`"),
        ([{"content": "x"}], "Give each a `role` and a `content`"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of the type 'image_url'"),
        (" ".join(TEXTS), "The prompt has .* tokens, and the model reads 64"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(make_trainer, chatting, model, prompt, message):
    whole = weights(model)
    with pytest.raises(ValueError, match=message):
        TestTimeGenerator(make_trainer(processing_class=chatting))(prompt)
    assert same(weights(model), whole)


@pytest.mark.parametrize("prompt", [5, [5], [["x"]], None])
def test_what_is_no_prompt_is_refused(make_trainer, chatting, prompt):
    with pytest.raises((TypeError, ValueError), match="must be a text or a list of messages|There is no prompt"):
        TestTimeGenerator(make_trainer(processing_class=chatting))(prompt)


def test_a_chat_without_a_template_is_refused(generate):
    with pytest.raises(ValueError, match="has no chat template"):
        generate([{"role": "user", "content": "x"}])


def test_a_template_that_refuses_a_chat_says_why(make_trainer, chatting):
    chatting.chat_template = "{{ raise_exception('No system message here.') }}"
    with pytest.raises(ValueError, match="refuses these messages: No system message here"):
        read_prompt(chatting, [{"role": "user", "content": "x"}])


def test_too_many_new_tokens_are_cut_to_the_context(generate, caplog):
    generation = generate("The captain", max_new_tokens=500, sequence_bias=[([0], -100.0)])
    assert generation.num_new_tokens == [64 - generation.num_prompt_tokens]
    assert "At most" in caplog.text


def test_less_than_one_new_token_is_refused(generate):
    with pytest.raises(ValueError, match="At most -?[0-9]+ new tokens|At most -?[0-9]+ tokens would|cannot be"):
        generate("The captain", max_new_tokens=0)


def test_a_prompt_without_a_neighbor_is_said_to_be_not_adapted(generate, caplog):
    generation = generate("The captain", settings={"max_distance": 1e-9})
    assert not generation.is_adapted
    assert generation.record.status == "untrained"
    assert "could not be adapted to" in caplog.text
    assert generation.text == generate("The captain", adapts=False).text


def test_a_fresh_adapter_is_the_model_as_it_is(make_trainer, model):
    trainable = TrainableArguments("lora", lora_rank=2)
    trainer = make_trainer(
        model=make_trainable(model, trainable), method=TestTimeTraining(trainable), learning_rate=0.05
    )
    generator = TestTimeGenerator(trainer)
    options = {"max_new_tokens": 8, "do_sample": False, "neighbors": WHALES}
    base, adapted = generator("The", adapts=False, **options), generator("The", **options)
    assert adapted.text != base.text
    assert generator("The", adapts=False, **options).text == base.text
    assert generator.cache.num_bytes < 100_000, "of an adapter only"
