"""The parts of a report's page, in words and tables."""

import json
import math
from typing import Any

from tttnn.evaluation.pile import TASKS
from tttnn.methods import METHODS
from tttnn.report.page import Block, Code, Heading, Paragraph, Points, Table
from tttnn.report.pictures.costs import phase_seconds
from tttnn.report.published import Published, published_for
from tttnn.report.results import Comparison, Result, contaminated
from tttnn.report.runs import Run, differing_settings
from tttnn.report.study import Study, library_versions, trials_of
from tttnn.report.tables import NONE, difference, figure, share


def settings_text(settings: dict[str, Any]) -> str:
    """
    Write settings in a line.

    Args:
        settings (`dict[str, Any]`):
            By name.

    Returns:
        `str`: `"order random, seed 1"`; digests are cut to 8 digits.
    """
    return ", ".join(
        f"{name} {str(value)[:8] if name in ('index', 'weights') and value else value}"
        for name, value in settings.items()
    )


def overview(study: Study) -> list[Block]:
    """
    Begin the page: what is reported, and the table of runs.

    Args:
        study (`Study`):
            What the report shows.

    Returns:
        `list[Block]`: with the title.
    """
    bootstrap, total = study.grouping.bootstrap, study.totals[0].group
    means = {
        "all": "Scores are pooled over all documents: sums of nats over sums of bytes.",
        "pile_all": "Scores are pooled within a task; the total, pile_all, is their mean with the Pile's weights.",
        "weighted_mean": "Scores are pooled within a task; the total, weighted_mean, is their mean with the Pile's "
        "weights of these tasks, scaled to a sum of 1. It is not the pile_all of a publication.",
    }
    common, apart = differing_settings(study.runs)
    header = ["run", "method", "documents", "bytes", "bits per byte before", "after", "ratio"]
    header += [f"difference, {study.interval_name} interval", "worse", "untrained", "with near-copies", "set apart by"]
    rows = []
    for run, result, own in zip(study.runs, study.totals, apart, strict=True):
        cells = [str(result.documents), str(result.num_bytes), *_scores(result)]
        copies = str(result.near_copies) if METHODS[run.settings.get("method", "ttt")].trainer.retrieves else NONE
        counts = [share(result.worse, result.documents), str(result.untrained), copies]
        rows.append([run.label, run.method, *cells, *counts, settings_text(own) or NONE])
    text = (
        f"Bits per byte of {len(study.runs)} {'run' if len(study.runs) == 1 else 'runs'} before and after adaptation; "
        f"lower is better. {means[total]} Intervals are paired bootstraps over documents, {bootstrap.num_samples} "
        f"draws, seed {bootstrap.seed}: they cover the choice of documents, and no other source of chance, and are "
        "too narrow for ten documents or less. A document that could not be trained on stays in every mean, untrained."
    )
    blocks: list[Block] = [Heading("Test-time training report", 1), Paragraph(text)]
    blocks += [Points(study.notes)] if study.notes else []
    blocks += [Heading("Runs"), Table(header, rows)]
    if common:
        blocks.append(Paragraph(f"Most runs have in common, of the settings that differ: {settings_text(common)}."))
    lonely = [result.group for result in study.groups[0] if result.documents < 2]
    if study.grouping.is_pile and lonely:
        blocks.append(Paragraph(f"One document has no interval, nor has a total with {', '.join(lonely)} in it."))
    return blocks


def _scores(result: Result) -> list[str]:
    interval = difference(result.difference, result.low, result.high)
    return [figure(result.before), figure(result.after), figure(result.ratio, ".3f"), interval]


def comparison(study: Study) -> list[Block]:
    """
    Compare runs with the baseline on the same documents.

    Args:
        study (`Study`):
            What the report shows.

    Returns:
        `list[Block]`: with a heading.
    """
    blocks: list[Block] = [Heading("Paired comparison")]
    if not study.comparisons:
        return [*blocks, Paragraph("There is one run, so there is nothing to compare it with.")]
    text = (
        f"Each run against {study.baseline.label}, on the documents that both have (matched by the digests of their "
        "texts): bits per byte after, run minus baseline. Below 0 the run is better. No correction for the number of "
        "comparisons is made."
    )
    header = ["run", "documents matched", "after", f"after, {study.baseline.label}"]
    header += [f"difference, {study.interval_name} interval", "verdict"]
    rows = [
        [
            item.label,
            f"{item.documents} of {item.documents + item.only_run}",
            figure(item.after),
            figure(item.baseline_after),
            difference(item.difference, item.low, item.high),
            _verdict(item),
        ]
        for item in study.comparisons
    ]
    warnings = [warning for item in study.comparisons for warning in _warnings(item)]
    return [*blocks, Paragraph(text), Table(header, rows), *([Points(warnings)] if warnings else [])]


