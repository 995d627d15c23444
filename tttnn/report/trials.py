"""What was tried on validation documents."""

import math
from dataclasses import dataclass
from itertools import product
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
    """List the learning rates, and the candidates of the method, that were tried for a run."""
    trials: list[Trial] = []
    for name, (settings, records) in run.trials.items():
        # of what a method chooses, a trial has a list of values, and the run a list of the chosen one
        lists = {key: values for key, values in settings.items() if isinstance(values, list) and len(values) > 1}
        varied = {key: values for key, values in lists.items() if _is_one(run.settings.get(key))}
        if varied:
            trials += _candidate_trials(run, varied, records)
            continue
        rate = settings.get("learning_rate")
        score = summarize(records)["bits_per_byte"] if any(record.num_bytes for record in records) else math.nan
        title = f"learning rate {rate:g}" if isinstance(rate, int | float) else name
        trials.append(Trial(title, len(records), score, rate == run.settings.get("learning_rate")))
    return trials


def _candidate_trials(run: Run, varied: dict[str, list[Any]], records: list[DocumentRecord]) -> list[Trial]:
    """List the candidates, whose scores a record has after the score before; the first setting varies fastest."""
    candidates = [values[::-1] for values in product(*reversed(varied.values()))]
    sums, num_bytes = nll_matrix(records)[:, 1:].sum(axis=0), sum(record.num_bytes for record in records)
    if len(sums) != len(candidates):
        raise InputError(
            f"The validation journal of '{run.folder}' has {len(sums)} scores for {len(candidates)} values of "
            f"{' and '.join(varied)}. Move it away and run the evaluation again."
        )
    return [
        Trial(
            ", ".join(f"{name} {value:g}" for name, value in zip(varied, values, strict=True)),
            len(records),
            total / num_bytes / math.log(2) if num_bytes else math.nan,
            all(run.settings[name] == [value] for name, value in zip(varied, values, strict=True)),
        )
        for values, total in zip(candidates, sums.tolist(), strict=True)
    ]


def _is_one(value: object) -> bool:
    return isinstance(value, list) and len(value) == 1
