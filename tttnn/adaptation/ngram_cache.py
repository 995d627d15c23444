"""An n-gram model that is counted while a text is read, and its mixture with the model, weighted online."""

import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tttnn.errors import InputError, InputTypeError


Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class NgramCache:
    """
    Count n-grams of tokens and predict the next token from them, with Witten-Bell interpolation.

    After a context `h` that was followed by `N` tokens of `T` types, `c` of them the token `w`, the prediction is
    `P(w | h) = (c + T * P(w | h')) / (N + T)`, where `h'` is `h` without its first token. Below the empty context
    stands the uniform distribution, so every token has a positive probability and the probabilities sum to 1. A
    context that was not seen predicts what the next shorter one predicts.

    Args:
        vocab_size (`int`):
            Tokens in the vocabulary: ids are 0 to `vocab_size - 1`.
        order (`int`, *optional*, defaults to `6`):
            Tokens in the longest n-gram; a context has one token less.
        max_ngrams (`int`, *optional*, defaults to `1_000_000`):
            Bound of the memory, up to 200 bytes each; a token adds at most `order`. A full cache counts only the
            n-grams that it has.

    Raises:
        `InputError`: If an argument is less than 1.

    Source: Witten and Bell 1991, "The zero-frequency problem"; Bell, Cleary and Witten 1990, "Text Compression".
    """

    def __init__(self, vocab_size: int, order: int = 6, max_ngrams: int = 1_000_000) -> None:
        for name, value in (("vocab_size", vocab_size), ("order", order), ("max_ngrams", max_ngrams)):
            if value < 1:
                raise InputError(f"`{name}` is {value}, but it must be at least 1. Pass 1 or more.")
        self.vocab_size = vocab_size
        self.order = order
        self.max_ngrams = max_ngrams
        # An n-gram is a node: the child, by its last token, of the node of the tokens before. Node 0 is the empty one.
        self._children: dict[int, int] = {}  # node * vocab_size + token -> node
        self._counts = [0]  # how often the n-gram was counted
        self._totals = [0]  # how many tokens were counted after it
        self._types = [0]  # how many different ones

    def __len__(self) -> int:
        return len(self._counts) - 1

    def add(self, token_ids: Sequence[int]) -> None:
        """
        Count a text on its own. Do not add a text that `read` predicts, or it is predicted from itself.

        Args:
            token_ids (`Sequence[int]`):
                The text, which may be empty.

        Raises:
            `InputError`: If a token is not an integer of the vocabulary; nothing is counted then.
        """
        nodes = [0]
        for token in self._checked("token_ids", token_ids):
            nodes = self._follow(nodes, token, 1)

    def read(self, context: Sequence[int], token_ids: Sequence[int]) -> tuple[Floats, Integers]:
        """
        Predict each token of a text before it is counted, then count it. A text may be read in parts.

        Args:
            context (`Sequence[int]`):
                The tokens before the text, such as its first part; it may be empty. They are not counted.
            token_ids (`Sequence[int]`):
                The text.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: log-probabilities of the tokens in nats, and the match lengths: how many
            tokens before the predicted one are the longest context that the cache has seen, from 0 to `order - 1`.
            Both have the shape `(len(token_ids),)` and depend on earlier text only.

        Raises:
            `InputError`: If a token is not an integer of the vocabulary; nothing is counted then.
        """
        before, tokens = self._checked("context", context), self._checked("token_ids", token_ids)
        nodes = self._contexts(before, create=bool(tokens))
        predictions = []
        for token in tokens:
            predictions.append(self._predict(nodes, token))
            nodes = self._follow(nodes, token, 1)
        probabilities, lengths = np.array(predictions, dtype=np.float64).reshape(-1, 2).T
        return np.log(probabilities), lengths.astype(np.int64)

    def distribution(self, context: Sequence[int]) -> Floats:
        """
        Predict the next token: the whole distribution, of which `read` gives one value. Nothing is counted.

        Args:
            context (`Sequence[int]`):
                The tokens before it, which may be empty.

        Returns:
            `np.ndarray`: probabilities of shape `(vocab_size,)`, with the sum 1.

        Raises:
            `InputError`: If a token is not an integer of the vocabulary.
        """
        nodes = self._contexts(self._checked("context", context), create=False)
        return np.array([self._predict(nodes, token)[0] for token in range(self.vocab_size)], dtype=np.float64)

    def _predict(self, nodes: list[int], token: int) -> tuple[float, int]:
        """Interpolate from the empty context to the longest one that was followed by a token."""
        probability, length = 1 / self.vocab_size, 0
        for length_of_context, node in enumerate(nodes):
            total = self._totals[node]
            if not total:  # nor was a longer context followed: its tokens were counted here too
                break
            child = self._children.get(node * self.vocab_size + token)
            count = 0 if child is None else self._counts[child]
            types = self._types[node]
            probability = (count + types * probability) / (total + types)
            length = length_of_context
        return probability, length

    def _contexts(self, tokens: list[int], create: bool) -> list[int]:
        """Find the nodes of the last 0, 1, ... `order - 1` tokens, as far as they exist or can be made."""
        nodes = [0]
        for token in tokens[max(len(tokens) - self.order + 1, 0) :]:
            nodes = self._follow(nodes, token, 0, create)
        return nodes

    def _follow(self, nodes: list[int], token: int, times: int, create: bool = True) -> list[int]:
        """Count a token after each of its contexts, shortest first, and give the contexts of the next token."""
        following = [0]
        for node in nodes:
            key = node * self.vocab_size + token
            if create and key not in self._children and len(self) < self.max_ngrams:
                self._children[key] = len(self._counts)
                for numbers in (self._counts, self._totals, self._types):
                    numbers.append(0)
            child = self._children.get(key)
            if child is None:  # the n-grams that end with this one are not there either
                break
            if times and not self._counts[child]:
                self._types[node] += 1
            self._counts[child] += times
            self._totals[node] += times
            following.append(child)
        return following[: self.order]

    def _checked(self, name: str, token_ids: Sequence[int]) -> list[int]:
        """Refuse what is no token of the vocabulary before anything is counted."""
        try:
            tokens = list(map(operator.index, token_ids))
        except TypeError as error:
            raise InputTypeError(
                f"`{name}` is not a sequence of integers ({error}), but one text is needed. Pass its token ids."
            ) from error
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise InputError(
                f"`{name}` holds tokens from {min(tokens)} to {max(tokens)}, but the vocabulary has 0 to "
                f"{self.vocab_size - 1}. Use the model's tokenizer, and the size of its logits as `vocab_size`."
            )
        return tokens


