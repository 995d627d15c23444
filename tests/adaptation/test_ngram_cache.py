"""N-grams counted while a text is read: by hand, and against plain definitions."""

import math

import numpy as np
import pytest

from tttnn.adaptation.ngram_cache import NgramCache
from tttnn.errors import InputError, InputTypeError


A, B, C = 0, 1, 2
UNIFORM = math.log(1 / 3)


def random_text(seed, length, vocab_size=5):
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()


def plain_witten_bell(texts, context, token, vocab_size, order):
    """The definition as it stands: search every text for each context, shortest first."""
    probability, match_length = 1 / vocab_size, 0
    for length in range(min(order - 1, len(context)) + 1):
        tail = context[len(context) - length :]
        after = [text[i] for text in texts for i in range(length, len(text)) if text[i - length : i] == tail]
        if after:
            types = len(set(after))
            probability = (after.count(token) + types * probability) / (len(after) + types)
            match_length = length
    return probability, match_length


def test_witten_bell_after_a_b_a_is_as_by_hand():
    cache = NgramCache(vocab_size=3, order=2)
    cache.add([A, B, A])
    # Alone: 3 tokens of 2 types, lambda = 2 / 5: a (2 + 2/3) / 5 = 8/15, b (1 + 2/3) / 5 = 5/15, c (2/3) / 5 = 2/15.
    # After a: 1 token of 1 type (b), lambda = 1 / 2: a 8/30, b (1 + 5/15) / 2 = 20/30, c 2/30.
    assert cache.distribution([]) == pytest.approx([8 / 15, 5 / 15, 2 / 15])
    assert cache.distribution([A]) == pytest.approx([8 / 30, 20 / 30, 2 / 30])


def test_reading_predicts_before_it_counts():
    log_probabilities, match_lengths = NgramCache(vocab_size=3, order=3).read([], [A, B, A, B])
    # 1/3; then a counted once: b (0 + 1/3) / 2 = 1/6; then a and b counted, none after b: a (1 + 2/3) / 4 = 5/12;
    # then alone b (1 + 2/3) / 5 = 1/3, after a (1 + 1/3) / 2 = 2/3, and nothing was counted after b, a.
    assert np.exp(log_probabilities) == pytest.approx([1 / 3, 1 / 6, 5 / 12, 2 / 3])
    assert match_lengths.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_reading_agrees_with_the_plain_definition(order):
    neighbors = [random_text(seed, 60, vocab_size=3) for seed in range(3)]
    text = random_text(9, 40, vocab_size=3)
    cache = NgramCache(3, order)
    for neighbor in neighbors:
        cache.add(neighbor)
    log_probabilities, match_lengths = cache.read([], text)
    expected = [plain_witten_bell([*neighbors, text[:i]], text[:i], text[i], 3, order) for i in range(len(text))]
    assert np.exp(log_probabilities) == pytest.approx([probability for probability, _ in expected], rel=1e-12)
    assert match_lengths.tolist() == [length for _, length in expected]


@pytest.mark.parametrize("max_ngrams", [1, 2, 7, 40, 1000])
def test_the_distribution_sums_to_one_and_agrees_with_reading(max_ngrams):
    cache = NgramCache(5, max_ngrams=max_ngrams)
    cache.add(random_text(0, 50))
    text = random_text(1, 50)
    for position, token in enumerate(text):
        distribution = cache.distribution(text[:position])
        assert distribution.sum() == pytest.approx(1)
        assert distribution.min() > 0
        [log_probability], _ = cache.read(text[:position], [token])
        assert math.exp(log_probability) == pytest.approx(distribution[token])


def test_a_distribution_counts_nothing():
    cache = NgramCache(5)
    cache.distribution([1, 2, 3])
    assert len(cache) == 0
    assert cache.distribution([1, 2, 3]) == pytest.approx([1 / 5] * 5)


def test_a_text_read_in_parts_is_read_as_a_whole():
    text = random_text(2, 60)
    whole, parts = NgramCache(5), NgramCache(5)
    log_probabilities, match_lengths = whole.read([], text)
    first, second = parts.read([], text[:23]), parts.read(text[:23], text[23:])
    assert np.array_equal(np.concatenate([first[0], second[0]]), log_probabilities)
    assert np.array_equal(np.concatenate([first[1], second[1]]), match_lengths)


