"""
The options of a run in dataclasses by use, so that a method can name those that it takes.

A report and the help of the command line read them: this file imports neither torch nor transformers. What a number
depends on is stated here even where transformers has the same default, so that its next version changes no result.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from tttnn.errors import InputError
from tttnn.selection import DISTINCT, ORDERS, SELECTORS


QUERIES = ("prefix", "document")
CUTS = ("text", "tokens")
PROMPTS = ("context", "none")
PRECISIONS = ("auto", "float32", "bf16", "fp16")
MIXES = ("none", "cache", "unadapted", "both")
MAX_WINDOW_LENGTH = 8192
TRAIN_ON = ("neighbors", "query", "both")
TRAINABLE = ("full", "lora", "ia3", "layernorm", "bias", "last-layers", "prefix")
THROUGH_PEFT = ("lora", "ia3", "layernorm", "prefix")
# Which choice of `trainable` each size belongs to.
SIZES = {"lora_rank": "lora", "num_last_layers": "last-layers", "num_virtual_tokens": "prefix"}
# The arguments of `Trainer` that its optimizer is made of.
OPTIMIZER_ARGUMENTS = (
    *("optim", "optim_args", "optim_target_modules", "learning_rate", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
)
WIDE = 200  # candidates where more than the nearest may be chosen


@dataclass
class RetrievalArguments:
    """Which neighbors a method uses."""

    num_neighbors: int = field(default=20, metadata={"help": "Neighbors used for each document."})
    top_k: int | None = field(
        default=None,
        metadata={
            "help": "Candidates retrieved for each document. Default: num_neighbors, or twice that with a filter; 200 "
            "for sift, hull and distinct documents."
        },
    )
    selector: str = field(
        default="nearest",
        metadata={
            "help": "How neighbors are chosen among the candidates. nearest: the nearest. sift: those that together "
            "tell most about the query. hull: those whose weighted mean is nearest to it, with these weights.",
            "choices": list(SELECTORS),
        },
    )
    distinct: str | None = field(
        default=None,
        metadata={
            "help": "text: no two neighbors with the same text. document: moreover no two passages of one document.",
            "choices": list(DISTINCT),
        },
    )
    max_distance: float | None = field(
        default=None, metadata={"help": "Drop neighbors farther than this squared L2 distance."}
    )
    exclude: str | None = field(
        default=None, metadata={"help": "Drop neighbors that share this field (id, source) with the document."}
    )
    drop_near_copies: bool = field(
        default=False, metadata={"help": "Drop neighbors that nearly copy the document (reported in any case)."}
    )
    # with `str` in it, a command line may say "all"
    chunks_per_neighbor: int | str | None = field(
        default=1,
        metadata={"help": "Chunks of max_length tokens used per neighbor, from its beginning; or 'all'."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.chunks_per_neighbor, str):
            if not self.chunks_per_neighbor.isdecimal() and self.chunks_per_neighbor != "all":
                raise InputError(f"`chunks_per_neighbor` is {self.chunks_per_neighbor!r}. Pass a number, or all.")
            self.chunks_per_neighbor = None if self.chunks_per_neighbor == "all" else int(self.chunks_per_neighbor)
        check_whole(self, num_neighbors=1, top_k=1, chunks_per_neighbor=1)
        if self.max_distance is not None and not self.max_distance >= 0:
            raise InputError(f"`max_distance` is {self.max_distance}, but a squared distance is at least 0.")
        check_choice("selector", self.selector, tuple(SELECTORS))
        if self.distinct is not None:
            check_choice("distinct", self.distinct, DISTINCT)
        if self.top_k is not None and self.top_k < self.num_neighbors:
            raise InputError(
                f"`top_k` is {self.top_k}, fewer than the {self.num_neighbors} of `num_neighbors`. Raise it, or leave "
                "it out."
            )

    @property
    def num_candidates(self) -> int:
        """Neighbors to retrieve for each document."""
        filtered = self.exclude is not None or self.drop_near_copies or self.distinct is not None
        wide = WIDE if self.selector != "nearest" or self.distinct == "document" else 0
        return self.top_k or max(self.num_neighbors * (2 if filtered else 1), wide)


AUTO_BATCH = 8  # documents of `batch_documents="auto"`, as long as there is memory


@dataclass
class StepArguments:
    """How a method that trains takes its steps."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of the optimizer."})
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "Learning-rate schedule over the steps of one document."}
    )
    lr_scheduler_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further settings of the schedule, as JSON."}
    )
    warmup_steps: float = field(default=0, metadata={"help": "Steps of each document over which the rate rises."})
    optim: str = field(default="adamw_torch_fused", metadata={"help": "Optimizer, by transformers' name."})
    optim_args: str | None = field(default=None, metadata={"help": "Further arguments of the optimizer."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay, on every parameter."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's beta1."})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW's beta2."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW's epsilon."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Largest norm of the gradient. 0: not clipped."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Neighbors (or windows) whose gradients make one step."}
    )
    reset_optimizer: bool = field(default=True, metadata={"help": "Begin each document with a fresh optimizer."})
    disable_dropout: bool = field(default=True, metadata={"help": "Turn dropout off in training."})
    router_aux_loss: bool = field(
        default=False, metadata={"help": "Add the load-balancing loss of a mixture of experts to each step."}
    )
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Compute activations twice, to save memory."}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further settings of it, as JSON."}
    )

    def __post_init__(self) -> None:
        check_whole(self, gradient_accumulation_steps=1)
        if not 0 <= self.learning_rate < math.inf:
            raise InputError(f"`learning_rate` is {self.learning_rate}. Pass a rate of at least 0.")
        for name in ("weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"`{name}` is {value}. Pass a number of at least 0.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}. Pass a number from 0 up to below 1.")


