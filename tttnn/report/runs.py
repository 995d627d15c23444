"""Folders of runs, as a report reads them: journals, trials on validation documents, and labels."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tttnn.adaptation.options import (
    OPTIMIZER_ARGUMENTS,
    SIZES,
    NeighborStepArguments,
    RetrievalArguments,
    StepArguments,
)
from tttnn.errors import InputError
from tttnn.journal import EVALUATION, RANDOM_DISTANCES, read_journal
from tttnn.records import DocumentRecord


# Settings that matter only to a run that retrieves, to one that takes steps, and to one that does both.
RETRIEVING = {
    *("retriever", "index", "num_indexed", "passage_length"),
    *(option.name for option in fields(RetrievalArguments)),
}
STEPPING = {"trainable", "optimizer", "early_stopping", *SIZES, *(option.name for option in fields(StepArguments))}
STEPPING_ON_NEIGHBORS = {option.name for option in fields(NeighborStepArguments)}


@dataclass
class Run:
    """One evaluation of test documents, read from its journal."""

    label: str
    folder: Path
    name: str  # "eval", or "eval-fraction-0.1" with a part of the index
    settings: dict[str, Any]
    records: list[DocumentRecord]
    # settings and records on validation documents, by the name of the journal
    trials: dict[str, tuple[dict[str, Any], list[DocumentRecord]]] = field(default_factory=dict)
    random_distances: list[float] = field(default_factory=list)  # squared L2, of queries to random documents
    evaluation: dict[str, Any] = field(default_factory=dict)  # what was evaluated on what

    @property
    def fraction(self) -> float | None:
        """The part of the index that was used, if the run is one of several with different parts."""
        match = re.fullmatch(r"eval-fraction-([0-9.e+-]+)", self.name)
        return float(match[1]) if match else None

    @property
    def retrieves(self) -> bool:
        """Whether a document has neighbors, or neighbors were looked for."""
        return any(record.neighbor_ids or record.seconds.get("retrieve") for record in self.records)

    @property
    def trains(self) -> bool:
        """Whether a document was trained on."""
        return any(record.status == "trained" for record in self.records)

    @property
    def method(self) -> str:
        """The method, what it trains if that is not the whole model, on what else than neighbors, and the mixture."""
        settings = self.settings
        names = [str(settings["method"])]
        if self.trains and settings.get("trainable", "full") != "full":
            names.append(str(settings["trainable"]))
        if "train_on" in self.used_settings() and settings["train_on"] != "neighbors":
            names.append(f"on {settings['train_on']}")
        if settings.get("mix", "none") != "none":
            names.append(f"with {settings['mix']}")
        return ", ".join(names)

    @property
    def prompt(self) -> str:
        """What the model has read before the scored text: `"context"`, the query, or `"none"`."""
        return str(self.settings.get("prompt", "none"))

    def used_settings(self) -> dict[str, Any]:
        """Give the settings that matter to the run."""
        trainable = self.settings.get("trainable", "full")
        unused = {name for name, choice in SIZES.items() if choice != trainable}
        unused |= set() if self.retrieves else RETRIEVING
        unused |= set() if self.trains else STEPPING
        unused |= set() if self.retrieves and self.trains else STEPPING_ON_NEIGHBORS
        if self.settings.get("prompt") == "context" and not (self.retrieves or self.trains):
            unused.add("max_length")  # of chunks; its windows have another length
        return {name: value for name, value in self.settings.items() if name not in unused}


def read_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Read the runs of folders, in their order, and sentences about what was left out."""
    runs: list[Run] = []
    notes: list[str] = []
    folders = dict.fromkeys(Path(path).resolve() for path in paths)
    if len(folders) < len(paths):
        notes.append("A folder that was given twice counts once.")
    for folder in folders:
        in_folder = _read_folder(folder)
        if not in_folder:
            notes.append(f"{folder.name} is left out: it has no finished test document yet.")
        runs += in_folder
    if not runs:
        raise InputError(
            f"No run of {', '.join(str(folder) for folder in folders)} has a finished test document. Wait for the "
            "first one, or pass other folders."
        )
    _label(runs)
    for run in runs:
        whole = run.evaluation.get("num_documents", 0)
        if isinstance(whole, int) and len(run.records) < whole:
            notes.append(f"{run.label} is not finished: it has {len(run.records)} of {whole} documents.")
        elif isinstance(whole, int) and 0 < whole < len(run.records):
            notes.append(
                f"{run.label} was last started with {whole} of its {len(run.records)} documents. All of them count "
                "here."
            )
    return runs, notes


