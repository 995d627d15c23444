"""Token windows: by hand, and equal to those of lm-evaluation-harness."""

import copy
import re

import pytest
from conftest import TEXTS
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from tttnn.adaptation.windows import (
    MAX_PREFIX_LENGTH,
    Window,
    encode,
    prefix_token_id,
    scoring_windows,
    split_document,
    training_chunks,
)


@pytest.mark.parametrize(
    ("num_tokens", "windows"),
    [
        (0, []),
        (1, [Window([99], [0])]),
        (3, [Window([99, 0, 1], [0, 1, 2])]),
        (4, [Window([99, 0, 1, 2], [0, 1, 2, 3])]),
        (5, [Window([99, 0, 1, 2], [0, 1, 2, 3]), Window([0, 1, 2, 3], [4])]),
        (8, [Window([99, 0, 1, 2], [0, 1, 2, 3]), Window([3, 4, 5, 6], [4, 5, 6, 7])]),
        (
            10,
            [
                Window([99, 0, 1, 2], [0, 1, 2, 3]),
                Window([3, 4, 5, 6], [4, 5, 6, 7]),
                Window([5, 6, 7, 8], [8, 9]),
            ],
        ),
    ],
)
def test_scoring_windows_of_four_tokens(num_tokens, windows):
    assert scoring_windows(list(range(num_tokens)), 99, 4) == windows


@pytest.mark.parametrize("max_length", [1, 2, 3, 7, 16])
def test_scoring_windows_are_those_of_lm_evaluation_harness(max_length):
    for num_tokens in range(5 * max_length + 3):
        tokens = list(range(100, 100 + num_tokens))
        theirs = []
        for pair in get_rolling_token_windows(tokens, prefix_token=7, max_seq_len=max_length, context_len=1):
            context, continuation = make_disjoint_window(pair)
            # what the harness's models then read: both, without the last token, cut to the context from the left
            theirs.append(Window((context + continuation)[-(max_length + 1) :][:-1], continuation))
        assert scoring_windows(tokens, 7, max_length) == theirs


@pytest.mark.parametrize("max_length", [1, 2, 5, 64])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 5, 6, 63, 64, 65, 200])
def test_every_token_is_predicted_once_after_its_predecessor(num_tokens, max_length):
    tokens = list(range(num_tokens))
    windows = scoring_windows(tokens, -1, max_length)
    assert len({len(window.input_ids) for window in windows}) <= 1
    assert [target for window in windows for target in window.target_ids] == tokens
    for window in windows:
        assert 1 <= len(window.target_ids) <= len(window.input_ids) <= max_length
        # consecutive numbers: position i reads the number before the one that it predicts, the prefix being -1
        assert [token + 1 for token in window.input_ids[-len(window.target_ids) :]] == window.target_ids