def test_reading_counts_what_adding_counts():
    text = random_text(3, 40)
    read, added = NgramCache(5), NgramCache(5)
    read.read([], text)
    added.add(text)
    for position in range(len(text)):
        assert np.array_equal(read.distribution(text[:position]), added.distribution(text[:position]))


def test_a_context_is_read_but_not_counted():
    cache = NgramCache(vocab_size=3, order=3)
    cache.read([A, B], [C])
    # c is the only token counted, alone, after b and after a, b: (1 + 1/3) / 2 = 2/3, 5/6, 11/12.
    assert cache.distribution([])[C] == pytest.approx(2 / 3)
    assert cache.distribution([B])[C] == pytest.approx(5 / 6)
    assert cache.distribution([A, B])[C] == pytest.approx(11 / 12)
    assert cache.distribution([A])[C] == pytest.approx(2 / 3)  # b after a was not counted


def test_ngrams_do_not_cross_texts():
    cache = NgramCache(vocab_size=3, order=2)
    cache.add([A])
    cache.add([B])
    assert cache.read([A], [B])[1].tolist() == [0]


def test_a_changed_token_changes_no_earlier_value():
    text = random_text(4, 40)
    changed = [*text[:20], (text[20] + 1) % 5, *text[21:]]
    results = []
    for tokens in (text, changed):
        cache = NgramCache(5)
        cache.add(text)
        results.append(cache.read([], tokens))
    (before, lengths_before), (after, lengths_after) = results
    assert np.array_equal(before[:20], after[:20])
    assert np.array_equal(lengths_before[:21], lengths_after[:21])  # a match length does not know its token
    assert before[20] != after[20]


def test_empty_texts_and_contexts_are_nothing():
    cache = NgramCache(3)
    cache.add([])
    log_probabilities, match_lengths = cache.read([A, B], [])
    assert log_probabilities.shape == match_lengths.shape == (0,)
    assert (log_probabilities.dtype, match_lengths.dtype) == (np.float64, np.int64)
    assert len(cache) == 0
    assert cache.read([], [A])[0].tolist() == pytest.approx([UNIFORM])


def test_a_very_long_repeat_is_predicted_and_keeps_few_ngrams():
    cache = NgramCache(50_000)
    cache.add([7] * 100_000)
    assert len(cache) == 6
    log_probabilities, match_lengths = cache.read([7] * 10, [7, 8])
    assert match_lengths.tolist() == [5, 5]
    assert log_probabilities[0] == pytest.approx(0, abs=1e-4)
    assert np.isfinite(log_probabilities[1])


def test_a_full_cache_counts_only_what_it_has():
    cache = NgramCache(vocab_size=3, order=1, max_ngrams=1)
    cache.add([A, B, A])
    assert len(cache) == 1
    # a counted twice, b had no room: a (2 + 1/3) / 3 = 7/9, the others (1/3) / 3 = 1/9
    assert cache.distribution([]) == pytest.approx([7 / 9, 1 / 9, 1 / 9])


@pytest.mark.parametrize("argument", ["vocab_size", "order", "max_ngrams"])
def test_a_cache_of_nothing_is_refused(argument):
    with pytest.raises(InputError, match=f"`{argument}` is 0"):
        NgramCache(**{"vocab_size": 3, argument: 0})


@pytest.mark.parametrize("token", [-1, 3])
def test_a_token_outside_of_the_vocabulary_is_refused_before_anything_is_counted(token):
    cache = NgramCache(3)
    for refused in (
        lambda: cache.add([A, token]),
        lambda: cache.read([token], [A]),
        lambda: cache.read([], [A, token]),
        lambda: cache.distribution([token]),
    ):
        with pytest.raises(InputError, match=f"{token}.* but the vocabulary has 0 to 2"):
            refused()
    assert len(cache) == 0


@pytest.mark.parametrize("tokens", ["text", [0.5], [[A, B], [C]], 7, None])
def test_values_that_are_not_tokens_are_refused(tokens):
    with pytest.raises(InputTypeError, match="`token_ids` is not a sequence of integers"):
        NgramCache(3).add(tokens)


def test_arrays_are_texts_too():
    cache = NgramCache(3, order=2)
    cache.add(np.array([A, B, A]))
    assert cache.distribution(np.array([A], dtype=np.int32)) == pytest.approx([8 / 30, 20 / 30, 2 / 30])
