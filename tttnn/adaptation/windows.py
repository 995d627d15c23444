"""Token windows: the query and the scored part of a document, chunks to train on, windows to score."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from tttnn.errors import InputError, InputTypeError


MAX_PREFIX_LENGTH = 1024
DECODED_TOGETHER = 16  # tokens, at most


class Window(NamedTuple):
    """
    Tokens of one forward pass of scoring.

    Args:
        input_ids (`list[int]`):
            What the model reads.
        target_ids (`list[int]`):
            What its last `len(target_ids)` positions predict.
        num_known (`int`, *optional*, defaults to `0`):
            How many of the first targets belong to the prompt: they are read, and are no part of the score.
    """

    input_ids: list[int]
    target_ids: list[int]
    num_known: int = 0


def encode(processing_class: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize a text of any length without special tokens."""
    # not verbose: that a text is longer than the model's context is what windows and chunks are for
    return processing_class(text, add_special_tokens=False, verbose=False)["input_ids"]


def encode_after(processing_class: PreTrainedTokenizerBase, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """
    Tokenize a prompt and the text after it, both at once if a token ends where the prompt does.

    Some tokenizers begin every text with a space, and the rest of a text that is tokenized alone would begin with one
    that is not there. A token across the border belongs to neither, and then each is tokenized alone.
    """
    prompt_ids, whole = encode(processing_class, prompt), encode(processing_class, prompt + text)
    if whole[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, whole[len(prompt_ids) :]
    return prompt_ids, encode(processing_class, text)


def prefix_token_id(processing_class: PreTrainedTokenizerBase) -> int:
    """
    Find the token that stands before the first scored one: BOS, or EOS for a tokenizer without BOS.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The model's tokenizer.

    Returns:
        `int`: the token's id.

    Raises:
        `TypeError`: If it is no tokenizer.
        `ValueError`: If the tokenizer has neither.
    """
    if processing_class is None or isinstance(processing_class, str):
        raise InputTypeError(
            f"`processing_class` is {processing_class!r:.100}, and the model's tokenizer is needed. Pass "
            "`AutoTokenizer.from_pretrained(...)`."
        )
    for name in ("bos_token", "eos_token"):
        token, token_id = getattr(processing_class, name), getattr(processing_class, f"{name}_id")
        is_unknown = token != processing_class.unk_token and token_id == processing_class.unk_token_id
        if token is not None and (token_id is None or is_unknown):
            raise InputError(
                f"The tokenizer's `{name}` is {str(token)!r}, which is not in its vocabulary. Set it to the token "
                "that stood before each document when the model was trained."
            )
        if token_id is not None:
            return int(token_id)
    raise InputError(
        "The tokenizer has neither a BOS nor an EOS token, and scoring begins with one of them. Set "
        "`tokenizer.bos_token` to the token that stood before each document when the model was trained."
    )


def split_document(
    processing_class: PreTrainedTokenizerBase, text: str, query: str, cut: str = "text"
) -> tuple[str, str]:
    """
    Split a document into the query for its neighbors and the part that is scored.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        text (`str`):
            The document.
        query (`str`):
            `"prefix"`: the query is the first min(n // 2, 1024) of the n tokens, and the rest is scored, so that
            nothing of it was seen in retrieval. `"document"`: both are the whole document, the protocol of the paper.
        cut (`str`, *optional*, defaults to `"text"`):
            `"text"`: the string is cut, between two characters: query and rest are the text. `"tokens"`: the two parts
            of the tokens are decoded, as the official code does. Then both sides hold U+FFFD where the cut falls
            inside a character, and another text where decoding does not invert encoding.

    Returns:
        `tuple[str, str]`: query and scored text.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 4, and its option `split_text`.
    """
    if query == "document":
        return text, text
    token_ids = encode(processing_class, text)
    number = min(len(token_ids) // 2, MAX_PREFIX_LENGTH)
    if cut == "tokens":
        return _decode(processing_class, token_ids[:number]), _decode(processing_class, token_ids[number:])
    place = _characters_of(processing_class, text, token_ids, number)
    return text[:place], text[place:]


def _decode(processing_class: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    return str(processing_class.decode(token_ids, clean_up_tokenization_spaces=False))


def _characters_of(processing_class: PreTrainedTokenizerBase, text: str, token_ids: list[int], number: int) -> int:
    """Say how many characters of a text its first `number` tokens are; a character that a token cuts is not."""
    decoded = _decode(processing_class, token_ids[:number])
    shared = len(os.path.commonprefix([decoded, text]))
    # in byte-level BPE decoding inverts encoding, but for a character that is cut: up to three of its bytes are U+FFFD
    if decoded[shared:] in ("", *("\ufffd" * number for number in (1, 2, 3))) and (number == 0) == (decoded == ""):
        return shared
    if processing_class.is_fast:
        encoded = processing_class(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return int(encoded["offset_mapping"][number][0])
    # the most characters that take no more tokens
    return bisect_right(range(len(text)), number, key=lambda end: len(encode(processing_class, text[:end]))) - 1


def training_chunks(token_ids: list[int], max_length: int, chunks_per_neighbor: int | None) -> list[list[int]]:
    """Cut a neighbor into consecutive chunks without overlap, and keep the first ones; `None` keeps all."""
    chunks = [token_ids[start : start + max_length] for start in range(0, len(token_ids), max_length)]
    return chunks[:chunks_per_neighbor]


def scoring_windows(
    token_ids: list[int],
    prefix_id: int,
    max_length: int,
    prompt_ids: Sequence[int] = (),
    stride: int | None = None,
    *,
    fill: bool = True,
) -> list[Window]:
    """
    Cut a text into windows that predict every token exactly once.

    The first window begins with the prefix token and the prompt, and is filled with the text. Each later one predicts
    the next `stride` tokens, with as many tokens before them as it has room for. By default the stride is the whole
    window: the context of a later window is one token, and the last is filled up with earlier ones.

    Args:
        token_ids (`list[int]`):
            The text's tokens.
        prefix_id (`int`):
            The token before the first (see `prefix_token_id`).
        max_length (`int`):
            Tokens that the model reads at once.
        prompt_ids (`Sequence[int]`, *optional*):
            The tokens between the prefix token and the text. Of a prompt that leaves less than `stride` tokens of
            room, the last tokens are read.
        stride (`int`, *optional*):
            Tokens that each window after the first predicts, at most `max_length`, the default.
        fill (`bool`, *optional*, defaults to `True`):
            Whether the first window is filled with text. Otherwise it predicts `stride` tokens as well.

    Returns:
        `list[Window]`: none for a text without tokens.

    Source: with no prompt and the default stride, the rolling log-likelihood of lm-evaluation-harness with a context
    of one token.
    """
    sequence, stride = [prefix_id, *prompt_ids, *token_ids], stride or max_length
    start, last = len(prompt_ids), len(prompt_ids) + len(token_ids)
    windows: list[Window] = []
    while start < last:
        end = min(start + stride if windows or not fill else max(start + stride, max_length), last)
        first = max(end - max_length, 0)
        num_known = 0 if windows else start - first
        windows.append(Window(sequence[first:end], sequence[start + 1 - num_known : end + 1], num_known))
        start = end
    return windows


def default_stride(max_length: int) -> int:
    """Say how many tokens each window after the first predicts where a prompt stands before the text: half of it."""
    return max(max_length // 2, 1)


def token_texts(processing_class: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """
    Decode tokens one by one, where they stand.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The tokenizer.
        token_ids (`Sequence[int]`):
            Of a text.

    Returns:
        `list[str]`: a text for each; together they are what all decode to. The tokens of a character that has several
        are empty but for the last.
    """

    def decode(first: int, end: int) -> str:
        return str(processing_class.decode([*token_ids[first:end]], clean_up_tokenization_spaces=False))

    texts, first, read = [], 0, ""
    for end in range(1, len(token_ids) + 1):
        text = decode(first, end)
        if text.endswith("\ufffd") and end < len(token_ids):
            texts.append("")  # a character is not whole yet
            continue
        texts.append(text[len(read) :])
        read = text
        if end - first >= DECODED_TOGETHER:  # some tokens are decoded otherwise at the beginning of a text
            first, read = end - 1, decode(end - 1, end)
            if read.endswith("\ufffd"):
                first, read = end - DECODED_TOGETHER // 2, decode(end - DECODED_TOGETHER // 2, end)
    return texts
