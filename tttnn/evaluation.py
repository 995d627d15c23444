"""What `tttnn evaluate` and `examples/pile_eval.py` share: arguments, parts, choices on validation documents, runs."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainingArguments

from tttnn.baselines import METHODS, Method, TrainableArguments, make_trainable
from tttnn.callbacks import JournalCallback
from tttnn.choice import check_validation, choose
from tttnn.corpus import Document
from tttnn.neighbor_cache import NeighborCache
from tttnn.records import DocumentRecord
from tttnn.retriever import NeighborRetriever
from tttnn.subset import RANDOM_DISTANCES, random_distances
from tttnn.training_args import PRESETS, TestTimeTrainingArguments
from tttnn.windows import split_document


MAX_QUERIES = 200  # of which distances to random documents are kept
DTYPES = ("float32", "bfloat16", "float16")

# Fields of `TrainingArguments` that `tttnn evaluate --help` shows beside our own; all others are accepted as well.
SHOWN = (
    *("output_dir", "learning_rate", "weight_decay", "max_grad_norm", "optim", "num_train_epochs", "seed"),
    *("gradient_accumulation_steps", "per_device_eval_batch_size", "activation_checkpointing", "bf16", "fp16"),
    *("use_cpu", "report_to", "logging_steps", "disable_tqdm", "lr_scheduler_type"),
)


@dataclass
class EvaluateArguments:
    """What `tttnn evaluate` evaluates on what."""

    model: str = field(metadata={"help": "Hub id or folder of a causal language model."})
    dataset: str = field(
        metadata={
            "help": "Test documents: a .jsonl, .jsonl.zst or .parquet file, a folder of texts, or a Hub data set."
        }
    )
    index: str | None = field(
        default=None, metadata={"help": "Hub id or folder of an index (see `tttnn build-index`)."}
    )
    method: str = field(
        default="ttt",
        metadata={
            "help": "; ".join(f"{name}: {method.description}" for name, method in METHODS.items()) + ".",
            "choices": list(METHODS),
        },
    )
    preset: str | None = field(
        default=None, metadata={"help": "Start from a published setting: tttlm. Other options override it."}
    )
    limit: int | None = field(default=None, metadata={"help": "Evaluate the first so many documents only."})
    split: str = field(default="test", metadata={"help": "Split of a Hub data set."})
    id_column: str | None = field(default=None, metadata={"help": "Column with the documents' ids."})
    dtype: str = field(
        default="float32",
        metadata={"help": "Precision of the weights: float32, or bfloat16 or float16, which learn less."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub data set."})
    index_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the index."})
    index_fraction: list[float] | None = field(
        default=None,
        metadata={"help": "Evaluate with random parts of the index, one after another: 0.01 0.1 0.5 1.0."},
    )
    embedder: str | None = field(
        default=None, metadata={"help": "Embedder of the index, where it now has another name or path."}
    )
    validation: list[str] | None = field(
        default=None, metadata={"help": "Documents on which settings are chosen; none may be a test document."}
    )
    validation_limit: int | None = field(default=None, metadata={"help": "Choose on the first so many of them only."})
    learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Learning rates to choose from on the validation documents."}
    )

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` is {self.dtype!r}. Pass one of {', '.join(DTYPES)}.")
        if self.method not in METHODS:
            raise ValueError(f"`method` is {self.method!r}. Pass one of {', '.join(METHODS)}.")
        if self.index is None and METHODS[self.method].trainer.retrieves:
            raise ValueError(f"The method {self.method} retrieves neighbors. Pass `--index`.")
        for rate in self.learning_rates or []:
            if not rate > 0:
                raise ValueError(f"`learning_rates` has {rate}. Pass rates above 0.")


Arguments = TypeVar("Arguments", bound=EvaluateArguments)


class Outcome(NamedTuple):
    """
    One evaluation of the test documents.

    Args:
        name (`str`):
            `"eval"`, or with a part of the index `"eval-fraction-0.1"`: the journal is `journal-NAME.jsonl`.
        records (`list[DocumentRecord]`):
            One per document.
        metrics (`dict[str, Any]`):
            What `trainer.evaluate` gave.
        is_main (`bool`):
            Whether this is the process that prints.
    """

    name: str
    records: list[DocumentRecord]
    metrics: dict[str, Any]
    is_main: bool


def parse_evaluation(
    kind: type[Arguments], argv: Sequence[str] | None, prog: str | None = None, description: str = ""
) -> tuple[Arguments, TestTimeTrainingArguments, dict[str, Any]]:
    """
    Parse what is evaluated and how, on the base of a preset if one is named.

    Args:
        kind (`type`):
            `EvaluateArguments`, or a dataclass derived from it.
        argv (`Sequence[str]`, *optional*):
            The arguments. By default those of the process.
        prog (`str`, *optional*):
            Name in the help.
        description (`str`, *optional*, defaults to `""`):
            Begins the help.

    Returns:
        `tuple`: an instance of `kind`, the `TestTimeTrainingArguments`, and what the method has of its own, by name.

    Raises:
        `ValueError`: If a value is out of range, or an option is none of the method's.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method", default="ttt")
    first.add_argument("--preset")
    chosen = first.parse_known_args(argv)[0]
    if chosen.preset is not None and chosen.preset not in PRESETS:
        raise ValueError(f"There is no preset {chosen.preset!r}. Pass one of {', '.join(PRESETS)}.")
    # an unknown method is refused by the parser, which knows its name
    method = METHODS.get(chosen.method, METHODS["ttt"])
    index = "" if "index" in method.unused else "--index INDEX "
    parser = _parser_for(method)(
        [kind, TestTimeTrainingArguments, *method.arguments.values()],  # type: ignore[list-item]
        prog=prog,
        usage=f"{prog or '%(prog)s'} --model MODEL {index}--dataset DATASET [--method METHOD] [options]",
        description=description,
        epilog="Every other field of transformers.TrainingArguments is accepted too; --NAME false unsets a flag. The "
        "options shown are those of the method: `--method METHOD --help` shows another's.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    if chosen.preset is not None:
        # what is no option of the method stays as it is: `reset_optimizer=False` would keep a second process away
        preset = PRESETS[chosen.preset].items()
        parser.set_defaults(**{name: value for name, value in preset if name not in method.unused})
    arguments, args, *own, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no option of the method {chosen.method}. `--help` shows them.")
    if arguments.learning_rates and any(word.split("=")[0].replace("-", "_") == "__learning_rate" for word in argv):
        raise ValueError("Both `--learning_rate` and `--learning_rates` were passed. Pass one of them.")
    return arguments, args, dict(zip(method.arguments, own, strict=True))


def _parser_for(method: Method) -> type[HfArgumentParser]:
    """Make a parser that knows the options of one method only."""
    hidden = {item.name for item in fields(TrainingArguments)} - {*SHOWN}

    class Parser(HfArgumentParser):
        def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
            name = names[0].lstrip("-").removeprefix("no_")
            if name in method.unused:
                if not names[0].startswith("--no_"):
                    self.set_defaults(**{name: options.get("default")})
                return argparse.Action([], name)  # which nobody adds
            if name in hidden or names[0].startswith("--no_"):
                options["help"] = argparse.SUPPRESS
            if name == "index":
                options["required"] = True
            if name == "optim":
                options["metavar"] = "NAME"  # of forty
            return super().add_argument(*names, **options)

    return Parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def load_parts(arguments: EvaluateArguments) -> dict[str, Any]:
    """
    Load what a `TestTimeTrainer` is made of.

    Args:
        arguments (`EvaluateArguments`):
            Names and revisions.

    Returns:
        `dict[str, Any]`: `model`, `processing_class` and `retriever`, which keeps what queries found on disk; `None`
        for a method without neighbors.

    Raises:
        `OSError`: If the model, its tokenizer or the index is not there.
        `ValueError`: If the index is damaged, or the embedder is not its own.
    """
    retriever = None
    if METHODS[arguments.method].trainer.retrieves:
        retriever = NeighborRetriever.from_pretrained(
            str(arguments.index),
            revision=arguments.index_revision,
            embedder=arguments.embedder,
            cache=NeighborCache(),
        )
    return {
        "model": AutoModelForCausalLM.from_pretrained(
            arguments.model, revision=arguments.model_revision, dtype=arguments.dtype
        ),
        "processing_class": AutoTokenizer.from_pretrained(arguments.model, revision=arguments.model_revision),
        "retriever": retriever,
    }


def evaluate_documents(
    arguments: EvaluateArguments,
    args: TestTimeTrainingArguments,
    own: dict[str, Any],
    documents: list[Document],
    validation: list[Document],
) -> list[Outcome]:
    """
    Choose what is to be chosen on validation documents, and evaluate a method on test documents.

    Args:
        arguments (`EvaluateArguments`):
            What is evaluated.
        args (`TestTimeTrainingArguments`):
            How.
        own (`dict[str, Any]`):
            What the method has of its own (see `parse_evaluation`).
        documents (`list[Document]`):
            Test documents.
        validation (`list[Document]`):
            Validation documents; none for a method with nothing to choose.

    Returns:
        `list[Outcome]`: one, or one for each part of the index.

    Raises:
        `ValueError`: If there is something to choose and no validation document, or the other way around, or a
            document is on both sides.
    """
    check_validation(arguments.learning_rates or [], own, documents, validation)
    method, parts = METHODS[arguments.method], load_parts(arguments)
    parts["model"] = make_trainable(parts["model"], own.get("trainable", TrainableArguments()), args.seed)

    whole = parts["retriever"]

    def make_trainer(args: TestTimeTrainingArguments, own: dict[str, Any]) -> Any:  # noqa: ANN401
        return method.trainer(args=args, callbacks=[JournalCallback()], **parts, **own)

    retrievers = {"eval": whole}
    if arguments.index_fraction:
        retrievers = {f"eval-fraction-{fraction:g}": whole.subset(fraction) for fraction in arguments.index_fraction}
        for part in retrievers.values():
            part.prepare(args.top_k or args.num_neighbors)  # too small a part is told before the work
    if validation:
        args, own = choose(make_trainer, arguments.learning_rates or [], args, own, validation)
    outcomes = []
    for name, retriever in retrievers.items():
        parts["retriever"] = retriever
        trainer = make_trainer(args, own)
        metrics = trainer.evaluate(documents, metric_key_prefix=name)
        trainer.save_metrics(name, metrics)
        outcomes.append(Outcome(name, trainer.records, metrics, trainer.is_world_process_zero()))
    if whole is not None and outcomes[0].is_main:
        queries = [split_document(parts["processing_class"], item.text, args.query)[0] for item in documents]
        keep_random_distances(whole, queries[:MAX_QUERIES], Path(args.output_dir or "."))
    return outcomes


def keep_random_distances(retriever: NeighborRetriever, queries: list[str], folder: Path) -> None:
    """
    Write how far the queries lie from random documents, which a report sets beside the distances of neighbors.

    Args:
        retriever (`NeighborRetriever`):
            With a cache, which holds the queries' vectors.
        queries (`list[str]`):
            Queries.
        folder (`Path`):
            Gets the file `random-distances.json`.
    """
    if retriever.cache is None:
        raise RuntimeError("The retriever has no cache. Pass `cache=NeighborCache()` to it.")
    vectors = retriever.cache.embed(retriever.index, retriever.embedder.encode, queries)
    content = json.dumps({"distances": random_distances(retriever.index, vectors)})
    (folder / RANDOM_DISTANCES).write_text(content + "\n", encoding="utf-8")
