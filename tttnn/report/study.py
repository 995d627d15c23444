"""All that a report shows, computed once from the journals: for the page, the card, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tttnn.errors import InputError
from tttnn.files import finite
from tttnn.methods import KnnArguments
from tttnn.records import DocumentRecord, nll_matrix, summarize
from tttnn.report.intervals import Bootstrap
from tttnn.report.published import published_for
from tttnn.report.results import Comparison, Grouping, Result, contaminated
from tttnn.report.runs import Run, differing_settings, read_runs


LIBRARIES = (
    *("tttnn", "torch", "transformers", "accelerate", "datasets", "sentence-transformers", "peft", "faiss-cpu"),
    *("faiss-gpu", "numpy", "matplotlib"),
)


@dataclass
class Study:
    """
    Runs and their results.

    Args:
        runs (`list[Run]`):
            In the order in which they were given.
        grouping (`Grouping`):
            Parts and weighs their documents.
        baseline (`Run`):
            The run that the others are compared with.
        notes (`list[str]`):
            What a reader must know.
        totals (`list[Result]`):
            Of each run, over all its documents.
        groups (`list[list[Result]]`):
            Of each run, by group.
        clean (`list[Result | None]`):
            Of each run without the documents of which any run found a near-copy; `None` where none is left.
        comparisons (`list[Comparison]`):
            Of each run but the baseline.
        clean_comparisons (`list[Comparison]`):
            The same without those documents.
    """

    runs: list[Run]
    grouping: Grouping
    baseline: Run
    notes: list[str]
    totals: list[Result]
    groups: list[list[Result]]
    clean: list[Result | None]
    comparisons: list[Comparison]
    clean_comparisons: list[Comparison]

    @property
    def interval_name(self) -> str:
        """Name the intervals: `"95 %"`."""
        return f"{100 * self.grouping.bootstrap.confidence:g} %"


def read_study(
    paths: Sequence[str | Path],
    baseline: str | None = None,
    group_by: str | None = None,
    bootstrap: Bootstrap | None = None,
) -> Study:
    """
    Read runs and compute what a report shows of them.

    Args:
        paths (`Sequence[str | Path]`):
            Folders of runs.
        baseline (`str`, *optional*):
            Label of the run that the others are compared with. By default the first.
        group_by (`str`, *optional*):
            A field of the documents' metadata. By default tasks of the Pile, where every document has one.
        bootstrap (`Bootstrap`, *optional*):
            Draws the intervals.

    Returns:
        `Study`: the same for the same journals.

    Raises:
        `ValueError`: If a folder has no journal, or there is no such label or field.
        `OSError`: If a folder is not there.
    """
    runs, notes = read_runs(paths)
    grouping = Grouping(runs, group_by, bootstrap)
    by_label = {run.label: run for run in runs}
    if baseline is not None and baseline not in by_label:
        raise InputError(f"There is no run '{baseline}' to compare with. Choose from: {', '.join(by_label)}.")
    base = runs[0] if baseline is None else by_label[baseline]
    dirty = contaminated(runs)
    clean_records = [[record for record in run.records if record.digest not in dirty] for run in runs]
    clean_runs = {run.label: replace(run, records=records) for run, records in zip(runs, clean_records, strict=True)}
    others = [run for run in runs if run is not base]
    totals = [grouping.total(run.records) for run in runs]
    groups = [grouping.results(run.records) for run in runs]
    return Study(
        runs=runs,
        grouping=grouping,
        baseline=base,
        notes=notes + _notes(runs, totals, groups),
        totals=totals,
        groups=groups,
        clean=[grouping.total(records) if dirty and records else None for records in clean_records],
        comparisons=[grouping.compare(run, base) for run in others],
        clean_comparisons=[grouping.compare(clean_runs[run.label], clean_runs[base.label]) for run in others if dirty],
    )


def _notes(runs: list[Run], totals: list[Result], groups: list[list[Result]]) -> list[str]:
    """Say which runs have fewer documents or tasks than others, and what is in no mean."""
    most = max(total.documents for total in totals)
    notes = [
        f"{run.label} has {total.documents} documents, and another run has {most}: the table of runs does not compare "
        "it with others on the same documents, the paired comparison does."
        for run, total in zip(runs, totals, strict=True)
        if total.documents < most
    ]
    names = dict.fromkeys(result.group for results in groups for result in results)
    for run, results in zip(runs, groups, strict=True):
        missing = [name for name in names if name not in {result.group for result in results}]
        if missing:
            notes.append(f"{run.label} has no document of {', '.join(missing)}: its total is one of the others.")
        notes += [
            f"{run.label}: the documents of {result.group} have no byte to score, and are in no mean."
            for result in results
            if not result.num_bytes
        ]
    return notes


@dataclass
class Trial:
    """
    A candidate on the validation documents.

    Args:
        name (`str`):
            What was tried.
        documents (`int`):
            Validation documents.
        bits_per_byte (`float`):
            Pooled over them; NaN without a byte.
        chosen (`bool`):
            Whether the run has this setting.
    """

    name: str
    documents: int
    bits_per_byte: float
    chosen: bool


def trials_of(run: Run) -> list[Trial]:
    """
    List what was tried on validation documents for a run.

    Args:
        run (`Run`):
            With `trials`.

    Returns:
        `list[Trial]`: learning rates, or pairs of lambda and temperature.
    """
    found: list[Trial] = []
    for name, (settings, records) in run.trials.items():
        if settings.get("method") == "knn-lm":
            found += _knn_trials(run, settings, records)
            continue
        rate = settings.get("learning_rate")
        score = summarize(records)["bits_per_byte"] if any(record.num_bytes for record in records) else math.nan
        title = f"learning rate {rate:g}" if isinstance(rate, int | float) else name
        found.append(Trial(title, len(records), score, rate == run.settings.get("learning_rate")))
    return found


def _knn_trials(run: Run, settings: dict[str, Any], records: list[DocumentRecord]) -> list[Trial]:
    candidates = KnnArguments(settings["knn_lambda"], settings["knn_temperature"]).candidates
    sums, num_bytes = nll_matrix(records)[:, 1:].sum(axis=0), sum(record.num_bytes for record in records)
    if len(sums) != len(candidates):
        raise InputError(
            f"The validation journal of '{run.folder}' has {len(sums)} scores for {len(candidates)} pairs of lambda "
            "and temperature. Move it away, and run the evaluation again."
        )
    chosen = run.settings.get("knn_lambda"), run.settings.get("knn_temperature")
    return [
        Trial(
            f"lambda {weight:g}, temperature {temperature:g}",
            len(records),
            total / num_bytes / math.log(2) if num_bytes else math.nan,
            chosen == ([weight], [temperature]),
        )
        for (weight, temperature), total in zip(candidates, sums.tolist(), strict=True)
    ]


def library_versions() -> dict[str, str]:
    """
    Name the versions of the libraries that results depend on.

    Returns:
        `dict[str, str]`: of those that are installed.
    """
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _row(result: Result) -> dict[str, Any]:
    return {**asdict(result), "difference": result.difference, "ratio": result.ratio}


def _comparison_row(comparison: Comparison) -> dict[str, Any]:
    return {**asdict(comparison), "difference": comparison.difference, "significant": comparison.significant}


def study_json(study: Study) -> str:
    """
    Write results as JSON.

    Args:
        study (`Study`):
            What the report shows.

    Returns:
        `str`: with null in the place of numbers that are not finite.
    """
    common, apart = differing_settings(study.runs)
    runs = [
        {
            "label": run.label,
            "method": run.method,
            "settings_apart": own,
            "total": _row(total),
            "groups": [_row(result) for result in groups],
            "without_near_copies": None if clean is None else _row(clean),
            "published": asdict(published) if study.grouping.is_pile and (published := published_for(run)) else None,
            "untrained": [
                {"index": record.index, "id": record.id, "error": record.error}
                for record in run.records
                if record.status == "untrained"
            ],
            "validation": [asdict(trial) for trial in trials_of(run)],
            "settings": run.settings,
        }
        for run, total, groups, clean, own in zip(
            study.runs, study.totals, study.groups, study.clean, apart, strict=True
        )
    ]
    whole = {
        "baseline": study.baseline.label,
        "group_by": study.grouping.kind,
        "bootstrap": asdict(study.grouping.bootstrap),
        "notes": study.notes,
        "common_settings": common,
        "runs": runs,
        "comparisons": [_comparison_row(comparison) for comparison in study.comparisons],
        "comparisons_without_near_copies": [_comparison_row(comparison) for comparison in study.clean_comparisons],
        "versions": library_versions(),
    }
    return json.dumps(finite(whole), indent=1, allow_nan=False, ensure_ascii=False, default=str) + "\n"


def study_csv(study: Study) -> str:
    """
    Write results as CSV: a row for each run and group, and one for the total of each run.

    Args:
        study (`Study`):
            What the report shows.

    Returns:
        `str`: with a header; a cell is empty where there is no number.
    """
    names = ("documents", "num_bytes", "before", "after", "ratio", "difference", "low", "high")
    counts = ("worse", "untrained", "near_copies", "trained_tokens", "scored_tokens")
    phases = list(study.totals[0].seconds)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "method", "group", "is_total", *names, *counts, *(f"seconds_{name}" for name in phases)])
    for run, total, groups in zip(study.runs, study.totals, study.groups, strict=True):
        for result in [*groups, total]:
            row = finite(_row(result))
            cells = [row[name] for name in (*names, *counts)] + [row["seconds"][name] for name in phases]
            writer.writerow([run.label, run.method, result.group, int(result is total), *cells])
    return text.getvalue()
