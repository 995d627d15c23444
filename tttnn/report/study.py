"""All that a report shows, computed once from the journals: for the page, the card, CSV and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tttnn.errors import InputError
from tttnn.intervals import Bootstrap
from tttnn.report.results import Comparison, Grouping, Result, contaminated
from tttnn.report.runs import Run, read_runs
from tttnn.report.tables import count_documents


@dataclass
class Study:
    """Runs, in the order in which they were given, and the results of each."""

    runs: list[Run]
    grouping: Grouping
    baseline: Run  # the others are compared with it
    notes: list[str]  # what a reader must know
    totals: list[Result]
    pooled: list[Result | None]  # without weights, where the totals are weighted
    groups: list[list[Result]]
    clean: list[Result | None]  # without the documents of which any run found a near-copy; `None` if none is left
    comparisons: list[Comparison]  # of each run but the baseline
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
    """Read runs and compute what a report shows of them (see `write_report`)."""
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
    notes += _notes(runs, totals, groups)
    return Study(
        runs=runs,
        grouping=grouping,
        baseline=base,
        notes=notes + (_lonely(groups) if grouping.is_pile else []),
        totals=totals,
        pooled=[grouping.pooled(run.records) for run in runs],
        groups=groups,
        clean=[grouping.total(records) if dirty and records else None for records in clean_records],
        comparisons=[grouping.compare(run, base) for run in others],
        clean_comparisons=[grouping.compare(clean_runs[run.label], clean_runs[base.label]) for run in others if dirty],
    )


def _notes(runs: list[Run], totals: list[Result], groups: list[list[Result]]) -> list[str]:
    """Say which runs have fewer documents or tasks than others, and what is in no mean."""
    most = max(total.documents for total in totals)
    notes = [
        f"{run.label} has {count_documents(total.documents)}, and another run has {most}: compare them in the paired "
        "comparison, not in the table of runs."
        for run, total in zip(runs, totals, strict=True)
        if total.documents < most
    ]
    names = dict.fromkeys(result.group for results in groups for result in results)
    for run, results in zip(runs, groups, strict=True):
        missing = [name for name in names if name not in {result.group for result in results}]
        if missing:
            notes.append(f"{run.label} has no document of {', '.join(missing)}: its total leaves them out.")
        notes += [
            f"{run.label}: no document{f' of {result.group}' if len(names) > 1 else ''} has a byte to score, so there "
            "is no score."
            for result in results
            if not result.num_bytes
        ]
    return notes


def _lonely(groups: list[list[Result]]) -> list[str]:
    """Say which tasks have one document, which no draw can change."""
    names = dict.fromkeys(result.group for results in groups for result in results if result.documents == 1)
    if not names:
        return []
    return [
        f"Tasks with one document have no interval: {', '.join(names)}. The interval of a total keeps that document "
        "fixed and resamples the documents of the other tasks, so it is too narrow."
    ]
