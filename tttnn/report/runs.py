"""Folders of runs, as a report reads them: journals, what was tried on validation documents, and labels."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tttnn.errors import InputError
from tttnn.journal import EVALUATION, RANDOM_DISTANCES, read_journal
from tttnn.methods import METHODS
from tttnn.records import DocumentRecord


# Settings that only one choice of `trainable` has a use for.
ONLY_FOR = {"lora_rank": "lora", "num_last_layers": "last-layers", "num_virtual_tokens": "prefix"}
# What `optimizer` repeats of other settings.
IN_OPTIMIZER = {"learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"}


@dataclass
class Run:
    """
    One evaluation of test documents, read from its journal.

    Args:
        label (`str`):
            Names it in the report.
        folder (`Path`):
            Where it lies, absolute.
        name (`str`):
            Of the evaluation: `"eval"`, or `"eval-fraction-0.1"` with a part of the index.
        settings (`dict[str, Any]`):
            What its numbers depend on.
        records (`list[DocumentRecord]`):
            One per finished document, in the order of the data set.
        trials (`dict[str, tuple[dict[str, Any], list[DocumentRecord]]]`):
            Settings and records of what was tried on validation documents, by the name of the journal.
        random_distances (`list[float]`):
            Squared L2 distances of queries to random documents, if the folder has them.
        evaluation (`dict[str, Any]`):
            What was evaluated on what, if the folder says it.
    """

    label: str
    folder: Path
    name: str
    settings: dict[str, Any]
    records: list[DocumentRecord]
    trials: dict[str, tuple[dict[str, Any], list[DocumentRecord]]] = field(default_factory=dict)
    random_distances: list[float] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def fraction(self) -> float | None:
        """The part of the index that was used, where the run is one of several with different parts."""
        found = re.fullmatch(r"eval-fraction-([0-9.e+-]+)", self.name)
        return float(found[1]) if found else None

    @property
    def method(self) -> str:
        """The method with what it trains, where that is not the whole model."""
        method, trainable = str(self.settings.get("method", "ttt")), self.settings.get("trainable", "full")
        trains = method not in METHODS or METHODS[method].trainer.trains
        return method if trainable == "full" or not trains else f"{method}, {trainable}"

    def used_settings(self) -> dict[str, Any]:
        """Give the settings that the method has a use for."""
        method = METHODS.get(self.settings.get("method", "ttt"))
        unused = set(method.unused) if method else set()
        if method and not method.trainer.trains:
            unused |= {"optimizer", "trainable", "early_stopping", *ONLY_FOR}
        if method and not method.trainer.retrieves:
            unused |= {"retriever", "num_indexed"}
        trainable = self.settings.get("trainable", "full")
        unused |= {name for name, choice in ONLY_FOR.items() if choice != trainable}
        return {name: value for name, value in self.settings.items() if name not in unused}


def read_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """
    Read folders of runs.

    Args:
        paths (`Sequence[str | Path]`):
            Folders that `tttnn evaluate` or `examples/pile_eval.py` wrote to.

    Returns:
        `tuple`: the runs, in the order of the folders, and sentences about what was left out.

    Raises:
        `ValueError`: If a folder has no journal, no run has a finished document, or a journal cannot be read.
        `OSError`: If a folder is not there.
    """
    runs: list[Run] = []
    notes: list[str] = []
    folders = dict.fromkeys(Path(path).resolve() for path in paths)
    if len(folders) < len(paths):
        notes.append("A folder that was given twice counts once.")
    for folder in folders:
        found = _read_folder(folder)
        if not found:
            notes.append(f"{folder.name}: left out, for it has no finished test document yet.")
        runs += found
    if not runs:
        raise InputError(
            f"No run of {', '.join(str(folder) for folder in folders)} has a finished test document. Wait for the "
            "first one, or pass other folders."
        )
    _label(runs)
    for run in runs:
        whole = run.evaluation.get("num_documents", 0)
        if isinstance(whole, int) and len(run.records) < whole:
            notes.append(f"{run.label} is not finished: {len(run.records)} of {whole} documents are there.")
    return runs, notes


def _read_folder(folder: Path) -> list[Run]:
    if folder.is_file():
        raise NotADirectoryError(f"'{folder}' is a file. Pass the folder of the run: '{folder.parent}'.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}'. Pass the `--output_dir` of an evaluation.")
    names = {re.sub(r"\.rank\d+$", "", path.stem) for path in folder.glob("journal-*.jsonl")}
    if not names:
        raise InputError(
            f"'{folder}' has no journal (journal-eval.jsonl). Pass the `--output_dir` of an evaluation, not a folder "
            "of such folders."
        )
    trials, runs = {}, []
    for name in sorted(names, key=_by_number):
        settings, records = read_journal(folder / f"{name}.jsonl")
        _check(records, folder / f"{name}.jsonl")
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
    found = re.fullmatch(r"(.*?-)(\d[0-9.]*(?:e[+-]?\d+)?)", name)
    return (found[1], float(found[2])) if found else (name, -1.0)


def _check(records: list[DocumentRecord], path: Path) -> None:
    for record in records:
        if not record.nll or not all(isinstance(nll, int | float) and math.isfinite(nll) for nll in record.nll):
            raise InputError(
                f"Document {record.index} ('{record.id}') in '{path}' has the scores {record.nll}, which are not "
                "finite numbers. Remove its line, and run the evaluation again."
            )


def _random_distances(path: Path) -> list[float]:
    if not path.is_file():
        return []
    try:
        distances = json.loads(path.read_bytes())["distances"]
        return [float(distance) for distance in distances if distance is not None and math.isfinite(distance)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' is not of the form {{\"distances\": [...]}} with numbers ({error!r}). Move it away."
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


def differing_settings(runs: list[Run]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Tell runs apart by their settings.

    Args:
        runs (`list[Run]`):
            Any number of them.

    Returns:
        `tuple`: of the settings that are not the same in all runs that use them, the value that more than half of
        those have; and for each run its values of these settings, without the ones that most have.
    """
    used = [run.used_settings() for run in runs]
    names = [name for name in dict.fromkeys(name for settings in used for name in settings) if name != "method"]
    common: dict[str, Any] = {}
    apart: list[dict[str, Any]] = [{} for _ in runs]
    differing = [name for name in names if len({repr(settings[name]) for settings in used if name in settings}) > 1]
    if IN_OPTIMIZER & set(differing):
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