def _verdict(item: Comparison) -> str:
    if not item.documents:
        return "not compared"
    if item.significant is None:
        return "no interval"
    if item.documents < 10:
        return "too few documents"
    verdict = "better" if item.difference < 0 else "worse"
    verdict = verdict if item.significant else "not significant"
    return f"{verdict}, but see below" if item.other_bytes or item.other_before else verdict


def _warnings(item: Comparison) -> list[str]:
    found = []
    if item.only_run or item.only_baseline:
        found.append(
            f"{item.label}: {item.documents} documents are in both runs; {item.only_run} are only in it, and "
            f"{item.only_baseline} only in {item.baseline}. These are left out."
        )
    causes = "; ".join(f"{name}: {ours!r} against {theirs!r}" for name, (ours, theirs) in item.causes.items())
    causes = f" Settings that differ: {causes}." if causes else ""
    if item.other_bytes:
        found.append(
            f"{item.label}: of {item.other_bytes} documents it scored another number of bytes than {item.baseline}, "
            f"so this is not the same protocol.{causes}"
        )
    elif item.other_before:
        found.append(
            f"{item.label}: for {item.other_before} documents the score before adaptation is not that of "
            f"{item.baseline}, so the model or the way of scoring is another, and the difference is not one of "
            f"adaptation alone.{causes}"
        )
    return found


def group_table(study: Study, run: Run, total: Result, results: list[Result]) -> list[Block]:
    """
    Set out one run by task or group.

    Args:
        study (`Study`):
            What the report shows.
        run (`Run`):
            One of its runs.
        total (`Result`):
            Of the run.
        results (`list[Result]`):
            Of its groups.

    Returns:
        `list[Block]`: a table, and for tasks of the Pile a line about the published figures in it.
    """
    published = published_for(run) if study.grouping.is_pile else None
    header = [str(study.grouping.kind), "documents", "bits per byte before", "after", "ratio"]
    header += [f"difference, {study.interval_name} interval", "worse", "seconds"]
    if published:
        kind = "published" if published.is_same else "another model, published"
        header += [f"{kind}: before", "after", "ratio"]
    rows = []
    for result in [*results, total]:
        seconds = figure(result.seconds["total"], ".1f")
        cells = [str(result.documents), *_scores(result), share(result.worse, result.documents), seconds]
        rows.append([result.group, *cells, *(_published_cells(published, result.group) if published else [])])
    blocks: list[Block] = [Table(header, rows)]
    if published:
        words = (
            "Model and settings have the same names as theirs; index and test documents may be others."
            if published.is_same
            else (f"This run's model is {run.settings.get('model')}: compare ratios at most, and with care.")
        )
        blocks.append(
            Paragraph(
                f"Published figures: {published.title}, trained on {published.neighbors} neighbors, on the "
                f"Pile (TTT-NN, arXiv 2305.18466). {words}"
            )
        )
    return blocks


def _published_cells(published: Published, group: str) -> list[str]:
    if group not in TASKS and group != "pile_all":
        return [NONE] * 3
    before, after = published.figures(group)
    return [figure(before), figure(after), figure(after / before, ".3f")]


