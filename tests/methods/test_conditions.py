"""
The four conditions of an honest score, for each method of `METHODS`, each mixture and both settings of the prompt.

A score depends on earlier text only; every prediction is a normalized distribution; a token is scored before it is
trained on or read as context; each token is scored once. A method that is new in `METHODS` is tested by itself. Each
condition also has a method that breaks it on purpose, and that must be caught.
"""

import math
from time import perf_counter

import numpy as np
import pytest
import torch
from conftest import GivenRetriever
from made_experts import made_experts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation import Episode, Method, TokenNll
from tttnn.adaptation.options import MIXES, PROMPTS
from tttnn.errors import InputError
from tttnn.methods import METHODS, ExpertArguments, make_trainable


WORDS = ["<|endoftext|>", *"abcdefghijo"]  # each is one token; a sum over all takes an episode for each
QUERY = "a b a c a d"
TEXT = "e f g h i j"  # as long as the query, each word once, and none of them elsewhere
NEIGHBORS = ["a b a c a d", "o d a b a c"]  # the same ones, whatever the text is
PLACES = [0, 3, 5]  # the first, middle and last word of the text
WINDOW, CHUNK, STRIDE = 9, 4, 2  # tokens; the text has several windows


@pytest.fixture(scope="module")
def tokenizer():
    model = WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0])
    whole = Tokenizer(model)
    whole.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token=WORDS[0], eos_token=WORDS[0])


class VectorRetriever(GivenRetriever):
    """Also gives vectors, from which methods with experts choose; the query's is that of the second expert."""

    def vectors(self, query, neighbors):
        return np.float32([0, 1]), np.zeros((len(neighbors), 2), np.float32)

    def describe(self):
        return {"index": "given"}


def tiny_model():
    torch.manual_seed(0)
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.4}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, **sizes))


def method_of(name, folder):
    """Make a method of `METHODS`, in the last of its settings; one with experts gets random ones."""
    own = {}
    if METHODS[name].own_options.get("experts") is ExpertArguments:
        own["experts"] = ExpertArguments(str(made_experts(folder / "experts", tiny_model(), "given", 2)), 2)
    return METHODS[name](**own).candidates()[-1]


class Run:
    """A trainer that keeps the score of each token, and every forward pass that its model makes."""

    def __init__(self, method, tokenizer, folder, monkeypatch, mix="none", prompt="context"):
        args = TestTimeTrainingArguments(
            output_dir=str(folder),
            mix=mix,
            prompt=prompt,
            num_neighbors=len(NEIGHBORS),
            max_length=CHUNK,
            **({"window_length": WINDOW, "stride": STRIDE} if prompt == "context" else {}),
            learning_rate=3e-2,
            use_cpu=True,
            disable_tqdm=True,
        )
        self.trainer = TestTimeTrainer(
            model=tiny_model() if method.trainable is None else make_trainable(tiny_model(), method.trainable),
            args=args,
            method=method,
            retriever=VectorRetriever(NEIGHBORS),
            processing_class=tokenizer,
        )
        self.tokenizer = tokenizer
        self.events = []
        self.trainer.model.register_forward_pre_hook(self._note_pass, with_kwargs=True)
        monkeypatch.setattr("tttnn.adaptation.episodes.Episode", self._make_episode)

    def _note_pass(self, module, args, kwargs):
        kind = "train" if torch.is_grad_enabled() else "read"
        self.events += [(kind, row) for row in kwargs["input_ids"].tolist()]

    def _make_episode(self, *args):
        self.episode, add_score = Episode(*args), Episode.add_score

        def noted(*args):
            self.events.append(("score", []))
            add_score(self.episode, *args)

        self.episode.add_score = noted
        return self.episode

    def record(self, text=TEXT):
        self.events.clear()
        with self.trainer.episodes() as episodes:
            record = episodes.run(f"{QUERY} {text}")
        assert self.episode.text.split() == text.split()
        return record

    def token_scores(self, text=TEXT):
        """The nll of each token, as the last entry of the record adds them up."""
        record = self.record(text)
        scores = self.episode.mixed(self.episode.token_nll).scored
        assert len(scores) == len(text.split())
        assert record.nll[-1] == pytest.approx(math.fsum(scores))
        return scores


def with_word(place, word):
    words = TEXT.split()
    words[place] = word
    return " ".join(words)


# the conditions


def check_that_a_score_depends_on_earlier_text_only(run):
    scores = run.token_scores()
    for place in PLACES:
        flipped = run.token_scores(with_word(place, "o"))
        assert flipped[:place] == pytest.approx(scores[:place], abs=1e-5), f"a score before word {place} changed"
        assert flipped[place] != pytest.approx(scores[place], abs=1e-5)


