"""Tiny models made from configs, a tokenizer and an embedder made on the spot: no test needs a hub."""

import copy
import os
import signal
import time


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from tttnn import Neighbor, NeighborRetriever, TestTimeTrainer, TestTimeTrainingArguments


pytest_plugins = ["commands"]  # the fixtures of the command line

# a shell that starts the tests in the background has Ctrl-C ignored, and some tests are about Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # for tiny models a second thread only waits

TEXTS = [
    "def parse_args(argv):\n    parser = ArgumentParser()\n    return parser.parse_args(argv)\n",
    "def load(path):\n    with open(path) as file:\n        return json.load(file)\n",
    "The whale, the white whale, was seen from the masthead at the break of day by the whole crew.",
    "Call the crew; the whale blows! said the old captain, and they lowered the boats at once.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; naïve café, 東京, Ελλάδα.",
    "class Parser:\n    def __init__(self, argv):\n        self.argv = list(argv)\n",
    "Let x be a real number such that x squared equals two; then x is not a rational number.",
    "Suppose that x is rational. Then x equals p over q with p and q without a common factor.",
    "import json\nimport sys\n\ndef main():\n    print(json.dumps(sys.argv))\n",
    "The captain wrote in the log that the wind had turned and the crew was tired of the sea.",
]

CONFIGS = {
    "gpt2": lambda n: GPT2Config(
        vocab_size=n, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    ),
    "llama": lambda n: LlamaConfig(
        vocab_size=n,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "qwen2": lambda n: Qwen2Config(
        vocab_size=n,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "gpt_neo": lambda n: GPTNeoConfig(
        vocab_size=n,
        max_position_embeddings=64,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        bos_token_id=0,
        eos_token_id=0,
    ),
}


class GivenRetriever:
    """Gives the same texts to each query, at distances 0, 1, 2 and so on, and notes the queries."""

    def __init__(self, texts):
        self.texts, self.queries = texts, []

    def retrieve(self, texts, top_k):
        self.queries += texts
        return [[Neighbor(row, text, float(row)) for row, text in enumerate(self.texts[:top_k])] for _ in texts]


def pytest_configure(config):
    """Try a tenth of the examples where slow tests are left out."""
    settings.register_profile("quick", max_examples=10)
    if "not slow" in config.option.markexpr:
        settings.load_profile("quick")


@pytest.fixture(autouse=True)
def caches_of_its_own(tmp_path, monkeypatch):
    """Keep stamps of verified files and module caches out of the user's home."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf_home"))


@pytest.fixture(scope="session")
def tokenizer():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture(scope="session")
def two_processes(tokenizer, tmp_path_factory):
    """A folder with what the scenarios of `two_processes.py` wrote, launched once for all workers of a test run."""
    from two_processes import launch  # imports this file

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "two processes"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            tokenizer.save_pretrained(folder / "tokenizer")
            launch(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def tiny_models(tokenizer):
    models = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        models[name] = AutoModelForCausalLM.from_config(config(len(tokenizer))).eval()
    return models


@pytest.fixture(params=["gpt2"])
def model(request, tiny_models):
    """A tiny GPT-2; `@pytest.mark.parametrize("model", [...], indirect=True)` gives others of `CONFIGS`."""
    return copy.deepcopy(tiny_models[request.param])


def save_bert(tokenizer, folder, hidden_size, max_position_embeddings):
    """A tiny BERT as transformers saves it, with random weights, always the same ones."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=max_position_embeddings,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedder(tokenizer, tmp_path_factory):
    folder = save_bert(tokenizer, tmp_path_factory.mktemp("embedder"), 32, 128)
    transformer = Transformer(str(folder), max_seq_length=64)
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")


@pytest.fixture(scope="session")
def retriever(embedder):
    return NeighborRetriever.from_documents(TEXTS, embedder)


@pytest.fixture
def waits(monkeypatch):
    """Seconds that would have been waited for a Hub; shorter waits are for locks of files, and take place."""
    waits, sleep = [], time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: waits.append(seconds) if seconds >= 1 else sleep(seconds))
    return waits


@pytest.fixture
def documents():
    return [
        "def parse_args(args):\n    parser = argparse.ArgumentParser()\n"
        "    parser.parse_args(args)\n    return parser\n",
        "The old captain saw the white whale at the break of day, and the whole crew was at the boats.",
        "Then x is a rational number; let p and q be such that x squared equals p over q. Größe!",
    ]


@pytest.fixture
def make_trainer(model, tokenizer, retriever, tmp_path):
    """Make a trainer of tiny parts; keyword arguments go to it or, if it has none of that name, to its args."""

    def make(**overrides):
        parts = {
            "model": model,
            "processing_class": tokenizer,
            "retriever": retriever,
            "callbacks": None,
            "method": None,
            "optimizers": (None, None),
            "selector": None,
        }
        if isinstance(overrides.get("selector"), str):  # a name is an argument, and a function a part
            parts.pop("selector")
        parts |= {name: overrides.pop(name) for name in list(overrides) if name in (*parts, "eval_dataset", "args")}
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "num_neighbors": 4,
            "max_length": 32,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        parts.setdefault("args", TestTimeTrainingArguments(**{**defaults, **overrides}))
        return TestTimeTrainer(**parts)

    return make


@pytest.fixture
def trainer(make_trainer):
    return make_trainer()