@dataclass
class NeighborStepArguments:
    """In which order steps are taken on neighbors, on how many documents at once, and after which one is scored."""

    order: str = field(default="nearest", metadata={"help": "Order of training.", "choices": list(ORDERS)})
    train_on: str = field(
        default="neighbors",
        metadata={
            "help": "What steps are taken on: the neighbors, the query, or both, first the neighbors.",
            "choices": list(TRAIN_ON),
        },
    )
    num_train_epochs: float = field(default=1, metadata={"help": "Passes over the neighbors."})
    score_every_neighbor: bool = field(default=False, metadata={"help": "Score after every neighbor, for a curve."})
    # with `str` in it, a command line may say "auto"
    batch_documents: int | str | None = field(
        default=1,
        metadata={
            "help": "With LoRA: documents that are trained at once, each as it would be alone. auto: 8. Fewer when "
            "memory runs out."
        },
    )

    def __post_init__(self) -> None:
        check_whole(self, num_train_epochs=1)
        check_choice("order", self.order, ORDERS)
        check_choice("train_on", self.train_on, TRAIN_ON)
        if isinstance(self.batch_documents, str) and self.batch_documents.isdecimal():
            self.batch_documents = int(self.batch_documents)
        if self.batch_documents is None or isinstance(self.batch_documents, str) and self.batch_documents != "auto":
            raise InputError(f"`batch_documents` is {self.batch_documents!r}. Pass a number, or auto.")
        if self.batch_documents != "auto":
            check_whole(self, batch_documents=1)

    @property
    def documents_at_once(self) -> int:
        """How many documents `batch_documents` asks for; fewer when memory runs out."""
        return self.batch_documents if isinstance(self.batch_documents, int) else AUTO_BATCH


@dataclass
class TrainableArguments:
    """
    Which parameters a method trains.

    Args:
        trainable (`str`, *optional*, defaults to `"full"`):
            `"full"`: every parameter. `"bias"`: the biases. `"last-layers"`: the last transformer blocks. Through
            PEFT: `"lora"` on every linear layer but the head, `"ia3"`, `"layernorm"` (PEFT's `LNTuningConfig`, on
            every normalization) and `"prefix"` (prefix tuning, from the keys and values of as many BOS tokens).
        lora_rank (`int`, *optional*, defaults to `16`):
            Rank of LoRA's matrices; its alpha is twice that, its dropout 0.
        num_last_layers (`int`, *optional*, defaults to `2`):
            Blocks of `"last-layers"`.
        num_virtual_tokens (`int`, *optional*, defaults to `16`):
            Tokens of `"prefix"`.

    Raises:
        `ValueError`: If a value is out of range.
    """

    trainable: str = field(
        default="full", metadata={"help": "Parameters that are trained.", "choices": list(TRAINABLE)}
    )
    lora_rank: int = field(default=16, metadata={"help": "With lora: the rank; alpha is twice that."})
    num_last_layers: int = field(default=2, metadata={"help": "With last-layers: transformer blocks."})
    num_virtual_tokens: int = field(default=16, metadata={"help": "With prefix: virtual tokens."})

    def __post_init__(self) -> None:
        check_choice("trainable", self.trainable, TRAINABLE)
        for name in SIZES:
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}. Pass at least 1.")


