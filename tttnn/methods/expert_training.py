"""Experts: an index is divided into parts by its vectors, and a LoRA adapter is trained on each, ahead of time."""

import json
import math
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from filelock import FileLock, Timeout
from safetensors.numpy import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.utils import logging

from tttnn.adaptation import (
    TestTimeTrainingArguments,
    TrainableArguments,
    check_vocabulary,
    context_length,
    make_trainable,
    next_token_loss,
    random_states_kept,
)
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.files import sha256_of, sync, write_json
from tttnn.methods.expert_files import (
    ADAPTER,
    AGAIN,
    CENTERS,
    FORMAT_VERSION,
    MANIFEST,
    digest_of_weights,
    read_experts,
)


logger = logging.get_logger(__name__)

ROWS_PER_CENTER = 256  # that are clustered; all others are only assigned
BLOCK = 4096  # rows whose vectors are in memory at once
PLAN = "plan.json"
WORK = "work"


class Divided(Protocol):
    """What is used of an index (see `tttnn.index.Index`)."""

    @property
    def digest(self) -> str | None:
        """Of its content."""
        ...

    @property
    def keeps_vectors(self) -> bool:
        """Whether `vectors` gives those that distances are measured by."""
        ...

    def __len__(self) -> int: ...

    def row_at(self, place: int) -> int:
        """Give the row at a place, from 0 to the length."""
        ...

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Give the vectors of rows, float32 of shape `(len(rows), dimension)`."""
        ...

    def documents(self, rows: Sequence[int]) -> list[Document]:
        """Give the documents of rows."""
        ...


@dataclass
class ExpertTrainingArguments:
    """
    How experts are trained.

    Args:
        num_experts (`int`, *optional*, defaults to `16`):
            Parts of the index.
        lora_rank (`int`, *optional*, defaults to `16`):
            Rank of each adapter; its alpha is twice that.
        max_rows (`int`, *optional*, defaults to `512`):
            Rows of a part that are trained on, drawn by the seed.
        max_length (`int`, *optional*, defaults to `256`):
            Tokens of a row that are trained on: its beginning.
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            Falls linearly to 0.
        batch_size (`int`, *optional*, defaults to `4`):
            Rows in a step.
        seed (`int`, *optional*, defaults to `42`):
            Of the parts, the rows, and the initial adapters.
        bf16 (`bool`, *optional*, defaults to `False`):
            Mixed precision with bfloat16.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Run on the CPU even if there is a GPU.

    Raises:
        `ValueError`: If a value is out of range.
    """

    num_experts: int = 16
    lora_rank: int = 16
    max_rows: int = 512
    max_length: int = 256
    learning_rate: float = 1e-3
    batch_size: int = 4
    seed: int = 42
    bf16: bool = False
    use_cpu: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("num_experts", 1),
            ("lora_rank", 1),
            ("max_rows", 1),
            ("max_length", 2),
            ("batch_size", 1),
        ):
            if getattr(self, name) < least:
                raise InputError(f"`{name}` is {getattr(self, name)}. Pass at least {least}.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"`learning_rate` is {self.learning_rate}. Pass a rate above 0.")


def train_experts(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    index: Divided,
    output: str | Path,
    arguments: ExpertTrainingArguments | None = None,
) -> Path:
    """
    Divide an index into parts, and train a LoRA adapter on each.

    The parts are clusters of the index's vectors (K-means). An interrupted call goes on where it was, at the last
    finished expert; several processes that share the folder take an expert each. The manifest is written last.

    Args:
        model (`PreTrainedModel`):
            The model. Its weights are not changed.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        index (`Divided`):
            What is divided, such as `retriever.index`; it must keep its vectors (presets `flat`, `ivf` and `scale`).
        output (`str` or `Path`):
            Folder of the experts, new or of an interrupted call.
        arguments (`ExpertTrainingArguments`, *optional*):
            How.

    Returns:
        `Path`: the folder, for `ExpertArguments`. Each adapter in it is one of PEFT's:
        `PeftModel.from_pretrained(model, folder / "expert-00000")`. Where another process is still training one, it is
        not finished yet.

    Raises:
        `ValueError`: If the index has fewer rows than there are experts or keeps no vectors, or the folder is of other
            settings.
        `ImportError`: If PEFT is missing.
        `RuntimeError`: If a loss is not finite.

    Source: TTMM, [arXiv 2505.14136](https://huggingface.co/papers/2505.14136).
    """
    arguments, folder = arguments or ExpertTrainingArguments(), Path(output)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "Experts are trained by one process each. Start the command once for each GPU, with the same folder and "
            "without a launcher: CUDA_VISIBLE_DEVICES=0 tttnn train-experts ..."
        )
    if not index.keeps_vectors:
        raise InputError("The index keeps no vectors to divide it by. Build it with the preset flat, ivf or scale.")
    if len(index) < arguments.num_experts:
        raise InputError(f"The index has {len(index)} rows. Pass at most that as `num_experts`.")
    plan = {
        **vars(arguments),
        "model": model.config._name_or_path or type(model).__name__,
        "weights": digest_of_weights(model),
        "index": index.digest,
        "versions": {"tttnn": version("tttnn"), "torch": torch.__version__, "transformers": transformers.__version__},
    }
    if (folder / MANIFEST).is_file():
        _check_plan(folder, _read(folder / MANIFEST), plan)
        read_experts(folder)  # all of it is there, or that is said
        return folder
    limit = context_length(model)
    if limit is not None and arguments.max_length > limit:
        raise InputError(
            f"`max_length` is {arguments.max_length}, and the model reads {limit} tokens at once. Pass at most that."
        )
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with FileLock(folder / WORK / "parts.lock"):
        rows = _parts(processing_class, index, folder, arguments, plan)
    for number, members in enumerate(rows):
        try:
            with FileLock(folder / WORK / f"{number}.lock", timeout=0):
                if not (folder / _name(number) / ADAPTER).is_file():
                    _train(model, processing_class, index, folder, number, members, arguments)
        except Timeout:
            logger.warning(f"Another process trains expert {number}: it is left to it.")
    with FileLock(folder / WORK / "finish.lock"):
        _finish(folder, plan, rows)
    if (folder / MANIFEST).is_file():
        shutil.rmtree(folder / WORK, ignore_errors=True)
    return folder


def _name(number: int) -> str:
    return f"expert-{number:05d}"


def _check_plan(folder: Path, known: dict[str, Any], plan: dict[str, Any]) -> None:
    """Refuse a folder of other settings: its experts would be mixed with others."""
    different = [name for name in plan if name not in ("versions", "use_cpu") and known.get(name) != plan[name]]
    if different:
        name = different[0]
        raise InputError(
            f"'{folder}' holds experts with `{name}` {known.get(name)!r}, and this is {plan[name]!r}. Choose another "
            "folder, or remove this one."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON ({error}). {AGAIN}") from None
    if not isinstance(content, dict):
        raise InputError(f"'{path}' is {type(content).__name__}, and no object. {AGAIN}")
    return content


def _parts(
    processing_class: PreTrainedTokenizerBase,
    index: Divided,
    folder: Path,
    arguments: ExpertTrainingArguments,
    plan: dict[str, Any],
) -> list[list[int]]:
    """Cluster the vectors, draw the rows of each part, and keep both for the next call and other processes."""
    from faiss import Kmeans

    path = folder / WORK / PLAN
    if path.is_file():
        known = _read(path)
        if not isinstance(known.get("plan"), dict) or not isinstance(known.get("rows"), list):
            raise InputError(f"'{path}' is damaged. {AGAIN}")
        _check_plan(folder, known["plan"], plan)
        return list(known["rows"])
    if [item for item in folder.iterdir() if item.name not in (WORK, CENTERS)]:
        raise InputError(f"'{folder}' is not empty, and holds no experts. Choose a new folder.")
    size, number = len(index), arguments.num_experts
    draw = random.Random(arguments.seed)
    places = sorted(draw.sample(range(size), min(size, number * ROWS_PER_CENTER)))
    sample = index.vectors([index.row_at(place) for place in places])
    means = Kmeans(sample.shape[1], number, niter=20, seed=arguments.seed, min_points_per_centroid=1)
    means.train(sample)
    centers = np.asarray(means.centroids, dtype=np.float32)
    members: list[list[int]] = [[] for _ in range(number)]
    for start in range(0, size, BLOCK):
        rows = [index.row_at(place) for place in range(start, min(start + BLOCK, size))]
        nearest = means.index.search(index.vectors(rows), 1)[1][:, 0]
        for row, part in zip(rows, nearest.tolist(), strict=True):
            members[part].append(row)
    kept = [part for part in range(number) if members[part]]
    if len(kept) < number:
        raise InputError(
            f"The index divides into {len(kept)} parts only: too many of its vectors are the same. Pass at most that "
            "as `num_experts`."
        )
    drawn = [sorted(draw.sample(part, min(len(part), arguments.max_rows))) for part in members]
    for part, rows in enumerate(drawn):
        if not any(_chunk(processing_class, item.text, arguments) for item in index.documents(rows)):
            raise InputError(f"Part {part} of the index holds no text of two tokens. Pass fewer `num_experts`.")
    save_file({"centers": centers}, folder / CENTERS)
    sync(folder / CENTERS)
    write_json(path, {"plan": plan, "rows": drawn, "sizes": [len(part) for part in members]})
    return drawn


def _train(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    index: Divided,
    folder: Path,
    number: int,
    rows: list[int],
    arguments: ExpertTrainingArguments,
) -> None:
    """Train one expert, and put it into its place when it is whole."""
    work = folder / WORK / _name(number)
    shutil.rmtree(work, ignore_errors=True)
    random.Random(arguments.seed + number).shuffle(rows)
    texts = (document.text for document in index.documents(rows))
    chunks = [chunk for chunk in (_chunk(processing_class, text, arguments) for text in texts) if chunk]
    if not chunks:
        raise InputError(f"Part {number} of the index holds no text of two tokens. Pass fewer `num_experts`.")
    for chunk in chunks:
        check_vocabulary(model, processing_class, chunk)
    with random_states_kept(), _adapted(model, arguments) as adapted:
        trainer = Trainer(
            model=adapted,
            args=TrainingArguments(
                output_dir=str(work / "run"),
                per_device_train_batch_size=arguments.batch_size,
                learning_rate=arguments.learning_rate,
                num_train_epochs=1,
                seed=arguments.seed,
                bf16=arguments.bf16,
                # the arguments of a test-time trainer know where bfloat16 needs this
                use_cpu=TestTimeTrainingArguments(use_cpu=arguments.use_cpu, bf16=arguments.bf16).use_cpu,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                label_names=["labels"],
            ),
            train_dataset=chunks,
            data_collator=_pad,
            compute_loss_func=lambda outputs, labels, **_: next_token_loss(outputs.logits, labels),
        )
        loss = trainer.train().training_loss
        if not math.isfinite(loss):
            raise InputError(
                f"The training loss of expert {number} is {loss}: training diverged. Lower `learning_rate`."
            )
        adapted.save_pretrained(str(work / "adapter"))
    write_json(work / "adapter" / "training.json", {"num_rows": len(chunks), "mean_loss": loss})
    for path in (work / "adapter").iterdir():
        sync(path)
    shutil.rmtree(folder / _name(number), ignore_errors=True)
    (work / "adapter").replace(folder / _name(number))
    sync(folder)
    logger.warning(f"Expert {number}: {len(chunks)} rows, mean loss {loss:.3f} nats per token.")


def _chunk(processing_class: PreTrainedTokenizerBase, text: str, arguments: ExpertTrainingArguments) -> list[int]:
    """Give the tokens of a text that are trained on; none of a text that has none to predict."""
    encoded: list[int] = processing_class(text, add_special_tokens=False, verbose=False)["input_ids"]
    return encoded[: arguments.max_length] if len(encoded) > 1 else []


@contextmanager
def _adapted(model: PreTrainedModel, arguments: ExpertTrainingArguments) -> Iterator[Any]:
    """Put a new adapter on the model, and take it off."""
    flags, is_training = [(weight, weight.requires_grad) for weight in model.parameters()], model.training
    trainable = TrainableArguments("lora", lora_rank=arguments.lora_rank)
    adapted = make_trainable(model, trainable, arguments.seed)
    try:
        yield adapted
    finally:
        adapted.unload()
        model.train(is_training)
        for weight, requires_grad in flags:
            weight.requires_grad_(requires_grad)


def _pad(chunks: list[list[int]]) -> dict[str, torch.Tensor]:
    """Pad on the right; what is padded has no label."""
    length = max(map(len, chunks))
    input_ids = torch.zeros((len(chunks), length), dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    for row, chunk in enumerate(chunks):
        input_ids[row, : len(chunk)] = labels[row, : len(chunk)] = torch.tensor(chunk)
    return {"input_ids": input_ids, "attention_mask": (labels != -100).long(), "labels": labels}


def _finish(folder: Path, plan: dict[str, Any], rows: list[list[int]]) -> None:
    """Write the card, and last the manifest, if every expert is there."""
    names = [f"{_name(number)}/{ADAPTER}" for number in range(len(rows))]
    if not all((folder / name).is_file() for name in names):
        logger.warning(f"Not every expert in '{folder}' is finished: other processes train them.")
        return
    training = [json.loads((folder / _name(number) / "training.json").read_bytes()) for number in range(len(rows))]
    (folder / "README.md").write_text(_card(plan, training), encoding="utf-8")
    files = {name: sha256_of(folder / name) for name in (CENTERS, *names)}
    write_json(folder / MANIFEST, {"tttnn_experts": FORMAT_VERSION, **plan, "training": training, "files": files})


def _card(plan: dict[str, Any], training: list[dict[str, Any]]) -> str:
    """Write what the experts are, as a card of the Hub."""
    model = plan["model"]
    is_on_hub = not Path(model).exists()
    front = ["---", "library_name: peft", *([f"base_model: {model}"] if is_on_hub else []), "tags:"]
    table = "\n".join(
        f"| {number} | {part['num_rows']} | {part['mean_loss']:.3f} |" for number, part in enumerate(training)
    )
    name = model if is_on_hub else Path(model).name
    return (
        "\n".join(front)
        + f"""
- tttnn
- test-time-training
---

# {len(training)} experts of an index

LoRA adapters of rank {plan["lora_rank"]} for `{name}`. Each was trained on one part of the index
`{plan["index"][:12]}`, a cluster of its vectors. `tttnn` merges the nearest of a text, before it is scored
([TTMM](https://huggingface.co/papers/2505.14136)):

```bash
tttnn evaluate --model {name} --index INDEX --method experts --experts FOLDER --dataset test.jsonl
```

A single one is an adapter of PEFT: `PeftModel.from_pretrained(model, "FOLDER/expert-00000")`.

| expert | rows trained on | mean training loss, nats per token |
|--:|--:|--:|
{table}
"""
    )
