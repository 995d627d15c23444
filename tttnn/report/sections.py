"""The parts of a report's page, in words and tables."""

import json
import math
import re
from typing import Any

from tttnn.evaluation.pile import TASKS
from tttnn.report.export import library_versions
from tttnn.report.page import Block, Code, Heading, Paragraph, Points, Table, Tokens
from tttnn.report.pictures.costs import phase_seconds
from tttnn.report.published import Published, published_for
from tttnn.report.results import Comparison, Result, contaminated
from tttnn.report.runs import Run, differing_settings, worse_than_before
from tttnn.report.study import Study
from tttnn.report.tables import NONE, count_documents, difference, figure, score_cells, share
from tttnn.report.trials import trials_of


MEANS = {
    "all": "Scores are pooled over all documents: sums of nats over sums of bytes.",
    "pile_all": "Scores are pooled within a task; the total, pile_all, is their mean with the Pile's weights. "
    "The tables of tasks also show all documents pooled without weights.",
    "weighted_mean": "Scores are pooled within a task; the total, weighted_mean, is their mean with the Pile's "
    "weights of these tasks, scaled to a sum of 1. It is not comparable with a published pile_all. The tables of "
    "tasks also show all documents pooled without weights.",
}


def settings_text(settings: dict[str, Any]) -> str:
    """Write settings in a line, `"order random, seed 1"`; digests are cut to 8 digits."""
    cut = {name: re.sub(r"^([0-9a-f]{8})[0-9a-f]{8,}$", r"\1", str(value)) for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in cut.items())


def overview(study: Study) -> list[Block]:
    """Begin the page: what is reported, and the table of runs."""
    bootstrap, total = study.grouping.bootstrap, study.totals[0].group
    common, apart = differing_settings(study.runs)
    header = ["run", "method", "prompt", "documents", "bytes", "bits per byte before", "after", "ratio"]
    header += [
        f"difference, {study.interval_name} interval",
        worse_than_before(*(run.prompt for run in study.runs)),
        "untrained",
        "with near-copies",
        "own neighbors",
    ]
    is_partial = any(result.partial for result in study.totals)
    header += ["partial"] * is_partial
    rows = []
    for run, result, settings in zip(study.runs, study.totals, apart, strict=True):
        cells = [str(result.documents), str(result.num_bytes), *score_cells(result)]
        copies = [str(result.near_copies), str(result.own_neighbors)] if run.retrieves else [NONE, NONE]
        counts = [share(result.worse, result.documents), str(result.untrained), *copies]
        counts += [str(result.partial)] * is_partial
        rows.append([run.label, run.method, run.prompt, *cells, *counts, settings_text(settings) or NONE])
    text = (
        f"Bits per byte of {len(study.runs)} {'run' if len(study.runs) == 1 else 'runs'} before and after adaptation; "
        f"lower is better. {MEANS[total]} Intervals are paired bootstraps over documents, {bootstrap.num_samples} "
        f"draws, seed {bootstrap.seed}. They cover the choice of documents and no other source of chance, and they "
        "are too narrow for ten documents or fewer. With the prompt in context the score before is that of the prompt "
        "alone: the original model has read it. Worse counts documents with a higher score after than before. "
        "Untrained documents could not be trained on; they count in every mean with the score of the original model. "
        "Own neighbors counts documents of which a part is among their own neighbors."
    )
    if is_partial:
        text += " Partial documents got neighbors from a part of the index only, because machines did not answer."
    blocks: list[Block] = [Heading("Test-time training report", 1), Paragraph(text)]
    blocks += [Points(study.notes)] if study.notes else []
    blocks += [Heading("Runs"), Table([*header, "settings that differ"], rows)]
    if common:
        blocks.append(Paragraph(f"Of the settings that differ, most runs have: {settings_text(common)}."))
    return blocks


