"""How much of the shorter of two texts stands in the other."""

import re


NGRAM_LENGTH = 13
# Thai and Lao, Burmese, Khmer, kana, Chinese characters
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\uff66-\uff9f"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
WORD = re.compile(rf"(?=\w)[{UNSPACED}]|[^\W{UNSPACED}]+")

NEAR_COPY_OVERLAP = 0.5


def overlap(text: str, other: str) -> float:
    """
    Measure how much of the shorter of two texts stands in the other.

    Words are runs of letters and digits, in lower case; where words have no spaces between them, as in Chinese and
    Japanese, each letter is one. Of the distinct 13-grams of words of the text that has fewer,
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
    return overlap_of(ngrams_of(text), ngrams_of(other))


def ngrams_of(text: str) -> set[int]:
    """Hash the 13-grams of words of a text; a shorter text is one n-gram."""
    words = WORD.findall(text.lower())
    starts = range(max(len(words) - NGRAM_LENGTH + 1, 1 if words else 0))
    return {hash(tuple(words[start : start + NGRAM_LENGTH])) for start in starts}


def overlap_of(ngrams: set[int], others: set[int]) -> float:
    """Measure the overlap of two texts of which the n-grams are known."""
    return len(ngrams & others) / min(len(ngrams), len(others)) if ngrams and others else 0.0
