"""The options of an evaluation: what is evaluated on what, and, in dataclasses by use, how."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tttnn.adaptation import Tuning
from tttnn.errors import InputError
from tttnn.methods import METHODS, BudgetChoice, Method


if TYPE_CHECKING:
    from tttnn.adaptation import TestTimeTrainingArguments


DTYPES = ("float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class ModelArguments:
    """Which model is adapted, and by which method."""

    model: str = field(metadata={"help": "Hub id or folder of a causal language model."})
    method: str = field(
        default="ttt",
        metadata={
            "help": "; ".join(f"{name}: {method.description}" for name, method in METHODS.items()) + ".",
            "choices": list(METHODS),
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Start from a published setting, tttlm, or from those of a file of `tttnn tune`, FILE.json. Other "
            "options override them."
        },
    )
    budget: str | None = field(
        default=None,
        metadata={
            "help": "Choose the method and its settings when the model is loaded: SECONDS in the model per document, "
            "without retrieval and the score before; fast: the cheapest with half of the best gain; balanced: with "
            "two thirds; best: the best. By the curve of --preset FILE.json, or a default one. --method and other "
            "options override it, and leave out the methods that do not take them."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Precision of the weights: float32, or bfloat16 or float16, which learn less."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"`dtype` is {self.dtype!r}. Pass one of {', '.join(DTYPES)}.")
        if self.method not in METHODS:
            raise InputError(f"`method` is {self.method!r}. Pass one of {', '.join(METHODS)}.")


@dataclass(kw_only=True)
class EvaluateArguments(ModelArguments):
    """What `tttnn evaluate` evaluates on what."""

    dataset: str = field(
        metadata={
            "help": "Test documents: a file of rows (.jsonl, .json, .csv, .tsv or .parquet), another file (a text), "
            "a folder of files, or the id of a Hub data set."
        }
    )
    limit: int | None = field(default=None, metadata={"help": "Evaluate only the first N documents."})
    split: str = field(default="test", metadata={"help": "Split of a Hub data set."})
    id_column: str | None = field(default=None, metadata={"help": "Column with the documents' ids."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the Hub data set `--dataset`."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub data set `--dataset`. Default: its own."}
    )


@dataclass
class IndexArguments:
    """In which index a method that retrieves finds its neighbors."""

    index: str = field(metadata={"help": "Hub id or folder of an index (see `tttnn build-index`)."})
    index_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the index."})
    index_shards: list[int] | None = field(
        default=None, metadata={"help": "Numbers of the shards to fetch and search: 0 3. Default: all."}
    )
    index_texts: str = field(
        default="local",
        metadata={"help": "remote: leave the texts on the Hub, and fetch those of the neighbors only."},
    )
    index_fraction: list[float] | None = field(
        default=None,
        metadata={"help": "Evaluate with random parts of the index, one after another: 0.01 0.1 0.5 1.0."},
    )
    passage_length: int | None = field(
        default=None,
        metadata={
            "help": "Use the best passage, of at most N tokens of the embedder, of each document that is found. "
            "Default: whole documents."
        },
    )
    embedder: str | None = field(
        default=None, metadata={"help": "Embedder of the index, if it now has another name or path."}
    )
    trust_index: bool = field(
        default=False, metadata={"help": "Open an index of a Faiss factory that was built elsewhere."}
    )
    cluster: str | None = field(
        default=None,
        metadata={"help": "Search on the Ray cluster at this address, such as auto. Default: on this machine."},
    )
    replicas: int = field(default=1, metadata={"help": "With --cluster: machines on which each shard is open."})
    on_missing: str = field(
        default="wait",
        metadata={
            "help": "With --cluster, if a machine does not answer: wait for another to take over, raise an error, or "
            "report: go on without its shards, and count the documents.",
            "choices": ["wait", "raise", "report"],
        },
    )


@dataclass
class RateArguments:
    """The learning rates of a method that trains."""

    learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Learning rates to choose from on the validation documents."}
    )

    def __post_init__(self) -> None:
        for rate in self.learning_rates or []:
            if not 0 < rate < math.inf:
                raise InputError(f"`learning_rates` has {rate}. Pass rates above 0.")


@dataclass
class ValidationArguments:
    """On which documents a method with something to choose chooses it."""

    validation: list[str] | None = field(
        default=None, metadata={"help": "Documents on which settings are chosen; none may be a test document."}
    )
    validation_limit: int | None = field(default=None, metadata={"help": "Choose on at most N of them."})


Inputs = TypeVar("Inputs", bound=ModelArguments)


@dataclass(frozen=True)
class Budget:
    """
    A choice that is open until the model is loaded.

    Args:
        value (`str` or `float`):
            Seconds per document, or one of the words of `parse_budget`.
        curve (`Tuning`):
            What is chosen from.
        methods (`list[str]`):
            Methods that take all options that were passed.
        settle (`Callable[[BudgetChoice], Evaluation]`):
            Makes the evaluation of a choice; options that were passed override its settings.
    """

    value: str | float
    curve: Tuning
    methods: list[str]
    settle: "Callable[[BudgetChoice], Evaluation[Any]]"


@dataclass(frozen=True)
class Evaluation(Generic[Inputs]):
    """
    What is evaluated, on what, and how.

    Args:
        inputs (`ModelArguments`):
            The model, and for example test documents.
        index (`IndexArguments`, *optional*):
            The index, for a method that retrieves.
        rates (`list[float]`):
            Learning rates to choose from.
        validation (`ValidationArguments`):
            Where the validation documents are.
        args (`TestTimeTrainingArguments`):
            The trainer's arguments.
        method (`Method`):
            The method, with its own options.
        budget (`Budget`, *optional*):
            What chooses the method and its settings when the model is loaded; until then `method` is one of those it
            may choose.
    """

    inputs: Inputs
    index: IndexArguments | None
    rates: list[float]
    validation: ValidationArguments
    args: "TestTimeTrainingArguments"
    method: Method
    budget: Budget | None = None