def comparison(study: Study) -> list[Block]:
    """Compare runs with the baseline on the same documents."""
    blocks: list[Block] = [Heading("Paired comparison")]
    if not study.comparisons:
        return [*blocks, Paragraph("There is only one run, so there is nothing to compare it with.")]
    text = (
        f"Each run against {study.baseline.label}, on the documents that both have (matched by the digests of their "
        "texts): bits per byte after, run minus baseline. Below 0 the run is better. The intervals are not corrected "
        "for the number of comparisons."
    )
    header = ["run", "documents matched", "after", f"after, {study.baseline.label}"]
    header += [
        f"difference, {study.interval_name} interval",
        f"documents worse than {study.baseline.label}",
        "verdict",
    ]
    rows = [
        [
            item.label,
            f"{item.documents} of {item.documents + item.only_run}",
            figure(item.after),
            figure(item.baseline_after),
            difference(item.difference, item.low, item.high),
            share(item.worse, item.documents),
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
    warnings = []
    if item.only_run or item.only_baseline:
        warnings.append(
            f"{item.label}: both runs have {count_documents(item.documents)}. Left out are {item.only_run} that only "
            f"{item.label} has, and {item.only_baseline} that only {item.baseline} has."
        )
    causes = "; ".join(f"{name}: {value!r} against {other!r}" for name, (value, other) in item.causes.items())
    causes = f" Settings that differ: {causes}." if causes else ""
    if item.other_bytes:
        warnings.append(
            f"{item.label}: the protocol is not that of {item.baseline}, because the number of scored bytes differs "
            f"for {count_documents(item.other_bytes)}.{causes}"
        )
    elif item.other_before:
        warnings.append(
            f"{item.label}: the score before adaptation differs from that of {item.baseline} for "
            f"{count_documents(item.other_before)}. The model or the scoring is different, so the difference does not "
            f"come from adaptation alone.{causes}"
        )
    return warnings


def mixtures(study: Study) -> list[Block]:
    """Show what mixtures change: the scores of their runs with and without them."""
    rows, prompts = [], []
    for run, mixed in zip(study.runs, study.totals, strict=True):
        if not all(record.unmixed_nll for record in run.records):
            continue
        prompts.append(run.prompt)
        plain = study.grouping.total([record.unmixed() for record in run.records])
        for name, result in (("none", plain), (str(run.settings.get("mix")), mixed)):
            cells = [*score_cells(result), share(result.worse, result.documents)]
            rows.append([run.label, name, *cells])
    if not rows:
        return []
    text = (
        "The scores after adaptation with other predictions mixed in, and without them. Worse counts documents with a "
        "higher score after than before."
    )
    header = ["run", "mix", "bits per byte before", "after", "ratio", f"difference, {study.interval_name} interval"]
    return [Heading("Mixtures"), Paragraph(text), Table([*header, worse_than_before(*prompts)], rows)]


def group_table(study: Study, run: Run, results: list[Result]) -> list[Block]:
    """Lay out one run by task or group, and for tasks of the Pile the published figures beside it."""
    published = published_for(run) if study.grouping.is_pile else None
    header = [str(study.grouping.kind), "documents", "bits per byte before", "after", "ratio"]
    header += [f"difference, {study.interval_name} interval", worse_than_before(run.prompt), "seconds"]
    if published:
        kind = "published" if published.is_same_model else "another model, published"
        kind = f"other settings, {kind}" if published.differing and published.is_same_model else kind
        header += [f"{kind}: before", "after", "ratio"]
    rows = []
    for result in results:
        seconds = figure(result.seconds["total"], ".1f")
        cells = [str(result.documents), *score_cells(result), share(result.worse, result.documents), seconds]
        rows.append([result.group, *cells, *(_published_cells(published, result.group) if published else [])])
    blocks: list[Block] = [Table(header, rows)]
    if published:
        words = "Model and settings have the same names as in the publication; index and test documents may be others."
        if not published.is_same:
            words = "" if published.is_same_model else f"This run's model is {run.settings.get('model')}. "
            if published.differing:
                settings = [f"{name} {own} instead of {theirs}" for name, (theirs, own) in published.differing.items()]
                words += f"This run has {', '.join(settings)}. "
            words += "Compare at most the ratios, and with care."
        blocks.append(
            Paragraph(
                f"Published figures: {published.title}, on the Pile, without the prompt in context, number of "
                f"neighbors {published.neighbors} (TTT-NN, arXiv 2305.18466). {words}"
            )
        )
    return blocks


def _published_cells(published: Published, group: str) -> list[str]:
    if group not in TASKS and group != "pile_all":
        return [NONE] * 3
    before, after = published.figures(group)
    return [figure(before), figure(after), figure(after / before, ".3f")]


def near_copies(study: Study) -> list[Block]:
    """Show results without contaminated documents, and list the documents that were not trained on."""
    blocks: list[Block] = [Heading("Near-copies and failures")]
    count = len(contaminated(study.runs))
    if not count:
        blocks.append(Paragraph("No run found a document or a near-copy of it among its own neighbors."))
    else:
        text = (
            f"{count_documents(count)} {'has' if count == 1 else 'have'} a near-copy or a part of the document itself "
            "among the neighbors of a run. Results without these documents, which are left out of all runs:"
        )
        header = ["run", "documents left", "bits per byte before", "after", "ratio"]
        header += [f"difference, {study.interval_name} interval", "with all documents"]
        against = {item.label: difference(item.difference, item.low, item.high) for item in study.clean_comparisons}
        rows = [
            [run.label, *([NONE] * 5 if clean is None else [str(clean.documents), *score_cells(clean)])]
            + [difference(total.difference, total.low, total.high), against.get(run.label, NONE)]
            for run, clean, total in zip(study.runs, study.clean, study.totals, strict=True)
        ]
        blocks += [Paragraph(text), Table([*header, f"against {study.baseline.label}"], rows)]
    failed = [
        [run.label, record.id, record.error or "no reason was recorded"]
        for run in study.runs
        for record in run.records
        if record.status == "untrained"
    ]
    if not failed:
        return [*blocks, Paragraph("No document was left untrained.")]
    text = "Documents that could not be trained on; they are scored with the original model:"
    return [*blocks, Paragraph(text), Table(["run", "document", "error"], failed)]


def token_view(study: Study) -> list[Block]:
    """Show the tokens of the best and the worst document of each run that kept them."""
    blocks: list[Block] = []
    for run in study.runs:
        kept = [(record, gains) for record in run.records if (gains := record.token_gains())]
        if not kept:
            continue
        by_gain = sorted(kept, key=lambda item: (item[0].nll[-1] - item[0].nll[0], item[0].index))
        for name, (record, gains) in [("most", by_gain[0]), ("least", by_gain[-1])][: len(kept)]:
            caption = (
                f"{run.label}: {record.id} gained {name}, {sum(gain for _, gain in gains):+.1f} bits on "
                f"{record.num_bytes} bytes ({figure(record.bits_per_byte(0))} to {figure(record.bits_per_byte())} "
                "bits per byte)."
            )
            blocks.append(Tokens(gains, caption))
    return [Heading("Tokens"), *blocks] if blocks else []


def speed(study: Study) -> list[Block]:
    """Lay out the time that the runs took."""
    header = ["run", "tokens trained per second", "tokens scored per second", "outside the model"]
    header += ["seconds per document", "retrieve", "train", "score", "rest"]
    rows = []
    for run, total in zip(study.runs, study.totals, strict=True):
        seconds, phases = total.seconds, phase_seconds(total)
        rates = [
            figure(tokens / seconds[phase], ".0f") if seconds[phase] and tokens else NONE
            for phase, tokens in (("train", total.trained_tokens), ("score", total.scored_tokens))
        ]
        outside = f"{100 * (1 - seconds['model'] / seconds['total']):.1f} %" if seconds["total"] else NONE
        per_document = [seconds["total"] / total.documents, *phases.values()]
        rows.append([run.label, *rates, outside, *(figure(value, ".2f") for value in per_document)])
    text = (
        "Tokens per second are those of the phases train and score. Outside the model is the share of time that is "
        "not spent in forward and backward passes, clipping and the optimizer. The rest is mostly the time to restore "
        "the model."
    )
    return [Heading("Speed"), Table(header, rows), Paragraph(text)]


def choices(study: Study) -> list[Block]:
    """Show what was chosen on validation documents, and how each candidate scored."""
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
        words = f"{run.label} uses {'; '.join(best)}" if best else f"{run.label} uses none of these"
        words += f", of {len(trials)} candidates." + (" The best ones:" if len(shown) < len(trials) else "")
        rows = [
            [trial.name, str(trial.documents), figure(trial.bits_per_byte), "yes" if trial.chosen else ""]
            for trial in shown
        ]
        blocks += [Paragraph(words), Table(["candidate", "documents", "bits per byte", "chosen"], rows)]
    if not seen:
        blocks.append(Paragraph("No run chose a setting on validation documents."))
    return blocks


def reproduction(study: Study) -> list[Block]:
    """Give the settings of every run, and the versions of libraries."""
    text = (
        "For each run: the options of the evaluation, and under `settings` the values in the journal, on which the "
        "numbers depend. The library versions are those that made this report."
    )
    blocks: list[Block] = [Heading("How to reproduce"), Paragraph(text)]
    for run in study.runs:
        content = {**run.evaluation, "settings": run.settings}
        blocks += [Heading(run.label, 3), Code(json.dumps(content, indent=1, default=str), "json")]
    return [*blocks, Heading("Versions", 3), Code(json.dumps(library_versions(), indent=1), "json")]
