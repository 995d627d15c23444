"""The first tokens of a long text without the rest, against the first of all its tokens."""

import string

import pytest
from conftest import TEXTS, GivenRetriever
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation.beginnings import EXPRESSIONS, can_cut_at_spaces, encode_beginning


ALPHABET = [*string.ascii_letters, *string.digits, *string.punctuation]
METASPACE = "\u2581"
BYTES = [f"<0x{value:02X}>" for value in range(256)]
CORPUS = [*TEXTS, "12345 67 's 'll don't  two   three\n\n\tfour é e\u0301 🐋🐋 ﬁn Σίσυφος ½ … a\u00a0b"]
ADVERSARIAL = [
    "w" * 100_000,
    "w" * 50_000 + " and then " + "w" * 50_000,
    ("e\u0301" + "a\u0300\u0301\u0302\u0303" * 30 + " x ") * 300,
    "a \u0301b " * 3000,
    "a   b \t\n  c" * 3000,
    " " * 30_000 + "end " + " " * 30_000,
    "🐋👩‍👩‍👧 flag 🇫🇷🇩🇪 " * 2000,
    "don't they'll I'd 've 'l l 's " * 2000,
    "1234567 89 0 12 " * 2000,
    "東京は日本の首都です。" * 3000,
    "ﬁ ﬃ ½ ㎏ a\u00a0b \u3000c ΑΣ a. ΟΔΟΣ x " * 1000,
    "<s> a</s> b <pad>c " * 2000,
    "\r\n\r\n x\r\n" * 3000 + "y " * 3000,
]


def wrapped(tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token=None)


def trained(model, trainer, normalizer=None, pre_tokenizer=None):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer)


def byte_level(pre_tokenizer):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False),
        normalizers.NFC(),
        pre_tokenizer,
    )


def split(expression):
    parts = [pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def unigram(pre_tokenizer, *extra):
    words = {word for text in CORPUS for word in text.split()}
    pieces = [("<unk>", 0.0), (METASPACE, -3.0), *((character, -6.0) for character in ALPHABET)]
    pieces += [(METASPACE + word[:4], -4.0 - len(word) / 7) for word in sorted(words) if len(word) > 2] + [*extra]
    tokenizer = Tokenizer(models.Unigram([*dict(pieces).items()], unk_id=0))
    replace = [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(" ", METASPACE)]
    tokenizer.normalizer = normalizers.Sequence(replace)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return wrapped(tokenizer)


def byte_fallback(*extra, **options):
    """As Llama 2 has it: BPE over the whole text, without pre-tokenizer, and bytes for what is unknown."""
    merges = [
        ("t", "h"),
        ("th", "e"),
        (METASPACE, "the"),
        (METASPACE, METASPACE),
        ("e", "r"),
        (METASPACE, "a"),
        *extra,
    ]
    tokens = [*BYTES, METASPACE, *ALPHABET, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(["<unk>", *dict.fromkeys(tokens)])}
    options = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True, **options}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))
    prepend = [normalizers.Prepend(METASPACE), normalizers.Replace(" ", METASPACE)]
    tokenizer.normalizer = normalizers.Sequence(prepend)
    tokenizer.decoder = decoders.ByteFallback()
    return wrapped(tokenizer)


def word_piece(normalizer=None, pre_tokenizer=None):
    return trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False),
        normalizer or normalizers.BertNormalizer(),
        pre_tokenizer or pre_tokenizers.BertPreTokenizer(),
    )


CAN = {
    "byte-level BPE": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte-level BPE with a space before": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "byte-level BPE with digits": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    ),
    **{f"expression {number}": lambda e=e: byte_level(split(e)) for number, e in enumerate(EXPRESSIONS)},
    "Unigram": lambda: unigram(pre_tokenizers.Metaspace()),
    "Unigram without splitting": lambda: unigram(pre_tokenizers.Metaspace(split=False)),
    "Unigram alone": lambda: unigram(None),
    "byte fallback": byte_fallback,
    "WordPiece": word_piece,
}