def near_copies(study: Study) -> list[Block]:
    """
    Show results without contaminated documents, and list those that were not trained on.

    Args:
        study (`Study`):
            What the report shows.

    Returns:
        `list[Block]`: with a heading.
    """
    blocks: list[Block] = [Heading("Near-copies and failures")]
    count = len(contaminated(study.runs))
    if not count:
        blocks.append(Paragraph("No run found a near-copy of a scored text among the neighbors."))
    else:
        text = (
            f"{count} {'document has' if count == 1 else 'documents have'} a near-copy of the scored text among the "
            "neighbors of some run. Without them, in all runs alike:"
        )
        header = ["run", "documents left", "bits per byte before", "after", "ratio"]
        header += [
            f"difference, {study.interval_name} interval",
            "with all documents",
            f"against {study.baseline.label}",
        ]
        against = {item.label: difference(item.difference, item.low, item.high) for item in study.clean_comparisons}
        rows = [
            [run.label]
            + ([NONE, *[NONE] * 4] if clean is None else [str(clean.documents), *_scores(clean)])
            + [difference(total.difference, total.low, total.high), against.get(run.label, NONE)]
            for run, clean, total in zip(study.runs, study.clean, study.totals, strict=True)
        ]
        blocks += [Paragraph(text), Table(header, rows)]
    failed = [
        [run.label, record.id, record.error or "no reason was recorded"]
        for run in study.runs
        for record in run.records
        if record.status == "untrained"
    ]
    if not failed:
        return [*blocks, Paragraph("No document was left untrained.")]
    text = "Documents that were left untrained; each counts with the score that it had before:"
    return [*blocks, Paragraph(text), Table(["run", "document", "error"], failed)]


def speed(study: Study) -> list[Block]:
    """
    Set out what the runs took.

    Args:
        study (`Study`):
            What the report shows.

    Returns:
        `list[Block]`: a table and a line.
    """
    header = [
        "run",
        "tokens trained per second",
        "tokens scored per second",
        "outside the model",
        "seconds per document",
    ]
    header += ["retrieve", "train", "score", "rest"]
    rows = []
    for run, total in zip(study.runs, study.totals, strict=True):
        seconds, phases = total.seconds, phase_seconds(total)
        rates = [
            figure(tokens / seconds[phase], ".0f") if seconds[phase] and tokens else NONE
            for phase, tokens in (("train", total.trained_tokens), ("score", total.scored_tokens))
        ]
        outside = f"{100 * (1 - seconds['model'] / seconds['total']):.1f} %" if seconds["total"] else NONE
        each = [
            figure(seconds["total"] / total.documents, ".2f"),
            *(figure(value, ".2f") for value in phases.values()),
        ]
        rows.append([run.label, *rates, outside, *each])
    text = (
        "Tokens per second are those of the phases train and score. Outside the model is the share of the time that "
        "is not spent in forward and backward passes, clipping and the optimizer. The rest is mostly restoring the "
        "model."
    )
    return [Heading("Speed"), Table(header, rows), Paragraph(text)]


def choices(study: Study) -> list[Block]:
    """
    Show what was chosen on validation documents, and how each candidate scored.

    Args:
        study (`Study`):
            What the report shows.

    Returns:
        `list[Block]`: with a heading.
    """
    blocks: list[Block] = [Heading("Chosen on validation documents")]
    seen = set()
    for run in study.runs:
        if run.folder in seen or not run.trials:
            continue
        seen.add(run.folder)  # parts of an index share a choice
        trials = trials_of(run)
        best = [trial.name for trial in trials if trial.chosen]
        ranked = sorted(trials, key=lambda trial: (math.isnan(trial.bits_per_byte), trial.bits_per_byte))
        most = len(ranked) if len(ranked) <= 12 else 10
        shown = [trial for place, trial in enumerate(ranked) if place < most or trial.chosen]
        words = f"{run.label} has {'; '.join(best)}" if best else f"The setting of {run.label} is none of these"
        words += f", of {len(trials)} candidates." + (" The best ones:" if len(shown) < len(trials) else "")
        rows = [
            [trial.name, str(trial.documents), figure(trial.bits_per_byte), "yes" if trial.chosen else ""]
            for trial in shown
        ]
        blocks += [Paragraph(words), Table(["candidate", "documents", "bits per byte", "chosen"], rows)]
    if not seen:
        blocks.append(Paragraph("Nothing was chosen: every setting was given."))
    return blocks


def reproduction(study: Study) -> list[Block]:
    """
    Give the settings of every run, and the versions of libraries.

    Args:
        study (`Study`):
            What the report shows.

    Returns:
        `list[Block]`: with a heading.
    """
    text = (
        "What was evaluated on what, by the names of the options; and the settings in the journal, on which the "
        "numbers depend. The versions are those with which this report was made."
    )
    blocks: list[Block] = [Heading("How to reproduce"), Paragraph(text)]
    for run in study.runs:
        content = {**run.evaluation, "settings": run.settings}
        blocks += [Heading(run.label, 3), Code(json.dumps(content, indent=1, default=str), "json")]
    return [*blocks, Heading("Versions", 3), Code(json.dumps(library_versions(), indent=1), "json")]
