"""
Test-time training on nearest neighbors as one plain PyTorch loop, for the trainer to be compared with.

It is written from the description of the method alone and shares no code with the library: a tokenizer,
`torch.nn.functional.cross_entropy`, `torch.nn.utils.clip_grad_norm_` and the unfused `torch.optim.AdamW`.

Source of the method: [TTT-NN](https://huggingface.co/papers/2305.18466) and its public code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Settings:
    """
    What the loop depends on; by default one step on the first chunk of each neighbor, with a fresh optimizer.

    Args:
        max_length (`int`):
            Tokens in a training chunk and in a scoring window.
        learning_rate (`float`):
            Constant.
        weight_decay (`float`, *optional*, defaults to `0.01`):
            On every parameter.
        max_grad_norm (`float`, *optional*, defaults to `1.0`):
            Gradients are clipped to this norm.
        query (`str`, *optional*, defaults to `"document"`):
            `"document"`: all of a document is scored; `"prefix"`: its second half.
        first_chunks (`int`, *optional*, defaults to `1`):
            Chunks trained on per neighbor, from its beginning. `None`: all.
        carry_optimizer (`bool`, *optional*, defaults to `False`):
            Whether one optimizer serves all documents.
        neighbors_per_step (`int`, *optional*, defaults to `1`):
            With 1, each chunk is a step. With more, the mean loss over the chunks of that many neighbors is one.
        passes (`int`, *optional*, defaults to `1`):
            How often the neighbors are gone through.
        score_every_neighbor (`bool`, *optional*, defaults to `True`):
            Whether to score after every neighbor and not only before the first and after the last.
    """

    max_length: int
    learning_rate: float
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    query: str = "document"
    first_chunks: int | None = 1
    carry_optimizer: bool = False
    neighbors_per_step: int = 1
    passes: int = 1
    score_every_neighbor: bool = True


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize without special tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def split(tokenizer: PreTrainedTokenizerBase, text: str, query: str) -> tuple[str, str]:
    """Give the query for the neighbors and the text that is scored."""
    if query == "document":
        return text, text
    tokens = tokenize(tokenizer, text)
    middle = min(len(tokens) // 2, 1024)
    return tokenizer.decode(tokens[:middle]), tokenizer.decode(tokens[middle:])


@torch.no_grad()
def rolling_nll(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> float:
    """Sum the negative log-likelihood of a text in nats, each token predicted once, in windows of `max_length`."""
    model.eval()
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    tokens = torch.tensor([prefix, *tokenize(tokenizer, text)], device=model.device)
    nll = 0.0
    for start in range(1, len(tokens), max_length):
        targets = tokens[start : start + max_length]
        end = start + len(targets)
        # the tokens before the last target, as many as a window holds: a short last window is filled up to the left
        inputs = tokens[max(0, end - 1 - max_length) : end - 1]
        logits = model(inputs[None], use_cache=False).logits[0, -len(targets) :]
        nll += F.cross_entropy(logits, targets, reduction="sum").item()
    return nll


def chunk_loss(model: PreTrainedModel, chunk: list[int]) -> torch.Tensor:
    """Give the mean loss of the tokens after the first; of a single token it is NaN, with gradients of zero."""
    inputs = torch.tensor(chunk, device=model.device)
    logits = model(inputs[None], use_cache=False).logits[0]
    return F.cross_entropy(logits[:-1], inputs[1:])


def adapted_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: list[tuple[str, list[str]]],
    settings: Settings,
    before_training: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """
    Train on the neighbors of each document in turn, and restore the model after it.

    Args:
        model (`PreTrainedModel`):
            In train mode while it trains, so with whatever dropout it has.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        documents (`list[tuple[str, list[str]]]`):
            Each document and the texts of its neighbors, in order.
        settings (`Settings`):
            See there.
        before_training (`Callable`, *optional*):
            Called before the first step on each document, to seed dropout.

    Returns:
        `list[list[float]]`: for each document its nll in nats before training and after each neighbor.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = [parameter.detach().clone() for parameter in parameters]

    def new_optimizer() -> torch.optim.AdamW:
        return torch.optim.AdamW(
            parameters, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay
        )

    optimizer = new_optimizer()
    curves = []
    for document, neighbors in documents:
        if not settings.carry_optimizer:
            optimizer = new_optimizer()
        _, text = split(tokenizer, document, settings.query)
        curve = [rolling_nll(model, tokenizer, text, settings.max_length)]
        before_training()
        for _ in range(settings.passes):
            for first in range(0, len(neighbors), settings.neighbors_per_step):
                group = neighbors[first : first + settings.neighbors_per_step]
                chunks = []
                for neighbor in group:
                    tokens = tokenize(tokenizer, neighbor)
                    pieces = [
                        tokens[at : at + settings.max_length] for at in range(0, len(tokens), settings.max_length)
                    ]
                    chunks += pieces[: settings.first_chunks]
                if settings.neighbors_per_step == 1:
                    steps = [[chunk] for chunk in chunks]
                else:
                    steps = [chunks] if chunks else []
                model.train()
                for step in steps:
                    for chunk in step:
                        (chunk_loss(model, chunk) / len(step)).backward()
                    torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                if settings.score_every_neighbor:
                    # until the last neighbor of a group nothing has changed
                    curve += [curve[-1]] * (len(group) - 1)
                    curve.append(rolling_nll(model, tokenizer, text, settings.max_length))
        if not settings.score_every_neighbor:
            curve.append(rolling_nll(model, tokenizer, text, settings.max_length))
        with torch.no_grad():
            for parameter, weights in zip(parameters, saved, strict=True):
                parameter.copy_(weights)
        curves.append(curve)
    return curves
