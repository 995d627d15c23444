"""`TestTimeTrainingArguments`: the arguments of `Trainer` with the defaults of test-time training, and presets."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils.import_utils import is_torch_xla_available

from tttnn.adaptation.options import (
    NeighborStepArguments,
    RetrievalArguments,
    RunArguments,
    ScoringArguments,
    StepArguments,
)
from tttnn.adaptation.presets import preset_settings
from tttnn.adaptation.tuning import Tuning
from tttnn.errors import InputError


# Fields of `Trainer` that change a training run but that one step per neighbor has no use for, or whose work on the
# weights could not be undone.
UNSUPPORTED = {
    "max_steps": "the number of steps follows from the neighbors: set `num_neighbors` and `chunks_per_neighbor`",
    "eval_strategy": "call `evaluate()` after `train()`, not within it",
    "eval_on_start": "call `evaluate()` before `train()`",
    "fp16_full_eval": "scoring and training share one precision: set `fp16`, or load the model in it",
    "bf16_full_eval": "scoring and training share one precision: set `bf16`, or load the model in it",
    "use_liger_kernel": "apply it to the model before you pass it",
    "neftune_noise_alpha": "noise is added in `train()` only",
    "torch_compile": "compile the model before you pass it",
    "auto_find_batch_size": "a step has one neighbor: lower `max_length`, or set `activation_checkpointing`",
    "fsdp": "each process adapts the whole model to its own documents",
    "deepspeed": "each process adapts the whole model to its own documents",
    "label_smoothing_factor": "the method trains on the plain loss of the next token",
}


@dataclass
class TestTimeTrainingArguments(
    RetrievalArguments,
    StepArguments,
    NeighborStepArguments,
    ScoringArguments,
    RunArguments,
    TrainingArguments,
):
    """
    Arguments of `TestTimeTrainer`.

    The fields below are its own; those of `transformers.TrainingArguments` keep their meaning, some with another
    default: `learning_rate` (2e-5), `lr_scheduler_type` (constant, over the steps of one document), `weight_decay`
    (0.01, on every parameter), `num_train_epochs` (1: passes over the neighbors), `gradient_accumulation_steps` (1:
    neighbors whose gradients make one step; with 1, each chunk is a step), `per_device_eval_batch_size` (4: windows
    scored in one forward pass), `save_strategy` (no).

    Args:
        num_neighbors (`int`, *optional*, defaults to `20`):
            Neighbors trained on for each document.
        top_k (`int`, *optional*):
            Candidates retrieved for each document. By default `num_neighbors`, or twice that where `exclude`,
            `drop_near_copies` or `distinct` may drop some of them; at least 200 for a selector other than
            `"nearest"`, and for distinct documents. A small corpus gives fewer.
        selector (`str`, *optional*, defaults to `"nearest"`):
            How neighbors are chosen among the candidates: `"nearest"`; `"sift"`, those that together tell most about
            the query (see `tttnn.selection.Sift`); or `"hull"`, those whose weighted mean is nearest to it, with these
            weights (see `tttnn.selection.Hull`). The last two need a retriever that gives vectors.
        distinct (`str`, *optional*):
            `"text"`: of candidates with the same text only the nearest is used. `"document"`: moreover only the
            nearest passage of each document.
        order (`str`, *optional*, defaults to `"nearest"`):
            Order of training: `"nearest"` first, `"farthest"` first or `"random"`. With `"sift"` the first pick
            counts as the nearest, with `"hull"` the heaviest neighbor.
        query (`str`, *optional*, defaults to `"prefix"`):
            `"prefix"`: the first half of a document, at most 1024 tokens, finds its neighbors, and the rest is scored.
            `"document"`: the whole document finds them and is scored, as in the paper.
        cut (`str`, *optional*, defaults to `"text"`):
            Where a prefix ends. `"text"`: the string is cut after the characters of half of its tokens, so that query
            and scored part are the text, to the byte. `"tokens"`: the two halves of the tokens are decoded, as the
            official code does; where decoding does not invert encoding, another text is scored.
        prompt (`str`, *optional*):
            What the model has read before the scored text. `"context"`: the query, in one pass with the text; a text
            beyond the window is scored in windows that move on by `stride`. `"none"`: nothing, in rolling windows of
            `max_length` tokens, as in the paper and in lm-evaluation-harness. By default `"context"` if the query is a
            prefix.
        window_length (`int`, *optional*):
            Tokens of a scoring window with the prompt in context. By default the model's context, at most 8192.
        stride (`int`, *optional*):
            Tokens by which such windows move on. By default half a window.
        mix (`str`, *optional*, defaults to `"none"`):
            What the predictions after adapting are mixed with, by weights that are learned on the query and the
            earlier text (see `tttnn.adaptation.mix_online`). `"cache"`: an n-gram model of the neighbors, the query
            and the earlier text (see `tttnn.adaptation.NgramCache`). `"unadapted"`: the model before it was adapted;
            a document then costs at most one bit more than before. `"both"`: first the cache, then the model before.
        train_on (`str`, *optional*, defaults to `"neighbors"`):
            What steps are taken on: the `"neighbors"`, the `"query"`, or `"both"`, first the neighbors.
        batch_documents (`int` or `str`, *optional*, defaults to `1`):
            Documents that `evaluate` and `predict` train at once, if LoRA is trained: an adapter for each, in one
            forward and backward pass. The results are those of one by one, up to rounding. `"auto"`: 8. When memory
            runs out, the batch is halved and its documents are trained again.
        router_aux_loss (`bool`, *optional*, defaults to `False`):
            Whether the load-balancing loss of a mixture of experts is added to the loss of each step.
        max_length (`int`, *optional*, defaults to `1024`):
            Tokens in a training chunk, and in a scoring window without the prompt in context; capped at the model's
            context.
        max_distance (`float`, *optional*):
            Neighbors farther than this squared L2 distance are dropped.
        chunks_per_neighbor (`int`, *optional*, defaults to `1`):
            Chunks of `max_length` tokens trained on per neighbor, from its beginning. `None`, or `all` on a command
            line: all of them.
        score_every_neighbor (`bool`, *optional*, defaults to `False`):
            Whether to score after every neighbor, for a curve, and not only after the last.
        reset_optimizer (`bool`, *optional*, defaults to `True`):
            Whether each document begins with a fresh optimizer. `False` carries its state from document to document,
            as the official code does.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether dropout is off in training.
        drop_near_copies (`bool`, *optional*, defaults to `False`):
            Whether neighbors that nearly copy the document are dropped. They are reported in any case.
        exclude (`str`, *optional*):
            A field, for example `"id"` or `"source"`: neighbors that share its value with the document are dropped, so
            that a document of the corpus is not its own neighbor.
        text_column (`str`, *optional*, defaults to `"text"`):
            The column of a data set with the text.
        precision (`str`, *optional*):
            In which precision the model trains and scores: `"float32"`; `"bf16"` or `"fp16"`, mixed precision, the
            same as the flags of these names; or `"auto"`, which `tttnn evaluate` settles before the first document
            and you by `choose_precision`. By default what the flags say, else float32.

    Raises:
        `ValueError`: If a value is out of range, or a field of `Trainer` is set that has no meaning here.
    """

    __test__ = False  # pytest would collect it because of its name

    per_device_train_batch_size: int = field(
        default=1, metadata={"help": "Always 1: see gradient_accumulation_steps."}
    )
    average_tokens_across_devices: bool = field(default=False, metadata={"help": "Always off: ranks are independent."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Always off: metadata columns are kept."})
    save_strategy: str = field(default="no", metadata={"help": "When train() saves; evaluate() saves no weights."})
    # at the end of an evaluation ranks wait for the last document, or batch of documents, of another
    ddp_timeout: int = field(default=24 * 3600, metadata={"help": "Seconds that ranks wait for each other."})

    # set by `from_preset`: what the model and the index are checked by, and a card names
    tuning: Tuning | None = field(
        init=False, repr=False, default=None, metadata={"help": "The file of `tttnn tune` that the settings are from."}
    )

    def __post_init__(self) -> None:
        for item in fields(TrainingArguments):
            value = getattr(self, item.name)
            if item.name in UNSUPPORTED and value not in (item.default, None, "no", 0):
                raise InputError(f"`{item.name}` is {value!r}, which has no meaning here: {UNSUPPORTED[item.name]}.")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 << 32:
                raise InputError(f"`{name}` is {value}. Pass 0 to {(1 << 32) - 1}.")
        for group in (RetrievalArguments, StepArguments, NeighborStepArguments, ScoringArguments, RunArguments):
            group.__post_init__(self)
        if self.train_on != "neighbors" and self.query == "document":
            raise InputError(
                f"`train_on` is {self.train_on!r} and `query` is 'document': the query would be the text that is "
                "scored. Pass `query='prefix'`, or train on the neighbors only."
            )
        if self.bf16 and not torch.accelerator.is_available() and not is_torch_xla_available():
            self.use_cpu = True  # transformers refuses bfloat16 on a CPU that was not asked for
        TrainingArguments.__post_init__(self)
        if self.precision == "float32" and self.mixed_precision != "no":
            raise InputError(
                f"`precision` is 'float32', and the launcher asks for {self.mixed_precision} "
                "(ACCELERATE_MIXED_PRECISION). Launch without `--mixed_precision`, or pass that as `precision`."
            )
        if self.per_device_train_batch_size != 1:
            raise InputError(
                f"`per_device_train_batch_size` is {self.per_device_train_batch_size}, but a step trains on one "
                "neighbor. To put several into one step, set `gradient_accumulation_steps`."
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "TestTimeTrainingArguments":  # noqa: ANN401
        """
        Make the arguments of a published setting, or of one that `tttnn tune` chose.

        Args:
            name (`str`):
                `"tttlm"`: what the method's authors ran with GPT-2. For GPT-Neo add
                `learning_rate=5e-6, max_length=2048`. Or the path of a file that `tttnn tune` wrote, which ends with
                `.json`; a trainer then refuses another model or index than those it was measured with.
            overrides (*optional*):
                Fields to set otherwise.

        Returns:
            `TestTimeTrainingArguments`: the arguments.

        Raises:
            `ValueError`: If there is no such preset, or the file is damaged or of another version.

        Source: [TTT-NN](https://huggingface.co/papers/2305.18466), sections 3 and 4, and its public code.
        """
        settings, tuning = preset_settings(name)
        args = cls(**{**settings, **overrides})
        args.tuning = tuning
        return args