@pytest.mark.parametrize(
    ("num_tokens", "limit", "chunks"),
    [
        (0, None, []),
        (0, 1, []),
        (1, None, [[0]]),
        (4, None, [[0, 1, 2, 3]]),
        (5, None, [[0, 1, 2, 3], [4]]),
        (10, None, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (10, 1, [[0, 1, 2, 3]]),
        (10, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (10, 9, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (2, 1, [[0, 1]]),
    ],
)
def test_training_chunks_of_four_tokens(num_tokens, limit, chunks):
    assert training_chunks(list(range(num_tokens)), 4, limit) == chunks


def with_template(tokenizer, template):
    """A copy of a tokenizer that adds its special tokens by itself."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
    )
    special_tokens = [("<s>", copy.bos_token_id), ("</s>", copy.eos_token_id)]
    copy.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special_tokens)
    return copy


def test_encode_leaves_out_the_special_tokens_that_a_tokenizer_adds(tokenizer):
    adding = with_template(tokenizer, "<s> $A </s>")
    text = "The whale"
    assert adding(text)["input_ids"] == [adding.bos_token_id, *tokenizer(text)["input_ids"], adding.eos_token_id]
    assert encode(adding, text) == tokenizer(text)["input_ids"]


def test_encode_never_truncates(tokenizer):
    short = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", model_max_length=8
    )
    text = "the whale " * 50
    assert short.decode(encode(short, text)) == text


@pytest.mark.parametrize("text", ["", " ", "\n\n\t ", "\0", "a\0b", "Größe 東京 🐳", "\u00a0\u3000\u2028", "\ufffd"])
def test_encode_loses_nothing_of_an_odd_text(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text), clean_up_tokenization_spaces=False) == text


def test_the_prefix_is_bos_where_there_is_one(tokenizer):
    both = with_template(tokenizer, "$A")
    assert both.bos_token_id != both.eos_token_id
    assert prefix_token_id(both) == both.bos_token_id


def test_the_prefix_is_eos_without_bos(tokenizer):
    eos_only = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    assert eos_only.bos_token_id is None
    # the tokenizer of conftest was trained with this as its first token
    assert prefix_token_id(eos_only) == 0


def test_a_bos_of_id_zero_is_a_prefix(tokenizer):
    bos_zero = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|endoftext|>", eos_token="a"
    )
    assert bos_zero.bos_token_id == 0 != bos_zero.eos_token_id
    assert prefix_token_id(bos_zero) == 0


def test_a_tokenizer_without_bos_and_eos_is_refused(tokenizer):
    neither = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="neither a BOS nor an EOS"):
        prefix_token_id(neither)


@pytest.mark.parametrize("unknown", [None, "a"])
def test_a_bos_token_that_is_not_in_the_vocabulary_is_refused(tokenizer, unknown):
    wrong = copy.deepcopy(tokenizer)
    wrong.unk_token = unknown
    wrong.bos_token = "no token"
    assert wrong.bos_token_id == wrong.unk_token_id
    with pytest.raises(ValueError, match="`bos_token` is 'no token', which is not in its vocabulary"):
        prefix_token_id(wrong)


def test_a_document_queries_and_is_scored_whole(tokenizer):
    assert split_document(tokenizer, "  Größe\n", "document") == ("  Größe\n", "  Größe\n")


@pytest.mark.parametrize(
    "text", ["", "a", "ab", "The whale, the white whale", "x = 1 ,  y = 2 .\n\n  don 't", "  \n a  "]
)
def test_a_prefix_and_the_rest_make_the_document(tokenizer, text):
    prefix, rest = split_document(tokenizer, text, "prefix")
    assert prefix + rest == text
    assert len(encode(tokenizer, text)) // 2 == len(tokenizer(prefix)["input_ids"])


def test_the_middle_token_of_an_odd_number_is_scored(tokenizer):
    text = "whale whale whale"
    assert len(encode(tokenizer, " whale")) * 3 == len(encode(tokenizer, " " + text)) == 3
    assert split_document(tokenizer, " " + text, "prefix") == (" whale", " whale whale")


def test_one_token_is_scored_after_an_empty_query(tokenizer):
    assert split_document(tokenizer, "a", "prefix") == ("", "a")


def test_a_prefix_has_at_most_1024_tokens(tokenizer):
    assert MAX_PREFIX_LENGTH == 1024
    assert split_document(tokenizer, " whale" * 2046, "prefix") == (" whale" * 1023, " whale" * 1023)
    assert split_document(tokenizer, " whale" * 2048, "prefix") == (" whale" * 1024, " whale" * 1024)
    assert split_document(tokenizer, " whale" * 2050, "prefix") == (" whale" * 1024, " whale" * 1026)


def test_the_authors_cut_inside_a_character_shows_on_both_sides(tokenizer):
    # U+1F40B is no token: it is four bytes, F0 9F 90 8B, of which the first two make a valid beginning
    assert len(encode(tokenizer, "🐋")) == 4
    prefix, rest = split_document(tokenizer, "🐋", "prefix", "tokens")
    assert prefix == b"\xf0\x9f".decode(errors="replace") == "\ufffd"
    assert rest == b"\x90\x8b".decode(errors="replace") == "\ufffd\ufffd"


@pytest.mark.parametrize("text", ["🐋", "🐋🐋", "a🐋b", "naïve 東京"])
def test_a_cut_falls_between_two_characters(tokenizer, text):
    prefix, rest = split_document(tokenizer, text, "prefix")
    assert prefix + rest == text
    assert len(encode(tokenizer, prefix)) <= len(encode(tokenizer, text)) // 2


def other_tokenizer(kind):
    """Tokenizers whose decoding does not invert their encoding, trained on the texts of the tests."""
    if kind == "byte fallback":
        # as Llama 2: a space is a mark, unknown characters are bytes, and the first space is lost in decoding
        model = models.BPE(byte_fallback=True, unk_token="<unk>")
        backend = Tokenizer(model)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=tokens, initial_alphabet=["▁"], limit_alphabet=60)
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"], unk_token="<unk>")
    else:
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"])
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["byte fallback", "unigram", "word piece"])
@pytest.mark.parametrize(
    "text",
    [
        "The Whale, the White WHALE was seen",
        " a space before and  two inside",
        "日本語のテキスト、東京タワーと富士山。",
        "Größe\tand\n\nlines 🐋 of text ",
        "ab",
    ],
)
def test_query_and_rest_are_the_text_for_every_tokenizer(kind, text):
    tokenizer = other_tokenizer(kind)
    prefix, rest = split_document(tokenizer, text, "prefix")
    assert (prefix + rest).encode() == text.encode()
    assert rest
    half = len(encode(tokenizer, text)) // 2
    assert prefix or half <= 1  # the first token may be the mark of a space that is not there
    # a token more or less where a token joins what the cut parts
    assert abs(len(encode(tokenizer, prefix)) - half) <= 2


class Slow(PreTrainedTokenizer):
    """Lower-cased words and full stops, in Python, without offsets."""

    words = ["<unk>", "the", "whale", "."]

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return {word: place for place, word in enumerate(self.words)}

    def _tokenize(self, text, **kwargs):
        return re.findall(r"\w+|\.", text.lower())

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index):
        return self.words[index]


def test_a_tokenizer_without_offsets_is_cut_too():
    assert split_document(Slow(), "The whale. THE whale.", "prefix") == ("The whale. ", "THE whale.")


def test_a_special_token_inside_a_document_is_split_like_any_other(tokenizer):
    prefix, rest = split_document(tokenizer, " whale<|endoftext|> whale whale", "prefix")
    assert (prefix, rest) == (" whale<|endoftext|>", " whale whale")


def test_a_tokenizer_that_cleans_up_spaces_does_not_change_the_document(tokenizer):
    cleaning = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=True,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )
    text = "x = 1 , y = 2 . do n't !"
    assert cleaning.decode(encode(cleaning, text)) != text
    assert "".join(split_document(cleaning, text, "prefix")) == text