def check_that_predictions_are_normalized(run):
    # the first word has no earlier text, and the last one has windows, steps and weights of the mixture behind it
    for place in (PLACES[0], PLACES[-1]):
        probabilities = [math.exp(-run.token_scores(with_word(place, word))[place]) for word in WORDS]
        assert math.fsum(probabilities) == pytest.approx(1, abs=1e-5), f"the predictions of word {place}"


def check_that_tokens_are_scored_before_they_are_used(run):
    run.record()
    text = run.tokenizer(TEXT)["input_ids"]
    num_scored = 0
    for kind, input_ids in run.events:
        used = [place for place, token in enumerate(input_ids) if token in text]
        if kind == "score":
            num_scored = 0  # for the next entry every token is unknown again
        elif kind == "train":
            assert {input_ids[place] for place in used} <= set(text[:num_scored]), f"trained on too early: {input_ids}"
        elif used:
            first = text.index(input_ids[used[0]])
            end = first + len(input_ids) - used[0]
            # a window ends with a piece of the text, which begins with its first word or after one that is scored
            assert input_ids[used[0] :] == text[first:end], f"the text is read as context: {input_ids}"
            assert first == 0 or first < num_scored, f"read before it is scored: {input_ids}"
            num_scored = max(num_scored, end + 1)


def check_that_each_token_is_scored_once(run):
    text = run.tokenizer(TEXT)["input_ids"]
    first = run.record()
    num_read, entries = 0, []  # how many tokens of the text are predicted, for this entry and for those before
    for kind, input_ids in run.events:
        if kind == "score":
            entries.append(num_read)
            num_read = 0
        elif kind == "read" and input_ids[-1] in text:
            num_known = num_read
            num_read = text.index(input_ids[-1]) + 2  # the word after the last one that is read is predicted too
            assert num_read > num_known, f"a second pass over the text: {input_ids}"
    assert entries[0] == len(text)
    # an entry that mixes the score before needs no pass over the text
    assert set(entries) <= {0, len(text)}
    assert first.num_scored_tokens == len(entries) * len(text)
    second = run.record()
    assert second.nll == first.nll


CONDITIONS = [
    check_that_a_score_depends_on_earlier_text_only,
    check_that_predictions_are_normalized,
    check_that_tokens_are_scored_before_they_are_used,
    check_that_each_token_is_scored_once,
]


@pytest.mark.parametrize("check", CONDITIONS, ids=lambda check: check.__name__.removeprefix("check_that_"))
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_condition(check, prompt, mix, name, tokenizer, tmp_path, monkeypatch):
    try:
        run = Run(method_of(name, tmp_path), tokenizer, tmp_path, monkeypatch, mix, prompt)
    except InputError as error:
        if (mix, prompt) == (MIXES[0], PROMPTS[0]):
            raise
        pytest.skip(f"the method refuses this setting: {error}")
    check(run)


# methods that cheat


class TrainsOnTheText(Method):
    """Takes steps on the text, and then scores it."""

    name, description, retrieves = "trains-on-the-text", "", False

    def score_after(self, episode):
        for _ in episode.train_on([[episode.scored_text.token_ids]]):
            episode.score()


class IsTooSure(Method):
    """Says that every word is a little more likely than it is, as a mixture with too large weights does."""

    name, description, retrieves, trains = "is-too-sure", "", False, False

    def score_adapted(self, episode):
        known, scored = episode.token_nll
        episode.add_score(TokenNll(known, scored - 0.01), perf_counter())


class ReadsTheText(Method):
    """Scores the text after it has read it, as a neighbor is read."""

    name, description, retrieves, trains = "reads-the-text", "", False, False

    def score_adapted(self, episode):
        text = episode.scored_text
        context = [text.prefix_id, *text.token_ids, text.prefix_id]
        episode.add_score(episode.read(text.windows, context), perf_counter())


class ScoresTwice(Method):
    """Trains on a text that is scored by then, and gives the score of a second pass."""

    name, description, retrieves = "scores-twice", "", False

    def score_after(self, episode):
        episode.read(episode.scored_text.windows)
        for _ in episode.train_on([[episode.scored_text.token_ids]]):
            episode.score()


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    ("check", "cheat", "message"),
    [
        (CONDITIONS[0], TrainsOnTheText, "a score before word 3 changed"),
        (CONDITIONS[1], IsTooSure, "the predictions of word 0"),
        (CONDITIONS[2], TrainsOnTheText, "trained on too early"),
        (CONDITIONS[2], ReadsTheText, "the text is read as context"),
        (CONDITIONS[3], ScoresTwice, "a second pass over the text"),
    ],
)
def test_a_method_that_cheats_is_caught(check, cheat, message, prompt, tokenizer, tmp_path, monkeypatch):
    run = Run(cheat(), tokenizer, tmp_path, monkeypatch, prompt=prompt)
    with pytest.raises(AssertionError, match=message):
        check(run)
