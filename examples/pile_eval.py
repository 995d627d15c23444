"""
The Pile evaluation of test-time training on nearest neighbors: bits per byte, task by task, before and after.

    accelerate launch examples/pile_eval.py --model gpt2 --index user/pile-index --dataset user/pile-test --tasks all

`--dataset` takes Pile-format data, rows of {"text", "meta": {"pile_set_name"}}: `.jsonl` or `.jsonl.zst` files, or a
Hub data set. The authors' sample of each task is evaluated: shuffled with seed 1216, the first fifth. `--limit` takes
only its first documents. `--preset tttlm` uses the authors' settings, and `--method` runs another method. Settings are
chosen on `--validation` documents, or on the `--validation-limit` documents of each task that follow the sample; or by
`--preset FILE.json` of `tttnn tune` and by `--budget`.
Several processes share the documents: `torchrun --nproc-per-node 2 ...`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tttnn import Document, read_documents
from tttnn.evaluation import (
    TEST_FRACTION,
    EvaluateArguments,
    Evaluation,
    Outcome,
    evaluate_documents,
    parse_evaluation,
    parse_tasks,
    pile_weights,
    select_documents,
    task_of,
)
from tttnn.report import task_table


@dataclass(kw_only=True)
class PileArguments(EvaluateArguments):
    """What is evaluated."""

    dataset: list[str] = field(
        metadata={"help": "Pile-format .jsonl or .jsonl.zst files, folders of them, or Hub data sets."},
    )
    limit: int | None = field(default=None, metadata={"help": "Documents of each task, at most."})
    tasks: str = field(default="all", metadata={"help": "Tasks, separated by commas: github,arxiv. Or all."})
    fraction: float = field(default=TEST_FRACTION, metadata={"help": "Share of each task's documents."})
    max_document_bytes: int | None = field(
        default=None, metadata={"help": "Cut longer documents to that many bytes (not the authors' protocol)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_document_bytes is not None and self.max_document_bytes < 1:
            raise ValueError(f"`max_document_bytes` is {self.max_document_bytes}. Pass at least 1.")


def cut(document: Document, max_bytes: int | None) -> Document:
    """Keep the beginning of a document, up to a whole character."""
    text = document.text.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")
    return Document(document.id, text, document.metadata)


def read(inputs: PileArguments, names: list[str], text_column: str, **of_hub: str | None) -> Iterable[Document]:
    """Read Pile-format documents, one by one."""
    return read_documents(names, text_column, inputs.id_column, inputs.split, **of_hub)


def documents_to_evaluate(evaluation: Evaluation[PileArguments]) -> tuple[list[Document], list[Document]]:
    """Give the test documents, and those on which settings are chosen."""
    inputs, options, text_column = evaluation.inputs, evaluation.validation, evaluation.args.text_column
    tasks = parse_tasks(inputs.tasks)
    of_hub = {"revision": inputs.dataset_revision, "dataset_config": inputs.dataset_config}
    documents = [item for item in read(inputs, inputs.dataset, text_column, **of_hub) if task_of(item) in tasks]
    test = select_documents(documents, tasks, inputs.fraction, inputs.limit)
    validation: dict[str, list[Document]] = {}
    if options.validation:
        candidates = read(inputs, options.validation, text_column)
        validation = select_documents(candidates, tasks, 1.0, options.validation_limit)
    elif options.validation_limit is not None:
        for task, members in select_documents(documents, list(test), 1.0).items():
            validation[task] = members[len(test[task]) :][: options.validation_limit]
    missing = [task for task in test if not validation.get(task)]
    if validation and missing:
        raise ValueError(f"No validation document is left of {', '.join(missing)}. Lower --fraction or --limit.")
    for by_task in (test, validation):
        for task, members in by_task.items():
            by_task[task] = [cut(document, inputs.max_document_bytes) for document in members]
    for task, members in test.items():
        if not any(document.text for document in members):
            raise ValueError(f"The documents of the task {task!r} are empty. Leave it out of --tasks.")
    return sum(test.values(), []), sum(validation.values(), [])


def report(outcome: Outcome, prompt: str) -> None:
    """Print a row per task, and what stands out."""
    groups: dict[str, list] = {}
    for record in outcome.records:
        groups.setdefault(task_of(record), []).append(record)
    print(f"What the model has read before the scored text (--prompt): {prompt}")
    print(task_table(groups, *pile_weights(groups), prompt))
    untrained = [record.id for record in outcome.records if record.status == "untrained"]
    if untrained:
        print(f"Could not be trained on; scored with the original model: {', '.join(untrained)}")
    phases = ("retrieve", "train", "score")
    seconds = {phase: round(outcome.metrics[f"{outcome.name}_seconds_{phase}"]) for phase in phases}
    print(f"Seconds by phase, all processes: {seconds}")


def main() -> None:
    """Evaluate and print a table."""
    evaluation = parse_evaluation(PileArguments, None, description=__doc__ or "")
    documents, validation = documents_to_evaluate(evaluation)
    for outcome in evaluate_documents(evaluation, documents, validation):
        if outcome.is_main:
            if evaluation.index is not None and evaluation.index.index_fraction:
                print(f"{outcome.name}:")
            report(outcome, evaluation.args.prompt)


if __name__ == "__main__":
    main()
