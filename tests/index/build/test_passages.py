"""Passages are the text, to the letter, in pieces of at most N tokens that end where lines, sentences or words end."""

from types import SimpleNamespace

import pytest
from build_program import WordEmbedder
from conftest import TEXTS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tttnn import Document, Embedder, NeighborRetriever
from tttnn.index.build.passages import split_into_passages


SPECIAL = ["[CLS]", "[SEP]", "[UNK]", "[PAD]"]
FEW = settings(max_examples=300, deadline=None, derandomize=True, database=None)
WORDS = sorted({word for text in TEXTS for word in text.split()})
# of any characters that UTF-8 can encode, and of words with any white space between them
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=80)
WORDY_TEXT = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", "\n", "  ", "\t\n  ", "\u2003"]))).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)


class TokenEmbedder(WordEmbedder):
    """Has a tokenizer and a limit."""

    def __init__(self, tokenizer, limit=64, prompt=""):
        super().__init__()
        self.model, self.limit, self.document_prompt = SimpleNamespace(tokenizer=tokenizer), limit, prompt

    @property
    def max_seq_length(self):
        return self.limit


def byte_level(trim_offsets):
    bpe = ByteLevelBPETokenizer(trim_offsets=trim_offsets)
    bpe.train_from_iterator(TEXTS, vocab_size=400, min_frequency=1)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)


def words():
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_piece():
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(TEXTS, vocab_size=300, min_frequency=1, special_tokens=SPECIAL)
    ids = [(token, pieces.token_to_id(token)) for token in SPECIAL[:2]]
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, unk_token="[UNK]", pad_token="[PAD]")


# whose tokens begin with the space before a word; or after it; which changes the text first, and adds two tokens; and
# one that has no characters
TOKENIZERS = {
    "bytes": byte_level(False),
    "bytes after spaces": byte_level(True),
    "pieces": word_piece(),
    "words": words(),
}
each_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


def cut(text, kind, tokens):
    passages = split_into_passages([Document("its id", text, {"topic": 1})], TokenEmbedder(TOKENIZERS[kind]), tokens)
    return list(passages)


def count(text, kind):
    return len(TOKENIZERS[kind](text, add_special_tokens=False)["input_ids"])


@each_tokenizer
@FEW
@example(text="", tokens=1)
@example(text=" ", tokens=1)
@example(text="\x00\u200d👩‍👩‍👧‍👦é\u0301ﷺ", tokens=1)
@example(text="\r\n\r\n東京" * 9, tokens=2)
@given(text=ANY_TEXT | WORDY_TEXT, tokens=st.integers(1, 20))
def test_joined_passages_are_the_text_to_the_letter(kind, text, tokens):
    passages = cut(text, kind, tokens)
    assert "".join(passage.text for passage in passages) == text
    assert all(passage.text for passage in passages) or text == ""


@each_tokenizer
@FEW
@given(text=ANY_TEXT | WORDY_TEXT, tokens=st.integers(4, 20))
def test_a_passage_has_at_most_so_many_tokens_of_the_text(kind, text, tokens):
    starts = [
        start
        for start, _ in TOKENIZERS[kind](text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    begin = 0
    for passage in cut(text, kind, tokens):
        end = begin + len(passage.text)
        assert sum(begin <= start < end for start in starts) <= tokens
        begin = end


@FEW
@given(text=WORDY_TEXT, tokens=st.integers(24, 40))
def test_a_passage_of_word_pieces_has_at_most_so_many_tokens_by_itself(text, tokens):
    for passage in cut(text, "pieces", tokens):
        assert count(passage.text, "pieces") <= tokens


@each_tokenizer
@FEW
@given(words=st.lists(st.sampled_from(WORDS), min_size=1), tokens=st.integers(24, 40))
def test_passages_end_where_words_end(kind, words, tokens):
    passages = [passage.text for passage in cut(" ".join(words), kind, tokens)]
    assert [word for passage in passages for word in passage.split()] == words


@FEW
@given(words=st.lists(st.sampled_from(WORDS), min_size=1), tokens=st.integers(24, 40))
def test_passages_of_word_pieces_but_for_the_last_two_are_as_long_as_they_can_be(words, tokens):
    text = " ".join(word.rstrip(".!?") for word in words)
    passages = [passage.text for passage in cut(text, "pieces", tokens)]
    for passage, following in zip(passages, passages[1:-1], strict=False):
        assert count(f"{passage}{following.split()[0]}", "pieces") > tokens


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1, ["the ", "crew ", "saw ", "the ", "whale", "!"]),
        (2, ["the crew ", "saw the ", "whale!"]),
        (3, ["the crew saw ", "the whale!"]),
        (4, ["the crew saw the ", "whale!"]),
        (5, ["the crew saw the ", "whale!"]),
        (6, ["the crew saw the whale!"]),
    ],
)
def test_a_text_is_cut_as_by_hand(tokens, expected):
    # of six tokens: each word is one, and the mark of exclamation another
    assert [passage.text for passage in cut("the crew saw the whale!", "words", tokens)] == expected


