"""The Pile as an evaluation: its 22 tasks, their weights, and the sample of test documents."""

import random
from collections.abc import Iterable

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.records import DocumentRecord


# Task: its name in `meta.pile_set_name`, and its weight in percent.
# Source: The Pile (https://huggingface.co/papers/2101.00027), table 1; TTT-NN (https://huggingface.co/papers/2305.18466).
TASKS: dict[str, tuple[str, float]] = {
    "arxiv": ("ArXiv", 8.96),
    "bookcorpus2": ("BookCorpus2", 0.75),
    "books3": ("Books3", 12.07),
    "dm-mathematics": ("DM Mathematics", 1.24),
    "enron": ("Enron Emails", 0.14),
    "europarl": ("EuroParl", 0.73),
    "freelaw": ("FreeLaw", 6.12),
    "github": ("Github", 7.59),
    "gutenberg": ("Gutenberg (PG-19)", 2.17),
    "hackernews": ("HackerNews", 0.62),
    "nih-exporter": ("NIH ExPorter", 0.30),
    "opensubtitles": ("OpenSubtitles", 1.55),
    "openwebtext2": ("OpenWebText2", 10.01),
    "philpapers": ("PhilPapers", 0.38),
    "pile-cc": ("Pile-CC", 18.11),
    "pubmed-abstracts": ("PubMed Abstracts", 3.07),
    "pubmed-central": ("PubMed Central", 14.40),
    "stackexchange": ("StackExchange", 5.13),
    "ubuntu-irc": ("Ubuntu IRC", 0.88),
    "uspto": ("USPTO Backgrounds", 3.65),
    "wikipedia": ("Wikipedia (en)", 1.53),
    "youtubesubtitles": ("YoutubeSubtitles", 0.60),
}
TASK_OF_SET = {set_name: task for task, (set_name, _) in TASKS.items()}
SHUFFLE_SEED = 1216
TEST_FRACTION = 0.2


def parse_tasks(names: str | list[str]) -> list[str]:
    """
    Read a choice of tasks.

    Args:
        names (`str` or `list[str]`):
            `"all"`, or names of tasks, in a list or separated by commas.

    Returns:
        `list[str]`: the tasks, each once, in the order of `TASKS`.

    Raises:
        `ValueError`: If a name is not that of a task.
    """
    wanted = [name.strip() for item in ([names] if isinstance(names, str) else names) for name in item.split(",")]
    unknown = [name for name in wanted if name not in TASKS and name != "all"]
    if unknown:
        raise InputError(f"There is no Pile task {unknown[0]!r}. Choose from: all, {', '.join(TASKS)}.")
    return [task for task in TASKS if "all" in wanted or task in wanted]


def task_of(document: Document | DocumentRecord) -> str:
    """
    Name the task that a document of the Pile belongs to.

    Args:
        document (`Document` or `DocumentRecord`):
            Its metadata has the field `pile_set_name`.

    Returns:
        `str`: a key of `TASKS`.

    Raises:
        `ValueError`: If it has no `pile_set_name`, or an unknown one.
    """
    name = document.metadata.get("pile_set_name")
    if name not in TASK_OF_SET:
        raise InputError(
            f"Document '{document.id}' has the `pile_set_name` {name!r}, which is not a set of the Pile. Rows of Pile "
            'files must look like {"text": ..., "meta": {"pile_set_name": ...}}.'
        )
    return TASK_OF_SET[name]


def select_documents(
    documents: Iterable[Document],
    tasks: list[str],
    fraction: float = TEST_FRACTION,
    limit: int | None = None,
) -> dict[str, list[Document]]:
    """
    Select the test documents of the method's authors: the first fifth of each task, after a shuffle.

    Args:
        documents (`Iterable[Document]`):
            A split of the Pile, in its order.
        tasks (`list[str]`):
            Keys of `TASKS`.
        fraction (`float`, *optional*, defaults to `0.2`):
            Share of a task's documents, rounded down.
        limit (`int`, *optional*):
            Largest number of documents of each task.

    Returns:
        `dict[str, list[Document]]`: by task, in the shuffled order, without tasks that have no document.

    Raises:
        `ValueError`: If no document is selected, a document has no known task, or a number is out of range.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466) and its public code (`random.Random(1216)`).
    """
    if not 0 < fraction <= 1:
        raise InputError(f"`fraction` is {fraction}. Pass a share of each task's documents, above 0 and up to 1.")
    if limit is not None and limit < 1:
        raise InputError(f"`limit` is {limit}. Pass at least 1 document of each task.")
    by_task: dict[str, list[Document]] = {task: [] for task in tasks}
    for document in documents:
        task = task_of(document)
        if task in by_task:
            by_task[task].append(document)
    for task, members in by_task.items():
        random.Random(SHUFFLE_SEED).shuffle(members)
        by_task[task] = members[: int(fraction * len(members))][:limit]
    selected = {task: members for task, members in by_task.items() if members}
    if not selected:
        raise InputError(
            f"No document is left: the data has none of the tasks {', '.join(tasks)}, or the fraction {fraction} of "
            "them is less than one document. Choose other tasks or a larger fraction."
        )
    return selected


def pile_weights(tasks: Iterable[str]) -> tuple[str, dict[str, float]]:
    """
    Give tasks the weights of the Pile.

    Args:
        tasks (`Iterable[str]`):
            Keys of `TASKS`.

    Returns:
        `tuple[str, dict[str, float]]`: `"pile_all"` with the Pile's weights as shares for all 22 tasks, otherwise
        `"weighted_mean"` with the weights of the given tasks scaled to a sum of 1.
    """
    weights = {task: TASKS[task][1] / 100 for task in tasks}
    if len(weights) == len(TASKS):
        return "pile_all", weights
    total = sum(weights.values())
    return "weighted_mean", {task: weight / total for task, weight in weights.items()}