def _read_folder(folder: Path) -> list[Run]:
    if folder.is_file():
        raise NotADirectoryError(f"'{folder}' is a file. Pass the folder of the run: '{folder.parent}'.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}'. Pass the `--output-dir` of an evaluation.")
    names = {re.sub(r"\.rank\d+$", "", path.stem) for path in folder.glob("journal-*.jsonl")}
    if not names:
        raise InputError(
            f"'{folder}' has no journal (journal-eval.jsonl). Pass the `--output-dir` of one evaluation, not a folder "
            "that holds several."
        )
    trials, runs = {}, []
    for name in sorted(names, key=_by_number):
        settings, records = read_journal(folder / f"{name}.jsonl")
        _check(settings, records, folder / f"{name}.jsonl")
        if name.startswith("journal-validation") and records:
            trials[name.removeprefix("journal-")] = settings, records
        elif name.startswith("journal-eval") and records:
            runs.append(Run(folder.name, folder, name.removeprefix("journal-"), settings, records))
    distances, evaluation = _random_distances(folder / RANDOM_DISTANCES), _evaluation(folder / EVALUATION)
    for run in runs:
        run.trials, run.random_distances, run.evaluation = trials, distances, evaluation
    return runs


def _by_number(name: str) -> tuple[str, float]:
    """Sort `a-0.5` before `a-1` and `a-1e-05` before both."""
    match = re.fullmatch(r"(.*?-)(\d[0-9.]*(?:e[+-]?\d+)?)", name)
    return (match[1], float(match[2])) if match else (name, -1.0)


def _check(settings: dict[str, Any], records: list[DocumentRecord], path: Path) -> None:
    if records and "method" not in settings:
        raise InputError(
            f"The settings in '{path}' name no method, so its scores cannot be attributed. Let `settings` of a method "
            "of yours extend `super().settings()`, and run the evaluation again."
        )
    for record in records:
        if not record.nll or not all(isinstance(nll, int | float) and math.isfinite(nll) for nll in record.nll):
            raise InputError(
                f"Document {record.index} ('{record.id}') in '{path}' has the scores {record.nll}, which are not "
                "finite numbers. Remove its line and run the evaluation again."
            )


def _random_distances(path: Path) -> list[float]:
    if not path.is_file():
        return []
    try:
        distances = json.loads(path.read_bytes())["distances"]
        return [float(distance) for distance in distances if distance is not None and math.isfinite(distance)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' does not hold {{\"distances\": [...]}} with numbers ({error!r}). Move it away."
        ) from None


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"'{path}' is not JSON ({error}). Move it away.") from None
    return content if isinstance(content, dict) else {}


def _label(runs: list[Run]) -> None:
    """Name runs by their folders, with as many parents as tell them apart, and the part of the index."""
    names = {run.folder: run.folder.name or str(run.folder) for run in runs}
    depth = 1
    while len(set(names.values())) < len(names):
        depth += 1
        taken = list(names.values())
        for folder, name in names.items():
            if taken.count(name) > 1:
                names[folder] = "/".join(folder.parts[-depth:])
    for run in runs:
        rest = run.name.removeprefix("eval").removeprefix("-")
        if run.fraction is not None:
            rest = f"fraction {run.fraction:g}"
        run.label = f"{names[run.folder]} {rest}".rstrip()


def worse_than_before(*prompts: str) -> str:
    """Name the count of documents whose last score is worse than their first, which the prompt alone may give."""
    return "worse than the prompt alone" if {*prompts} == {"context"} else "worse than before"


def differing_settings(runs: list[Run]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of the settings that differ, give the value of more than half of the runs, and each run's other values."""
    used = [run.used_settings() for run in runs]
    names = [
        name
        for name in dict.fromkeys(name for settings in used for name in settings)
        if name not in ("method", "prompt", "rules")
    ]
    common: dict[str, Any] = {}
    apart: list[dict[str, Any]] = [{} for _ in runs]
    differing = [name for name in names if len({repr(settings[name]) for settings in used if name in settings}) > 1]
    # these say nothing more
    for name, same in (
        *(("model", "config_digest"), ("tokenizer", "tokenizer_digest")),
        *(("window_tokens", "window_length"), ("stride_tokens", "stride")),
    ):
        if name in differing and same in differing:
            differing.remove(same)
    if set(OPTIMIZER_ARGUMENTS) & set(differing):  # which `optimizer` repeats
        differing = [name for name in differing if name != "optimizer"]
    for name in differing:
        values = [repr(settings[name]) for settings in used if name in settings]
        most = max(dict.fromkeys(values), key=values.count)
        has_majority = values.count(most) * 2 > len(values)
        for settings, row in zip(used, apart, strict=True):
            if name not in settings:
                continue
            if has_majority and repr(settings[name]) == most:
                common[name] = settings[name]
            else:
                row[name] = settings[name]
    return common, apart
