"""A section for a model card, made of the same results as the report."""

from pathlib import Path

import numpy as np

from tttnn.citation import CITATION
from tttnn.report.page import Block, Code, Heading, Paragraph, Points, Table
from tttnn.report.results import contaminated
from tttnn.report.runs import Run, worse_than_before
from tttnn.report.study import Study
from tttnn.report.tables import count_documents, difference, score_cells, share


PILE_CITATION = """@article{gao2020pile,
    title = {The {P}ile: An 800{GB} Dataset of Diverse Text for Language Modeling},
    author = {Leo Gao and Stella Biderman and Sid Black and Laurence Golding and Travis Hoppe and Charles Foster and
        Jason Phang and Horace He and Anish Thite and Noa Nabeshima and Shawn Presser and Connor Leahy},
    journal = {arXiv preprint arXiv:2101.00027},
    year = {2020},
}"""


def model_card(study: Study) -> list[Block]:
    """Write the evaluation section of a model card: what was evaluated, how, results, limits, citation."""
    grouping = study.grouping
    header = ["run", "method", "documents", "bits per byte before", "after", "ratio"]
    worse = worse_than_before(*(run.prompt for run in study.runs))
    header += [f"difference, {study.interval_name} interval", f"documents {worse}"]
    rows = [
        [run.label, run.method, str(total.documents), *score_cells(total), share(total.worse, total.documents)]
        for run, total in zip(study.runs, study.totals, strict=True)
    ]
    models = list(dict.fromkeys(_model_name(run) for run in study.runs))
    tasks = [result.group for result in study.groups[0]]
    what = f"Bits per byte of {', '.join(models)}, before and after adaptation to each test document. "
    what += f"Tasks of the Pile: {', '.join(tasks)}. " if grouping.is_pile else ""
    what += "Sums are pooled over documents" + (", and tasks have the Pile's weights." if grouping.is_pile else ".")
    citations = f"{CITATION}\n\n{PILE_CITATION}" if grouping.is_pile else CITATION
    return [
        Heading("Evaluation: test-time training on nearest neighbors"),
        Paragraph(what),
        Heading("How", 3),
        Points([_how(run) for run in study.runs]),
        Heading("Results", 3),
        Table(header, rows),
        Heading("Limits", 3),
        Points(_limits(study)),
        Heading("Citation", 3),
        Code(citations, "bibtex"),
    ]


def _model_name(run: Run) -> str:
    """Name the model of a run: its id on the Hub, or the name of its folder."""
    model = str(run.settings.get("model"))
    return Path(model).name if Path(model).is_absolute() else model


def _how(run: Run) -> str:
    used = run.used_settings()
    words = [f"{run.label}: method {run.method}"]
    if "num_neighbors" in used:
        words.append(f"{used['num_neighbors']} neighbors")
    if "order" in used:
        words.append(f"order {used['order']}")
    if "learning_rate" in used:
        rates = used["learning_rate"]  # a list if an optimizer with several was passed
        words.append(f"learning rate {' and '.join(f'{rate:g}' for rate in np.atleast_1d(rates))}")
    if used.get("num_indexed"):
        words.append(f"an index of {used['num_indexed']} documents")
    if "query" in used:
        words.append(f"query {used['query']}")
    words.append("the query in context" if run.prompt == "context" else "no prompt")
    window = used.get("window_tokens") or (run.prompt == "none" and used.get("max_length"))
    if window:
        words.append(f"windows of {window} tokens")
    if (run.retrieves or run.trains) and "max_length" in used:
        words.append(f"chunks of {used['max_length']} tokens")
    if used.get("drop_near_copies"):
        words.append("near-copies dropped")
    return ", ".join(words) + "."


def _limits(study: Study) -> list[str]:
    bootstrap, count = study.grouping.bootstrap, len(contaminated(study.runs))
    limits = [
        f"Intervals are paired bootstraps over documents ({bootstrap.num_samples} draws). They say nothing about "
        "other corpora, models or seeds."
    ]
    if study.totals[0].group == "weighted_mean":
        limits.append("Some tasks of the Pile are missing: the mean is not comparable with a published pile_all.")
    if any(run.used_settings().get("query") == "document" and run.retrieves for run in study.runs):
        limits.append("If the query is the whole document, the scored text itself finds the neighbors.")
    if count:
        limits.append(
            f"{count_documents(count)} {'has' if count == 1 else 'have'} a near-copy or a part of the document itself "
            "among the neighbors."
        )
        for run, clean in zip(study.runs, study.clean, strict=True):
            if clean is not None and clean.num_bytes:
                interval = difference(clean.difference, clean.low, clean.high)
                limits.append(f"Without such documents, {run.label}: difference {interval}.")
    else:
        limits.append("No document and no near-copy of it was found among its own neighbors.")
    for run, total in zip(study.runs, study.totals, strict=True):
        if total.untrained:
            limits.append(
                f"{run.label}: {total.untrained} of {count_documents(total.documents)} could not be trained on, and "
                "count with the score of the original model."
            )
        if total.partial:
            limits.append(
                f"{run.label}: {total.partial} of {count_documents(total.documents)} got neighbors from a part of the "
                "index only, because machines of the cluster did not answer."
            )
    return [*limits, *study.notes]