# Weights of the cache that are tried, and their shares at the start: half for weight 0.
WEIGHTS = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.98])
SHARES = np.array([0.5] + [0.5 / 7] * 7)
SHARED = 0.005  # part of the shares that returns after each token: a text may stop repeating, and repeat later


def mix_online(
    model_nll: npt.ArrayLike, cache_log_probabilities: npt.ArrayLike, match_lengths: npt.ArrayLike, num_known: int
) -> Floats:
    """
    Mix the cache into the model's predictions, with weights that are learned on earlier tokens only.

    A token has the probability `w * p_cache + (1 - w) * p_model`, where `w` is fixed before the token is seen: if both
    are normalized, so is the mixture. Each match length has a learner. It holds shares of eight weights, predicts with
    their mean, and multiplies each share by the probability that its weight gave to the token (Bayes); then a small
    part of the shares returns to the start. The learners and the model alone are mixed by Bayes too, from one half
    each; at the first scored token, the model alone gets one half back if it has less.

    The scored tokens cost at most `ln 2 = 0.69` nats (one bit) more than with the model alone, whatever the text, the
    cache and the prompt are. Proof: `a >= 1/2` is the share of the model alone at the first scored token; it gives the
    scored tokens the probability `M`, the learners `L`. By Bayes, the mixture gives `a * M + (1 - a) * L >= M / 2`.

    Args:
        model_nll (`np.ndarray`):
            The model's negative log-likelihood of each token in nats, of shape `(tokens,)`.
        cache_log_probabilities (`np.ndarray`):
            The cache's log-probability of each token in nats, from `NgramCache.read`.
        match_lengths (`np.ndarray`):
            Its match length at each token, from `NgramCache.read`.
        num_known (`int`):
            Tokens of the prompt: the first ones. Weights are learned on them before the first scored token.

    Returns:
        `np.ndarray`: the mixture's nll of each token, known ones too, in nats, of shape `(tokens,)`.

    Raises:
        `InputError`: If the arrays do not fit each other, or a value is impossible.

    Source: Herbster and Warmuth 1998, "Tracking the best expert" (shares that return); Bell, Cleary and Witten 1990.
    """
    nll, log_cache, lengths = _checked_arrays(model_nll, cache_log_probabilities, match_lengths, num_known=num_known)
    with np.errstate(divide="ignore"):  # weight 0 takes nothing from the cache
        log_probabilities = np.logaddexp(np.log1p(-WEIGHTS) - nll[:, None], np.log(WEIGHTS) + log_cache[:, None])
    shares_of = dict.fromkeys(lengths.tolist(), SHARES)
    mixed = np.empty(len(nll))
    log_alone = log_learned = -np.log(2)
    for position, length in enumerate(lengths.tolist()):
        if position == num_known and log_alone < log_learned:
            log_alone = log_learned = -np.log(2)
        joint = np.log(shares_of[length]) + log_probabilities[position]
        learned = np.logaddexp.reduce(joint)
        shares_of[length] = (1 - SHARED) * np.exp(joint - learned) + SHARED * SHARES
        log_alone, log_learned = log_alone - nll[position], log_learned + learned
        log_mixed = np.logaddexp(log_alone, log_learned)
        log_alone, log_learned = log_alone - log_mixed, log_learned - log_mixed
        mixed[position] = -log_mixed
    return mixed


def _checked_arrays(*arrays: npt.ArrayLike, num_known: int) -> tuple[Floats, Floats, Integers]:
    """Refuse arrays that do not fit each other, and values that no probability has."""
    nll, log_cache, lengths = map(np.asarray, arrays)
    if not (nll.ndim == 1 and nll.shape == log_cache.shape == lengths.shape):
        raise InputError(
            f"The nll, log-probabilities and match lengths have the shapes {nll.shape}, {log_cache.shape} and "
            f"{lengths.shape}, but each needs one value a token. Pass them for the same tokens."
        )
    if num_known not in range(len(nll) + 1):
        raise InputError(f"`num_known` is {num_known}, but there are {len(nll)} tokens. Pass 0 to {len(nll)}.")
    for name, values, sign in (("model_nll", nll, 1), ("cache_log_probabilities", log_cache, -1)):
        wrong = np.flatnonzero(~(np.isfinite(values) & (sign * values > -1e-3)))  # rounding may pass probability 1
        if len(wrong):
            raise InputError(
                f"`{name}` is {values[wrong[0]]} at token {wrong[0]}, but a token has a probability above 0 and up to "
                f"1. Pass finite numbers, {'0 or more' if sign > 0 else '0 or less'}."
            )
    if len(lengths) and (lengths.dtype.kind not in "iu" or lengths.min() < 0):
        raise InputError(f"`match_lengths` holds {lengths.min()}, but it counts tokens. Pass what `read` gave.")
    return nll.astype(np.float64), log_cache.astype(np.float64), lengths.astype(np.int64)
