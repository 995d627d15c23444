"""`TestTimeTrainingArguments`: the arguments of `Trainer` with the defaults of test-time training, and presets."""

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from tttnn.adaptation.presets import PRESETS
from tttnn.errors import InputError
from tttnn.selection.nearest import ORDERS


QUERIES = ("prefix", "document")


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


# Fields that count something, and the least that they can be; a chunk of one token has none to predict.
WHOLE_NUMBERS = {
    "num_neighbors": 1,
    "top_k": 1,
    "max_length": 2,
    "chunks_per_neighbor": 1,
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 1,
}


@dataclass
class TestTimeTrainingArguments(TrainingArguments):
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
            Candidates retrieved for each document. By default `num_neighbors`, or twice that where `exclude` or
            `drop_near_copies` may drop some of them.
        order (`str`, *optional*, defaults to `"nearest"`):
            Order of training: `"nearest"` first, `"farthest"` first or `"random"`.
        query (`str`, *optional*, defaults to `"prefix"`):
            `"prefix"`: the first half of a document, at most 1024 tokens, finds its neighbors, and the rest is scored.
            `"document"`: the whole document finds them and is scored, as in the paper.
        max_length (`int`, *optional*, defaults to `1024`):
            Tokens in a training chunk and in a scoring window, capped at the model's context.
        max_distance (`float`, *optional*):
            Neighbors farther than this squared L2 distance are dropped.
        chunks_per_neighbor (`int`, *optional*, defaults to `1`):
            Chunks of `max_length` tokens trained on per neighbor, from its beginning. `None`, or `all` on a command
            line: all of them.
        score_every_neighbor (`bool`, *optional*, defaults to `False`):
            Whether to score after every neighbor, for a curve, and not only after the last.
        reset_optimizer (`bool`, *optional*, defaults to `True`):
            Whether each document begins with a fresh optimizer. `False` carries its state on, as the official code
            does.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether dropout is off in training.
        drop_near_copies (`bool`, *optional*, defaults to `False`):
            Whether neighbors that nearly copy the scored text are dropped. They are reported in any case.
        exclude (`str`, *optional*):
            A field, `"id"` or `"source"` say: neighbors that share its value with the document are dropped, so that a
            document of the corpus is not its own neighbor.
        text_column (`str`, *optional*, defaults to `"text"`):
            The column of a data set with the text.

    Raises:
        `ValueError`: If a value is out of range, or a field of `Trainer` is set that has no meaning here.
    """

    __test__ = False  # for pytest, which would collect it for its name

    num_neighbors: int = field(default=20, metadata={"help": "Neighbors trained on for each document."})
    top_k: int | None = field(
        default=None,
        metadata={
            "help": "Candidates retrieved for each document. Default: num_neighbors, or twice that with a filter."
        },
    )
    order: str = field(default="nearest", metadata={"help": "Order of training.", "choices": list(ORDERS)})
    query: str = field(
        default="prefix",
        metadata={
            "help": "prefix: the first half of a document finds the neighbors and the rest is scored. document: the "
            "whole finds them and is scored, as in the paper.",
            "choices": list(QUERIES),
        },
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens in a training chunk and in a scoring window."})
    max_distance: float | None = field(
        default=None, metadata={"help": "Drop neighbors farther than this squared L2 distance."}
    )
    # with `str` in it, a command line may say "all"
    chunks_per_neighbor: int | str | None = field(
        default=1,
        metadata={"help": "Chunks of max_length tokens trained on per neighbor, from its beginning; or 'all'."},
    )
    score_every_neighbor: bool = field(default=False, metadata={"help": "Score after every neighbor, for a curve."})
    reset_optimizer: bool = field(default=True, metadata={"help": "Begin each document with a fresh optimizer."})
    disable_dropout: bool = field(default=True, metadata={"help": "Switch dropout off in training."})
    drop_near_copies: bool = field(
        default=False, metadata={"help": "Drop neighbors that nearly copy the scored text (reported in any case)."}
    )
    exclude: str | None = field(
        default=None, metadata={"help": "Drop neighbors that share this field (id, source) with the document."}
    )
    text_column: str = field(default="text", metadata={"help": "The column with the text."})

    output_dir: str | None = field(default="tttnn_output", metadata={"help": "Where journals and results go."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of the optimizer."})
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "Learning-rate schedule over the steps of one document."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay, on every parameter."})
    num_train_epochs: float = field(default=1, metadata={"help": "Passes over the neighbors."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Neighbors whose gradients make one step."})
    per_device_train_batch_size: int = field(
        default=1, metadata={"help": "Always 1: see gradient_accumulation_steps."}
    )
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "Windows scored in one forward pass."})
    average_tokens_across_devices: bool = field(default=False, metadata={"help": "Always off: ranks are independent."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Always off: metadata columns are kept."})
    save_strategy: str = field(default="no", metadata={"help": "When train() saves; evaluate() saves no weights."})
    # ranks reach the final gather as far apart as their documents' lengths make them
    ddp_timeout: int = field(default=7 * 24 * 3600, metadata={"help": "Seconds that ranks wait for each other."})

    def __post_init__(self) -> None:
        if isinstance(self.chunks_per_neighbor, str):
            if not self.chunks_per_neighbor.isdecimal() and self.chunks_per_neighbor != "all":
                raise InputError(f"`chunks_per_neighbor` is {self.chunks_per_neighbor!r}. Pass a number, or all.")
            self.chunks_per_neighbor = None if self.chunks_per_neighbor == "all" else int(self.chunks_per_neighbor)
        for item in fields(TrainingArguments):
            value = getattr(self, item.name)
            if item.name in UNSUPPORTED and value not in (item.default, None, "no", 0):
                raise InputError(f"`{item.name}` is {value!r}, which has no meaning here: {UNSUPPORTED[item.name]}.")
        super().__post_init__()
        for name, least in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is not None and (value < least or value != int(value)):
                raise InputError(f"`{name}` is {value}, but must be a whole number of at least {least}.")
            setattr(self, name, None if value is None else int(value))
        for name, choices in (("order", ORDERS), ("query", QUERIES)):
            if getattr(self, name) not in choices:
                raise InputError(f"`{name}` is {getattr(self, name)!r}. Pass one of {', '.join(map(repr, choices))}.")
        if self.max_distance is not None and not self.max_distance >= 0:
            raise InputError(f"`max_distance` is {self.max_distance}, but a squared distance is at least 0.")
        if self.top_k is not None and self.top_k < self.num_neighbors:
            raise InputError(
                f"`top_k` is {self.top_k}, fewer than the {self.num_neighbors} of `num_neighbors`. Raise it, or leave "
                "it."
            )
        if self.per_device_train_batch_size != 1:
            raise InputError(
                f"`per_device_train_batch_size` is {self.per_device_train_batch_size}, but a step trains on one "
                "neighbor. To put several into one step, set `gradient_accumulation_steps`."
            )

    @property
    def num_candidates(self) -> int:
        """Neighbors to retrieve for each document."""
        filtered = self.exclude is not None or self.drop_near_copies
        return self.top_k or self.num_neighbors * (2 if filtered else 1)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "TestTimeTrainingArguments":  # noqa: ANN401
        """
        Make the arguments of a published setting.

        Args:
            name (`str`):
                `"tttlm"`: what the method's authors ran with GPT-2. For GPT-Neo add
                `learning_rate=5e-6, max_length=2048`.
            overrides (*optional*):
                Fields to set otherwise.

        Returns:
            `TestTimeTrainingArguments`: the arguments.

        Raises:
            `ValueError`: If there is no such preset.

        Source: [TTT-NN](https://huggingface.co/papers/2305.18466), sections 3 and 4, and its public code.
        """
        if name not in PRESETS:
            raise InputError(f"There is no preset {name!r}. Pass one of {', '.join(map(repr, PRESETS))}.")
        return cls(**{**PRESETS[name], **overrides})
