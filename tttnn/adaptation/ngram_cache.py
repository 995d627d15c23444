"""An n-gram model that is counted while a text is read."""

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
