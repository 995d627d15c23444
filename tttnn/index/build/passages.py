"""Long documents cut into passages, so that a neighbor is the part that matters and not the beginning of a book."""

from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from tttnn.documents import Document
from tttnn.embedding import Embedder
from tttnn.errors import InputError


SLICE_CHARACTERS = 1 << 18  # of a text whose tokens are in memory together, and take 400 times as much


def split_into_passages(documents: Iterable[Document], embedder: Embedder, tokens: int) -> Iterator[Document]:
    """
    Cut documents into passages of at most so many tokens of the embedder; together they are the text, to the letter.

    Args:
        documents (`Iterable[Document]`):
            Read as they are needed.
        embedder (`Embedder`):
            Whose tokens are counted.
        tokens (`int`):
            Most tokens of a passage, as they stand in the document; it ends where a word ends, if there is one.

    Yields:
        `Document`: a passage, with the id and metadata of its document, and its number there as `passage`.

    Raises:
        `ValueError`: If `tokens` is not positive or more than the embedder reads, or its tokenizer does not say where
            tokens stand.
    """
    tokenizer: Any = embedder.model.tokenizer
    limit = embedder.max_seq_length
    if limit is None or not (isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.is_fast):
        raise InputError(f"The tokenizer of '{embedder.name}' does not say where tokens stand. Use another embedder.")
    room = limit - tokenizer.num_special_tokens_to_add()
    if embedder.document_prompt:
        room -= len(tokenizer(embedder.document_prompt, add_special_tokens=False)["input_ids"])
    if not 1 <= tokens <= room:
        raise InputError(
            f"Passages of {tokens} tokens were asked for, but '{embedder.name}' reads {room} of a text. Pass 1 to "
            f"{room}."
        )
    for document in documents:
        for number, passage in enumerate(_passages(document.text, tokenizer, tokens)):
            yield Document(document.id, passage, {**document.metadata, "passage": number})


def _passages(text: str, tokenizer: Any, tokens: int) -> Iterator[str]:  # noqa: ANN401
    """Cut a text slice by slice, for its tokens take many times its memory."""
    begin = 0
    while True:
        end = _end_of_slice(text, begin)
        encoded = tokenizer(
            text[begin:end], add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        passages = [*_cut(text[begin:end], [start for start, _ in encoded["offset_mapping"]], tokens)]
        if end == len(text):
            yield from passages
            return
        # the last may go on in the next slice, of which it is the beginning
        last = passages.pop() if len(passages) > 1 else ""
        yield from passages
        begin = end - len(last)


def _end_of_slice(text: str, begin: int) -> int:
    """End a slice after white space, or between characters where there is none."""
    end = begin + SLICE_CHARACTERS
    if end >= len(text):
        return len(text)
    return next((place for place in range(end, begin, -1) if text[place - 1].isspace()), end)


def _cut(text: str, starts: list[int], tokens: int) -> Iterator[str]:
    """Cut a text after at most so many tokens, between words where it can be; `starts` are those of its tokens."""
    begin, first = 0, 0
    while len(starts) - first > tokens:
        ends = range(first + tokens, first, -1)
        # a character may be several tokens, and a word too: neither is cut, unless nothing else is left
        characters = [place for place in ends if starts[place] > max(begin, starts[place - 1])]
        words = (place for place in characters if _between_words(text, starts[place]))
        first = next(words, 0) or next(iter(characters), 0) or first + tokens
        if starts[first] > begin:
            yield text[begin : starts[first]]
            begin = starts[first]
    if begin < len(text) or not text:  # the token of a space may stand past the end
        yield text[begin:]


def _between_words(text: str, place: int) -> bool:
    # the token of a word begins with the space before it, or after that space
    return any(map(str.isspace, text[place - 1 : place + 1]))