@dataclass
class ScoringArguments:
    """What of a document is scored, and in which windows."""

    query: str = field(
        default="prefix",
        metadata={
            "help": "prefix: the first half of a document finds the neighbors and the rest is scored. document: the "
            "whole finds them and is scored, as in the paper.",
            "choices": list(QUERIES),
        },
    )
    cut: str = field(
        default="text",
        metadata={
            "help": "Where a prefix ends. text: the string is cut after half of its tokens. tokens: both halves of "
            "the tokens are decoded, as the method's authors do.",
            "choices": list(CUTS),
        },
    )
    prompt: str | None = field(
        default=None,
        metadata={
            "help": "What the model has read before the scored text. context: the query, and windows as long as the "
            "model's context. none: nothing, in windows of max_length, as in the paper. Default: context if the query "
            "is a prefix.",
            "choices": list(PROMPTS),
        },
    )
    window_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a scoring window with the prompt in context. Default: the model's context, at most "
            f"{MAX_WINDOW_LENGTH}."
        },
    )
    stride: int | None = field(
        default=None,
        metadata={"help": "Tokens by which such windows move on in a longer text. Default: half a window."},
    )
    mix: str = field(
        default="none",
        metadata={
            "help": "What the predictions are mixed with after adapting, with weights that are learned on the way. "
            "cache: an n-gram model of the neighbors, the query and the earlier text. unadapted: the model as it was, "
            "so that a document costs at most one bit more than before.",
            "choices": list(MIXES),
        },
    )
    max_length: int = field(
        default=1024,
        metadata={"help": "Tokens in a training chunk, and in a scoring window without the prompt in context."},
    )
    per_device_eval_batch_size: int = field(
        default=4, metadata={"help": "Windows scored in one forward pass, without the prompt in context."}
    )
    save_tokens: bool = field(
        default=False,
        metadata={"help": "Keep the bits of each token, before and after, in the journal; a report then shows them."},
    )
    text_column: str = field(default="text", metadata={"help": "The column with the text."})

    def __post_init__(self) -> None:
        # a chunk of one token has none to predict
        check_whole(self, max_length=2, per_device_eval_batch_size=1, window_length=2, stride=1)
        check_choice("query", self.query, QUERIES)
        check_choice("cut", self.cut, CUTS)
        check_choice("mix", self.mix, MIXES)
        if self.prompt is None:
            self.prompt = "context" if self.query == "prefix" else "none"
        check_choice("prompt", self.prompt, PROMPTS)
        if self.prompt == "context" and self.query == "document":
            raise InputError(
                "`prompt` is 'context' and `query` is 'document' (as in the preset tttlm): the whole document is "
                "scored, and nothing of it stands before that. Pass `prompt='none'`, or `query='prefix'`."
            )
        for name in ("window_length", "stride"):
            if self.prompt == "none" and getattr(self, name) is not None:
                raise InputError(
                    f"`{name}` is {getattr(self, name)}, but without the prompt in context windows have `max_length` "
                    f"tokens and roll. Leave it out, or pass `prompt='context'`."
                )


@dataclass
class RunArguments:
    """Where a run writes, what it logs, and on what it runs; the fields of `Trainer` that most runs need."""

    output_dir: str | None = field(default="tttnn_output", metadata={"help": "Where journals and results go."})
    seed: int = field(default=42, metadata={"help": "Seed of dropout, random orders and new adapters."})
    precision: str | None = field(
        default=None,
        metadata={
            "help": "Precision in which the model trains and scores. auto: bf16 where it is faster by a tenth and the "
            "first document scores alike, else float32. bf16, fp16: mixed precision, with bfloat16 or (GPU) float16. "
            "Default: float32; auto on a command line without --bf16, --fp16 or a published preset.",
            "choices": list(PRECISIONS),
        },
    )
    bf16: bool = field(default=False, metadata={"help": "The same as precision bf16."})
    fp16: bool = field(default=False, metadata={"help": "The same as precision fp16."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even if there is a GPU."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Logger of training losses: tensorboard, wandb, ..."}
    )
    run_name: str | None = field(default=None, metadata={"help": "Name of the run in that logger."})
    logging_steps: float = field(default=500, metadata={"help": "Optimizer steps between two logged losses."})
    disable_tqdm: bool | None = field(default=None, metadata={"help": "Show no progress bars."})

    def __post_init__(self) -> None:
        if self.precision is None:
            return
        check_choice("precision", self.precision, PRECISIONS)
        for name in ("bf16", "fp16"):
            if getattr(self, name) and self.precision != name:
                raise InputError(f"`precision` is {self.precision!r}, and `{name}` is True. Pass one of them.")
        if self.precision in ("bf16", "fp16"):
            setattr(self, self.precision, True)


def check_whole(options: object, **least: int) -> None:
    """Make sure that fields count something, and turn `1.0` into 1; `None` is left as it is."""
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and (value < minimum or value != int(value)):
            raise InputError(f"`{name}` is {value}, but must be a whole number of at least {minimum}.")
        setattr(options, name, None if value is None else int(value))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Make sure that a field has one of its values."""
    if value not in choices:
        raise InputError(f"`{name}` is {value!r}. Pass one of {', '.join(map(repr, choices))}.")
