"""Models, texts and retrievers of the benchmarks; no hub is needed."""

import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

from packaged_models import smollm2  # noqa: E402

from tttnn import Neighbor, TestTimeTrainer, TestTimeTrainingArguments  # noqa: E402
from tttnn.adaptation import Episode  # noqa: E402
from tttnn.documents import Document  # noqa: E402


MODULES = ["argparse", "ast", "calendar", "configparser", "copy", "csv", "dataclasses", "datetime", "difflib", "enum"]
Episodes = list[tuple[str, list[str]]]


def real_parts() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct, dequantized from Q4_1, and its tokenizer."""
    folder = smollm2()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def tiny_parts() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GPT-2 of two layers and 32 dimensions without dropout, and a tokenizer trained on the texts."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(module_texts(), vocab_size=1000, special_tokens=["<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1000,
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config), tokenizer


def module_texts() -> list[str]:
    """Source code of the standard library, which is text that everyone has."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [(folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES]


def make_episodes(num_documents: int, num_neighbors: int, num_characters: int) -> Episodes:
    """Cut documents, each with its own beginning, and neighbors out of the modules."""
    texts = module_texts()
    episodes = []
    for number in range(num_documents):
        text = texts[number % len(texts)]
        start = number // len(texts) * 40
        neighbors = [texts[(number + 1 + place) % len(texts)][: 4 * num_characters] for place in range(num_neighbors)]
        episodes.append((text[start : start + num_characters], neighbors))
    return episodes


class GivenNeighbors:
    """A retriever that was told the answers, so that nothing of retrieval is in the times."""

    def __init__(self, episodes: Episodes) -> None:
        self.answers = dict(episodes)

    def retrieve(self, texts: list[str], top_k: int) -> list[list[Neighbor]]:
        """Give the neighbors that belong to each text."""
        answers = [self.answers[text][:top_k] for text in texts]
        return [[Neighbor(row, text, float(row)) for row, text in enumerate(found)] for found in answers]


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    episodes: Episodes,
    **arguments: Any,  # noqa: ANN401
) -> TestTimeTrainer:
    """Make a trainer that scores each document before and after its given neighbors."""
    args = TestTimeTrainingArguments(
        output_dir=str(Path(tempfile.gettempdir(), "tttnn-benchmarks")),
        num_neighbors=len(episodes[0][1]),
        query="document",
        use_cpu=True,
        disable_tqdm=True,
        **arguments,
    )
    return TestTimeTrainer(model, args, GivenNeighbors(episodes), processing_class=tokenizer)


@contextmanager
def training_steps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[Callable[[bool], float]]:
    """
    Give what takes a training step on one chunk and gives its loss: with the output layer row by row, or all logits.

    The learning rate is 0, so that every step has the same work and the same loss.
    """
    text = "\n".join(module_texts())
    trainer = make_trainer(model, tokenizer, [(text, [text])], max_length=length, learning_rate=0.0)
    chunk = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:length]
    with trainer.episodes():
        episode = Episode(trainer, Document("step", text), 0, query="document")

        def step(by_rows: bool) -> float:
            trainer.hands_out_logits = by_rows
            list(episode.train_on([[chunk]]))
            assert trainer.hands_out_logits == by_rows  # it is turned off for a model that cannot
            return episode.record.train_loss[-1]

        yield step
