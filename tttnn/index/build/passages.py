"""Long documents cut into passages, so that a neighbor is the part that matters and not the beginning of a book."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tttnn.documents import Document
from tttnn.embedding import Embedder
from tttnn.errors import InputError


SLICE_CHARACTERS = 1 << 18  # tokenized at a time, since tokens take 400 times the memory of their text
# white space after a sentence or with the end of a line in it, or the end of a sentence in scripts without spaces
BREAK = re.compile(
    r"""(?:[.!?…]["'”’)\]]*+(?=\s)|(?<!\s)(?=[^\S\n]*+\n))(?P<space>\s++)|[。！？][”’」』）]*+(?P<end>\s*+)"""
)


def split_into_passages(documents: Iterable[Document], embedder: Embedder, tokens: int) -> Iterator[Document]:
    """
    Cut documents into passages; together they are the text, to the letter.

    A passage ends with a line if a line ends in its second half, else with a sentence that ends there, else with a
    word. The last passage of a document is no shorter than a quarter of `tokens` if there is a place to cut before.

    Args:
        documents (`Iterable[Document]`):
            Read as they are needed.
        embedder (`Embedder`):
            Its tokens are counted.
        tokens (`int`):
            Most tokens of a passage, as they stand in the document.

    Yields:
        `Document`: a passage, with the id and metadata of its document, its number in the document as `passage`, and
        its first and last line there, counted from 1, as `start_line` and `end_line`.

    Raises:
        `ValueError`: If `tokens` is not positive or more than the embedder reads, or its tokenizer does not say where
            tokens stand.
    """
    find_tokens, num_special = _tokens_of(embedder)
    if tokens < 1:
        raise InputError(f"Passages of {tokens} tokens were asked for. Pass at least 1.")
    if embedder.max_seq_length is not None:
        room = embedder.max_seq_length - num_special - len(find_tokens(embedder.document_prompt))
        if tokens > room:
            raise InputError(
                f"Passages of {tokens} tokens were asked for, but '{embedder.name}' reads {room} of a text. Pass 1 to "
                f"{room}."
            )
    for document in documents:
        line = 1
        for number, passage in enumerate(_passages(document.text, find_tokens, tokens)):
            place = {"passage": number, "start_line": line, "end_line": line + passage.count("\n", 0, -1)}
            line += passage.count("\n")
            yield Document(document.id, passage, {**document.metadata, **place})


def _tokens_of(embedder: Embedder) -> tuple[Callable[[str], list[tuple[int, int]]], int]:
    """Give what finds the first and last character of each token, and the number of special tokens in a text."""
    tokenizer: object = embedder.model.tokenizer
    if isinstance(tokenizer, Tokenizer):  # of static embeddings; a copy, because these settings are of the object
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
        return lambda text: plain.encode(text, add_special_tokens=False).offsets, 0
    if not (isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.is_fast):
        raise InputError(f"The tokenizer of '{embedder.name}' does not say where tokens stand. Use another embedder.")

    def find_tokens(text: str) -> list[tuple[int, int]]:
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        return cast(list[tuple[int, int]], encoded["offset_mapping"])

    return find_tokens, tokenizer.num_special_tokens_to_add()


def _passages(text: str, find_tokens: Callable[[str], list[tuple[int, int]]], tokens: int) -> Iterator[str]:
    """Cut a text slice by slice."""
    begin = 0
    while True:
        end = _end_of_slice(text, begin)
        passages = [*_cut(text[begin:end], find_tokens(text[begin:end]), tokens, end == len(text))]
        if end == len(text):
            yield from passages
            return
        # the last two may end elsewhere when more of the text is known: the next slice begins with them
        num_certain = max(len(passages) - 2, 1)
        yield from passages[:num_certain]
        begin = end - sum(map(len, passages[num_certain:]))


def _end_of_slice(text: str, begin: int) -> int:
    """End a slice after white space, or between characters where there is none."""
    end = begin + SLICE_CHARACTERS
    if end >= len(text):
        return len(text)
    return next((place for place in range(end, begin, -1) if text[place - 1].isspace()), end)


def _cut(text: str, offsets: list[tuple[int, int]], tokens: int, is_last: bool) -> Iterator[str]:
    """Cut a text between its tokens, whose beginnings and ends are the offsets."""
    breaks = [match.span(match.lastgroup or 0) for match in BREAK.finditer(text)]
    begin, first = 0, 0
    while (left := len(offsets) - first) > tokens:
        # a character may be several tokens: it is not cut, unless nothing else is left
        places = [
            place
            for place in range(first + tokens, first, -1)
            if offsets[place][0] > max(begin, offsets[place - 1][0])
        ]
        most = min(tokens, left - tokens // 4) if is_last else tokens
        full = [place for place in places if first + tokens // 2 <= place <= first + most]
        choices = chain(
            (place for place in full if text[_beginning(text, offsets, place) - 1] == "\n"),
            (place for place in full if _in_break(breaks, offsets[place][0])),
            (place for place in full + places if _between_words(text, offsets[place][0])),
            places,
        )
        first = next(choices, first + tokens)
        if (end := _beginning(text, offsets, first)) > begin:
            yield text[begin:end]
            begin = end
    if begin < len(text) or not text:  # the token of a space may stand past the end
        yield text[begin:]


def _beginning(text: str, offsets: list[tuple[int, int]], place: int) -> int:
    """Where a passage begins with a token: at the beginning of its line, if no token stands before it there."""
    start = offsets[place][0]
    return text.rfind("\n", offsets[place - 1][1], start) + 1 or start


def _in_break(breaks: list[tuple[int, int]], place: int) -> bool:
    """Whether a line or sentence ends at a character, or in the white space around it."""
    last = bisect_right(breaks, place, key=lambda span: span[0]) - 1
    return last >= 0 and place <= breaks[last][1]


def _between_words(text: str, place: int) -> bool:
    # the token of a word begins with the space before it, or after that space
    return any(map(str.isspace, text[place - 1 : place + 1]))
