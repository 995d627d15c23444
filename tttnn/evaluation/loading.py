"""Loading what an evaluation names: the model, its tokenizer, the index; and a trainer of them that gives words."""

import sys
from dataclasses import replace
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tttnn.adaptation import TestTimeTrainer, TrainableArguments, Tuning, make_trainable
from tttnn.errors import InputError
from tttnn.evaluation.options import Evaluation
from tttnn.methods import choose_budget
from tttnn.retrieval import NeighborCache, NeighborRetriever


def load_trainer_arguments(evaluation: Evaluation[Any]) -> dict[str, Any]:
    """
    Load what a `TestTimeTrainer` needs, as an evaluation names it.

    Args:
        evaluation (`Evaluation`):
            Which model, and which index (see `parse_evaluation`).

    Returns:
        `dict[str, Any]`: `model`, `processing_class` and `retriever`, which caches on disk, and is `None` without an
        index.

    Raises:
        `ValueError`: If the model cannot be loaded, or the index is damaged.
        `OSError`: If there is no such index.
    """
    inputs, retriever = evaluation.inputs, _load_retriever(evaluation)
    model, tokenizer = load_model(inputs.model, inputs.model_revision, inputs.dtype)
    return {"model": model, "processing_class": tokenizer, "retriever": retriever}


def load_model(
    name: str, revision: str | None = None, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a model and its tokenizer.

    Args:
        name (`str`):
            Hub id or folder.
        revision (`str`, *optional*):
            Branch, tag or commit.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Precision of the weights.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`: both.

    Raises:
        `ValueError`: If they cannot be loaded.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype)
        return model, AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The model '{name}' cannot be loaded: {error} Check its name and `--model-revision`; without a "
            "connection, pass a folder, or a model that is in the cache."
        ) from error


def load_trainer(
    evaluation: Evaluation[Any],
    model: PreTrainedModel | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> TestTimeTrainer:
    """
    Make a trainer that changes what a model says, for generating and for lm-evaluation-harness; settle a budget.

    Args:
        evaluation (`Evaluation`):
            Which model, which index, and how (see `parse_evaluation`).
        model (`PreTrainedModel`, *optional*):
            A model that is loaded already; with `processing_class`. By default the one that the evaluation names.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Its tokenizer.

    Returns:
        `TestTimeTrainer`: with the retriever, if the method uses one.

    Raises:
        `ValueError`: If the model cannot be loaded, the index is damaged or to be used in part, or nothing fits the
            budget.
        `OSError`: If there is no such index.
    """
    if evaluation.index is not None and evaluation.index.index_fraction:
        raise InputError("`--index-fraction` is for evaluations. Leave it out.")
    retriever = _load_retriever(evaluation)
    if model is None or processing_class is None:
        inputs = evaluation.inputs
        model, processing_class = load_model(inputs.model, inputs.model_revision, inputs.dtype)
    trainable = evaluation.method.trainable or TrainableArguments()
    model = make_trainable(model, trainable, evaluation.args.seed)
    if evaluation.budget is not None:
        budget = evaluation.budget
        curve = _that_generates(budget.curve)
        choice = choose_budget(budget.value, model, processing_class, evaluation.args, curve, budget.methods)
        print(choice.reason, file=sys.stderr)  # noqa: T201
        evaluation = budget.settle(choice)
    return TestTimeTrainer(
        model,
        evaluation.args,
        retriever if evaluation.method.retrieves else None,
        processing_class=processing_class,
        method=evaluation.method,
    )


def _load_retriever(evaluation: Evaluation[Any]) -> NeighborRetriever | None:
    """Open the index that an evaluation names, with a cache on disk."""
    index = evaluation.index
    if index is None:
        return None
    return NeighborRetriever.from_pretrained(
        index.index,
        revision=index.index_revision,
        shards=index.index_shards,
        texts=index.index_texts,
        embedder=index.embedder,
        trust_index=index.trust_index,
        cache=NeighborCache(),
        passage_length=index.passage_length,
        cluster=index.cluster,
        replicas=index.replicas,
        on_missing=index.on_missing,
    )


def _that_generates(curve: Tuning) -> Tuning:
    """Leave out the rows that only change scores: neighbors that are counted, and neither read nor trained on."""
    rows = [row for row in curve.curve if not (row.method == "context" and row.options.get("context_length") == 0)]
    return replace(curve, curve=rows)
