r"""
The first tokens of a long text, without tokenizing all of it.

A text is cut before a space (U+0020) that follows an ASCII letter or digit. The tokens before the cut are those of the
whole text if nothing in the tokenizer looks across such a place, and that is proved from its parts, not sampled:

1. Added tokens are found in the raw text. None has a space after another character inside, so none lies across the
   cut. What a token right of the cut strips is at most the space.
2. Normalizers of the list below treat each character, or each grapheme, alone. A space neither composes with a letter
   before it nor joins its grapheme. Stripping and prepending change only the ends, and the left part ends in a letter.
3. A pre-tokenizer that splits there makes words that the model reads one by one. Those of the list go from left to
   right, no word of theirs has a space after a letter or digit, and to them a space after a word is the same as the
   end of the text: `(?!\S)` in the regular expressions stands only after white space.
4. Where no pre-tokenizer splits, the vocabulary decides. BPE merges two tokens only if the result is in it, and
   Unigram takes only pieces that are. If no token has the space after a letter or digit, no merge and no piece crosses
   the cut: left and right are tokenized independently of each other. The space itself must be in the vocabulary,
   because neighboring unknown tokens become one.

With a tokenizer in Python, a part that is not listed, BPE with dropout or Unigram that samples, there is no proof, and
the whole text is tokenized. Two prefixes that agree would be evidence only: one more character may change all.
"""

import json
import re
import string
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tttnn.adaptation.windows import encode


CHARACTERS = string.ascii_letters + string.digits
CUT = re.compile("(?<=[A-Za-z0-9]) ")
SPACES = " \u2581\u0120"  # itself, SentencePiece's and byte-level BPE's
NORMALIZERS = (
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Nmt", "Precompiled"),
    *("Prepend", "Strip"),
)
REPLACED = ({"String": " "}, {"Regex": " {2,}"})
SPLITTERS = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")
# of GPT-2; Llama 3, Qwen2, Qwen3.5
EXPRESSIONS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?" + letters + "+|" + digits + r"| ?[^\s" + marks + r"\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        for letters, digits, marks in (
            (r"\p{L}", r"\p{N}{1,3}", r"\p{L}"),
            (r"\p{L}", r"\p{N}", r"\p{L}"),
            (r"[\p{L}\p{M}]", r"\p{N}", r"\p{L}\p{M}"),
        )
    ),
)


def encode_beginning(
    processing_class: PreTrainedTokenizerBase, text: str, num_tokens: int, can_cut: bool
) -> list[int]:
    """Give the first tokens of a text; `can_cut` is what `can_cut_at_spaces` says."""
    size = 8 * num_tokens
    while can_cut and 2 * size < len(text):
        cut = CUT.search(text, size)
        if cut is None:
            break
        token_ids = encode(processing_class, text[: cut.start()])
        if len(token_ids) >= num_tokens:
            return token_ids[:num_tokens]
        size = 2 * cut.start()
    return encode(processing_class, text)[:num_tokens]


def can_cut_at_spaces(processing_class: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens before a space that follows an ASCII letter or digit are proved not to depend on the rest."""
    if not isinstance(processing_class, PreTrainedTokenizerFast):
        return False
    kind = type(processing_class)
    if kind.__call__ is not PreTrainedTokenizerBase.__call__ or (
        kind._encode_plus is not PreTrainedTokenizerFast._encode_plus
    ):
        return False
    backend = processing_class.backend_tokenizer
    try:
        normalizers = _parts(backend.normalizer, "normalizers")
        pre_tokenizers = _parts(backend.pre_tokenizer, "pretokenizers")
    except Exception:  # tokenizers raises this very class for a part that was written in Python
        return False
    if not all(map(_normalizes_locally, normalizers)):
        return False
    normalized = _normalize(backend, CHARACTERS + " a")
    space = normalized[-2:-1]
    if not normalized.lower().endswith(f"{CHARACTERS.lower()}{space}a") or space not in SPACES:
        return False
    across = re.compile(f"[^\\s{SPACES}][\\s{SPACES}]")
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    if any(across.search(content) or across.search(_normalize(backend, content)) for content in added):
        return False
    splits = _splits(pre_tokenizers, space)
    return splits is not None and _reads_apart(backend, splits)


def _parts(part: Any, name: str) -> list[dict[str, Any]]:  # noqa: ANN401
    """List the parts of a normalizer or pre-tokenizer, those of a sequence one by one."""
    if part is None:
        return []
    states = [json.loads(part.__getstate__())]
    while any(state["type"] == "Sequence" for state in states):
        states = [inner for state in states for inner in (state[name] if state["type"] == "Sequence" else [state])]
    return states


def _normalize(backend: Tokenizer, text: str) -> str:
    return text if backend.normalizer is None else str(backend.normalizer.normalize_str(text))


def _normalizes_locally(state: dict[str, Any]) -> bool:
    return state["type"] in NORMALIZERS or (state["type"] == "Replace" and state["pattern"] in REPLACED)


def _splits(states: list[dict[str, Any]], space: str) -> bool | None:
    """Whether pre-tokenizers split at a cut; `None` if one before that is unknown. Those after it see words only."""
    for state in states:
        kind, is_space = state["type"], space == " "
        if kind == "Metaspace" and state["replacement"] == "\u2581":
            if state["split"]:
                return True
            space = "\u2581"
        elif kind == "ByteLevel" and is_space:
            if state["use_regex"]:
                return True
            space = "\u0120"
        elif kind in SPLITTERS and is_space:
            return True
        elif kind == "Split" and is_space and state["pattern"].get("Regex") in EXPRESSIONS:
            if (state["behavior"], state["invert"]) not in (("Isolated", False), ("Removed", True)):
                return None
            return True
        elif kind == "Split" and not is_space and state["pattern"] == {"String": " "}:
            pass  # there is no space any more
        elif kind not in ("Digits", "Punctuation") or not is_space:
            return None
    return False


def _reads_apart(backend: Tokenizer, splits: bool) -> bool:
    """Whether the model reads the two sides of a cut independently of each other."""
    model = backend.model
    if isinstance(model, WordPiece | WordLevel):
        return splits
    if isinstance(model, BPE):
        if model.dropout or (
            not splits and (model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix)
        ):
            return False
    elif not isinstance(model, Unigram) or model.alpha is not None:
        return False
    if splits:
        return True
    vocabulary = backend.get_vocab(with_added_tokens=False)
    across = re.compile(f"[A-Za-z0-9][{SPACES}]")
    return all(space in vocabulary for space in _spaces_of(backend)) and not any(map(across.search, vocabulary))


def _spaces_of(backend: Tokenizer) -> set[str]:
    """Give the character that the model reads for a space."""
    text = _normalize(backend, "a a")
    if backend.pre_tokenizer is not None:
        text = "".join(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return {text[-2]}
