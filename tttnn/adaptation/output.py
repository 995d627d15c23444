"""What an evaluation gives: scores, metrics, and warnings of what makes them other than they seem."""

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from tttnn.records import DocumentRecord, nll_matrix, summarize


logger = logging.get_logger(__name__)


def evaluation_output(
    records: list[DocumentRecord], compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None, prefix: str
) -> EvalLoopOutput:
    """Pool the records of all processes into what `evaluate` and `predict` give."""
    _warn_of(records)
    predictions = nll_matrix(records)
    label_ids = np.array([record.num_bytes for record in records], dtype=np.int64)
    metrics: dict[str, Any] = dict(summarize(records))
    if compute_metrics is not None:
        metrics |= compute_metrics(EvalPrediction(predictions=predictions, label_ids=label_ids))
    metrics = {name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": v for name, v in metrics.items()}
    return EvalLoopOutput(predictions, label_ids, metrics, len(records))


def _warn_of(records: list[DocumentRecord]) -> None:
    """Tell what makes a result other than it seems: documents that were not trained on, and contaminated ones."""
    untrained = [record.index for record in records if record.status == "untrained"]
    if untrained:
        logger.warning(
            f"{len(untrained)} of {len(records)} documents could not be trained on; they are scored with the "
            f"original model: {untrained}."
        )
    partial = [record.index for record in records if record.missing_shards]
    if partial:
        missing = sorted({number for record in records for number in record.missing_shards})
        logger.warning(
            f"{len(partial)} of {len(records)} documents got neighbors from a part of the index only, because "
            f"machines of the cluster did not answer: {partial}. The shards {missing} were missing."
        )
    copies = sum(bool({*record.near_copies} & {*record.neighbor_ids}) for record in records)
    if copies:
        logger.warning(
            f"{copies} of {len(records)} documents have a near-copy of the document among the neighbors that are "
            "used. Set `drop_near_copies`, or report the result without these documents too."
        )
    own = [record for record in records if {*record.own_neighbors} & {*record.neighbor_ids}]
    if own:
        passages = sum(len({*record.own_neighbors} & {*record.neighbor_ids}) for record in own)
        logger.warning(
            f"{len(own)} of {len(records)} documents are among their own neighbors: {passages} neighbors that are "
            'used have the id or the source of their document. Set `exclude="id"` (or "source"; on a command '
            "line `--exclude id`), or report the result without these documents too."
        )
