"""Results as JSON and CSV, for programs."""

import csv
import io
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tttnn.files import finite
from tttnn.report.published import published_for
from tttnn.report.results import Comparison, Result
from tttnn.report.runs import Run, differing_settings
from tttnn.report.study import Study
from tttnn.report.trials import trials_of


LIBRARIES = (
    *("tttnn", "torch", "transformers", "accelerate", "datasets", "sentence-transformers", "peft", "faiss-cpu"),
    *("faiss-gpu", "numpy", "matplotlib"),
)


def library_versions() -> dict[str, str]:
    """Name the versions of those libraries that are installed and that results depend on."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _row(result: Result) -> dict[str, Any]:
    return {**asdict(result), "difference": result.difference, "ratio": result.ratio}


def _comparison_row(comparison: Comparison) -> dict[str, Any]:
    return {**asdict(comparison), "difference": comparison.difference, "significant": comparison.significant}


def _published(run: Run) -> dict[str, Any] | None:
    published = published_for(run)
    return None if published is None else {**asdict(published), "is_same": published.is_same}


def study_json(study: Study) -> str:
    """Write results as JSON; a number that is not finite is null."""
    common, apart = differing_settings(study.runs)
    runs = [
        {
            "label": run.label,
            "method": run.method,
            "prompt": run.prompt,
            "settings_apart": settings_apart,
            "total": _row(total),
            "pooled": None if pooled is None else _row(pooled),
            "groups": [_row(result) for result in groups],
            "without_near_copies": None if clean is None else _row(clean),
            "published": _published(run) if study.grouping.is_pile else None,
            "untrained": [
                {"index": record.index, "id": record.id, "error": record.error}
                for record in run.records
                if record.status == "untrained"
            ],
            "validation": [asdict(trial) for trial in trials_of(run)],
            "settings": run.settings,
        }
        for run, total, pooled, groups, clean, settings_apart in zip(
            study.runs, study.totals, study.pooled, study.groups, study.clean, apart, strict=True
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
    Write a row for each run and group, one for the total of each run, and one without weights where that has weights.

    A cell without a number is empty.
    """
    names = ("documents", "num_bytes", "before", "after", "ratio", "difference", "low", "high")
    counts = ("worse", "untrained", "near_copies", "own_neighbors", "partial", "trained_tokens", "scored_tokens")
    phases = list(study.totals[0].seconds)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run", "method", "prompt", "group", "is_total", *names, *counts, *(f"seconds_{name}" for name in phases)]
    )
    for run, total, pooled, groups in zip(study.runs, study.totals, study.pooled, study.groups, strict=True):
        for result in [*groups, total, *([] if pooled is None else [pooled])]:
            row = finite(_row(result))
            cells = [row[name] for name in (*names, *counts)] + [row["seconds"][name] for name in phases]
            writer.writerow([run.label, run.method, run.prompt, result.group, int(result is total), *cells])
    return text.getvalue()
