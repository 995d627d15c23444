"""How much of the shorter of two texts stands in the other."""

import re


NGRAM_LENGTH = 13

NEAR_COPY_OVERLAP = 0.5


def overlap(text: str, other: str) -> float:
    """
    Measure how much of the shorter of two texts stands in the other.

    Words are runs of letters and digits, in lower case. Of the distinct 13-grams of words of the text that has fewer,
    the share is taken that the other text has too: 1 if one text contains the other. Texts under 13 words overlap
    only if all their words are the same.

    Args:
        text (`str`):
            A text.
        other (`str`):
            Another.

    Returns:
        `float`: from 0 to 1.
    """
    return overlap_of(words_of(text), words_of(other))


def words_of(text: str) -> list[str]:
    """Give the words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())


def overlap_of(words: list[str], others: list[str]) -> float:
    """Measure the overlap of texts of which the words are known."""
    if min(len(words), len(others)) < NGRAM_LENGTH:
        return float(words == others and bool(words))
    grams, other_grams = _ngrams(words), _ngrams(others)
    return len(grams & other_grams) / min(len(grams), len(other_grams))


def _ngrams(words: list[str]) -> set[int]:
    return {hash(tuple(words[start : start + NGRAM_LENGTH])) for start in range(len(words) - NGRAM_LENGTH + 1)}
