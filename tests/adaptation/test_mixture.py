"""Two predictions mixed online: by hand, normalized, and at most one bit worse than the base."""

import math

import numpy as np
import pytest

from tttnn.adaptation import NgramCache, mix_online
from tttnn.errors import InputError


def random_text(seed, length, vocab_size=5):
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()


def random_arrays(seed, length):
    """Nll, cache log-probabilities and match lengths that have nothing to do with each other."""
    generator = np.random.default_rng(seed)
    return generator.exponential(2, length), -generator.exponential(8, length), generator.integers(0, 6, length)


def test_the_first_token_is_mixed_as_by_hand():
    # The model alone has 1/2. The learner has 1/2 too: 1/2 of it on weight 0, the rest on seven weights of sum 2.92.
    # So the weight of the cache is 1/2 * 1/2 * 2.92 / 7 = 0.73 / 7.
    weight = 0.73 / 7
    nll = mix_online([math.log(4)], [math.log(0.8)], [3], 0)
    assert nll == pytest.approx([-math.log(weight * 0.8 + (1 - weight) / 4)])


@pytest.mark.parametrize("num_known", [0, 5, 8, 12])
def test_the_mixture_is_normalized_over_every_next_token(num_known):
    vocab_size = 4
    generator = np.random.default_rng(num_known)
    model = generator.dirichlet(np.ones(vocab_size), 12)
    text = [0, 1, 2, 3] * 3
    for position in range(12):
        total = 0.0
        for token in range(vocab_size):
            tokens = [*text[:position], token, *text[position + 1 :]]
            cache = NgramCache(vocab_size)
            cache.add(text)
            nll = mix_online(-np.log(model[range(12), tokens]), *cache.read([], tokens), num_known)
            total += math.exp(-nll[position])
        assert total == pytest.approx(1)


def test_a_changed_token_changes_no_earlier_mixture():
    nll, log_cache, lengths = random_arrays(0, 30)
    before = mix_online(nll, log_cache, lengths, 10)
    for position in (0, 9, 10, 20):
        others, others_cache, others_lengths = nll.copy(), log_cache.copy(), lengths.copy()
        others[position] += 3
        others_cache[position] -= 3
        others_lengths[position + 1 :] = 0
        after = mix_online(others, others_cache, others_lengths, 10)
        assert np.array_equal(before[:position], after[:position])
        assert before[position] != after[position]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_known", [0, 1, 200, 400])
def test_a_useless_cache_costs_at_most_one_bit(seed, num_known):
    nll, log_cache, lengths = random_arrays(seed, 400)
    mixed = mix_online(nll, log_cache, lengths, num_known)
    assert mixed[:num_known].sum() <= nll[:num_known].sum() + math.log(2) + 1e-9
    assert mixed[num_known:].sum() <= nll[num_known:].sum() + math.log(2) + 1e-9


def test_a_prompt_that_misleads_costs_at_most_one_bit():
    nll = np.full(600, 2.0)
    log_cache = np.concatenate([np.full(300, -0.01), np.full(300, -50.0)])  # perfect on the prompt, then useless
    lengths = np.full(600, 5)
    mixed = mix_online(nll, log_cache, lengths, 300)
    assert mixed[:300].sum() < 30  # the weights did learn to trust the cache: 600 for the model alone
    assert nll[300:].sum() < mixed[300:].sum() <= nll[300:].sum() + math.log(2) + 1e-9


def test_known_tokens_teach_the_weights():
    nll, log_cache, lengths = np.full(60, 3.0), np.full(60, -0.1), np.full(60, 4)
    taught = mix_online(nll, log_cache, lengths, 50)[50:].sum()
    untaught = mix_online(nll[50:], log_cache[50:], lengths[50:], 0).sum()
    assert taught < untaught < nll[50:].sum()


def test_each_match_length_has_its_weights():
    lengths = np.tile([0, 5], 300)
    nll = np.full(600, 2.0)
    log_cache = np.where(lengths == 5, -0.05, -12.0)  # long matches are right, short ones are wrong
    mixed = mix_online(nll, log_cache, lengths, 300)[300:]
    assert mixed[1::2].mean() < 0.2
    assert mixed[0::2].mean() < 2.05


def test_the_cache_gains_where_a_text_repeats():
    text = random_text(5, 300, vocab_size=1000)
    nll = np.full(600, math.log(1000))
    mixed = mix_online(nll, *NgramCache(1000).read([], text + text), num_known=300)
    assert mixed[300:].sum() < 0.1 * nll[300:].sum()


def test_a_cache_that_is_a_copy_of_the_model_changes_nothing():
    nll = random_arrays(1, 50)[0]
    assert mix_online(nll, -nll, np.zeros(50, dtype=int), 20) == pytest.approx(nll)


def test_very_unlikely_tokens_stay_finite():
    mixed = mix_online([1e6, 0.0, 1e6, 5.0], [-1.0, -1e6, -1e6, -1.0], [0, 0, 0, 0], 1)
    assert np.isfinite(mixed).all()
    assert mixed[2] == pytest.approx(1e6)


def test_an_empty_text_has_an_empty_mixture():
    assert mix_online([], [], [], 0).shape == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_an_impossible_nll_is_refused(value):
    with pytest.raises(InputError, match="`base_nll` is .* at token 1"):
        mix_online([1.0, value], [-1.0, -1.0], [0, 0], 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.0])
def test_an_impossible_log_probability_is_refused(value):
    with pytest.raises(InputError, match="`log_probabilities` is .* at token 0"):
        mix_online([1.0, 1.0], [value, -1.0], [0, 0], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 1.0], [-1.0], [0], 0), r"shapes \(2,\), \(1,\) and \(1,\)"),
        (([[1.0]], [[-1.0]], [[0]], 0), r"shapes \(1, 1\)"),
        (([1.0], [-1.0], [0], 2), "`num_known` is 2, but there are 1 tokens"),
        (([1.0], [-1.0], [0], -1), "`num_known` is -1"),
        (([1.0], [-1.0], [0], 0.5), "`num_known` is 0.5"),
        (([1.0], [-1.0], [-1], 0), "`groups` holds -1"),
        (([1.0], [-1.0], [0.5], 0), "`groups` holds 0.5"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        mix_online(*arguments)
