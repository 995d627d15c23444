"""What was tried on validation documents."""

import math
from dataclasses import dataclass
from typing import Any

from tttnn.errors import InputError
from tttnn.records import DocumentRecord, nll_matrix, summarize
from tttnn.report.runs import Run


@dataclass
class Trial:
    """A candidate on the validation documents; bits per byte are pooled over them, and NaN without a byte."""

    name: str
    documents: int
    bits_per_byte: float
    chosen: bool


def trials_of(run: Run) -> list[Trial]:
    """List the learning rates, or pairs of lambda and temperature, that were tried for a run."""
    trials: list[Trial] = []
    for name, (settings, records) in run.trials.items():
        if settings.get("method") == "knn-lm":
            trials += _knn_trials(run, settings, records)
            continue
        rate = settings.get("learning_rate")
        score = summarize(records)["bits_per_byte"] if any(record.num_bytes for record in records) else math.nan
        title = f"learning rate {rate:g}" if isinstance(rate, int | float) else name
        trials.append(Trial(title, len(records), score, rate == run.settings.get("learning_rate")))
    return trials


def _knn_trials(run: Run, settings: dict[str, Any], records: list[DocumentRecord]) -> list[Trial]:
    """List the pairs, whose scores a record has in this order after the score before."""
    pairs = [(weight, heat) for heat in settings["knn_temperature"] for weight in settings["knn_lambda"]]
    sums, num_bytes = nll_matrix(records)[:, 1:].sum(axis=0), sum(record.num_bytes for record in records)
    if len(sums) != len(pairs):
        raise InputError(
            f"The validation journal of '{run.folder}' has {len(sums)} scores for {len(pairs)} pairs of lambda and "
            "temperature. Move it away and run the evaluation again."
        )
    chosen = run.settings.get("knn_lambda"), run.settings.get("knn_temperature")
    return [
        Trial(
            f"lambda {weight:g}, temperature {temperature:g}",
            len(records),
            total / num_bytes / math.log(2) if num_bytes else math.nan,
            chosen == ([weight], [temperature]),
        )
        for (weight, temperature), total in zip(pairs, sums.tolist(), strict=True)
    ]
