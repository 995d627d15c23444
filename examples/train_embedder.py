"""
Train the embedder on a corpus by masked language modeling, as the method's authors did with RoBERTa-large on the Pile.

    python examples/train_embedder.py --model FacebookAI/roberta-large --corpus user/pile --eval-corpus val.jsonl.zst \
        --max-steps 100000 --output-dir runs/embedder

The corpus is streamed. `--resume-from-checkpoint True` resumes from the last checkpoint in `--output-dir`: pass the
same options again. `OUTPUT_DIR/embedder` is then a folder for `tttnn build-index --embedder`: the encoder, and the
attention-masked mean of its last hidden state. Source: https://huggingface.co/papers/2305.18466, section 3.
"""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import datasets
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_outputs import MaskedLMOutput

from tttnn import read_documents
from tttnn.helptext import OptionParser, dashed


@dataclass
class EmbedderArguments:
    """What is trained, and on what."""

    model: str = field(metadata={"help": "Encoder to start from: Hub id or folder."})
    corpus: list[str] = field(metadata={"help": ".jsonl, .jsonl.zst, .parquet files, folders, or Hub data sets."})
    eval_corpus: list[str] = field(metadata={"help": "Held-out documents, from the same kinds of sources."})
    text_column: str = field(default="text", metadata={"help": "The field with the text."})
    max_seq_length: int = field(default=512, metadata={"help": "Tokens of a chunk, and of a text embedded later."})
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Chunks in memory, of which the next is drawn."})
    max_eval_documents: int = field(default=500, metadata={"help": "Held-out documents, at most."})


def chunks(
    sources: list[str], options: EmbedderArguments, tokenizer: PreTrainedTokenizerBase, limit: int | None = None
) -> Iterator[dict]:
    """Cut each document into chunks of up to `max_seq_length` tokens, special tokens included, without overlap."""
    empty = True
    for document in read_documents(sources, options.text_column, limit=limit):
        encoding = tokenizer(
            document.text, truncation=True, max_length=options.max_seq_length, return_overflowing_tokens=True
        )
        for input_ids in encoding["input_ids"]:
            if len(input_ids) > tokenizer.num_special_tokens_to_add():  # an empty document has nothing to mask
                empty = False
                yield {"input_ids": input_ids}
    if empty:
        raise ValueError(f"{sources} hold no text. Check the sources and `text_column`.")


class EndlessChunks(IterableDataset):
    """
    The chunks of the corpus, pass after pass, each pass in another order.

    It has no end, because a resumed `Trainer` skips what was seen only within the first pass over a stream.
    """

    def __init__(self, options: EmbedderArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        rows = datasets.IterableDataset.from_generator(lambda: chunks(options.corpus, options, tokenizer))
        self.rows = rows.shuffle(seed=seed, buffer_size=options.shuffle_buffer)

    def __iter__(self) -> Iterator[dict]:
        for epoch in count():
            self.rows.set_epoch(epoch)
            yield from self.rows


def masked_lm_loss(
    outputs: MaskedLMOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Pool the loss over the masked tokens of a step, in nats.

    The models' own loss is the mean of one batch: `Trainer` would add up the means of a gradient accumulation, and a
    batch without a masked token would be NaN. Here such a batch counts zero.
    """
    masked = labels != -100
    nll = torch.nn.functional.cross_entropy(outputs.logits[masked].float(), labels[masked], reduction="sum")
    return nll / max(masked.sum() if num_items_in_batch is None else num_items_in_batch, 1)


class MaskedLMTrainer(Trainer):
    """A `Trainer` whose evaluations all mask the same tokens, and draw nothing from the masks of training."""

    def get_eval_dataloader(self, eval_dataset: list[dict] | None = None) -> DataLoader:
        """Load the held-out chunks with a copy of the collator, which draws from its seed again."""
        collator, self.data_collator = self.data_collator, replace(self.data_collator)
        dataloader = super().get_eval_dataloader(eval_dataset)
        self.data_collator = collator
        return dataloader


def load(options: EmbedderArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the encoder with a masked-LM head, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    special = tokenizer.num_special_tokens_to_add()
    if not special < options.max_seq_length <= tokenizer.model_max_length:
        raise ValueError(
            f"`max_seq_length` is {options.max_seq_length}, but {options.model} reads up to "
            f"{tokenizer.model_max_length} tokens, {special} special ones among them. Pass a length in between."
        )
    # float32: half precision, which transformers would keep, loses small steps
    model, info = AutoModelForMaskedLM.from_pretrained(options.model, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        warnings.warn(
            f"{options.model} has no masked-LM head: {sorted(info['missing_keys'])} are newly initialized, and "
            "the first steps are spent on them. Where the config ties it, the output matrix is the input embeddings.",
            stacklevel=2,
        )
    return model, tokenizer


def save_embedder(model: PreTrainedModel, options: EmbedderArguments, folder: Path) -> None:
    """Save the encoder with mean pooling, as sentence-transformers and `tttnn build-index` read it."""
    transformer = Transformer(options.model, max_seq_length=options.max_seq_length)
    loaded = transformer.model.load_state_dict(model.base_model.state_dict(), strict=False)
    # BERT's pooler has no part in masked language modeling, nor in the mean
    assert not loaded.unexpected_keys and all("pooler" in key for key in loaded.missing_keys), loaded
    SentenceTransformer(modules=[transformer, Pooling(model.config.hidden_size, "mean")]).save(str(folder))


def main() -> None:
    """Train, and say what the loss on held-out documents was before and after."""
    parser = OptionParser([EmbedderArguments, TrainingArguments], description=__doc__)
    parser.set_defaults(learning_rate=2e-5, per_device_train_batch_size=16, output_dir="runs/embedder")
    parsed, rest = parser.parse_groups(dashed(sys.argv[1:]))
    if rest:
        parser.error(f"{rest[0]!r} belongs to no option")
    options, args = parsed[EmbedderArguments], parsed[TrainingArguments]
    if args.max_steps < 1 or args.dataloader_num_workers > 1:
        raise ValueError(
            f"`max_steps` is {args.max_steps} and `dataloader_num_workers` {args.dataloader_num_workers}, but a "
            "stream has no length and one reader. Pass at least 1 step, and at most 1 worker."
        )
    set_seed(args.seed)  # before a head is initialized
    model, tokenizer = load(options)
    held_out = chunks(options.eval_corpus, options, tokenizer, options.max_eval_documents)
    # The seed lets the batches that a resumed run skips take their masks with them. Processes can share a stream only
    # if all batches have one width.
    collator = DataCollatorForLanguageModeling(tokenizer, pad_to_multiple_of=options.max_seq_length, seed=args.seed)
    trainer = MaskedLMTrainer(
        model,
        args,
        collator,
        train_dataset=EndlessChunks(options, tokenizer, args.seed),
        eval_dataset=list(held_out),
        processing_class=tokenizer,
        compute_loss_func=masked_lm_loss,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint == "True" or args.resume_from_checkpoint)
    after = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir, "embedder")
        save_embedder(trainer.accelerator.unwrap_model(trainer.model), options, folder)
        print(f"Masked-LM loss on held-out documents: {before:.4f} -> {after:.4f} nats a token. Embedder: {folder}")


if __name__ == "__main__":
    main()