def with_dropout():
    tokenizer = CAN["byte-level BPE"]()
    tokenizer.backend_tokenizer.model.dropout = 0.1
    return tokenizer


def with_added(content):
    tokenizer = CAN["byte-level BPE"]()
    tokenizer.add_tokens([AddedToken(content, normalized=False)])
    return tokenizer


CANNOT = {
    "a merge across a space": lambda: byte_fallback(("a", METASPACE)),
    "a piece across a space": lambda: unigram(None, (f"a{METASPACE}b", -1.0)),
    "a whole text that may be a token": lambda: byte_fallback(ignore_merges=True),
    "dropout": with_dropout,
    "an added token with a space": lambda: with_added("well known"),
    "an unknown expression": lambda: byte_level(split(r"\S+(?=.*end)|\s+|\S+")),
    "words of several words": lambda: byte_level(split(r"\p{L}+ \p{L}+|\s+|\S+")),
    "scripts": lambda: word_piece(pre_tokenizer=pre_tokenizers.UnicodeScripts()),
    "words that are not split": lambda: word_piece(pre_tokenizer=pre_tokenizers.Digits()),
    "an unknown replacement": lambda: word_piece(normalizers.Replace(Regex("a (?=b)"), "c")),
}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in CAN.items()}


@pytest.mark.parametrize("name", CAN)
def test_the_first_tokens_are_those_of_the_whole_text(name, tokenizers):
    tokenizer = tokenizers[name]
    assert can_cut_at_spaces(tokenizer)
    for text in ADVERSARIAL:
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        for num_tokens in (1, 128, 1000):
            assert encode_beginning(tokenizer, text, num_tokens, True) == whole[:num_tokens], text[:60]


@pytest.mark.parametrize("name", CAN)
@given(data=st.data())
def test_the_first_tokens_of_any_text_are_those_of_the_whole(name, tokenizers, data):
    pieces = [
        *"aZ9 ' \t\n\r.",
        "'l",
        "l",
        "  ",
        "é",
        "\u0301",
        "\u200d",
        "🐋",
        "Σ",
        "東",
        "\u00a0",
        "\u2581",
        "Ġ",
        "</s>",
        "the",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=150)))
    whole = tokenizers[name](text, add_special_tokens=False)["input_ids"]
    for num_tokens in (1, 3, 5):
        assert encode_beginning(tokenizers[name], text, num_tokens, True) == whole[:num_tokens]


@pytest.mark.parametrize("name", CANNOT)
def test_without_a_proof_all_of_a_text_is_tokenized(name):
    assert not can_cut_at_spaces(CANNOT[name]())


@pytest.mark.parametrize("name", ["a merge across a space", "an added token with a space"])
def test_a_cut_would_change_the_tokens_there(name):
    tokenizer = CANNOT[name]()
    left, right = ("xa", " b") if name == "a merge across a space" else ("well", " known")
    whole, left = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (left + right, left))
    assert whole[: len(left)] != left


def test_a_tokenizer_of_another_class_is_left_alone():
    class Own(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            return super().__call__(text[::-1], **options)

    assert not can_cut_at_spaces(Own(tokenizer_object=CAN["byte-level BPE"]().backend_tokenizer))


def test_only_the_beginning_of_a_long_neighbor_is_tokenized(model, tokenizer, tmp_path):
    neighbor, lengths = "the whale and the crew of 12 men, " * 6000, []
    args = TestTimeTrainingArguments(
        output_dir=str(tmp_path), num_neighbors=1, max_length=32, use_cpu=True, disable_tqdm=True
    )
    trainer = TestTimeTrainer(model, args, GivenRetriever([neighbor]), processing_class=tokenizer)
    expected = tokenizer(neighbor)["input_ids"][:32]
    with trainer.episodes() as episodes, pytest.MonkeyPatch.context() as patch:
        call = type(tokenizer).__call__
        patch.setattr(type(tokenizer), "__call__", lambda *a, **o: lengths.append(len(a[1])) or call(*a, **o))
        record = episodes.run(TEXTS[2])
    assert max(lengths) < 1000
    assert record.num_trained_tokens == len(expected) == 32