# Of "words" each word is a token, and so is each run of marks between words.
BROKEN = {
    "a line ends in the second half": ("a b c d\ne f g h", 6, ["a b c d\n", "e f g h"]),
    "the last line that ends there": ("a b c\nd\ne\nf g h i", 6, ["a b c\nd\ne\n", "f g h i"]),
    "a line that ends in the first half would leave too little": ("a\nb c d e f g h", 6, ["a\nb c d e f ", "g h"]),
    "a sentence ends in the second half": ("a b c. D e f g h", 6, ["a b c. ", "D e f g h"]),
    "a sentence in quotes": ('a b "c?" D e f g h', 6, ['a b "c?" ', "D e f g h"]),
    "a line before a sentence": ("a b c\nd. E f g h", 6, ["a b c\n", "d. E f g h"]),
    "a mark inside of a word ends nothing": ("a b c.d e f g h", 6, ["a b c.d e ", "f g h"]),
    "a line is indented": ("a b c d:\n    e f g h", 6, ["a b c d:\n", "    e f g h"]),
    "empty lines belong to what is before them": ("a b c d\n\n\n  e f g h", 6, ["a b c d\n\n\n", "  e f g h"]),
    "a sentence ends without a space": ("東 京 東。 京 東 京 東 京", 6, ["東 京 東。 ", "京 東 京 東 京"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_passages_end_with_lines_and_sentences_where_enough_is_before(case):
    text, tokens, expected = BROKEN[case]
    assert [passage.text for passage in cut(text, "words", tokens)] == expected


def test_a_sentence_of_a_script_without_spaces_ends_a_passage():
    text = "東京は都だ。京都も都だ。大阪は違う。"
    passages = [passage.text for passage in cut(text, "bytes", 20)]  # of three tokens a character
    assert passages == ["東京は都だ。", "京都も都だ。", "大阪は違う。"]


@pytest.mark.parametrize(
    ("number", "lengths"), [(8, [8]), (9, [7, 2]), (10, [8, 2]), (16, [8, 8]), (17, [8, 7, 2]), (18, [8, 8, 2])]
)
def test_the_last_passage_has_a_quarter_of_the_tokens_at_least(number, lengths):
    passages = cut(" ".join("abcdefghijklmnopqr"[:number]), "words", 8)
    assert [len(passage.text.split()) for passage in passages] == lengths


@each_tokenizer
@settings(FEW, max_examples=100)
@example(text="\n", tokens=1)
@example(text="a\r\n\r\nb", tokens=1)
@given(text=ANY_TEXT | WORDY_TEXT, tokens=st.integers(1, 20))
def test_lines_of_passages_are_those_of_their_first_and_last_characters(kind, text, tokens):
    begin = 0
    for passage in cut(text, kind, tokens):
        end = begin + len(passage.text)
        assert passage.metadata["start_line"] == 1 + text[:begin].count("\n")
        assert passage.metadata["end_line"] == 1 + text[: max(end - 1, 0)].count("\n")
        begin = end


def test_lines_are_counted_from_one_and_a_line_end_belongs_to_its_line():
    text = "".join(f"a{number} b c d\n" for number in range(6))
    lines = [(p.metadata["start_line"], p.metadata["end_line"]) for p in cut(text, "words", 8)]
    assert lines == [(1, 2), (3, 4), (5, 6)]


def cut_in_slices(text, kind, tokens, characters):
    """The passages, and the longest text that was tokenized."""
    lengths, call = [], PreTrainedTokenizerFast.__call__

    def noting(tokenizer, text, **named):
        lengths.append(len(text))
        return call(tokenizer, text, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tttnn.index.build.passages.SLICE_CHARACTERS", characters)
        patch.setattr(PreTrainedTokenizerFast, "__call__", noting)
        return [passage.text for passage in cut(text, kind, tokens)], max(lengths)


@each_tokenizer
@FEW
@example(text="", tokens=1, characters=1)
@example(text=" " * 50, tokens=1, characters=7)
@example(text="東京" * 30, tokens=4, characters=11)
@given(text=ANY_TEXT | WORDY_TEXT, tokens=st.integers(1, 20), characters=st.integers(1, 60))
def test_a_long_text_is_tokenized_in_slices_and_stays_to_the_letter(kind, text, tokens, characters):
    passages, longest = cut_in_slices(text, kind, tokens, characters)
    assert "".join(passages) == text
    assert all(passages) or passages == [""]
    assert longest <= characters


# where the first word of a text has the tokens that it has in the midst of one
@pytest.mark.parametrize("kind", ["bytes", "pieces", "words"])
@settings(FEW, max_examples=50)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=80), tokens=st.integers(24, 40), characters=st.integers(400, 900)
)
def test_slices_of_words_have_the_passages_of_the_whole(kind, words, tokens, characters):
    text = " ".join(words)
    passages, longest = cut_in_slices(text, kind, tokens, characters)
    assert longest <= characters
    assert passages == [passage.text for passage in cut(text, kind, tokens)]
    assert all(count(passage, kind) <= tokens for passage in passages)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("text", ["x" * 300, "東京" * 150, "é\u0301" * 150], ids=["letters", "signs", "accents"])
def test_slices_of_a_text_without_white_space_have_passages_of_at_most_so_many_tokens(kind, text):
    passages, _ = cut_in_slices(text, kind, 24, 70)
    assert len(passages) > 3 and all(count(passage, kind) <= 24 for passage in passages)


def test_a_word_that_is_longer_than_a_passage_is_cut_between_characters():
    text = "x" + "東京" * 10  # of three bytes a character, a token each
    assert count(text, "bytes") > 20
    passages = [passage.text for passage in cut(text, "bytes", 7)]
    assert "".join(passages) == text and len(passages) > 5
    assert all(count(passage, "bytes") <= 7 for passage in passages)


def test_a_character_of_more_tokens_than_a_passage_is_a_passage():
    assert count("東", "bytes") == 3
    assert [passage.text for passage in cut("東東東", "bytes", 1)] == ["東", "東", "東"]


@each_tokenizer
def test_passages_have_the_id_and_metadata_of_their_document_and_a_number(kind):
    passages = cut(TEXTS[2], kind, 8)
    assert len(passages) > 2
    assert [(passage.id, passage.metadata) for passage in passages] == [
        ("its id", {"topic": 1, "passage": number, "start_line": 1, "end_line": 1}) for number in range(len(passages))
    ]


def test_every_document_has_a_passage_and_they_come_as_they_are_read():
    read = []

    def stream():
        for row, text in enumerate(["", "the crew", " "]):
            read.append(row)
            yield Document(f"{row}", text)

    passages = split_into_passages(stream(), TokenEmbedder(TOKENIZERS["bytes"]), 20)
    assert [(next(passages).text, [*read]) for _ in range(3)] == [("", [0]), ("the crew", [0, 1]), (" ", [0, 1, 2])]


@pytest.mark.parametrize(
    ("kind", "prompt", "room"),
    [("bytes", "", 64), ("pieces", "", 62), ("pieces", "the crew", 60)],
    ids=["no special tokens", "two special tokens", "a prompt of two tokens"],
)
def test_passages_of_more_tokens_than_are_read_are_refused(kind, prompt, room):
    embedder = TokenEmbedder(TOKENIZERS[kind], 64, prompt)
    (passage,) = split_into_passages([Document("0", "the whale")], embedder, room)
    assert passage.text == "the whale"
    with pytest.raises(ValueError, match=f"Passages of {room + 1} tokens .* reads {room} of a text"):
        list(split_into_passages([Document("0", "the whale")], embedder, room + 1))


@pytest.mark.parametrize("tokens", [0, -1])
def test_passages_of_no_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=f"Passages of {tokens} tokens were asked for"):
        list(split_into_passages([], TokenEmbedder(TOKENIZERS["bytes"]), tokens))


def test_the_embedder_reads_every_passage_to_its_end():
    for passage in cut(" ".join(TEXTS) * 3, "pieces", 62):
        assert len(TOKENIZERS["pieces"](passage.text)["input_ids"]) <= 64


def test_static_embeddings_cut_where_a_transformer_with_their_tokenizer_does():
    text = " ".join(TEXTS) * 3
    backend = Tokenizer.from_str(TOKENIZERS["pieces"].backend_tokenizer.to_str())
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    static = SentenceTransformer(modules=[StaticEmbedding(backend, embedding_dim=8)], device="cpu")
    passages = [passage.text for passage in split_into_passages([Document("0", text)], Embedder(static), 12)]
    assert passages == [passage.text for passage in cut(text, "pieces", 12)]
    assert len(passages) > 3
    assert backend.truncation is not None  # of the model's own tokenizer nothing changed


def test_a_tokenizer_in_python_is_refused(tmp_path):
    slow = SimpleNamespace(is_fast=False, num_special_tokens_to_add=lambda: 2)
    with pytest.raises(ValueError, match="does not say where tokens stand. Use another embedder"):
        list(split_into_passages([Document("0", "a")], TokenEmbedder(slow), 4))


def test_the_neighbor_is_the_passage_that_matters_and_not_the_beginning_of_its_document(embedder):
    documents = [Document("long", " ".join(TEXTS)), Document("short", "the crew slept")]
    retriever = NeighborRetriever.from_documents(documents, embedder, passage_tokens=16)
    passages = retriever.index.documents(range(len(retriever)))
    assert len(passages) > 12
    for row in (0, 5, len(passages) - 1):
        nearest = retriever.retrieve([passages[row].text], top_k=1)[0][0]
        assert nearest.text == passages[row].text
        assert nearest.distance == pytest.approx(0, abs=1e-5)
        assert nearest.metadata == {**passages[row].metadata, "id": passages[row].id}
